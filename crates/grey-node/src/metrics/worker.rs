//! What a worker's thread knows of its work.

use std::collections::BTreeMap;

use grey_agent::Agent;
use grey_core::Outcome;

use super::exposition::{Exposition, label};

/// One of each kind of outcome.
const OUTCOMES: [Outcome; 11] = [
    Outcome::Exited(0),
    Outcome::Signaled(0),
    Outcome::TimedOut,
    Outcome::Cancelled,
    Outcome::OutputLimit,
    Outcome::OutOfMemory,
    Outcome::CommandNotFound,
    Outcome::CommandNotExecutable,
    Outcome::OutputRefused,
    Outcome::Infrastructure,
    Outcome::InputRefused,
];

/// The class of every outcome.
pub(super) fn classes() -> impl Iterator<Item = &'static str> {
    OUTCOMES.into_iter().map(Outcome::class)
}

/// A worker as it is now.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSample {
    is_registered: bool,
    held: u64,
    running: u64,
    unreported: u64,
    ended: BTreeMap<&'static str, u64>,
}

impl WorkerSample {
    /// What an agent holds, and which attempts have ended in this life of it, by the class of their outcome.
    pub(crate) fn of(agent: &Agent, ended: &BTreeMap<&'static str, u64>) -> WorkerSample {
        WorkerSample {
            is_registered: agent.is_registered(),
            held: agent.held() as u64,
            running: agent.running().into(),
            unreported: agent.unreported() as u64,
            ended: ended.clone(),
        }
    }

    pub(super) fn expose(&self, exposition: &mut Exposition) {
        exposition.gauge(
            "worker_registered",
            "1 while a leader knows the worker, else 0",
            u64::from(self.is_registered),
        );
        let waiting = self.held.saturating_sub(self.running);
        exposition.gauges(
            "worker_attempts",
            "Attempts that the worker holds",
            [(label("state", "waiting"), waiting), (label("state", "running"), self.running)],
        );
        exposition.gauge(
            "worker_unreported_results",
            "Results that no leader has accepted yet",
            self.unreported,
        );
        let ended =
            classes().map(|class| (label("outcome", class), self.ended.get(class).copied().unwrap_or(0)));
        exposition.totals("worker_attempts_ended", "Attempts that ended on this worker", ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_class_of_outcome_stands_once_in_the_list() {
        let distinct: BTreeSet<&str> = classes().collect();
        assert_eq!(distinct.len(), OUTCOMES.len());
        // Whoever adds an outcome has to come here.
        for outcome in OUTCOMES {
            match outcome {
                Outcome::Exited(_)
                | Outcome::Signaled(_)
                | Outcome::TimedOut
                | Outcome::Cancelled
                | Outcome::OutputLimit
                | Outcome::OutOfMemory
                | Outcome::CommandNotFound
                | Outcome::CommandNotExecutable
                | Outcome::OutputRefused
                | Outcome::Infrastructure
                | Outcome::InputRefused => {}
            }
        }
    }
}
