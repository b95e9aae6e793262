//! Circuit breakers before the executors of workers: an executor that keeps failing what it is given gets nothing for a while, and is then
//! tried with care, while the worker's other executors go on.
//!
//! The pattern is Nygard's ("Release It!", 2007), as in `grey-health`; but since it steers placement it is part of the state, counts what is
//! applied, and goes by the time of the cluster. A whole worker is judged by its leader and goes into quarantine.

use serde::{Deserialize, Serialize};

use crate::ids::TaskId;
use crate::spec::ExecutorKind;

/// How many endings are remembered.
const WINDOW: u32 = 20;
/// With fewer endings than this it does not open.
const LEAST_ENDINGS: u32 = 10;
/// How long it stays open, in milliseconds, on average.
const OPEN_MS: u64 = 30_000;
/// That time is shortened or lengthened by at most this, in milliseconds, so that not everybody is tried again at once.
const JITTER_MS: u64 = 6_000;
/// How many attempts an executor that is tried again may hold that it has not started.
pub(crate) const PROBES: u32 = 2;
/// An executor that has not started a probe for so long has failed it, in milliseconds.
const PROBE_TIMEOUT_MS: u64 = 10_000;
/// So many probes have to be started, or to end, before everything is given to it again.
const SUCCESSES: u32 = 3;

/// In which state a breaker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BreakerPhase {
    /// The executor gets work.
    Closed {
        /// Which of the last endings were failures: the lowest bit is the latest.
        failed: u32,
        /// How many endings are known, at most 20.
        known: u32,
    },
    /// It gets none.
    Open {
        /// Until then, in cluster milliseconds.
        until_ms: u64,
    },
    /// It gets a little.
    HalfOpen {
        /// What was assigned by this entry of the log or an earlier one says nothing new.
        since_index: u64,
        /// What it was given and has not started, ascending; at most two.
        probes: Vec<TaskId>,
        /// Until when all of these have to be started, in cluster milliseconds, if there are any.
        until_ms: u64,
        /// How many it has started, or ended, so far.
        successes: u32,
    },
}

/// Stands before one executor of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorBreaker {
    /// Which executor.
    pub executor: ExecutorKind,
    /// In which state it is.
    pub phase: BreakerPhase,
}

/// The breakers of a worker, as a row of the state: one for each executor with which something has failed lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerBreakers {
    /// By executor, ascending.
    pub executors: Vec<ExecutorBreaker>,
}

/// When something happens, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Cluster time in milliseconds.
    pub(crate) now_ms: u64,
    /// Index of the entry.
    pub(crate) index: u64,
    /// From which the jitter follows.
    pub(crate) spread: u64,
}

impl WorkerBreakers {
    /// The breaker before an executor; none where nothing has failed.
    pub fn before(&self, executor: ExecutorKind) -> Option<&ExecutorBreaker> {
        self.executors.iter().find(|breaker| breaker.executor == executor)
    }

    pub(crate) fn before_mut(&mut self, executor: ExecutorKind) -> Option<&mut ExecutorBreaker> {
        self.executors.iter_mut().find(|breaker| breaker.executor == executor)
    }

    /// The breaker before an executor, closed where there is none yet.
    pub(crate) fn before_or_closed(&mut self, executor: ExecutorKind) -> Option<&mut ExecutorBreaker> {
        if self.before(executor).is_none() {
            let phase = BreakerPhase::Closed { failed: 0, known: 0 };
            self.executors.push(ExecutorBreaker { executor, phase });
            self.executors.sort_unstable_by_key(|breaker| breaker.executor);
        }
        self.before_mut(executor)
    }

    /// How many more attempts an executor may be given; [`u32::MAX`] where nothing stands before it.
    pub fn room(&self, executor: ExecutorKind) -> u32 {
        self.before(executor).map_or(u32::MAX, ExecutorBreaker::room)
    }

    /// Whether an executor is left alone: what it has not started is asked back.
    pub(crate) fn is_open(&self, executor: ExecutorKind) -> bool {
        self.before(executor).is_some_and(|breaker| matches!(breaker.phase, BreakerPhase::Open { .. }))
    }

    /// When time changes one of them, in cluster milliseconds.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.executors.iter().filter_map(ExecutorBreaker::deadline_ms).min()
    }

    /// Forgets breakers that nothing is remembered of.
    pub(crate) fn tidy(&mut self) {
        self.executors.retain(|breaker| !matches!(breaker.phase, BreakerPhase::Closed { failed: 0, .. }));
    }
}

