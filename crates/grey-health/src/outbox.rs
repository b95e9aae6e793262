//! What waits to be sent to one peer, and how much of it is under way.

use std::collections::{BTreeMap, BTreeSet};

use crate::backpressure::{Advice, Backpressure, BackpressureOptions, Level, fill_permille};
use crate::capacity::{Amount, Capacity, CapacityOptions, Class, PerClass};
use crate::error::HealthError;
use crate::options::Checks;

/// What a [`PeerOutbox`] goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxOptions {
    /// Room for what waits and what is under way, together.
    pub capacity: CapacityOptions,
    /// The largest message, in bytes; 1 to the bytes of the first window, so that the window is never too small for one.
    pub message_bytes: u64,
    /// What may be under way right after a connection was made; at least one message.
    pub first_window: Amount,
    /// What may be under way at most; at least the first window.
    pub most_window: Amount,
    /// Heartbeats that may be under way beyond the window; at least 1.
    pub heartbeats_in_flight: u64,
    /// Completions and cancels that may be under way beyond the window; at least 1.
    pub endings_in_flight: u64,
    /// Whether completions and cancels keep their place among the rest, because what they end may still be waiting before them. They have
    /// room of their own all the same. Heartbeats overtake in any case.
    pub in_order: bool,
    /// How the fill of the shared room becomes a level. While it is blocked, nothing of the class `Other` is taken in.
    pub pressure: BackpressureOptions,
}

impl Default for OutboxOptions {
    fn default() -> OutboxOptions {
        const MIB: u64 = 1024 * 1024;
        OutboxOptions {
            capacity: CapacityOptions {
                heartbeats: Amount { count: 16, bytes: MIB },
                endings: Amount { count: 256, bytes: 16 * MIB },
                shared: Amount { count: 4_096, bytes: 64 * MIB },
            },
            message_bytes: 8 * MIB,
            first_window: Amount { count: 4, bytes: 8 * MIB },
            most_window: Amount { count: 256, bytes: 64 * MIB },
            heartbeats_in_flight: 2,
            endings_in_flight: 4,
            in_order: false,
            pressure: BackpressureOptions::default(),
        }
    }
}

impl OutboxOptions {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`HealthError::Options`] with the whole list of what is wrong; that of the pressure's options when only those are wrong.
    pub fn validate(&self) -> Result<(), HealthError> {
        let mut checks = Checks::default();
        let names = [
            ("capacity.heartbeats.count", "capacity.heartbeats.bytes"),
            ("capacity.endings.count", "capacity.endings.bytes"),
            ("capacity.shared.count", "capacity.shared.bytes"),
        ];
        self.capacity.check(&mut checks, names);
        let (first, most) = (self.first_window, self.most_window);
        checks.within("message_bytes", self.message_bytes, 1..=first.bytes.min(self.capacity.shared.bytes));
        checks.within("first_window.count", first.count, 1..=most.count);
        checks.within("first_window.bytes", first.bytes, 1..=most.bytes);
        checks.within("most_window.count", most.count, 1..=self.capacity.shared.count);
        checks.within("most_window.bytes", most.bytes, 1..=self.capacity.shared.bytes);
        checks.within("heartbeats_in_flight", self.heartbeats_in_flight, 1..=1_000);
        checks.within("endings_in_flight", self.endings_in_flight, 1..=1_000);
        checks.finish("outbox")?;
        self.pressure.validate()
    }
}

/// Why a message was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Its deadline is over.
    #[error("its deadline is over")]
    Overdue,
    /// It is larger than any message may be.
    #[error("it has more bytes than the limit of {limit} for one message")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// There is no room for its class.
    #[error("the outbox is full ({level:?}); try again in {retry_after_ms} ms")]
    Full {
        /// How full the room is that everything shares.
        level: Level,
        /// When to try again.
        retry_after_ms: u64,
    },
}

/// A message that is to be sent now.
#[derive(Debug, PartialEq, Eq)]
pub struct Sending<T> {
    /// Its number, for [`PeerOutbox::answered`].
    pub number: u64,
    /// Its class.
    pub class: Class,
    /// Until when its answer is waited for, in monotonic milliseconds.
    pub deadline_ms: u64,
    /// The message.
    pub message: T,
}

