//! The planner: a pure function of the state. The same state gives the same plan, byte for byte.
//!
//! Tenants take turns by weighted dominant-resource fairness (Ghodsi et al., NSDI 2011): next is the one whose dominant
//! share over its weight is lowest. Inside a tenant the order is priority with age, then submission. A task goes to the
//! worker on which it fits most tightly, or, where all are full, ahead of time to the one that holds the fewest.
//!
//! It works on indexes that the state keeps as its rows change, so its cost follows what it places and looks at, not how
//! many workers, tenants or tasks there are.

use core::cmp::{Ordering, Reverse};
use core::slice;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap, btree_set};

use crate::apply::multiplied;
use crate::command::{Placement, Plan};
use crate::constraint::Constraints;
use crate::ids::{Epoch, JobId, TaskId, TaskRange, TenantId, WorkerId};
use crate::limits;
use crate::rows::Tenant;
use crate::seats::{BySlots, Seat, Seats};
use crate::spec::{ExecutorKind, Resources, TaskSpec};
use crate::state::{ReadyKey, State};

/// Version of the rules below; a plan names the version that made it.
pub const PLAN_VERSION: u16 = 3;

/// How many tasks a tenant may place in one turn while others wait: bounds what fairness can be off by.
const TURN_TASKS: u32 = 64;
/// How many waiting tasks or runs of them that cannot be placed now a plan looks at: bounds its work when there is room
/// for little of what waits.
const PASSED_OVER: u32 = 16_384;
/// How many sizes of task that fit nowhere a plan remembers.
const UNFIT_KEPT: usize = 16;
/// How many kinds of worker that tasks ask for a plan remembers the workers of.
const KINDS_KEPT: usize = 64;
/// A kind that fewer workers than one in so many are of is looked for among these, any other among all.
const RARE_KIND: usize = 4;
/// How many workers that are looked at in vain cost as much patience as a task that is passed over.
const LOOKS: usize = 64;

/// A tenant as the plan so far leaves it.
struct Line<'a> {
    weight_milli: u32,
    usage: Resources,
    held: u64,
    waiting: btree_set::Iter<'a, ReadyKey>,
    current: Option<Run<'a>>,
    /// The mistake of favouring who has most.
    #[cfg(feature = "mutants")]
    rich_first: bool,
}

/// Waiting tasks of one group, next to one another.
struct Run<'a> {
    group: TaskId,
    spec: &'a TaskSpec,
    /// Those that are next.
    range: TaskRange,
    /// Those that come after them.
    others: slice::Iter<'a, TaskRange>,
    epoch: Epoch,
}

/// A tenant's dominant share over its weight; the lowest is next, ties go to the lowest id.
#[derive(PartialEq, Eq)]
struct Share {
    /// Amount and total of its largest dimension.
    dominant: (u64, u64),
    weight_milli: u32,
    tenant: TenantId,
    /// Where its line is.
    line: usize,
}

