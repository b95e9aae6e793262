//! What one node makes of its surroundings: who is alive, whom to call, how much to send, what to refuse at the door.
//!
//! Everything here is local to a node and only proposes: what steers placement is committed first. There is no clock, no
//! thread and no chance of its own. Time comes in as the node's monotonic time in milliseconds, chance as a seeded
//! generator, so that a simulator replays a run from its seed.
//!
//! Monotonic time must go on while the machine sleeps (`CLOCK_BOOTTIME` on Linux), or a lease outlives its length.

mod backpressure;
mod breaker;
mod capacity;
mod chance;
mod detector;
mod error;
mod gate;
mod heartbeat;
mod lease;
pub mod limits;
mod options;
mod outbox;
mod phi;
mod phi_value;
mod retry;
mod samples;
mod shed;

pub use backpressure::{Advice, Backpressure, BackpressureOptions, Level, fill_permille};
pub use breaker::{BreakerOptions, BreakerState, Call, CallOutcome, CallRefused, CircuitBreaker};
pub use capacity::{Amount, CapacityOptions, Class};
pub use chance::Chance;
pub use detector::Heard;
pub use error::HealthError;
pub use gate::{Admission, Gate, GateOptions, GateRefusal, RefusalCode, Work};
pub use heartbeat::{HeartbeatDetector, HeartbeatOptions};
pub use lease::{Grant, LeaderLeases, LeaseOptions, WorkerLease};
pub use options::OptionProblem;
pub use outbox::{NotTaken, OutboxOptions, Overdue, PeerOutbox, Sending};
pub use phi::{PhiDetector, PhiOptions};
pub use retry::{Backoff, BackoffOptions, RetryBudget, RetryBudgetOptions};
pub use shed::{DelayShedder, ShedOptions};
