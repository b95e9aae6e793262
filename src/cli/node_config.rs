//! What `grey server` and `grey worker` are told: a file, and flags and variables that go before it.

use std::path::{Path, PathBuf};

use grey_node::config::{ConfigError, Configuration, NodeKind, ServerConfig, TracesConfig, WorkerConfig};

use super::error::CliError;
use super::units;

/// What every node is told.
#[derive(Debug, Default, clap::Args)]
pub struct NodeArguments {
    /// The node's configuration, a TOML file; what else is given goes before it
    #[arg(long, env = "GREY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node's name [default: the host's]
    #[arg(long, env = "GREY_NODE_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Servers of the cluster, separated by commas; one that answers is enough
    #[arg(long, env = "GREY_JOIN", value_delimiter = ',', value_name = "HOST:PORT")]
    join: Vec<String>,
    /// The file with the token that lets the node into the cluster
    #[arg(long, env = "GREY_JOIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "join_token")]
    join_token_file: Option<PathBuf>,
    /// That token itself; others on this machine may see it on a command line, and not in the variable
    #[arg(long, env = "GREY_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join_token: Option<String>,
    /// Where metrics are read: an address and a port, or a port of 127.0.0.1 [default: nowhere]
    #[arg(long, env = "GREY_METRICS_LISTEN", value_name = "ADDRESS")]
    metrics_listen: Option<String>,
    #[command(flatten)]
    traces: TracesArguments,
    /// How the log is written: text or json [default: text]
    #[arg(long, env = "GREY_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is written to it [default: info]
    #[arg(long, env = "GREY_LOG", value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Where spans are told.
#[derive(Debug, Default, clap::Args)]
pub struct TracesArguments {
    /// The collector that spans are told to, by OTLP over gRPC, such as http://127.0.0.1:4317 [default: what OTEL_EXPORTER_OTLP_ENDPOINT
    /// says, or none]
    #[arg(long, env = "GREY_TRACES_ENDPOINT", value_name = "URL")]
    traces_endpoint: Option<String>,
    /// The file with the certificates that the collector's must lead to, for https [default: what OTEL_EXPORTER_OTLP_CERTIFICATE says]
    #[arg(long, env = "GREY_TRACES_CA_FILE", value_name = "FILE")]
    traces_ca_file: Option<PathBuf>,
    /// How many of the traces that begin here are told, from 0 to 1; others are as whoever began them wants it [default: 1]
    #[arg(long, env = "GREY_TRACES_RATIO", value_name = "RATIO")]
    traces_ratio: Option<f64>,
}

/// What a variable of the environment says that every program with OpenTelemetry knows, of traces or of everything. It counts for nothing where
/// spans are not wanted, or in another way than by OTLP over gRPC: what listens there would not understand.
fn standard(variable: &str, environment: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let of = |name: &str| {
        let said = |prefix: &str| environment(&format!("{prefix}_{name}")).filter(|said| !said.is_empty());
        said("OTEL_EXPORTER_OTLP_TRACES").or_else(|| said("OTEL_EXPORTER_OTLP"))
    };
    let is_off = environment("OTEL_SDK_DISABLED").is_some_and(|said| said.eq_ignore_ascii_case("true"));
    let exporters = environment("OTEL_TRACES_EXPORTER").filter(|said| !said.is_empty());
    let is_other = exporters.is_some_and(|said| said.split(',').all(|exporter| exporter.trim() != "otlp"));
    if is_off || is_other || of("PROTOCOL").is_some_and(|protocol| protocol != "grpc") {
        return None;
    }
    of(variable)
}

impl TracesArguments {
    /// Puts what was given over the file, and what the environment says for every program where neither says anything.
    fn put(
        &self,
        configuration: &mut Configuration,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<(), CliError> {
        const ENDPOINT: [&str; 2] = ["traces", "endpoint"];
        const CA_FILE: [&str; 2] = ["traces", "ca_file"];
        if let Some(endpoint) = &self.traces_endpoint {
            configuration.set(&ENDPOINT, endpoint.as_str());
        }
        if let Some(path) = &self.traces_ca_file {
            configuration.set(&CA_FILE, absolute(path)?);
        }
        let shared_ca_file = standard("CERTIFICATE", &environment);
        if configuration.has(&ENDPOINT) {
            if !configuration.has(&CA_FILE)
                && let Some(path) = shared_ca_file
            {
                configuration.set(&CA_FILE, absolute(Path::new(&path))?);
            }
        } else if let Some(endpoint) = standard("ENDPOINT", &environment) {
            configuration.share_collector(endpoint, shared_ca_file.map(PathBuf::from));
        }
        if let Some(ratio) = self.traces_ratio {
            configuration.set(&["traces", "ratio"], ratio);
        }
        Ok(())
    }

    /// Where a node is told to tell its spans that has no file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn config(&self) -> Result<Option<TracesConfig>, CliError> {
        let mut configuration = Configuration::default();
        self.put(&mut configuration, |name| std::env::var(name).ok())?;
        configuration.traces().map_err(|error| wrong("traces are to be told wrongly", &error))
    }
}

fn absolute(path: &Path) -> Result<String, CliError> {
    let path = std::path::absolute(path).map_err(|error| CliError::io("use", path.display(), &error))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| CliError::usage(format!("{} is no text", Path::new(&path).display())))
}