impl Ord for Share {
    fn cmp(&self, other: &Share) -> Ordering {
        // share / weight < other / other_weight without a division: each product stays below 2^116.
        let weighed = |share: &Share, other: &Share| {
            u128::from(share.dominant.0.min(limits::RESOURCE_TOTAL))
                * u128::from(other.weight_milli)
                * u128::from(other.dominant.1)
        };
        weighed(self, other).cmp(&weighed(other, self)).then(self.tenant.cmp(&other.tenant))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Share) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The seats as the plan so far leaves them: those of the state, but for those that it has placed tasks on.
struct Floor<'a> {
    state: &'a State,
    moved: BTreeMap<WorkerId, Seat>,
    seats: Seats,
    /// How many seats have a free slot.
    with_slots: usize,
    /// Whether `seats` has all of them, so that the state's index need not be looked at.
    is_own: bool,
    none: &'a Seats,
    /// Steps over changed seats so far.
    skipped: usize,
    /// Tasks that fit nowhere: room only becomes less while a plan is made.
    unfit: Vec<&'a TaskSpec>,
    /// Kinds of worker that tasks ask for, and which workers are of each.
    kinds: Vec<(&'a TaskSpec, Vec<WorkerId>)>,
    /// Devices that this plan has given away, where it gave any.
    devices: BTreeMap<(WorkerId, &'a str), u64>,
    /// Probes that this plan has given to executors that are tried again.
    probes: BTreeMap<(WorkerId, ExecutorKind), u32>,
    /// Workers looked at in vain so far.
    looked_at: usize,
    /// How many more may be passed over.
    patience: u32,
    /// How many more tasks of a job may be held, where that is limited.
    rooms: BTreeMap<JobId, u32>,
}

/// Places waiting tasks, at most `budget` of them. An empty plan means that nothing can be placed now.
pub fn plan(state: &State, budget: u32) -> Plan {
    let mut left = budget.min(limits::PLAN_TASKS);
    let mut placements = Vec::new();
    if state.seats.is_empty() {
        return Plan { version: PLAN_VERSION, placements };
    }
    let totals = state.totals.divisors();
    let waiting = state.ready().iter().filter_map(|(id, keys)| Some((*id, state.tenants().get(id)?, keys)));
    let (tenants, mut lines): (Vec<TenantId>, Vec<Line<'_>>) =
        waiting.map(|(id, tenant, keys)| (id, line(tenant, keys.iter()))).unzip();
    #[cfg(feature = "mutants")]
    for line in &mut lines {
        line.rich_first = state.mutant == Some(crate::mutant::Mutant::FavourTheRich);
    }
    // A heap is made in one pass over all tenants that wait, and only those whose turn comes are put in order.
    let shares: Vec<_> = tenants
        .into_iter()
        .zip(lines.iter().enumerate())
        .map(|(tenant, (at, line))| Reverse(share(tenant, at, line, &totals)))
        .collect();
    let mut shares = BinaryHeap::from(shares);
    let none = Seats::default();
    let mut floor = Floor {
        state,
        moved: BTreeMap::new(),
        seats: Seats::default(),
        with_slots: state.seats.by_slots.len(),
        is_own: false,
        none: &none,
        skipped: 0,
        unfit: Vec::new(),
        kinds: Vec::new(),
        devices: BTreeMap::new(),
        probes: BTreeMap::new(),
        looked_at: 0,
        patience: PASSED_OVER,
        rooms: BTreeMap::new(),
    };
    while left > 0 && placements.len() < limits::PLAN_PLACEMENTS {
        let alone = shares.len() == 1;
        let Some(mut next) = shares.peek_mut() else { break };
        let turn = if alone { left } else { left.min(TURN_TASKS) };
        let (tenant, at) = (next.0.tenant, next.0.line);
        let Some(line) = lines.get_mut(at) else { break };
        if let Some(placement) = floor.place_next(line, turn) {
            left -= placement.tasks.count;
            placements.push(placement);
            *next = Reverse(share(tenant, at, line, &totals));
        } else {
            PeekMut::pop(next);
        }
    }
    Plan { version: PLAN_VERSION, placements }
}

fn line<'a>(tenant: &Tenant, waiting: btree_set::Iter<'a, ReadyKey>) -> Line<'a> {
    Line {
        weight_milli: tenant.weight_milli.max(1),
        usage: tenant.usage,
        held: tenant.held_tasks,
        waiting,
        current: None,
        #[cfg(feature = "mutants")]
        rich_first: false,
    }
}

/// A tenant's share: amount and total of its dominant dimension.
fn share(tenant: TenantId, at: usize, line: &Line<'_>, totals: &[u64; 3]) -> Share {
    let [cpu, memory, slots] = *totals;
    let uses = [(line.usage.cpu_millicores, cpu), (line.usage.memory_bytes, memory), (line.held, slots)];
    let dominant = uses.into_iter().fold((0, 1), |highest, next| {
        let larger = u128::from(next.0) * u128::from(highest.1) > u128::from(highest.0) * u128::from(next.1);
        if larger { next } else { highest }
    });
    #[cfg(feature = "mutants")]
    let dominant =
        if line.rich_first { (dominant.1.saturating_sub(dominant.0), dominant.1) } else { dominant };
    Share { dominant, weight_milli: line.weight_milli, tenant, line: at }
}

impl<'a> Floor<'a> {
    /// The next placement of a tenant, of at most `most` tasks; `None` when none of its waiting tasks can be placed.
    fn place_next(&mut self, line: &mut Line<'a>, most: u32) -> Option<Placement> {
        loop {
            if self.with_slots == 0 {
                return None;
            }
            if line.current.is_none() {
                let key = line.waiting.next()?;
                let spec: &'a TaskSpec = self.state.spec(key.group)?;
                if self.is_unfit(spec) {
                    self.patience = self.patience.checked_sub(1)?;
                    continue;
                }
                line.current = next_run(self.state, key, spec)?;
            }
            let Some(Run { group, spec, range, epoch, .. }) = &line.current else { continue };
            let (group, spec, range, epoch) = (*group, *spec, *range, *epoch);
            let found = if self.room_of_job(group) == Some(0) { None } else { self.choose(spec) };
            let looks = core::mem::take(&mut self.looked_at) / LOOKS;
            self.patience = self.patience.checked_sub(u32::try_from(looks).unwrap_or(u32::MAX))?;
            let Some((mut seat, fitting)) = found else {
                line.current = None;
                self.patience = self.patience.checked_sub(1)?;
                continue;
            };
            let mut count = range.count.min(most).min(seat.slots_free).min(fitting);
            if let Some(job) = self.limited_job(group)
                && let Some(room) = self.rooms.get_mut(&job)
            {
                count = count.min(*room);
                *room -= count;
            }
            let worker = seat.worker;
            self.take(&mut seat, line, spec, count)?;
            let tasks = TaskRange { first: range.first, count };
            let run = line.current.as_mut()?;
            if count < range.count {
                run.range = TaskRange { first: tasks.end(), count: range.count - count };
            } else if let Some(next) = run.others.next() {
                run.range = *next;
            } else {
                line.current = None;
            }
            return Some(Placement { worker, tasks, epoch });
        }
    }

