//! Task files: what a job is, as a user writes it down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use grey_api::{ConstraintsRequest, JobRequest, OutputsRequest, RetriesRequest, TaskRequest, nearest};
use serde::Deserialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::error::CliError;
use super::inputs::Inputs;
use super::root::read_bounded;
use super::units;

/// The most bytes of a task file.
const LARGEST_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// The version that this program reads.
const VERSION: u32 = 1;
/// The most bytes of a file of lines.
const LARGEST_LIST_BYTES: u64 = 256 * 1024 * 1024;
/// The most tasks that `each` may make; they are one array.
const MOST_ITEMS: u64 = 1_000_000;

/// A job of Grey: what `grey submit` reads, in TOML, YAML or JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    /// Always 1.
    version: u32,
    /// The job's name.
    #[serde(default)]
    name: String,
    /// Whose job it is; `default` when left out.
    tenant: Option<String>,
    /// Labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// The most of its tasks that run at once.
    parallel: Option<u32>,
    /// When more tasks than this have failed for good, the rest is cancelled.
    max_failures: Option<u32>,
    /// What every task has that does not say it itself.
    #[serde(default)]
    defaults: Common,
    /// The tasks.
    task: Vec<Entry>,
}

/// What every task of a file has that does not say it itself.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Common {
    /// `process`, or `noop`, which runs nothing.
    executor: Option<String>,
    /// Environment variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Processor time per time, such as `500m` or `2`.
    cpu: Option<String>,
    /// Memory, such as `256MiB`.
    memory: Option<String>,
    /// Scratch disk, such as `1GiB`.
    disk: Option<String>,
    /// Longest run of an attempt, such as `10m`.
    timeout: Option<String>,
    /// The most that stdout, stderr and output files may hold together, such as `1GiB`.
    output_limit: Option<String>,
    /// 0–255, higher first.
    priority: Option<u8>,
    /// How often to try again.
    retries: Option<RetriesRequest>,
    /// Devices that an attempt has to itself: how many of each kind, such as `{ gpu = 1 }`.
    #[serde(default)]
    devices: BTreeMap<String, u32>,
    /// What the worker must be like.
    constraints: Option<ConstraintsRequest>,
}

/// A task, or several of a kind.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// A name within the job.
    #[serde(default)]
    name: String,
    /// Program and arguments.
    #[serde(default)]
    command: Vec<String>,
    /// So many equal tasks, up to 1,000,000.
    count: Option<u32>,
    /// One task for each of something.
    each: Option<Each>,
    /// Names of tasks that must have succeeded before.
    #[serde(default)]
    after: Vec<String>,
    /// Files for the working directory.
    #[serde(default)]
    inputs: Vec<Input>,
    /// A file for standard input.
    #[schema(value_type = Option<String>)]
    stdin: Option<PathBuf>,
    /// Patterns of files below `$GREY_OUT` to keep.
    #[serde(default)]
    outputs: Vec<String>,
    /// `process`, or `noop`, which runs nothing.
    executor: Option<String>,
    /// Environment variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Processor time per time, such as `500m` or `2`.
    cpu: Option<String>,
    /// Memory, such as `256MiB`.
    memory: Option<String>,
    /// Scratch disk, such as `1GiB`.
    disk: Option<String>,
    /// Longest run of an attempt, such as `10m`.
    timeout: Option<String>,
    /// The most that stdout, stderr and output files may hold together, such as `1GiB`.
    output_limit: Option<String>,
    /// 0–255, higher first.
    priority: Option<u8>,
    /// How often to try again.
    retries: Option<RetriesRequest>,
    /// Devices that an attempt has to itself: how many of each kind, such as `{ gpu = 1 }`.
    #[serde(default)]
    devices: BTreeMap<String, u32>,
    /// What the worker must be like.
    constraints: Option<ConstraintsRequest>,
}

/// Files for the working directory: exactly one of `path` and `from`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// A file or directory beside the task file.
    #[schema(value_type = Option<String>)]
    path: Option<PathBuf>,
    /// The name of tasks whose output files are taken; they are waited for.
    from: Option<String>,
    /// Where it goes: a relative path. Where it is left out, as `path` or `from` says.
    #[schema(value_type = Option<String>)]
    to: Option<PathBuf>,
}

