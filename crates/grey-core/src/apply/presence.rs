//! Workers that are not heard of: suspected first, and lost once their lease has ended.

use std::collections::BTreeSet;

use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::{LoseWorker, QuarantineWorker, SetQuarantine, SuspectWorker};
use crate::effect::{Answer, Effect, Event, EventKind};
use crate::ids::{JobId, WorkerId};
use crate::level::TROUBLE_LEVEL;
use crate::quarantine::{Consequence, HealthEvent, QuarantineOptions, Standing};
use crate::rejection::Rejection;
use crate::rows::{Presence, Worker};

impl Application<'_> {
    /// Refuses what was said under another announcement than the worker's present one, or of a worker that is lost.
    pub(super) fn check_session(&self, worker: WorkerId, session: u64) -> Result<(), Rejection> {
        let row = self.rows.workers.get(&worker).ok_or(Rejection::UnknownWorker(worker))?;
        if row.session != session {
            return Err(Rejection::StaleSession { worker, given: session, present: row.session });
        }
        if row.presence == Presence::Lost { Err(Rejection::WorkerLost(worker)) } else { Ok(()) }
    }

    fn check_life(&self, worker: WorkerId, incarnation: u64, session: u64) -> Result<(), Rejection> {
        let row = self.rows.workers.get(&worker).ok_or(Rejection::UnknownWorker(worker))?;
        if row.incarnation != incarnation {
            let present = row.incarnation;
            return Err(Rejection::StaleIncarnation { worker, given: incarnation, present });
        }
        self.check_session(worker, session)
    }

    pub(super) fn suspect_worker(&mut self, body: &SuspectWorker) -> Result<Answer, Stop> {
        self.check_life(body.worker, body.incarnation, body.session)?;
        let event = if body.suspected { HealthEvent::Suspected } else { HealthEvent::Heard };
        self.judge(body.worker, event)?;
        Ok(Answer::Done)
    }

    pub(super) fn quarantine_worker(&mut self, body: &QuarantineWorker) -> Result<Answer, Stop> {
        self.check_life(body.worker, body.incarnation, body.session)?;
        self.judge(body.worker, HealthEvent::Failed)?;
        Ok(Answer::Done)
    }

    /// An operator's order. It names the node, since whoever gives it means the machine and not one of its announcements.
    pub(super) fn set_quarantine(&mut self, body: &SetQuarantine) -> Result<Answer, Stop> {
        let known = self.rows.base.workers.iter().find(|(_, row)| row.node == body.node);
        let Some((worker, _)) = known else {
            return match self.rows.base.node(&body.node) {
                Some(_) => {
                    Err(Rejection::NotAdmitted("it has not announced itself as a worker".to_owned()).into())
                }
                None => Err(Rejection::UnknownNode(body.node).into()),
            };
        };
        let event = if body.quarantined { HealthEvent::Ordered } else { HealthEvent::Released };
        self.judge(*worker, event)?;
        Ok(Answer::Identity)
    }

    /// What an event costs or brings a worker, by the policy of quarantine.
    pub(super) fn judge(&mut self, worker: WorkerId, event: HealthEvent) -> Result<(), Stop> {
        let options = QuarantineOptions::default();
        let room = event != HealthEvent::Failed || self.has_quarantine_room(&options);
        let now_ms = self.rows.meta.time_ms;
        let row = self.worker_mut(worker)?;
        let (quarantine, consequence) = row.quarantine.after(event, now_ms, room, &options);
        row.quarantine = quarantine;
        if consequence == Consequence::Alert {
            self.rows.meta.quarantine_alerts = self.rows.meta.quarantine_alerts.saturating_add(1);
        }
        Ok(())
    }

    fn has_quarantine_room(&self, options: &QuarantineOptions) -> bool {
        let workers = &self.rows.base.workers;
        let in_quarantine = |row: &&Worker| matches!(row.quarantine.standing, Standing::Quarantined { .. });
        options.has_room(workers.values().filter(in_quarantine).count() as u64, workers.len() as u64)
    }

    /// Whether any other worker is in touch. If none is, the cause is not this one's, and nobody is there who would do its work instead.
    fn is_another_heard(&self, worker: WorkerId) -> bool {
        let mut others = self.rows.base.workers.iter().filter(|(other, _)| **other != worker);
        others.any(|(_, row)| row.presence == Presence::Present && !row.is_suspect())
    }

    /// Everything that the worker held waits again. That all of it does at once is what the others need to know of it.
    pub(super) fn lose_worker(&mut self, body: &LoseWorker) -> Result<Answer, Stop> {
        self.check_life(body.worker, body.incarnation, body.session)?;
        let worker = body.worker;
        let held: Vec<AttemptId> = self
            .rows
            .base
            .live
            .iter()
            .filter(|(_, live)| live.phase.worker() == Some(worker))
            .map(|(task, live)| AttemptId { task: *task, epoch: live.epoch })
            .collect();
        let mut jobs = BTreeSet::new();
        for attempt in held {
            jobs.insert(self.lose_held(attempt)?);
        }
        self.worker_mut(worker)?.presence = Presence::Lost;
        self.judge(worker, HealthEvent::Suspected)?;
        if self.rows.meta.feature_level < TROUBLE_LEVEL || self.is_another_heard(worker) {
            self.judge(worker, HealthEvent::Failed)?;
        }
        for job in jobs {
            let wall_ms = self.rows.jobs.get(&job).map_or(0, |job| job.info.created_at_ms);
            self.end_job_if_done(job, wall_ms)?;
        }
        Ok(Answer::Done)
    }

    /// Loses an attempt that a worker holds, and tells those who watch its job.
    pub(super) fn lose_held(&mut self, attempt: AttemptId) -> Result<JobId, Stop> {
        let live = self.rows.live.get(&attempt.task).ok_or(Stop::Bug("a live task disappeared"))?;
        let (job, _) = self.job_and_tenant(live.group)?;
        self.lose(attempt)?;
        let retry = self.rows.live.contains(&attempt.task);
        let kind = EventKind::AttemptEnded { task: attempt.task, outcome: "lost", retry };
        self.effects.push(Effect::Event(Event { index: self.index, job, kind }));
        Ok(job)
    }
}