    /// The job of a group, where it limits how many of its tasks are held.
    fn limited_job(&self, group: TaskId) -> Option<JobId> {
        if self.state.flows.is_empty() {
            return None;
        }
        let job = self.state.groups.get(&group)?.job;
        self.state.flows.get(&job)?.parallel.map(|_| job)
    }

    fn room_of_job(&mut self, group: TaskId) -> Option<u32> {
        let job = self.limited_job(group)?;
        let parallel = self.state.flows.get(&job)?.parallel?;
        let held = u32::try_from(self.state.jobs.get(&job)?.held()).unwrap_or(u32::MAX);
        Some(*self.rooms.entry(job).or_insert(parallel.saturating_sub(held)))
    }

    fn take(&mut self, seat: &mut Seat, line: &mut Line<'a>, spec: &'a TaskSpec, count: u32) -> Option<()> {
        let total = multiplied(&spec.resources, count)?;
        for kind in &spec.devices {
            let given = self.devices.entry((seat.worker, &kind.name)).or_default();
            *given = given.saturating_add(u64::from(kind.count).saturating_mul(u64::from(count)));
        }
        if self.probes_left(spec, seat.worker) != u32::MAX {
            *self.probes.entry((seat.worker, spec.executor)).or_default() += count;
        }
        if self.is_own || self.moved.contains_key(&seat.worker) {
            self.seats.set(seat, false);
        }
        seat.slots_free -= count;
        self.with_slots -= usize::from(seat.slots_free == 0);
        seat.free = Resources {
            cpu_millicores: seat.free.cpu_millicores.saturating_sub(total.cpu_millicores),
            memory_bytes: seat.free.memory_bytes.saturating_sub(total.memory_bytes),
            disk_bytes: seat.free.disk_bytes.saturating_sub(total.disk_bytes),
        };
        self.seats.set(seat, true);
        self.moved.insert(seat.worker, *seat);
        line.usage = line.usage.checked_add(&total)?;
        line.held += u64::from(count);
        Some(())
    }

    /// Whether a task that asks for no more than this was found to fit nowhere.
    fn is_unfit(&self, spec: &TaskSpec) -> bool {
        self.unfit.iter().any(|unfit| {
            unfit.resources.fits(&spec.resources)
                && unfit.devices == spec.devices
                && unfit.constraints == spec.constraints
                && unfit.executor == spec.executor
        })
    }

    /// The best worker for a task and how many such tasks it should get at once.
    fn choose(&mut self, spec: &'a TaskSpec) -> Option<(Seat, u32)> {
        if self.is_unfit(spec) {
            return None;
        }
        self.own_when_worth_it();
        let rare = self.rare_kind(spec);
        let found = match &rare {
            Some(workers) => self.tightest_of(spec, workers),
            None => self.tightest(spec),
        };
        if let Some(seat) = found {
            let devices = self.times_devices_free(spec, seat.worker);
            let probes = self.probes_left(spec, seat.worker);
            return Some((seat, times_fitting(&spec.resources, &seat.free).min(devices.max(1)).min(probes)));
        }
        // Every feasible worker is full: a task waits on the one with the most free slots rather than here.
        let found = match &rare {
            Some(workers) => self.emptiest_of(spec, workers),
            None => self.emptiest(spec),
        };
        let Some((seat, alone)) = found else {
            if self.unfit.len() < UNFIT_KEPT {
                self.unfit.push(spec);
            }
            return None;
        };
        Some((seat, if alone { seat.slots_free } else { 1 }))
    }

