//! Deliberate mistakes, so that the simulator can prove that its checkers would see them. Compiled only with the feature
//! `mutants`, which no binary has.

use crate::state::State;

/// One deliberate mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A batch counts as durable when it is asked for.
    AcknowledgeBeforeSync,
    /// Term and vote do not become durable.
    ForgetVote,
    /// Entries that are committed together are applied in the wrong order by some servers.
    ApplyOutOfOrder,
    /// Whoever was not heard of since a late tick is taken for lost.
    SuspectWhileLate,
    /// A result counts for whatever attempt the task has now.
    AcceptStaleEpoch,
    /// A placement is not checked again when it is applied.
    SkipRecheck,
    /// What a worker no longer holds stays assigned to it.
    ForgetRetirement,
    /// A cancel is answered and not carried out.
    LoseCancel,
    /// The tenant that has most comes first.
    FavourTheRich,
    /// A report that comes again counts again.
    ReplayCompletion,
    /// A worker runs what it gave back.
    RunRevoked,
    /// A worker goes on when its lease has ended.
    OutliveLease,
    /// A server answers reads at once, whether it still leads or not.
    ReadWithoutQuorum,
    /// A suspended tenant submits all the same.
    ForgetSuspension,
    /// A tenant submits whatever its quota says.
    IgnoreQuota,
    /// What an earlier version does not understand is put into the log, to be refused when it is applied.
    WriteTooEarly,
}

impl State {
    /// Lets this state's code make a mistake from now on.
    pub fn mutate(&mut self, mutant: Option<Mutant>) {
        self.mutant = mutant;
    }

    /// Whether this state's code makes a mistake.
    pub fn makes(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
