//! The worker's state machine, and the port through which it runs attempts.
//!
//! An [`Agent`] takes assignments and what its executor tells, and asks for executions, durable records and signed
//! reports. It owns no thread, clock, disk or socket, so a simulator can run a thousand of them.

mod adoption;
mod agent;
mod devices;
mod error;
mod executor;
mod lease;
mod outbox;
mod prefetch;

pub use agent::{Agent, AgentOptions, Output, Start};
pub use error::AgentError;
pub use executor::{
    Adoptable, Capabilities, Captured, CapturedFile, EventSink, Executed, Execution, Executor, ExecutorEvent,
    OutputStream, StopReason, Tail,
};
pub use lease::KeepOptions;
