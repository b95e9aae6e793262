//! Identifiers: sequential, never random, each a type of its own.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    /// What was given.
    pub text: String,
    /// What would have been right, with an example.
    pub expected: &'static str,
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let wrong = || ParseIdError { text: text.chars().take(64).collect(), expected: $expected };
                let digits = text.strip_prefix($prefix).ok_or_else(wrong)?;
                let canonical = digits == "0" || !digits.starts_with(['0', '+']);
                if !canonical {
                    return Err(wrong());
                }
                digits.parse().map(Self).map_err(|_| wrong())
            }
        }
    };
}

numbered!(
    /// A job: what one submission groups. Written `j17`.
    JobId, u64, "j", "a job id such as j17"
);
numbered!(
    /// A task. Ids are dense within a cluster, so the tasks of a job are one range. Written `t42`.
    TaskId, u64, "t", "a task id such as t42"
);
numbered!(
    /// A tenant's number, given at creation. Written `n1`; users see the tenant's name.
    TenantId, u32, "n", "a tenant number such as n1"
);
numbered!(
    /// A worker's number, given at its first registration. Written `w3`.
    WorkerId, u32, "w", "a worker id such as w3"
);
numbered!(
    /// A task's fencing number: one more at every assignment, never reset. Zero is "never assigned". Written `e1`.
    Epoch, u32, "e", "an epoch such as e1"
);

impl Epoch {
    /// The number of the assignment after this one; `None` past the last representable epoch.
    pub fn next(self) -> Option<Epoch> {
        self.0.checked_add(1).map(Epoch)
    }
}

/// A dense run of tasks: `first`, `first + 1`, …, `count` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskRange {
    /// The lowest id in the range.
    pub first: TaskId,
    /// How many tasks; a range in the state is never empty.
    pub count: u32,
}

impl TaskRange {
    /// The range of one task.
    pub fn single(task: TaskId) -> TaskRange {
        TaskRange { first: task, count: 1 }
    }

    /// The id after the last task. Saturates, so a forged range cannot overflow.
    pub fn end(self) -> TaskId {
        TaskId(self.first.0.saturating_add(u64::from(self.count)))
    }

    /// Whether `task` is one of the range.
    pub fn contains(self, task: TaskId) -> bool {
        self.first <= task && task < self.end()
    }

    /// Every task of the range, ascending.
    pub fn tasks(self) -> impl Iterator<Item = TaskId> {
        (self.first.0..self.end().0).map(TaskId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_written_and_nothing_else_is_taken() {
        assert_eq!("t42".parse::<TaskId>(), Ok(TaskId(42)));
        assert_eq!(TaskId(42).to_string(), "t42");
        assert_eq!("t0".parse::<TaskId>(), Ok(TaskId(0)));
        for wrong in ["", "t", "42", "j42", "t042", "t+4", "t-4", "t4 ", "t99999999999999999999"] {
            assert!(wrong.parse::<TaskId>().is_err(), "{wrong} was taken for a task");
        }
    }

    #[test]
    fn a_forged_range_saturates_instead_of_overflowing() {
        let range = TaskRange { first: TaskId(u64::MAX), count: 7 };
        assert_eq!(range.end(), TaskId(u64::MAX));
        assert_eq!(range.tasks().count(), 0);
    }
}
