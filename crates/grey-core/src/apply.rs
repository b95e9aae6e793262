//! Applies committed entries. Total: whatever the bytes say, the answer is a value and the state holds its invariants.

mod authority;
mod breaker;
mod cancel;
mod identity;
mod level;
mod presence;
mod quota;
mod recover;
mod register;
mod report;
mod revoke;
mod stages;
mod submit;
mod task;
mod timeout;
pub(crate) use task::multiplied;
mod time;

use crate::command::{Bootstrap, Command, Plan};
use crate::effect::{Answer, Applied, Effect};
use crate::entry::{Entry, EntryError};
use crate::ids::TenantId;
use crate::level::OLDEST_FEATURE_LEVEL;
use crate::limits;
use crate::overlay::Overlay;
use crate::rejection::Rejection;
use crate::rows::Tenant;
use crate::spec::Resources;
use crate::state::State;

/// Why applying a command stopped.
pub(crate) enum Stop {
    /// The command is refused; nothing of it is kept.
    Rejected(Rejection),
    /// An invariant of Grey's own does not hold; nothing of the entry is kept.
    Bug(&'static str),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Stop {
        Stop::Rejected(rejection)
    }
}

/// One entry being applied.
pub(crate) struct Application<'a> {
    pub(crate) rows: Overlay<'a>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// Applies the entry at `index`, which must follow the last applied one. `bytes` as committed; empty bytes are the
/// engine's own entry at the start of a term.
///
/// Fails only when a newer version wrote the entry: then the node must stop, since to skip it would make replicas differ.
pub fn apply(state: &mut State, term: u64, index: u64, bytes: &[u8]) -> Result<Applied, EntryError> {
    if bytes.is_empty() {
        let changes = Overlay::new(state).into_changes();
        state.commit(index, term, changes);
        return Ok(Applied { answer: Ok(Answer::Done), effects: Vec::new() });
    }
    match Entry::decode(bytes) {
        Ok(entry) => Ok(apply_entry(state, term, index, entry)),
        Err(error) if error.must_halt() => Err(error),
        Err(_) => {
            let changes = Overlay::new(state).into_changes();
            state.commit(index, term, changes);
            Ok(Applied { answer: Err(Rejection::Malformed), effects: Vec::new() })
        }
    }
}

/// [`apply`] for an entry that is already decoded.
pub fn apply_entry(state: &mut State, term: u64, index: u64, entry: Entry) -> Applied {
    let mut application = Application::new(state, term, index);
    let outcome = application.pass_time(entry.time_ms).and_then(|()| application.run(entry.command));
    let (answer, application) = match outcome {
        Ok(answer) => (Ok(answer), application),
        Err(Stop::Rejected(rejection)) => {
            // The command leaves nothing behind, but time has passed: that alone is applied again.
            let mut clock = Application::new(state, term, index);
            match clock.pass_time(entry.time_ms) {
                Ok(()) => (Err(rejection), clock),
                Err(_) => (Err(rejection), Application::new(state, term, index)),
            }
        }
        Err(Stop::Bug(what)) => {
            let mut discarded = Application::new(state, term, index);
            discarded.rows.meta.internal_bugs = discarded.rows.meta.internal_bugs.saturating_add(1);
            (Err(Rejection::InternalBug { index, what: what.to_owned() }), discarded)
        }
    };
    let Application { rows, effects, .. } = application;
    let changes = rows.into_changes();
    state.commit(index, term, changes);
    Applied { answer, effects }
}

