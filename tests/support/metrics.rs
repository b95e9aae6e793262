//! Metrics as they are read, and as docs/metrics.md lists them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A port that is free now. That somebody else takes it before a node does is rare, and fails loudly.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a request to a port; status line and headers, and the body.
pub fn ask(port: u16, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// What is read at a port.
pub fn scrape(port: u16) -> String {
    let (head, body) = ask(port, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    body
}

/// Name, type and labels of every metric of a scrape.
pub fn exposed(text: &str) -> BTreeMap<String, (String, String)> {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            let name = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            found.insert(name, (kind.to_owned(), String::new()));
        } else if let Some((sample, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split_once('}').unwrap().0;
            let names: Vec<&str> = labels
                .split(',')
                .map(|label| label.split('=').next().unwrap())
                .filter(|name| *name != "le")
                .collect();
            if let Some(entry) = found.get_mut(sample) {
                entry.1 = names.join(", ");
            }
        }
    }
    found
}

/// Type and labels of what docs/metrics.md lists below some headings: `| name | type | labels | meaning |`.
pub fn listed(headings: &[&str]) -> BTreeMap<String, (String, String)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let (mut found, mut heading) = (BTreeMap::new(), "");
    for line in page.lines() {
        heading = line.strip_prefix("## ").unwrap_or(heading);
        if !line.starts_with("| `grey_") || !headings.contains(&heading) {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("{line}") };
        assert!(!meaning.is_empty(), "{name} means nothing");
        found.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), labels.replace('`', "")));
    }
    found
}