/// One task for each of something; exactly one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Each {
    /// Files by a pattern; each travels to its task.
    files: Option<String>,
    /// Numbers, both ends included: `1..100`.
    range: Option<String>,
    /// Lines of a file.
    #[schema(value_type = Option<String>)]
    lines: Option<PathBuf>,
    /// Values: texts as they are, everything else as JSON.
    items: Option<Vec<serde_json::Value>>,
}

/// The JSON Schema (draft 2020-12) of a task file.
pub fn schema() -> serde_json::Value {
    let mut parts: Vec<(String, RefOr<Schema>)> = Vec::new();
    <TaskFile as ToSchema>::schemas(&mut parts);
    let definitions: BTreeMap<String, RefOr<Schema>> = parts.into_iter().collect();
    let mut whole = serde_json::to_value(TaskFile::schema()).unwrap_or_default();
    if let Some(whole) = whole.as_object_mut() {
        let draft = "https://json-schema.org/draft/2020-12/schema";
        whole.insert("$schema".to_owned(), draft.into());
        whole.insert("title".to_owned(), "Grey task file".into());
        whole.insert("$defs".to_owned(), serde_json::to_value(definitions).unwrap_or_default());
    }
    local_references(&mut whole);
    whole
}

/// References into an OpenAPI document become references within the schema.
fn local_references(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => {
            if let Some(name) = text.strip_prefix("#/components/schemas/") {
                *text = format!("#/$defs/{name}");
            }
        }
        serde_json::Value::Array(parts) => parts.iter_mut().for_each(local_references),
        serde_json::Value::Object(parts) => parts.values_mut().for_each(local_references),
        _ => {}
    }
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
        Some("yaml" | "yml") => {
            serde_saphyr::from_str(&text).map_err(|error| wrong(&shown, error.to_string().trim_end()))?
        }
        _ => {
            let message = format!("{shown}: a task file's name ends in .toml, .yaml or .json");
            return Err(CliError::usage(message));
        }
    };
    if file.version != VERSION {
        let message = format!("{shown}: `version` is {}; this program reads {VERSION}", file.version);
        return Err(CliError::usage(message));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prepared = Prepared {
        request: JobRequest {
            name: file.name,
            tenant: file.tenant,
            labels: file.labels,
            parallel: file.parallel,
            max_failures: file.max_failures,
            tasks: Vec::new(),
        },
        inputs: Inputs::default(),
    };
    let names: BTreeSet<&str> = file.task.iter().map(|entry| entry.name.as_str()).collect();
    for (number, entry) in file.task.iter().enumerate() {
        let place = format!("{shown}: task {} `{}`", number + 1, entry.name);
        let checked = known(entry, &names);
        checked.and_then(|()| expand(&mut prepared, entry, &file.defaults, directory)).map_err(
            |mut error| {
                error.message = format!("{place}: {}", error.message);
                error
            },
        )?;
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
        let expected = complaint.split("expected").nth(1)?.lines().next()?;
        let words = expected.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let known = words.filter(|word| !["", "one", "of", "or"].contains(word));
        nearest(unknown, known)
    });
    match nearest {
        Some(name) => error.hint(format!("did you mean `{name}`?")),
        None => error,
    }
}

