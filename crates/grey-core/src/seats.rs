//! Where there is room: an index over the workers, kept as they change, so that a plan costs what it places and not what
//! the cluster has.

use core::cmp::Reverse;
use std::collections::BTreeSet;

use crate::ids::WorkerId;
use crate::limits;
use crate::rows::{Presence, Worker};
use crate::spec::Resources;

/// A worker as a place for tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) worker: WorkerId,
    pub(crate) free: Resources,
    pub(crate) capacity: Resources,
    pub(crate) slots_free: u32,
}

impl Seat {
    pub(crate) fn of(worker: WorkerId, row: &Worker) -> Seat {
        let (capacity, charged) = (&row.capacity, &row.charged);
        let free = Resources {
            cpu_millicores: capacity.cpu_millicores.saturating_sub(charged.cpu_millicores),
            memory_bytes: capacity.memory_bytes.saturating_sub(charged.memory_bytes),
            disk_bytes: capacity.disk_bytes.saturating_sub(charged.disk_bytes),
        };
        Seat { worker, free, capacity: *capacity, slots_free: row.usable_slots().saturating_sub(row.held) }
    }
}

/// A seat's place in the order in which the tightest fit is looked for.
pub(crate) type ByRoom = (u64, u64, WorkerId);
/// A seat's place in the order in which the emptiest is looked for.
pub(crate) type BySlots = (Reverse<u32>, WorkerId);

/// Seats with a free slot, in both orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seats {
    pub(crate) by_room: BTreeSet<ByRoom>,
    pub(crate) by_slots: BTreeSet<BySlots>,
}

impl Seats {
    pub(crate) fn set(&mut self, seat: &Seat, present: bool) {
        if seat.slots_free == 0 {
            return;
        }
        let room = (seat.free.cpu_millicores, seat.free.memory_bytes, seat.worker);
        let slots = (Reverse(seat.slots_free), seat.worker);
        if present {
            self.by_room.insert(room);
            self.by_slots.insert(slots);
        } else {
            self.by_room.remove(&room);
            self.by_slots.remove(&slots);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_slots.is_empty()
    }
}

/// What all workers have together: cpu, memory, slots. Wide enough for any number of workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals([u128; 3]);

impl Totals {
    fn parts(row: &Worker) -> [u128; 3] {
        if row.presence == Presence::Lost {
            return [0; 3];
        }
        [row.capacity.cpu_millicores.into(), row.capacity.memory_bytes.into(), row.slots.into()]
    }

    pub(crate) fn set(&mut self, row: &Worker, present: bool) {
        for (total, part) in self.0.iter_mut().zip(Totals::parts(row)) {
            *total = if present { total.saturating_add(part) } else { total.saturating_sub(part) };
        }
    }

    /// The totals as divisors: never zero, and small enough for products with weights.
    pub(crate) fn divisors(&self) -> [u64; 3] {
        self.0.map(|total| u64::try_from(total).unwrap_or(u64::MAX).clamp(1, limits::RESOURCE_TOTAL))
    }
}
