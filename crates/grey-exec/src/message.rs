//! What goes over the socket between a worker and the shim that holds its attempts, and back: one datagram a message,
//! little-endian numbers.
//!
//! Shim and worker may be of different versions. The first message of each says which protocol it speaks; that message
//! never changes. What follows, the plan of an attempt and what a guard reports are of the protocol: whoever changes one
//! of them raises [`PROTOCOL`].

use grey_core::{AttemptId, Epoch, TaskId};

use crate::plan::{Consumed, Fence, REPORT_BYTES, Report};

/// The protocol that this version speaks.
pub(crate) const PROTOCOL: u32 = 1;
/// No message is longer, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 64;
/// The descriptors of a [`ToShim::Start`]: the plan, the writing ends of standard output and standard error, then the
/// reading ends.
pub(crate) const START_DESCRIPTORS: usize = 5;
/// The descriptors of a [`FromShim::Held`]: the plan, then the reading ends.
pub(crate) const HELD_DESCRIPTORS: usize = 3;

/// When an attempt began, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    /// When it began, in nanoseconds of the monotonic clock.
    pub(crate) started_ns: u64,
    /// The same in milliseconds since 1970.
    pub(crate) started_at_ms: u64,
    /// How long it may run, in milliseconds.
    pub(crate) timeout_ms: u64,
}

/// Why an attempt was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halted {
    /// A cancel was committed.
    Cancelled,
    /// The worker has no use for it.
    Infrastructure,
    /// It ran for too long.
    TimedOut,
    /// It wrote too much.
    OutputLimit,
    /// Its output could not be kept.
    OutputLost,
    /// The worker's lease ended, or there was none when the worker did.
    LeaseEnded,
}

const HALTED: [Halted; 6] = [
    Halted::Cancelled,
    Halted::Infrastructure,
    Halted::TimedOut,
    Halted::OutputLimit,
    Halted::OutputLost,
    Halted::LeaseEnded,
];

impl Halted {
    /// The number that stands for a reason, zero for none.
    fn number(halted: Option<Halted>) -> u8 {
        let found = HALTED.iter().zip(1..).find(|(one, _)| Some(**one) == halted);
        found.map_or(0, |(_, number)| number)
    }

    fn of(number: u8) -> Option<Option<Halted>> {
        match number.checked_sub(1) {
            None => Some(None),
            Some(place) => HALTED.get(usize::from(place)).copied().map(Some),
        }
    }
}

/// How an attempt ended, when every process of it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// When, in nanoseconds of the monotonic clock.
    pub(crate) ended_ns: u64,
    /// Why it was stopped, if it was.
    pub(crate) halted: Option<Halted>,
    /// The guard's last word, if it had one.
    pub(crate) last: Option<Report>,
    /// What its processes used.
    pub(crate) consumed: Consumed,
}

/// What a worker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToShim {
    /// The first message: which protocol it speaks.
    Hello(u32),
    /// Fork a guard for an attempt, with [`START_DESCRIPTORS`].
    Start(AttemptId, Fence, Clock),
    /// Stop an attempt for a reason: after a while for its own cleaning up, or at once.
    Halt(AttemptId, Halted, bool),
    /// Give an attempt another time-out, in milliseconds from its start.
    ChangeTimeout(AttemptId, u64),
    /// Forget an attempt; one that still runs is killed first.
    Release(AttemptId),
    /// The lease ends then, in nanoseconds of the boot clock, unless a later end is told before.
    Lease(u64),
    /// To be answered.
    Ping,
    /// The worker ends: if nothing is held, end too.
    End,
}

/// What a shim says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FromShim {
    /// The first message: which protocol it speaks, and how many attempts it holds.
    Hello(u32, u32),
    /// An attempt that it holds from before this worker came, with [`HELD_DESCRIPTORS`].
    Held(AttemptId, Fence, Clock),
    /// All of those were told.
    Ready,
    /// The program of an attempt runs; with a descriptor of its guard, by which its end can be waited for.
    Started(AttemptId),
    /// An attempt has ended.
    Ended(AttemptId, End),
    /// The answer to a ping.
    Pong,
}

