//! What holds the attempts that a worker runs, and goes on without it until the lease ends: the simulated part of an executor whose
//! attempts outlive their worker ([decision 26](../../../docs/decisions/0026-what-runs-outlives-its-worker.md)).

use std::collections::BTreeMap;

use grey_agent::Adoptable;
use grey_core::{AttemptId, Outcome};

/// With nothing that runs it ends so long after its worker, in microseconds, and what was not fetched is gone.
const PATIENCE_US: u64 = 10_000_000;

/// An attempt that was given to the executor and not let go since. Times are the shim's.
pub struct Holding {
    /// When it began, in microseconds.
    pub begun_us: u64,
    /// When it would end by itself.
    ends_us: u64,
    /// What it would come to.
    outcome: Outcome,
    timeout_ms: u64,
    /// What the next worker is to know of it.
    record: Vec<u8>,
    /// When it ended, and as what.
    pub ended: Option<(u64, Outcome)>,
}

impl Holding {
    /// An attempt that begins now.
    pub fn new(now_us: u64, runs_us: u64, outcome: Outcome, timeout_ms: u64, record: Vec<u8>) -> Holding {
        let ends_us = now_us.saturating_add(runs_us);
        Holding { begun_us: now_us, ends_us, outcome, timeout_ms, record, ended: None }
    }

    /// When it ends unless it is stopped or the lease ends, and as what.
    fn end(&self) -> (u64, Outcome) {
        let late_us = self.begun_us.saturating_add(self.timeout_ms.saturating_mul(1_000));
        if self.ends_us <= late_us { (self.ends_us, self.outcome) } else { (late_us, Outcome::TimedOut) }
    }
}

/// All that a worker runs, over its lives.
#[derive(Default)]
pub struct Shim {
    held: BTreeMap<AttemptId, Holding>,
    /// The end of the lease that it was told of last, by its own clock.
    lease_end_us: Option<u64>,
    /// What its clock shows when that of the present life of the node begins.
    origin_us: u64,
    /// What its clock showed when its worker ended.
    left_us: u64,
}

impl Shim {
    /// What its clock shows at a time of the node's present life.
    pub fn clock_us(&self, local_us: u64) -> u64 {
        self.origin_us.saturating_add(local_us)
    }

    /// The node's clock begins anew.
    pub fn rebase(&mut self, local_us: u64) {
        self.origin_us = self.clock_us(local_us);
    }

    /// The worker says when its lease ends, by the clock of its life.
    pub fn hold_until(&mut self, local_us: u64) {
        self.lease_end_us = Some(self.clock_us(local_us));
    }

    /// Begins an attempt.
    pub fn begin(&mut self, attempt: AttemptId, holding: Holding) {
        self.held.insert(attempt, holding);
    }

    /// An attempt that it holds, running or ended.
    pub fn get(&self, attempt: &AttemptId) -> Option<&Holding> {
        self.held.get(attempt)
    }

    /// Whether an attempt runs.
    pub fn runs(&self, attempt: &AttemptId) -> bool {
        self.held.get(attempt).is_some_and(|one| one.ended.is_none())
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.held.values().filter(|one| one.ended.is_none()).count()
    }

    /// Another time-out counts from the attempt's beginning.
    pub fn change_timeout(&mut self, attempt: &AttemptId, timeout_ms: u64) {
        if let Some(one) = self.held.get_mut(attempt) {
            one.timeout_ms = timeout_ms;
        }
    }

    /// Ends an attempt now.
    pub fn stop(&mut self, attempt: &AttemptId, local_us: u64, outcome: Outcome) {
        let now_us = self.clock_us(local_us);
        if let Some(one) = self.held.get_mut(attempt) {
            one.ended.get_or_insert((now_us, outcome));
        }
    }

    /// Lets an attempt go; whether it still ran.
    pub fn release(&mut self, attempt: &AttemptId) -> bool {
        self.held.remove(attempt).is_some_and(|one| one.ended.is_none())
    }

