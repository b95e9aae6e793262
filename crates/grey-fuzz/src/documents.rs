//! What users and clients write: submissions, streams of tasks, task files, words with units.

use std::sync::LazyLock;

use grey_api::{Address, JobRequest, TaskRequest};

use crate::bytes::Bytes;

/// The body of a submission: whatever it is, it is refused or becomes a command that the core takes.
pub(crate) fn submission(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<JobRequest>(data) {
        let written = serde_json::to_vec(&request).expect("a request is written");
        assert_eq!(serde_json::from_slice::<JobRequest>(&written).ok().as_ref(), Some(&request));
    }
    for command in grey_node::fuzzing::submissions(data) {
        let encoded = grey_core::Entry { time_ms: 0, command: grey_core::Command::Submit(command) }.encode();
        let Ok(encoded) = encoded else { continue };
        let mut state = crate::commands::busy();
        crate::commands::applied(&mut state, 1, &encoded);
    }
}

pub(crate) fn submission_corpus() -> Vec<Vec<u8>> {
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let flow = format!(
        r#"{{"name":"j","tenant":"default","labels":{{"a":"b"}},"parallel":3,"max_failures":1,"tasks":[{{"name":"a","command":["true"],"env":{{"A":"b"}},"count":3}},{{"name":"b","command":["cat"],"after":["a"],"inputs_from":[{{"task":"a","path":"in"}}],"stdin":{{"digest":"{digest}","size_bytes":3}}}}]}}"#
    );
    let full = format!(
        r#"{{"tasks":[{{"executor":"noop","cpu_millicores":5,"memory_bytes":1,"disk_bytes":0,"priority":9,"timeout_ms":1000,"output_limit_bytes":10,"retries":{{"failure":1}},"devices":{{"gpu":1}},"constraints":{{"labels":{{"zone":"a"}},"tier":"software","sandbox":"none"}},"outputs":["*"],"inputs":[{{"path":"x","digest":"{digest}","size_bytes":3,"executable":true}}],"first_item":-4,"count":2}}]}}"#
    );
    let items = format!(
        r#"[{{"items":{{"digest":"{digest}","size_bytes":9}},"count":2,"command":["a"]}},{{"command":["b"]}}]"#
    );
    let lines = "{\"command\":[\"a\"]}\n{\"command\":[\"a\"]}\n\n{\"command\":[\"b\"],\"count\":2}\n";
    vec![flow.into_bytes(), full.into_bytes(), items.into_bytes(), lines.into()]
}

/// A stream of lines: what its batches are follows from the lines and not from its pieces, and no byte is lost.
pub(crate) fn task_stream(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (piece, shape) = (1 + usize::from(bytes.byte()), bytes.byte());
    let text = bytes.rest();
    // Long lines and many of them, without long inputs.
    let text = match shape {
        0..200 => text.to_vec(),
        200..230 => text.repeat(usize::from(shape - 190) * 8),
        _ => [text, &b" ".repeat(usize::from(shape) * 1_024), text].concat(),
    };
    let whole = grey_node::fuzzing::batches(&text, text.len().max(1));
    let cut = grey_node::fuzzing::batches(&text, piece.max(text.len() / 400));
    assert_eq!(whole, cut, "batches follow from the lines alone");
    if let Ok(batches) = &whole {
        let joined: Vec<u8> = batches.concat();
        assert!(text.starts_with(&joined), "a byte of a stream is lost");
        let left = text.get(joined.len()..).unwrap_or_default();
        assert!(left.iter().all(u8::is_ascii_whitespace), "a task of a stream is lost");
    }
    for line in text.split(|byte| *byte == b'\n').take(64) {
        if let Some(item) = grey_node::fuzzing::item(line) {
            assert!(!item.contains('\0'), "an item is a variable's value");
        }
    }
}

pub(crate) fn stream_corpus() -> Vec<Vec<u8>> {
    let lines = "{\"command\":[\"a\"]}\n\n{\"command\":[\"b\"]}\n \n{}";
    let items = "\"a b\"\n\"x\\ny\"\n{\"path\":\"p\",\"digest\":\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\",\"size_bytes\":1}\n";
    [(7u8, 0u8, lines), (0, 205, lines), (255, 240, "{}\n"), (3, 0, items)]
        .into_iter()
        .map(|(piece, shape, text)| [&[piece, shape], text.as_bytes()].concat())
        .collect()
}

