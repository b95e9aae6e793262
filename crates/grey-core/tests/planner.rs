//! The planner against a plain one: the same rules without an index. Both must come to the same plan, byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use grey_core::{
    Epoch, JobId, Placement, Plan, Presence, ReadyKey, Resources, State, TaskId, TaskRange, TaskSpec, Tenant,
    TenantId, Worker, WorkerId, apply, limits, plan,
};
use proptest::prelude::*;
use support::{entry_for, founded, step};

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_indexed_planner_and_the_plain_one_make_the_same_plan_of_every_state(
        steps in proptest::collection::vec(step(), 1..80),
        budget in 1u32..200,
    ) {
        let (mut state, _) = founded();
        for (number, step) in steps.iter().enumerate() {
            let bytes = entry_for(&state, step, number as u64).encode().unwrap();
            let index = state.applied_index() + 1;
            apply(&mut state, 1, index, &bytes).unwrap();
            prop_assert_eq!(plan(&state, budget), plain(&state, budget));
        }
    }
}

/// A worker as the plan so far leaves it.
struct Seat<'a> {
    row: &'a Worker,
    /// Devices that are not spoken for, by kind.
    devices: BTreeMap<&'a str, u64>,
    worker: WorkerId,
    free: Resources,
    slots_free: u32,
}

/// A tenant as the plan so far leaves it.
struct Line<'a> {
    weight_milli: u32,
    usage: Resources,
    held: u64,
    waiting: Box<dyn Iterator<Item = &'a ReadyKey> + 'a>,
    current: Option<Run>,
}

/// Waiting tasks of one group, next to one another.
struct Run {
    group: TaskId,
    ranges: Vec<TaskRange>,
    epoch: Epoch,
}

/// The same rules, each seat and each tenant looked at for each placement.
fn plain(state: &State, budget: u32) -> Plan {
    let mut left = budget.min(limits::PLAN_TASKS);
    let mut seats: Vec<Seat<'_>> = state.workers().iter().map(|(id, worker)| seat(*id, worker)).collect();
    let totals = totals(state);
    let mut lines: BTreeMap<TenantId, Line<'_>> = state
        .ready()
        .iter()
        .filter_map(|(id, keys)| Some((*id, line(state.tenants().get(id)?, Box::new(keys.iter())))))
        .collect();
    let mut placements = Vec::new();
    let mut rooms: BTreeMap<JobId, u32> = BTreeMap::new();
    while left > 0 && placements.len() < limits::PLAN_PLACEMENTS {
        let Some(tenant) = lowest_share(&lines, &totals) else { break };
        let turn = if lines.len() == 1 { left } else { left.min(64) };
        let Some(line) = lines.get_mut(&tenant) else { break };
        match place_next(state, line, &mut seats, &mut rooms, turn) {
            Some(placement) => {
                left -= placement.tasks.count;
                placements.push(placement);
            }
            None => {
                lines.remove(&tenant);
            }
        }
    }
    Plan { version: grey_core::PLAN_VERSION, placements }
}

fn seat(worker: WorkerId, row: &Worker) -> Seat<'_> {
    let free = Resources {
        cpu_millicores: row.capacity.cpu_millicores.saturating_sub(row.charged.cpu_millicores),
        memory_bytes: row.capacity.memory_bytes.saturating_sub(row.charged.memory_bytes),
        disk_bytes: row.capacity.disk_bytes.saturating_sub(row.charged.disk_bytes),
    };
    let devices = row.devices.iter().map(|kind| {
        let free = u64::from(kind.count).saturating_sub(kind.charged);
        (kind.name.as_str(), free)
    });
    let devices = devices.collect();
    let slots = row.usable_slots();
    Seat { row, devices, worker, free, slots_free: slots.saturating_sub(row.held) }
}