impl<'a> Application<'a> {
    fn new(state: &'a State, term: u64, index: u64) -> Application<'a> {
        Application { rows: Overlay::new(state), effects: Vec::new(), term, index }
    }

    fn run(&mut self, command: Command) -> Result<Answer, Stop> {
        if self.rows.meta.cluster.is_none() && !matches!(command, Command::Bootstrap(_)) {
            return Err(Rejection::NotFounded.into());
        }
        let (needed, in_force) = (command.feature_level(), self.rows.meta.feature_level);
        if needed > in_force.max(OLDEST_FEATURE_LEVEL) && !matches!(command, Command::RaiseFeatureLevel(_)) {
            return Err(Rejection::FeatureLevel { needed, in_force }.into());
        }
        match command {
            Command::Bootstrap(body) => self.bootstrap(body),
            Command::Submit(body) => self.submit(body),
            Command::RegisterWorker(body) => self.register_worker(body),
            Command::Plan(body) => self.plan(&body),
            Command::Report(body) => self.report(body),
            Command::Cancel(body) => self.cancel(&body),
            Command::Revoked(body) => self.revoked(&body),
            Command::ChangeTimeout(body) => self.change_timeout(&body),
            Command::SuspectWorker(body) => self.suspect_worker(&body),
            Command::LoseWorker(body) => self.lose_worker(&body),
            Command::QuarantineWorker(body) => self.quarantine_worker(&body),
            Command::SetQuarantine(body) => self.set_quarantine(&body),
            Command::EnrolFounder(body) => self.enrol_founder(body),
            Command::AdmitNode(body) => self.admit_node(body),
            Command::RenewNode(body) => self.renew_node(body),
            Command::SetNodeStanding(body) => self.set_node_standing(&body),
            Command::CordonNode(body) => self.cordon_node(&body),
            Command::SetNodeAddress(body) => self.set_node_address(body),
            Command::ForgetNode(body) => self.forget_node(&body),
            Command::CreateJoinToken(body) => self.create_join_token(body),
            Command::RevokeJoinToken(body) => self.revoke_join_token(&body),
            Command::CreateToken(body) => self.create_token(body),
            Command::RevokeToken(body) => self.revoke_token(&body),
            Command::CreateTenant(body) => self.create_tenant(body),
            Command::SetTenantSuspended(body) => self.set_tenant_suspended(&body),
            Command::Recover(body) => self.recover(body),
            Command::SetNodeVersion(body) => self.set_node_version(body),
            Command::RaiseFeatureLevel(body) => self.raise_feature_level(&body),
            Command::SetTenantQuota(body) => self.set_tenant_quota(&body),
            Command::SetIssuingAuthority(body) => self.set_issuing_authority(body),
            Command::Tick => Ok(Answer::Done),
        }
    }

    fn bootstrap(&mut self, body: Bootstrap) -> Result<Answer, Stop> {
        if self.rows.meta.cluster.is_some() {
            return Err(Rejection::AlreadyFounded.into());
        }
        if body.tenants.len() > limits::FOUNDING_TENANTS {
            return Err(Rejection::OutOfBounds {
                field: "tenants".to_owned(),
                problem: "are too many".to_owned(),
                limit: limits::FOUNDING_TENANTS as u64,
            }
            .into());
        }
        self.rows.meta.cluster = Some(body.cluster);
        self.rows.meta.feature_level = OLDEST_FEATURE_LEVEL;
        self.rows.meta.founded_at_ms = body.wall_ms;
        for (number, tenant) in (1..).zip(body.tenants) {
            self.rows.tenants.insert(
                TenantId(number),
                Tenant {
                    name: tenant.name.into(),
                    defaults: tenant.defaults,
                    weight_milli: 1_000,
                    suspended: false,
                    queued_tasks: 0,
                    held_tasks: 0,
                    usage: Resources::default(),
                    keys: 0,
                },
            );
        }
        Ok(Answer::Founded)
    }

    fn plan(&mut self, plan: &Plan) -> Result<Answer, Stop> {
        let (mut placed, mut stale) = (0u64, 0u64);
        for placement in plan.placements.iter().take(limits::PLAN_PLACEMENTS) {
            let tasks = u64::from(placement.tasks.count);
            if self.place(placement)? {
                placed += tasks;
            } else {
                stale = stale.saturating_add(tasks);
            }
        }
        self.rows.meta.stale_placements = self.rows.meta.stale_placements.saturating_add(stale);
        Ok(Answer::Planned { placed, stale })
    }
}
