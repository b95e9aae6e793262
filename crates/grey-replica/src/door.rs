//! The door of a server: what is refused before anything is proposed, and what whoever asks is told of how full it is.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{Command, QuotaRow, RateLimit, State, TenantId, limits};
use grey_health::{
    Admission, Advice, Backpressure, BackpressureOptions, Gate, GateOptions, GateRefusal, HealthError, Level,
    RefusalCode, Work,
};

use crate::replica::Ticket;

/// What a server's door goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoorOptions {
    /// The rules of the door.
    pub gate: GateOptions,
    /// How its fill becomes a level.
    pub pressure: BackpressureOptions,
    /// How many tasks a second each tenant may submit; none is no limit.
    pub rate: Option<RateLimit>,
    /// The most tasks of a tenant that wait, with those under way.
    pub queued_tasks: u64,
    /// The most linearizable reads of clients that are under way; at least 1.
    pub reads: u64,
}

impl Default for DoorOptions {
    fn default() -> DoorOptions {
        DoorOptions {
            gate: GateOptions::default(),
            pressure: BackpressureOptions::default(),
            // A full queue at once, and another every two seconds: for tenants without a quota this only bounds what is absurd.
            rate: Some(RateLimit { tasks_per_second: 1_000_000, burst: limits::TENANT_QUEUED_TASKS }),
            queued_tasks: limits::TENANT_QUEUED_TASKS,
            reads: 16_384,
        }
    }
}

/// The door would not take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct DoorRefusal {
    /// By which rule, with its limit, what is used of it, and when to try again.
    pub refusal: GateRefusal,
    /// How full the door is.
    pub level: Level,
}

/// How something comes to the door.
pub(crate) enum Entrant {
    /// New work.
    Work(Work),
    /// A completion, a cancel, or whatever else makes room.
    Ending,
    /// What is to be said about who lives.
    Life,
}

struct Inside {
    admission: Admission,
    since_ms: u64,
}

/// Keeps account of everything that was let in, from then until it was applied or came to nothing.
pub(crate) struct Door {
    rate: Option<RateLimit>,
    queued_tasks: u64,
    reads_limit: u64,
    gate: Gate,
    pressure: Backpressure,
    inside: BTreeMap<Ticket, Inside>,
    /// The same, the oldest first.
    ages: BTreeSet<(u64, Ticket)>,
    reads: BTreeSet<Ticket>,
}

impl Default for Door {
    fn default() -> Door {
        Door::of(&DoorOptions::default(), Gate::default(), Backpressure::default())
    }
}

impl Door {
    pub(crate) fn new(options: &DoorOptions) -> Result<Door, HealthError> {
        let gate = Gate::new(options.gate.clone())?;
        let pressure = Backpressure::new(options.pressure.clone())?;
        Ok(Door::of(options, gate, pressure))
    }

    fn of(options: &DoorOptions, gate: Gate, pressure: Backpressure) -> Door {
        Door {
            rate: options.rate,
            queued_tasks: options.queued_tasks,
            reads_limit: options.reads,
            gate,
            pressure,
            inside: BTreeMap::new(),
            ages: BTreeSet::new(),
            reads: BTreeSet::new(),
        }
    }

    /// As what a client's command comes.
    pub(crate) fn entrant(&self, state: &State, command: &Command) -> Entrant {
        let work = |tenant: TenantId, tasks: u64| {
            let queued_tasks = state.tenants().get(&tenant).map_or(0, |tenant| tenant.queued_tasks);
            let queue_limit = if tasks == 0 { u64::MAX } else { self.queue_limit(state, tenant) };
            let rate = quota(state, tenant).and_then(|row| row.quota.rate).or(self.rate);
            Entrant::Work(Work { tenant, tasks, bytes: 0, rate, queued_tasks, queue_limit })
        };
        match command {
            Command::Submit(body) => {
                // What was accepted before is only asked for again: it takes no task of the rate or the queue.
                let known = body.key.as_ref().is_some_and(|key| state.knows_key(body.tenant, &key.key));
                let tasks = body.groups.iter().map(|group| u64::from(group.count)).sum();
                work(body.tenant, if known { 0 } else { tasks })
            }
            Command::ChangeTimeout(body) => work(body.tenant, 0),
            _ => Entrant::Ending,
        }
    }

    fn queue_limit(&self, state: &State, tenant: TenantId) -> u64 {
        quota(state, tenant).map_or(self.queued_tasks, |row| row.queued_tasks().min(self.queued_tasks))
    }

    /// Asks for new work as far as it can be told before it is encoded.
    pub(crate) fn ask(&self, entrant: &Entrant, now_ms: u64) -> Result<(), DoorRefusal> {
        match entrant {
            Entrant::Work(work) => self.gate.ask(work, now_ms).map_err(|refusal| self.refused(refusal)),
            Entrant::Ending | Entrant::Life => Ok(()),
        }
    }

