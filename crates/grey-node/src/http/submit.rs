//! Submissions: a request becomes one command, and is answered once that command is durable and applied.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use grey_api::{ConstraintsRequest, ErrorCode, InputRequest, JobCreated, JobRequest, Problem, TaskRequest};
use grey_core::{
    Answer, BlobReference, Command, Constraints, Devices, ExecutorKind, GroupSubmission, IdempotencyKey,
    InputFile, Items, JobId, Rejection, Resources, Retries, SandboxLevel, Source, Submit, TaskDefaults,
    TaskId, TaskSpec, TenantId, Tier, limits, validate,
};
use grey_health::Level;
use grey_proof::{Digest, DigestBuilder};

use super::access::{self, Behalf, Principal, Scope};
use super::reply::{Refusal, json, parse, value, whole, with_level};
use super::{blobs, flow};
use crate::clock::wall_ms;
use crate::handle::{Node, rejected, unreadable};
use crate::items::{self, ListProblem};
use crate::retention::Class;

/// Whose tasks are submitted that name no tenant.
pub(crate) const DEFAULT_TENANT: &str = "default";

/// Equal tasks next to one another.
pub(super) struct Run {
    pub(super) request: TaskRequest,
    pub(super) count: u32,
    /// Where the first of them stands in the list, from zero.
    pub(super) position: usize,
}

pub(super) fn refuse(field: &str, detail: impl Into<String>) -> Refusal {
    Refusal(Problem::new(ErrorCode::InvalidRequest, detail).field(field))
}

fn push(runs: &mut Vec<Run>, request: TaskRequest, position: usize) -> Result<(), Refusal> {
    let count = request.count.unwrap_or(1);
    match runs.last_mut() {
        // An array keeps a group of its own: a task's index counts from the array's beginning.
        Some(run) if request.count.is_none() && run.request == request => {
            run.count =
                run.count.checked_add(1).ok_or_else(|| refuse("tasks", "there are too many tasks"))?;
        }
        _ => runs.push(Run { request, count, position }),
    }
    Ok(())
}

/// `POST /v1/jobs`.
pub(crate) async fn job(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let body = whole(body)?;
    let (heading, runs) = job_request(&body)?;
    let behalf = access::behalf(&node.directory(), &principal, heading.tenant.as_deref())?;
    let key = key(&headers, &behalf.tenant, &heading.name, &body)?;
    created(submit(&node, &behalf, key, heading, runs).await?)
}

fn job_request(body: &[u8]) -> Result<(Heading, Vec<Run>), Refusal> {
    let request: JobRequest = parse(body, "the job")?;
    let mut runs = Vec::new();
    let listed = request.tasks.len();
    for (position, task) in request.tasks.into_iter().enumerate() {
        push(&mut runs, task, position)?;
    }
    let heading = Heading {
        tenant: request.tenant,
        name: request.name,
        labels: request.labels,
        parallel: request.parallel,
        max_failures: request.max_failures,
        listed,
    };
    Ok((heading, runs))
}

/// The answer to a submission, with the level near a limit.
pub(super) fn created((created, level): (JobCreated, Level)) -> Result<Response, Refusal> {
    Ok(with_level(json(&created)?, level))
}

/// `POST /v1/tasks`.
pub(crate) async fn tasks(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Query(mut query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let body = whole(body)?;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let (runs, listed) = if media_type.is_some_and(|text| text.starts_with("application/x-ndjson")) {
        lines(&body)?
    } else {
        document(&body)?
    };
    let behalf = access::behalf(&node.directory(), &principal, query.get("tenant").map(String::as_str))?;
    let name = query.remove("name").unwrap_or_default();
    let heading = Heading { name, listed, ..Heading::default() };
    let key = key(&headers, &behalf.tenant, &heading.name, &body)?;
    created(submit(&node, &behalf, key, heading, runs).await?)
}

/// One object a line. Equal neighbours are read once.
pub(super) fn lines(body: &[u8]) -> Result<(Vec<Run>, usize), Refusal> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut listed, mut last): (usize, Option<&[u8]>) = (0, None);
    for (number, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        listed += 1;
        if listed > limits::BATCH_TASKS {
            break;
        }
        match (last == Some(line), runs.last_mut()) {
            (true, Some(run)) if run.request.count.is_none() => run.count += 1,
            _ => push(&mut runs, parse(line, &format!("line {}", number + 1))?, listed - 1)?,
        }
        last = Some(line);
    }
    Ok((runs, listed))
}