fn line<'a>(tenant: &Tenant, waiting: Box<dyn Iterator<Item = &'a ReadyKey> + 'a>) -> Line<'a> {
    Line {
        weight_milli: tenant.weight_milli.max(1),
        usage: tenant.usage,
        held: tenant.held_tasks,
        waiting,
        current: None,
    }
}

/// The cluster's totals: cpu, memory, slots; never zero, so that they can divide.
fn totals(state: &State) -> [u64; 3] {
    let (mut cpu, mut memory, mut slots) = (0u64, 0u64, 0u64);
    for worker in state.workers().values().filter(|row| row.presence != Presence::Lost) {
        cpu = cpu.saturating_add(worker.capacity.cpu_millicores);
        memory = memory.saturating_add(worker.capacity.memory_bytes);
        slots = slots.saturating_add(u64::from(worker.slots));
    }
    [cpu, memory, slots].map(|total| total.clamp(1, limits::RESOURCE_TOTAL))
}

/// A tenant's dominant use as a fraction: amount and total of its largest dimension.
fn dominant(line: &Line<'_>, totals: &[u64; 3]) -> (u64, u64) {
    let [cpu, memory, slots] = *totals;
    let uses = [(line.usage.cpu_millicores, cpu), (line.usage.memory_bytes, memory), (line.held, slots)];
    uses.into_iter().fold((0, 1), |highest, next| {
        let larger = u128::from(next.0) * u128::from(highest.1) > u128::from(highest.0) * u128::from(next.1);
        if larger { next } else { highest }
    })
}

/// The tenant with the lowest dominant share over weight; ties go to the lowest id.
fn lowest_share(lines: &BTreeMap<TenantId, Line<'_>>, totals: &[u64; 3]) -> Option<TenantId> {
    let mut lowest: Option<(TenantId, (u64, u64), u32)> = None;
    for (id, line) in lines {
        let share = dominant(line, totals);
        let lower = lowest.as_ref().is_none_or(|(_, other, other_weight)| {
            // share / weight < other / other_weight without a division: each product stays below 2^116.
            let left = u128::from(share.0.min(limits::RESOURCE_TOTAL))
                * u128::from(*other_weight)
                * u128::from(other.1);
            let right = u128::from(other.0.min(limits::RESOURCE_TOTAL))
                * u128::from(line.weight_milli)
                * u128::from(share.1);
            left < right
        });
        if lower {
            lowest = Some((*id, share, line.weight_milli));
        }
    }
    lowest.map(|(id, _, _)| id)
}

/// The next placement of a tenant, of at most `most` tasks; `None` when none of its waiting tasks can be placed.
fn place_next(
    state: &State,
    line: &mut Line<'_>,
    seats: &mut [Seat<'_>],
    rooms: &mut BTreeMap<JobId, u32>,
    most: u32,
) -> Option<Placement> {
    loop {
        if line.current.is_none() {
            line.current = Some(next_run(state, line.waiting.next()?)?);
        }
        let run = line.current.as_mut()?;
        let Some(range) = run.ranges.last().copied() else {
            line.current = None;
            continue;
        };
        let room = job_room(state, rooms, run.group);
        if room.as_ref().is_some_and(|room| **room == 0) {
            line.current = None;
            continue;
        }
        let spec = state.spec(run.group)?;
        let Some((position, fitting)) = choose_seat(seats, spec) else {
            line.current = None;
            continue;
        };
        let seat = seats.get_mut(position)?;
        let mut count = range.count.min(most).min(seat.slots_free).min(fitting);
        if let Some(room) = room {
            count = count.min(*room);
            *room -= count;
        }
        let tasks = TaskRange { first: range.first, count };
        take(seat, line, spec, count)?;
        let run = line.current.as_mut()?;
        run.ranges.pop();
        if count < range.count {
            run.ranges.push(TaskRange { first: tasks.end(), count: range.count - count });
        }
        return Some(Placement { worker: seat.worker, tasks, epoch: run.epoch });
    }
}

/// How many more tasks of a group's job may be held, where that is limited.
fn job_room<'a>(state: &State, rooms: &'a mut BTreeMap<JobId, u32>, group: TaskId) -> Option<&'a mut u32> {
    let job = state.groups().get(&group)?.job;
    let parallel = state.flow(job)?.parallel?;
    let held = u32::try_from(state.jobs().get(&job)?.held()).unwrap_or(u32::MAX);
    Some(rooms.entry(job).or_insert(parallel.saturating_sub(held)))
}

