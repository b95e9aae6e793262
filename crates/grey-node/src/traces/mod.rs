//! Spans of what happens here, as OpenTelemetry has them: of requests at servers, and of attempts at workers. They are told to a collector by
//! OTLP; docs/operations.md says what they are called.
//!
//! A span is made where something ends and is put into a bounded queue, which one task empties. Nothing here waits for a collector: what it
//! does not take in time is dropped and counted.

mod context;
mod export;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, Method, StatusCode};
use grey_core::{AttemptId, AttemptResult, JobId, Outcome, Usage};
use grey_proof::Digest;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};
use std::sync::Arc;

use crate::config::TracesConfig;
use crate::error::NodeError;
use crate::metrics::Meters;
use export::{Exporting, Queue};

/// What a service is called where OTEL_SERVICE_NAME does not say.
const SERVICE: &str = "grey";
/// Who asks whether a node is well, asks again and again; its requests are not told.
const HEALTH: &str = "/health/";
/// How much of a path is told, in bytes.
const PATH_BYTES: usize = 256;
/// Methods that are told by their names; what else comes is `_OTHER`.
const METHODS: [Method; 6] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS];

/// Whose spans are told.
pub(crate) struct Teller<'a> {
    pub(crate) cluster: Digest,
    pub(crate) node: Digest,
    /// Its name; a local cluster has none.
    pub(crate) name: Option<&'a str>,
    /// `server`, `worker`, or `local` for both in one process.
    pub(crate) role: &'static str,
}

/// The way of a node's spans to a collector.
pub(crate) struct Traces {
    tracer: SdkTracer,
    /// The tracer ends with it.
    _provider: SdkTracerProvider,
    exporting: Exporting,
}

impl Traces {
    /// Begins to tell a node's spans, where it is told to whom. To be called in the node's runtime. The collector need not be there.
    pub(crate) fn start(
        config: Option<&TracesConfig>,
        teller: &Teller<'_>,
        meters: Arc<Meters>,
    ) -> Result<Option<Arc<Traces>>, NodeError> {
        let Some(config) = config else { return Ok(None) };
        match Traces::to(config, teller, meters) {
            Ok(traces) => Ok(Some(traces)),
            Err(error) if config.is_shared => {
                tracing::warn!(
                    %error,
                    "spans are told to nobody: OTEL_EXPORTER_OTLP_ENDPOINT, which every program here is told, is not usable; --traces-endpoint and \
                     --traces-ca-file go before it, and --traces-endpoint none is nowhere"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn to(config: &TracesConfig, teller: &Teller<'_>, meters: Arc<Meters>) -> Result<Arc<Traces>, NodeError> {
        let mut attributes = vec![
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", teller.node.to_string()),
            KeyValue::new("grey.cluster", teller.cluster.to_string()),
            KeyValue::new("grey.node", teller.node.to_string()),
            KeyValue::new("grey.role", teller.role),
        ];
        attributes.extend(teller.name.map(|name| KeyValue::new("grey.node.name", name.to_owned())));
        let mut resource = Resource::builder().with_attributes(attributes);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(SERVICE);
        }
        let resource = resource.build();
        let exporter = export::exporter(config, &resource)?;
        let (queue, exporting) = export::start(exporter, meters);
        tracing::info!(collector = config.endpoint, "spans are told");
        Ok(Arc::new(Traces::new(queue, exporting, resource, config.sampled_per_million)))
    }

    fn new(queue: Queue, exporting: Exporting, resource: Resource, sampled_per_million: u32) -> Traces {
        let ratio = f64::from(sampled_per_million) / 1_000_000.0;
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource)
            .build();
        Traces { tracer: provider.tracer("grey"), _provider: provider, exporting }
    }

    /// Begins the span of a request, in the trace that its headers name. From then on they name the span, so that whoever the request is passed
    /// on to goes on with the trace.
    pub(crate) fn request(
        &self,
        method: &Method,
        path: &str,
        route: Option<&str>,
        id: &str,
        headers: &mut HeaderMap,
    ) -> Option<RequestSpan> {
        if path.starts_with(HEALTH) {
            return None;
        }
        let method = if METHODS.contains(method) { method.as_str() } else { "_OTHER" };
        let name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
        let shown = path.get(..path.floor_char_boundary(PATH_BYTES)).unwrap_or_default();
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("url.path", shown.to_owned()),
            KeyValue::new("grey.request", id.to_owned()),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
        let span = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &context::parent(headers));
        context::put(span.span_context(), headers);
        Some(RequestSpan(span))
    }

    /// Tells an attempt that has ended, in a trace of its own: which request submitted its task, nobody has written down.
    pub(crate) fn attempt(
        &self,
        attempt: AttemptId,
        job: Option<JobId>,
        result: &AttemptResult,
        usage: &Usage,
    ) {
        let begun = at(usage.started_at_ms);
        let mut attributes = vec![
            KeyValue::new("grey.task", attempt.task.to_string()),
            KeyValue::new("grey.attempt", i64::from(attempt.epoch.0)),
            KeyValue::new("grey.outcome", result.outcome.class()),
            KeyValue::new("grey.exit_code", i64::from(result.outcome.exit_code())),
            KeyValue::new("grey.sandbox", result.sandbox.name()),
            KeyValue::new("grey.cpu_time_us", whole(usage.cpu_time_us)),
            KeyValue::new("grey.peak_memory_bytes", whole(usage.peak_memory_bytes)),
        ];
        attributes.extend(job.map(|job| KeyValue::new("grey.job", job.to_string())));
        let mut span = SpanBuilder::from_name("attempt")
            .with_kind(SpanKind::Internal)
            .with_start_time(begun)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &Context::new());
        if result.outcome != Outcome::Exited(0) {
            span.set_status(Status::error(result.outcome.class()));
        }
        span.end_with_timestamp(begun + Duration::from_micros(usage.duration_us));
    }

    /// Waits a bounded time until the collector has what there is. What comes afterwards is told if there is time.
    pub(crate) async fn flush(&self) {
        self.exporting.flush().await;
    }
}

fn at(wall_ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(wall_ms)
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The span of a request under way. Dropped without an answer, it says that there was none.
pub(crate) struct RequestSpan(Span);

impl RequestSpan {
    /// The trace, where it is told.
    pub(crate) fn trace(&self) -> Option<String> {
        let context: &SpanContext = self.0.span_context();
        context.is_sampled().then(|| context.trace_id().to_string())
    }

    /// The request was answered, or refused with a code.
    pub(crate) fn answered(mut self, status: StatusCode, code: Option<&'static str>) {
        self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if let Some(code) = code {
            self.0.set_attribute(KeyValue::new("error.type", code));
        }
        // What a client did wrong is no failure of the server's.
        if status.is_server_error() {
            self.0.set_status(Status::error(code.unwrap_or_default()));
        }
        self.0.end();
    }
}

#[cfg(test)]
mod tests;
