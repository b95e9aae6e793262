//! Attempts that come back unstarted. The task is not at fault, nor is its worker: nothing is counted against either.

use super::task::ASSIGNED;
use super::{Application, Stop};
use crate::attempt::AttemptId;
use crate::command::Revoked;
use crate::effect::Answer;
use crate::ids::WorkerId;
use crate::limits;
use crate::rejection::Rejection;
use crate::rows::Phase;

impl Application<'_> {
    pub(super) fn revoked(&mut self, body: &Revoked) -> Result<Answer, Stop> {
        if body.attempts.len() > limits::WORKER_SLOTS as usize {
            return Err(Rejection::OutOfBounds {
                field: "attempts".to_owned(),
                problem: "are too many".to_owned(),
                limit: u64::from(limits::WORKER_SLOTS),
            }
            .into());
        }
        let row = self.rows.workers.get(&body.worker).ok_or(Rejection::UnknownWorker(body.worker))?;
        if row.incarnation != body.incarnation {
            return Err(Rejection::StaleIncarnation {
                worker: body.worker,
                given: body.incarnation,
                present: row.incarnation,
            }
            .into());
        }
        let mut revoked = 0;
        for attempt in &body.attempts {
            revoked += u64::from(self.revoke(body.worker, *attempt)?);
        }
        Ok(Answer::Revoked { revoked })
    }

    /// Whether the attempt was this worker's and waits again. What was started, or ended, stays as it is.
    fn revoke(&mut self, worker: WorkerId, attempt: AttemptId) -> Result<bool, Stop> {
        let Some(live) = self.rows.live.get(&attempt.task).cloned() else { return Ok(false) };
        if live.epoch != attempt.epoch {
            return Ok(false);
        }
        if live.phase == (Phase::Assigned { worker }) {
            self.release(worker, attempt.task, live.group)?;
            self.wait_again(attempt.task, live.group, ASSIGNED, |live| live.phase = Phase::Ready)?;
            return Ok(true);
        }
        if live.phase == (Phase::Stopping { worker }) {
            // Cancelled while it was given back: it has stopped.
            let (job, _) = self.job_and_tenant(live.group)?;
            self.release(worker, attempt.task, live.group)?;
            self.stopped(attempt.task, job)?;
            let wall_ms = self.rows.jobs.get(&job).map_or(0, |job| job.info.created_at_ms);
            self.end_job_if_done(job, wall_ms)?;
        }
        Ok(false)
    }
}
