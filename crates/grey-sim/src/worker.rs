//! One worker: the real agent with its real outbox on a simulated disk; its executor is virtual.

use std::sync::Arc;

use grey_agent::{Agent, AgentOptions, KeepOptions, Output, Start, StopReason};
use grey_core::{
    AttemptId, AttemptResult, Content, FromWorker, Outcome, Resources, SandboxLevel, Signer, ToWorker, Usage,
    UsageSource, WorkerMessage,
};
use grey_proof::{Digest, SigningKey, VerifyingKey};
use grey_store::Journal;

use crate::disk::SimulatedDisk;
use crate::shim::{Holding, Shim};

/// How long after a lost answer a worker announces itself again, and how long it sleeps at most, in microseconds.
const AGAIN_US: u64 = 100_000;

/// How long a broken executor takes to fail, in microseconds.
const BROKEN_US: u64 = 2_000;

/// Who a worker is, over all its lives.
pub struct Identity {
    pub number: u8,
    pub seed: [u8; 32],
    /// The public half of its key.
    pub verifying_key: VerifyingKey,
    pub node: Digest,
    pub cluster: Digest,
    pub capacity: Resources,
    pub parallel: u32,
    pub incarnation: u64,
    /// How it keeps its lease.
    pub keep: KeepOptions,
    /// Until then its executor fails whatever it is given, through no fault of the tasks.
    pub broken_until_us: u64,
    /// What holds what an earlier life of it runs, while it is down.
    pub shim: Option<Shim>,
    #[cfg(feature = "mutants")]
    pub mutant: Option<grey_core::Mutant>,
}

