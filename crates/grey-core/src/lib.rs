//! The replicated state machine of Grey: what a committed entry does to the state, and what follows from a state.
//!
//! Everything here is a pure function of its inputs. There is no clock, no chance, no hash order, no float and no IO:
//! two replicas that applied the same entries are equal, and a test or a simulator can ask what any entry would do.
//!
//! [`apply()`] takes a state and an entry and returns effects; [`plan()`] takes a state and returns placements to be
//! proposed. A placement is checked again when it is applied, so a plan may be wrong without harm.

mod apply;
mod attempt;
mod authority;
mod breaker;
mod changed;
mod command;
mod constraint;
mod effect;
mod entry;
mod flow;
mod gcra;
mod history;
mod identity;
mod identity_table;
mod ids;
mod invariants;
mod level;
pub mod limits;
#[cfg(feature = "mutants")]
mod mutant;
mod overlay;
mod plan;
mod quarantine;
mod quota;
mod range_set;
mod rejection;
mod report_check;
mod rows;
mod seats;
mod spec;
mod state;
mod statement;
mod steal;
mod table;
pub mod validate;
mod worker_message;

pub use apply::{apply, apply_entry};
pub use attempt::{
    AttemptId, AttemptResult, Content, Finished, Outcome, OutputFile, SandboxLevel, Usage, UsageSource,
};
pub use authority::{AuthorityRow, CurrentIssuer, SetIssuingAuthority};
pub use breaker::{BreakerPhase, ExecutorBreaker, WorkerBreakers};
pub use command::{
    Bootstrap, Cancel, ChangeTimeout, Command, GroupSubmission, IdempotencyKey, LoseWorker, Placement, Plan,
    QuarantineWorker, RegisterWorker, Report, Revoked, SetQuarantine, SignedRoot, Submit, SuspectWorker,
    Target, TaskDefaults, TenantRecord,
};
pub use constraint::{Constraints, Devices, Items, Tier};
pub use effect::{Answer, Applied, Assignment, Effect, Event, EventKind};
pub use entry::{Entry, EntryError, level_of_entry};
pub use flow::{
    Broken, Flow, FlowSubmission, OutputsOf, Source, Stage, StageInput, StageProgress, StageSubmission,
};
pub use gcra::{Gcra, RateLimit, RateRefusal};
pub use history::{
    AttemptPointer, FlowRecord, HistoryRecord, JobRecord, ReportRecord, ReportedRun, RunContext,
};
pub use identity::{
    AdmitNode, CordonNode, CreateJoinToken, CreateTenant, CreateToken, EnrolFounder, ForgetNode,
    JoinTokenRow, Keeper, NewNode, NodeRole, NodeRow, NodeStanding, Recover, RenewNode, RevokeJoinToken,
    RevokeToken, SetNodeAddress, SetNodeStanding, SetTenantSuspended, TokenRole, TokenRow,
};
pub use ids::{Epoch, JobId, ParseIdError, TaskId, TaskRange, TenantId, WorkerId};
pub use level::{
    ACCEPTANCE_LEVEL, AUTHORITY_LEVEL, FORGET_LEVEL, NEWEST_FEATURE_LEVEL, NodeVersion, OLDEST_FEATURE_LEVEL,
    RaiseFeatureLevel, SetNodeVersion,
};
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use plan::{PLAN_VERSION, plan};
pub use quarantine::{Consequence, HealthEvent, Quarantine, QuarantineOptions, Standing};
pub use quota::{Quota, QuotaRow, SetTenantQuota};
pub use range_set::RangeSet;
pub use rejection::Rejection;
pub use report_check::{ReportRefusal, check_report};
pub use rows::{
    Counts, Group, Job, JobInfo, KeyId, KeyRecord, LiveTask, Meta, Phase, Presence, RunClock, Tenant, Worker,
    WorkerDevices,
};
pub use spec::{BlobReference, ExecutorKind, InputFile, Resources, Retries, TaskSpec};
pub use state::{Deadline, LoadError, ReadyKey, State};
pub use statement::{Signer, leaves, report_header, report_root, statement};
pub use steal::steal;
pub use table::{Numbered, Rows, Table};
pub use worker_message::{FromWorker, Heartbeat, ReportAnswer, ToWorker, WorkerMessage};
