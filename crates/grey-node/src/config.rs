//! What a server and a worker of a cluster are told: one file, whose values flags and variables may replace.

mod reader;
mod traces;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use grey_api::{Address, DEFAULT_PORT};
use grey_core::{Devices, OLDEST_FEATURE_LEVEL, validate};
use toml::{Table, Value};

use crate::local::{CHECKPOINT_BYTES, Intake, host_name};
use crate::retention::Retention;
use crate::units::{duration_ms, size_bytes};
use reader::{Problems, Section};
pub use traces::TracesConfig;

/// The most bytes of a configuration, and of a token's file.
const LARGEST_FILE_BYTES: u64 = 1024 * 1024;
const LARGEST_TOKEN_BYTES: u64 = 4 * 1024;
/// The longest name of a node, in bytes.
const LONGEST_NAME_BYTES: usize = 64;
/// The longest name of a host, in bytes (RFC 1035).
const LONGEST_HOST_BYTES: usize = 253;
/// After how much of the log a checkpoint may be written.
const LEAST_CHECKPOINT_BYTES: u64 = 1024 * 1024;
const MOST_CHECKPOINT_BYTES: u64 = 1024 * 1024 * 1024;
/// The most servers that a node may be told of.
const MOST_SERVERS: usize = 32;
/// Where a server listens when nothing else is said.
const USUAL_LISTEN: &str = "0.0.0.0:7654";

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Where, such as `server.listen`; empty when it is about the whole of it.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return formatter.write_str(&self.problem);
        }
        write!(formatter, "`{}`: {}", self.field, self.problem)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<ConfigProblem>);

impl ConfigError {
    fn whole(problem: impl Into<String>) -> ConfigError {
        ConfigError(vec![ConfigProblem { field: String::new(), problem: problem.into() }])
    }
}

/// A host and a port at which others reach a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(formatter, "[{}]:{}", self.host, self.port);
        }
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPort, String> {
        let shown: String = text.chars().take(LONGEST_HOST_BYTES).collect();
        let wrong = |reason: &str| {
            format!(
                "`{shown}` is no host and port: {reason}; examples: grey.example.com:{DEFAULT_PORT}, 10.0.0.1"
            )
        };
        if text.contains("://") {
            return Err(wrong("nothing stands before the host"));
        }
        let Address::Https { host, port } =
            format!("https://{text}").parse().map_err(|error: grey_api::AddressError| wrong(error.reason))?
        else {
            return Err(wrong("it is neither a name nor an address"));
        };
        let address = host.parse::<std::net::IpAddr>().ok();
        if address.is_some_and(|address| address.is_unspecified()) {
            return Err(wrong("it stands for every address, and so for none that others could dial"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if address.is_none() && !(host.len() <= LONGEST_HOST_BYTES && host.bytes().all(plain)) {
            return Err(wrong("it is neither a name nor an address"));
        }
        Ok(HostPort { host, port })
    }
}

/// Where a token is. It is shown by nothing.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The token itself.
    Text(String),
    /// A file with it on one line.
    File(PathBuf),
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSource::Text(_) => formatter.write_str("Text"),
            TokenSource::File(path) => formatter.debug_tuple("File").field(path).finish(),
        }
    }
}

impl TokenSource {
    /// The token.
    ///
    /// # Errors
    /// When its file cannot be read, or does not hold one line of visible characters.
    pub fn read(&self) -> Result<String, ConfigError> {
        let path = match self {
            TokenSource::Text(text) => return Ok(text.clone()),
            TokenSource::File(path) => path,
        };
        let bytes = read_bounded(path, LARGEST_TOKEN_BYTES)?;
        let text = String::from_utf8(bytes).unwrap_or_default();
        token(text.trim()).map_err(|reason| ConfigError::whole(format!("{}: {reason}", path.display())))
    }
}

/// The cluster that a server joins. Without it a server begins one, or goes on with the one that its directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Servers of it; one that answers is enough.
    pub servers: Vec<HostPort>,
    /// What lets it in the first time.
    pub token: Option<TokenSource>,
}

/// How a node writes its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Whether each line is a JSON document.
    pub format: LogFormat,
    /// What is written, as a filter of levels and modules.
    pub level: String,
}

/// The form of a log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON document a line.
    Json,
}

