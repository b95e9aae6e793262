//! What a user reads when something does not go as asked: what, where, the limit, and what to do next.

use grey_api::{AddressError, ClientError, ErrorCode};

/// The exit status for "the answer is no".
pub const ANSWER_IS_NO: u8 = 1;
/// The exit status of wrong usage.
pub const USAGE: u8 = 2;
/// The exit status of a refusal.
pub const REFUSED: u8 = 3;
/// The exit status when nobody answers.
pub const UNREACHABLE: u8 = 4;
/// The exit status of `grey run` when it is Grey that failed or refused.
pub const RUN_FAILED: u8 = 125;

/// A failure with its exit status.
#[derive(Debug)]
pub struct CliError {
    /// A stable code, where there is one.
    pub code: Option<&'static str>,
    /// What was wrong, and where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The exit status.
    pub exit_status: u8,
}

impl CliError {
    /// A failure of this machine or of Grey.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError { code: None, message: message.into(), hint: None, exit_status: ANSWER_IS_NO }
    }

    /// Wrong usage that the parser could not see.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError { exit_status: USAGE, ..CliError::failed(message) }
    }

    /// Nobody answers.
    pub fn unreachable(message: impl Into<String>) -> CliError {
        CliError { exit_status: UNREACHABLE, ..CliError::failed(message) }
    }

    /// A file or directory that could not be used.
    pub fn io(action: &str, what: impl core::fmt::Display, error: &std::io::Error) -> CliError {
        CliError::failed(format!("cannot {action} {what}: {error}"))
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = Some(hint.into());
        self
    }

    /// The same within `grey run`, whose small exit statuses belong to the task.
    #[must_use]
    pub fn in_run(mut self) -> CliError {
        if self.exit_status != USAGE {
            self.exit_status = RUN_FAILED;
        }
        self
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        let message = error.to_string();
        match error {
            ClientError::Refused(problem) => {
                let exit_status = match problem.code {
                    ErrorCode::NotFound | ErrorCode::NotRetained | ErrorCode::NotEnded => ANSWER_IS_NO,
                    ErrorCode::Unavailable => UNREACHABLE,
                    _ => REFUSED,
                };
                let hint = problem.hint.clone();
                CliError { code: Some(problem.code.name()), message, hint, exit_status }
            }
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => CliError::unreachable(message),
            ClientError::Unreadable { .. } => {
                CliError::unreachable(message).hint("is another program listening at that address?")
            }
        }
    }
}

impl From<AddressError> for CliError {
    fn from(error: AddressError) -> CliError {
        CliError::usage(error.to_string())
    }
}
