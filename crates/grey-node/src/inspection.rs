//! What this machine can enforce, found out by trying it.

use std::path::Path;
use std::sync::Arc;

use grey_agent::Executor;
use grey_exec::{ProcessExecutor, ProcessOptions, machine_resources};

use crate::error::NodeError;
use crate::identity::random;

/// What was found.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The highest sandbox level that works here.
    pub sandbox: String,
    /// What is enforced, and what is not and why, one sentence each.
    pub notes: Vec<String>,
    /// Thousandths of processor cores.
    pub cpu_millicores: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Inspection {
    /// Tries the sandbox in a temporary directory that is removed afterwards. `launcher` is this binary.
    pub fn of_this_machine(launcher: &Path) -> Result<Inspection, NodeError> {
        let [a, b, c, d, ..] = random()?;
        let name = format!("grey-doctor-{:08x}", u32::from_le_bytes([a, b, c, d]));
        let work_dir = std::env::temp_dir().join(name);
        let inspection = Inspection::within(&work_dir, launcher);
        // What cannot be removed is an empty directory among temporary ones.
        drop(std::fs::remove_dir_all(&work_dir));
        inspection
    }

    fn within(work_dir: &Path, launcher: &Path) -> Result<Inspection, NodeError> {
        std::fs::create_dir(work_dir).map_err(NodeError::io("create", work_dir.display()))?;
        let options = ProcessOptions {
            work_dir: work_dir.to_path_buf(),
            launcher: launcher.to_path_buf(),
            door: None,
            max_running: 1,
            resources: machine_resources(work_dir)?,
        };
        let executor = ProcessExecutor::new(options, Arc::new(|_| {}))?;
        let capabilities = executor.capabilities();
        Ok(Inspection {
            sandbox: capabilities.sandbox.name().to_owned(),
            notes: capabilities.notes,
            cpu_millicores: capabilities.resources.cpu_millicores,
            memory_bytes: capabilities.resources.memory_bytes,
        })
    }
}
