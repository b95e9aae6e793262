//! What a worker reads back: its outbox, what its shim and guards say, and what it kept with attempts.

use grey_agent::{Adoptable, Agent, AgentError, AgentOptions, KeepOptions, Output};
use grey_core::{
    Assignment, AttemptId, AttemptResult, Content, Epoch, ExecutorKind, Finished, FromWorker, JobId, Outcome,
    OutputFile, Placement, ReportedRun, Resources, Retries, RunContext, SandboxLevel, Signer, TaskId,
    TaskRange, TaskSpec, Usage, UsageSource, WorkerId, limits,
};
use grey_proof::{Digest, SigningKey};

use crate::bytes::Bytes;

fn agent(records: &[(u64, Vec<u8>)], adoptable: &[Adoptable]) -> Result<Agent, AgentError> {
    let options = AgentOptions {
        signer: Signer { cluster: Digest::of(b"c"), node: Digest::of(b"n"), certificate: Digest::of(b"z") },
        name: "host".to_owned(),
        incarnation: 2,
        capacity: Resources::default(),
        sandbox: SandboxLevel::PidNamespace,
        labels: Vec::new(),
        devices: Vec::new(),
        parallel: 4,
        lease: Some(KeepOptions::default()),
        salt_seed: [5; 32],
    };
    let found = records.iter().map(|(key, bytes)| (*key, bytes.as_slice()));
    Agent::new(options, SigningKey::from_seed([2; 32]), found, adoptable)
}

/// Records that an earlier life left: they are refused, or announced in numbers that a report may have.
pub(crate) fn outbox_records(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let key = bytes.near(3);
    let first = bytes.slice(255).to_vec();
    let second = bytes.rest().to_vec();
    let records = [(key, second), (key.saturating_add(1), first)];
    for records in [records.get(..1).unwrap_or_default(), &records] {
        let Ok(mut agent) = agent(records, &[]) else { continue };
        agent.announce();
        agent.registered(WorkerId(1), &[]);
        drop(agent.settle());
        for output in agent.outputs().collect::<Vec<_>>() {
            match output {
                Output::Send(FromWorker::Register(register)) => {
                    let most = records.len() * limits::REPORT_ATTEMPTS;
                    assert!(register.holding.len() <= most, "a record has more than a report may have");
                }
                Output::Send(FromWorker::Report(report)) => {
                    for run in report.finished {
                        assert_eq!(
                            run.usage.len(),
                            run.tasks.count as usize,
                            "a report's figures match its tasks"
                        );
                    }
                }
                _ => {}
            }
        }
    }
}

/// A record as an outbox writes it: its version, then runs.
fn record(version: u8, runs: &[ReportedRun]) -> Vec<u8> {
    postcard::to_allocvec(&(version, runs)).expect("a record is encoded")
}

fn run(first: u64, count: u32) -> ReportedRun {
    let usage = Usage { started_at_ms: 5, duration_us: 7, cpu_time_us: 1, peak_memory_bytes: 9 };
    let file = OutputFile { path: b"o".to_vec(), executable: false, content: Content::Inline(b"x".to_vec()) };
    let result = AttemptResult {
        outcome: Outcome::Exited(0),
        sandbox: SandboxLevel::PidNamespace,
        usage_source: UsageSource::ResourceUsage,
        stdout: Content::Inline(b"hello\n".to_vec()),
        stderr: Content::EMPTY,
        files: vec![file],
        message: String::new(),
    };
    let context = RunContext {
        job: JobId(1),
        tenant: "default".to_owned(),
        executor: ExecutorKind::Process,
        exec_key: Digest::of(b"e"),
        first_item: None,
        assigned: vec![(1, 4); count as usize],
    };
    let tasks = TaskRange { first: TaskId(first), count };
    let finished = Finished { tasks, epoch: Epoch(1), result, usage: vec![usage; count as usize] };
    ReportedRun { context: Some(context), finished }
}

pub(crate) fn outbox_corpus() -> Vec<Vec<u8>> {
    let records =
        [record(1, &[run(1, 1)]), record(1, &[run(1, 3), run(9, 2)]), record(1, &[]), record(2, &[])];
    records.into_iter().map(|record| [vec![5, 0], record].concat()).collect()
}

/// A plan as a guard reads it, and reports as a shim reads them.
pub(crate) fn launch_plan(data: &[u8]) {
    if let Some(written) = grey_exec::fuzzing::plan(data) {
        assert_eq!(grey_exec::fuzzing::plan(&written), Some(written.clone()), "a plan reads back as written");
    }
    for report in data.chunks(grey_exec::fuzzing::REPORT_BYTES) {
        if let Some(written) = grey_exec::fuzzing::report(report) {
            assert_eq!(
                grey_exec::fuzzing::report(&written),
                Some(written.clone()),
                "a report reads back as written"
            );
        }
    }
}

