//! What waits to be sent to other servers and to workers: bounded, with a window that grows after each connection, and a breaker for servers.

use std::collections::BTreeMap;

use grey_core::{ToWorker, WorkerMessage, limits};
use grey_health::{
    Amount, Backoff, BackoffOptions, BreakerOptions, BreakerState, Call, CallOutcome, CallRefused,
    CapacityOptions, Chance, CircuitBreaker, Class, HealthError, Level, OutboxOptions, PeerOutbox, Sending,
};
use grey_proof::Digest;

/// How long a message to another server waits or is being written at most, in milliseconds: the engine has repeated it by then.
const SERVER_DEADLINE_MS: u64 = 2_000;
/// How long a message to a worker does. Its lease ends sooner.
const WORKER_DEADLINE_MS: u64 = 10_000;

/// Somebody at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Another server, by its number.
    Server(u64),
    /// A worker, by its node.
    Worker(Digest),
}

/// What is to be written to a peer now.
#[derive(Debug, PartialEq, Eq)]
pub struct Parcel {
    /// Its number, for [`sent`](crate::Server::sent) and [`not_sent`](crate::Server::not_sent).
    pub number: u64,
    /// Until when it must have been written, by the server's own clock in milliseconds.
    pub deadline_ms: u64,
    /// The message.
    pub message: PeerMessage,
}

/// A message to a peer.
#[derive(Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// The engine's bytes.
    Server(Vec<u8>),
    /// To a worker.
    Worker(ToWorker),
}

/// What a server's links go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkOptions {
    /// The outbox of each other server. A message is as large as an entry may be, or larger where a checkpoint travels.
    pub servers: OutboxOptions,
    /// The outbox of each worker. It holds what a worker may be assigned at once.
    pub workers: OutboxOptions,
    /// When a server to which sending fails is left alone.
    pub breaker: BreakerOptions,
    /// The waits between attempts to connect to a server.
    pub backoff: BackoffOptions,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for LinkOptions {
    fn default() -> LinkOptions {
        const MIB: u64 = 1024 * 1024;
        let slots = u64::from(limits::WORKER_SLOTS);
        LinkOptions {
            servers: OutboxOptions::default(),
            workers: OutboxOptions {
                capacity: CapacityOptions {
                    heartbeats: Amount { count: 16, bytes: MIB },
                    endings: Amount { count: slots, bytes: 16 * MIB },
                    // Beyond the slots, so that what one worker may hold never fills it to the level at which it is blocked.
                    shared: Amount { count: 2 * slots, bytes: 64 * MIB },
                },
                in_order: true,
                ..OutboxOptions::default()
            },
            // A quorum may depend on the one that comes back, so it is not left alone for long.
            breaker: BreakerOptions {
                open_ms: 1_000,
                jitter_ms: 250,
                probe_timeout_ms: SERVER_DEADLINE_MS,
                ..BreakerOptions::default()
            },
            backoff: BackoffOptions { first_ms: 50, longest_ms: 2_000 },
            seed: 1,
        }
    }
}

// The largest entry fits a message, with what the engine adds.
const _: () = assert!(limits::ENTRY_BYTES < 7 * 1024 * 1024);

/// What waits for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waiting {
    Server(Vec<u8>),
    /// Numbered only when it is sent, since heartbeats overtake.
    Worker {
        incarnation: u64,
        session: u64,
        message: WorkerMessage,
    },
}

/// A server's breaker, and what it was asked for.
struct Guard {
    breaker: CircuitBreaker,
    calls: BTreeMap<u64, Call>,
    /// A connection that is being made.
    dialling: Option<Call>,
    backoff: Backoff,
    not_before_ms: u64,
}

impl Guard {
    fn settle(&mut self, number: u64, outcome: CallOutcome, now_ms: u64) {
        if let Some(call) = self.calls.remove(&number) {
            self.breaker.record(call, outcome, now_ms);
        }
    }
}

struct Link {
    outbox: PeerOutbox<Waiting>,
    /// Workers connect by themselves, so only servers have one.
    guard: Option<Guard>,
}

/// All links of a server.
pub(crate) struct Links {
    options: LinkOptions,
    chance: Chance,
    links: BTreeMap<Peer, Link>,
}