fn document(body: &[u8]) -> Result<(Vec<Run>, usize), Refusal> {
    let mut runs = Vec::new();
    let is_array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let requests: Vec<TaskRequest> =
        if is_array { parse(body, "the array")? } else { vec![parse(body, "the task")?] };
    let listed = requests.len();
    for (position, request) in requests.into_iter().enumerate() {
        push(&mut runs, request, position)?;
    }
    Ok((runs, listed))
}

/// What a submission says beside its tasks.
#[derive(Default)]
pub(super) struct Heading {
    pub(super) tenant: Option<String>,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) parallel: Option<u32>,
    pub(super) max_failures: Option<u32>,
    pub(super) listed: usize,
}

/// Checks a submission, proposes it, and returns once it is durable and applied, with how full the door is for its tenant.
pub(super) async fn submit(
    node: &Node,
    behalf: &Behalf,
    key: Option<IdempotencyKey>,
    heading: Heading,
    runs: Vec<Run>,
) -> Result<(JobCreated, Level), Refusal> {
    if heading.listed > limits::BATCH_TASKS {
        let detail = format!("more than {} tasks are listed", limits::BATCH_TASKS);
        let problem = Problem::new(ErrorCode::OutOfBounds, detail).field("tasks");
        return Err(Refusal(
            problem
                .limit(limits::BATCH_TASKS as u64)
                .hint("send several submissions, or one task with a `count`"),
        ));
    }
    let positions: Vec<usize> = runs.iter().map(|run| run.position).collect();
    let mut submission = submission(behalf.id, &behalf.defaults, key, heading, runs)?;
    submission.submitter = behalf.submitter.clone();
    propose(node, behalf.scope, submission, &positions, None).await
}

/// The command that a request becomes.
fn submission(
    tenant: TenantId,
    defaults: &TaskDefaults,
    key: Option<IdempotencyKey>,
    heading: Heading,
    runs: Vec<Run>,
) -> Result<Submit, Refusal> {
    let flow = flow::flow(&runs, heading.parallel, heading.max_failures)?;
    let groups = runs
        .into_iter()
        .map(|run| Ok(GroupSubmission { count: run.count, spec: spec(run.request, defaults)? }))
        .collect::<Result<Vec<_>, Refusal>>()?;
    Ok(Submit {
        tenant,
        submitter: String::new(),
        name: heading.name,
        labels: heading.labels.into_iter().collect(),
        key,
        groups,
        flow,
        wall_ms: wall_ms(),
    })
}

/// For the fuzz targets: what a body becomes at each endpoint that takes it.
pub(crate) fn submissions(body: &[u8], defaults: &TaskDefaults) -> Vec<Submit> {
    let of_job = || {
        let (heading, runs) = job_request(body)?;
        submission(TenantId(2), defaults, None, heading, runs)
    };
    let of_tasks = |(runs, listed): (Vec<Run>, usize)| {
        submission(TenantId(2), defaults, None, Heading { listed, ..Heading::default() }, runs)
    };
    let found = [of_job(), document(body).and_then(of_tasks), lines(body).and_then(of_tasks)];
    found.into_iter().filter_map(Result::ok).filter(|found| validate::submission(found).is_ok()).collect()
}

/// Checks a submission and proposes it. `positions` says where the first task of each group stands in what was sent,
/// `again` which job is run again.
pub(super) async fn propose(
    node: &Node,
    scope: Scope,
    submission: Submit,
    positions: &[usize],
    again: Option<JobId>,
) -> Result<(JobCreated, Level), Refusal> {
    let at = |group: usize| positions.get(group).copied().unwrap_or(group);
    validate::submission(&submission).map_err(|rejection| Refusal(rejected(&placed(rejection, at))))?;
    for (number, group) in submission.groups.iter().enumerate() {
        if let Some(capacity) = &node.capacity {
            fits(at(number), &group.spec.resources, capacity)?;
        }
    }
    let mut checked = BTreeSet::new();
    for (number, group) in submission.groups.iter().enumerate() {
        let inputs = group.spec.inputs.iter().map(|input| ("inputs", input.blob));
        for (field, blob) in group.spec.stdin.map(|stdin| ("stdin", stdin)).into_iter().chain(inputs) {
            if checked.insert((blob.digest, blob.size_bytes)) {
                let field = format!("tasks[{}].{field}", at(number));
                blobs::check(node, scope, &field, &blob.digest, blob.size_bytes, again).await?;
            }
        }
    }
    lists(node, scope, &submission, at, again).await?;
    let earlier = earlier(&submission);
    // From here on nothing of what is named is removed, until the new job names it.
    let _naming = match earlier.is_empty() {
        true => None,
        false => Some(node.keeping.name_earlier().await),
    };
    for task in earlier {
        may_be_named(node, task).await?;
    }
    node.must_have_room()?;
    let (answer, level) = node.propose_at_level(Command::Submit(submission)).await?;
    match answer {
        Answer::Submitted { job, tasks, duplicate } => {
            let created = JobCreated {
                job: job.to_string(),
                first_task: tasks.first.to_string(),
                tasks: tasks.count,
                duplicate,
            };
            Ok((created, level))
        }
        other => Err(Refusal(Problem::new(ErrorCode::Internal, format!("unexpected answer {other:?}")))),
    }
}