/// What a server is told.
#[derive(Debug, Default, clap::Args)]
pub struct ServerArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// Where it listens, for clients and nodes alike [default: 0.0.0.0:7654]
    #[arg(long, env = "GREY_LISTEN", value_name = "ADDRESS")]
    listen: Option<String>,
    /// What others dial [default: what it listens on, where that is one address]
    #[arg(long, env = "GREY_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// How long large streams are kept after the end of their job [default: 30d]
    #[arg(long, env = "GREY_RETAIN_LOGS", value_name = "TIME")]
    retain_logs: Option<String>,
    /// How long large output files are kept [default: 30d]
    #[arg(long, env = "GREY_RETAIN_RESULTS", value_name = "TIME")]
    retain_results: Option<String>,
    /// How long records and proofs are kept [default: 90d]
    #[arg(long, env = "GREY_RETAIN_HISTORY", value_name = "TIME")]
    retain_history: Option<String>,
    /// How long inputs are kept that no job needs any more; 24h at least [default: 7d]
    #[arg(long, env = "GREY_RETAIN_INPUTS", value_name = "TIME")]
    retain_inputs: Option<String>,
    /// Tasks a second that a tenant may submit in the long run
    #[arg(long, env = "GREY_SUBMIT_RATE", value_name = "TASKS")]
    submit_rate: Option<u32>,
    /// Tasks that a tenant may submit at once after a pause
    #[arg(long, env = "GREY_SUBMIT_BURST", value_name = "TASKS")]
    submit_burst: Option<u32>,
    /// Submissions under way at once
    #[arg(long, env = "GREY_UNDER_WAY", value_name = "COUNT")]
    under_way: Option<u32>,
    /// After how much of the log a checkpoint is written, which the log behind the one before is dropped with [default: 64MiB]
    #[arg(long, env = "GREY_CHECKPOINT_EVERY", value_name = "SIZE")]
    checkpoint_every: Option<String>,
    /// Newest feature level that it is to understand, to rehearse an upgrade [default: all that it does]
    #[arg(long, env = "GREY_FEATURE_LEVEL_LIMIT", value_name = "LEVEL")]
    feature_level_limit: Option<u16>,
}

/// What a worker is told.
#[derive(Debug, Default, clap::Args)]
pub struct WorkerArguments {
    #[command(flatten)]
    node: NodeArguments,
    /// A label by which tasks choose it; may be given several times
    #[arg(long = "label", env = "GREY_WORKER_LABELS", value_delimiter = ',', value_parser = units::label, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
    /// Devices that tasks may have, such as gpu=2; may be given several times
    #[arg(long = "device", env = "GREY_WORKER_DEVICES", value_delimiter = ',', value_parser = units::devices, value_name = "KIND=COUNT")]
    devices: Vec<(String, u32)>,
}

/// What is wrong with a configuration, as a user reads it.
pub fn wrong(what: impl core::fmt::Display, error: &ConfigError) -> CliError {
    CliError::usage(format!("{what}:\n  {}", error.to_string().replace('\n', "\n  ")))
        .hint("docs/grey.toml shows all there is, with what it means")
}