/// What a server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its name; the host's when nothing else is said.
    pub name: String,
    /// Where its log, state, history and blobs lie.
    pub data_dir: PathBuf,
    /// Where it listens, for clients and nodes alike.
    pub listen: SocketAddr,
    /// What others dial.
    pub advertise: HostPort,
    /// The cluster that it joins.
    pub join: Option<Join>,
    /// How long it keeps what has ended.
    pub retention: Retention,
    /// How much it takes in.
    pub intake: Intake,
    /// After how many bytes of log it writes a checkpoint.
    pub checkpoint_bytes: u64,
    /// The newest feature level that it understands, to rehearse an upgrade; all that it does where nothing is said.
    pub feature_level_limit: Option<u16>,
    /// Where its metrics are read; nowhere when it is not said.
    pub metrics_listen: Option<SocketAddr>,
    /// Its log.
    pub log: LogConfig,
    /// Where its spans are told; nowhere when it is not said.
    pub traces: Option<TracesConfig>,
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Its name; the host's when nothing else is said.
    pub name: String,
    /// Where its outbox, blobs and attempts lie.
    pub data_dir: PathBuf,
    /// Servers of its cluster; one that answers is enough.
    pub servers: Vec<HostPort>,
    /// What lets it in the first time.
    pub token: Option<TokenSource>,
    /// Labels by which tasks choose it.
    pub labels: BTreeMap<String, String>,
    /// Devices that tasks may have: how many of each kind.
    pub devices: BTreeMap<String, u32>,
    /// Where its metrics are read; nowhere when it is not said.
    pub metrics_listen: Option<SocketAddr>,
    /// Its log.
    pub log: LogConfig,
    /// Where its spans are told; nowhere when it is not said.
    pub traces: Option<TracesConfig>,
}

/// Which node a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// `grey server`: the table `[server]`.
    Server,
    /// `grey worker`: the table `[worker]`.
    Worker,
}

impl NodeKind {
    /// The table's name, which is the command's too.
    pub fn name(self) -> &'static str {
        match self {
            NodeKind::Server => "server",
            NodeKind::Worker => "worker",
        }
    }
}

/// What a file says, with what was said elsewhere in its place.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    table: Table,
    /// The collector that every program of this machine is told of, and the file with its certificates.
    shared_collector: Option<(String, Option<PathBuf>)>,
}

impl Configuration {
    /// What a file says. Whether that makes sense is seen later.
    ///
    /// # Errors
    /// When it cannot be read or is no TOML.
    pub fn read(path: &Path) -> Result<Configuration, ConfigError> {
        let text = String::from_utf8(read_bounded(path, LARGEST_FILE_BYTES)?)
            .map_err(|_| ConfigError::whole(format!("{} is no text", path.display())))?;
        text.parse()
    }

    /// Puts a value at a path of keys, in place of what the file says.
    pub fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        let Some((last, tables)) = path.split_last() else { return };
        let mut table = &mut self.table;
        for name in tables {
            let entry = table.entry((*name).to_owned()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert((*last).to_owned(), value.into());
    }

    /// Takes away what the file says at a path of keys.
    pub fn unset(&mut self, path: &[&str]) {
        let Some((last, tables)) = path.split_last() else { return };
        let mut table = &mut self.table;
        for name in tables {
            let Some(Value::Table(inner)) = table.get_mut(*name) else { return };
            table = inner;
        }
        table.remove(*last);
    }

    /// A collector that was told to every program of this machine, and the file with its certificates; for where nothing is said to this node.
    /// Nobody chose it for Grey, so it is used where it can be and does not keep a node from starting.
    pub fn share_collector(&mut self, endpoint: String, ca_file: Option<PathBuf>) {
        self.shared_collector = Some((endpoint, ca_file));
    }

    /// Whether anything stands at a path of keys, right or wrong.
    pub fn has(&self, path: &[&str]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let mut value = self.table.get(*first);
        for name in rest {
            value = value.and_then(|value| value.as_table()).and_then(|table| table.get(*name));
        }
        value.is_some()
    }

    /// Where spans are told, where nothing else of a node is read.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn traces(&self) -> Result<Option<TracesConfig>, ConfigError> {
        let problems = Problems::default();
        let mut root = Section::root(&self.table, &problems);
        let traces = traces::traces(root.section("traces"), self.shared_collector.as_ref());
        finished(Some(traces), problems)
    }

