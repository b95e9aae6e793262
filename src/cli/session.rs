//! Which cluster a command speaks to, and how the local one is found or started.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use grey_api::{Address, Client, ClientError, ClusterStatus};
use grey_node::SOCKET_FILE;
use serde::{Deserialize, Serialize};

use super::Global;
use super::error::CliError;

/// How long the background process may take to start, or another one to end.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a node that is starting or ending is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// The file that the background process writes its log to.
pub const LOG_FILE: &str = "grey.log";

/// The cluster that was asked for.
#[derive(Debug, Clone)]
pub enum Target {
    /// A cluster at an address. There is no other when it does not answer.
    Remote(Address),
    /// The local cluster of a data directory.
    Local(PathBuf),
}

/// What the background process says on its standard output, once.
#[derive(Debug, Serialize, Deserialize)]
pub enum StartReport {
    /// It takes requests.
    Ready,
    /// Another process has the directory.
    Locked,
    /// It cannot start.
    Failed(String),
}

impl Target {
    /// The cluster that options and environment name.
    pub fn of(global: &Global) -> Result<Target, CliError> {
        if let Some(address) = &global.addr {
            return Ok(Target::Remote(address.parse::<Address>()?));
        }
        Ok(Target::Local(data_dir(global.data_dir.as_deref())?))
    }

    /// The data directory of a local cluster.
    pub fn directory(&self) -> Result<&Path, CliError> {
        match self {
            Target::Local(directory) => Ok(directory),
            Target::Remote(address) => Err(CliError::usage(format!(
                "this command is about the local cluster; {address} is another one"
            ))
            .hint("leave out --addr and unset GREY_ADDR")),
        }
    }

    /// A client of the cluster as it is; the local one is not started.
    pub fn client(&self) -> Client {
        match self {
            Target::Remote(address) => Client::new(address.clone(), std::env::var("GREY_TOKEN").ok()),
            Target::Local(directory) => Client::new(Address::Unix(directory.join(SOCKET_FILE)), None),
        }
    }

    /// A client of the cluster, the local one started when it does not run. Says whether it was.
    pub async fn connect(&self) -> Result<(Client, bool), CliError> {
        let client = self.client();
        let Target::Local(directory) = self else { return Ok((client, false)) };
        let deadline = Instant::now() + START_TIMEOUT;
        let mut started = false;
        loop {
            match client.get::<ClusterStatus>("/v1/cluster").await {
                Ok(_) => return Ok((client, started)),
                Err(ClientError::Refused(problem)) if problem.retry_after_ms.is_none() => {
                    return Err(ClientError::Refused(problem).into());
                }
                Err(ClientError::Refused(_)) => {}
                Err(ClientError::Unreadable { address, reason }) => {
                    return Err(ClientError::Unreadable { address, reason }.into());
                }
                Err(ClientError::Unreachable { .. } | ClientError::Broken { .. }) => {
                    match start(directory)? {
                        StartReport::Ready => started = true,
                        // It is starting for another shell, or about to end: both show soon.
                        StartReport::Locked => {}
                        StartReport::Failed(reason) => {
                            let hint = format!("its log is {}", directory.join(LOG_FILE).display());
                            return Err(CliError::failed(format!(
                                "the local cluster cannot start: {reason}"
                            ))
                            .hint(hint));
                        }
                    }
                }
            }
            if Instant::now() > deadline {
                let shown = directory.display();
                return Err(CliError::unreachable(format!(
                    "the local cluster in {shown} holds its directory and does not answer"
                ))
                .hint(format!("its log is {}", directory.join(LOG_FILE).display())));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// The local cluster's data directory.
pub fn data_dir(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let found = match given {
        Some(directory) if directory.as_os_str().is_empty() => None,
        Some(directory) => Some(directory.to_path_buf()),
        None => None,
    };
    let directory = found
        .or_else(|| set("XDG_DATA_HOME").map(|directory| directory.join("grey")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/grey")));
    let directory = directory.ok_or_else(|| {
        CliError::usage("there is no place for the local cluster's data: HOME is not set")
            .hint("set GREY_DATA, or give --data-dir DIR")
    })?;
    std::path::absolute(&directory).map_err(|error| CliError::io("use", directory.display(), &error))
}

/// The runtime of a client command.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::io("start", "the runtime", &error))
}

/// Starts the background process and waits for what it says. It lives in a process group of its own, so a Ctrl-C at this
/// terminal does not reach it.
pub fn start(directory: &Path) -> Result<StartReport, CliError> {
    let failed = |what: &str, error: &std::io::Error| {
        CliError::io("start", format!("the local cluster in {} ({what})", directory.display()), error)
    };
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    created.map_err(|error| failed("its directory", &error))?;
    let log =
        std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(directory.join(LOG_FILE));
    let log = log.map_err(|error| failed("its log", &error))?;
    let binary = std::env::current_exe().map_err(|error| failed("this binary", &error))?;
    let mut child = Command::new(binary)
        .arg("__local")
        .arg("--data-dir")
        .arg(directory)
        .env_remove("GREY_ADDR")
        .env_remove("GREY_TOKEN")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(|error| failed("its process", &error))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(|error| failed("its process", &error))?;
    }
    match serde_json::from_str(line.trim()) {
        Ok(StartReport::Ready) => Ok(StartReport::Ready),
        Ok(report) => {
            drop(child.wait());
            Ok(report)
        }
        Err(_) => {
            let ended = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            Ok(StartReport::Failed(format!("its process ended ({ended}) before it was ready")))
        }
    }
}
