//! What a node tells a collector of OpenTelemetry, and that it needs none.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::collector::Collector;
use crate::support::metrics::{ask, free_port, scrape};
use crate::support::{Home, finish, kill, wait_until};

/// A trace that somebody else began.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// `grey dev` that tells its spans.
struct Telling {
    home: Home,
    node: Child,
    port: u16,
    metrics: u16,
    token: String,
}

impl Telling {
    fn start(set: impl FnOnce(&mut std::process::Command)) -> Telling {
        let (home, port, metrics) = (Home::new(), free_port(), free_port());
        let (listen, read) = (format!("127.0.0.1:{port}"), metrics.to_string());
        let mut command =
            home.command(&["dev", "--listen", &listen, "--metrics-listen", &read, "-o", "jsonl"]);
        set(&mut command);
        let mut node = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let token = said["token"].as_str().unwrap().to_owned();
        Telling { home, node, port, metrics, token }
    }

    /// A request with a header more; the status line.
    fn ask(&self, request: &str, header: &str) -> String {
        let request = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{header}\r\n\r\n",
            self.token
        );
        ask(self.port, &request).0
    }

    fn spans(&self, fate: &str) -> u64 {
        let text = scrape(self.metrics);
        let sample = format!("grey_trace_spans_total{{fate=\"{fate}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
    }

    /// Ends it in order; how long that took, and what it has written to its log.
    fn end(mut self) -> (Duration, String) {
        let begun = Instant::now();
        kill(i32::try_from(self.node.id()).unwrap(), "TERM");
        let node = std::mem::replace(&mut self.node, std::process::Command::new("true").spawn().unwrap());
        let ran = finish(node);
        assert_eq!(ran.status, 0, "{}", ran.errors);
        (begun.elapsed(), ran.errors)
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        drop(self.node.kill());
        drop(self.node.wait());
    }
}

#[test]
fn a_request_and_the_attempt_that_came_of_it_are_told_to_the_collector() {
    let collector = Collector::new();
    let telling = Telling::start(|command| {
        command.env("GREY_TRACES_ENDPOINT", collector.endpoint());
    });
    let ran = telling.home.grey(&["run", "--", "sh", "-c", "exit 3"]);
    assert_eq!(ran.status, 3, "{}", ran.errors);
    wait_until("the attempt is told", || !collector.named("attempt").is_empty());
    let attempts = collector.named("attempt");
    let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
    for (key, value) in [
        ("grey.task", "t1"),
        ("grey.job", "j1"),
        ("grey.attempt", "1"),
        ("grey.outcome", "exited"),
        ("grey.exit_code", "3"),
    ] {
        assert!(attempt.has(key, value), "{key} is not {value}: {attempt:?}");
    }
    assert!(attempt.span.end_time_unix_nano > attempt.span.start_time_unix_nano);
    // OTLP's number of an error: the command failed.
    assert_eq!(attempt.span.status.as_ref().unwrap().code, 2);
    for (key, value) in
        [("service.name", "grey"), ("service.version", env!("CARGO_PKG_VERSION")), ("grey.role", "local")]
    {
        assert_eq!(attempt.teller(key).as_deref(), Some(value), "{:?}", attempt.resource);
    }
    let node = attempt.teller("grey.node").unwrap();
    assert_eq!((node.len(), attempt.teller("service.instance.id")), (64, Some(node.clone())));
    wait_until("the submission is told", || !collector.named("POST /v1/jobs").is_empty());
    let submitted = collector.named("POST /v1/jobs").remove(0);
    assert!(submitted.has("http.response.status_code", "200"), "{submitted:?}");
    assert!(submitted.has("http.route", "/v1/jobs") && submitted.parent().is_empty(), "{submitted:?}");
}

