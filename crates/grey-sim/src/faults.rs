//! The classes of fault: their names, and how often each fired.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// A class of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $($(#[$doc])* $name),*
        }

        impl Fault {
            /// Every class.
            pub const ALL: &'static [Fault] = &[$(Fault::$name),*];

            /// The name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Fault::$name => $text),*
                }
            }
        }
    };
}

faults! {
    /// A message is lost.
    Loss = "loss",
    /// A message arrives twice.
    Duplicate = "duplicate",
    /// Messages of a link overtake one another.
    Reorder = "reorder",
    /// A message takes long.
    Delay = "delay",
    /// A link stands still and then delivers everything.
    Clog = "clog",
    /// Servers fall into two sides that do not hear one another.
    Partition = "partition",
    /// A node is heard and hears nothing, or the other way round.
    OneWay = "one-way",
    /// Two sides that only one server hears both of.
    Bridge = "bridge",
    /// Links go down and up again and again.
    Flap = "flap",
    /// Links carry few bytes a second and drop what does not fit their queue.
    Congestion = "congestion",
    /// The answer to a client is lost after the commit.
    AnswerLost = "answer-lost",
    /// A power cut loses writes that were not synced.
    LostUnsynced = "lost-unsynced",
    /// A power cut in the middle of a write leaves parts of it.
    Torn = "torn",
    /// A sector of a disk holds something else.
    Corrupt = "corrupt",
    /// A write lands in another place.
    Misdirected = "misdirected",
    /// The disk has no room for a while.
    NoSpace = "no-space",
    /// A sync fails.
    SyncError = "sync-error",
    /// Syncs take long.
    SlowDisk = "slow-disk",
    /// Wall clocks are apart.
    Skew = "skew",
    /// Monotonic clocks run at different rates.
    Drift = "drift",
    /// A wall clock jumps.
    ClockJump = "clock-jump",
    /// A timer fires late.
    LateTick = "late-tick",
    /// A server's process ends and starts again.
    Crash = "crash",
    /// A node stands still and goes on.
    Pause = "pause",
    /// A node takes long over everything.
    SlowNode = "slow-node",
    /// The leader stands still until others lead, and goes on believing that it leads.
    ZombieLeader = "zombie-leader",
    /// A worker stands still or is unreachable for long, and goes on.
    ZombieWorker = "zombie-worker",
    /// A server loses its whole disk.
    Wipe = "wipe",
    /// A worker and all that it ran end, and it starts again with its outbox.
    WorkerCrash = "worker-crash",
    /// A worker comes back with another capacity.
    WorkerChange = "worker-change",
    /// Many submissions at once.
    Burst = "burst",
    /// Tasks that fit no worker.
    Huge = "huge",
    /// Cancels of tasks and jobs.
    Cancel = "cancel",
    /// Changes of time-outs.
    TimeoutChange = "timeout-change",
    /// A follower is cut off until the others have no log for it any more, and takes over a whole state.
    WholeState = "whole-state",
    /// A server leaves, perhaps since its disk is gone, and a new one enters in its place.
    Replace = "replace",
    /// A tenant may not submit for a while.
    TenantChange = "tenant-change",
    /// Servers send through bounded outboxes and breakers, and lose connections.
    Links = "links",
    /// A worker gets no new work for a while, and gives back what it has not started.
    Cordon = "cordon",
    /// A worker is shut out, ends, and is let in again.
    WorkerLeave = "worker-leave",
    /// Servers begin as an earlier version, and are upgraded one after the other.
    Upgrade = "upgrade",
    /// What a tenant may have changes, for a while.
    QuotaChange = "quota-change",
    /// The executor of a worker fails whatever it is given for a while, through no fault of the tasks.
    BrokenExecutor = "broken-executor",
    /// A worker's process ends, what it ran goes on, and its next life takes it over.
    WorkerRestart = "worker-restart",
}

/// A name that is no class of fault.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no class of fault; there are {known}", known = Fault::ALL.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Fault, UnknownFault> {
        Fault::ALL
            .iter()
            .find(|fault| fault.name() == text)
            .copied()
            .ok_or_else(|| UnknownFault(text.to_owned()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How often each class fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters([u64; Fault::ALL.len()]);

impl Default for Counters {
    fn default() -> Counters {
        Counters([0; Fault::ALL.len()])
    }
}

impl Counters {
    /// One more.
    pub fn count(&mut self, fault: Fault) {
        if let Some(count) = self.0.get_mut(fault as usize) {
            *count += 1;
        }
    }

    /// How often a class fired.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(fault as usize).copied().unwrap_or(0)
    }

    /// All faults together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Counters) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, more)| *mine += more);
    }

    /// Those of the classes that never fired.
    pub fn silent(&self, of: &BTreeSet<Fault>) -> Vec<Fault> {
        of.iter().copied().filter(|fault| self.of(*fault) == 0).collect()
    }
}
