//! What a seed makes of a run: which classes of fault it has, how hard they hit, and what happens when.
//!
//! Swarm testing (Groce and others, "Swarm testing", ISSTA 2012): a run that has every fault hides what shows only without
//! some of them, so each seed leaves whole classes out.

use std::collections::BTreeSet;

use crate::faults::Fault;
use crate::network::LinkOptions;
use crate::random::{Stream, Streams};

/// One thing that is done to the cluster, with chance of its own, so that leaving one out does not change the others.
#[derive(Debug, Clone)]
pub struct Blow {
    /// When, in microseconds.
    pub at_us: u64,
    /// What.
    pub fault: Fault,
    /// Its number, which it keeps whatever else is left out.
    pub number: u64,
}

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Classes of fault that may happen.
    pub faults: BTreeSet<Fault>,
    /// Classes that should have fired by now and have not.
    pub due: BTreeSet<Fault>,
    /// How links behave.
    pub links: LinkOptions,
    /// What is done when, in order.
    pub blows: Vec<Blow>,
    /// Bytes of log between two checkpoints.
    pub checkpoint_bytes: u64,
    /// Shortest and longest time of a sync, in microseconds.
    pub sync_us: (u64, u64),
    /// The most that a monotonic clock is off, in millionths: two of them stay within the hundredth that leases allow for.
    pub drift_ppm: u64,
    /// The mean pause of a client between two operations, in microseconds.
    pub think_us: u64,
    /// The mean run of an attempt, in microseconds.
    pub attempt_us: u64,
}

/// Classes that happen at a time; the others accompany every message, write or operation.
const BLOWS: [Fault; 33] = [
    Fault::Clog,
    Fault::Partition,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Flap,
    Fault::Congestion,
    Fault::LostUnsynced,
    Fault::Torn,
    Fault::Corrupt,
    Fault::Misdirected,
    Fault::NoSpace,
    Fault::SyncError,
    Fault::SlowDisk,
    Fault::ClockJump,
    Fault::LateTick,
    Fault::Crash,
    Fault::Pause,
    Fault::SlowNode,
    Fault::ZombieLeader,
    Fault::ZombieWorker,
    Fault::Wipe,
    Fault::WorkerCrash,
    Fault::WorkerChange,
    Fault::Burst,
    Fault::WholeState,
    Fault::Replace,
    Fault::TenantChange,
    Fault::Cordon,
    Fault::WorkerLeave,
    Fault::Upgrade,
    Fault::QuotaChange,
    Fault::BrokenExecutor,
    Fault::WorkerRestart,
];

/// Numbers that each class has for its own.
const BLOWS_OF_A_CLASS: u64 = 10_000;

/// When the cluster has had time to elect a leader, in microseconds.
const BEGIN_US: u64 = 1_500_000;

impl Plan {
    /// The plan of a seed for a storm of so many seconds; `only` restricts the classes instead of the swarm.
    pub fn new(seed: u64, seconds: u64, only: Option<&BTreeSet<Fault>>) -> Plan {
        let mut chance = Streams::swarm(seed);
        // Every class draws, whether it is taken or not, so that a restriction changes nothing else.
        let mut taken = |fault: &Fault| match fault {
            // They came later, and draw for themselves: what a seed has otherwise stays as it was.
            Fault::WholeState => Stream::new(seed, 3_000).chance(550_000),
            Fault::Replace => Stream::new(seed, 3_002).chance(550_000),
            Fault::TenantChange
            | Fault::Links
            | Fault::Cordon
            | Fault::WorkerLeave
            | Fault::Upgrade
            | Fault::QuotaChange
            | Fault::BrokenExecutor
            | Fault::WorkerRestart => Stream::new(seed, 3_010 + *fault as u64).chance(550_000),
            _ => chance.chance(550_000),
        };
        let drawn: BTreeSet<Fault> = Fault::ALL.iter().copied().filter(|fault| taken(fault)).collect();
        let faults = only.cloned().unwrap_or(drawn);
        let links = links(&mut chance, &faults);
        // With the lower ones the log of a follower that is cut off for seconds is gone when it comes back.
        let seldom = 1 << chance.between(13, 18);
        let often = 1 << Stream::new(seed, 3_001).between(10, 12);
        let checkpoint_bytes = if faults.contains(&Fault::WholeState) { often } else { seldom };
        let fast_us = chance.between(1_000, 8_000);
        let slow_us = fast_us * chance.between(2, 6);
        let drift_ppm = chance.between(10, 4_900) * u64::from(faults.contains(&Fault::Drift));
        let think_us = chance.between(4_000_000, 14_000_000);
        let attempt_us = chance.between(200_000, 3_000_000);
        let blows = blows(seed, seconds, &faults);
        Plan {
            faults,
            due: BTreeSet::new(),
            links,
            blows,
            checkpoint_bytes,
            sync_us: (fast_us, slow_us),
            drift_ppm,
            think_us,
            attempt_us,
        }
    }

