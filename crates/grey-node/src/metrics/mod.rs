//! What an operator's monitoring reads: `GET /metrics` on a listener of its own, in the OpenMetrics text format. docs/metrics.md
//! lists every metric.
//!
//! What happens often is counted by the thread that it happens on, in plain numbers; what there is now is looked at when somebody
//! asks. Both cost the same however many tasks there are: labels name tenants, up to a bound, and never a job, a task or a node.

mod exposition;
mod listen;
mod meters;
mod process;
mod server;
mod tally;
mod worker;

pub(crate) use listen::{MetricsListener, Source, listen};
pub(crate) use meters::{Meters, SpanFate};
pub(crate) use server::ServerSample;
pub(crate) use tally::Tally;
pub(crate) use worker::WorkerSample;