impl Identity {
    /// The worker of a number.
    pub fn new(number: u8, cluster: Digest, capacity: Resources, parallel: u32) -> Identity {
        let mut seed = [0x57; 32];
        seed[0] = number;
        let verifying_key = SigningKey::from_seed(seed).verifying_key();
        Identity {
            number,
            seed,
            verifying_key,
            node: verifying_key.id(),
            cluster,
            capacity,
            parallel,
            incarnation: 0,
            keep: KeepOptions::default(),
            broken_until_us: 0,
            shim: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Its key, which it keeps over all its lives.
    pub fn key(&self) -> SigningKey {
        SigningKey::from_seed(self.seed)
    }
}

/// What a worker asks of the world.
pub enum Ordered {
    /// Send to a server, by its number.
    Send { server: u64, message: FromWorker },
    /// The journal has something to write.
    JournalWork,
    /// Look again at this local time, in microseconds.
    WakeAt(u64),
    /// An attempt was given to the executor.
    Started { attempt: AttemptId, needs: Resources },
    /// An attempt is gone.
    Stopped { attempt: AttemptId, outcome: Option<Outcome> },
}

/// A worker that is up.
pub struct Worker {
    agent: Agent,
    journal: Journal,
    to_write: Option<Vec<(u64, Option<Vec<u8>>)>>,
    shim: Shim,
    /// How many attempts of an earlier life it has taken over.
    pub adopted: usize,
    capacity: Resources,
    servers: u64,
    leader: u64,
    /// Who leads, as somebody said who does not.
    hint: Option<u64>,
    now_us: u64,
    announced_us: u64,
    wake_us: u64,
    wall_ms: u64,
    pub broken_until_us: u64,
    pub ordered: Vec<Ordered>,
    #[cfg(feature = "mutants")]
    mutant: Option<grey_core::Mutant>,
}

/// How long an attempt runs and what it comes to, as its command says: the executor of a simulation.
fn behaviour(start: &Start) -> (u64, Outcome) {
    let number =
        |at: usize| start.spec.command.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let (duration_us, failing) = (number(1), number(2));
    // Neighbours do not take equally long.
    let spread = (start.attempt.task.0 ^ u64::from(start.attempt.epoch.0) << 32)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        >> 40;
    let outcome =
        if u64::from(start.attempt.epoch.0) <= failing { Outcome::Exited(1) } else { Outcome::Exited(0) };
    (duration_us + spread % (duration_us / 2 + 1), outcome)
}

fn result(outcome: Outcome, attempt: AttemptId) -> AttemptResult {
    AttemptResult {
        outcome,
        sandbox: SandboxLevel::PidNamespace,
        usage_source: UsageSource::ResourceUsage,
        stdout: Content::Inline(format!("{}\n", attempt.epoch).into_bytes()),
        stderr: Content::EMPTY,
        files: Vec::new(),
        message: String::new(),
    }
}

impl Worker {
    /// Begins a life with what the outbox has, and what a shim holds of an earlier one.
    pub fn start(
        disk: &SimulatedDisk,
        identity: &Identity,
        mut shim: Shim,
        servers: u64,
        wall_ms: u64,
    ) -> Result<Worker, String> {
        let journal = Journal::open(Arc::new(disk.clone())).map_err(|error| error.to_string())?;
        let options = AgentOptions {
            signer: Signer {
                cluster: identity.cluster,
                node: identity.node,
                certificate: Digest::of(&identity.node.0),
            },
            name: format!("worker-{}", identity.number),
            incarnation: identity.incarnation,
            capacity: identity.capacity,
            sandbox: SandboxLevel::PidNamespace,
            labels: vec![("parity".to_owned(), (identity.number % 2).to_string())],
            devices: Vec::new(),
            parallel: identity.parallel,
            lease: Some(identity.keep.clone()),
            salt_seed: [identity.number; 32],
            #[cfg(feature = "mutants")]
            mutant: identity.mutant,
        };
        let key = identity.key();
        let found = journal.entries().iter().map(|(key, value)| (*key, value.as_slice()));
        let agent = Agent::new(options, key, found, &shim.adoptable(0)).map_err(|error| error.to_string())?;
        let mut worker = Worker {
            agent,
            journal,
            to_write: None,
            shim,
            adopted: 0,
            capacity: identity.capacity,
            servers,
            leader: 1 + u64::from(identity.number) % servers,
            hint: None,
            now_us: 0,
            announced_us: 0,
            wake_us: u64::MAX,
            wall_ms,
            broken_until_us: identity.broken_until_us,
            ordered: Vec::new(),
            #[cfg(feature = "mutants")]
            mutant: identity.mutant,
        };
        // Before anything else happens to what it takes over.
        let outputs: Vec<Output> = worker.agent.outputs().collect();
        outputs.into_iter().for_each(|output| worker.carry_out(output));
        Ok(worker)
    }

    /// What it has to give.
    pub fn capacity(&self) -> Resources {
        self.capacity
    }

    /// Moves its monotonic clock, which counts from its start, and does what is due.
    pub fn elapse_to(&mut self, now_us: u64) {
        if now_us > self.now_us {
            self.agent.elapse(now_us - self.now_us);
            self.now_us = now_us;
        }
        if self.wake_us <= now_us {
            self.wake_us = u64::MAX;
        }
        for (attempt, outcome) in self.shim.elapse_to(now_us) {
            self.gone(attempt, outcome);
        }
    }

    /// Its process ends; what holds what it ran, where that goes on.
    pub fn leave(&mut self, local_us: u64) -> Option<Shim> {
        let mut shim = std::mem::take(&mut self.shim);
        shim.outlives(local_us).then_some(shim)
    }

    /// How many attempts run.
    pub fn running(&self) -> usize {
        self.shim.running()
    }

    /// A server said something.
    pub fn receive(&mut self, server: u64, told: ToWorker) {
        if let WorkerMessage::Unavailable { leader } = told.message
            && server == self.leader
            && leader != 0
        {
            self.hint = Some(leader);
        }
        let wall_ms = self.wall_ms + self.now_us / 1_000;
        self.agent.receive(told, wall_ms);
    }

    /// Looks for the leader again, where contact with it was lost.
    fn look_for_leader(&mut self) {
        if !self.agent.is_down() || self.now_us.saturating_sub(self.announced_us) < AGAIN_US {
            return;
        }
        self.announced_us = self.now_us;
        self.leader = self.hint.take().unwrap_or(self.leader % self.servers + 1);
        self.agent.announce();
    }

    fn usage(&self, attempt: &AttemptId) -> Usage {
        let now_us = self.shim.clock_us(self.now_us);
        let times = self.shim.get(attempt).map(|one| (one.begun_us, one.ended.map_or(now_us, |end| end.0)));
        let (begun_us, ended_us) = times.unwrap_or((now_us, now_us));
        let duration_us = ended_us.saturating_sub(begun_us);
        Usage {
            started_at_ms: (self.wall_ms + self.now_us / 1_000)
                .saturating_sub(now_us.saturating_sub(begun_us) / 1_000),
            duration_us,
            cpu_time_us: duration_us / 2,
            peak_memory_bytes: 4_096,
        }
    }

    /// A process has ended, just now.
    fn gone(&mut self, attempt: AttemptId, outcome: Outcome) {
        self.ordered.push(Ordered::Stopped { attempt, outcome: Some(outcome) });
        self.agent.finished(attempt, result(outcome, attempt), self.usage(&attempt));
    }

    /// The journal's write is through.
    pub fn journal_done(&mut self) -> Result<(), String> {
        if let Some(changes) = self.to_write.take() {
            self.journal.change(changes).map_err(|error| error.to_string())?;
            self.agent.persisted();
        }
        Ok(())
    }

    /// Starts the write that was under way when the power went.
    pub fn write_in_vain(&mut self) {
        if let Some(changes) = self.to_write.take() {
            drop(self.journal.change(changes));
        }
    }

    /// Does what the agent asks for, and says when to look again.
    pub fn settle(&mut self) -> Result<(), String> {
        loop {
            self.look_for_leader();
            self.agent.settle().map_err(|error| error.to_string())?;
            self.tell_lease();
            let outputs: Vec<Output> = self.agent.outputs().collect();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.carry_out(output);
            }
        }
        let agent = self.agent.next_wake_us().map(|wait_us| self.now_us + wait_us.max(1_000));
        let ends = self.shim.next_end_us();
        let again = self.agent.is_down().then(|| self.announced_us + AGAIN_US);
        let wake_us =
            agent.into_iter().chain(ends).chain(again).min().unwrap_or(u64::MAX).max(self.now_us + 1);
        if wake_us < self.wake_us {
            self.wake_us = wake_us;
            self.ordered.push(Ordered::WakeAt(wake_us));
        }
        Ok(())
    }

    fn tell_lease(&mut self) {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(grey_core::Mutant::OutliveLease) {
            return;
        }
        if let Some((end_us, _)) = self.agent.lease_end_and_now_us() {
            self.shim.hold_until(end_us);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(message) => self.ordered.push(Ordered::Send { server: self.leader, message }),
            Output::Execute(start) => {
                let is_broken = self.now_us < self.broken_until_us;
                let (duration_us, outcome) =
                    if is_broken { (BROKEN_US, Outcome::Infrastructure) } else { behaviour(&start) };
                let (attempt, resources) = (start.attempt, start.spec.resources);
                let now_us = self.shim.clock_us(self.now_us);
                let holding = Holding::new(now_us, duration_us, outcome, start.timeout_ms, start.record);
                self.shim.begin(attempt, holding);
                self.ordered.push(Ordered::Started { attempt, needs: resources });
                self.agent.started(attempt);
            }
            Output::Adopt(start) => {
                let attempt = start.attempt;
                self.adopted += 1;
                self.agent.started(attempt);
                if let Some((_, outcome)) = self.shim.get(&attempt).and_then(|one| one.ended) {
                    self.agent.finished(attempt, result(outcome, attempt), self.usage(&attempt));
                }
            }
            Output::Release(attempts) => {
                for attempt in attempts {
                    if self.shim.release(&attempt) {
                        self.ordered.push(Ordered::Stopped { attempt, outcome: None });
                    }
                }
            }
            Output::Stop(attempt, reason) => {
                if !self.shim.runs(&attempt) {
                    return;
                }
                let outcome = match reason {
                    StopReason::Cancelled => Outcome::Cancelled,
                    StopReason::Infrastructure => Outcome::Infrastructure,
                };
                self.shim.stop(&attempt, self.now_us, outcome);
                self.gone(attempt, outcome);
            }
            Output::ChangeTimeout(attempt, timeout_ms) => self.shim.change_timeout(&attempt, timeout_ms),
            Output::Persist(changes) => {
                self.to_write = Some(changes);
                self.ordered.push(Ordered::JournalWork);
            }
        }
    }
}