    /// One blow more of a class; where it stands among them. Nothing for a class that does not happen at a time.
    pub fn add_blow(&mut self, fault: Fault, round: u32, at_us: u64) -> Option<usize> {
        let number = BLOWS_OF_A_CLASS * (fault as u64 + 1) - 1 - u64::from(round);
        BLOWS.contains(&fault).then(|| {
            self.blows.push(Blow { at_us, fault, number });
            self.blows.len() - 1
        })
    }

    /// Whether a class may happen.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

fn links(chance: &mut Stream, faults: &BTreeSet<Fault>) -> LinkOptions {
    let shortest_us = chance.between(50, 5_000);
    let longest_us = shortest_us + chance.between(50, 40_000);
    let mut intensity = |fault, most| {
        let drawn = chance.between(1_000, most);
        if faults.contains(&fault) { drawn } else { 0 }
    };
    let (loss, duplicate) = (intensity(Fault::Loss, 100_000), intensity(Fault::Duplicate, 100_000));
    let (delay, answer_lost) = (intensity(Fault::Delay, 100_000), intensity(Fault::AnswerLost, 300_000));
    LinkOptions {
        shortest_us,
        longest_us,
        loss,
        duplicate,
        delay,
        delay_us: longest_us + chance.between(50_000, 1_000_000),
        reorder: faults.contains(&Fault::Reorder),
        answer_lost,
        unordered_workers: chance.chance(250_000),
    }
}

/// Every class that happens at a time does so at least once, at intervals of its own.
fn blows(seed: u64, seconds: u64, faults: &BTreeSet<Fault>) -> Vec<Blow> {
    let end_us = (seconds * 1_000_000).max(BEGIN_US + 1_000_000);
    let mut all: Vec<Blow> = Vec::new();
    for fault in BLOWS.into_iter().filter(|fault| faults.contains(fault)) {
        let mut chance = Stream::new(seed, 1_000 + fault as u64);
        let mean_us = chance.between(4_000_000, 20_000_000);
        let first_us = BEGIN_US + chance.below(end_us - BEGIN_US);
        let mut times = vec![first_us];
        // What lies before the first one has its share too.
        times.extend(first_us.checked_sub(mean_us).filter(|early_us| *early_us > BEGIN_US));
        let mut at_us = first_us;
        loop {
            at_us += 500_000 + chance.below(2 * mean_us);
            if at_us >= end_us {
                break;
            }
            times.push(at_us);
        }
        let numbers = BLOWS_OF_A_CLASS * fault as u64..;
        all.extend(numbers.zip(times).map(|(number, at_us)| Blow { at_us, fault, number }));
    }
    all.sort_by_key(|blow| (blow.at_us, blow.number));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_leaves_some_classes_out_and_seeds_differ() {
        let plans: Vec<Plan> = (0..50).map(|seed| Plan::new(seed, 30, None)).collect();
        assert!(plans.iter().all(|plan| plan.faults.len() < Fault::ALL.len()));
        for fault in Fault::ALL {
            let with = plans.iter().filter(|plan| plan.has(*fault)).count();
            assert!((10..45).contains(&with), "{fault} is in {with} of 50");
        }
    }

    #[test]
    fn every_class_that_happens_at_a_time_is_planned_at_least_once() {
        for seed in 0..50 {
            let plan = Plan::new(seed, 10, None);
            for fault in BLOWS.iter().filter(|fault| plan.has(**fault)) {
                assert!(plan.blows.iter().any(|blow| blow.fault == *fault), "seed {seed}: {fault}");
            }
        }
    }

    #[test]
    fn a_restriction_changes_nothing_else() {
        let only: BTreeSet<Fault> = [Fault::Crash].into();
        let (all, one) =
            (Plan::new(9, 30, Some(&Fault::ALL.iter().copied().collect())), Plan::new(9, 30, Some(&only)));
        assert_eq!(all.think_us, one.think_us);
        let crashes = |plan: &Plan| -> Vec<u64> {
            plan.blows.iter().filter(|blow| blow.fault == Fault::Crash).map(|blow| blow.at_us).collect()
        };
        assert_eq!(crashes(&all), crashes(&one));
    }
}
