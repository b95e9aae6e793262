//! Everything that can be wrong with a blob.

use grey_proof::Digest;

/// Why a blob could not be kept or given out.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("blob {digest} is not here")]
    NotFound {
        /// Its digest.
        digest: Digest,
    },
    /// The content is not what was written.
    #[error("blob {digest} is damaged: its content has digest {found}")]
    Damaged {
        /// What it should be.
        digest: Digest,
        /// What it is.
        found: Digest,
    },
    /// What was to be kept is not what it was said to be.
    #[error(
        "{what} has {found_bytes} bytes of digest {found}; {expected_bytes} bytes of digest {digest} were announced"
    )]
    Mismatch {
        /// What was read.
        what: String,
        /// Length announced.
        expected_bytes: u64,
        /// Digest announced.
        digest: Digest,
        /// Length found.
        found_bytes: u64,
        /// Digest found.
        found: Digest,
    },
    /// Larger than the reader takes.
    #[error("blob {digest} has {size_bytes} bytes; the limit is {limit_bytes}")]
    TooLarge {
        /// Its digest.
        digest: Digest,
        /// Its length.
        size_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// Content that came piece by piece and did not end within its bound.
    #[error("the content is larger than {limit_bytes} bytes")]
    Oversized {
        /// The bound.
        limit_bytes: u64,
    },
    /// No room on the disk.
    #[error("no room on the disk while writing {what}")]
    Full {
        /// What was written.
        what: String,
    },
    /// The disk failed.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        what: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Whether an error, or one behind it, says that the disk is full.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        next = error.source();
    }
    false
}

impl BlobError {
    pub(crate) fn failed<E>(action: &'static str, what: impl ToString) -> impl FnOnce(E) -> BlobError
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let what = what.to_string();
        move |source| {
            if is_full(&source) {
                BlobError::Full { what }
            } else {
                BlobError::Io { action, what, source: Box::new(source) }
            }
        }
    }
}