    /// The workers that a task may run on, where they are so few that they are looked at one by one.
    fn rare_kind(&mut self, spec: &'a TaskSpec) -> Option<Vec<WorkerId>> {
        if spec.devices.is_empty() && spec.constraints == Constraints::default() {
            return None;
        }
        let alike = |other: &TaskSpec| other.devices == spec.devices && other.constraints == spec.constraints;
        let position = match self.kinds.iter().position(|(other, _)| alike(other)) {
            Some(position) => position,
            None if self.kinds.len() >= KINDS_KEPT => return None,
            None => {
                let of_kind = self
                    .state
                    .workers
                    .iter()
                    .filter(|(_, row)| row.meets(&spec.constraints) && row.has(&spec.devices));
                self.kinds.push((spec, of_kind.map(|(worker, _)| *worker).collect()));
                self.looked_at += self.state.workers.len();
                self.kinds.len() - 1
            }
        };
        let (_, workers) = self.kinds.get(position)?;
        (workers.len() < self.state.workers.len() / RARE_KIND).then(|| workers.clone())
    }

    /// A worker's seat as this plan leaves it, if it has a free slot and could ever run the task.
    fn suitable(&self, spec: &TaskSpec, worker: WorkerId) -> Option<Seat> {
        let row = self.state.workers.get(&worker)?;
        let seat = self.moved.get(&worker).copied().unwrap_or_else(|| Seat::of(worker, row));
        (seat.slots_free > 0 && row.suits(spec) && self.probes_left(spec, worker) > 0).then_some(seat)
    }

    /// The same where the task may wait for room: what tries an executor again has to start at once.
    fn suitable_to_wait(&self, spec: &TaskSpec, worker: WorkerId) -> Option<Seat> {
        self.suitable(spec, worker).filter(|_| self.probes_left(spec, worker) == u32::MAX)
    }

    /// How many more attempts a worker's executor may be given, where a breaker stands before it.
    fn probes_left(&self, spec: &TaskSpec, worker: WorkerId) -> u32 {
        if self.state.breakers.is_empty() {
            return u32::MAX;
        }
        match self.state.executor_room(worker, spec.executor) {
            u32::MAX => u32::MAX,
            room => room.saturating_sub(self.probes.get(&(worker, spec.executor)).copied().unwrap_or(0)),
        }
    }

    /// How often the devices that a task asks for are free on a worker.
    fn times_devices_free(&self, spec: &TaskSpec, worker: WorkerId) -> u32 {
        if spec.devices.is_empty() {
            return u32::MAX;
        }
        let Some(row) = self.state.workers.get(&worker) else { return 0 };
        let times = spec.devices.iter().map(|needed| {
            let kind = row.devices.iter().find(|kind| kind.name == needed.name);
            let given = self.devices.get(&(worker, needed.name.as_str())).copied().unwrap_or(0);
            let free = kind
                .map_or(0, |kind| u64::from(kind.count).saturating_sub(kind.charged.saturating_add(given)));
            u32::try_from(free).unwrap_or(u32::MAX).checked_div(needed.count).unwrap_or(u32::MAX)
        });
        times.min().unwrap_or(u32::MAX)
    }

    /// Whether a task fits on a seat now.
    fn fits_now(&self, spec: &TaskSpec, seat: &Seat) -> bool {
        spec.resources.fits(&seat.free) && self.times_devices_free(spec, seat.worker) > 0
    }

    fn tightest_of(&mut self, spec: &TaskSpec, workers: &[WorkerId]) -> Option<Seat> {
        self.looked_at += workers.len();
        let seats = workers.iter().filter_map(|worker| self.suitable(spec, *worker));
        seats
            .filter(|seat| self.fits_now(spec, seat))
            .min_by_key(|seat| (seat.free.cpu_millicores, seat.free.memory_bytes, seat.worker))
    }

    fn emptiest_of(&mut self, spec: &TaskSpec, workers: &[WorkerId]) -> Option<(Seat, bool)> {
        self.looked_at += workers.len();
        let mut seats = workers.iter().filter_map(|worker| self.suitable_to_wait(spec, *worker));
        let first = seats.next()?;
        let mut alone = true;
        let emptiest = seats.fold(first, |best, next| {
            alone = false;
            let better = (Reverse(next.slots_free), next.worker) < (Reverse(best.slots_free), best.worker);
            if better { next } else { best }
        });
        Some((emptiest, alone))
    }

