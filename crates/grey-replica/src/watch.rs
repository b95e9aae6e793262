//! The leader's watch over the workers: it grants their leases, notices who falls silent, and says what is to be proposed.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{
    Command, LoseWorker, Outcome, Presence, QuarantineWorker, Report, Standing, State, SuspectWorker,
    WorkerId,
};
use grey_health::{
    BreakerOptions, BreakerState, CallOutcome, Chance, CircuitBreaker, Grant, HealthError, LeaderLeases,
    LeaseOptions, PhiDetector, PhiOptions,
};

/// How often a leader asks a quorum whether it still leads, in milliseconds: without that it grants nothing.
const CONFIRM_EVERY_MS: u64 = 250;

/// How workers are watched.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Leases; workers go by the same.
    pub lease: LeaseOptions,
    /// When a silence is suspect.
    pub phi: PhiOptions,
    /// When a worker that fails what it is given goes into quarantine. It is open for less than a quarantine lasts, so that what comes of
    /// the probation counts.
    pub breaker: BreakerOptions,
}

impl Default for WatchOptions {
    fn default() -> WatchOptions {
        let breaker = BreakerOptions { open_ms: 15_000, jitter_ms: 0, ..BreakerOptions::default() };
        WatchOptions { lease: LeaseOptions::default(), phi: PhiOptions::default(), breaker }
    }
}

/// How the attempts of a report ended, as far as that says something about the worker.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Endings {
    /// The worker could not run them.
    failed: usize,
    /// It ran them, whatever they came to.
    ran: usize,
}

impl Endings {
    pub(crate) fn of(report: &Report) -> Endings {
        let mut endings = Endings::default();
        for run in &report.finished {
            let attempts = run.tasks.count as usize;
            match run.result.outcome {
                Outcome::Infrastructure => endings.failed += attempts,
                // These may never have run.
                Outcome::Cancelled | Outcome::InputRefused => {}
                _ => endings.ran += attempts,
            }
        }
        endings
    }
}

/// What a leader knows of its workers. It begins anew with every leadership.
pub(crate) struct Watch {
    leases: LeaderLeases<WorkerId>,
    phi: PhiDetector<WorkerId>,
    /// Whose lease has ended, until the state says so.
    gone: BTreeSet<WorkerId>,
    /// About whom something is proposed and not yet applied.
    proposed: BTreeSet<WorkerId>,
    asked_ms: u64,
    breaker: BreakerOptions,
    /// Of those with whom something failed.
    breakers: BTreeMap<WorkerId, CircuitBreaker>,
    /// For which opening, by its end, a quarantine was proposed.
    opened: BTreeMap<WorkerId, u64>,
    #[cfg(feature = "mutants")]
    ticked_ms: u64,
}

impl Watch {
    pub(crate) fn new(options: &WatchOptions, state: &State, now_ms: u64) -> Result<Watch, HealthError> {
        let present = state.workers().iter().filter(|(_, row)| row.presence != Presence::Lost);
        let workers: Vec<WorkerId> = present.map(|(worker, _)| *worker).collect();
        let mut phi = PhiDetector::new(options.phi.clone(), now_ms)?;
        for worker in &workers {
            phi.register(*worker, now_ms)?;
        }
        phi.failed_over(now_ms);
        Ok(Watch {
            leases: LeaderLeases::new(options.lease.clone(), workers, now_ms)?,
            phi,
            gone: BTreeSet::new(),
            proposed: BTreeSet::new(),
            asked_ms: now_ms,
            breaker: options.breaker.clone(),
            breakers: BTreeMap::new(),
            opened: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            ticked_ms: now_ms,
        })
    }

