//! `grey bench`: figures of this machine, from a cluster of its own on an empty data directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use grey_api::{Address, Client, ClusterStatus, JobCreated, JobRequest, JobStatus, TaskRequest};
use grey_node::SOCKET_FILE;
use serde::Serialize;

use super::error::CliError;
use super::output::Output;
use super::run::fresh_key;
use super::session::{StartReport, runtime, start};

/// Arguments of `grey bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  grey bench                                    all figures, about half a minute
  grey bench --tasks 1000000 --only throughput  one figure, longer
  grey bench --dir /mnt/fast --json             on another disk")]
pub struct BenchArguments {
    /// Where to put the cluster; it is removed afterwards [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only this figure
    #[arg(long, value_enum)]
    only: Option<Figure>,
    /// Tasks of the throughput figures
    #[arg(long, default_value_t = 200_000)]
    tasks: u32,
    /// Tasks in one request
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Requests under way at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    /// Samples of the latency figures
    #[arg(long, default_value_t = 2_000)]
    samples: u32,
    /// Processes of the process figure
    #[arg(long, default_value_t = 2_000)]
    processes: u32,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Figure {
    /// A submission until it is acknowledged, one at a time
    Commit,
    /// A `noop` task from submission to its end, one at a time
    OneAtATime,
    /// `noop` tasks from the first submission to the last end
    Throughput,
    /// Real `true` processes from the first submission to the last end
    Processes,
}

/// Quantiles of a latency in microseconds.
#[derive(Debug, Serialize)]
struct Latency {
    samples: usize,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

/// Tasks over time.
#[derive(Debug, Serialize)]
struct Throughput {
    tasks: u64,
    elapsed_ms: u64,
    tasks_per_s: u64,
    /// Processor time of the node for each task, in microseconds.
    node_cpu_us_per_task: u64,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
struct Report {
    version: &'static str,
    optimized: bool,
    commit: Option<Latency>,
    one_at_a_time: Option<Latency>,
    /// Equal tasks, which are kept as runs.
    noop_equal: Option<Throughput>,
    /// Tasks that all differ.
    noop_distinct: Option<Throughput>,
    processes: Option<Throughput>,
}

fn latency(mut samples_us: Vec<u64>) -> Latency {
    samples_us.sort_unstable();
    let at = |per_mille: usize| {
        let last = samples_us.len().saturating_sub(1);
        samples_us.get((samples_us.len() * per_mille / 1_000).min(last)).copied().unwrap_or(0)
    };
    Latency {
        samples: samples_us.len(),
        p50_us: at(500),
        p99_us: at(990),
        p999_us: at(999),
        max_us: at(1_000),
    }
}

fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Processor time of a process so far, in microseconds (proc(5), `stat`, fields 14 and 15, in ticks of 10 ms).
fn cpu_us(process_id: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
        * 10_000
}

/// A cluster of its own, ended and removed when it is dropped.
struct Bench {
    directory: PathBuf,
    process_id: u32,
}

impl Bench {
    fn client(&self) -> Client {
        Client::new(Address::Unix(self.directory.join(SOCKET_FILE)), None)
    }

