//! One worker: the real agent with its real outbox on a simulated disk; its executor is virtual.

use std::collections::BTreeMap;
use std::sync::Arc;

use grey_agent::{Agent, AgentOptions, KeepOptions, Output, Start, StopReason};
use grey_core::{
    AttemptId, AttemptResult, Content, FromWorker, Outcome, Resources, SandboxLevel, Signer, ToWorker, Usage,
    UsageSource, WorkerMessage,
};
use grey_proof::{Digest, SigningKey, VerifyingKey};
use grey_store::Journal;

use crate::disk::SimulatedDisk;

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
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// Its key, which it keeps over all its lives.
    pub fn key(&self) -> SigningKey {
        SigningKey::from_seed(self.seed)
    }
}

struct Running {
    begun_us: u64,
    ends_us: u64,
    outcome: Outcome,
    timeout_ms: u64,
}

impl Running {
    fn end_us(&self) -> u64 {
        self.ends_us.min(self.begun_us.saturating_add(self.timeout_ms.saturating_mul(1_000)))
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
    running: BTreeMap<AttemptId, Running>,
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
    /// Begins a life with what the outbox has.
    pub fn start(
        disk: &SimulatedDisk,
        identity: &Identity,
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
        let agent = Agent::new(options, key, found, &[]).map_err(|error| error.to_string())?;
        Ok(Worker {
            agent,
            journal,
            to_write: None,
            running: BTreeMap::new(),
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
        })
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
        let done: Vec<AttemptId> =
            self.running.iter().filter(|(_, one)| one.end_us() <= now_us).map(|(id, _)| *id).collect();
        for attempt in done {
            let Some(one) = self.running.remove(&attempt) else { continue };
            let outcome = if one.ends_us <= one.end_us() { one.outcome } else { Outcome::TimedOut };
            self.gone(attempt, &one, outcome);
        }
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

    fn usage(&self, one: Option<&Running>) -> Usage {
        let duration_us = one.map_or(0, |one| self.now_us.saturating_sub(one.begun_us));
        Usage {
            started_at_ms: self.wall_ms + self.now_us.saturating_sub(duration_us) / 1_000,
            duration_us,
            cpu_time_us: duration_us / 2,
            peak_memory_bytes: 4_096,
        }
    }

    fn gone(&mut self, attempt: AttemptId, one: &Running, outcome: Outcome) {
        let usage = self.usage(Some(one));
        self.ordered.push(Ordered::Stopped { attempt, outcome: Some(outcome) });
        self.agent.finished(attempt, result(outcome, attempt), usage);
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
            let outputs: Vec<Output> = self.agent.outputs().collect();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.carry_out(output);
            }
        }
        let agent = self.agent.next_wake_us().map(|wait_us| self.now_us + wait_us.max(1_000));
        let ends = self.running.values().map(Running::end_us).min();
        let again = self.agent.is_down().then(|| self.announced_us + AGAIN_US);
        let wake_us =
            agent.into_iter().chain(ends).chain(again).min().unwrap_or(u64::MAX).max(self.now_us + 1);
        if wake_us < self.wake_us {
            self.wake_us = wake_us;
            self.ordered.push(Ordered::WakeAt(wake_us));
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(message) => self.ordered.push(Ordered::Send { server: self.leader, message }),
            Output::Execute(start) => {
                let is_broken = self.now_us < self.broken_until_us;
                let (duration_us, outcome) =
                    if is_broken { (BROKEN_US, Outcome::Infrastructure) } else { behaviour(&start) };
                let (attempt, resources) = (start.attempt, start.spec.resources);
                let running = Running {
                    begun_us: self.now_us,
                    ends_us: self.now_us + duration_us,
                    outcome,
                    timeout_ms: start.timeout_ms,
                };
                self.running.insert(attempt, running);
                self.ordered.push(Ordered::Started { attempt, needs: resources });
                self.agent.started(attempt);
            }
            Output::Stop(attempt, reason) => {
                let Some(one) = self.running.remove(&attempt) else { return };
                let outcome = match reason {
                    StopReason::Cancelled => Outcome::Cancelled,
                    StopReason::Infrastructure => Outcome::Infrastructure,
                };
                self.gone(attempt, &one, outcome);
            }
            Output::ChangeTimeout(attempt, timeout_ms) => {
                if let Some(one) = self.running.get_mut(&attempt) {
                    one.timeout_ms = timeout_ms;
                }
            }
            // No worker here outlives another.
            Output::Adopt(_) | Output::Release(_) => {}
            Output::Persist(changes) => {
                self.to_write = Some(changes);
                self.ordered.push(Ordered::JournalWork);
            }
        }
    }
}