    /// A worker's attempts have ended.
    pub(crate) fn ended(
        &mut self,
        worker: WorkerId,
        endings: Endings,
        now_ms: u64,
    ) -> Result<(), HealthError> {
        if endings.failed == 0 && !self.breakers.contains_key(&worker) {
            return Ok(());
        }
        let breaker = match self.breakers.entry(worker) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(CircuitBreaker::new(self.breaker.clone(), Chance::seeded(worker.0.into()))?)
            }
        };
        // More than its window of either would push out the others.
        let most = self.breaker.window;
        let outcomes = core::iter::repeat_n(CallOutcome::Succeeded, endings.ran.min(most))
            .chain(core::iter::repeat_n(CallOutcome::Failed, endings.failed.min(most)));
        for outcome in outcomes {
            // What was begun before it opened says nothing new.
            let Ok(call) = breaker.admit(now_ms) else { break };
            breaker.record(call, outcome, now_ms);
        }
        Ok(())
    }

    /// Whether its breaker has opened and no quarantine was proposed for that.
    fn has_opened(&mut self, worker: WorkerId, now_ms: u64) -> bool {
        let Some(breaker) = self.breakers.get_mut(&worker) else { return false };
        let BreakerState::Open { until_ms } = breaker.state(now_ms) else { return false };
        self.opened.get(&worker) != Some(&until_ms) && {
            self.opened.insert(worker, until_ms);
            true
        }
    }

    /// Takes everybody for gone when this server was late.
    #[cfg(feature = "mutants")]
    pub(crate) fn suspect_while_late(&mut self, state: &State, now_ms: u64) {
        if now_ms.saturating_sub(self.ticked_ms) > 100 {
            self.gone.extend(state.workers().iter().map(|(worker, _)| *worker));
        }
        self.ticked_ms = now_ms;
    }

    /// What was proposed about a worker never came to be: it is proposed again.
    pub(crate) fn lost(&mut self, worker: WorkerId) {
        self.proposed.remove(&worker);
        self.opened.remove(&worker);
    }

    /// A worker's announcement was applied.
    pub(crate) fn registered(&mut self, worker: WorkerId, now_ms: u64) -> Result<(), HealthError> {
        self.gone.remove(&worker);
        self.leases.register(worker, now_ms)?;
        self.phi.register(worker, now_ms)
    }

    /// A heartbeat came; whether it is to be answered.
    pub(crate) fn heard(&mut self, worker: WorkerId, now_ms: u64) -> bool {
        self.phi.heartbeat(&worker, now_ms);
        self.leases.received(&worker, now_ms) == Grant::Given
    }

    /// Whether a quorum is to be asked now.
    pub(crate) fn wants_confirmation(&mut self, now_ms: u64) -> bool {
        let due = now_ms.saturating_sub(self.asked_ms) >= CONFIRM_EVERY_MS;
        if due {
            self.asked_ms = now_ms;
        }
        due
    }

    /// A quorum has confirmed that this server led when it was asked.
    pub(crate) fn confirmed(&mut self, asked_ms: u64) {
        self.leases.quorum_confirmed(asked_ms);
    }

    /// What was proposed about a worker has an answer, or never will.
    pub(crate) fn settled(&mut self, worker: WorkerId) {
        self.proposed.remove(&worker);
    }

    /// What is to be proposed now. It follows from what is known and not from when it became known, so that a proposal
    /// that was lost is made again.
    pub(crate) fn tick(&mut self, state: &State, now_ms: u64) -> Vec<(WorkerId, Command)> {
        self.gone.extend(self.leases.tick(now_ms));
        self.phi.tick(now_ms);
        let mut commands = Vec::new();
        for (worker, row) in state.workers() {
            if row.presence == Presence::Lost {
                self.gone.remove(worker);
                self.breakers.remove(worker);
                continue;
            }
            let (worker, incarnation, session) = (*worker, row.incarnation, row.session);
            let suspected = self.phi.is_suspect(&worker);
            let command = if self.gone.contains(&worker) {
                Command::LoseWorker(LoseWorker { worker, incarnation, session })
            } else if suspected != row.is_suspect() {
                Command::SuspectWorker(SuspectWorker { worker, incarnation, session, suspected })
            } else if !self.proposed.contains(&worker)
                && !matches!(row.quarantine.standing, Standing::Quarantined { .. })
                && self.has_opened(worker, now_ms)
            {
                Command::QuarantineWorker(QuarantineWorker { worker, incarnation, session })
            } else {
                continue;
            };
            if self.proposed.insert(worker) {
                commands.push((worker, command));
            }
        }
        commands
    }
}