/// How much room a message to a worker takes, in bytes; about what it has when it travels.
fn size_bytes(message: &WorkerMessage) -> u64 {
    const SMALL: u64 = 64;
    let lists = |count: usize| SMALL + 16 * count as u64;
    match message {
        WorkerMessage::Assign(assignment) => {
            let spec = &assignment.spec;
            let words: usize = spec.command.iter().map(String::len).sum();
            let environment: usize =
                spec.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
            SMALL * (4 + spec.inputs.len() as u64) + (words + environment) as u64
        }
        WorkerMessage::Registered { unknown, .. } => lists(unknown.len()),
        WorkerMessage::ChangeTimeout(attempts, _) | WorkerMessage::Revoke(attempts) => lists(attempts.len()),
        WorkerMessage::Stop(_)
        | WorkerMessage::Reported(..)
        | WorkerMessage::Heard(_)
        | WorkerMessage::Unavailable { .. } => SMALL,
    }
}

fn class(message: &WorkerMessage) -> Class {
    match message {
        WorkerMessage::Heard(_) | WorkerMessage::Unavailable { .. } => Class::Heartbeat,
        WorkerMessage::Stop(_) | WorkerMessage::Reported(..) | WorkerMessage::Registered { .. } => {
            Class::Ending
        }
        WorkerMessage::Assign(_) | WorkerMessage::ChangeTimeout(..) | WorkerMessage::Revoke(_) => {
            Class::Other
        }
    }
}

impl Links {
    pub(crate) fn new(options: LinkOptions) -> Result<Links, HealthError> {
        options.servers.validate()?;
        options.workers.validate()?;
        options.breaker.validate()?;
        options.backoff.validate()?;
        let chance = Chance::seeded(options.seed);
        Ok(Links { options, chance, links: BTreeMap::new() })
    }