impl NodeArguments {
    /// The file with what is common to both kinds put over it.
    fn configuration(&self, kind: NodeKind, data_dir: Option<&Path>) -> Result<Configuration, CliError> {
        let mut configuration = match &self.config {
            Some(path) => Configuration::read(path).map_err(|error| wrong(path.display(), &error))?,
            None => Configuration::default(),
        };
        let table = kind.name();
        let joining: &[&str] = match kind {
            NodeKind::Server => &[table, "join"],
            NodeKind::Worker => &[table],
        };
        let in_join = |name| [joining, &[name]].concat();
        if let Some(name) = &self.name {
            configuration.set(&[table, "name"], name.as_str());
        }
        if let Some(directory) = data_dir {
            configuration.set(&[table, "data_dir"], absolute(directory)?);
        }
        if !self.join.is_empty() {
            configuration.set(&in_join("servers"), self.join.clone());
        }
        // One of the two in the file would contradict the other here.
        if let Some(token) = &self.join_token {
            configuration.unset(&in_join("token_file"));
            configuration.set(&in_join("token"), token.as_str());
        }
        if let Some(path) = &self.join_token_file {
            configuration.unset(&in_join("token"));
            configuration.set(&in_join("token_file"), absolute(path)?);
        }
        for (path, value) in [
            ([table, "metrics_listen"], &self.metrics_listen),
            (["log", "format"], &self.log_format),
            (["log", "level"], &self.log_level),
        ] {
            if let Some(value) = value {
                configuration.set(&path, value.as_str());
            }
        }
        self.traces.put(&mut configuration, |name| std::env::var(name).ok())?;
        Ok(configuration)
    }

    fn source(&self, kind: NodeKind) -> String {
        match &self.config {
            Some(path) => path.display().to_string(),
            None => format!("the {} is not told enough, or wrongly", kind.name()),
        }
    }
}

impl ServerArguments {
    /// What the server is told; `data_dir` is what the global option or GREY_DATA says.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn config(&self, data_dir: Option<&Path>) -> Result<ServerConfig, CliError> {
        let mut configuration = self.node.configuration(NodeKind::Server, data_dir)?;
        for (path, value) in [
            (&["server", "listen"][..], &self.listen),
            (&["server", "advertise"], &self.advertise),
            (&["server", "retention", "logs"], &self.retain_logs),
            (&["server", "retention", "results"], &self.retain_results),
            (&["server", "retention", "history"], &self.retain_history),
            (&["server", "retention", "inputs"], &self.retain_inputs),
            (&["server", "checkpoint_every"], &self.checkpoint_every),
        ] {
            if let Some(value) = value {
                configuration.set(path, value.as_str());
            }
        }
        for (name, value) in [
            ("tasks_per_second", self.submit_rate),
            ("burst_tasks", self.submit_burst),
            ("under_way", self.under_way),
        ] {
            if let Some(value) = value {
                configuration.set(&["server", "intake", name], i64::from(value));
            }
        }
        if let Some(level) = self.feature_level_limit {
            configuration.set(&["server", "feature_level_limit"], i64::from(level));
        }
        configuration.server().map_err(|error| wrong(self.node.source(NodeKind::Server), &error))
    }
}

