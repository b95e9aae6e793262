//! `grey sim`: the simulated cluster under seeded faults.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use grey_sim::{Broken, Counters, Fault, Options, Outcome, STORM_SECONDS, run, shrink};
use serde::Serialize;

use super::error::{ANSWER_IS_NO, CliError};
use super::output::Output;

/// The most runs that making a failure smaller may take.
const SHRINK_RUNS: u32 = 300;
/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `grey sim`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  grey sim --seeds 1..200                      two hundred seeds
  grey sim --minutes 10                        as many as ten minutes allow
  grey sim --seed 4711 --trace trace.txt       one seed, with all that happened in it
  grey sim --seed 4711 --shrink                what of it is needed to break the promise
  grey sim --seeds 1..50 --faults crash,loss   with these faults only

Exit status: 0 every promise held, 1 one was broken.")]
pub struct SimArguments {
    /// One seed
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Seeds from A on, up to and without B [default: 1..21]
    #[arg(long, value_name = "A..B", value_parser = seeds, conflicts_with = "minutes")]
    seeds: Option<(u64, u64)>,
    /// As many seeds as so many minutes allow, from one that the clock chooses
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: Option<u64>,
    /// Classes of fault, instead of those that each seed chooses; each has to fire in every run. `all` and `none` are understood
    #[arg(long, value_name = "NAMES", value_parser = faults)]
    faults: Option<Classes>,
    /// Servers
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=9))]
    servers: u8,
    /// Workers
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    workers: u16,
    /// How long the storm lasts, in virtual seconds
    #[arg(long, default_value_t = STORM_SECONDS, value_parser = clap::value_parser!(u64).range(3..=3_600))]
    seconds: u64,
    /// Write everything that happens to a file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Make a failing run smaller
    #[arg(long)]
    shrink: bool,
    /// Faults of the run that are left out, by number
    #[arg(long, value_name = "NUMBERS", value_parser = numbers)]
    without_faults: Option<Numbers>,
    /// Operations of a client that are left out, by number; may be repeated
    #[arg(long, value_name = "CLIENT:NUMBERS", value_parser = operations)]
    without_operations: Vec<(usize, Numbers)>,
}

/// Classes of fault as they are written on the command line.
#[derive(Debug, Clone)]
struct Classes(BTreeSet<Fault>);

/// Numbers and ranges of them.
#[derive(Debug, Clone)]
struct Numbers(BTreeSet<u64>);

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    parsed.filter(|(from, to)| from < to).ok_or_else(|| "seeds are written as 1..200".to_owned())
}

fn faults(text: &str) -> Result<Classes, String> {
    let classes = match text {
        "all" => Ok(Fault::ALL.iter().copied().collect()),
        "none" => Ok(BTreeSet::new()),
        _ => text
            .split(',')
            .map(|name| name.trim().parse::<Fault>().map_err(|error| error.to_string()))
            .collect(),
    };
    classes.map(Classes)
}

fn numbers(text: &str) -> Result<Numbers, String> {
    let mut found = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.trim().parse::<u64>().ok().zip(last.trim().parse::<u64>().ok());
        let (first, last) = range
            .filter(|(first, last)| first <= last && last - first <= 1_000_000)
            .ok_or_else(|| format!("`{part}` is no number and no range such as 3-9"))?;
        found.extend(first..=last);
    }
    Ok(Numbers(found))
}

fn operations(text: &str) -> Result<(usize, Numbers), String> {
    let (client, rest) = text.split_once(':').ok_or("written as CLIENT:NUMBERS")?;
    let client = client.parse().map_err(|_| format!("`{client}` is no number of a client"))?;
    Ok((client, numbers(rest)?))
}

/// A seed that broke a promise.
#[derive(Debug, Serialize)]
struct Failure {
    seed: u64,
    promise: String,
    what: String,
    at_ms: u64,
    replay: String,
    /// The smaller run, where one was looked for.
    smaller: Option<String>,
    last_events: Vec<String>,
}

/// What all runs came to.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    failure: Option<Failure>,
    virtual_hours_milli: u64,
    real_ms: u64,
    times_real_time: u64,
    processor_ms: u64,
    times_processor_time: u64,
    events: u64,
    operations: u64,
    undecided: u64,
    faults: std::collections::BTreeMap<&'static str, u64>,
    /// Of the last run.
    trace_hash: String,
}

