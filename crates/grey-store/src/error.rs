//! Everything that storage can report. Each names the file, and the place in it where there is one.

/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses the directory.
    #[error("{directory} is in use by process {process}")]
    Locked {
        /// The data directory.
        directory: String,
        /// Who has it, as it wrote itself down.
        process: String,
    },
    /// Written by another version.
    #[error("{file} has format version {found}; this version reads {supported}")]
    Version {
        /// The file.
        file: String,
        /// What it says.
        found: u64,
        /// What is understood.
        supported: u64,
    },
    /// The content is not what was written.
    #[error("{file} is damaged at {place}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// Byte offset, index or key.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// This server took over a whole state and does not have what ended before: another server does.
    #[error(
        "{file} does not have {what} on this server, which took over the state of another one after that"
    )]
    Absent {
        /// The file.
        file: String,
        /// Which part of it.
        what: String,
    },
    /// No room on the disk. What was to be written is not; what was written before is safe.
    #[error("no room on the disk while writing {file}")]
    Full {
        /// The file.
        file: String,
    },
    /// The disk failed. After a failed sync nobody knows what is on it: the node must end and start anew, and nothing
    /// may be retried.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An earlier write failed, so nothing is taken any more.
    #[error("{file} takes no writes after an earlier failure")]
    Failed {
        /// The file.
        file: String,
    },
}

impl StoreError {
    pub(crate) fn io(file: &str, action: &'static str, source: std::io::Error) -> StoreError {
        match source.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => StoreError::Full { file: file.to_owned() },
            _ => StoreError::Io { file: file.to_owned(), action, source },
        }
    }

    pub(crate) fn damaged(file: &str, place: impl ToString, what: impl ToString) -> StoreError {
        StoreError::Damaged { file: file.to_owned(), place: place.to_string(), what: what.to_string() }
    }
}
