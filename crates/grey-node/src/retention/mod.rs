//! How long a node keeps what has ended, and what it says of what it does not keep any more.
//!
//! Records, and with them proofs, lie in segments of history, streams and files in blobs. A thread of its own looks through
//! both now and then and removes what nobody may ask for any more; it never touches what a live job needs. Decision 16 says
//! why it is done like this.

mod collector;
mod live;
mod marks;
mod note;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use grey_api::{ErrorCode, Problem, RetentionStatus};
use grey_blob::Swept;
use grey_store::Horizons;

use crate::error::NodeError;
use crate::records::Records;

pub(crate) use collector::{CollectorWiring, Stop, collector_thread};
pub(crate) use live::Asker;
pub(crate) use note::Gathered;

const SECOND_MS: u64 = 1_000;
const DAY_MS: u64 = 24 * 3_600 * SECOND_MS;
/// The shortest and the longest time that anything is kept, in milliseconds: a second, a hundred years.
const SHORTEST_MS: u64 = SECOND_MS;
const LONGEST_MS: u64 = 36_525 * DAY_MS;
/// The shortest time that content stays which was sent: whoever was told that it is here has a day to name it.
const SHORTEST_INPUTS_MS: u64 = DAY_MS;
/// The collector looks so often within the shortest retention, and open history is at most that part of it old.
const LOOKS_WITHIN: u64 = 8;
/// The bounds of the time between two looks, in milliseconds.
const SHORTEST_PAUSE_MS: u64 = 250;
const LONGEST_PAUSE_MS: u64 = 10 * 60 * SECOND_MS;

/// How long a node keeps what has ended, in milliseconds after the end of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Standard output and standard error that are blobs.
    pub logs_ms: u64,
    /// Output files that are blobs.
    pub results_ms: u64,
    /// Records of jobs, tasks, attempts and reports, with what is small enough to be in them, and with them proofs.
    pub history_ms: u64,
    /// Input files of jobs that have ended, and content that was sent and not used.
    pub inputs_ms: u64,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            logs_ms: 30 * DAY_MS,
            results_ms: 30 * DAY_MS,
            history_ms: 90 * DAY_MS,
            inputs_ms: 7 * DAY_MS,
        }
    }
}

/// A time for people: the largest unit in which it is a whole number.
fn shown(time_ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(DAY_MS, "d"), (3_600_000, "h"), (60_000, "m"), (SECOND_MS, "s")];
    let unit = UNITS.iter().find(|(unit_ms, _)| time_ms >= *unit_ms && time_ms.is_multiple_of(*unit_ms));
    unit.map_or_else(|| format!("{time_ms}ms"), |(unit_ms, name)| format!("{}{name}", time_ms / unit_ms))
}

impl Retention {
    /// Refuses what is too short, too long, or longer than the records by which it is found.
    pub fn check(&self) -> Result<(), NodeError> {
        let refuse = |reason: String| Err(NodeError::Retention { reason });
        for (name, given_ms, shortest_ms) in [
            ("logs", self.logs_ms, SHORTEST_MS),
            ("results", self.results_ms, SHORTEST_MS),
            ("history", self.history_ms, SHORTEST_MS),
            ("inputs", self.inputs_ms, SHORTEST_INPUTS_MS),
        ] {
            if !(shortest_ms..=LONGEST_MS).contains(&given_ms) {
                let (given, shortest, longest) = (shown(given_ms), shown(shortest_ms), shown(LONGEST_MS));
                return refuse(format!(
                    "--retain-{name} is {given}; it must be from {shortest} to {longest}"
                ));
            }
        }
        for (name, given_ms) in [("logs", self.logs_ms), ("results", self.results_ms)] {
            if given_ms > self.history_ms {
                let (given, history) = (shown(given_ms), shown(self.history_ms));
                return refuse(format!(
                    "--retain-{name} is {given}; they are found by records, which --retain-history keeps for {history}"
                ));
            }
        }
        Ok(())
    }

    /// How long the collector pauses.
    fn pause(&self) -> Duration {
        let shortest_ms = self.logs_ms.min(self.results_ms).min(self.history_ms);
        Duration::from_millis((shortest_ms / LOOKS_WITHIN).clamp(SHORTEST_PAUSE_MS, LONGEST_PAUSE_MS))
    }

    /// How old the oldest record of the open segment may become.
    fn open_ms(&self) -> u64 {
        self.history_ms / LOOKS_WITHIN
    }

    /// What may be gone at a time: of jobs that ended at or before these.
    fn cutoffs(&self, now_ms: u64) -> Cutoffs {
        let ago = |kept_ms| now_ms.saturating_sub(kept_ms);
        Cutoffs {
            horizons: Horizons {
                logs_ms: ago(self.logs_ms),
                results_ms: ago(self.results_ms),
                history_ms: ago(self.history_ms),
            },
            inputs_ms: ago(self.inputs_ms),
        }
    }
}

/// Ends of jobs, wall clock: what ended at or before may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cutoffs {
    horizons: Horizons,
    inputs_ms: u64,
}

/// What of a job somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Logs,
    Results,
    History,
    Inputs,
}