    /// What a server is told.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn server(&self) -> Result<ServerConfig, ConfigError> {
        let problems = Problems::default();
        let mut root = Section::root(&self.table, &problems);
        let log = log(&mut root);
        let traces = traces::traces(root.section("traces"), self.shared_collector.as_ref());
        let config = server(root.section("server"), log, traces);
        root.section("worker");
        root.end();
        finished(config, problems)
    }

    /// What a worker is told.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn worker(&self) -> Result<WorkerConfig, ConfigError> {
        let problems = Problems::default();
        let mut root = Section::root(&self.table, &problems);
        let log = log(&mut root);
        let traces = traces::traces(root.section("traces"), self.shared_collector.as_ref());
        let config = worker(root.section("worker"), log, traces);
        root.section("server");
        root.end();
        finished(config, problems)
    }

    /// Which nodes it is for: those whose tables it has, one at least.
    ///
    /// # Errors
    /// Everything that is wrong with any of it.
    pub fn check(&self) -> Result<Vec<NodeKind>, ConfigError> {
        let kinds: Vec<NodeKind> = [NodeKind::Server, NodeKind::Worker]
            .into_iter()
            .filter(|kind| self.table.contains_key(kind.name()))
            .collect();
        if kinds.is_empty() {
            return Err(ConfigError::whole("there is neither a table [server] nor a table [worker]"));
        }
        let mut problems = Vec::new();
        for kind in &kinds {
            let outcome = match kind {
                NodeKind::Server => self.server().err(),
                NodeKind::Worker => self.worker().err(),
            };
            for problem in outcome.into_iter().flat_map(|error| error.0) {
                // What both have in common is said once.
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        if problems.is_empty() { Ok(kinds) } else { Err(ConfigError(problems)) }
    }
}

impl FromStr for Configuration {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Configuration, ConfigError> {
        let table = text.parse::<Table>();
        let table = table.map_err(|error| ConfigError::whole(error.to_string().trim_end()))?;
        Ok(Configuration { table, shared_collector: None })
    }
}

fn finished<T>(config: Option<T>, problems: Problems) -> Result<T, ConfigError> {
    let problems = problems.into_list();
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError(problems)),
    }
}

fn server(mut section: Section<'_>, log: LogConfig, traces: Option<TracesConfig>) -> Option<ServerConfig> {
    let name = section.parsed("name", node_name).unwrap_or_else(host_name);
    let data_dir = section.required("data_dir", "\"/var/lib/grey/server\"", directory);
    let given = section.parsed("listen", listen);
    let listen = given.or_else(|| listen(USUAL_LISTEN).ok());
    let advertise = match (section.parsed("advertise", HostPort::from_str), listen) {
        (Some(advertise), _) => Some(advertise),
        (None, Some(listen)) if !listen.ip().is_unspecified() => {
            Some(HostPort { host: listen.ip().to_string(), port: listen.port() })
        }
        // What is wrong with it was said.
        (None, _) if section.has("advertise") => None,
        (None, _) => {
            let problem = format!(
                "it must be there, such as advertise = \"grey1.example.com:{DEFAULT_PORT}\": others cannot dial the \
                 address that `listen` names"
            );
            section.wrong("advertise", problem);
            None
        }
    };
    let join = join(section.section("join"));
    let retention = retention(section.section("retention"));
    let intake = intake(section.section("intake"));
    let checkpoint_bytes = section.parsed("checkpoint_every", checkpoint_bytes).unwrap_or(CHECKPOINT_BYTES);
    let feature_level_limit = feature_level_limit(&mut section);
    let metrics_listen = section.parsed("metrics_listen", metrics_listen);
    section.end();
    Some(ServerConfig {
        name,
        data_dir: data_dir?,
        listen: listen?,
        advertise: advertise?,
        join,
        retention,
        intake,
        checkpoint_bytes,
        feature_level_limit,
        metrics_listen,
        log,
        traces,
    })
}

fn checkpoint_bytes(text: &str) -> Result<u64, String> {
    let bytes = size_bytes(text)?;
    if (LEAST_CHECKPOINT_BYTES..=MOST_CHECKPOINT_BYTES).contains(&bytes) {
        return Ok(bytes);
    }
    Err("it is from 1MiB to 1GiB: a start takes in again what follows the last one".to_owned())
}

fn feature_level_limit(section: &mut Section<'_>) -> Option<u16> {
    let limit = section.number("feature_level_limit")?;
    let level = u16::try_from(limit).ok().filter(|level| OLDEST_FEATURE_LEVEL <= *level);
    if level.is_none() {
        section.wrong("feature_level_limit", format!("the oldest level is {OLDEST_FEATURE_LEVEL}"));
    }
    level
}

fn worker(mut section: Section<'_>, log: LogConfig, traces: Option<TracesConfig>) -> Option<WorkerConfig> {
    let name = section.parsed("name", node_name).unwrap_or_else(host_name);
    let data_dir = section.required("data_dir", "\"/var/lib/grey/worker\"", directory);
    let servers = servers(&mut section);
    let token = token_source(&mut section);
    let labels = section.entries("labels", "a text", |value| value.as_str().map(str::to_owned));
    let devices = section.entries("devices", "a whole number from 1 on", |value| {
        u32::try_from(value.as_integer()?).ok().filter(|count| *count > 0)
    });
    let sorted: Vec<(String, String)> = labels.clone().into_iter().collect();
    let counted: Vec<Devices> =
        devices.iter().map(|(name, count)| Devices { name: name.clone(), count: *count }).collect();
    if let Err(rejection) = validate::worker(&sorted, &counted) {
        section.wrong("labels", rejection.to_string());
    }
    let metrics_listen = section.parsed("metrics_listen", metrics_listen);
    section.end();
    let data_dir = data_dir?;
    Some(WorkerConfig { name, data_dir, servers, token, labels, devices, metrics_listen, log, traces })
}

