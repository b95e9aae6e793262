//! The cluster goes on with one server.

use std::collections::BTreeSet;

use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::constraint::Tier;
use crate::effect::Answer;
use crate::identity::{IdentityKey, IdentityRow, Keeper, NodeRole, NodeStanding, Recover};
use crate::ids::WorkerId;
use crate::limits;
use crate::rejection::Rejection;
use crate::rows::Presence;

impl Application<'_> {
    pub(super) fn recover(&mut self, body: Recover) -> Result<Answer, Stop> {
        let keeps = match &body.keeper {
            Keeper::Survivor(survivor) => {
                self.rows.base.node(survivor).ok_or(Rejection::UnknownNode(*survivor))?.role
            }
            Keeper::Newcomer { node, .. } => node.role,
        };
        if keeps != NodeRole::Server {
            return Err(Rejection::NotAdmitted("only a server can go on".to_owned()).into());
        }
        self.skip_numbers()?;
        self.lose_all_workers()?;
        let survivor = match &body.keeper {
            Keeper::Survivor(survivor) => self.rows.base.node(survivor),
            Keeper::Newcomer { .. } => None,
        };
        let others = || self.rows.base.nodes().filter(|row| Some(row.node) != survivor.map(|row| row.node));
        // Those that were leaving, or blocked, are counted already.
        let left =
            others().filter(|row| row.server.is_some() && row.standing == NodeStanding::Admitted).count();
        let nodes = others().flat_map(|row| [IdentityKey::Node(row.node), IdentityKey::Version(row.node)]);
        // One that was used in the lost part must not let anybody in again.
        let tokens = self.rows.base.join_tokens().map(|row| IdentityKey::JoinToken(row.id));
        for key in nodes.chain(tokens).collect::<Vec<IdentityKey>>() {
            self.rows.identity.remove(&key);
        }
        let server = match body.keeper {
            Keeper::Survivor(_) => {
                self.servers_left(left);
                survivor.and_then(|row| row.server)
            }
            Keeper::Newcomer { node, token, issuers } => {
                // Whoever restores makes an issuing key that nobody else knows.
                self.rows.identity.remove(&IdentityKey::Authority);
                let cluster = self.rows.meta.cluster.unwrap_or_default();
                for (id, bytes) in issuers {
                    self.keep_certificate(cluster, id, bytes)?;
                }
                self.check_token(&token)?;
                self.rows.identity.insert(IdentityKey::Token(token.id), IdentityRow::Token(token));
                self.add_node(*node, body.wall_ms)?
            }
        };
        Ok(Answer::Admitted { server })
    }

    /// Numbers that the lost part may have given out are not given out again.
    fn skip_numbers(&mut self) -> Result<(), Stop> {
        let meta = &mut self.rows.meta;
        for (number, what) in [(&mut meta.jobs_submitted, "job"), (&mut meta.tasks_submitted, "task")] {
            let next = number.checked_add(limits::NUMBERS_SKIPPED);
            *number = next.ok_or_else(|| Rejection::Exhausted(what.to_owned()))?;
        }
        Ok(())
    }

    /// What workers held waits again.
    fn lose_all_workers(&mut self) -> Result<(), Stop> {
        let live = self.rows.base.live.iter().filter(|(_, live)| live.phase.worker().is_some());
        let held: Vec<AttemptId> =
            live.map(|(task, live)| AttemptId { task: *task, epoch: live.epoch }).collect();
        let mut jobs = BTreeSet::new();
        for attempt in held {
            jobs.insert(self.lose_held(attempt)?);
        }
        for worker in self.rows.base.workers.keys().copied().collect::<Vec<WorkerId>>() {
            let row = self.worker_mut(worker)?;
            (row.presence, row.tier, row.cordoned) = (Presence::Lost, Tier::Blocked, false);
        }
        for job in jobs {
            let wall_ms = self.rows.jobs.get(&job).map_or(0, |job| job.info.created_at_ms);
            self.end_job_if_done(job, wall_ms)?;
        }
        Ok(())
    }
}