    /// Lets something in that has waited for so long already.
    pub(crate) fn admit(
        &mut self,
        ticket: Ticket,
        entrant: Entrant,
        bytes: u64,
        waited_ms: u64,
        now_ms: u64,
    ) -> Result<(), DoorRefusal> {
        let admitted = match entrant {
            Entrant::Work(work) => self.gate.admit(&Work { bytes, ..work }, now_ms),
            Entrant::Ending => self.gate.admit_ending(bytes),
            Entrant::Life => self.gate.admit_heartbeat(bytes),
        };
        let admission = admitted.map_err(|refusal| self.refused(refusal))?;
        // A ticket that is used twice is a mistake of the caller's; the room it takes is given back all the same.
        self.leave(ticket);
        let since_ms = now_ms.saturating_sub(waited_ms);
        self.inside.insert(ticket, Inside { admission, since_ms });
        self.ages.insert((since_ms, ticket));
        self.update(now_ms);
        Ok(())
    }

    /// Lets a client's read in.
    pub(crate) fn admit_read(&mut self, ticket: Ticket) -> Result<(), DoorRefusal> {
        let (limit, usage) = (self.reads_limit, self.reads.len() as u64);
        if usage >= limit {
            let retry_after_ms = Some(100);
            return Err(self.refused(GateRefusal { code: RefusalCode::Reads, limit, usage, retry_after_ms }));
        }
        self.reads.insert(ticket);
        Ok(())
    }

    /// A read was allowed, or came to nothing.
    pub(crate) fn read_ended(&mut self, ticket: Ticket) {
        self.reads.remove(&ticket);
    }

    /// What was let in was applied.
    pub(crate) fn applied(&mut self, ticket: Ticket, now_ms: u64) {
        if let Some(since_ms) = self.leave(ticket) {
            self.gate.observe_delay(now_ms.saturating_sub(since_ms), now_ms);
            self.update(now_ms);
        }
    }

    /// What was let in was not proposed, or nobody knows what became of it.
    pub(crate) fn dropped(&mut self, ticket: Ticket, now_ms: u64) {
        if self.leave(ticket).is_some() {
            self.update(now_ms);
        }
    }

    fn leave(&mut self, ticket: Ticket) -> Option<u64> {
        let Inside { admission, since_ms } = self.inside.remove(&ticket)?;
        self.ages.remove(&(since_ms, ticket));
        self.gate.settle(admission);
        Some(since_ms)
    }

    /// Looks at how long the oldest has been waiting: a queue that does not move at all is never heard of otherwise.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        let oldest = self.ages.first().map_or(0, |(since_ms, _)| now_ms.saturating_sub(*since_ms));
        self.gate.observe_delay(oldest, now_ms);
        self.update(now_ms);
    }

    fn update(&mut self, now_ms: u64) {
        self.pressure.update(self.gate.fill_permille(now_ms));
    }

    fn refused(&self, refusal: GateRefusal) -> DoorRefusal {
        DoorRefusal { refusal, level: self.level() }
    }

    pub(crate) fn level(&self) -> Level {
        self.pressure.level()
    }

    /// The level for one tenant: that of the door or of the tenant's own queue, whichever is higher.
    pub(crate) fn level_for(&self, state: &State, tenant: TenantId) -> Level {
        let queued = state.tenants().get(&tenant).map_or(0, |tenant| tenant.queued_tasks);
        let own = self
            .pressure
            .level_at(grey_health::fill_permille((queued, self.queue_limit(state, tenant)), (0, 1)));
        self.level().max(own)
    }

    pub(crate) fn advice(&self) -> Advice {
        self.pressure.advice()
    }

    pub(crate) fn under_way(&self) -> usize {
        self.inside.len()
    }
}

/// What a tenant may have beyond what any may.
fn quota(state: &State, tenant: TenantId) -> Option<&QuotaRow> {
    #[cfg(feature = "mutants")]
    if state.makes(grey_core::Mutant::IgnoreQuota) {
        return None;
    }
    state.quota(tenant)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::replica::UNCOMMITTED_BYTES;

    #[test]
    fn what_the_door_lets_in_fits_the_engine() {
        let capacity = DoorOptions::default().gate.capacity;
        let bytes = capacity.heartbeats.bytes + capacity.endings.bytes + capacity.shared.bytes;
        assert!(bytes + limits::ENTRY_BYTES as u64 <= UNCOMMITTED_BYTES, "a plan comes on top");
        Door::new(&DoorOptions::default()).unwrap();
    }

    #[test]
    fn reads_are_bounded_too() {
        let mut door = Door::new(&DoorOptions { reads: 2, ..DoorOptions::default() }).unwrap();
        door.admit_read(Ticket(1)).unwrap();
        door.admit_read(Ticket(2)).unwrap();
        assert_eq!(door.admit_read(Ticket(3)).unwrap_err().refusal.code, RefusalCode::Reads);
        door.read_ended(Ticket(1));
        door.admit_read(Ticket(3)).unwrap();
    }
}