    fn link(&mut self, peer: Peer) -> Result<&mut Link, HealthError> {
        let full = self.links.len() >= grey_health::limits::PEERS;
        match self.links.entry(peer) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(_) if full => {
                Err(HealthError::Full { part: "links", limit: grey_health::limits::PEERS })
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                let (options, guard) = match peer {
                    Peer::Server(_) => {
                        let chance = Chance::seeded(self.chance.next());
                        let guard = Guard {
                            breaker: CircuitBreaker::new(self.options.breaker.clone(), chance)?,
                            calls: BTreeMap::new(),
                            dialling: None,
                            backoff: Backoff::new(self.options.backoff.clone())?,
                            not_before_ms: 0,
                        };
                        (&self.options.servers, Some(guard))
                    }
                    Peer::Worker(_) => (&self.options.workers, None),
                };
                Ok(entry.insert(Link { outbox: PeerOutbox::new(options.clone())?, guard }))
            }
        }
    }

    /// Whether a connection to a server may be tried now. What comes of it is told with `connected` or `disconnected`.
    pub(crate) fn may_connect(&mut self, peer: Peer, now_ms: u64) -> Result<(), CallRefused> {
        let refused = |retry_after_ms: u64| Err(CallRefused { retry_after_ms: retry_after_ms.max(1) });
        let Ok(link) = self.link(peer) else { return refused(1_000) };
        let Some(guard) = &mut link.guard else { return Ok(()) };
        if now_ms < guard.not_before_ms {
            return refused(guard.not_before_ms - now_ms);
        }
        let call = guard.breaker.admit(now_ms)?;
        guard.dialling = Some(call);
        Ok(())
    }

    pub(crate) fn connected(&mut self, peer: Peer, now_ms: u64) -> Result<(), HealthError> {
        let link = self.link(peer)?;
        let lost = link.outbox.connected();
        link.outbox.clear();
        if let Some(guard) = &mut link.guard {
            lost.into_iter().for_each(|number| guard.settle(number, CallOutcome::Failed, now_ms));
            guard.backoff.reset();
            guard.not_before_ms = now_ms;
            if let Some(call) = guard.dialling.take() {
                guard.breaker.record(call, CallOutcome::Succeeded, now_ms);
            }
        }
        Ok(())
    }

    /// The connection was lost, or could not be made. What waits is dropped: the engine and the workers' sessions make good what was
    /// in it, and a peer that comes back is not met by what is long out of date.
    pub(crate) fn disconnected(&mut self, peer: Peer, now_ms: u64) {
        let chance = &mut self.chance;
        let Some(link) = self.links.get_mut(&peer) else { return };
        let lost = link.outbox.disconnected();
        link.outbox.clear();
        match &mut link.guard {
            // A worker that comes back announces itself; until then nothing is kept of it.
            None => drop(self.links.remove(&peer)),
            Some(guard) => {
                lost.into_iter().for_each(|number| guard.settle(number, CallOutcome::Failed, now_ms));
                guard.not_before_ms = now_ms.saturating_add(guard.backoff.wait_ms(None, chance));
                if let Some(call) = guard.dialling.take() {
                    guard.breaker.record(call, CallOutcome::Failed, now_ms);
                }
            }
        }
    }

    /// Takes in a message of the engine; whether it was taken.
    pub(crate) fn push_server(&mut self, server: u64, class: Class, bytes: Vec<u8>, now_ms: u64) -> bool {
        let Some(link) = self.links.get_mut(&Peer::Server(server)) else { return false };
        if !link.outbox.is_connected() {
            return false;
        }
        let (size, deadline_ms) = (bytes.len() as u64, now_ms.saturating_add(SERVER_DEADLINE_MS));
        let (outbox, message) = (&mut link.outbox, Waiting::Server(bytes));
        match class {
            // A heartbeat, a vote, an acknowledgement: each says all that those before it said.
            Class::Heartbeat | Class::Ending => outbox.push_latest(class, size, deadline_ms, message, now_ms),
            // Entries follow one another: without the oldest the rest is worth nothing, so it is the newest that is not taken.
            Class::Other => outbox.push(class, size, deadline_ms, message, now_ms),
        }
        .is_ok()
    }

    /// Takes in a message to a worker; whether it was taken. If not, its session must end, since it waits for every number.
    pub(crate) fn push_worker(
        &mut self,
        node: Digest,
        incarnation: u64,
        session: u64,
        message: WorkerMessage,
        now_ms: u64,
    ) -> bool {
        let Some(link) = self.links.get_mut(&Peer::Worker(node)) else { return false };
        if !link.outbox.is_connected() {
            return false;
        }
        let (class, size) = (class(&message), size_bytes(&message));
        let message = Waiting::Worker { incarnation, session, message };
        let deadline_ms = now_ms.saturating_add(WORKER_DEADLINE_MS);
        link.outbox.push(class, size, deadline_ms, message, now_ms).is_ok()
    }

    /// Forgets what waits for a worker.
    pub(crate) fn clear(&mut self, node: Digest) {
        if let Some(link) = self.links.get_mut(&Peer::Worker(node)) {
            link.outbox.clear();
        }
    }

    pub(crate) fn take(&mut self, peer: Peer, now_ms: u64) -> Option<Sending<Waiting>> {
        let link = self.links.get_mut(&peer)?;
        let Some(guard) = &mut link.guard else { return link.outbox.take(now_ms) };
        let call = guard.breaker.admit(now_ms).ok()?;
        match link.outbox.take(now_ms) {
            Some(sending) => {
                guard.calls.insert(sending.number, call);
                Some(sending)
            }
            None => {
                // There was nothing to try it with: the place is given back.
                guard.breaker.record(call, CallOutcome::Refused, now_ms);
                None
            }
        }
    }

    pub(crate) fn settled(&mut self, peer: Peer, number: u64, outcome: CallOutcome, now_ms: u64) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.outbox.answered(number);
        if let Some(guard) = &mut link.guard {
            guard.settle(number, outcome, now_ms);
        }
    }

    /// Takes away what was not written by its deadline; returns whose it was.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Vec<Peer> {
        let mut late = Vec::new();
        for (peer, link) in &mut self.links {
            if link.outbox.next_deadline_ms().is_none_or(|deadline_ms| deadline_ms > now_ms) {
                continue;
            }
            let overdue = link.outbox.overdue(now_ms);
            if let Some(guard) = &mut link.guard {
                let unwritten = overdue.unanswered.iter();
                unwritten.for_each(|number| guard.settle(*number, CallOutcome::Failed, now_ms));
            }
            late.push(*peer);
        }
        late
    }

    /// Peers to whom something waits to be written, or is being written.
    pub(crate) fn busy(&self) -> Vec<Peer> {
        let busy = self.links.iter().filter(|(_, link)| link.outbox.next_deadline_ms().is_some());
        busy.map(|(peer, _)| *peer).collect()
    }

    pub(crate) fn breaker_state(&mut self, peer: Peer, now_ms: u64) -> Option<BreakerState> {
        self.links.get_mut(&peer)?.guard.as_mut().map(|guard| guard.breaker.state(now_ms))
    }

    pub(crate) fn level(&self, peer: Peer) -> Option<Level> {
        self.links.get(&peer).map(|link| link.outbox.level())
    }
}
