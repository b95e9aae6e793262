//! Which cluster a command speaks to, and how the local one is found or started.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use grey_api::{Address, Client, ClientError, ClusterStatus, Trust};
use grey_node::SOCKET_FILE;
use serde::{Deserialize, Serialize};

use super::Global;
use super::choice::{Choice, Said};
use super::contexts::{self, Context, Contexts};
use super::error::CliError;
use super::output::Output;

/// How long the background process may take to start, or another one to end.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a node that is starting or ending is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// The file that the background process writes its log to.
pub const LOG_FILE: &str = "grey.log";

/// A cluster elsewhere, and how it is spoken to.
#[derive(Clone)]
pub struct Remote {
    address: Address,
    others: Vec<Address>,
    trust: Option<Trust>,
    token: Option<String>,
    tenant: Option<String>,
    context: Option<String>,
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.address)?;
        self.others.iter().try_for_each(|other| write!(formatter, ", {other}"))?;
        match &self.context {
            Some(context) => write!(formatter, " (context {context})"),
            None => Ok(()),
        }
    }
}

/// The cluster that was asked for.
#[derive(Clone)]
pub enum Target {
    /// A cluster elsewhere. There is no other when it does not answer.
    Remote(Box<Remote>),
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
    /// The cluster that options, environment and contexts name.
    pub fn of(global: &Global) -> Result<Target, CliError> {
        let said = said(global)?;
        match said.choice(|| Ok(Contexts::read()?.current))? {
            Choice::Addresses(text) => Ok(Target::Remote(Box::new(Remote::at(&text)?))),
            Choice::Context { name, by_flag } => {
                let contexts = Contexts::read()?;
                let context = contexts.get(&name)?;
                let remote = Remote::of(&name, context, by_flag).map_err(|mut error| {
                    error.message = format!("context `{name}`: {}", error.message);
                    error
                })?;
                Ok(Target::Remote(Box::new(remote)))
            }
            Choice::Local => Ok(Target::Local(data_dir(&said)?)),
        }
    }

    /// The local cluster, for a command that is about no other.
    pub fn local(global: &Global) -> Result<Target, CliError> {
        let said = said(global)?;
        let other = match said.choice(|| Ok(None))? {
            Choice::Local => return Ok(Target::Local(data_dir(&said)?)),
            Choice::Addresses(address) => address,
            Choice::Context { name, .. } => format!("context `{name}`"),
        };
        Err(CliError::usage(format!("this command is about the local cluster; {other} is another one"))
            .hint("leave out --addr and --context, and unset GREY_ADDR and GREY_CONTEXT"))
    }

    /// The data directory of a local cluster.
    pub fn directory(&self) -> Result<&Path, CliError> {
        match self {
            Target::Local(directory) => Ok(directory),
            Target::Remote(remote) => Err(CliError::usage(format!(
                "this command is about the local cluster; {remote} is another one"
            ))),
        }
    }

    /// Whose tasks are submitted where neither the command nor the task file says it.
    pub fn tenant(&self) -> Option<String> {
        let set = std::env::var("GREY_TENANT").ok().filter(|tenant| !tenant.is_empty());
        set.or_else(|| match self {
            Target::Remote(remote) => remote.tenant.clone(),
            Target::Local(_) => None,
        })
    }

    /// A client of the cluster as it is; the local one is not started.
    pub fn client(&self, output: &Output) -> Client {
        let client = match self {
            Target::Remote(remote) => {
                let client = Client::new(remote.address.clone(), remote.token.clone())
                    .with_others(remote.others.clone());
                match &remote.trust {
                    Some(trust) => client.with_trust(trust.clone()),
                    None => client,
                }
            }
            Target::Local(directory) => Client::new(Address::Unix(directory.join(SOCKET_FILE)), None),
        };
        client.with_observer(output.observer())
    }

    /// A client of the cluster, the local one started when it does not run. Says whether it was.
    pub async fn connect(&self, output: &Output) -> Result<(Client, bool), CliError> {
        let client = self.client(output);
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

impl Remote {
    /// The cluster at addresses, with what the environment says of it.
    fn at(addresses: &str) -> Result<Remote, CliError> {
        let (token, trust) = (environment_token()?, environment_trust()?);
        Remote::new(grey_api::addresses(addresses)?, trust, token)
    }

    /// The cluster of a context. What the environment says goes before it, unless the command line named the context.
    fn of(name: &str, context: &Context, by_flag: bool) -> Result<Remote, CliError> {
        let pem = context.ca.as_ref().map(|pem| Trust::from_pem(pem.as_bytes())).transpose();
        let own = pem.map_err(|error| CliError::usage(format!("`ca` is no root certificate: {error}")))?;
        let (token, trust) = if by_flag {
            (first(|| context.token(), environment_token)?, first(|| Ok(own), environment_trust)?)
        } else {
            (first(environment_token, || context.token())?, first(environment_trust, || Ok(own))?)
        };
        let remote = Remote::new(context.addresses()?, trust, token)?;
        Ok(Remote { tenant: context.tenant.clone(), context: Some(name.to_owned()), ..remote })
    }

    fn new(addresses: Vec<Address>, trust: Option<Trust>, token: Option<String>) -> Result<Remote, CliError> {
        if let (Some(https), None) = (addresses.iter().find(|address| address.is_https()), &trust) {
            let message = format!("{https} shows a certificate, and nothing says which to believe");
            return Err(CliError::usage(message).hint(
                "set GREY_CA to the file of the cluster's root certificate, or keep it in a context: grey context add \
                 NAME ADDRESS --ca FILE",
            ));
        }
        let mut addresses = addresses.into_iter();
        let address = addresses.next().ok_or_else(|| CliError::usage("no address is given"))?;
        Ok(Remote { address, others: addresses.collect(), trust, token, tenant: None, context: None })
    }
}

/// The first of two that is there.
fn first<T>(
    one: impl FnOnce() -> Result<Option<T>, CliError>,
    other: impl FnOnce() -> Result<Option<T>, CliError>,
) -> Result<Option<T>, CliError> {
    match one()? {
        Some(found) => Ok(Some(found)),
        None => other(),
    }
}

fn environment_token() -> Result<Option<String>, CliError> {
    let Ok(given) = std::env::var("GREY_TOKEN") else { return Ok(None) };
    let well_formed = contexts::well_formed(given.trim());
    well_formed
        .map(Some)
        .ok_or_else(|| CliError::usage("GREY_TOKEN is no token: visible characters are expected"))
}

fn environment_trust() -> Result<Option<Trust>, CliError> {
    let Some(path) = std::env::var_os("GREY_CA").filter(|value| !value.is_empty()) else { return Ok(None) };
    let (_, trust) = contexts::read_trust(Path::new(&path)).map_err(|mut error| {
        error.message = format!("GREY_CA: {}", error.message);
        error
    })?;
    Ok(Some(trust))
}

fn said(global: &Global) -> Result<Said, CliError> {
    Said::with_environment(global.addr.clone(), global.context.clone(), global.data_dir.clone())
}

/// The local cluster's data directory.
fn data_dir(said: &Said) -> Result<PathBuf, CliError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = said
        .data_dir()
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
        .env_remove("GREY_CONTEXT")
        .env_remove("GREY_CA")
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
