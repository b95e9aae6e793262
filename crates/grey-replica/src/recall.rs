//! What workers were asked to give back: remembered until the state says what became of it, since the answer may be lost.

use std::collections::BTreeMap;

use grey_core::{AttemptId, Phase, State, WorkerId};

/// A worker whose answer has not shown in the state by then is asked again, in milliseconds.
const ASK_AGAIN_MS: u64 = 1_000;

/// Attempts that were asked back in the sessions of this leader. A new session needs none of it: with the announcement the cluster sends
/// what the worker has not got, and asks back what it wants back then.
#[derive(Debug, Default)]
pub(crate) struct Recalls {
    /// By worker: attempts, and when they were asked for last. Never more than the worker holds.
    asked_ms: BTreeMap<WorkerId, BTreeMap<AttemptId, u64>>,
}

impl Recalls {
    /// Attempts are asked back now.
    pub(crate) fn asked(&mut self, state: &State, worker: WorkerId, attempts: &[AttemptId], now_ms: u64) {
        let asked_ms = self.asked_ms.entry(worker).or_default();
        asked_ms.retain(|attempt, _| is_unstarted_at(state, worker, *attempt));
        asked_ms.extend(attempts.iter().map(|attempt| (*attempt, now_ms)));
    }

    /// What a worker that has just been heard is to be asked for again: it was asked long ago, and still has it as far as the cluster
    /// knows. It may have given it back, and the answer was lost.
    pub(crate) fn due(&mut self, state: &State, worker: WorkerId, now_ms: u64) -> Vec<AttemptId> {
        let Some(asked_ms) = self.asked_ms.get_mut(&worker) else { return Vec::new() };
        asked_ms.retain(|attempt, _| is_unstarted_at(state, worker, *attempt));
        let late = |asked: &u64| now_ms.saturating_sub(*asked) >= ASK_AGAIN_MS;
        let due: Vec<AttemptId> =
            asked_ms.iter().filter(|(_, asked)| late(asked)).map(|(attempt, _)| *attempt).collect();
        if asked_ms.is_empty() {
            self.asked_ms.remove(&worker);
        }
        due
    }

    /// The worker is in another session, or gone.
    pub(crate) fn forget(&mut self, worker: WorkerId) {
        self.asked_ms.remove(&worker);
    }
}

fn is_unstarted_at(state: &State, worker: WorkerId, attempt: AttemptId) -> bool {
    let live = state.live().get(&attempt.task);
    live.is_some_and(|live| live.epoch == attempt.epoch && live.phase == (Phase::Assigned { worker }))
}
