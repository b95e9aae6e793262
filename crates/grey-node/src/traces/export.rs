//! The queue of spans, and the task that gives them to a collector in batches.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter, SpanProcessor};
use tokio::sync::{mpsc, oneshot};

use crate::config::TracesConfig;
use crate::error::NodeError;
use crate::metrics::{Meters, SpanFate};

/// Spans that wait for the collector; more are dropped. Each takes about a kilobyte.
const QUEUE_SPANS: usize = 4_096;
/// The most spans of one request to the collector.
const BATCH_SPANS: usize = 512;
/// How long a span waits for others to be told with.
const GATHER: Duration = Duration::from_millis(500);
/// How long the collector may take for a batch, tries included.
const EXPORT_WITHIN: Duration = Duration::from_secs(10);
/// How long the collector may take for all there is when the node ends.
pub(super) const FLUSH_WITHIN: Duration = Duration::from_secs(2);
/// How often it is said that the collector does not take spans.
const SAY_EVERY: Duration = Duration::from_secs(300);
/// The largest file of certificates, in bytes.
const LARGEST_CA_BYTES: u64 = 1024 * 1024;

/// Where spans go that end.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    meters: Arc<Meters>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        // Whoever ends a span never waits for the collector.
        if self.spans.try_send(span).is_err() {
            self.meters.spans(SpanFate::Dropped, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that exports.
pub(super) struct Exporting(mpsc::Sender<oneshot::Sender<()>>);

impl Exporting {
    /// Waits a bounded time until what is in the queue was exported, or was tried to be.
    pub(super) async fn flush(&self) {
        let (reply, flushed) = oneshot::channel();
        let flush = async {
            if self.0.send(reply).await.is_ok() {
                drop(flushed.await);
            }
        };
        if tokio::time::timeout(FLUSH_WITHIN, flush).await.is_err() {
            tracing::info!("the collector did not take the last spans in time");
        }
    }
}

/// The way to the collector.
pub(super) fn exporter(config: &TracesConfig, resource: &Resource) -> Result<OtlpExporter, NodeError> {
    let unusable = |reason: String| NodeError::Traces { endpoint: config.endpoint.clone(), reason };
    config.check().map_err(unusable)?;
    let mut builder = OtlpExporter::builder()
        .with_tonic()
        .with_endpoint(config.endpoint.clone())
        .with_timeout(EXPORT_WITHIN);
    if let Some(path) = config.ca_file.as_ref().filter(|_| config.endpoint.starts_with("https:")) {
        let pem = read_ca(path)?;
        builder = builder.with_tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)));
    }
    let mut exporter = builder.build().map_err(|error| unusable(error.to_string()))?;
    exporter.set_resource(resource);
    Ok(exporter)
}

fn read_ca(path: &Path) -> Result<Vec<u8>, NodeError> {
    let failed = NodeError::io("read", path.display());
    match std::fs::metadata(path) {
        Ok(about) if about.len() > LARGEST_CA_BYTES => Err(NodeError::Damaged {
            file: path.display().to_string(),
            reason: format!("certificates are expected, at most {LARGEST_CA_BYTES} bytes"),
        }),
        Ok(_) => std::fs::read(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// Starts the task that gives spans to an exporter.
pub(super) fn start(exporter: impl SpanExporter + 'static, meters: Arc<Meters>) -> (Queue, Exporting) {
    let (spans, queued) = mpsc::channel(QUEUE_SPANS);
    let (flush, flushes) = mpsc::channel(1);
    let telling = Telling { exporter, meters: meters.clone(), said: None, lost_unsaid: 0 };
    tokio::spawn(telling.run(queued, flushes));
    (Queue { spans, meters }, Exporting(flush))
}

struct Telling<E> {
    exporter: E,
    meters: Arc<Meters>,
    /// When it was last said that the collector does not take spans.
    said: Option<Instant>,
    /// What it did not take since.
    lost_unsaid: u64,
}

impl<E: SpanExporter> Telling<E> {
    async fn run(
        mut self,
        mut queued: mpsc::Receiver<SpanData>,
        mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                count = queued.recv_many(&mut batch, BATCH_SPANS) => {
                    if count == 0 {
                        return;
                    }
                    if batch.len() < BATCH_SPANS {
                        self.gather(&mut queued, &mut batch, &mut flushes).await;
                    }
                    self.export(core::mem::take(&mut batch)).await;
                }
                Some(reply) = flushes.recv() => self.flush(&mut queued, Vec::new(), reply).await,
            }
        }
    }

    /// Waits for more spans until the batch is full, its time has come, or all are to be told at once.
    async fn gather(
        &mut self,
        queued: &mut mpsc::Receiver<SpanData>,
        batch: &mut Vec<SpanData>,
        flushes: &mut mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let due = tokio::time::sleep(GATHER);
        tokio::pin!(due);
        while batch.len() < BATCH_SPANS {
            let room = BATCH_SPANS - batch.len();
            tokio::select! {
                () = &mut due => return,
                count = queued.recv_many(batch, room) => if count == 0 { return },
                Some(reply) = flushes.recv() => {
                    return self.flush(queued, core::mem::take(batch), reply).await;
                }
            }
        }
    }

    async fn flush(
        &mut self,
        queued: &mut mpsc::Receiver<SpanData>,
        mut batch: Vec<SpanData>,
        reply: oneshot::Sender<()>,
    ) {
        // What comes in meanwhile must not keep it here for ever.
        let mut left = batch.len() + queued.len();
        while left > 0 {
            while batch.len() < BATCH_SPANS.min(left) {
                match queued.try_recv() {
                    Ok(span) => batch.push(span),
                    Err(_) => break,
                }
            }
            left = left.saturating_sub(batch.len().max(1));
            self.export(core::mem::take(&mut batch)).await;
        }
        // Whoever asked may have gone.
        let _ = reply.send(());
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let outcome = tokio::time::timeout(EXPORT_WITHIN, self.exporter.export(batch)).await;
        let reason = match outcome {
            Ok(Ok(())) => {
                self.meters.spans(SpanFate::Exported, count);
                if self.said.take().is_some() {
                    tracing::info!(lost = self.lost_unsaid, "the collector takes spans again");
                    self.lost_unsaid = 0;
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it did not answer within {} s", EXPORT_WITHIN.as_secs()),
        };
        self.meters.spans(SpanFate::Failed, count);
        self.lost_unsaid = self.lost_unsaid.saturating_add(count);
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!(lost = self.lost_unsaid, reason, "the collector does not take spans");
            self.lost_unsaid = 0;
        }
    }
}