/// The first task of each run of tasks of earlier jobs whose output files a submission takes.
fn earlier(submission: &Submit) -> BTreeSet<TaskId> {
    let inputs = submission.flow.stages.iter().flat_map(|stage| &stage.inputs);
    let tasks = inputs.flat_map(|input| &input.sources).filter_map(|source| match source {
        Source::Tasks(range) => Some(range.first),
        Source::Stage(_) => None,
    });
    tasks.collect()
}

/// Refuses to take output files of a task of which they may be removed.
async fn may_be_named(node: &Node, task: TaskId) -> Result<(), Refusal> {
    if node.view(move |state| state.group_of(task).is_some()).await? {
        return Ok(());
    }
    let found = node.records.job_of(task).map_err(|error| unreadable(&error))?;
    match found {
        Some((_, record)) if node.keeping.may_be_named(&node.records, record.ended_at_ms) => Ok(()),
        _ => Err(Refusal(node.keeping.not_retained(format!("what task {task} left"), Class::Results))),
    }
}

/// Checks the lists of items that a submission's arrays are made of.
async fn lists(
    node: &Node,
    scope: Scope,
    submission: &Submit,
    at: impl Fn(usize) -> usize,
    again: Option<JobId>,
) -> Result<(), Refusal> {
    let mut group = 0;
    for stage in &submission.flow.stages {
        let first = group;
        group += stage.groups as usize;
        let Some(Items::Listed(list)) = stage.items else { continue };
        let field = format!("tasks[{}].items", at(first));
        blobs::check(node, scope, &field, &list.digest, list.size_bytes, again).await?;
        let count = submission.groups.get(first).map_or(0, |group| group.count);
        let until = node.keeping.promised_until();
        let claims = node.claims.clone();
        let may_name = move |digest: &Digest| again.is_some() || claims.may_name(scope, digest);
        let problem = match items::check(&node.blobs, list, count, until, may_name).await {
            Ok(()) => continue,
            Err(ListProblem::Line(line, what)) => {
                Problem::new(ErrorCode::InvalidRequest, format!("line {line} of the list {what}"))
            }
            Err(ListProblem::Count(lines)) => {
                let detail = format!("`count` is {count}, the list has {lines} line(s)");
                Problem::new(ErrorCode::InvalidRequest, detail).limit(u64::from(lines))
            }
            Err(ListProblem::Unreadable(error)) => Problem::new(ErrorCode::Internal, error),
        };
        return Err(Refusal(problem.field(field)));
    }
    Ok(())
}

/// A rejection that names a group, with the place of its first task instead.
fn placed(rejection: Rejection, at: impl Fn(usize) -> usize) -> Rejection {
    let Rejection::OutOfBounds { field, problem, limit } = rejection else { return rejection };
    let group = field.strip_prefix("tasks[").and_then(|rest| rest.split_once(']'));
    let place = group.and_then(|(number, rest)| Some(format!("tasks[{}]{rest}", at(number.parse().ok()?))));
    Rejection::OutOfBounds { field: place.unwrap_or(field), problem, limit }
}

/// Refuses what no worker could ever run.
fn fits(number: usize, needs: &Resources, capacity: &Resources) -> Result<(), Refusal> {
    for (field, need, has) in [
        ("cpu_millicores", needs.cpu_millicores, capacity.cpu_millicores),
        ("memory_bytes", needs.memory_bytes, capacity.memory_bytes),
        ("disk_bytes", needs.disk_bytes, capacity.disk_bytes),
    ] {
        if need > has {
            let detail = format!("`tasks[{number}].{field}` is {need}; the largest worker has {has}");
            let problem =
                Problem::new(ErrorCode::OutOfBounds, detail).field(format!("tasks[{number}].{field}"));
            return Err(Refusal(problem.limit(has).hint("ask for less, or split the task")));
        }
    }
    Ok(())
}

