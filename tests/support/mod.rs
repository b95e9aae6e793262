//! A data directory of its own for every test, and the real binary on it.
#![allow(dead_code, reason = "each suite uses a part of it")]

pub mod collector;
pub mod metrics;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use grey_api::{Address, Client, ClientError, ErrorCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What is tested.
pub const BINARY: &str = env!("CARGO_BIN_EXE_grey");

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The environment of one user.
pub struct Home {
    directory: tempfile::TempDir,
    data: PathBuf,
}

impl Home {
    pub fn new() -> Home {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        Home { directory, data }
    }

    /// With the data at another place below the directory.
    pub fn with_data(name: &str) -> Home {
        let mut home = Home::new();
        home.data = home.path(name);
        home
    }

    /// A path in the user's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The binary, not started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(BINARY), arguments)
    }

    /// The same with another binary.
    pub fn command_of(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("GREY_DATA", &self.data)
            .env("NO_COLOR", "1")
            .env_remove("GREY_ADDR")
            .env_remove("GREY_TOKEN")
            .env_remove("GREY_CONTEXT")
            .env_remove("GREY_CA")
            .env_remove("GREY_TENANT")
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("GREY_LOG")
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn grey(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Runs it and takes its standard output as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.grey(arguments);
        assert_eq!(ran.status, 0, "{arguments:?}: {}", ran.errors);
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    /// The background process.
    pub fn process_id(&self) -> i32 {
        std::fs::read_to_string(self.data.join("lock")).unwrap().trim().parse().unwrap()
    }

    /// Kills the background process the hard way and waits until it is gone.
    pub fn kill_9(&self) {
        let process_id = self.process_id();
        kill(process_id, "KILL");
        wait_until("the process is gone", || !is_alive(process_id));
    }

    fn client(&self) -> Client {
        // A refusal is what some tests are about.
        Client::new(Address::Unix(self.data.join("grey.sock")), None).with_retries(None)
    }

    /// Sends bytes to the API, under a key where one is given.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        media_type: &str,
        body: impl Into<Vec<u8>>,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        let body: Vec<u8> = body.into();
        runtime().block_on(self.client().post_bytes(path, media_type, body.into(), key))
    }

    /// Sends bytes and takes the answer line by line.
    pub fn lines(
        &self,
        path: &str,
        media_type: &str,
        body: &str,
        key: Option<&str>,
    ) -> Result<Vec<String>, ClientError> {
        runtime().block_on(async {
            let (sender, pieces) = tokio::sync::mpsc::channel(1);
            let body = body.to_owned();
            tokio::spawn(async move { drop(sender.send(Ok(body.into())).await) });
            let mut answer = self.client().post_pieces(path, media_type, pieces, key).await?;
            let mut text = Vec::new();
            while let Some(piece) = answer.next().await? {
                text.extend_from_slice(&piece);
            }
            Ok(String::from_utf8(text).unwrap().lines().map(str::to_owned).collect())
        })
    }

    /// Fetches a document of the API.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        runtime().block_on(self.client().get(path))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("grey.log")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Ok(lock) = std::fs::read_to_string(self.data.join("lock")) else { return };
        drop(self.command(&["down", "--quiet"]).output());
        if let Ok(process_id) = lock.trim().parse::<i32>()
            && is_grey(process_id, &self.data)
        {
            kill(process_id, "KILL");
        }
    }
}

/// What a run of the binary came to.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub text: String,
    pub errors: String,
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        Ran {
            // A signal is shown as a shell shows it.
            status: output.status.code().unwrap_or_else(|| {
                128 + std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or(0)
            }),
            text: String::from_utf8_lossy(&output.stdout).into_owned(),
            stdout: output.stdout,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn kill(process_id: i32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, "--", &process_id.to_string()]).status();
    // Who is gone already needs no signal.
    drop(status);
}

/// Whether a process runs; one that only waits for its parent does not.
pub fn is_alive(process_id: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{process_id}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

fn is_grey(process_id: i32, data: &Path) -> bool {
    std::fs::read(format!("/proc/{process_id}/cmdline")).is_ok_and(|line| {
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("__local") && line.contains(&*data.to_string_lossy())
    })
}

/// Processes whose command line or environment has a text.
pub fn processes_with(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(process_id) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(text) && is_alive(process_id) {
            found.push(process_id);
        }
    }
    found
}

/// Looks again and again until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "in vain waited until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a child with patience, and returns what it came to.
pub fn finish(mut child: Child) -> Ran {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            drop(child.kill());
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ran::of(child.wait_with_output().unwrap())
}

/// The media type of one object a line.
pub const NDJSON: &str = "application/x-ndjson";

/// The code of a refusal.
pub fn code(refusal: &ClientError) -> ErrorCode {
    refusal.problem().unwrap_or_else(|| panic!("{refusal}")).code
}

/// A batch of tasks that each leave a line.
pub fn batch(tasks: u32, script: &str) -> String {
    (0..tasks)
        .map(|number| {
            format!(
                "{{\"command\":[\"sh\",\"-c\",\"{script}\"],\"cpu_millicores\":250,\"name\":\"n{number}\"}}\n"
            )
        })
        .collect()
}
