//! The node plane's schema (`proto/grey/node/v1/node.proto`), and conversions between its messages and the house's own types.
//!
//! Decoding is total: bytes of any content yield a message or a [`WireError`].

mod convert;
mod error;
#[allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "generated from the schema, which has the documentation"
)]
mod generated {
    tonic::include_proto!("grey.node.v1");
}

pub use convert::{
    check_hello, decode_digest, decode_from_worker, decode_stage, decode_to_worker, decode_version,
    encode_from_worker, encode_stage, encode_to_worker, hello,
};
pub use error::WireError;
pub use generated::node_plane_client::NodePlaneClient;
pub use generated::node_plane_server::{NodePlane, NodePlaneServer};
pub use generated::{
    AuthorityReply, AuthorityRequest, BlobPiece, CosignReply, CosignRequest, FetchBlobRequest, GatherReply,
    GatherRequest, GatheredFile, Hello, JoinMessage, KeepAuthorityReply, KeepAuthorityRequest,
    ReplicateReply, ReplicateRequest, ServerAddress, ServersReply, ServersRequest, SnapshotRequest, Standing,
    StandingReply, StandingRequest, StoreBlobReply, StreamPiece, StreamRequest, WorkReply, WorkRequest,
    replicate_request, work_request,
};

/// The version of the messages that this build speaks.
pub const VERSION: u32 = 2;
/// The version in which workers answer about streams of what they run.
pub const STREAMS_VERSION: u32 = 2;
/// The oldest version that it understands.
pub const OLDEST_VERSION: u32 = 1;
/// The most bytes of one message. A whole state of the cluster is the largest.
pub const MESSAGE_BYTES: usize = 256 * 1024 * 1024;
/// The most bytes of one piece of a blob.
pub const PIECE_BYTES: usize = 256 * 1024;
