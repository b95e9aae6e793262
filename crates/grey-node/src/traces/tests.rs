//! Spans never hold anybody up, and what became of each is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::Semaphore;

use super::*;
use crate::metrics::SpanFate;

/// A collector that takes a batch for each permit, or refuses all.
#[derive(Debug, Clone)]
struct Collector {
    permits: Arc<Semaphore>,
    refuses: bool,
    taken: Arc<AtomicU64>,
}

impl Collector {
    fn new(permits: usize, refuses: bool) -> Collector {
        Collector { permits: Arc::new(Semaphore::new(permits)), refuses, taken: Arc::default() }
    }

    fn traces(&self, sampled_per_million: u32) -> (Traces, Arc<Meters>) {
        let meters = Arc::new(Meters::new());
        let (queue, exporting) = export::start(self.clone(), meters.clone());
        let resource = Resource::builder_empty().build();
        (Traces::new(queue, exporting, resource, sampled_per_million), meters)
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.permits.acquire().await.unwrap().forget();
        if self.refuses {
            return Err(OTelSdkError::InternalFailure("refused".to_owned()));
        }
        self.taken.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn tell(traces: &Traces, count: usize) {
    for _ in 0..count {
        let span = traces.request(&Method::GET, "/v1/jobs", None, "r1", &mut HeaderMap::new());
        span.unwrap().answered(StatusCode::OK, None);
    }
}

fn fates(meters: &Meters) -> [u64; 3] {
    [SpanFate::Exported, SpanFate::Dropped, SpanFate::Failed].map(|fate| meters.spans_so_far(fate))
}

#[tokio::test]
async fn what_a_slow_collector_leaves_no_room_for_is_dropped_and_counted() {
    let collector = Collector::new(0, false);
    let (traces, meters) = collector.traces(1_000_000);
    tell(&traces, 5_000);
    let [exported, dropped, failed] = fates(&meters);
    assert_eq!((exported, failed), (0, 0));
    assert_eq!(dropped, 5_000 - 4_096, "the queue is full");
    // It takes everything that has waited, once it is there.
    collector.permits.add_permits(1_000);
    traces.flush().await;
    assert_eq!(fates(&meters), [4_096, dropped, 0]);
    assert_eq!(collector.taken.load(Ordering::Relaxed), 4_096);
}

#[tokio::test]
async fn a_flush_does_not_wait_for_a_collector_that_does_not_answer() {
    let (traces, meters) = Collector::new(0, false).traces(1_000_000);
    tell(&traces, 3);
    let begun = Instant::now();
    traces.flush().await;
    let took = begun.elapsed();
    assert!((export::FLUSH_WITHIN..2 * export::FLUSH_WITHIN).contains(&took), "{took:?}");
    assert_eq!(fates(&meters), [0, 0, 0]);
}

#[tokio::test]
async fn what_the_collector_refuses_is_counted_and_the_next_is_tried_again() {
    let (traces, meters) = Collector::new(1_000, true).traces(1_000_000);
    for _ in 0..2 {
        tell(&traces, 3);
        traces.flush().await;
    }
    assert_eq!(fates(&meters), [0, 0, 6]);
}

#[tokio::test]
async fn spans_are_told_in_time_without_a_flush() {
    let (traces, meters) = Collector::new(1_000, false).traces(1_000_000);
    tell(&traces, 3);
    let told = async {
        while fates(&meters) != [3, 0, 0] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
}

#[tokio::test]
async fn a_trace_goes_on_as_whoever_began_it_wants_and_headers_name_the_span_of_here() {
    for (sampled_per_million, flags, is_told) in [(0, "01", true), (1_000_000, "00", false)] {
        let (traces, _) = Collector::new(0, false).traces(sampled_per_million);
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", format!("00-{trace}-{parent}-{flags}").parse().unwrap());
        headers.insert("tracestate", "vendor=7".parse().unwrap());
        let span = traces.request(&Method::POST, "/v1/jobs", None, "r1", &mut headers).unwrap();
        assert_eq!(span.trace().is_some(), is_told);
        let onward = headers["traceparent"].to_str().unwrap();
        let parts: Vec<&str> = onward.split('-').collect();
        assert_eq!((parts[1], parts[3]), (trace, flags));
        assert_ne!(parts[2], parent);
        assert_eq!(headers["tracestate"], "vendor=7");
    }
    // What is no trace begins one, and leaves nothing of it behind.
    let (traces, _) = Collector::new(0, false).traces(1_000_000);
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", "nonsense".parse().unwrap());
    headers.insert("tracestate", "vendor=7".parse().unwrap());
    assert!(traces.request(&Method::POST, "/v1/jobs", None, "r1", &mut headers).is_some());
    assert!(headers["traceparent"].to_str().unwrap().ends_with("-01"));
    assert!(!headers.contains_key("tracestate"));
    assert!(traces.request(&Method::GET, "/health/ready", None, "r2", &mut headers).is_none());
}

/// A collector on the loopback interface that takes TLS connections and hangs up; whether a client came to terms with it.
async fn tls_collector() -> (String, String, tokio::task::JoinHandle<bool>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let chain = vec![certificate.der().clone()];
    let mut config = tokio_rustls::rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key.serialize_der().try_into().unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that does not believe the certificate says so before it sends anything.
        match acceptor.accept(stream).await {
            Ok(mut stream) => tokio::io::AsyncReadExt::read_u8(&mut stream).await.is_ok(),
            Err(_) => false,
        }
    });
    (endpoint, certificate.pem(), served)
}

#[tokio::test]
async fn a_collector_behind_tls_is_believed_by_the_certificates_of_the_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (_, other, _) = tls_collector().await;
    for is_its_own in [true, false] {
        let (endpoint, certificate, served) = tls_collector().await;
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, if is_its_own { &certificate } else { &other }).unwrap();
        let config = told(endpoint, Some(ca_file), false);
        let (cluster, node) = (Digest::of(b"c"), Digest::of(b"n"));
        let teller = Teller { cluster, node, name: None, role: "server" };
        let traces = Traces::start(Some(&config), &teller, Arc::new(Meters::new())).unwrap().unwrap();
        tell(&traces, 1);
        let flushed = tokio::time::timeout(Duration::from_secs(30), served);
        let (_, believed) = tokio::join!(traces.flush(), flushed);
        assert_eq!(believed.unwrap().unwrap(), is_its_own);
    }
    let nowhere = Some(directory.path().join("nowhere.pem"));
    let config = told("https://localhost:1".to_owned(), nowhere, false);
    let teller = Teller { cluster: Digest::of(b"c"), node: Digest::of(b"n"), name: None, role: "server" };
    let refused = Traces::start(Some(&config), &teller, Arc::new(Meters::new()));
    assert!(refused.err().unwrap().to_string().contains("nowhere.pem"));
}

fn told(endpoint: String, ca_file: Option<std::path::PathBuf>, is_shared: bool) -> TracesConfig {
    TracesConfig { endpoint, ca_file, sampled_per_million: 1_000_000, is_shared }
}

#[tokio::test]
async fn a_collector_that_every_program_is_told_of_and_that_is_not_usable_is_told_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = directory.path().join("ca.pem");
    std::fs::write(&damaged, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    for (endpoint, ca_file) in [
        ("https://localhost:1", None),
        ("https://localhost:1", Some(directory.path().join("nowhere.pem"))),
        ("https://localhost:1", Some(damaged)),
        ("localhost:4317", None),
        ("", None),
    ] {
        let teller = Teller { cluster: Digest::of(b"c"), node: Digest::of(b"n"), name: None, role: "server" };
        for is_shared in [true, false] {
            let config = told(endpoint.to_owned(), ca_file.clone(), is_shared);
            let started = Traces::start(Some(&config), &teller, Arc::new(Meters::new()));
            match started {
                Ok(traces) => assert!(is_shared && traces.is_none(), "{config:?}"),
                Err(error) => assert!(!is_shared, "{config:?}: {error}"),
            }
        }
    }
}
