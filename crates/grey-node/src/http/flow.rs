//! How the tasks of a request follow one another: names become stages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use grey_api::{ErrorCode, Problem, TaskRequest};
use grey_core::{
    BlobReference, Flow, FlowSubmission, Items, Source, StageInput, StageSubmission, TaskId, TaskRange,
    limits,
};

use super::reply::{Refusal, value};
use super::submit::Run;

/// Whether two neighbouring runs are waited for together, and wait for the same.
fn same_stage(left: &Run, right: &Run) -> bool {
    let (left, right) = (&left.request, &right.request);
    left.name == right.name
        && left.after == right.after
        && left.inputs_from == right.inputs_from
        && !has_items(left)
        && !has_items(right)
}

/// Whether a request's tasks are made of items; then they are a stage of their own.
fn has_items(request: &TaskRequest) -> bool {
    request.first_item.is_some() || request.items.is_some()
}

/// The items of a request.
fn items(run: &Run) -> Result<Option<Items>, Refusal> {
    let field = |name: &str| format!("tasks[{}].{name}", run.position);
    match (run.request.first_item, &run.request.items) {
        (None, None) => Ok(None),
        (Some(first), None) => Ok(Some(Items::Numbers(first))),
        (None, Some(list)) => {
            let digest = value(&field("items"), &list.digest)?;
            Ok(Some(Items::Listed(BlobReference { digest, size_bytes: list.size_bytes })))
        }
        (Some(_), Some(_)) => Err(Refusal(
            Problem::new(ErrorCode::InvalidRequest, "`first_item` and `items` exclude one another")
                .field(field("items")),
        )),
    }
}

/// The stages of a request; none when no task waits for another.
pub(super) fn flow(
    runs: &[Run],
    parallel: Option<u32>,
    max_failures: Option<u32>,
) -> Result<FlowSubmission, Refusal> {
    let linked = runs.iter().any(|run| {
        let request = &run.request;
        !request.after.is_empty() || !request.inputs_from.is_empty() || has_items(request)
    });
    if !linked {
        return Ok(FlowSubmission { parallel, max_failures, stages: Vec::new() });
    }
    let stages: Vec<&[Run]> = runs.chunk_by(same_stage).collect();
    let mut named: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (number, stage) in (0u32..).zip(&stages) {
        if let Some(name) = stage.first().and_then(|run| run.request.name.as_deref()) {
            named.entry(name).or_default().push(number);
        }
    }
    // A name may stand for many stages, and be named many times: what is made of it is bounded while it is made.
    let mut room = limits::STAGE_LINKS;
    let stages =
        stages.iter().map(|stage| links(stage, &named, &mut room)).collect::<Result<Vec<_>, Refusal>>()?;
    Ok(FlowSubmission { parallel, max_failures, stages })
}

/// The links of a stage; `room` is how many more the whole request may have.
fn links(
    stage: &[Run],
    named: &BTreeMap<&str, Vec<u32>>,
    room: &mut usize,
) -> Result<StageSubmission, Refusal> {
    let Some(first) = stage.first() else { return Err(unknown("after", 0, "", named)) };
    let request = &first.request;
    let mut find = |field: &str, name: &str| {
        let numbers = named.get(name).ok_or_else(|| unknown(field, first.position, name, named))?;
        *room = room.checked_sub(numbers.len()).ok_or_else(|| too_many(field, first.position))?;
        Ok::<_, Refusal>(numbers.clone())
    };
    let mut after = BTreeSet::new();
    for name in &request.after {
        after.extend(find("after", name)?);
    }
    let mut inputs = Vec::with_capacity(request.inputs_from.len());
    for outputs in &request.inputs_from {
        let numbers = find("inputs_from", &outputs.task)?;
        after.extend(numbers.iter().copied());
        let sources = numbers.into_iter().map(Source::Stage).collect();
        inputs.push(StageInput { path: outputs.path.clone(), sources });
    }
    Ok(StageSubmission {
        groups: u32::try_from(stage.len()).unwrap_or(u32::MAX),
        after: after.into_iter().collect(),
        inputs,
        items: items(first)?,
    })
}