fn join(mut section: Section<'_>) -> Option<Join> {
    let exists = section.exists();
    let join = exists.then(|| Join { servers: servers(&mut section), token: token_source(&mut section) });
    if exists {
        section.end();
    }
    join
}

fn servers(section: &mut Section<'_>) -> Vec<HostPort> {
    let servers = section.list("servers", HostPort::from_str);
    if servers.is_empty() {
        section
            .wrong("servers", "at least one must be there, such as servers = [\"grey1.example.com:7654\"]");
    } else if servers.len() > MOST_SERVERS {
        section.wrong("servers", format!("there are {}; at most {MOST_SERVERS} may be", servers.len()));
    }
    servers
}

fn token_source(section: &mut Section<'_>) -> Option<TokenSource> {
    let text = section.parsed("token", token).map(TokenSource::Text);
    let file = section.parsed("token_file", directory).map(TokenSource::File);
    if text.is_some() && file.is_some() {
        section.wrong("token", "`token` and `token_file` exclude one another");
    }
    text.or(file)
}

fn retention(mut section: Section<'_>) -> Retention {
    let usual = Retention::default();
    let retention = Retention {
        logs_ms: section.parsed("logs", duration_ms).unwrap_or(usual.logs_ms),
        results_ms: section.parsed("results", duration_ms).unwrap_or(usual.results_ms),
        history_ms: section.parsed("history", duration_ms).unwrap_or(usual.history_ms),
        inputs_ms: section.parsed("inputs", duration_ms).unwrap_or(usual.inputs_ms),
    };
    if let Err(error) = retention.check() {
        // The same bounds hold for the flags, by whose names they are told.
        section.wrong("logs", error.to_string());
    }
    section.end();
    retention
}

fn intake(mut section: Section<'_>) -> Intake {
    let intake = Intake {
        tasks_per_second: section.number("tasks_per_second"),
        burst_tasks: section.number("burst_tasks"),
        proposals: section.number("under_way"),
    };
    if let Err(error) = intake.door() {
        section.wrong("tasks_per_second", error.to_string());
    }
    section.end();
    intake
}

/// Levels of a log, least first.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log(root: &mut Section<'_>) -> LogConfig {
    let mut section = root.section("log");
    let format = section.parsed("format", |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it is `text` or `json`".to_owned()),
    });
    let level = section.parsed("level", |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_:=,[]{}- ".contains(&byte);
        let is_one = (1..=256).contains(&text.len()) && text.bytes().all(plain);
        // A word alone would be taken for a module's name, and nothing else be written.
        let is_level = |word: &str| LOG_LEVELS.contains(&word.trim().to_ascii_lowercase().as_str());
        let are_levels = text.split(',').all(|part| part.contains(['=', '[']) || is_level(part));
        let help = || format!("it is one of {}, or such as `info,grey_node=debug`", LOG_LEVELS.join(", "));
        (is_one && are_levels).then(|| text.to_owned()).ok_or_else(help)
    });
    section.end();
    LogConfig { format: format.unwrap_or(LogFormat::Text), level: level.unwrap_or_else(|| "info".to_owned()) }
}

fn node_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=LONGEST_NAME_BYTES).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(format!("a name has 1 to {LONGEST_NAME_BYTES} letters, digits, `-`, `_` and `.`"))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        return Ok(path);
    }
    Err("an absolute path is expected: the node may be started from anywhere".to_owned())
}

fn token(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err("a token is one line of visible characters".to_owned())
}

/// An address to listen on, with a port that others can know before.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<std::net::IpAddr>().map(|address| SocketAddr::new(address, DEFAULT_PORT));
    address.or_else(|_| listen_with_port(text))
}

fn listen_with_port(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err("the port must be a number from 1 to 65535: others must know it".to_owned()),
        Err(_) => {
            Err(format!("an address and a port are expected, such as {USUAL_LISTEN} or [::]:{DEFAULT_PORT}"))
        }
    }
}

/// Where metrics are read: an address and a port, or a port of the loopback interface.
///
/// # Errors
/// What would be right.
pub fn metrics_listen(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(0) => Err("the port must be a number from 1 to 65535: others must know it".to_owned()),
        Ok(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        Err(_) => listen_with_port(text),
    }
}

fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, ConfigError> {
    let wrong = |reason: String| ConfigError::whole(format!("cannot read {}: {reason}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(wrong(format!("it is larger than {limit_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
