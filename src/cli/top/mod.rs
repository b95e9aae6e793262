//! `grey top`: a cluster at work, again and again.

mod screen;
mod snapshot;
mod terminal;

use std::io::{self, IsTerminal};
use std::time::Duration;

use grey_api::{Client, ClientError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::error::CliError;
use super::output::Output;
use super::run::connect;
use super::session::{Target, runtime};
use super::status::RETRIES;
use super::units;
use screen::screen;
use snapshot::Snapshot;
use terminal::{Keys, Terminal};

/// How long a cluster may take to answer before that is said.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// The least time between two looks, in milliseconds.
const SHORTEST_MS: u64 = 100;

/// The examples of its help.
pub const EXAMPLES: &str = "\
Examples:
  grey top                          a live view at a terminal; q ends it
  grey top | head                   one look, as text
  grey top --json -n 60 --every 1s  a document a second, for a minute";

/// Arguments of `grey top`.
#[derive(clap::Args)]
pub struct TopArguments {
    /// How often to look; 100ms at least
    #[arg(long, default_value = "1s", value_parser = every_ms, value_name = "TIME")]
    every: u64,
    /// End after so many looks [default: 1, and at a terminal none]
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..), value_name = "COUNT")]
    count: Option<u64>,
}

fn every_ms(text: &str) -> Result<u64, String> {
    match units::duration_ms(text)? {
        time_ms if time_ms < SHORTEST_MS => Err(format!("{SHORTEST_MS}ms is the shortest")),
        time_ms => Ok(time_ms),
    }
}

/// Shows a cluster at work.
pub fn top(arguments: &TopArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    let is_live = io::stdout().is_terminal() && !output.is_for_programs();
    runtime()?.block_on(async {
        let client = connect(target, output).await?.with_retries(Some(RETRIES));
        let every = Duration::from_millis(arguments.every);
        // What is wrong at once ends it before the screen changes.
        let first = look(&client).await?;
        if is_live {
            // What the screen shows says by itself how old it is.
            return live(&client.with_observer(None), first, every, arguments.count).await;
        }
        plain(&client, first, every, arguments.count.unwrap_or(1), output).await
    })
}

async fn look(client: &Client) -> Result<Snapshot, CliError> {
    match tokio::time::timeout(LOOK_WITHIN, Snapshot::of(client)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => {
            let reason = format!("it does not answer within {} s", LOOK_WITHIN.as_secs());
            Err(ClientError::Broken { address: client.address().to_string(), reason }.into())
        }
    }
}

/// Prints one look after another.
async fn plain(
    client: &Client,
    first: Snapshot,
    every: Duration,
    count: u64,
    output: &Output,
) -> Result<u8, CliError> {
    let mut snapshot = first;
    for number in 1..=count {
        output.item(&snapshot, || screen(&snapshot, None, None))?;
        if number < count {
            tokio::time::sleep(every).await;
            snapshot = look(client).await?;
        }
    }
    Ok(0)
}

/// Shows one look in the place of the other, until somebody ends it.
async fn live(client: &Client, first: Snapshot, every: Duration, count: Option<u64>) -> Result<u8, CliError> {
    let mut end = End::new()?;
    let terminal = Terminal::enter().map_err(|error| CliError::io("use", "the terminal", &error))?;
    let mut keys = terminal.keys();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is now, and there is something to show already.
    ticks.tick().await;
    let (mut snapshot, mut seen_at, mut shown) = (first, Instant::now(), 0);
    let mut trouble: Option<String> = None;
    loop {
        let note = trouble.as_ref().map(|why| format!("{} s old: {why}", seen_at.elapsed().as_secs()));
        if terminal.show(&screen(&snapshot, Some(terminal.size()), note.as_deref())).is_err() {
            // Nobody can see it any more.
            return Ok(0);
        }
        shown += 1;
        if count.is_some_and(|count| shown >= count) {
            return Ok(0);
        }
        let looked = async {
            ticks.tick().await;
            look(client).await
        };
        let looked = tokio::select! {
            looked = looked => looked,
            () = end.wait(&mut keys) => return Ok(0),
        };
        match looked {
            Ok(found) => (snapshot, seen_at, trouble) = (found, Instant::now(), None),
            Err(error) => trouble = Some(error.message),
        }
    }
}

/// What ends a live view.
struct End {
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl End {
    fn new() -> Result<End, CliError> {
        let watch = |kind| signal(kind).map_err(|error| CliError::io("watch", "for signals", &error));
        Ok(End {
            interrupted: watch(SignalKind::interrupt())?,
            terminated: watch(SignalKind::terminate())?,
            hung_up: watch(SignalKind::hangup())?,
        })
    }

    /// Returns when a key or a signal says so.
    async fn wait(&mut self, keys: &mut Keys) {
        tokio::select! {
            () = keys.end() => {}
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
            _ = self.hung_up.recv() => {}
        }
    }
}
