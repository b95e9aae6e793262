//! The door: what is refused before anything is proposed.

use core::fmt;
use std::collections::BTreeMap;

use grey_core::{Gcra, RateLimit, RateRefusal, TenantId};

use crate::backpressure::fill_permille;
use crate::capacity::{Capacity, CapacityOptions, Class, Short};
use crate::error::HealthError;
use crate::limits;
use crate::options::Checks;
use crate::shed::{DelayShedder, ShedOptions};

/// What a [`Gate`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateOptions {
    /// Room for proposals under way. Heartbeats, and completions and cancels, have some of their own.
    pub capacity: CapacityOptions,
    /// When the queueing delay closes the door.
    pub shed: ShedOptions,
    /// When to try again after a tenant's queue or the room for proposals was full, in milliseconds; 1 to a day.
    pub retry_after_ms: u64,
    /// The most tenants that are kept account of at once; 1 to [`limits::PEERS`].
    pub tenants: usize,
}

impl Default for GateOptions {
    fn default() -> GateOptions {
        const MIB: u64 = 1024 * 1024;
        let amount = |count: u64, bytes: u64| crate::capacity::Amount { count, bytes };
        GateOptions {
            // Together less than what the consensus engine takes, so that it is the door that refuses.
            capacity: CapacityOptions {
                heartbeats: amount(256, MIB),
                endings: amount(16_384, 24 * MIB),
                shared: amount(4_096, 32 * MIB),
            },
            // A slow disk alone makes a delay of some tens of milliseconds; that is no queue.
            shed: ShedOptions { target_ms: 500, interval_ms: 2_000, ..ShedOptions::default() },
            retry_after_ms: 1_000,
            tenants: 10_000,
        }
    }
}

impl GateOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong; that of the shedding's options when only those are wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        let names = [
            ("capacity.heartbeats.count", "capacity.heartbeats.bytes"),
            ("capacity.endings.count", "capacity.endings.bytes"),
            ("capacity.shared.count", "capacity.shared.bytes"),
        ];
        self.capacity.check(&mut checks, names);
        checks.within("retry_after_ms", self.retry_after_ms, 1..=limits::OPTION_MS);
        checks.within("tenants", self.tenants as u64, 1..=limits::PEERS as u64);
        checks.finish("gate")?;
        self.shed.validate()
    }
}

/// New work before the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Whose.
    pub tenant: TenantId,
    /// How many tasks.
    pub tasks: u64,
    /// Bytes of the proposal.
    pub bytes: u64,
    /// The tenant's rate; none is no limit.
    pub rate: Option<RateLimit>,
    /// Tasks of the tenant in its queue, as of the applied state.
    pub queued_tasks: u64,
    /// The most that may be there.
    pub queue_limit: u64,
}

/// Which rule refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalCode {
    /// The batch is larger than the tenant's burst: it never fits.
    Burst,
    /// The tenant submits too fast.
    Rate,
    /// The tenant's queue is full, counting what is under way.
    Queue,
    /// Too many proposals are under way.
    Proposals,
    /// Too many bytes of proposals are under way.
    ProposalBytes,
    /// What was accepted waits too long already.
    Delay,
    /// Too many tenants submit at once.
    Tenants,
    /// Too many reads are under way.
    Reads,
}

impl RefusalCode {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            RefusalCode::Burst => "burst_exceeded",
            RefusalCode::Rate => "rate_exceeded",
            RefusalCode::Queue => "queue_full",
            RefusalCode::Proposals => "proposals_full",
            RefusalCode::ProposalBytes => "proposal_bytes_full",
            RefusalCode::Delay => "queueing_delay",
            RefusalCode::Tenants => "tenants_full",
            RefusalCode::Reads => "reads_full",
        }
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why something was not let in. Nothing was charged for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("refused ({code}): {usage} is used of a limit of {limit}{}", again(*retry_after_ms))]
pub struct GateRefusal {
    /// Which rule.
    pub code: RefusalCode,
    /// Its limit: tasks, proposals, bytes, milliseconds of delay or tenants, by the code.
    pub limit: u64,
    /// What is used of it without what was refused, in the same unit; for [`RefusalCode::Burst`] what was asked for.
    pub usage: u64,
    /// When to try again, in milliseconds, at least 1; `None` when it never fits.
    pub retry_after_ms: Option<u64>,
}

fn again(retry_after_ms: Option<u64>) -> String {
    match retry_after_ms {
        Some(retry_after_ms) => format!("; try again in {retry_after_ms} ms"),
        None => "; it never fits, make it smaller".to_owned(),
    }
}