impl WorkerArguments {
    /// What the worker is told; `data_dir` is what the global option or GREY_DATA says.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn config(&self, data_dir: Option<&Path>) -> Result<WorkerConfig, CliError> {
        let mut configuration = self.node.configuration(NodeKind::Worker, data_dir)?;
        for (key, value) in &self.labels {
            configuration.set(&["worker", "labels", key], value.as_str());
        }
        for (kind, count) in &self.devices {
            configuration.set(&["worker", "devices", kind], i64::from(*count));
        }
        configuration.worker().map_err(|error| wrong(self.node.source(NodeKind::Worker), &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    enum Command {
        Server(ServerArguments),
        Worker(WorkerArguments),
    }

    fn server(arguments: &[&str], data_dir: Option<&str>) -> Result<ServerConfig, CliError> {
        match Command::parse_from([&["grey", "server"], arguments].concat()) {
            Command::Server(arguments) => arguments.config(data_dir.map(Path::new)),
            Command::Worker(_) => panic!("a server was asked for"),
        }
    }

    fn worker(arguments: &[&str], data_dir: Option<&str>) -> Result<WorkerConfig, CliError> {
        match Command::parse_from([&["grey", "worker"], arguments].concat()) {
            Command::Worker(arguments) => arguments.config(data_dir.map(Path::new)),
            Command::Server(_) => panic!("a worker was asked for"),
        }
    }

    #[test]
    fn flags_alone_are_enough() {
        let config = server(
            &["--listen", "127.0.0.1:7701", "--name", "s1", "--retain-logs", "1d", "--submit-rate", "5"],
            Some("/d"),
        );
        let config = config.unwrap();
        assert_eq!((config.name.as_str(), config.advertise.to_string().as_str()), ("s1", "127.0.0.1:7701"));
        assert_eq!((config.retention.logs_ms, config.intake.tasks_per_second), (86_400_000, Some(5)));
        let flags = ["--join", "a:1,b:2", "--join-token", "t", "--label", "zone=a", "--device", "gpu=2"];
        let config = worker(&flags, Some("/d")).unwrap();
        assert_eq!(config.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert!(config.token.is_some());
        assert_eq!((config.labels["zone"].as_str(), config.devices["gpu"]), ("a", 2));
    }

    #[test]
    fn flags_go_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("grey.toml");
        let text = "[server]\nname = \"a\"\ndata_dir = \"/a\"\nadvertise = \"a\"\n[server.join]\nservers = [\"a\"]\ntoken = \"a\"\n";
        std::fs::write(&path, text).unwrap();
        let file = path.to_str().unwrap();
        let config =
            server(&["--config", file, "--name", "b", "--join-token-file", "/t"], Some("/b")).unwrap();
        assert_eq!((config.name.as_str(), config.data_dir.as_path()), ("b", Path::new("/b")));
        assert_eq!(
            config.join.unwrap().token.unwrap().read().unwrap_err().0.len(),
            1,
            "the file is not there"
        );
        let config = server(&["--config", file], None).unwrap();
        assert_eq!((config.name.as_str(), config.data_dir.as_path()), ("a", Path::new("/a")));
    }

    #[test]
    fn what_every_program_is_told_of_a_collector_counts_where_nothing_is_said_to_grey() {
        let told = |flag: Option<&str>, file: Option<&str>, environment: &[(&str, &str)]| {
            let mut configuration = Configuration::default();
            if let Some(endpoint) = file {
                configuration.set(&["traces", "endpoint"], endpoint);
            }
            let arguments =
                TracesArguments { traces_endpoint: flag.map(str::to_owned), ..TracesArguments::default() };
            let read = |name: &str| {
                let found = environment.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            arguments.put(&mut configuration, read).unwrap();
            configuration.traces().unwrap().map(|traces| traces.endpoint)
        };
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:1");
        for (flag, file, environment, expected) in [
            (None, None, &[][..], None),
            (None, None, &[all], Some("http://all:1")),
            (None, None, &[all, traces], Some("http://traces:1")),
            (None, Some("http://file:1"), &[all, traces], Some("http://file:1")),
            (Some("http://flag:1"), Some("http://file:1"), &[all], Some("http://flag:1")),
            (Some("none"), None, &[all], None),
            (None, None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], None),
            (None, None, &[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], None),
            (None, None, &[all, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Some("http://all:1")),
            (None, None, &[all, ("OTEL_SDK_DISABLED", "True")], None),
            (None, None, &[all, ("OTEL_SDK_DISABLED", "false")], Some("http://all:1")),
            (None, None, &[all, ("OTEL_TRACES_EXPORTER", "none")], None),
            (None, None, &[all, ("OTEL_TRACES_EXPORTER", "console")], None),
            (None, None, &[all, ("OTEL_TRACES_EXPORTER", "console, otlp")], Some("http://all:1")),
            (Some("http://flag:1"), None, &[all, ("OTEL_SDK_DISABLED", "true")], Some("http://flag:1")),
            // Nobody chose it for Grey: what is wrong with it is told by the node, which starts all the same.
            (None, None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:1")], Some("https://all:1")),
            (None, None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "all:1")], Some("all:1")),
        ] {
            assert_eq!(
                told(flag, file, environment).as_deref(),
                expected,
                "{flag:?} {file:?} {environment:?}"
            );
        }
    }

    #[test]
    fn everything_that_is_missing_or_wrong_is_said_at_once() {
        let error = server(&["--listen", "nowhere", "--retain-logs", "1"], None).unwrap_err();
        assert_eq!(error.exit_status, 2);
        for field in ["server.data_dir", "server.listen", "server.advertise", "server.retention.logs"] {
            assert!(error.message.contains(field), "{}", error.message);
        }
        let error = worker(&[], None).unwrap_err();
        assert!(error.message.contains("worker.data_dir") && error.message.contains("worker.servers"));
    }
}