fn next_run(state: &State, key: &ReadyKey) -> Option<Run> {
    if let Some(live) = state.live().get(&key.task) {
        return Some(Run {
            group: key.group,
            ranges: vec![TaskRange::single(key.task)],
            epoch: live.epoch.next()?,
        });
    }
    let mut ranges = state.groups().get(&key.group)?.pending.ranges().to_vec();
    ranges.reverse();
    Some(Run { group: key.group, ranges, epoch: Epoch(1) })
}

fn take(seat: &mut Seat<'_>, line: &mut Line<'_>, spec: &TaskSpec, count: u32) -> Option<()> {
    let resources = &spec.resources;
    for kind in &spec.devices {
        let free = seat.devices.get_mut(kind.name.as_str())?;
        *free = free.saturating_sub(u64::from(kind.count) * u64::from(count));
    }
    let many = u64::from(count);
    let total = Resources {
        cpu_millicores: resources.cpu_millicores.checked_mul(many)?,
        memory_bytes: resources.memory_bytes.checked_mul(many)?,
        disk_bytes: resources.disk_bytes.checked_mul(many)?,
    };
    seat.slots_free -= count;
    seat.free = Resources {
        cpu_millicores: seat.free.cpu_millicores.saturating_sub(total.cpu_millicores),
        memory_bytes: seat.free.memory_bytes.saturating_sub(total.memory_bytes),
        disk_bytes: seat.free.disk_bytes.saturating_sub(total.disk_bytes),
    };
    line.usage = line.usage.checked_add(&total)?;
    line.held += u64::from(count);
    Some(())
}

/// The best worker for a task and how many such tasks it should get at once.
fn choose_seat(seats: &[Seat<'_>], spec: &TaskSpec) -> Option<(usize, u32)> {
    let resources = &spec.resources;
    let feasible =
        || seats.iter().enumerate().filter(|(_, seat)| seat.slots_free > 0 && seat.row.suits(spec));
    let devices_for = |seat: &Seat<'_>| {
        let times = spec.devices.iter().map(|kind| seat.devices[kind.name.as_str()] / u64::from(kind.count));
        times.min().unwrap_or(u64::MAX)
    };
    let tightest = feasible()
        .filter(|(_, seat)| resources.fits(&seat.free) && devices_for(seat) > 0)
        .min_by_key(|(_, seat)| (seat.free.cpu_millicores, seat.free.memory_bytes, seat.worker));
    if let Some((position, seat)) = tightest {
        let devices = u32::try_from(devices_for(seat)).unwrap_or(u32::MAX);
        return Some((position, times_fitting(resources, &seat.free).min(devices)));
    }
    // Every feasible worker is full: a task waits on the one with the most free slots rather than here.
    let emptiest = feasible().max_by_key(|(_, seat)| (seat.slots_free, core::cmp::Reverse(seat.worker)));
    let alone = feasible().nth(1).is_none();
    emptiest.map(|(position, seat)| (position, if alone { seat.slots_free } else { 1 }))
}

/// How often `resources` fits into `room`; at least once, as the caller has seen.
fn times_fitting(resources: &Resources, room: &Resources) -> u32 {
    let times = |need: u64, have: u64| have.checked_div(need).unwrap_or(u64::MAX);
    let lowest = times(resources.cpu_millicores, room.cpu_millicores)
        .min(times(resources.memory_bytes, room.memory_bytes))
        .min(times(resources.disk_bytes, room.disk_bytes));
    u32::try_from(lowest).unwrap_or(u32::MAX).max(1)
}
