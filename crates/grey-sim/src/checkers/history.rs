//! What clients see of a job is as if everything happened one after the other, each between its question and its answer.
//!
//! Each job has a history of its own, and a search over it ([`super::linearizability`]) that knows only what clients asked and were told.
//! What tasks do meanwhile nobody asks for: it may happen at any time, and only ever onwards. Where the log knows better than any client,
//! that is held against it too: a job is not gone before the log has its end.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::{Answer, Counts, Effect, HistoryRecord, JobId, Rejection, Target, TaskId, TaskRange};

use super::Checker;
use super::linearizability::{Call, Model, Verdict, check};
use crate::fact::{Fact, Told, Wish};

/// The most steps that one search may take. Histories of storms take a few hundred.
const MOST_STEPS: u32 = 200_000;

/// What can be told of a job from outside: at least that much of it is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    exists: bool,
    /// No task is live any more.
    over: bool,
    /// It is gone: nothing can be said to it.
    gone: bool,
    completed: u64,
    failed: u64,
    cancelled: u64,
}

impl Seen {
    fn ended(&self) -> u64 {
        self.completed + self.failed + self.cancelled
    }

    fn is_there(&self) -> bool {
        self.exists && !self.gone
    }
}

/// An operation on a job of so many tasks, with its answer where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Operation {
    /// Accepted; whether it was said to have been accepted before, where it was said.
    Submit(Option<bool>),
    Read {
        total: u64,
        counts: Counts,
    },
    /// It was not found.
    Gone,
    /// A cancel of all tasks without an answer.
    CancelAll,
    /// A cancel of so many tasks that ended this many; those that had ended before are the rest.
    Cancelled {
        total: u64,
        asked: u64,
        cancelled: u64,
        already_ended: u64,
    },
    /// No task of it was live.
    Over,
    /// Anything else that was found.
    Found,
}

impl Model for Operation {
    type State = Seen;

    fn step(&self, before: &Seen) -> Option<Seen> {
        let before = *before;
        match self {
            Operation::Submit(duplicate) => {
                let fits = duplicate.is_none_or(|duplicate| duplicate == before.exists);
                fits.then_some(Seen { exists: true, ..before })
            }
            Operation::Read { total, counts } => {
                let fits = before.is_there()
                    && counts.total() == *total
                    && counts.completed >= before.completed
                    && counts.failed >= before.failed
                    && counts.cancelled >= before.cancelled
                    && (counts.live() == 0 || !before.over);
                fits.then_some(Seen {
                    over: counts.live() == 0,
                    completed: counts.completed,
                    failed: counts.failed,
                    cancelled: counts.cancelled,
                    ..before
                })
            }
            Operation::Gone => before.exists.then_some(Seen { over: true, gone: true, ..before }),
            Operation::Over => before.exists.then_some(Seen { over: true, ..before }),
            Operation::CancelAll => Some(Seen { over: before.over | before.is_there(), ..before }),
            Operation::Cancelled { total, asked, cancelled, already_ended } => {
                let of_all = asked == total;
                let fits = before.is_there()
                    && cancelled + already_ended == *asked
                    && (*cancelled == 0 || !before.over)
                    && before.ended() + cancelled <= *total
                    && (!of_all || before.ended() <= *already_ended);
                fits.then_some(Seen {
                    over: before.over || of_all,
                    cancelled: before.cancelled + cancelled,
                    ..before
                })
            }
            Operation::Found => before.is_there().then_some(before),
        }
    }
}

/// What happened to one job.
#[derive(Default)]
struct OfJob {
    tasks: Option<TaskRange>,
    calls: Vec<Call<Operation>>,
}

#[derive(Default)]
pub struct History {
    /// How many questions and answers there were: the time of histories.
    moment: u64,
    /// Operations that are open: when they were asked first, and last.
    open: BTreeMap<(usize, u64), (u64, u64)>,
    jobs: BTreeMap<JobId, OfJob>,
    jobs_by_task: BTreeMap<TaskId, (TaskId, JobId)>,
    ended: BTreeSet<JobId>,
    undecided: u64,
}

impl History {
    fn job_of(&self, target: Target) -> Option<JobId> {
        match target {
            Target::Job(job) => Some(job),
            Target::Task(task) => {
                let (_, (end, job)) = self.jobs_by_task.range(..=task).next_back()?;
                (task < *end).then_some(*job)
            }
        }
    }