    /// Ends what is over by then: what ended since.
    pub fn elapse_to(&mut self, local_us: u64) -> Vec<(AttemptId, Outcome)> {
        let now_us = self.clock_us(local_us);
        let lease_us = self.lease_end_us.unwrap_or(u64::MAX);
        let mut ended = Vec::new();
        for (attempt, one) in self.held.iter_mut().filter(|(_, one)| one.ended.is_none()) {
            let (end_us, outcome) = one.end();
            let end =
                if end_us <= lease_us { (end_us, outcome) } else { (lease_us, Outcome::Infrastructure) };
            if end.0 <= now_us {
                one.ended = Some(end);
                ended.push((*attempt, end.1));
            }
        }
        ended
    }

    /// When the next attempt ends at the latest, by the clock of the node's present life.
    pub fn next_end_us(&self) -> Option<u64> {
        let running = self.held.values().filter(|one| one.ended.is_none());
        let end_us = running.map(|one| one.end().0).min()?;
        Some(end_us.min(self.lease_end_us.unwrap_or(u64::MAX)).saturating_sub(self.origin_us))
    }

    /// The worker's process ends: whether the shim goes on. Without a lease everything ends with the worker.
    pub fn outlives(&mut self, local_us: u64) -> bool {
        self.left_us = self.clock_us(local_us);
        self.lease_end_us.is_some() && self.running() > 0
    }

    /// What the next worker finds.
    pub fn adoptable(&mut self, local_us: u64) -> Vec<Adoptable> {
        if self.running() == 0 && self.clock_us(local_us) >= self.left_us.saturating_add(PATIENCE_US) {
            self.held.clear();
        }
        let found = self.held.iter().map(|(attempt, one)| Adoptable {
            attempt: *attempt,
            record: one.record.clone(),
            timeout_ms: one.timeout_ms,
        });
        found.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::{Epoch, TaskId};

    const ATTEMPT: AttemptId = AttemptId { task: TaskId(1), epoch: Epoch(1) };

    fn holding(runs_us: u64, timeout_ms: u64) -> Shim {
        let mut shim = Shim::default();
        shim.begin(ATTEMPT, Holding::new(0, runs_us, Outcome::Exited(0), timeout_ms, vec![7]));
        shim
    }

    #[test]
    fn what_runs_ends_by_itself_at_its_time_out_or_with_the_lease_whichever_is_first() {
        for (runs_us, timeout_ms, lease_us, end) in [
            (5_000, 9, 9_000, (5_000, Outcome::Exited(0))),
            (5_000, 4, 9_000, (4_000, Outcome::TimedOut)),
            (5_000, 4, 3_000, (3_000, Outcome::Infrastructure)),
        ] {
            let mut shim = holding(runs_us, timeout_ms);
            shim.hold_until(lease_us);
            assert_eq!(shim.next_end_us(), Some(end.0));
            assert_eq!(shim.elapse_to(end.0 - 1), []);
            assert_eq!(shim.elapse_to(end.0), [(ATTEMPT, end.1)]);
            assert!(!shim.runs(&ATTEMPT) && shim.elapse_to(u64::MAX).is_empty(), "it ends once");
        }
    }

    #[test]
    fn its_clock_goes_on_over_the_lives_of_its_worker_and_what_ended_waits_to_be_fetched() {
        let mut shim = holding(5_000, 9_000);
        assert!(!shim.outlives(1_000), "without a lease all ends with the worker");
        shim.hold_until(20_000);
        assert!(shim.outlives(1_000));
        shim.rebase(1_000);
        assert_eq!(shim.next_end_us(), Some(4_000));
        assert_eq!(shim.elapse_to(4_000), [(ATTEMPT, Outcome::Exited(0))]);
        assert_eq!(
            shim.adoptable(9_000),
            [Adoptable { attempt: ATTEMPT, record: vec![7], timeout_ms: 9_000 }]
        );
        assert_eq!(shim.adoptable(PATIENCE_US), [], "nobody came for it");
    }
}
