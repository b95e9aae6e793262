//! The leader's watch over the workers: it grants their leases, notices who falls silent, and says what is to be proposed.

use std::collections::BTreeSet;

use grey_core::{Command, LoseWorker, Presence, State, SuspectWorker, WorkerId};
use grey_health::{Grant, HealthError, LeaderLeases, LeaseOptions, PhiDetector, PhiOptions};

/// How often a leader asks a quorum whether it still leads, in milliseconds: without that it grants nothing.
const CONFIRM_EVERY_MS: u64 = 250;

/// How workers are watched.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Leases; workers go by the same.
    pub lease: LeaseOptions,
    /// When a silence is suspect.
    pub phi: PhiOptions,
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
        })
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
                continue;
            }
            let (worker, incarnation, session) = (*worker, row.incarnation, row.session);
            let suspected = self.phi.is_suspect(&worker);
            let command = if self.gone.contains(&worker) {
                Command::LoseWorker(LoseWorker { worker, incarnation, session })
            } else if suspected != row.is_suspect() {
                Command::SuspectWorker(SuspectWorker { worker, incarnation, session, suspected })
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