/// The tag of the first message of both sides.
const HELLO: u8 = b'H';

struct Writer(Vec<u8>);

impl Writer {
    fn new(tag: u8) -> Writer {
        let mut bytes = Vec::with_capacity(MESSAGE_BYTES);
        bytes.push(tag);
        Writer(bytes)
    }

    fn byte(mut self, byte: u8) -> Writer {
        self.0.push(byte);
        self
    }

    fn u32(mut self, number: u32) -> Writer {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Writer {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn attempt(self, attempt: AttemptId) -> Writer {
        self.u64(attempt.task.0).u32(attempt.epoch.0)
    }

    fn clock(self, clock: Clock) -> Writer {
        self.u64(clock.started_ns).u64(clock.started_at_ms).u64(clock.timeout_ms)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn array<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn attempt(&mut self) -> Option<AttemptId> {
        Some(AttemptId { task: TaskId(self.u64()?), epoch: Epoch(self.u32()?) })
    }

    fn clock(&mut self) -> Option<Clock> {
        Some(Clock { started_ns: self.u64()?, started_at_ms: self.u64()?, timeout_ms: self.u64()? })
    }

    /// The message, if nothing is left over.
    fn whole<T>(&self, message: T) -> Option<T> {
        self.0.is_empty().then_some(message)
    }
}

impl ToShim {
    /// The message as it is sent.
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            ToShim::Hello(protocol) => Writer::new(HELLO).u32(protocol),
            ToShim::Start(attempt, fence, clock) => {
                Writer::new(b'S').attempt(attempt).byte(fence.number()).clock(clock)
            }
            ToShim::Halt(attempt, why, gently) => {
                Writer::new(b'X').attempt(attempt).byte(Halted::number(Some(why))).byte(u8::from(gently))
            }
            ToShim::ChangeTimeout(attempt, timeout_ms) => Writer::new(b'T').attempt(attempt).u64(timeout_ms),
            ToShim::Release(attempt) => Writer::new(b'R').attempt(attempt),
            ToShim::Lease(until_ns) => Writer::new(b'L').u64(until_ns),
            ToShim::Ping => Writer::new(b'P'),
            ToShim::End => Writer::new(b'E'),
        }
        .0
    }

    /// Reads a message; `None` when it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<ToShim> {
        let mut reader = Reader(bytes);
        let message = match reader.byte()? {
            HELLO => ToShim::Hello(reader.u32()?),
            b'S' => ToShim::Start(reader.attempt()?, Fence::of(reader.byte()?)?, reader.clock()?),
            b'X' => ToShim::Halt(reader.attempt()?, Halted::of(reader.byte()?)??, flag(reader.byte()?)?),
            b'T' => ToShim::ChangeTimeout(reader.attempt()?, reader.u64()?),
            b'R' => ToShim::Release(reader.attempt()?),
            b'L' => ToShim::Lease(reader.u64()?),
            b'P' => ToShim::Ping,
            b'E' => ToShim::End,
            _ => return None,
        };
        reader.whole(message)
    }
}

impl FromShim {
    /// The message as it is sent.
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            FromShim::Hello(protocol, held) => Writer::new(HELLO).u32(protocol).u32(held),
            FromShim::Held(attempt, fence, clock) => {
                Writer::new(b'h').attempt(attempt).byte(fence.number()).clock(clock)
            }
            FromShim::Ready => Writer::new(b'r'),
            FromShim::Started(attempt) => Writer::new(b's').attempt(attempt),
            FromShim::Ended(attempt, end) => {
                let mut writer =
                    Writer::new(b'e').attempt(attempt).u64(end.ended_ns).byte(Halted::number(end.halted));
                writer.0.extend(end.last.map_or([0; REPORT_BYTES], Report::encode));
                writer.u64(end.consumed.cpu_time_us).u64(end.consumed.peak_memory_bytes)
            }
            FromShim::Pong => Writer::new(b'p'),
        }
        .0
    }

    /// Reads a message; `None` when it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<FromShim> {
        let mut reader = Reader(bytes);
        let message = match reader.byte()? {
            HELLO => FromShim::Hello(reader.u32()?, reader.u32()?),
            b'h' => FromShim::Held(reader.attempt()?, Fence::of(reader.byte()?)?, reader.clock()?),
            b'r' => FromShim::Ready,
            b's' => FromShim::Started(reader.attempt()?),
            b'e' => FromShim::Ended(reader.attempt()?, end(&mut reader)?),
            b'p' => FromShim::Pong,
            _ => return None,
        };
        reader.whole(message)
    }
}

