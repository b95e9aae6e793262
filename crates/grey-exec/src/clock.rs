//! The two clocks that count from the machine's start.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    let whole = seconds.saturating_add(Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0)));
    u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX)
}

/// The clock by which attempts are timed. It is the same in every process.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds since the machine's start, sleep included: the clock by which a lease ends, for the leader's goes on too.
pub fn boot_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// A moment of either clock as the kernel takes it.
pub(crate) fn timespec(at_ns: u64) -> Timespec {
    let time = Duration::from_nanos(at_ns);
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}