/// What was not answered by its deadline.
#[derive(Debug, PartialEq, Eq)]
pub struct Overdue<T> {
    /// Never sent: it certainly had no effect.
    pub unsent: Vec<T>,
    /// Sent: whether it had an effect is unknown.
    pub unanswered: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry<T> {
    class: Class,
    bytes: u64,
    deadline_ms: u64,
    /// The message; with the sender while it is under way.
    message: T,
}

/// A bounded queue for one peer with a window of what is under way.
///
/// - Every message has a deadline, counts against the capacity from when it is taken in until it is answered or overdue, and is
///   refused when its class has no room.
/// - Heartbeats go first, then completions and cancels, then the rest, each in order. The first two have room of their own in the queue
///   and in the window.
/// - What counts as an answer is the caller's to say: a peer's answer to a request, or, where messages may be lost anyway, the transport's
///   word that it has written one.
/// - After a connection was made the window is small. Whenever as many as it holds were answered it doubles, up to its bound (the
///   slow start of Jacobson: "Congestion avoidance and control", SIGCOMM 1988): a peer that comes back is not flooded.
///
/// ```
/// use grey_health::{Class, OutboxOptions, PeerOutbox};
///
/// let mut outbox = PeerOutbox::new(OutboxOptions::default())?;
/// outbox.push(Class::Other, 5, 1_000, "place", 0).unwrap();
/// outbox.push(Class::Heartbeat, 5, 1_000, "alive", 0).unwrap();
/// assert!(outbox.take(0).is_none(), "there is no connection");
/// outbox.connected();
/// let first = outbox.take(1).unwrap();
/// assert_eq!(first.message, "alive");
/// assert!(outbox.answered(first.number));
/// # Ok::<(), grey_health::HealthError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerOutbox<T> {
    options: OutboxOptions,
    capacity: Capacity,
    in_flight: Capacity,
    pressure: Backpressure,
    waiting: PerClass<BTreeMap<u64, Entry<T>>>,
    sent: BTreeMap<u64, Entry<()>>,
    /// Everything that waits or is under way, by its deadline.
    deadlines: BTreeSet<(u64, u64)>,
    next: u64,
    connected: bool,
    answered_in_window: u64,
}

impl<T> PeerOutbox<T> {
    /// Empty, and without a connection.
    ///
    /// # Errors
    /// [`HealthError::Options`].
    pub fn new(options: OutboxOptions) -> Result<PeerOutbox<T>, HealthError> {
        options.validate()?;
        let beyond = |count: u64| Amount { count, bytes: count.saturating_mul(options.message_bytes) };
        let in_flight = CapacityOptions {
            heartbeats: beyond(options.heartbeats_in_flight),
            endings: beyond(options.endings_in_flight),
            shared: options.first_window,
        };
        Ok(PeerOutbox {
            capacity: Capacity::new(&options.capacity),
            in_flight: Capacity::new(&in_flight),
            pressure: Backpressure::new(options.pressure.clone())?,
            waiting: PerClass::default(),
            sent: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next: 1,
            connected: false,
            answered_in_window: 0,
            options,
        })
    }

    /// Takes in a message of so many bytes whose answer is waited for until the deadline. Returns the level after that, so that
    /// its sender learns of it in time.
    ///
    /// # Errors
    /// The message, and why it was not taken in.
    pub fn push(
        &mut self,
        class: Class,
        bytes: u64,
        deadline_ms: u64,
        message: T,
        now_ms: u64,
    ) -> Result<Level, (T, NotTaken)> {
        if deadline_ms <= now_ms {
            return Err((message, NotTaken::Overdue));
        }
        if bytes > self.options.message_bytes {
            return Err((message, NotTaken::TooLarge { limit: self.options.message_bytes }));
        }
        let blocked = class == Class::Other && self.pressure.level() == Level::Blocked;
        if blocked || self.capacity.fits(class, bytes).is_err() {
            let retry_after_ms = self.options.pressure.retry_after_ms;
            return Err((message, NotTaken::Full { level: self.pressure.level(), retry_after_ms }));
        }
        self.capacity.take(class, bytes);
        self.waiting.of_mut(class).insert(self.next, Entry { class, bytes, deadline_ms, message });
        self.deadlines.insert((deadline_ms, self.next));
        self.next += 1;
        Ok(self.update_level())
    }

    /// The next message to be sent, if there is a connection and room in the window. What is overdue is passed over, and stays until
    /// [`overdue`](PeerOutbox::overdue) takes it away.
    pub fn take(&mut self, now_ms: u64) -> Option<Sending<T>> {
        if !self.connected {
            return None;
        }
        let mut after_another = false;
        for class in self.classes(now_ms) {
            let Some((number, bytes)) = self.first(class, now_ms) else { continue };
            let fits = !after_another && self.in_flight.fits(class, bytes).is_ok();
            // In order, what does not fit is waited for; only a heartbeat passes it by.
            after_another |= self.options.in_order && class != Class::Heartbeat;
            if !fits {
                continue;
            }
            let Entry { deadline_ms, message, .. } = self.waiting.of_mut(class).remove(&number)?;
            self.in_flight.take(class, bytes);
            self.sent.insert(number, Entry { class, bytes, deadline_ms, message: () });
            return Some(Sending { number, class, deadline_ms, message });
        }
        None
    }