/// Something that was let in. It takes room until it is handed to [`Gate::settle`]; it is not to be copied.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "settle it when it was applied or dropped"]
pub struct Admission {
    class: Class,
    bytes: u64,
    work: Option<(TenantId, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct AtDoor {
    rate: Gcra,
    limit: Option<RateLimit>,
    /// Tasks that were let in and are not in the applied state yet.
    tasks_under_way: u64,
}

impl AtDoor {
    fn is_idle(&self, now_ms: u64) -> bool {
        self.tasks_under_way == 0 && self.limit.is_none_or(|limit| self.rate.is_drained(limit, now_ms))
    }
}

/// Decides what is let in. New work is asked, in this order, for its tenant's rate, its tenant's queue, room for proposals and
/// their bytes, and the queueing delay; the first that refuses answers, and a refusal charges nothing. Heartbeats, completions and cancels
/// are asked for room only, of which they have some of their own.
///
/// The rates are this node's; a new leader begins with full bursts. What has to hold across leaders is kept in the replicated state.
///
/// ```
/// use grey_core::{RateLimit, TenantId};
/// use grey_health::{Gate, GateOptions, RefusalCode, Work};
///
/// let mut gate = Gate::new(GateOptions::default())?;
/// let rate = Some(RateLimit { tasks_per_second: 10, burst: 10 });
/// let work = Work { tenant: TenantId(1), tasks: 8, bytes: 900, rate, queued_tasks: 0, queue_limit: 100 };
/// let admission = gate.admit(&work, 0).unwrap();
/// let refusal = gate.admit(&work, 0).unwrap_err();
/// assert_eq!((refusal.code, refusal.retry_after_ms), (RefusalCode::Rate, Some(600)));
/// gate.settle(admission);
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    options: GateOptions,
    capacity: Capacity,
    shedder: DelayShedder,
    tenants: BTreeMap<TenantId, AtDoor>,
    swept_ms: u64,
}

impl Gate {
    /// An open one.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: GateOptions) -> Result<Gate, HealthError> {
        options.validate()?;
        Ok(Gate::of(options))
    }

    fn of(options: GateOptions) -> Gate {
        let shedder = DelayShedder::of(options.shed.clone());
        let capacity = Capacity::new(&options.capacity);
        Gate { options, capacity, shedder, tenants: BTreeMap::new(), swept_ms: 0 }
    }

    /// Whether new work would be let in, as far as it can be told without its bytes: what is refused here need not be encoded.
    ///
    /// # Errors
    /// [`GateRefusal`] by the first rule that refuses.
    pub fn ask(&self, work: &Work, now_ms: u64) -> Result<(), GateRefusal> {
        let known = self.tenants.get(&work.tenant);
        if let Some(limit) = work.rate {
            charge(known.map_or(&Gcra::default(), |known| &known.rate), limit, work.tasks, now_ms)?;
        }
        self.ask_queue(work, known.map_or(0, |known| known.tasks_under_way))?;
        self.ask_room(Class::Other, 0)?;
        self.ask_delay(now_ms)
    }

    /// Asks for new work to be let in.
    ///
    /// # Errors
    /// [`GateRefusal`] by the first rule that refuses.
    pub fn admit(&mut self, work: &Work, now_ms: u64) -> Result<Admission, GateRefusal> {
        let known = self.tenants.get(&work.tenant).cloned().unwrap_or_default();
        let rate = match work.rate {
            Some(limit) => charge(&known.rate, limit, work.tasks, now_ms)?,
            None => Gcra::default(),
        };
        self.ask_queue(work, known.tasks_under_way)?;
        self.ask_room(Class::Other, work.bytes)?;
        self.ask_delay(now_ms)?;
        self.ask_tenants(work.tenant, now_ms)?;
        let tasks_under_way = known.tasks_under_way.saturating_add(work.tasks);
        self.tenants.insert(work.tenant, AtDoor { rate, limit: work.rate, tasks_under_way });
        self.capacity.take(Class::Other, work.bytes);
        Ok(Admission { class: Class::Other, bytes: work.bytes, work: Some((work.tenant, work.tasks)) })
    }

    /// Asks for room for a heartbeat of so many bytes.
    ///
    /// # Errors
    /// [`GateRefusal`] when its own and the shared room are full.
    pub fn admit_heartbeat(&mut self, bytes: u64) -> Result<Admission, GateRefusal> {
        self.admit_class(Class::Heartbeat, bytes)
    }

    /// Asks for room for a completion or a cancel of so many bytes.
    ///
    /// # Errors
    /// [`GateRefusal`] when its own and the shared room are full.
    pub fn admit_ending(&mut self, bytes: u64) -> Result<Admission, GateRefusal> {
        self.admit_class(Class::Ending, bytes)
    }

