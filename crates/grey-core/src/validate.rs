//! Bounds of what a submission may say. The server asks before it proposes, and apply asks again.

use crate::command::{GroupSubmission, Submit};
use crate::constraint::{Devices, check_devices, check_labels};
use crate::flow;
use crate::limits;
use crate::rejection::Rejection;
use crate::spec::{ExecutorKind, TaskSpec};

/// What makes a task one of an array. A submission may say it, since it knows the array that it was taken from.
const ARRAY_VARIABLES: [&str; 2] = ["GREY_INDEX", "GREY_ITEM"];

fn refuse<T>(field: &str, problem: &str, limit: u64) -> Result<T, Rejection> {
    Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit })
}

fn at_most(field: &str, size: usize, limit: usize) -> Result<(), Rejection> {
    if size > limit { refuse(field, "is too long", limit as u64) } else { Ok(()) }
}

fn no_nul(field: &str, text: &str) -> Result<(), Rejection> {
    if text.contains('\0') { refuse(field, "contains a NUL byte", 0) } else { Ok(()) }
}

/// Checks every bound of a submission and returns how many tasks it has.
pub fn submission(body: &Submit) -> Result<u32, Rejection> {
    at_most("name", body.name.len(), limits::NAME_BYTES)?;
    at_most("submitter", body.submitter.len(), limits::NAME_BYTES)?;
    check_labels("labels", &body.labels)?;
    if let Some(key) = &body.key {
        at_most("idempotency_key", key.key.len(), limits::KEY_BYTES)?;
        if key.key.is_empty() {
            return refuse("idempotency_key", "is empty", 1);
        }
    }
    if body.groups.is_empty() {
        return refuse("tasks", "are missing", 1);
    }
    at_most("tasks", body.groups.len(), limits::BATCH_TASKS)?;
    let mut total = 0u32;
    for (number, submitted) in body.groups.iter().enumerate() {
        total = group(submitted)
            .and_then(|()| match total.checked_add(submitted.count) {
                Some(total) if total <= limits::ARRAY_TASKS => Ok(total),
                _ => refuse("count", "makes too many tasks", u64::from(limits::ARRAY_TASKS)),
            })
            .map_err(|rejection| within(number, rejection))?;
    }
    flow::check(&body.flow, body.groups.len())?;
    Ok(total)
}

fn within(number: usize, rejection: Rejection) -> Rejection {
    match rejection {
        Rejection::OutOfBounds { field, problem, limit } => {
            Rejection::OutOfBounds { field: format!("tasks[{number}].{field}"), problem, limit }
        }
        other => other,
    }
}

fn group(submitted: &GroupSubmission) -> Result<(), Rejection> {
    if submitted.count == 0 {
        return refuse("count", "is zero", 1);
    }
    spec(&submitted.spec)
}

fn sorted_and_unique(field: &str, pairs: &[(String, String)]) -> Result<(), Rejection> {
    let ascending = pairs.windows(2).all(|pair| matches!(pair, [left, right] if left.0 < right.0));
    if ascending { Ok(()) } else { refuse(field, "names a key twice or is not sorted", 0) }
}

/// Checks every bound of one specification.
pub fn spec(spec: &TaskSpec) -> Result<(), Rejection> {
    at_most("name", spec.name.len(), limits::NAME_BYTES)?;
    command(spec)?;
    environment(spec)?;
    at_most("outputs", spec.outputs.len(), limits::OUTPUT_PATTERNS)?;
    for pattern in &spec.outputs {
        relative_path("outputs", pattern)?;
    }
    at_most("inputs", spec.inputs.len(), limits::INPUT_FILES)?;
    for input in &spec.inputs {
        relative_path("inputs", &input.path)?;
    }
    distinct_places(spec)?;
    let resources = &spec.resources;
    for (field, amount) in [
        ("cpu_millicores", resources.cpu_millicores),
        ("memory_bytes", resources.memory_bytes),
        ("disk_bytes", resources.disk_bytes),
    ] {
        if amount > limits::RESOURCE_TOTAL {
            return refuse(field, "is too large", limits::RESOURCE_TOTAL);
        }
    }
    check_devices(&spec.devices)?;
    check_labels("constraints.labels", &spec.constraints.labels)?;
    if spec.timeout_ms == 0 || spec.timeout_ms > limits::TIMEOUT_MS {
        return refuse("timeout_ms", "is zero or too long", limits::TIMEOUT_MS);
    }
    if spec.output_limit_bytes > limits::OUTPUT_LIMIT_BYTES {
        return refuse("output_limit_bytes", "is too large", limits::OUTPUT_LIMIT_BYTES);
    }
    Ok(())
}

/// No input stands in the place of another, or where another needs a directory.
fn distinct_places(spec: &TaskSpec) -> Result<(), Rejection> {
    let mut paths: Vec<Vec<&str>> = spec.inputs.iter().map(|input| input.path.split('/').collect()).collect();
    // Sorted by their parts, a path stands right before those below it.
    paths.sort_unstable();
    let clash = paths.array_windows::<2>().any(|[left, right]| right.starts_with(left));
    if clash {
        refuse("inputs", "name a place twice, or a file where another needs a directory", 0)
    } else {
        Ok(())
    }
}

fn command(spec: &TaskSpec) -> Result<(), Rejection> {
    let program_is_missing = spec.command.first().is_none_or(String::is_empty);
    if spec.executor == ExecutorKind::Process && program_is_missing {
        return refuse("command", "names no program", 1);
    }
    at_most("command", spec.command.len(), limits::COMMAND_WORDS)?;
    at_most("command", spec.command.iter().map(String::len).sum(), limits::COMMAND_BYTES)?;
    spec.command.iter().try_for_each(|word| no_nul("command", word))
}

fn environment(spec: &TaskSpec) -> Result<(), Rejection> {
    at_most("env", spec.environment.len(), limits::ENVIRONMENT_VARIABLES)?;
    let size = spec.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
    at_most("env", size, limits::COMMAND_BYTES)?;
    for (name, value) in &spec.environment {
        no_nul("env", name)?;
        no_nul("env", value)?;
        if name.is_empty() || name.contains('=') {
            return refuse("env", "has a name that is empty or contains `=`", 0);
        }
        if name.starts_with("GREY_") && !ARRAY_VARIABLES.contains(&name.as_str()) {
            return refuse("env", "sets a GREY_ variable, which Grey sets itself", 0);
        }
    }
    sorted_and_unique("env", &spec.environment)
}

/// Checks what a worker says of itself, as its registration does.
pub fn worker(labels: &[(String, String)], devices: &[Devices]) -> Result<(), Rejection> {
    check_labels("labels", labels)?;
    check_devices(devices)
}

/// Checks the path of an input file.
pub fn input_path(path: &str) -> Result<(), Rejection> {
    relative_path("inputs", path)
}

pub(crate) fn relative_path(field: &str, path: &str) -> Result<(), Rejection> {
    no_nul(field, path)?;
    at_most(field, path.len(), 1_024)?;
    let leaves = path.split('/').any(|part| part == ".." || part == "." || part.is_empty());
    if leaves { refuse(field, "must be a relative path without empty, `.` or `..` parts", 0) } else { Ok(()) }
}