impl ExecutorBreaker {
    /// Whether the executor gets nothing, or only little to try it.
    pub fn is_shut(&self) -> bool {
        !matches!(self.phase, BreakerPhase::Closed { .. })
    }

    fn room(&self) -> u32 {
        match &self.phase {
            BreakerPhase::Closed { .. } => u32::MAX,
            BreakerPhase::Open { .. } => 0,
            BreakerPhase::HalfOpen { probes, .. } => {
                PROBES.saturating_sub(u32::try_from(probes.len()).unwrap_or(u32::MAX))
            }
        }
    }

    fn deadline_ms(&self) -> Option<u64> {
        match &self.phase {
            BreakerPhase::Open { until_ms } => Some(*until_ms),
            BreakerPhase::HalfOpen { probes, until_ms, .. } if !probes.is_empty() => Some(*until_ms),
            BreakerPhase::Closed { .. } | BreakerPhase::HalfOpen { .. } => None,
        }
    }

    /// An attempt ended that was assigned by an entry. Whether the breaker belongs open now: it opens by [`ExecutorBreaker::open`], or stays
    /// as it is where too many are open.
    pub(crate) fn ended(&mut self, has_failed: bool, assigned_index: u64) -> bool {
        match &mut self.phase {
            BreakerPhase::Closed { failed, known } => {
                *failed = (*failed << 1 | u32::from(has_failed)) & ((1 << WINDOW) - 1);
                *known = known.saturating_add(1).min(WINDOW);
                let many = failed.count_ones().saturating_mul(2) >= *known;
                // A success after failures is no reason to leave alone whoever is back.
                has_failed && *known >= LEAST_ENDINGS && many
            }
            BreakerPhase::HalfOpen { since_index, .. } if assigned_index > *since_index => {
                if !has_failed {
                    self.succeeded();
                }
                has_failed
            }
            BreakerPhase::Open { .. } | BreakerPhase::HalfOpen { .. } => false,
        }
    }

    /// It gave the executor probes.
    pub(crate) fn given(&mut self, tasks: impl Iterator<Item = TaskId>, now_ms: u64) {
        if let BreakerPhase::HalfOpen { probes, until_ms, .. } = &mut self.phase {
            if probes.is_empty() {
                *until_ms = now_ms.saturating_add(PROBE_TIMEOUT_MS);
            }
            probes.extend(tasks);
            probes.sort_unstable();
        }
    }

    /// A probe was started.
    pub(crate) fn started(&mut self, task: TaskId) {
        if self.is_over(task) {
            self.succeeded();
        }
    }

    /// A probe waits for its start no longer, whatever became of it; whether the task was one.
    pub(crate) fn is_over(&mut self, task: TaskId) -> bool {
        let BreakerPhase::HalfOpen { probes, .. } = &mut self.phase else { return false };
        let before = probes.len();
        probes.retain(|probe| *probe != task);
        probes.len() < before
    }

    fn succeeded(&mut self) {
        if let BreakerPhase::HalfOpen { successes, .. } = &mut self.phase {
            *successes = successes.saturating_add(1);
            if *successes >= SUCCESSES {
                self.close();
            }
        }
    }

    /// Gives it everything again, with an empty window.
    pub(crate) fn close(&mut self) {
        self.phase = BreakerPhase::Closed { failed: 0, known: 0 };
    }

    /// Leaves the executor alone for a while.
    pub(crate) fn open(&mut self, moment: Moment) {
        let mixed = moment.spread.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let open_ms = (OPEN_MS - JITTER_MS).saturating_add(mixed % (2 * JITTER_MS + 1));
        self.phase = BreakerPhase::Open { until_ms: moment.now_ms.saturating_add(open_ms) };
    }

    /// Lets time pass: an open one is half open after its time, and a half-open one opens again when a probe was not started in time.
    pub(crate) fn pass(&mut self, moment: Moment) {
        match &self.phase {
            BreakerPhase::Open { until_ms } if *until_ms <= moment.now_ms => {
                self.phase = BreakerPhase::HalfOpen {
                    since_index: moment.index,
                    probes: Vec::new(),
                    until_ms: 0,
                    successes: 0,
                };
            }
            BreakerPhase::HalfOpen { probes, until_ms, .. }
                if !probes.is_empty() && *until_ms <= moment.now_ms =>
            {
                self.open(moment);
            }
            _ => {}
        }
    }
}

/// Whether another worker's executor may be shut, with so many shut of so many workers that are there: at most half of them, but always one.
/// When most fail, it is not theirs.
pub(crate) fn has_room(shut: usize, workers: usize) -> bool {
    shut == 0 || (shut + 1).saturating_mul(2) <= workers
}