/// What the collector and those who answer requests share.
pub(crate) struct Keeping {
    policy: Retention,
    /// What the collector may remove from now on.
    cutoffs: Mutex<Cutoffs>,
    /// Held by whoever names tasks of an earlier job in a new one, from looking at them until the new job is there. The
    /// collector passes through it between saying what it may remove and looking for who needs it.
    naming: tokio::sync::RwLock<()>,
    status: Mutex<RetentionStatus>,
}

impl Keeping {
    pub(crate) fn new(policy: Retention) -> Keeping {
        let status = RetentionStatus {
            logs_ms: policy.logs_ms,
            results_ms: policy.results_ms,
            history_ms: policy.history_ms,
            inputs_ms: policy.inputs_ms,
            ..RetentionStatus::default()
        };
        Keeping {
            policy,
            cutoffs: Mutex::default(),
            naming: tokio::sync::RwLock::new(()),
            status: Mutex::new(status),
        }
    }

    /// Says what may be removed at a time, and returns when nobody is naming any of it. For a thread that may wait.
    fn announce(&self, now_ms: u64) -> Cutoffs {
        let cutoffs = self.policy.cutoffs(now_ms);
        *self.cutoffs.lock().unwrap_or_else(PoisonError::into_inner) = cutoffs;
        drop(self.naming.blocking_write());
        cutoffs
    }

    /// A look has come to its end.
    fn looked(&self, now_ms: u64, swept: &Swept, removed_segments: u64) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.blobs = Some(swept.blobs);
        status.blob_bytes = Some(swept.bytes);
        status.looked_at_ms = Some(now_ms);
        status.removed_segments += removed_segments;
        status.removed_blobs += swept.removed;
        status.removed_blob_bytes += swept.removed_bytes;
    }

    /// Until when content stays that somebody was told of now.
    pub(crate) fn promised_until(&self) -> SystemTime {
        SystemTime::now() + Duration::from_millis(self.policy.inputs_ms)
    }

    /// To be held while tasks of an earlier job are looked at that a new job names, and until it is there.
    pub(crate) async fn name_earlier(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.naming.read().await
    }

    /// Whether output files of a job that ended then can be named by a new one.
    pub(crate) fn may_be_named(&self, records: &Records, ended_at_ms: u64) -> bool {
        let cutoffs = self.cutoffs.lock().unwrap_or_else(PoisonError::into_inner).horizons;
        let Horizons { results_ms, history_ms, .. } = cutoffs.later(records.horizons());
        ended_at_ms > results_ms.max(history_ms)
    }

    /// What is kept and how much it takes, as last looked at.
    pub(crate) fn status(&self, records: &Records) -> RetentionStatus {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (status.history_segments, status.history_bytes) = records.size();
        let horizon_ms = records.horizons().history_ms;
        status.history_gone_until_ms = (horizon_ms > 0).then_some(horizon_ms);
        status
    }

    /// The refusal of something that was kept and is not any more.
    pub(crate) fn not_retained(&self, what: impl core::fmt::Display, class: Class) -> Problem {
        let (kept, flag, kept_ms) = match class {
            Class::Logs => ("logs are", "logs", self.policy.logs_ms),
            Class::Results => ("output files are", "results", self.policy.results_ms),
            Class::History => ("records and proofs are", "history", self.policy.history_ms),
            Class::Inputs => ("inputs are", "inputs", self.policy.inputs_ms),
        };
        let detail = format!(
            "{what} is no longer kept: {kept} kept for {} after the end of their job",
            shown(kept_ms)
        );
        Problem::new(ErrorCode::NotRetained, detail).limit(kept_ms).hint(format!(
            "`--retain-{flag}` of `grey dev`, or GREY_RETAIN_{}, keeps more from now on; `grey cluster status` shows what is \
             kept",
            flag.to_uppercase()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_that_cannot_be_is_refused_with_what_and_limit() {
        let usual = Retention::default();
        usual.check().unwrap();
        for (wrong, said) in [
            (Retention { logs_ms: 999, ..usual }, "--retain-logs is 999ms; it must be from 1s to 36525d"),
            (Retention { history_ms: u64::MAX, ..usual }, "it must be from 1s to 36525d"),
            (
                Retention { inputs_ms: DAY_MS - 60_000, ..usual },
                "--retain-inputs is 1439m; it must be from 1d",
            ),
            (
                Retention { results_ms: 91 * DAY_MS, ..usual },
                "--retain-results is 91d; they are found by records, which --retain-history keeps for 90d",
            ),
        ] {
            let refused = wrong.check().unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn what_ended_at_the_cutoff_may_go_and_what_ended_later_may_not() {
        let kept = Retention { logs_ms: 5, results_ms: 10, history_ms: 20, inputs_ms: 100 };
        let cutoffs = kept.cutoffs(1_000);
        assert_eq!(cutoffs.horizons, Horizons { logs_ms: 995, results_ms: 990, history_ms: 980 });
        assert_eq!(cutoffs.inputs_ms, 900);
        assert_eq!(kept.cutoffs(3).horizons, Horizons::default(), "a clock that is wrong removes nothing");
    }
}