/// The processor's time that this process has had, in microseconds: what else the machine does is not in it.
fn processor_us() -> u64 {
    let passed = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(passed.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(passed.tv_nsec).unwrap_or(0) / 1_000)
}

/// Everything that is added up over runs.
struct Tally {
    begun: Instant,
    processor_at_begin_us: u64,
    shown: Instant,
    shows: bool,
    virtual_us: u64,
    counters: Counters,
    summary: Summary,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.virtual_us += outcome.virtual_us;
        self.counters.add(&outcome.counters);
        self.summary.seeds += 1;
        self.summary.events += outcome.events;
        self.summary.operations += outcome.operations;
        self.summary.undecided += outcome.undecided;
        self.summary.trace_hash = format!("{:016x}", outcome.trace_hash);
    }

    fn progress(&mut self, text: impl FnOnce(&Tally) -> String) {
        if self.shows && self.shown.elapsed() >= PROGRESS_EVERY {
            self.shown = Instant::now();
            eprint!("\r\x1b[K{}", text(self));
        }
    }

    fn clear(&self) {
        if self.shows {
            eprint!("\r\x1b[K");
        }
    }

    fn finish(mut self) -> Summary {
        self.clear();
        let real_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        self.summary.real_ms = real_us / 1_000;
        self.summary.virtual_hours_milli = self.virtual_us / 3_600_000;
        self.summary.times_real_time = self.virtual_us / real_us;
        let processor_us = processor_us().saturating_sub(self.processor_at_begin_us).max(1);
        self.summary.processor_ms = processor_us / 1_000;
        self.summary.times_processor_time = self.virtual_us / processor_us;
        self.summary.faults =
            Fault::ALL.iter().map(|fault| (fault.name(), self.counters.of(*fault))).collect();
        self.summary
    }
}

fn options(arguments: &SimArguments, seed: u64) -> Options {
    let mut options = Options::new(seed);
    options.servers = usize::from(arguments.servers);
    options.workers = usize::from(arguments.workers);
    options.seconds = arguments.seconds;
    options.faults = arguments.faults.clone().map(|classes| classes.0);
    options.without_blows = arguments.without_faults.clone().map(|numbers| numbers.0).unwrap_or_default();
    let left_out = arguments.without_operations.iter();
    options.without_operations =
        left_out.flat_map(|(client, numbers)| numbers.0.iter().map(|number| (*client, *number))).collect();
    options
}

/// Which seeds are run, and until when.
fn range(arguments: &SimArguments) -> (u64, u64, Option<Duration>) {
    match (arguments.seed, arguments.seeds, arguments.minutes) {
        (Some(seed), _, _) => (seed, seed.saturating_add(1), None),
        (None, Some((from, to)), _) => (from, to, None),
        (None, None, Some(minutes)) => {
            let clock =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let from = clock.as_secs().wrapping_mul(1_000);
            (from, u64::MAX, Some(Duration::from_secs(60 * minutes)))
        }
        (None, None, None) => (1, 21, None),
    }
}

/// Runs the simulator.
pub fn sim(arguments: &SimArguments, output: &Output) -> Result<u8, CliError> {
    // Damage makes the database panic inside the store, which contains it; a panic that is not contained is told with
    // its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let now = Instant::now();
    let mut tally = Tally {
        begun: now,
        processor_at_begin_us: processor_us(),
        shown: now,
        shows: std::io::stderr().is_terminal() && !output.is_for_programs(),
        virtual_us: 0,
        counters: Counters::default(),
        summary: Summary::default(),
    };
    let (from, to, time) = range(arguments);
    for seed in from..to {
        if time.is_some_and(|time| tally.begun.elapsed() >= time) {
            break;
        }
        let options = options(arguments, seed);
        let outcome = run(&options, trace(arguments)?).map_err(|error| cannot_trace(arguments, &error))?;
        tally.add(&outcome);
        if let Some(broken) = broken(&options, &outcome) {
            tally.summary.failure = Some(failure(arguments, &options, &outcome, broken, &mut tally)?);
            break;
        }
        tally.progress(|tally| {
            let (seeds, seconds) = (tally.summary.seeds, tally.virtual_us / 1_000_000);
            format!("seed {seed}: {seeds} held, {seconds} virtual seconds, {} faults", tally.counters.total())
        });
    }
    let summary = tally.finish();
    output.result(&summary, || text(&summary))?;
    Ok(if summary.failure.is_some() { ANSWER_IS_NO } else { 0 })
}

