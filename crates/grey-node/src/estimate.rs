//! How long a waiting task may wait: from how long tasks like it take, how long those that run have run, and how many run.

use grey_core::{AttemptId, Phase, State, TaskId, TaskRange};
use grey_store::StoreError;

use crate::rate::EndRate;
use crate::records::Records;

/// The most attempts that ended whose durations are looked at.
const DURATIONS: usize = 256;
/// The most live tasks that are looked at: the state's thread has other things to do.
const LOOKED_AT: usize = 20_000;

/// Tasks of the same job as a waiting one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peers {
    /// The run of equal tasks that it belongs to.
    pub(crate) group: TaskRange,
    /// All tasks of its job.
    pub(crate) job: TaskRange,
    /// Attempts of the job that run.
    pub(crate) running: Vec<AttemptId>,
}

/// An estimate, and from what it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Estimate {
    pub(crate) wait_ms: u64,
    pub(crate) from: &'static str,
}

/// What the state knows of the tasks of a live task's job.
pub(crate) fn peers(state: &State, task: TaskId) -> Option<Peers> {
    let (_, group) = state.group_of(task)?;
    let job = state.jobs().get(&group.job)?.info.tasks;
    let live = state.live().range(job.first..job.end()).take(LOOKED_AT);
    let running = live.filter(|(_, live)| matches!(live.phase, Phase::Running { .. }));
    let running = running.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect();
    Some(Peers { group: group.tasks, job, running })
}

/// The estimate for a task before which so many others stand. The durations of its own kind say most; while none of them
/// has ended, those of its job; then the rate at which anything ended; then how long its peers have run, which is a lower
/// bound. Nothing where nothing is known.
pub(crate) fn estimate(
    ahead: u64,
    peers: &Peers,
    records: &Records,
    rate: &EndRate,
) -> Result<Option<Estimate>, StoreError> {
    let running_ms = rate.running_times_ms(&peers.running);
    let mut durations = records.durations_ms(peers.group, DURATIONS)?;
    if durations.is_empty() {
        durations = records.durations_ms(peers.job, DURATIONS)?;
    }
    let of_durations = median(durations).and_then(|typical_ms| waves(ahead, typical_ms, &running_ms));
    if let Some(wait_ms) = of_durations {
        return Ok(Some(Estimate { wait_ms, from: "durations" }));
    }
    if let Some(wait_ms) = rate.time_for_ms(ahead.saturating_add(1)) {
        return Ok(Some(Estimate { wait_ms, from: "rate" }));
    }
    let so_far = at_least(ahead, running_ms);
    Ok(so_far.map(|wait_ms| Estimate { wait_ms, from: "running_times" }))
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// When it starts if each task takes as long as is typical and as many run at once as do now: those that run end in the
/// order of what they have left, and each makes room for one.
fn waves(ahead: u64, typical_ms: u64, running_ms: &[u64]) -> Option<u64> {
    let mut left: Vec<u64> =
        running_ms.iter().map(|so_far_ms| typical_ms.saturating_sub(*so_far_ms)).collect();
    left.sort_unstable();
    let at_once = left.len() as u64;
    let (wave, place) = (ahead.checked_div(at_once)?, ahead.checked_rem(at_once)?);
    let first_ms = left.get(usize::try_from(place).ok()?)?;
    Some(wave.saturating_mul(typical_ms).saturating_add(*first_ms))
}

/// What it waits at least, if those after the ones that run take as long as these have run so far. The ones that run may
/// end at any moment, so whoever comes directly after them may too.
fn at_least(ahead: u64, running_ms: Vec<u64>) -> Option<u64> {
    let wave = ahead.checked_div(running_ms.len() as u64)?;
    let wait_ms = wave.saturating_mul(median(running_ms)?);
    (wait_ms > 0).then_some(wait_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_run_make_room_in_the_order_of_what_they_have_left() {
        // Three run at once and take ten seconds: they have 2, 5 and 9 seconds left.
        let running = [8_000, 5_000, 1_000];
        for (ahead, expected) in [(0, 2_000), (1, 5_000), (2, 9_000), (3, 12_000), (7, 25_000)] {
            assert_eq!(waves(ahead, 10_000, &running), Some(expected), "{ahead} are ahead");
        }
        assert_eq!(waves(0, 10_000, &[30_000]), Some(0), "one that takes longer may end at any moment");
        assert_eq!(waves(4, 10_000, &[]), None, "nobody knows when the first of them starts");
        assert_eq!(waves(u64::MAX, u64::MAX, &[0]), Some(u64::MAX));
    }

    #[test]
    fn while_none_has_ended_only_later_waves_have_a_lower_bound() {
        let running = || vec![4_000, 6_000, 5_000];
        assert_eq!(at_least(2, running()), None);
        assert_eq!(at_least(3, running()), Some(5_000));
        assert_eq!(at_least(8, running()), Some(10_000));
        assert_eq!(at_least(8, vec![]), None);
    }
}