    /// The job that an answered operation is about, and what it did.
    fn operation(&mut self, wish: &Wish, told: &Told) -> Result<Option<(JobId, Operation)>, String> {
        let target = match wish {
            Wish::Submit { .. } => {
                let Told::Applied(Ok(Answer::Submitted { job, tasks, duplicate })) = told else {
                    return Ok(None);
                };
                self.jobs.entry(*job).or_default().tasks = Some(*tasks);
                self.jobs_by_task.insert(tasks.first, (tasks.end(), *job));
                return Ok(Some((*job, Operation::Submit(Some(*duplicate)))));
            }
            Wish::Read(job) => Target::Job(*job),
            Wish::Cancel(body) => body.target,
            Wish::ChangeTimeout(body) => body.target,
        };
        let Some(job) = self.job_of(target) else { return Ok(None) };
        let tasks = self.jobs.get(&job).and_then(|known| known.tasks);
        let total = tasks.map_or(0, |tasks| u64::from(tasks.count));
        let operation = match (wish, told) {
            // Where nothing is left whose time-out could be changed, that is said in the same words.
            (Wish::ChangeTimeout(_), Told::Applied(Err(Rejection::UnknownJob(_)))) => Operation::Over,
            (Wish::ChangeTimeout(_), Told::Applied(Err(Rejection::UnknownTask(_)))) => return Ok(None),
            (
                _,
                Told::Read(None) | Told::Applied(Err(Rejection::UnknownJob(_) | Rejection::UnknownTask(_))),
            ) => {
                if !self.ended.contains(&job) {
                    return Err(format!("{job} was not found, and has not ended"));
                }
                Operation::Gone
            }
            (Wish::Read(_), Told::Read(Some(counts))) => Operation::Read { total, counts: *counts },
            (Wish::Cancel(_), Told::Applied(Ok(Answer::Cancelled { cancelled, already_ended }))) => {
                let asked = if target == Target::Job(job) { total } else { 1 };
                let (cancelled, already_ended) = (*cancelled, *already_ended);
                Operation::Cancelled { total, asked, cancelled, already_ended }
            }
            (
                Wish::ChangeTimeout(_),
                Told::Applied(Ok(Answer::TimeoutChanged { .. }) | Err(Rejection::NotStarted { .. })),
            ) => Operation::Found,
            (_, told) => return Err(format!("{wish:?} was answered by {told:?}")),
        };
        Ok(Some((job, operation)))
    }

    fn answered(&mut self, asked: (u64, u64), wish: &Wish, told: &Told) -> Result<(), String> {
        let Some((job, operation)) = self.operation(wish, told)? else { return Ok(()) };
        let Some(known) = self.jobs.get_mut(&job) else { return Ok(()) };
        // A question may reach the cluster more than once, or late: what the answer does not speak of may have happened too.
        let again = match (wish, &operation) {
            (Wish::Submit { .. }, _) => Some(Operation::Submit(None)),
            (Wish::Cancel(body), _) if body.target == Target::Job(job) => Some(Operation::CancelAll),
            _ => None,
        };
        if let Some(operation) = again {
            known.calls.push(Call { asked: asked.0, answered: None, operation });
        }
        known.calls.push(Call { asked: asked.1, answered: Some(self.moment), operation });
        match check(&Seen::default(), &known.calls, MOST_STEPS) {
            Verdict::Linearizable => Ok(()),
            Verdict::Unknown => {
                self.undecided += 1;
                Ok(())
            }
            Verdict::NotLinearizable => {
                let calls: Vec<String> = known.calls.iter().map(|call| format!("  {call:?}")).collect();
                Err(format!("what clients saw of {job} has no order:\n{}", calls.join("\n")))
            }
        }
    }
}