/// A task file in one of its three forms. It lies on the disk, since it is a file that a user has.
pub(crate) fn task_file(data: &[u8]) {
    static DIRECTORY: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
        let directory = std::env::temp_dir().join(format!("grey-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for task files is made");
        directory
    });
    let mut bytes = Bytes::new(data);
    let extension = bytes.pick(&["toml", "yaml", "json"]).unwrap_or("toml");
    let name = format!("{:?}.{extension}", std::thread::current().id());
    let path = DIRECTORY.join(name);
    std::fs::write(&path, bytes.rest()).expect("a task file is written");
    if let Ok(request) = grey::fuzzing::task_file(&path) {
        let read: JobRequest = serde_json::from_slice(&request).expect("a task file becomes a request");
        assert!(!read.tasks.is_empty());
    }
    std::fs::remove_file(&path).expect("a task file is removed");
}

pub(crate) fn task_file_corpus() -> Vec<Vec<u8>> {
    let toml = r#"version = 1
name = "n"
parallel = 2
[defaults]
cpu = "500m"
memory = "64MiB"
retries = { failure = 1 }
[[task]]
name = "split"
command = ["sh", "-c", "true"]
each = { range = "1..9" }
[[task]]
name = "join"
command = ["cat"]
inputs = [{ from = "split", to = "in" }]
timeout = "10m"
"#;
    let yaml = "version: 1\ndefaults: &d\n  cpu: '2'\ntask:\n- name: a\n  command: [echo, \"{}\"]\n  each: {items: [1, a, {b: c}]}\n- after: [a]\n  command: ['true']\n  devices: {gpu: 1}\n";
    let json = r#"{"version":1,"task":[{"command":["a"],"count":3,"env":{"A":"b"},"output_limit":"1GiB"}]}"#;
    [(0u8, toml), (1, yaml), (2, json)]
        .into_iter()
        .map(|(form, text)| [&[form], text.as_bytes()].concat())
        .collect()
}

/// Sizes, times, addresses, identifiers: what reads is written back the same.
pub(crate) fn words(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let [size, time, cpu] = grey::fuzzing::units(text);
    for (value, unit) in [(size, "B"), (time, "ms"), (cpu, "m")] {
        if let Some(value) = value {
            let again = grey::fuzzing::units(&format!("{value}{unit}"));
            assert!(again.contains(&Some(value)), "{text} reads as {value} and is not written so");
        }
    }
    grey::fuzzing::words(text);
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse(), Ok(address), "an address reads back as written");
    }
    if let Ok(task) = text.parse::<grey_core::TaskId>() {
        assert_eq!(task.to_string(), text);
    }
    if let Ok(digest) = text.parse::<grey_proof::Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(task) = serde_json::from_str::<TaskRequest>(text) {
        assert!(serde_json::to_string(&task).is_ok());
    }
}

pub(crate) fn words_corpus() -> Vec<Vec<u8>> {
    [
        "64MiB",
        "1 GB",
        "500ms",
        "2h",
        "500m",
        "A=b",
        "gpu=1",
        "t42",
        "127.0.0.1:7654",
        "http://[::1]:9/",
        "unix:/run/x",
    ]
    .into_iter()
    .map(Vec::from)
    .collect()
}

/// A node's configuration: refused with reasons, or right for the nodes whose tables it has.
pub(crate) fn node_config(data: &[u8]) {
    use grey_node::config::{Configuration, NodeKind};
    let Ok(text) = core::str::from_utf8(data) else { return };
    let Ok(configuration) = text.parse::<Configuration>() else { return };
    match configuration.check() {
        Ok(kinds) => {
            for kind in kinds {
                let right = match kind {
                    NodeKind::Server => configuration.server().is_ok(),
                    NodeKind::Worker => configuration.worker().is_ok(),
                };
                assert!(right, "what was checked is taken");
            }
        }
        Err(error) => assert!(!error.0.is_empty(), "a refusal has a reason"),
    }
}

pub(crate) fn node_config_corpus() -> Vec<Vec<u8>> {
    let server = "[server]\nname = \"a\"\ndata_dir = \"/d\"\nlisten = \"[::]:7654\"\nadvertise = \"a.example.com\"\n\
                  metrics_listen = \"127.0.0.1:1\"\n[server.join]\nservers = [\"b:1\", \"[::1]:2\"]\ntoken = \"t\"\n\
                  [server.retention]\nlogs = \"1d\"\nhistory = \"2d\"\n[server.intake]\ntasks_per_second = 5\nunder_way = 7\n\
                  [log]\nformat = \"json\"\nlevel = \"warn\"\n";
    let worker = "[worker]\ndata_dir = \"/d\"\nservers = [\"10.0.0.1\"]\ntoken_file = \"/t\"\n[worker.labels]\nzone = \"a\"\n\
                  [worker.devices]\ngpu = 2\n";
    let wrong =
        "[server]\nlisten = 1\nadvertize = \"a\"\nretention = []\n[worker]\nlabels = { a = 1 }\n[x]\n";
    [server, worker, wrong].map(Vec::from).to_vec()
}
