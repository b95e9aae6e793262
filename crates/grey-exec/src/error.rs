//! Why an executor cannot be made.

use std::io;
use std::path::PathBuf;

/// Why an executor cannot be made. An attempt that fails is no error of this kind: it is a `Finished` event.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The directory for attempts cannot be made, read or cleaned.
    #[error("the work directory {path} cannot be used")]
    WorkDirectory {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another executor has the directory for attempts.
    #[error("the work directory {path} is in use by another worker")]
    WorkDirectoryInUse {
        /// Which directory.
        path: PathBuf,
    },
    /// The launcher does not answer as a launcher of this version does.
    #[error("{path} cannot launch tasks: {reason}")]
    Launcher {
        /// The binary that was to be re-executed.
        path: PathBuf,
        /// What went wrong with it.
        reason: String,
    },
    /// A limit that was asked for makes no sense.
    #[error("{field} is {value}, and must be {expected}")]
    Options {
        /// Which option.
        field: &'static str,
        /// What was given.
        value: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// What the machine has cannot be read.
    #[error("{what} cannot be read")]
    Machine {
        /// Which fact.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
