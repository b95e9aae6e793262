//! Work stealing: which unstarted attempts their holders should give back, since another worker could start them now.
//!
//! A pure function of the state, like the planner: the leader asks, the holder answers Revoked or goes on, and whichever
//! comes first for that epoch counts. What comes back waits again and is placed by the planner with a new epoch.

use std::collections::BTreeMap;

use crate::attempt::AttemptId;
use crate::ids::WorkerId;
use crate::plan::plan;
use crate::rows::{LiveTask, Phase, Worker};
use crate::seats::Seat;
use crate::state::State;

/// Unstarted attempts of cordoned workers, and those whose executor is left alone there, whether another one has room for them or not: until
/// then they wait. Those that have started and are not yet reported are among them, and stay where they are.
fn of_cordoned(state: &State, budget: u32) -> BTreeMap<WorkerId, Vec<AttemptId>> {
    let mut asked: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
    let freed = |worker: &Worker| worker.cordoned && worker.held > 0;
    if !state.workers.values().any(freed) && state.breakers.is_empty() {
        return asked;
    }
    let is_left_alone = |worker: WorkerId, live: &LiveTask| {
        let Some(row) = state.breakers.get(&worker) else { return false };
        state.specs.get(&live.group).is_some_and(|spec| row.is_open(spec.executor))
    };
    let unstarted = state.live.iter().rev().filter_map(|(task, live)| match live.phase {
        Phase::Assigned { worker }
            if state.workers.get(&worker).is_some_and(freed) || is_left_alone(worker, live) =>
        {
            Some((worker, AttemptId { task: *task, epoch: live.epoch }))
        }
        _ => None,
    });
    for (worker, attempt) in unstarted.take(budget as usize) {
        asked.entry(worker).or_default().push(attempt);
    }
    asked
}

/// Attempts to be asked back, by holder, at most `budget` of them. First those of workers that are cordoned; of others nothing while
/// tasks wait that the planner could give to an idle worker instead.
pub fn steal(state: &State, budget: u32) -> BTreeMap<WorkerId, Vec<AttemptId>> {
    let mut asked = of_cordoned(state, budget);
    if !asked.is_empty() {
        return asked;
    }
    if !plan(state, 1).placements.is_empty() {
        return asked;
    }
    let mut idle: Vec<(WorkerId, Worker)> = state
        .workers
        .iter()
        .map(|(id, row)| (row, Seat::of(*id, row)))
        .filter(|(row, seat)| {
            seat.slots_free > 0 && seat.free.cpu_millicores > 0 && row.held < row.started_at_once()
        })
        .map(|(row, seat)| (seat.worker, row.clone()))
        .collect();
    if idle.is_empty() {
        return asked;
    }
    // Some of it cannot have been started.
    let overfull = state.workers.iter().filter(|(_, worker)| worker.is_overfull() && !worker.cordoned);
    let mut holders: BTreeMap<WorkerId, Worker> =
        overfull.map(|(id, worker)| (*id, worker.clone())).collect();
    if holders.is_empty() {
        return asked;
    }
    let mut left = budget;
    // What came last was most likely not started.
    for (task, live) in state.live.iter().rev() {
        let Phase::Assigned { worker } = live.phase else { continue };
        let (Some(holder), Some(spec)) = (holders.get_mut(&worker), state.specs.get(&live.group)) else {
            continue;
        };
        if left == 0 {
            break;
        }
        if !holder.is_relieved_of(spec) {
            continue;
        }
        let taker = idle.iter_mut().find(|(id, taker)| {
            taker.usable_slots() > taker.held
                && taker.held < taker.started_at_once()
                && taker.could_start(spec)
                && state.executor_room(*id, spec.executor) == u32::MAX
        });
        let Some((_, taker)) = taker else { continue };
        if holder.release(spec).is_none() || taker.charge(spec, 1).is_none() {
            continue;
        }
        left -= 1;
        asked.entry(worker).or_default().push(AttemptId { task: *task, epoch: live.epoch });
    }
    asked
}
