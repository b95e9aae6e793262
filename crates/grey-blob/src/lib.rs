//! Content-addressed blobs: durable when written, verified when read.

mod error;
mod store;
mod sweep;

pub use error::BlobError;
pub use store::{BlobStore, Pieces};
pub use sweep::{FOLDERS, Hold, Sweep, Swept};