    /// The first of a class whose deadline is not over: its number and bytes.
    fn first(&self, class: Class, now_ms: u64) -> Option<(u64, u64)> {
        let mut waiting = self.waiting.of(class).iter();
        waiting.find(|(_, entry)| entry.deadline_ms > now_ms).map(|(number, entry)| (*number, entry.bytes))
    }

    /// The classes in the order in which their first messages are to be sent.
    fn classes(&self, now_ms: u64) -> [Class; 3] {
        let number = |class| self.first(class, now_ms).map_or(u64::MAX, |(number, _)| number);
        if self.options.in_order && number(Class::Other) < number(Class::Ending) {
            [Class::Heartbeat, Class::Other, Class::Ending]
        } else {
            Class::ALL
        }
    }

    /// Takes in a message that makes those of its class before it worth less: where there is no room, the oldest of them that waits
    /// gives up its place. Returns the message, and why, when even that does not help.
    ///
    /// # Errors
    /// As [`push`](PeerOutbox::push).
    pub fn push_latest(
        &mut self,
        class: Class,
        bytes: u64,
        deadline_ms: u64,
        message: T,
        now_ms: u64,
    ) -> Result<Level, (T, NotTaken)> {
        let mut message = message;
        loop {
            match self.push(class, bytes, deadline_ms, message, now_ms) {
                Err((returned, NotTaken::Full { .. })) if self.drop_oldest(class) => message = returned,
                outcome => return outcome,
            }
        }
    }

    fn drop_oldest(&mut self, class: Class) -> bool {
        let Some((number, entry)) = self.waiting.of_mut(class).pop_first() else { return false };
        self.capacity.give_back(class, entry.bytes);
        self.deadlines.remove(&(entry.deadline_ms, number));
        self.update_level();
        true
    }

    /// Forgets everything that waits; what is under way stays so.
    pub fn clear(&mut self) {
        for class in Class::ALL {
            while self.drop_oldest(class) {}
        }
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// A message was answered, or, where the transport's word is enough, written. Returns whether it was still under way; if not, the answer came too late or twice.
    pub fn answered(&mut self, number: u64) -> bool {
        if !self.forget_sent(number) {
            return false;
        }
        self.answered_in_window += 1;
        let window = &mut self.in_flight.shared;
        if self.answered_in_window >= window.count {
            *window = window.plus(*window).at_most(self.options.most_window);
            self.answered_in_window = 0;
        }
        self.update_level();
        true
    }

    /// A connection was made: the window is small again. What an earlier connection had under way is returned as by
    /// [`disconnected`](PeerOutbox::disconnected).
    pub fn connected(&mut self) -> Vec<u64> {
        let lost = self.disconnected();
        self.connected = true;
        self.in_flight.shared = self.options.first_window;
        self.answered_in_window = 0;
        lost
    }

    /// The connection was lost. Returns the numbers of what was under way, in order: whether it had an effect is unknown. What waits goes
    /// on waiting.
    pub fn disconnected(&mut self) -> Vec<u64> {
        self.connected = false;
        let lost: Vec<u64> = self.sent.keys().copied().collect();
        for number in &lost {
            self.forget_sent(*number);
        }
        self.update_level();
        lost
    }

    /// Takes away what was not answered by its deadline, in the order of the deadlines.
    pub fn overdue(&mut self, now_ms: u64) -> Overdue<T> {
        let mut overdue = Overdue { unsent: Vec::new(), unanswered: Vec::new() };
        while let Some((_, number)) = self.deadlines.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms) {
            if self.forget_sent(number) {
                overdue.unanswered.push(number);
                continue;
            }
            let entry = Class::ALL.iter().find_map(|class| self.waiting.of_mut(*class).remove(&number));
            self.deadlines.pop_first();
            if let Some(entry) = entry {
                self.capacity.give_back(entry.class, entry.bytes);
                overdue.unsent.push(entry.message);
            }
        }
        self.update_level();
        overdue
    }

    /// The next deadline, in monotonic milliseconds: ask for what is overdue then.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(at_ms, _)| *at_ms)
    }

    /// How full the room is that everything shares.
    pub fn level(&self) -> Level {
        self.pressure.level()
    }

    /// What the level means for those who send to this peer.
    pub fn advice(&self) -> Advice {
        self.pressure.advice()
    }

    fn forget_sent(&mut self, number: u64) -> bool {
        let Some(Entry { class, bytes, deadline_ms, .. }) = self.sent.remove(&number) else { return false };
        self.in_flight.give_back(class, bytes);
        self.capacity.give_back(class, bytes);
        self.deadlines.remove(&(deadline_ms, number));
        true
    }

    fn update_level(&mut self) -> Level {
        let (used, limit) = (self.capacity.shared_used(), self.capacity.shared);
        self.pressure.update(fill_permille((used.count, limit.count), (used.bytes, limit.bytes)))
    }
}