pub(crate) fn launch_corpus() -> Vec<Vec<u8>> {
    grey_exec::fuzzing::examples()
}

/// Messages of a worker, and of a shim.
pub(crate) fn shim_messages(data: &[u8]) {
    for read in [grey_exec::fuzzing::to_shim, grey_exec::fuzzing::from_shim] {
        if let Some(written) = read(data) {
            assert_eq!(read(&written), Some(written.clone()), "a message reads back as written");
        }
    }
}

pub(crate) fn shim_corpus() -> Vec<Vec<u8>> {
    grey_exec::fuzzing::messages()
}

/// Records that are kept with attempts: one that is none of a worker's is released, another is held and gone on with.
pub(crate) fn adopted(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let task = TaskId(bytes.near(9));
    let record = bytes.rest().to_vec();
    let attempt = AttemptId { task, epoch: Epoch(2) };
    let adoptable = [Adoptable { attempt, record, timeout_ms: 5 }];
    let Ok(mut agent) = agent(&[], &adoptable) else { panic!("a record stops a worker") };
    let outputs: Vec<Output> = agent.outputs().collect();
    let released = outputs.iter().any(|output| matches!(output, Output::Release(_)));
    let adopted = outputs.iter().any(|output| matches!(output, Output::Adopt(_)));
    assert_eq!((agent.held() == 1, agent.running() == 1), (adopted, adopted));
    assert_ne!(adopted, released, "it is one or the other");
    let held = outputs.iter().find_map(|output| match output {
        Output::Send(FromWorker::Register(register)) => Some(register.holding.len()),
        _ => None,
    });
    assert_eq!(held, Some(usize::from(adopted)), "what is held is announced");
    agent.finished(attempt, run(1, 1).finished.result, Usage::default());
    assert_eq!((agent.held(), agent.running()), (0, 0));
}

/// Records as an agent makes them, after the number of a task.
pub(crate) fn adopted_corpus() -> Vec<Vec<u8>> {
    let Ok(mut agent) = agent(&[], &[]) else { return Vec::new() };
    agent.registered(WorkerId(1), &[]);
    let spec = TaskSpec {
        name: "n".to_owned(),
        executor: ExecutorKind::Process,
        command: vec!["sh".to_owned(), "-c".to_owned()],
        environment: vec![("A".to_owned(), "b".to_owned())],
        stdin: None,
        inputs: Vec::new(),
        outputs: vec!["*".to_owned()],
        resources: Resources::default(),
        priority: 1,
        devices: Vec::new(),
        constraints: Default::default(),
        retries: Retries::default(),
        timeout_ms: 7,
        output_limit_bytes: 9,
    };
    let tasks = TaskRange { first: TaskId(9), count: 2 };
    agent.assign(&Assignment {
        placement: Placement { worker: WorkerId(1), tasks, epoch: Epoch(2) },
        job: JobId(3),
        group: TaskId(9),
        tenant: "default".into(),
        spec: spec.into(),
        stage: None,
        timeout_ms: 7,
        term: 4,
        index: 5,
    });
    drop(agent.settle());
    let started = agent.outputs().filter_map(|output| match output {
        Output::Execute(start) => Some(start.record),
        _ => None,
    });
    started.flat_map(|record| [[vec![0], record.clone()].concat(), record]).collect()
}

/// A pattern and a path: matching ends within its budget, and a text without wildcards matches itself.
pub(crate) fn output_pattern(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let pattern = String::from_utf8_lossy(bytes.slice(120)).into_owned();
    let path = bytes.rest();
    let matched = grey_exec::fuzzing::matches(&pattern, path, 200_000);
    if !pattern.contains(['*', '?', '[']) {
        assert_eq!(matched, Some(pattern.as_bytes() == path), "a text matches itself only");
    }
    if pattern == "**" && !path.is_empty() {
        assert_ne!(matched, Some(false), "`**` matches everything");
    }
}

pub(crate) fn pattern_corpus() -> Vec<Vec<u8>> {
    let pairs = [
        ("*.gz", "a.gz"),
        ("d/**/a", "d/e/f/a"),
        ("[!a-c]x?", "dxy"),
        ("[]a]*", "]q"),
        ("a/b", "a/b"),
        ("**", "x/y"),
    ];
    let input = |(pattern, path): (&str, &str)| {
        [&[pattern.len() as u8], pattern.as_bytes(), path.as_bytes()].concat()
    };
    pairs.into_iter().map(input).collect()
}
