//! Content-addressed blobs: durable when written, verified when read.

mod error;
mod store;

pub use error::BlobError;
pub use store::{BlobStore, Pieces};