    fn admit_class(&mut self, class: Class, bytes: u64) -> Result<Admission, GateRefusal> {
        self.ask_room(class, bytes)?;
        self.capacity.take(class, bytes);
        Ok(Admission { class, bytes, work: None })
    }

    /// What was let in was applied, refused or dropped: its room is free, and its tasks are in the state or nowhere.
    pub fn settle(&mut self, admission: Admission) {
        self.capacity.give_back(admission.class, admission.bytes);
        if let Some((tenant, tasks)) = admission.work
            && let Some(known) = self.tenants.get_mut(&tenant)
        {
            known.tasks_under_way = known.tasks_under_way.saturating_sub(tasks);
        }
    }

    /// How full the door is, in thousandths: the fullest of the room that everything shares (its count, its bytes) and of the time
    /// after which a standing queue closes the door.
    pub fn fill_permille(&self, now_ms: u64) -> u64 {
        let (used, limit) = (self.capacity.shared_used(), self.capacity.shared);
        let room = fill_permille((used.count, limit.count), (used.bytes, limit.bytes));
        room.max(self.shedder.standing_permille(now_ms))
    }

    /// What was let in has waited for so long; see [`DelayShedder::observe`].
    pub fn observe_delay(&mut self, delay_ms: u64, now_ms: u64) {
        self.shedder.observe(delay_ms, now_ms);
    }

    fn ask_queue(&self, work: &Work, tasks_under_way: u64) -> Result<(), GateRefusal> {
        let usage = work.queued_tasks.saturating_add(tasks_under_way);
        if usage.saturating_add(work.tasks) <= work.queue_limit {
            return Ok(());
        }
        let retry_after_ms = (work.tasks <= work.queue_limit).then_some(self.options.retry_after_ms);
        Err(GateRefusal { code: RefusalCode::Queue, limit: work.queue_limit, usage, retry_after_ms })
    }

    fn ask_room(&self, class: Class, bytes: u64) -> Result<(), GateRefusal> {
        let Err(short) = self.capacity.fits(class, bytes) else { return Ok(()) };
        let (used, limit) = (self.capacity.shared_used(), self.capacity.shared);
        let (code, limit, usage) = match short {
            Short::Count => (RefusalCode::Proposals, limit.count, used.count),
            Short::Bytes => (RefusalCode::ProposalBytes, limit.bytes, used.bytes),
        };
        let fits_alone =
            short == Short::Count || Capacity::new(&self.options.capacity).fits(class, bytes).is_ok();
        let retry_after_ms = fits_alone.then_some(self.options.retry_after_ms);
        Err(GateRefusal { code, limit, usage, retry_after_ms })
    }

    fn ask_delay(&self, now_ms: u64) -> Result<(), GateRefusal> {
        let Some(retry_after_ms) = self.shedder.retry_after_ms(now_ms) else { return Ok(()) };
        Err(GateRefusal {
            code: RefusalCode::Delay,
            limit: self.shedder.target_ms(),
            usage: self.shedder.delay_ms(now_ms).unwrap_or(0),
            retry_after_ms: Some(retry_after_ms),
        })
    }

    /// Makes place for another tenant by forgetting those of whom nothing is left; at most once a millisecond, since it looks at all.
    fn ask_tenants(&mut self, tenant: TenantId, now_ms: u64) -> Result<(), GateRefusal> {
        let full = |gate: &Gate| gate.tenants.len() >= gate.options.tenants;
        if self.tenants.contains_key(&tenant) || !full(self) {
            return Ok(());
        }
        if now_ms > self.swept_ms {
            self.swept_ms = now_ms;
            self.tenants.retain(|_, known| !known.is_idle(now_ms));
        }
        if !full(self) {
            return Ok(());
        }
        Err(GateRefusal {
            code: RefusalCode::Tenants,
            limit: self.options.tenants as u64,
            usage: self.tenants.len() as u64,
            retry_after_ms: Some(self.options.retry_after_ms),
        })
    }
}

impl Default for Gate {
    /// With the usual options.
    fn default() -> Gate {
        Gate::of(GateOptions::default())
    }
}

fn charge(rate: &Gcra, limit: RateLimit, tasks: u64, now_ms: u64) -> Result<Gcra, GateRefusal> {
    rate.charged(limit, tasks, now_ms).map_err(|refusal| match refusal {
        RateRefusal::NeverFits { burst } => {
            GateRefusal { code: RefusalCode::Burst, limit: burst, usage: tasks, retry_after_ms: None }
        }
        RateRefusal::TooSoon { retry_after_ms } => GateRefusal {
            code: RefusalCode::Rate,
            limit: limit.burst,
            usage: rate.used(limit, now_ms),
            retry_after_ms: Some(retry_after_ms),
        },
    })
}
