//! Work stealing: which unstarted attempts their holders should give back, since another worker could start them now.
//!
//! A pure function of the state, like the planner: the leader asks, the holder answers Revoked or goes on, and whichever
//! comes first for that epoch counts. What comes back waits again and is placed by the planner with a new epoch.

use std::collections::BTreeMap;

use crate::attempt::AttemptId;
use crate::ids::WorkerId;
use crate::plan::plan;
use crate::rows::Phase;
use crate::seats::Seat;
use crate::spec::Resources;
use crate::state::State;

/// Attempts to be asked back, by holder, at most `budget` of them. Nothing while tasks wait that the planner could give
/// to an idle worker instead.
pub fn steal(state: &State, budget: u32) -> BTreeMap<WorkerId, Vec<AttemptId>> {
    let mut asked: BTreeMap<WorkerId, Vec<AttemptId>> = BTreeMap::new();
    if !plan(state, 1).placements.is_empty() {
        return asked;
    }
    let mut idle: Vec<(Resources, u32)> = state
        .workers
        .iter()
        .map(|(id, row)| Seat::of(*id, row))
        .map(|seat| (seat.free, seat.slots_free))
        .filter(|(free, slots)| *slots > 0 && free.cpu_millicores > 0)
        .collect();
    // More is charged than there is: some of it cannot have been started.
    let mut excess: BTreeMap<WorkerId, Resources> = state
        .workers
        .iter()
        .filter(|(_, worker)| !worker.charged.fits(&worker.capacity))
        .map(|(id, worker)| (*id, worker.charged))
        .collect();
    if idle.is_empty() || excess.is_empty() {
        return asked;
    }
    let mut left = budget;
    // What came last was most likely not started.
    for (task, live) in state.live.iter().rev() {
        let Phase::Assigned { worker } = live.phase else { continue };
        let (Some(charged), Some(row)) = (excess.get_mut(&worker), state.workers.get(&worker)) else {
            continue;
        };
        let Some(spec) = state.specs.get(&live.group) else { continue };
        if charged.fits(&row.capacity) || left == 0 {
            continue;
        }
        let taker = idle.iter_mut().find(|(free, slots)| *slots > 0 && spec.resources.fits(free));
        let Some((free, slots)) = taker else { continue };
        let (Some(rest), Some(without)) =
            (free.checked_sub(&spec.resources), charged.checked_sub(&spec.resources))
        else {
            continue;
        };
        (*free, *slots, *charged) = (rest, *slots - 1, without);
        left -= 1;
        asked.entry(worker).or_default().push(AttemptId { task: *task, epoch: live.epoch });
    }
    asked
}