#[test]
fn a_trace_that_somebody_began_goes_on_here_as_they_want_it() {
    let collector = Collector::new();
    let telling = Telling::start(|command| {
        // Of what begins here, nothing is told.
        command.args(["--traces-endpoint", &collector.endpoint(), "--traces-ratio", "0"]);
    });
    let wanted = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: vendor=7");
    let unwanted = format!("traceparent: 00-{}-{PARENT}-00", "1".repeat(32));
    assert!(telling.ask("GET /v1/cluster", &unwanted).starts_with("HTTP/1.1 200"));
    assert!(telling.ask("GET /v1/cluster", "X-Other: 1").starts_with("HTTP/1.1 200"));
    assert!(telling.ask("GET /v1/cluster", "traceparent: nonsense").starts_with("HTTP/1.1 200"));
    assert!(telling.ask("GET /health/live", &wanted).starts_with("HTTP/1.1 200"));
    let answer = telling.ask("GET /v1/tasks/t999?x=secret", &format!("{wanted}\r\nX-Request-ID: mine"));
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let (_, said) = telling.end();
    assert!(!said.contains("collector does not"), "{said}");
    // It has ended, and what it had was told before.
    let all = collector.told();
    let [told] = &all[..] else { panic!("{all:?}") };
    assert_eq!((told.trace().as_str(), told.parent().as_str()), (TRACE, PARENT));
    assert_eq!(told.span.trace_state, "vendor=7");
    assert_eq!(told.span.name, "GET /v1/tasks/{id}");
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/v1/tasks/t999"),
        ("http.response.status_code", "400"),
        ("error.type", "invalid_request"),
        ("grey.request", "mine"),
    ] {
        assert!(told.has(key, value), "{key} is not {value}: {told:?}");
    }
    // OTLP's number of what is not said: it was the client's mistake.
    assert_eq!(told.span.status.clone().unwrap_or_default().code, 0);
}

#[test]
fn a_node_needs_no_collector_to_work_and_to_end() {
    // Given: one collector that is not there, and one that takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = silent.local_addr().unwrap().port();
    for (port, fails) in [(free_port(), true), (mute, false)] {
        let telling = Telling::start(|command| {
            // The name of it that every program with OpenTelemetry knows.
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"));
        });
        // When: there is work to do.
        for _ in 0..5 {
            assert_eq!(telling.home.grey(&["run", "--", "true"]).status, 0);
        }
        if fails {
            wait_until("it is counted", || telling.spans("failed") > 5);
        }
        assert_eq!((telling.spans("exported"), telling.spans("dropped")), (0, 0));
        // Then: it ends promptly, and has complained once.
        let (took, said) = telling.end();
        assert!(took < Duration::from_secs(8), "it took {took:?}");
        let complaints = said.matches("the collector does not take spans").count();
        assert_eq!(complaints, usize::from(fails), "{said}");
    }
}

#[test]
fn a_wrong_collector_is_refused_and_none_is_asked_for_with_none() {
    let home = Home::new();
    for (arguments, field) in [
        (&["--traces-endpoint", "collector:4317"][..], "traces.endpoint"),
        (&["--traces-endpoint", "https://127.0.0.1:4317"], "traces.ca_file"),
        (&["--traces-endpoint", "http://127.0.0.1:4317", "--traces-ratio", "1.5"], "traces.ratio"),
    ] {
        let ran = home.grey(&[&["dev", "--listen", "127.0.0.1:0"], arguments].concat());
        assert_eq!(ran.status, 2, "{}", ran.errors);
        assert!(ran.errors.contains(field), "{}", ran.errors);
    }
    let collector = Collector::new();
    let telling = Telling::start(|command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
        command.args(["--traces-endpoint", "none"]);
    });
    assert_eq!(telling.home.grey(&["run", "--", "true"]).status, 0);
    drop(telling.end());
    assert!(collector.told().is_empty());
}

#[test]
fn what_every_program_is_told_of_a_collector_keeps_no_node_from_starting() {
    for endpoint in ["https://127.0.0.1:4317", "collector:4317"] {
        let telling = Telling::start(|command| {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        });
        assert_eq!(telling.home.grey(&["run", "--", "true"]).status, 0);
        let (_, said) = telling.end();
        assert_eq!(said.matches("spans are told to nobody").count(), 1, "{said}");
        assert!(said.contains(endpoint) && said.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{said}");
    }
}

#[test]
fn what_every_program_is_told_of_its_spans_keeps_no_node_from_telling_its_own_collector() {
    for (variable, value) in [
        // Grey's exporter compresses nothing.
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "=,no header\u{e9}=x"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "perhaps"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=,="),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1"),
    ] {
        let collector = Collector::new();
        let telling = Telling::start(|command| {
            command.env(variable, value).args(["--traces-endpoint", &collector.endpoint()]);
        });
        assert_eq!(telling.home.grey(&["run", "--", "true"]).status, 0, "{variable}={value}");
        let (_, said) = telling.end();
        assert!(!collector.told().is_empty(), "{variable}={value}: {said}");
    }
}
