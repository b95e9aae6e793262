//! What a guard is told about an attempt.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use grey_agent::Execution;
use grey_core::limits::{GATHERED_FILES, INPUT_FILES};

use crate::directory::{AttemptDirectory, OUT, TEMPORARY, WORK};
use crate::plan::{Fence, Plan, PlannedInput};
use crate::program::SEARCH_PATH;

/// Says everything that the guard needs to know.
pub(crate) fn plan(
    fence: Fence,
    execution: &Execution,
    directory: &AttemptDirectory,
) -> Result<Plan, String> {
    let spec = &execution.spec;
    if spec.inputs.len() != execution.inputs.len() || spec.inputs.len() > INPUT_FILES + GATHERED_FILES {
        return Err("the input files are not those of the task".to_owned());
    }
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| format!("{} has no absolute path: {error}", path.display()))
    };
    let mut inputs = Vec::with_capacity(spec.inputs.len());
    for (input, source) in spec.inputs.iter().zip(&execution.inputs) {
        let path = Path::new(&input.path);
        let stays_below = path.components().all(|part| matches!(part, Component::Normal(_)));
        if input.path.is_empty() || !stays_below {
            return Err(format!("the input path `{}` leads out of the working directory", input.path));
        }
        inputs.push(PlannedInput {
            source: absolute(source)?,
            path: path.to_path_buf(),
            executable: input.executable,
        });
    }
    Ok(Plan {
        fence,
        probe: false,
        directory: directory.path.clone(),
        stdin: execution.stdin.as_deref().map(absolute).transpose()?,
        inputs,
        command: spec.command.iter().map(|word| word.clone().into_bytes()).collect(),
        environment: environment(execution, &directory.path),
    })
}

/// Grey's defaults, the task's own variables over them, and over those what only Grey may say.
fn environment(execution: &Execution, directory: &Path) -> Vec<Vec<u8>> {
    let below = |name: &str| directory.join(name).as_os_str().as_bytes().to_vec();
    let mut variables: BTreeMap<&str, Vec<u8>> = BTreeMap::from([
        ("PATH", SEARCH_PATH.as_bytes().to_vec()),
        ("HOME", below(WORK)),
        ("TMPDIR", below(TEMPORARY)),
        ("LANG", b"C.UTF-8".to_vec()),
        // A task that was taken from an array keeps the position that it had there.
        ("GREY_INDEX", execution.index.to_string().into_bytes()),
    ]);
    for (name, value) in &execution.spec.environment {
        variables.insert(name, value.clone().into_bytes());
    }
    variables.extend([
        ("GREY_TASK", execution.attempt.task.to_string().into_bytes()),
        ("GREY_JOB", execution.job.clone().into_bytes()),
        ("GREY_ATTEMPT", execution.attempt.epoch.0.to_string().into_bytes()),
        ("GREY_OUT", below(OUT)),
    ]);
    variables.into_iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_slice()].concat()).collect()
}
