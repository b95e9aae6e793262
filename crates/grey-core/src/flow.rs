//! How the parts of a job follow one another: its stages, what each waits for and takes from others, and how far the
//! job goes when tasks fail.
//!
//! A stage is a run of neighbouring groups. Most jobs have no flow at all, and cost nothing for it.

use std::collections::BTreeSet;

use grey_proof::{Digest, DigestBuilder};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::constraint::Items;
use crate::ids::{JobId, TaskRange};
use crate::limits;
use crate::rejection::Rejection;

/// What a submission says beyond its tasks; empty for most.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowSubmission {
    /// The most tasks of the job that workers may hold at once; absent means any number.
    pub parallel: Option<u32>,
    /// When more tasks than this have failed for good, the rest of the job is cancelled; absent means never.
    pub max_failures: Option<u32>,
    /// Its stages in the order of its groups, which they cover; none when no task waits for another.
    pub stages: Vec<StageSubmission>,
}

impl FlowSubmission {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == FlowSubmission::default()
    }
}

/// A run of groups that wait for the same and are waited for together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageSubmission {
    /// How many groups; at least one.
    pub groups: u32,
    /// Stages of the same job all of whose tasks must have succeeded before, by number, ascending.
    pub after: Vec<u32>,
    /// Output files of others that are laid into the working directory.
    pub inputs: Vec<StageInput>,
    /// What `GREY_ITEM` says in each task; then the stage is one array.
    pub items: Option<Items>,
}

/// Where output files of other tasks come from and go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInput {
    /// Relative path of a directory below the working directory.
    pub path: String,
    /// Whose files, in order.
    pub sources: Vec<Source>,
}

/// Tasks whose output files are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Those of a stage of the same job; it must be one that is waited for.
    Stage(u32),
    /// Those of an earlier job of the same tenant, which have succeeded.
    Tasks(TaskRange),
}

/// The flow of a job as it is kept: it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The most tasks that workers may hold at once.
    pub parallel: Option<u32>,
    /// How many tasks may fail for good before the rest is cancelled.
    pub max_failures: Option<u32>,
    /// The stages, ascending by their tasks.
    pub stages: Vec<Arc<Stage>>,
}

impl Flow {
    /// The number of the stage that a task belongs to, and the stage.
    pub fn stage_of(&self, task: crate::ids::TaskId) -> Option<(u32, &Arc<Stage>)> {
        let number = self.stages.partition_point(|stage| stage.tasks.end() <= task);
        let stage = self.stages.get(number).filter(|stage| stage.tasks.contains(task))?;
        Some((u32::try_from(number).ok()?, stage))
    }
}

/// One stage as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its tasks.
    pub tasks: TaskRange,
    /// The stages that it waits for, by number, ascending.
    pub after: Vec<u32>,
    /// What its tasks are given of others.
    pub inputs: Vec<OutputsOf>,
    /// What `GREY_ITEM` says in each task.
    pub items: Option<Items>,
}

/// Output files of other tasks, all laid into one directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputsOf {
    /// The directory, relative to the working directory.
    pub path: String,
    /// The tasks, in order.
    pub tasks: Vec<TaskRange>,
}

impl OutputsOf {
    /// What an execution key says of them: which tasks, whose own proofs say what they left.
    pub fn digest(&self) -> Digest {
        let mut hash = DigestBuilder::domain("grey/outputs-of/v1");
        for range in &self.tasks {
            hash.number(range.first.0);
            hash.number(u64::from(range.count));
        }
        hash.finish()
    }
}

/// Why a stage cannot be completed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Broken {
    /// A task of its own failed for good or was cancelled.
    Own,
    /// It waited for this stage, which is broken.
    After(u32),
}

/// How far a stage of a live job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The job.
    pub job: JobId,
    /// The stage's tasks; the row's key is the first.
    pub tasks: TaskRange,
    /// Tasks that have not succeeded.
    pub unfinished: u64,
    /// Whether a stage that it waits for is unfinished: until then its tasks are not placed.
    pub waiting: bool,
    /// Why it cannot be completed any more.
    pub broken: Option<Broken>,
}

fn refuse<T>(field: &str, problem: &str, limit: u64) -> Result<T, Rejection> {
    Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit })
}

/// Checks the bounds of a flow over so many groups.
pub(crate) fn check(flow: &FlowSubmission, groups: usize) -> Result<(), Rejection> {
    if flow.parallel == Some(0) {
        return refuse("parallel", "is zero", 1);
    }
    if flow.stages.is_empty() {
        return Ok(());
    }
    if flow.stages.len() > limits::STAGES {
        return refuse("after", "makes too many stages", limits::STAGES as u64);
    }
    let covered = flow.stages.iter().map(|stage| u64::from(stage.groups)).sum::<u64>();
    if covered != groups as u64 || flow.stages.iter().any(|stage| stage.groups == 0) {
        return refuse("after", "has stages that do not cover the tasks", groups as u64);
    }
    let links: usize = flow
        .stages
        .iter()
        .map(|stage| {
            stage.after.len() + stage.inputs.iter().map(|input| input.sources.len().max(1)).sum::<usize>()
        })
        .sum();
    if links > limits::STAGE_LINKS {
        return refuse("after", "names too many tasks altogether", limits::STAGE_LINKS as u64);
    }
    for stage in &flow.stages {
        if stage.items.is_some() && stage.groups != 1 {
            return refuse("items", "belong to one array", 1);
        }
        if let Some(Items::Listed(blob)) = stage.items
            && blob.size_bytes > limits::ITEMS_BYTES
        {
            return refuse("items", "are too long altogether", limits::ITEMS_BYTES);
        }
        let ascending = stage.after.windows(2).all(|pair| matches!(pair, [left, right] if left < right));
        let known = stage.after.iter().all(|number| (*number as usize) < flow.stages.len());
        if !ascending || !known {
            return refuse("after", "names a stage that is not there, or twice", flow.stages.len() as u64);
        }
        let mut places = BTreeSet::new();
        for input in &stage.inputs {
            crate::validate::relative_path("inputs_from", &input.path)?;
            let waited_for = input.sources.iter().all(|source| match source {
                Source::Stage(number) => stage.after.contains(number),
                Source::Tasks(range) => range.count > 0,
            });
            if !waited_for || !places.insert(&input.path) {
                return refuse("inputs_from", "names a place twice, or a task that is not waited for", 0);
            }
        }
    }
    acyclic(flow)
}

/// Kahn's algorithm (Topological sorting of large networks, 1962): what cannot be taken away lies on a circle.
fn acyclic(flow: &FlowSubmission) -> Result<(), Rejection> {
    let mut left: Vec<(usize, &StageSubmission)> = flow.stages.iter().enumerate().collect();
    let mut done: BTreeSet<u32> = BTreeSet::new();
    loop {
        let before = left.len();
        left.retain(|(number, stage)| {
            let free = stage.after.iter().all(|other| done.contains(other));
            if free {
                done.insert(u32::try_from(*number).unwrap_or(u32::MAX));
            }
            !free
        });
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == before {
            return refuse("after", "makes tasks wait for one another in a circle", 0);
        }
    }
}