    /// The seat with the least free cpu, then memory, on which a task fits now.
    fn tightest(&mut self, spec: &TaskSpec) -> Option<Seat> {
        let from = (spec.resources.cpu_millicores, 0, WorkerId(0));
        let mut in_vain = 0;
        let mut fitting = |worker: WorkerId| {
            let seat = self.suitable(spec, worker).filter(|seat| self.fits_now(spec, seat));
            in_vain += usize::from(seat.is_none());
            seat
        };
        let moved = self.seats.by_room.range(from..).find_map(|key| fitting(key.2).map(|seat| (*key, seat)));
        let (mut untouched, mut skipped) = (None, 0);
        for key in self.of_state().by_room.range(from..) {
            if self.moved.contains_key(&key.2) {
                skipped += 1;
            } else if let Some(seat) = fitting(key.2) {
                untouched = Some((*key, seat));
                break;
            }
        }
        self.skipped += skipped;
        self.looked_at += in_vain;
        moved.into_iter().chain(untouched).min_by_key(|(key, _)| *key).map(|(_, seat)| seat)
    }

    /// The seat with the most free slots whose worker could ever run a task, and whether it is the only one.
    fn emptiest(&mut self, spec: &TaskSpec) -> Option<(Seat, bool)> {
        let mut in_vain = 0;
        let mut suitable = |worker: WorkerId| {
            let seat = self.suitable_to_wait(spec, worker);
            in_vain += usize::from(seat.is_none());
            seat
        };
        let moved = self.seats.by_slots.iter().filter_map(|key| Some((*key, suitable(key.1)?)));
        let mut found: Vec<(BySlots, Seat)> = moved.take(2).collect();
        let (mut of_state, mut skipped) = (0, 0);
        for key in &self.of_state().by_slots {
            if self.moved.contains_key(&key.1) {
                skipped += 1;
                continue;
            }
            let seat = suitable(key.1);
            found.extend(seat.map(|seat| (*key, seat)));
            of_state += usize::from(seat.is_some());
            if of_state == 2 {
                break;
            }
        }
        self.skipped += skipped;
        self.looked_at += in_vain;
        found.sort_unstable_by_key(|(key, _)| *key);
        let (_, seat) = found.first()?;
        Some((*seat, found.len() == 1))
    }

    /// The state's index, until this plan has one of its own.
    fn of_state(&self) -> &'a Seats {
        if self.is_own { self.none } else { &self.state.seats }
    }

    /// Stepping over seats that this plan has changed costs more and more; when it has cost as much as a copy of the whole
    /// index would, the copy is made.
    fn own_when_worth_it(&mut self) {
        if self.is_own || self.skipped <= self.state.seats.by_room.len() {
            return;
        }
        // Made of all its keys at once: inserting them one by one into a tree costs several times as much.
        let (moved, own, state) = (&self.moved, &self.seats, &self.state.seats);
        let rooms = state.by_room.iter().filter(|key| !moved.contains_key(&key.2));
        let by_room = own.by_room.iter().chain(rooms).copied().collect();
        let slots = state.by_slots.iter().filter(|key| !moved.contains_key(&key.1));
        let by_slots = own.by_slots.iter().chain(slots).copied().collect();
        self.seats = Seats { by_room, by_slots };
        self.is_own = true;
    }
}

/// The waiting tasks of a place in a line; nothing where the outer answer is none, no tasks where the inner one is.
fn next_run<'a>(state: &'a State, key: &ReadyKey, spec: &'a TaskSpec) -> Option<Option<Run<'a>>> {
    let group = key.group;
    if let Some(live) = state.live().get(&key.task) {
        let (range, others) = (TaskRange::single(key.task), [].iter());
        return Some(Some(Run { group, spec, range, others, epoch: live.epoch.next()? }));
    }
    let mut others = state.groups().get(&group)?.pending.ranges().iter();
    Some(others.next().map(|range| Run { group, spec, range: *range, others, epoch: Epoch(1) }))
}

/// How often `resources` fits into `room`; at least once, as the caller has seen.
fn times_fitting(resources: &Resources, room: &Resources) -> u32 {
    let times = |need: u64, have: u64| have.checked_div(need).unwrap_or(u64::MAX);
    let lowest = times(resources.cpu_millicores, room.cpu_millicores)
        .min(times(resources.memory_bytes, room.memory_bytes))
        .min(times(resources.disk_bytes, room.disk_bytes));
    u32::try_from(lowest).unwrap_or(u32::MAX).max(1)
}