impl Checker for History {
    fn promise(&self) -> &'static str {
        "clients-see-one-order"
    }

    fn undecided(&self) -> u64 {
        self.undecided
    }

    fn observe(&mut self, _at_us: u64, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { first: true, applied, .. } => {
                for effect in &applied.effects {
                    if let Effect::History(HistoryRecord::Job(job, _)) = effect {
                        self.ended.insert(*job);
                    }
                }
                Ok(())
            }
            Fact::Asked { client, operation, .. } => {
                self.moment += 1;
                let moment = self.moment;
                self.open
                    .entry((*client, *operation))
                    .and_modify(|(_, last)| *last = moment)
                    .or_insert((moment, moment));
                Ok(())
            }
            Fact::Answered { client, operation, wish, told } => {
                self.moment += 1;
                let Some(asked) = self.open.remove(&(*client, *operation)) else { return Ok(()) };
                self.answered(asked, wish, told)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u64 = 4;

    fn read(completed: u64, cancelled: u64) -> Operation {
        let pending = TOTAL - completed - cancelled;
        Operation::Read {
            total: TOTAL,
            counts: Counts { pending, completed, cancelled, ..Counts::default() },
        }
    }

    fn cancelled(cancelled: u64) -> Operation {
        Operation::Cancelled { total: TOTAL, asked: TOTAL, cancelled, already_ended: TOTAL - cancelled }
    }

    /// Each between its question and its answer, one after the other where they do not overlap; 0 for no answer.
    fn verdict(calls: &[(u64, u64, Operation)]) -> Verdict {
        let submitted = Call { asked: 1, answered: Some(2), operation: Operation::Submit(Some(false)) };
        let calls = calls.iter().map(|(asked, answered, operation)| Call {
            asked: *asked,
            answered: (*answered > 0).then_some(*answered),
            operation: operation.clone(),
        });
        let calls: Vec<Call<Operation>> = std::iter::once(submitted).chain(calls).collect();
        check(&Seen::default(), &calls, MOST_STEPS)
    }

    #[test]
    fn what_has_ended_never_gets_less() {
        assert_eq!(verdict(&[(3, 4, read(1, 0)), (5, 6, read(3, 0))]), Verdict::Linearizable);
        assert_eq!(verdict(&[(3, 4, read(3, 0)), (5, 6, read(1, 0))]), Verdict::NotLinearizable);
        // Whoever asks at the same time may see less.
        assert_eq!(verdict(&[(3, 6, read(3, 0)), (4, 5, read(1, 0))]), Verdict::Linearizable);
    }

    #[test]
    fn what_is_gone_stays_gone() {
        assert_eq!(verdict(&[(3, 4, read(1, 0)), (5, 6, Operation::Gone)]), Verdict::Linearizable);
        assert_eq!(verdict(&[(3, 4, Operation::Gone), (5, 6, read(4, 0))]), Verdict::NotLinearizable);
        assert_eq!(verdict(&[(3, 4, Operation::Gone), (5, 6, Operation::Found)]), Verdict::NotLinearizable);
    }

    #[test]
    fn after_a_cancel_nothing_is_live_and_a_second_one_ends_nothing() {
        assert_eq!(verdict(&[(3, 4, cancelled(3)), (5, 6, read(1, 3))]), Verdict::Linearizable);
        assert_eq!(verdict(&[(3, 4, cancelled(3)), (5, 6, read(1, 2))]), Verdict::NotLinearizable);
        assert_eq!(verdict(&[(3, 4, cancelled(3)), (5, 6, cancelled(0))]), Verdict::Linearizable);
        assert_eq!(verdict(&[(3, 4, cancelled(3)), (5, 6, cancelled(1))]), Verdict::NotLinearizable);
        // More of it had ended than the cancel says.
        assert_eq!(verdict(&[(3, 4, read(2, 0)), (5, 6, cancelled(3))]), Verdict::NotLinearizable);
    }

    #[test]
    fn a_cancel_without_an_answer_may_come_about_later_or_never() {
        let lost = (3, 0, Operation::CancelAll);
        assert_eq!(verdict(&[lost.clone(), (4, 5, read(1, 0)), (6, 7, read(1, 3))]), Verdict::Linearizable);
        assert_eq!(verdict(&[lost.clone(), (4, 5, read(1, 0)), (6, 7, read(4, 0))]), Verdict::Linearizable);
        assert_eq!(verdict(&[lost, (4, 5, read(1, 3)), (6, 7, read(1, 2))]), Verdict::NotLinearizable);
    }

    #[test]
    fn a_submission_is_accepted_once() {
        let submit = |duplicate| Operation::Submit(Some(duplicate));
        assert_eq!(verdict(&[(3, 4, submit(true))]), Verdict::Linearizable);
        assert_eq!(verdict(&[(3, 4, submit(false))]), Verdict::NotLinearizable);
    }
}
