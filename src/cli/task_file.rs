//! Task files: what a job is, as a user writes it down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use grey_api::{JobRequest, RetriesRequest, TaskRequest};
use serde::Deserialize;

use super::error::CliError;
use super::inputs::Inputs;
use super::root::read_bounded;
use super::units;

/// The most bytes of a task file.
const LARGEST_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// The version that this program reads.
const VERSION: u32 = 1;
/// The most tasks that `each` may make: as many as one submission may list.
const MOST_ITEMS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    version: u32,
    #[serde(default)]
    name: String,
    tenant: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    defaults: Common,
    task: Vec<Entry>,
}

/// What may stand in `[defaults]` and in each task.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    executor: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cpu: Option<String>,
    memory: Option<String>,
    disk: Option<String>,
    timeout: Option<String>,
    output_limit: Option<String>,
    priority: Option<u8>,
    retries: Option<RetriesRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    command: Vec<String>,
    count: Option<u32>,
    each: Option<Each>,
    #[serde(default)]
    inputs: Vec<Input>,
    stdin: Option<PathBuf>,
    #[serde(default)]
    outputs: Vec<String>,
    executor: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cpu: Option<String>,
    memory: Option<String>,
    disk: Option<String>,
    timeout: Option<String>,
    output_limit: Option<String>,
    priority: Option<u8>,
    retries: Option<RetriesRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    path: PathBuf,
    to: Option<PathBuf>,
}

/// One task for each of something; exactly one of these.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Each {
    /// Files by a pattern; each travels to its task.
    files: Option<String>,
    /// Numbers, both ends included: `1..100`.
    range: Option<String>,
    /// Lines of a file.
    lines: Option<PathBuf>,
    /// Values: texts as they are, everything else as JSON.
    items: Option<Vec<serde_json::Value>>,
}

/// A job ready to be submitted, and what has to be sent before.
pub struct Prepared {
    /// The request.
    pub request: JobRequest,
    /// What its tasks are given.
    pub inputs: Inputs,
}

/// Reads a task file. Paths in it are relative to its directory.
pub fn read(path: &Path) -> Result<Prepared, CliError> {
    let bytes = read_bounded(path, LARGEST_FILE_BYTES)?;
    let shown = path.display().to_string();
    let text = String::from_utf8(bytes).map_err(|_| CliError::usage(format!("{shown} is no text")))?;
    let file: TaskFile = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::from_str(&text).map_err(|error| wrong(&shown, &error.to_string()))?,
        Some("toml") => toml::from_str(&text).map_err(|error| wrong(&shown, error.to_string().trim_end()))?,
        _ => {
            return Err(CliError::usage(format!("{shown}: a task file's name ends in .toml or .json")));
        }
    };
    if file.version != VERSION {
        let message = format!("{shown}: `version` is {}; this program reads {VERSION}", file.version);
        return Err(CliError::usage(message));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prepared = Prepared {
        request: JobRequest { name: file.name, tenant: file.tenant, labels: file.labels, tasks: Vec::new() },
        inputs: Inputs::default(),
    };
    for (number, entry) in file.task.iter().enumerate() {
        let place = format!("{shown}: task {} `{}`", number + 1, entry.name);
        expand(&mut prepared, entry, &file.defaults, directory).map_err(|mut error| {
            error.message = format!("{place}: {}", error.message);
            error
        })?;
    }
    if prepared.request.tasks.is_empty() {
        return Err(CliError::usage(format!("{shown} has no tasks")));
    }
    Ok(prepared)
}

/// A complaint of a parser, with what was probably meant.
fn wrong(file: &str, complaint: &str) -> CliError {
    let error = CliError::usage(format!("{file}: {complaint}"));
    let mut quoted = complaint.split('`').skip(1).step_by(2);
    let is_unknown = complaint.contains("unknown field");
    let unknown = if is_unknown {
        quoted.find(|word| complaint.contains(&format!("unknown field `{word}`")))
    } else {
        None
    };
    let nearest = unknown.and_then(|unknown| {
        let known = complaint.split("expected").nth(1)?.split('`').skip(1).step_by(2);
        known.map(|name| (distance(unknown, name), name)).min().filter(|(distance, _)| *distance <= 3)
    });
    match nearest {
        Some((_, name)) => error.hint(format!("did you mean `{name}`?")),
        None => error,
    }
}