    async fn end(&self) {
        let client = self.client();
        let ended =
            client.post::<_, serde_json::Value>("/v1/cluster/shutdown", &serde_json::json!({}), None).await;
        if ended.is_ok() {
            for _ in 0..1_000 {
                if cpu_us(self.process_id) == 0 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// Measures.
pub fn bench(arguments: &BenchArguments, output: &Output) -> Result<u8, CliError> {
    output.must_not_be_names()?;
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let directory = parent.join(format!("grey-bench-{}", fresh_key()?));
    match start(&directory)? {
        StartReport::Ready => {}
        other => {
            return Err(CliError::failed(format!("the cluster to be measured did not start: {other:?}")));
        }
    }
    let runtime = runtime()?;
    let report = runtime.block_on(async {
        let client = Client::new(Address::Unix(directory.join(SOCKET_FILE)), None);
        let status: ClusterStatus = client.get("/v1/cluster").await?;
        let bench = Bench { directory, process_id: status.process_id };
        let report = measure(&bench, arguments, output).await;
        bench.end().await;
        report
    })?;
    output.result(&report, || shown(&report))?;
    Ok(0)
}

async fn measure(bench: &Bench, arguments: &BenchArguments, output: &Output) -> Result<Report, CliError> {
    let wanted = |figure| arguments.only.is_none_or(|only| only == figure);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        optimized: !cfg!(debug_assertions),
        ..Report::default()
    };
    if wanted(Figure::Commit) {
        output.note("commit latency");
        report.commit = Some(commit(bench, arguments.samples).await?);
    }
    if wanted(Figure::OneAtATime) {
        output.note("one task at a time");
        report.one_at_a_time = Some(one_at_a_time(bench, arguments.samples).await?);
    }
    if wanted(Figure::Throughput) {
        output.note("noop tasks, equal");
        report.noop_equal = Some(throughput(bench, arguments, arguments.tasks, Kind::Equal).await?);
        output.note("noop tasks, all different");
        report.noop_distinct = Some(throughput(bench, arguments, arguments.tasks, Kind::Distinct).await?);
    }
    if wanted(Figure::Processes) {
        output.note("processes");
        report.processes = Some(throughput(bench, arguments, arguments.processes, Kind::Process).await?);
    }
    Ok(report)
}

fn noop() -> JobRequest {
    let task = TaskRequest { executor: Some("noop".to_owned()), ..TaskRequest::default() };
    JobRequest { tasks: vec![task], ..JobRequest::default() }
}

async fn commit(bench: &Bench, samples: u32) -> Result<Latency, CliError> {
    let client = bench.client();
    let mut taken = Vec::new();
    for _ in 0..samples {
        let begun = Instant::now();
        let created: JobCreated = client.post("/v1/jobs", &noop(), None).await?;
        taken.push(micros(begun));
        // The next sample begins when the node has nothing left to do.
        let _: JobStatus = client.get(&format!("/v1/jobs/{}?wait_ms=30000", created.job)).await?;
    }
    Ok(latency(taken))
}

async fn one_at_a_time(bench: &Bench, samples: u32) -> Result<Latency, CliError> {
    let client = bench.client();
    let mut taken = Vec::new();
    for _ in 0..samples {
        let begun = Instant::now();
        let created: JobCreated = client.post("/v1/jobs", &noop(), None).await?;
        let status: JobStatus = client.get(&format!("/v1/jobs/{}?wait_ms=30000", created.job)).await?;
        if status.counts.completed != 1 {
            return Err(CliError::failed(format!("job {} did not complete", created.job)));
        }
        taken.push(micros(begun));
    }
    Ok(latency(taken))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Equal,
    Distinct,
    Process,
}

/// One batch as lines of JSON.
fn lines(kind: Kind, first: u32, count: u32) -> Vec<u8> {
    let mut body = Vec::new();
    for number in first..first.saturating_add(count) {
        let line = match kind {
            Kind::Equal => "{\"executor\":\"noop\"}\n".to_owned(),
            Kind::Distinct => format!("{{\"executor\":\"noop\",\"name\":\"n{number}\"}}\n"),
            Kind::Process => "{\"command\":[\"true\"],\"cpu_millicores\":500}\n".to_owned(),
        };
        body.extend_from_slice(line.as_bytes());
    }
    body
}

async fn throughput(
    bench: &Bench,
    arguments: &BenchArguments,
    tasks: u32,
    kind: Kind,
) -> Result<Throughput, CliError> {
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (begun, cpu_before) = (Instant::now(), cpu_us(bench.process_id));
    let mut senders = tokio::task::JoinSet::new();
    let local = tokio::task::LocalSet::new();
    for _ in 0..arguments.connections {
        let (client, next, batch) = (bench.client(), next.clone(), arguments.batch);
        senders.spawn_local_on(
            async move {
                let mut last: Option<JobCreated> = None;
                loop {
                    let first = next.fetch_add(batch, std::sync::atomic::Ordering::Relaxed);
                    if first >= tasks {
                        return Ok::<_, CliError>((client, last));
                    }
                    let body = lines(kind, first, batch.min(tasks - first));
                    let created = client.post_bytes("/v1/tasks", "application/x-ndjson", body.into(), None);
                    last = Some(created.await?);
                }
            },
            &local,
        );
    }
    let ended = local.run_until(async {
        let mut lasts = Vec::new();
        while let Some(joined) = senders.join_next().await {
            lasts.push(joined.map_err(|error| CliError::failed(error.to_string()))??);
        }
        // All jobs have ended when none lives: the last ones of every connection are waited for first.
        for (client, last) in &lasts {
            if let Some(last) = last {
                loop {
                    let job: JobStatus = client.get(&format!("/v1/jobs/{}?wait_ms=30000", last.job)).await?;
                    if job.ended {
                        break;
                    }
                }
            }
        }
        let client = bench.client();
        loop {
            let status: ClusterStatus = client.get("/v1/cluster").await?;
            if status.jobs_live == 0 {
                return Ok::<_, CliError>(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    });
    ended.await?;
    let elapsed_us = micros(begun).max(1);
    let cpu = cpu_us(bench.process_id).saturating_sub(cpu_before);
    Ok(Throughput {
        tasks: u64::from(tasks),
        elapsed_ms: elapsed_us / 1_000,
        tasks_per_s: u64::from(tasks) * 1_000_000 / elapsed_us,
        node_cpu_us_per_task: cpu / u64::from(tasks.max(1)),
    })
}

fn shown(report: &Report) -> String {
    let mut text = String::new();
    let ms = |us: u64| format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10);
    for (name, found) in [("commit", &report.commit), ("one at a time", &report.one_at_a_time)] {
        if let Some(found) = found {
            text.push_str(&format!(
                "{name:16} p50 {}  p99 {}  p99.9 {}  max {}  ({} samples)\n",
                ms(found.p50_us),
                ms(found.p99_us),
                ms(found.p999_us),
                ms(found.max_us),
                found.samples
            ));
        }
    }
    for (name, found) in [
        ("noop, equal", &report.noop_equal),
        ("noop, different", &report.noop_distinct),
        ("processes", &report.processes),
    ] {
        if let Some(found) = found {
            text.push_str(&format!(
                "{name:16} {} tasks/s  ({} tasks in {} ms, {} µs of the node's processor a task)\n",
                found.tasks_per_s, found.tasks, found.elapsed_ms, found.node_cpu_us_per_task
            ));
        }
    }
    if !report.optimized {
        text.push_str("This is a debug build: build with --release for figures that count.\n");
    }
    text
}