fn too_many(field: &str, position: usize) -> Refusal {
    let detail = "the tasks of this job wait for too many others altogether";
    let problem = Problem::new(ErrorCode::OutOfBounds, detail).field(format!("tasks[{position}].{field}"));
    Refusal(
        problem.limit(limits::STAGE_LINKS as u64).hint("give tasks that are waited for together one name"),
    )
}

fn unknown(field: &str, position: usize, name: &str, named: &BTreeMap<&str, Vec<u32>>) -> Refusal {
    let shown: String = name.chars().take(64).collect();
    let names: Vec<&str> = named.keys().copied().take(20).collect();
    let problem =
        Problem::new(ErrorCode::InvalidRequest, format!("`{shown}` is no name of a task of this job"))
            .field(format!("tasks[{position}].{field}"));
    Refusal(problem.hint(format!("there are: {}", names.join(", "))))
}

/// The flow of a job in which some tasks of another are run again: they wait for one another as they did, and take what
/// had succeeded from where it is. `again` are the tasks, ascending, each a group of its own.
pub(super) fn again(flow: &Flow, again: &[TaskId]) -> FlowSubmission {
    let again: BTreeSet<TaskId> = again.iter().copied().collect();
    let rerun_of = |stage: &Arc<grey_core::Stage>| {
        again.range(stage.tasks.first..stage.tasks.end()).copied().collect::<Vec<TaskId>>()
    };
    let mut numbers: BTreeMap<usize, u32> = BTreeMap::new();
    for (number, stage) in flow.stages.iter().enumerate() {
        if !rerun_of(stage).is_empty() {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            numbers.insert(number, next);
        }
    }
    let sources = |range: &TaskRange| {
        let inside = flow.stage_of(range.first).filter(|(_, stage)| stage.tasks == *range);
        let Some((number, stage)) = inside else { return vec![Source::Tasks(*range)] };
        let mut sources: Vec<Source> =
            without(*range, &rerun_of(stage)).into_iter().map(Source::Tasks).collect();
        sources.extend(numbers.get(&(number as usize)).map(|number| Source::Stage(*number)));
        sources
    };
    let stages = numbers.keys().filter_map(|number| flow.stages.get(*number)).map(|stage| StageSubmission {
        groups: u32::try_from(rerun_of(stage).len()).unwrap_or(u32::MAX),
        after: stage.after.iter().filter_map(|other| numbers.get(&(*other as usize)).copied()).collect(),
        inputs: stage
            .inputs
            .iter()
            .map(|input| StageInput {
                path: input.path.clone(),
                sources: input.tasks.iter().flat_map(sources).collect(),
            })
            .collect(),
        items: None,
    });
    let stages = stages.collect();
    FlowSubmission { parallel: flow.parallel, max_failures: flow.max_failures, stages }
}

/// The flow of a job as it was submitted, whose groups have these tasks.
pub(super) fn as_submitted(flow: &Flow, groups: &[TaskRange]) -> FlowSubmission {
    let source = |range: &TaskRange| {
        let number = flow.stages.iter().position(|stage| stage.tasks == *range);
        number
            .map_or(Source::Tasks(*range), |number| Source::Stage(u32::try_from(number).unwrap_or(u32::MAX)))
    };
    let stages = flow.stages.iter().map(|stage| StageSubmission {
        groups: u32::try_from(groups.iter().filter(|group| stage.tasks.contains(group.first)).count())
            .unwrap_or(u32::MAX),
        after: stage.after.clone(),
        inputs: stage
            .inputs
            .iter()
            .map(|input| StageInput {
                path: input.path.clone(),
                sources: input.tasks.iter().map(source).collect(),
            })
            .collect(),
        items: stage.items,
    });
    let stages = stages.collect();
    FlowSubmission { parallel: flow.parallel, max_failures: flow.max_failures, stages }
}