/// Every name that an entry speaks of is one of the file's.
fn known(entry: &Entry, names: &BTreeSet<&str>) -> Result<(), CliError> {
    let from = entry.inputs.iter().filter_map(|input| input.from.as_ref()).map(|name| ("from", name));
    for (field, name) in entry.after.iter().map(|name| ("after", name)).chain(from) {
        if !name.is_empty() && names.contains(name.as_str()) {
            continue;
        }
        let error = CliError::usage(format!("`{field}` names `{name}`, and no task has that name"));
        return Err(match nearest(name, names.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        });
    }
    Ok(())
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

/// What an input takes of other tasks, if it does.
fn gathered(input: &Input) -> Option<Result<OutputsRequest, CliError>> {
    let task = input.from.clone()?;
    let place = input.to.as_deref().unwrap_or(Path::new(&task));
    let path = place.to_str().map(str::to_owned);
    Some(match path {
        Some(path) if input.path.is_none() => Ok(OutputsRequest { task, path }),
        _ => Err(CliError::usage("an input needs exactly one of `path` and `from`")),
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
        devices: if entry.devices.is_empty() { defaults.devices.clone() } else { entry.devices.clone() },
        constraints: entry.constraints.clone().or_else(|| defaults.constraints.clone()),
        items: None,
        first_item: None,
        after: entry.after.clone(),
        inputs_from: entry.inputs.iter().filter_map(gathered).collect::<Result<_, CliError>>()?,
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
        match (&input.path, &input.from) {
            (Some(path), None) => {
                inputs.add(&directory.join(path), input.to.as_ref().unwrap_or(path))?;
            }
            (None, Some(_)) => {}
            _ => return Err(CliError::usage("an input needs exactly one of `path` and `from`")),
        }
    }
    if let Some(stdin) = &entry.stdin {
        inputs.read_stdin(&directory.join(stdin))?;
    }
    let mut template = template(entry, defaults, &inputs)?;
    prepared.inputs.absorb(&mut inputs);
    let Some(each) = &entry.each else {
        prepared.request.tasks.push(template);
        return Ok(());
    };
    if entry.count.is_some() {
        return Err(CliError::usage("`count` and `each` exclude one another"));
    }
    if let Each { files: None, range: Some(range), lines: None, items: None } = each {
        let (first, count) = numbers(range)?;
        (template.first_item, template.count) = (Some(first), Some(count));
        prepared.request.tasks.push(template);
        return Ok(());
    }
    let (list, count) = items(each, directory, &mut prepared.inputs)?;
    if count == 0 {
        return Err(CliError::usage("`each` makes no tasks: nothing matches"));
    }
    let count =
        u32::try_from(count).ok().filter(|count| u64::from(*count) <= MOST_ITEMS).ok_or_else(|| {
            CliError::usage(format!("`each` makes {count} tasks; the limit is {MOST_ITEMS}"))
                .hint("use several task files")
        })?;
    (template.items, template.count) = (Some(prepared.inputs.add_bytes(list)), Some(count));
    prepared.request.tasks.push(template);
    Ok(())
}

/// What `each` stands for, as a list with a line for each task, and how many there are. Files among them travel.
fn items(each: &Each, directory: &Path, inputs: &mut Inputs) -> Result<(Vec<u8>, usize), CliError> {
    let (mut list, mut count) = (Vec::new(), 0);
    let mut add = |item: serde_json::Result<Vec<u8>>| {
        let item = item.map_err(|error| CliError::failed(error.to_string()))?;
        list.extend_from_slice(&item);
        list.push(b'\n');
        count += 1;
        Ok::<(), CliError>(())
    };
    match each {
        Each { files: Some(pattern), range: None, lines: None, items: None } => {
            for name in files(pattern, directory)? {
                add(serde_json::to_vec(&inputs.add_item(&directory.join(&name), &name)?))?;
            }
        }
        Each { files: None, range: None, lines: Some(path), items: None } => {
            let bytes = read_bounded(&directory.join(path), LARGEST_LIST_BYTES)?;
            let text = String::from_utf8(bytes)
                .map_err(|_| CliError::usage(format!("{} is no text", path.display())))?;
            text.lines().try_for_each(|line| add(serde_json::to_vec(line)))?;
        }
        Each { files: None, range: None, lines: None, items: Some(values) } => {
            let text = |value: &serde_json::Value| match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            values.iter().try_for_each(|value| add(serde_json::to_vec(&text(value))))?;
        }
        _ => {
            return Err(CliError::usage("`each` needs exactly one of `files`, `range`, `lines` and `items`"));
        }
    }
    Ok((list, count))
}

/// The first number of a range, and how many there are.
fn numbers(range: &str) -> Result<(i64, u32), CliError> {
    let ends = range.split_once("..");
    let ends = ends.and_then(|(first, last)| Some((first.parse::<i64>().ok()?, last.parse::<i64>().ok()?)));
    let (first, last) = ends.filter(|(first, last)| first <= last).ok_or_else(|| {
        CliError::usage(format!(
            "`range` = \"{range}\": a range is written FIRST..LAST, both included, such as 1..100"
        ))
    })?;
    let length = last.abs_diff(first).saturating_add(1);
    match u32::try_from(length) {
        Ok(count) if length <= MOST_ITEMS => Ok((first, count)),
        _ => {
            let message = format!("`range` makes {length} tasks; the limit is {MOST_ITEMS}");
            Err(CliError::usage(message).hint("use several files"))
        }
    }
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
        let prepared = prepared(directory.path(), text).unwrap();
        let list_of =
            |task: &TaskRequest| prepared.inputs.bytes(&task.items.as_ref().unwrap().digest).unwrap();
        let request = &prepared.request;
        assert_eq!((request.name.as_str(), request.tasks.len()), ("compress", 4));
        let files: Vec<grey_api::InputRequest> =
            list_of(&request.tasks[0]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!((paths, request.tasks[0].count), (vec!["photos/a.jpg", "photos/b.jpg"], Some(2)));
        assert_eq!(list_of(&request.tasks[2]), "\"x\"\n\"2\"\n\"{\\\"a\\\":[1]}\"\n");
        assert_eq!(request.tasks[2].count, Some(3));
        let first = &request.tasks[0];
        assert_eq!(
            (first.cpu_millicores, first.memory_bytes, first.timeout_ms),
            (Some(500), Some(1 << 30), Some(600_000))
        );
        let range = &request.tasks[1];
        assert_eq!((range.env["LEVEL"].as_str(), range.first_item, range.count), ("1", Some(3), Some(3)));
        assert_eq!(request.tasks[3].count, Some(1_000));
    }

    #[test]
    fn the_published_schema_is_this_program_s() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/task-file.schema.json");
        let published: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(published, schema(), "`grey schema > docs/task-file.schema.json` writes it anew");
        assert_eq!(published["additionalProperties"], false, "an unknown key is refused");
        let references = published.to_string().matches("#/$defs/").count();
        assert!(references >= 5, "{references} references lead to the definitions");
    }

    #[test]
    fn the_same_file_in_three_languages_is_the_same_job() {
        let directory = tempfile::tempdir().unwrap();
        let files = [
            (
                "job.toml",
                "version = 1\nparallel = 3\n[[task]]\nname = \"a\"\neach = { range = \"1..3\" }\ncommand = [\"x\"]\n[[task]]\nafter = [\"a\"]\ninputs = [{ from = \"a\", to = \"in\" }]\ncommand = [\"y\"]\n",
            ),
            (
                "job.yaml",
                "version: 1\nparallel: 3\ntask:\n  - name: a\n    each: { range: 1..3 }\n    command: [x]\n  - after: [a]\n    inputs: [{ from: a, to: in }]\n    command: [y]\n",
            ),
            (
                "job.json",
                r#"{"version":1,"parallel":3,"task":[{"name":"a","each":{"range":"1..3"},"command":["x"]},{"after":["a"],"inputs":[{"from":"a","to":"in"}],"command":["y"]}]}"#,
            ),
        ];
        let requests = files.map(|(name, text)| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            read(&path).unwrap().request
        });
        assert_eq!(requests[0], requests[1]);
        assert_eq!(requests[0], requests[2]);
        assert_eq!(requests[0].tasks[1].inputs_from[0].path, "in");
        let path = directory.path().join("wrong.yaml");
        std::fs::write(&path, "version: 1\ntask:\n  - comand: [x]\n").unwrap();
        let refused = read(&path).err().unwrap();
        assert!(refused.message.contains("line 3"), "{}", refused.message);
        assert_eq!(refused.hint.as_deref(), Some("did you mean `command`?"));
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
                "the limit is 1000000",
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
    fn a_name_of_any_length_is_compared_in_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let (name, other) = ("a".repeat(1 << 20), "b".repeat(1 << 20));
        let text = format!(
            "version = 1\n[[task]]\nname = \"{name}\"\ncommand = [\"a\"]\n[[task]]\nafter = [\"{other}\"]\ncommand = [\"b\"]\n"
        );
        // Letter by letter it would be a million million steps.
        let error = prepared(directory.path(), &text).err().unwrap();
        assert!(error.message.contains("no task has that name"));
        assert_eq!(error.hint, None);
    }
}
