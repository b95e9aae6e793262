//! What is counted and timed where it happens: once a request, a proposal or a sync, never once a task.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{Method, StatusCode};
use grey_api::ErrorCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::exposition::Exposition;

/// Labels whose values are known when the binary is built: looking one up allocates nothing.
type Fixed<const LABELS: usize> = Family<[(&'static str, &'static str); LABELS], Counter>;

/// The upper bounds of durations, in seconds: a quarter of a millisecond, doubled up to about four seconds.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 15))
}

/// What became of a span that had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanFate {
    /// A collector has it.
    Exported,
    /// There was no room for it in the queue.
    Dropped,
    /// The collector did not take it.
    Failed,
}

impl SpanFate {
    const ALL: [SpanFate; 3] = [SpanFate::Exported, SpanFate::Dropped, SpanFate::Failed];

    fn name(self) -> &'static str {
        match self {
            SpanFate::Exported => "exported",
            SpanFate::Dropped => "dropped",
            SpanFate::Failed => "failed",
        }
    }
}

/// Counters and histograms of one node.
#[derive(Debug)]
pub(crate) struct Meters {
    started_at: SystemTime,
    commits: Histogram,
    syncs: Histogram,
    requests: Fixed<2>,
    refusals: Fixed<1>,
    spans: Fixed<1>,
}

impl Meters {
    pub(crate) fn new() -> Meters {
        let refusals = Fixed::<1>::default();
        // A rate has to begin with a zero.
        for code in ErrorCode::ALL {
            drop(refusals.get_or_create(&[("code", code.name())]));
        }
        let spans = Fixed::<1>::default();
        for fate in SpanFate::ALL {
            drop(spans.get_or_create(&[("fate", fate.name())]));
        }
        Meters {
            started_at: SystemTime::now(),
            commits: durations(),
            syncs: durations(),
            requests: Family::default(),
            refusals,
            spans,
        }
    }

    /// A proposal was applied so long after it had been asked for.
    pub(crate) fn committed(&self, took: Duration) {
        self.commits.observe(took.as_secs_f64());
    }

    /// A batch of the log took so long to become durable.
    pub(crate) fn synced(&self, took: Duration) {
        self.syncs.observe(took.as_secs_f64());
    }

    /// A request was answered.
    pub(crate) fn answered(&self, method: &Method, status: StatusCode) {
        let method = match method.as_str() {
            "GET" => "get",
            "POST" => "post",
            "DELETE" => "delete",
            "HEAD" => "head",
            _ => "other",
        };
        let class = match status.as_u16() {
            100..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            _ => "5xx",
        };
        self.requests.get_or_create(&[("method", method), ("status", class)]).inc();
    }

    /// A request, or a part of a stream, was refused.
    pub(crate) fn refused(&self, code: ErrorCode) {
        self.refusals.get_or_create(&[("code", code.name())]).inc();
    }

    /// So many spans that had ended were exported, or were not.
    pub(crate) fn spans(&self, fate: SpanFate, count: u64) {
        self.spans.get_or_create(&[("fate", fate.name())]).inc_by(count);
    }

    /// What became of spans so far.
    #[cfg(test)]
    pub(crate) fn spans_so_far(&self, fate: SpanFate) -> u64 {
        self.spans.get_or_create(&[("fate", fate.name())]).get()
    }

    /// What every kind of node has.
    pub(super) fn expose_start(&self, exposition: &mut Exposition) {
        let started = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        exposition.info(env!("CARGO_PKG_VERSION"));
        exposition.seconds(
            "process_start_time",
            "When the process started, since 1970",
            started.as_secs_f64(),
        );
        exposition.metric("trace_spans", "Spans that ended, by what became of them", self.spans.clone());
    }

    /// What only a server has.
    pub(super) fn expose(&self, exposition: &mut Exposition) {
        exposition.durations(
            "commit_duration",
            "From asking for a change to its being durable and applied",
            self.commits.clone(),
        );
        exposition.durations(
            "store_sync_duration",
            "How long a batch of the log took to become durable",
            self.syncs.clone(),
        );
        exposition.metric(
            "http_requests",
            "Requests of the client API that were answered",
            self.requests.clone(),
        );
        exposition.metric(
            "refusals",
            "Requests and parts of streams that were refused here",
            self.refusals.clone(),
        );
    }
}
