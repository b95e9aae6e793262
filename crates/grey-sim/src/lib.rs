//! The simulated cluster: the real core, replica, store and agents in one thread on virtual time, under seeded faults, with
//! checkers that prove the promises or show the seed that breaks them.
//!
//! [`run`] simulates one seed. The same options give the same [`Outcome`], bit for bit, in any process.

mod asking;
mod checkers;
mod disk;
mod fact;
mod faults;
mod ledger;
mod life;
mod load;
mod message;
mod network;
mod operations;
mod operator;
mod orders;
mod queue;
mod random;
mod scenario;
mod server;
mod shim;
mod shrink;
mod storm;
mod swarm;
mod trace;
mod upgrade;
mod worker;
mod workload;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use checkers::Broken;
pub use faults::{Counters, Fault, UnknownFault};
#[cfg(feature = "mutants")]
pub use grey_core::Mutant;
pub use ledger::{Ledger, Run};
pub use load::{LoadOptions, LoadReport, Refused, Work};
pub use message::Told;
pub use network::{LinkOptions, NodeIndex};
pub use scenario::{Scenario, ScenarioOptions, links};
pub use shrink::{Smaller, ranges, shrink};

use swarm::Plan;
use trace::Trace;
use world::{Event, World};

/// How many clients there are: six of three tenants, and one that only reads.
const CLIENTS: usize = 7;
/// Seconds of storm that a run has unless it is told otherwise.
pub const STORM_SECONDS: u64 = 30;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Servers, one to nine.
    pub servers: usize,
    /// Workers, one to 1,000.
    pub workers: usize,
    /// How long the storm lasts, in virtual seconds.
    pub seconds: u64,
    /// The classes of fault, instead of those that the seed would choose.
    pub faults: Option<BTreeSet<Fault>>,
    /// Faults that are left out, by their number.
    pub without_blows: BTreeSet<u64>,
    /// Operations that are left out, by client and number.
    pub without_operations: BTreeSet<(usize, u64)>,
    /// The mistake that every server and worker makes.
    #[cfg(feature = "mutants")]
    pub mutant: Option<grey_core::Mutant>,
}

impl Options {
    /// A seed with everything else as usual.
    pub fn new(seed: u64) -> Options {
        Options {
            seed,
            servers: 5,
            workers: 20,
            seconds: STORM_SECONDS,
            faults: None,
            without_blows: BTreeSet::new(),
            without_operations: BTreeSet::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The hash over everything that happened.
    pub trace_hash: u64,
    /// How many events there were.
    pub events: u64,
    /// How long it lasted in virtual microseconds.
    pub virtual_us: u64,
    /// How often each fault fired.
    pub counters: Counters,
    /// Operations of clients that were answered.
    pub operations: u64,
    /// The broken promise, if one is.
    pub broken: Option<Broken>,
    /// The last events.
    pub last_events: Vec<String>,
    /// The planned faults, by number.
    pub blows: BTreeSet<u64>,
    /// The classes of fault that could happen.
    pub faults: BTreeSet<Fault>,
    /// Operations that clients began.
    pub begun: BTreeSet<(usize, u64)>,
    /// How often a search for an order of a history gave up.
    pub undecided: u64,
}

impl Outcome {
    /// The classes that were asked for by name and never fired.
    pub fn silent(&self, options: &Options) -> Vec<Fault> {
        options.faults.as_ref().map(|faults| self.counters.silent(faults)).unwrap_or_default()
    }
}

impl Options {
    /// The arguments of `grey sim` that run this again.
    pub fn arguments(&self) -> String {
        let usual = Options::new(self.seed);
        let mut text = format!("--seed {}", self.seed);
        for (name, value, usual) in [
            ("servers", self.servers as u64, usual.servers as u64),
            ("workers", self.workers as u64, usual.workers as u64),
            ("seconds", self.seconds, usual.seconds),
        ] {
            if value != usual {
                text.push_str(&format!(" --{name} {value}"));
            }
        }
        if let Some(faults) = &self.faults {
            let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(",") };
            text.push_str(&format!(" --faults {names}"));
        }
        if !self.without_blows.is_empty() {
            text.push_str(&format!(" --without-faults {}", ranges(&self.without_blows)));
        }
        let mut clients: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for (client, operation) in &self.without_operations {
            clients.entry(*client).or_default().insert(*operation);
        }
        for (client, operations) in clients {
            text.push_str(&format!(" --without-operations {client}:{}", ranges(&operations)));
        }
        text
    }
}

/// Simulates one seed; every event is also written to `file`, where there is one.
pub fn run(options: &Options, file: Option<Box<dyn Write>>) -> std::io::Result<Outcome> {
    let plan = Plan::new(options.seed, options.seconds, options.faults.as_ref());
    let trace = Trace::new(options.seed, file);
    let (blows, faults) = (plan.blows.clone(), plan.faults.clone());
    let servers = options.servers + if plan.has(Fault::Replace) { operator::SPARES } else { 0 };
    // Only who was let in can be cordoned, can leave, and can say what it runs.
    let forms = [Fault::Replace, Fault::Cordon, Fault::WorkerLeave, Fault::Upgrade]
        .iter()
        .any(|fault| plan.has(*fault));
    let mut world = World::new(options.seed, servers, options.workers, CLIENTS, plan, trace);
    if forms {
        world.form_of(options.servers);
    }
    if faults.contains(&Fault::Links) {
        world.use_links();
    }
    world.skipped_blows = options.without_blows.clone();
    world.skipped_operations = options.without_operations.clone();
    #[cfg(feature = "mutants")]
    {
        world.mutant = options.mutant;
    }
    for index in 0..servers + options.workers {
        world.queue.push(index as u64, Event::Start { node: index });
    }
    for client in 0..CLIENTS {
        let node = servers + options.workers + client;
        world.later(1_000_000 + 100_000 * client as u64, node, world::Input::Next);
    }
    for (position, blow) in blows.iter().enumerate() {
        world.queue.push(blow.at_us, Event::Blow(position));
    }
    let storm_us = options.seconds.max(3) * 1_000_000;
    world.queue.push(storm_us, Event::Heal);
    let end_us = storm_us + storm::LONGEST_EXTENSION_US + 2 * storm::RECOVERY_US;
    // A panic is a broken promise like any other: it is told with its seed.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run(end_us))) {
        let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        world.break_promise("never-panics", said.unwrap_or_else(|| "a panic without words".to_owned()));
    }
    if world.broken.is_none() && !world.finished {
        world.break_promise("recovers", "nothing more happens, and it is not over".to_owned());
    }
    Ok(Outcome {
        trace_hash: world.trace.hash(),
        events: world.trace.events(),
        virtual_us: world.now_us,
        counters: world.counters,
        operations: world.operations,
        broken: world.broken,
        last_events: world.trace.finish()?,
        blows: blows.iter().map(|blow| blow.number).collect(),
        faults,
        begun: world.begun,
        undecided: world.checkers.undecided(),
    })
}
