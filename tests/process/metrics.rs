//! What a node's monitoring reads, and that docs/metrics.md lists it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::support::metrics::{ask, exposed, free_port, listed, scrape};
use crate::support::{Home, Ran, kill, wait_until};

/// `grey dev` with metrics.
struct Watched {
    home: Home,
    node: Child,
    port: u16,
    token: String,
}

impl Watched {
    fn new() -> Watched {
        let (home, port) = (Home::new(), free_port());
        let mut node = home
            .command(&[
                "dev",
                "--listen",
                "127.0.0.1:0",
                "--metrics-listen",
                &port.to_string(),
                "-o",
                "jsonl",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(said["metrics"], format!("http://127.0.0.1:{port}/metrics"));
        let token = said["token"].as_str().unwrap().to_owned();
        Watched { home, node, port, token }
    }

    /// The value of a sample, by its name and labels as they are written.
    fn value(&self, sample: &str) -> Option<f64> {
        let text = scrape(self.port);
        let found = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        found.map(|value| value.parse().unwrap())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        kill(i32::try_from(self.node.id()).unwrap(), "INT");
        drop(self.node.wait());
    }
}

#[test]
fn the_list_of_metrics_is_what_a_node_exposes_and_nothing_else() {
    let watched = Watched::new();
    assert_eq!(watched.home.grey(&["run", "--", "true"]).status, 0);
    let exposed = exposed(&scrape(watched.port));
    let listed = listed(&["Every node", "Servers", "Workers"]);
    assert!(listed.len() > 30, "only {} are listed", listed.len());
    for (name, about) in &exposed {
        assert_eq!(listed.get(name), Some(about), "{name}: type and labels in docs/metrics.md");
    }
    for name in listed.keys() {
        assert!(exposed.contains_key(name), "{name} is listed and not exposed");
    }
}

#[test]
fn what_tenants_do_is_counted_for_each_of_them_and_no_task_has_a_label() {
    let watched = Watched::new();
    let home = &watched.home;
    assert_eq!(home.grey(&["tenant", "create", "red"]).status, 0);
    assert_eq!(home.grey(&["run", "-t", "red", "--", "true"]).status, 0);
    assert_eq!(home.grey(&["run", "-t", "red", "--", "false"]).status, 1);
    assert_eq!(home.grey(&["run", "--", "true"]).status, 0);
    assert_ne!(home.grey(&["task", "status", "t999"]).status, 0);
    // What was read a moment ago is read again.
    wait_until("all of it is counted", || {
        watched.value("grey_tasks_ended_total{state=\"completed\"}") == Some(2.0)
    });
    for (sample, value) in [
        ("grey_submissions_total{tenant=\"red\"}", 2.0),
        ("grey_submissions_total{tenant=\"default\"}", 1.0),
        ("grey_submissions_total{tenant=\"system\"}", 0.0),
        ("grey_submitted_tasks_total{tenant=\"red\"}", 2.0),
        ("grey_tasks_ended_total{state=\"failed\"}", 1.0),
        ("grey_attempts_ended_total{outcome=\"exited\"}", 3.0),
        ("grey_worker_attempts_ended_total{outcome=\"exited\"}", 3.0),
        ("grey_attempts_ended_total{outcome=\"timed_out\"}", 0.0),
        ("grey_refusals_total{code=\"not_found\"}", 1.0),
        ("grey_tasks{tenant=\"red\",state=\"pending\"}", 0.0),
        ("grey_workers{presence=\"present\"}", 1.0),
        ("grey_workers{presence=\"lost\"}", 0.0),
        ("grey_raft_leads", 1.0),
        ("grey_pressure_level", 0.0),
        ("grey_worker_registered", 1.0),
    ] {
        assert_eq!(watched.value(sample), Some(value), "{sample}");
    }
    for (sample, least) in [
        ("grey_commit_duration_seconds_count", 4.0),
        ("grey_store_sync_duration_seconds_count", 1.0),
        ("grey_raft_applied_index", 5.0),
        ("grey_disk_free_bytes", 1.0),
        ("grey_process_resident_bytes", 1_000_000.0),
        ("grey_process_open_files", 5.0),
        ("grey_http_requests_total{method=\"post\",status=\"2xx\"}", 4.0),
    ] {
        let value = watched.value(sample).unwrap_or_else(|| panic!("there is no {sample}"));
        assert!(value >= least, "{sample} is {value}");
    }
    let text = scrape(watched.port);
    for secret in ["\"t1\"", "\"j1\"", &watched.token] {
        assert!(!text.contains(secret), "`{secret}` is exposed");
    }
}

#[test]
fn nothing_but_metrics_is_told_there_and_nobody_listens_unasked() {
    let watched = Watched::new();
    for (request, status) in [
        ("GET /v1/cluster HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n", 403),
        ("nonsense\r\n\r\n", 400),
    ] {
        let (head, body) = ask(watched.port, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert!(!body.contains("grey_"), "{body}");
    }
    let home = Home::new();
    let ran = home.grey(&["dev", "--metrics-listen", "0.0.0.0:7655"]);
    assert_eq!(ran.status, 1);
    assert!(ran.errors.contains("loopback"), "{}", ran.errors);
    let taken = watched.port.to_string();
    let ran: Ran = home.grey(&["dev", "--listen", "127.0.0.1:0", "--metrics-listen", &taken]);
    assert_eq!(ran.status, 1);
    assert!(ran.errors.contains("--metrics-listen"), "{}", ran.errors);
}