/// How many letters have to be changed, added or left out (Levenshtein, by rows).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (number, letter) in left.chars().enumerate() {
        let mut next = vec![number + 1];
        for (other, (diagonal, above)) in right.iter().zip(row.iter().zip(row.iter().skip(1))) {
            let before = next.last().copied().unwrap_or(0);
            next.push((before + 1).min(above + 1).min(diagonal + usize::from(letter != *other)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn parsed(
    field: &str,
    own: Option<&String>,
    default: Option<&String>,
    parse: fn(&str) -> Result<u64, String>,
) -> Result<Option<u64>, CliError> {
    let text = own.or(default);
    let value = text.map(|text| parse(text)).transpose();
    value.map_err(|reason| {
        CliError::usage(format!("`{field}` = \"{}\": {reason}", text.map_or("", String::as_str)))
    })
}

/// The task of an entry, before `each` makes several of it.
fn template(entry: &Entry, defaults: &Common, inputs: &Inputs) -> Result<TaskRequest, CliError> {
    let mut env = defaults.env.clone();
    env.extend(entry.env.clone());
    let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Ok(TaskRequest {
        name: named(&entry.name),
        executor: entry.executor.clone().or_else(|| defaults.executor.clone()),
        command: entry.command.clone(),
        env,
        stdin: inputs.stdin.clone(),
        inputs: inputs.files.clone(),
        outputs: entry.outputs.clone(),
        cpu_millicores: parsed("cpu", entry.cpu.as_ref(), defaults.cpu.as_ref(), units::cpu_millicores)?,
        memory_bytes: parsed("memory", entry.memory.as_ref(), defaults.memory.as_ref(), units::size_bytes)?,
        disk_bytes: parsed("disk", entry.disk.as_ref(), defaults.disk.as_ref(), units::size_bytes)?,
        priority: entry.priority.or(defaults.priority),
        timeout_ms: parsed("timeout", entry.timeout.as_ref(), defaults.timeout.as_ref(), units::duration_ms)?,
        output_limit_bytes: parsed(
            "output_limit",
            entry.output_limit.as_ref(),
            defaults.output_limit.as_ref(),
            units::size_bytes,
        )?,
        retries: entry.retries.or(defaults.retries),
        count: entry.count,
    })
}

fn expand(
    prepared: &mut Prepared,
    entry: &Entry,
    defaults: &Common,
    directory: &Path,
) -> Result<(), CliError> {
    let mut inputs = Inputs::default();
    for input in &entry.inputs {
        let place = input.to.as_ref().unwrap_or(&input.path);
        inputs.add(&directory.join(&input.path), place)?;
    }
    if let Some(stdin) = &entry.stdin {
        inputs.read_stdin(&directory.join(stdin))?;
    }
    let template = template(entry, defaults, &inputs)?;
    prepared.inputs.absorb(&mut inputs);
    let Some(each) = &entry.each else {
        prepared.request.tasks.push(template);
        return Ok(());
    };
    if entry.count.is_some() {
        return Err(CliError::usage("`count` and `each` exclude one another"));
    }
    let (items, are_files) = items(each, directory)?;
    if items.is_empty() {
        return Err(CliError::usage("`each` makes no tasks: nothing matches"));
    }
    if items.len() > MOST_ITEMS {
        let message = format!("`each` makes {} tasks; the limit is {MOST_ITEMS}", items.len());
        return Err(CliError::usage(message).hint("use several files, or `count` with GREY_INDEX"));
    }
    for (index, item) in items.into_iter().enumerate() {
        let mut task = template.clone();
        if are_files {
            let mut own = Inputs::default();
            own.add(&directory.join(&item), Path::new(&item))?;
            task.inputs.append(&mut own.files);
            prepared.inputs.absorb(&mut own);
        }
        task.env.insert("GREY_INDEX".to_owned(), index.to_string());
        task.env.insert("GREY_ITEM".to_owned(), item);
        prepared.request.tasks.push(task);
    }
    Ok(())
}

/// What `each` stands for, and whether these are files that travel.
fn items(each: &Each, directory: &Path) -> Result<(Vec<String>, bool), CliError> {
    match each {
        Each { files: Some(pattern), range: None, lines: None, items: None } => {
            Ok((files(pattern, directory)?, true))
        }
        Each { files: None, range: Some(range), lines: None, items: None } => Ok((numbers(range)?, false)),
        Each { files: None, range: None, lines: Some(path), items: None } => {
            let bytes = read_bounded(&directory.join(path), LARGEST_FILE_BYTES)?;
            let text = String::from_utf8(bytes)
                .map_err(|_| CliError::usage(format!("{} is no text", path.display())))?;
            Ok((text.lines().map(str::to_owned).collect(), false))
        }
        Each { files: None, range: None, lines: None, items: Some(values) } => {
            let text = |value: &serde_json::Value| match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            Ok((values.iter().map(text).collect(), false))
        }
        _ => Err(CliError::usage("`each` needs exactly one of `files`, `range`, `lines` and `items`")),
    }
}

fn numbers(range: &str) -> Result<Vec<String>, CliError> {
    let ends = range.split_once("..");
    let ends = ends.and_then(|(first, last)| Some((first.parse::<i64>().ok()?, last.parse::<i64>().ok()?)));
    let (first, last) = ends.filter(|(first, last)| first <= last).ok_or_else(|| {
        CliError::usage(format!(
            "`range` = \"{range}\": a range is written FIRST..LAST, both included, such as 1..100"
        ))
    })?;
    let length = last.abs_diff(first).saturating_add(1);
    if length > MOST_ITEMS as u64 {
        let message = format!("`range` makes {length} tasks; the limit is {MOST_ITEMS}");
        return Err(CliError::usage(message).hint("use `count` with GREY_INDEX"));
    }
    Ok((first..=last).map(|number| number.to_string()).collect())
}

/// Files below the directory that match, in the order of their names.
fn files(pattern: &str, directory: &Path) -> Result<Vec<String>, CliError> {
    let wrong = |reason: String| CliError::usage(format!("`files` = \"{pattern}\": {reason}"));
    if Path::new(pattern).is_absolute() || pattern.split('/').any(|part| part == "..") {
        return Err(wrong("the pattern must stay below the task file's directory".to_owned()));
    }
    let base = glob::Pattern::escape(&directory.to_string_lossy());
    let found = glob::glob(&format!("{base}/{pattern}")).map_err(|error| wrong(error.to_string()))?;
    let mut names = Vec::new();
    for path in found {
        let path = path.map_err(|error| wrong(error.to_string()))?;
        if path.is_file() {
            let name = path.strip_prefix(directory).unwrap_or(&path);
            let name =
                name.to_str().ok_or_else(|| wrong(format!("the name of {} is no text", path.display())))?;
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(directory: &Path, text: &str) -> Result<Prepared, CliError> {
        let path = directory.join("job.toml");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_file_becomes_a_job_and_each_makes_tasks_in_order() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("photos")).unwrap();
        for name in ["b.jpg", "a.jpg", "c.txt"] {
            std::fs::write(directory.path().join("photos").join(name), name).unwrap();
        }
        let text = r#"
            version = 1
            name = "compress"
            labels = { project = "archive" }
            [defaults]
            cpu = "500m"
            timeout = "10m"
            env = { LEVEL = "9" }
            [[task]]
            name = "gzip"
            each = { files = "photos/*.jpg" }
            command = ["gzip"]
            memory = "1GiB"
            [[task]]
            each = { range = "3..5" }
            command = ["seq"]
            env = { LEVEL = "1" }
            [[task]]
            each = { items = ["x", 2, { a = [1] }] }
            command = ["echo"]
            [[task]]
            count = 1000
            command = ["true"]
        "#;
        let request = prepared(directory.path(), text).unwrap().request;
        assert_eq!((request.name.as_str(), request.tasks.len()), ("compress", 2 + 3 + 3 + 1));
        let items: Vec<Option<&String>> =
            request.tasks.iter().map(|task| task.env.get("GREY_ITEM")).collect();
        let expected =
            ["photos/a.jpg", "photos/b.jpg", "3", "4", "5", "x", "2", "{\"a\":[1]}"].map(str::to_owned);
        assert_eq!(items.into_iter().flatten().cloned().collect::<Vec<_>>(), expected);
        let first = &request.tasks[0];
        assert_eq!(
            (first.cpu_millicores, first.memory_bytes, first.timeout_ms),
            (Some(500), Some(1 << 30), Some(600_000))
        );
        assert_eq!(first.inputs[0].path, "photos/a.jpg");
        assert_eq!(request.tasks[3].env["LEVEL"], "1");
        assert_eq!(request.tasks[8].count, Some(1_000));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_what_was_meant() {
        let directory = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("version = 1\n[[task]]\ncomand = [\"true\"]\n", "line 3"),
            ("version = 2\ntask = []\n", "`version` is 2"),
            ("version = 1\ntask = []\n", "has no tasks"),
            ("version = 1\n[[task]]\ncommand = [\"x\"]\nmemory = \"64\"\n", "`memory` = \"64\""),
            (
                "version = 1\n[[task]]\nname = \"a\"\ncommand = [\"x\"]\neach = {}\n",
                "task 1 `a`: `each` needs",
            ),
            ("version = 1\n[[task]]\ncommand = [\"x\"]\neach = { range = \"5..1\" }\n", "FIRST..LAST"),
            (
                "version = 1\n[[task]]\ncommand = [\"x\"]\neach = { range = \"1..99999999999\" }\n",
                "the limit is 10000",
            ),
            ("version = 1\n[[task]]\ncommand = [\"x\"]\neach = { files = \"../*\" }\n", "must stay below"),
            ("version = 1\n[[task]]\ncommand = [\"x\"]\neach = { files = \"none*\" }\n", "nothing matches"),
            ("version = 1\n[[task]]\ncommand = [\"x\"]\ninputs = [{ path = \"absent\" }]\n", "absent"),
            ("version = ", "line 1"),
        ] {
            let error = prepared(directory.path(), text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.message.contains(said), "{text}: {}", error.message);
            assert_eq!(error.exit_status, 2);
        }
        let error = prepared(directory.path(), "version = 1\n[[task]]\ncomand = [\"true\"]\n").err().unwrap();
        assert_eq!(error.hint.as_deref(), Some("did you mean `command`?"));
    }

    #[test]
    fn distances_are_counted_in_letters() {
        for (left, right, expected) in
            [("", "", 0), ("a", "", 1), ("comand", "command", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), expected);
        }
    }
}