/// What is wrong with a run: also a class of fault that was asked for and never fired.
fn broken(options: &Options, outcome: &Outcome) -> Option<Broken> {
    let left_out = !options.without_blows.is_empty() || !options.without_operations.is_empty();
    let silent = if left_out { Vec::new() } else { outcome.silent(options) };
    outcome.broken.clone().or_else(|| {
        let names: Vec<&str> = silent.iter().map(|fault| fault.name()).collect();
        let what = format!("the run proves nothing about {}: it never happened", names.join(", "));
        (!silent.is_empty()).then_some(Broken { promise: "chosen-faults-fire", what })
    })
}

fn trace(arguments: &SimArguments) -> Result<Option<Box<dyn Write>>, CliError> {
    let Some(path) = &arguments.trace else { return Ok(None) };
    let file = File::create(path).map_err(|error| cannot_trace(arguments, &error))?;
    Ok(Some(Box::new(BufWriter::new(file))))
}

fn cannot_trace(arguments: &SimArguments, error: &std::io::Error) -> CliError {
    let path = arguments.trace.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    CliError::io("write", path, error)
}

fn failure(
    arguments: &SimArguments,
    options: &Options,
    outcome: &Outcome,
    broken: Broken,
    tally: &mut Tally,
) -> Result<Failure, CliError> {
    let mut smaller = None;
    if arguments.shrink && outcome.broken.is_some() {
        let found = shrink(options, SHRINK_RUNS, &mut |runs, _| {
            tally.progress(|_| format!("making it smaller, run {runs} of {SHRINK_RUNS}"));
        });
        let found = found.map_err(|error| CliError::failed(format!("a run failed: {error}")))?;
        smaller = found.map(|found| format!("grey sim {}", found.options.arguments()));
    }
    Ok(Failure {
        seed: options.seed,
        promise: broken.promise.to_owned(),
        what: broken.what,
        at_ms: outcome.virtual_us / 1_000,
        replay: format!("grey sim {}", options.arguments()),
        smaller,
        last_events: outcome.last_events.clone(),
    })
}

fn text(summary: &Summary) -> String {
    let mut lines = Vec::new();
    if let Some(failure) = &summary.failure {
        lines.push(format!("seed {} breaks `{}` after {} ms:", failure.seed, failure.promise, failure.at_ms));
        lines.push(format!("  {}", failure.what));
        lines.push("the last events:".to_owned());
        lines.extend(failure.last_events.iter().map(|line| format!("  {line}")));
        lines.push(format!("again:   {}", failure.replay));
        lines.extend(failure.smaller.iter().map(|smaller| format!("smaller: {smaller}")));
    } else {
        lines.push(format!("{} seeds held every promise", summary.seeds));
    }
    let (hours, milli) = (summary.virtual_hours_milli / 1_000, summary.virtual_hours_milli % 1_000);
    lines.push(format!(
        "{hours}.{milli:03} virtual hours in {} ms, {} times real time; {} ms of the processor, {} times that; \
         {} operations, {} events",
        summary.real_ms,
        summary.times_real_time,
        summary.processor_ms,
        summary.times_processor_time,
        summary.operations,
        summary.events
    ));
    if summary.undecided > 0 {
        lines.push(format!(
            "{} time(s) the search for an order of a job's history gave up",
            summary.undecided
        ));
    }
    let fired = summary.faults.iter().filter(|(_, count)| **count > 0);
    let fired: Vec<String> = fired.map(|(name, count)| format!("{name} {count}")).collect();
    lines.push(format!("faults: {}", if fired.is_empty() { "none".to_owned() } else { fired.join(", ") }));
    if summary.seeds == 1 {
        lines.push(format!("trace: {}", summary.trace_hash));
    }
    lines.join("\n") + "\n"
}