/// What is left of a range without some of its tasks, which are ascending.
fn without(range: TaskRange, tasks: &[TaskId]) -> Vec<TaskRange> {
    let (mut left, mut first) = (Vec::new(), range.first);
    for end in tasks.iter().copied().chain([range.end()]) {
        if let Some(count) = end.0.checked_sub(first.0).filter(|count| *count > 0) {
            left.push(TaskRange { first, count: u32::try_from(count).unwrap_or(u32::MAX) });
        }
        first = TaskId(end.0.saturating_add(1));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::{OutputsOf, Stage};

    /// A request of so many stages that share a name, and of tasks that name it so many times.
    fn crossed(stages: usize, times: usize) -> Result<FlowSubmission, Refusal> {
        let task = |name: &str| TaskRequest { name: Some(name.to_owned()), ..TaskRequest::default() };
        let named = (0..stages * 2).map(|number| task(if number % 2 == 0 { "a" } else { "b" }));
        let after = TaskRequest { after: vec!["a".to_owned(); times], ..task("c") };
        let requests = named.chain([after]).enumerate();
        let runs: Vec<Run> =
            requests.map(|(position, request)| Run { request, count: 1, position }).collect();
        flow(&runs, None, None)
    }

    #[test]
    fn what_a_name_stands_for_is_bounded_before_it_is_made() {
        let most = limits::STAGE_LINKS / 100;
        assert_eq!(crossed(100, most).ok().unwrap().stages.last().unwrap().after.len(), 100);
        let refused = crossed(100, most + 1).err().unwrap().0;
        assert_eq!((refused.code, refused.limit), (ErrorCode::OutOfBounds, Some(limits::STAGE_LINKS as u64)));
    }

    fn range(first: u64, count: u32) -> TaskRange {
        TaskRange { first: TaskId(first), count }
    }

    #[test]
    fn what_is_run_again_waits_for_what_is_run_again_and_takes_the_rest_from_where_it_is() {
        // Given ten tasks from t1 on and a reduce t11 after them, of which t3 failed, so that t11 was cancelled.
        let stage = |tasks, after, inputs| Arc::new(Stage { tasks, after, inputs, items: None });
        let inputs = vec![OutputsOf { path: "in".to_owned(), tasks: vec![range(1, 10)] }];
        let stages = vec![stage(range(1, 10), vec![], vec![]), stage(range(11, 1), vec![0], inputs)];
        let flow = Flow { parallel: Some(4), max_failures: None, stages };
        // When both are run again.
        let again = again(&flow, &[TaskId(3), TaskId(11)]);
        // Then the reduce waits for the one task, and takes the nine others as they are.
        assert_eq!((again.parallel, again.stages.len()), (Some(4), 2));
        assert_eq!(again.stages[1].after, [0]);
        let expected = [Source::Tasks(range(1, 2)), Source::Tasks(range(4, 7)), Source::Stage(0)];
        assert_eq!(again.stages[1].inputs[0].sources, expected);
    }

    #[test]
    fn when_only_the_last_stage_is_run_again_it_waits_for_nothing() {
        let inputs = vec![OutputsOf { path: "in".to_owned(), tasks: vec![range(1, 2)] }];
        let first = Stage { tasks: range(1, 2), after: vec![], inputs: vec![], items: None };
        let last = Stage { tasks: range(3, 1), after: vec![0], inputs, items: None };
        let flow = Flow { parallel: None, max_failures: None, stages: vec![Arc::new(first), Arc::new(last)] };
        let again = again(&flow, &[TaskId(3)]);
        assert_eq!(again.stages.len(), 1);
        assert!(again.stages[0].after.is_empty());
        assert_eq!(again.stages[0].inputs[0].sources, [Source::Tasks(range(1, 2))]);
    }
}