fn end(reader: &mut Reader<'_>) -> Option<End> {
    let (ended_ns, halted) = (reader.u64()?, Halted::of(reader.byte()?)?);
    let report: [u8; REPORT_BYTES] = reader.array()?;
    let last = if report == [0; REPORT_BYTES] { None } else { Some(Report::decode(&report)?) };
    let consumed = Consumed { cpu_time_us: reader.u64()?, peak_memory_bytes: reader.u64()? };
    Some(End { ended_ns, halted, last, consumed })
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// One message of each kind, for tests.
pub(crate) fn examples() -> (Vec<ToShim>, Vec<FromShim>) {
    let attempt = AttemptId { task: TaskId(0x0102), epoch: Epoch(3) };
    let clock = Clock { started_ns: 4, started_at_ms: 5, timeout_ms: 6 };
    let consumed = Consumed { cpu_time_us: 8, peak_memory_bytes: 9 };
    let end = End {
        ended_ns: 7,
        halted: Some(Halted::TimedOut),
        last: Some(Report::Ended(15, consumed)),
        consumed,
    };
    let to = vec![
        ToShim::Hello(PROTOCOL),
        ToShim::Start(attempt, Fence::UserNamespaces, clock),
        ToShim::Halt(attempt, Halted::LeaseEnded, true),
        ToShim::ChangeTimeout(attempt, 10),
        ToShim::Release(attempt),
        ToShim::Lease(11),
        ToShim::Ping,
        ToShim::End,
    ];
    let from = vec![
        FromShim::Hello(PROTOCOL, 2),
        FromShim::Held(attempt, Fence::Subreaper, clock),
        FromShim::Ready,
        FromShim::Started(attempt),
        FromShim::Ended(attempt, end),
        FromShim::Ended(attempt, End { halted: None, last: None, ..end }),
        FromShim::Pong,
    ];
    (to, from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_reads_back_as_written_and_no_cut_or_longer_one_is_taken() {
        let (to, from) = examples();
        for message in to {
            let bytes = message.encode();
            assert!(bytes.len() <= MESSAGE_BYTES);
            assert_eq!(ToShim::decode(&bytes), Some(message));
            assert!((0..bytes.len()).all(|end| ToShim::decode(&bytes[..end]).is_none()), "{message:?}");
            assert_eq!(ToShim::decode(&[&bytes[..], b"x"].concat()), None);
        }
        for message in from {
            let bytes = message.encode();
            assert!(bytes.len() <= MESSAGE_BYTES);
            assert_eq!(FromShim::decode(&bytes), Some(message));
            assert!((0..bytes.len()).all(|end| FromShim::decode(&bytes[..end]).is_none()), "{message:?}");
            assert_eq!(FromShim::decode(&[&bytes[..], b"x"].concat()), None);
        }
    }

    /// Whoever changes what is written here raises the protocol: a shim may be of an earlier version than its worker.
    #[test]
    fn what_is_written_is_of_the_protocol() {
        let (to, from) = examples();
        let written: Vec<u8> = to
            .into_iter()
            .map(ToShim::encode)
            .chain(from.into_iter().map(FromShim::encode))
            .chain(crate::fuzzing::examples())
            .flatten()
            .collect();
        let digest = grey_proof::Digest::of(&written).to_string();
        assert_eq!(
            (PROTOCOL, digest.as_str()),
            (1, "585bd71c9ea476ae0855a208eeec07f5fcd60faf7bfd7c2a808fd5844068a91b")
        );
        assert_eq!(ToShim::Hello(0x0403_0201).encode(), b"H\x01\x02\x03\x04");
        assert_eq!(FromShim::Hello(1, 2).encode(), b"H\x01\0\0\0\x02\0\0\0");
    }
}
