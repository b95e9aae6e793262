//! What can be wrong with how a part is set up or used.

use crate::options::OptionProblem;

/// Why a part could not be made, or could not take in another peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HealthError {
    /// Options lie outside their bounds.
    #[error("the options of the {part} are wrong: {}", listed(problems))]
    Options {
        /// Which part.
        part: &'static str,
        /// Everything that is wrong with them.
        problems: Vec<OptionProblem>,
    },
    /// A part keeps a record of as many as it may.
    #[error("the {part} has its limit of {limit}; remove one, or raise the limit")]
    Full {
        /// Which part.
        part: &'static str,
        /// The bound.
        limit: usize,
    },
}

fn listed(problems: &[OptionProblem]) -> String {
    problems.iter().map(OptionProblem::to_string).collect::<Vec<_>>().join("; ")
}