/// The idempotency key with the digest of all that it stands for.
pub(super) fn key(
    headers: &HeaderMap,
    tenant: &str,
    name: &str,
    body: &[u8],
) -> Result<Option<IdempotencyKey>, Refusal> {
    let given = given_key(headers, limits::KEY_BYTES)?;
    Ok(given.map(|key| IdempotencyKey { key, body: body_digest(tenant, name, body) }))
}

/// The idempotency key that was sent, of at most so many bytes.
pub(super) fn given_key(headers: &HeaderMap, most_bytes: usize) -> Result<Option<String>, Refusal> {
    let Some(given) = headers.get("idempotency-key") else { return Ok(None) };
    let key = given.to_str().ok().filter(|key| (1..=most_bytes).contains(&key.len()));
    let key = key.ok_or_else(|| {
        refuse("Idempotency-Key", format!("the key must have 1 to {most_bytes} visible characters"))
    })?;
    Ok(Some(key.to_owned()))
}

/// What a key stands for.
pub(super) fn body_digest(tenant: &str, name: &str, body: &[u8]) -> Digest {
    let mut digest = DigestBuilder::domain("grey/submission/v1");
    [tenant.as_bytes(), name.as_bytes(), body].into_iter().for_each(|field| digest.field(field));
    digest.finish()
}

fn reference(field: &str, digest: &str, size_bytes: u64) -> Result<BlobReference, Refusal> {
    Ok(BlobReference { digest: value(field, digest)?, size_bytes })
}

fn input(request: InputRequest) -> Result<InputFile, Refusal> {
    let blob = reference("inputs", &request.digest, request.size_bytes)?;
    Ok(InputFile { path: request.path, blob, executable: request.executable })
}

fn constraints(request: Option<ConstraintsRequest>) -> Result<Constraints, Refusal> {
    let request = request.unwrap_or_default();
    let unset = Constraints::default();
    Ok(Constraints {
        labels: request.labels.into_iter().collect(),
        tier: named("constraints.tier", request.tier, &Tier::ASKED_FOR, Tier::name)?.unwrap_or(unset.tier),
        sandbox: named("constraints.sandbox", request.sandbox, &SandboxLevel::ALL, SandboxLevel::name)?
            .unwrap_or(unset.sandbox),
    })
}

/// One of a few that have names.
fn named<T: Copy>(
    field: &str,
    given: Option<String>,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<Option<T>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    let found = all.iter().copied().find(|one| name(*one) == given);
    found.map(Some).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        let shown: String = given.chars().take(64).collect();
        refuse(field, format!("`{shown}` is none of {}", names.join(", ")))
    })
}

fn spec(request: TaskRequest, defaults: &TaskDefaults) -> Result<TaskSpec, Refusal> {
    let executor = match request.executor.as_deref() {
        None | Some("process") => ExecutorKind::Process,
        Some("noop") => ExecutorKind::Noop,
        Some(other) => {
            let shown: String = other.chars().take(64).collect();
            return Err(refuse("executor", format!("`{shown}` is no executor; `process` and `noop` are")));
        }
    };
    // Nothing runs for `noop`, so it needs nothing unless it is asked for.
    let unset = match executor {
        ExecutorKind::Process => defaults.resources,
        ExecutorKind::Noop => Resources::default(),
    };
    let retries = request.retries.map_or_else(Retries::default, |retries| Retries {
        failure: retries.failure,
        infrastructure: retries.infrastructure,
    });
    Ok(TaskSpec {
        name: request.name.unwrap_or_default(),
        executor,
        command: request.command,
        environment: request.env.into_iter().collect(),
        stdin: request.stdin.map(|stdin| reference("stdin", &stdin.digest, stdin.size_bytes)).transpose()?,
        inputs: request.inputs.into_iter().map(input).collect::<Result<Vec<_>, Refusal>>()?,
        outputs: request.outputs,
        resources: Resources {
            cpu_millicores: request.cpu_millicores.unwrap_or(unset.cpu_millicores),
            memory_bytes: request.memory_bytes.unwrap_or(unset.memory_bytes),
            disk_bytes: request.disk_bytes.unwrap_or(unset.disk_bytes),
        },
        devices: request.devices.into_iter().map(|(name, count)| Devices { name, count }).collect(),
        constraints: constraints(request.constraints)?,
        priority: request.priority.unwrap_or(defaults.priority),
        retries,
        timeout_ms: request.timeout_ms.unwrap_or(defaults.timeout_ms),
        output_limit_bytes: request.output_limit_bytes.unwrap_or(defaults.output_limit_bytes),
    })
}
