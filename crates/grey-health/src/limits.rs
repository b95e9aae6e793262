//! Every bound of this crate in one place.

/// Peers, workers or tenants that one part keeps a record of.
pub const PEERS: usize = 100_000;
/// The longest time that an option may name: one day, in milliseconds.
pub const OPTION_MS: u64 = 24 * 3_600 * 1_000;
/// Samples in the window of a phi detector.
pub const PHI_SAMPLES: usize = 1_000;
/// The longest interval between two heartbeats that is a sample, in milliseconds; a longer one counts as this.
pub const PHI_SAMPLE_MS: u64 = 3_600 * 1_000;
/// Phi is not told apart above this, in thousandths.
pub const PHI_MILLI: u32 = 100_000;
/// Heartbeats whose sending a worker remembers while no answer came; an answer to an older one renews nothing.
pub const HEARTBEATS_IN_FLIGHT: usize = 64;
/// Calls that a circuit breaker remembers, and probes that it has under way.
pub const BREAKER_CALLS: usize = 1_000;

// Sums of samples and of their squares stay far from the end of their integers.
const _: () = assert!((PHI_SAMPLES as u128) * (PHI_SAMPLE_MS as u128) < u64::MAX as u128);
