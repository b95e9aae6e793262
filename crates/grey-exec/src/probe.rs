//! Finding out, by doing it, what can be enforced around an attempt on this machine.

use std::io;

use grey_core::SandboxLevel;

use crate::channel::{Channel, Received};
use crate::error::ExecError;
use crate::keeper::Keeper;
use crate::plan::{Fence, LAUNCH_ARGUMENT, Plan, Report};

/// What was found.
pub(crate) struct Probe {
    /// The strongest fence that works, at most as strong as was asked for.
    pub(crate) fence: Fence,
    /// One sentence a fact.
    pub(crate) notes: Vec<String>,
}

impl Fence {
    /// What the fence enforces.
    pub(crate) fn level(self) -> SandboxLevel {
        match self {
            Fence::Namespaces | Fence::UserNamespaces => SandboxLevel::PidNamespace,
            Fence::Subreaper => SandboxLevel::ProcessGroup,
        }
    }
}

enum Answer {
    Works {
        /// Why `/proc` could not be mounted.
        proc_error: Option<io::Error>,
    },
    Refused(io::Error),
}

/// Tries the fences from the strongest on, leaving out those above `highest`.
pub(crate) fn probe(keeper: &Keeper, highest: SandboxLevel) -> Result<Probe, ExecError> {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == LAUNCH_ARGUMENT) {
        let reason = "it does not call `run_if_requested` before everything else".to_owned();
        return Err(ExecError::Launcher { path: keeper.path().to_path_buf(), reason });
    }
    let mut notes = Vec::new();
    for fence in [Fence::Namespaces, Fence::UserNamespaces, Fence::Subreaper] {
        if fence.level() > highest {
            continue;
        }
        match ask(keeper, fence)? {
            Answer::Works { proc_error } => {
                describe(fence, highest, proc_error, &mut notes);
                return Ok(Probe { fence, notes });
            }
            Answer::Refused(error) => notes.push(match fence {
                Fence::Namespaces => format!("Namespaces without a user namespace are refused: {error}."),
                Fence::UserNamespaces => format!("User namespaces are refused: {error}."),
                Fence::Subreaper => format!("Adopting orphaned processes is refused: {error}."),
            }),
        }
    }
    Err(ExecError::Launcher { path: keeper.path().to_path_buf(), reason: notes.join(" ") })
}

fn ask(keeper: &Keeper, fence: Fence) -> Result<Answer, ExecError> {
    let failed = |reason: String| ExecError::Launcher { path: keeper.path().to_path_buf(), reason };
    let plan = Plan {
        fence,
        probe: true,
        directory: "/".into(),
        stdin: None,
        inputs: Vec::new(),
        command: Vec::new(),
        environment: Vec::new(),
    };
    let mut channel = Channel::open(keeper, &plan).map_err(|error| {
        failed(format!(
            "it does not start, or does not call `run_if_requested` before everything else: {error}"
        ))
    })?;
    let mut answer = None;
    loop {
        match channel.receive() {
            Received::Report(Report::Probed(error)) => {
                let proc_error = Some(error).filter(|error| *error != 0).map(io::Error::from_raw_os_error);
                answer = Some(Answer::Works { proc_error });
            }
            Received::Report(Report::Failed(_, error, _)) => {
                answer = Some(Answer::Refused(io::Error::from_raw_os_error(error)));
            }
            Received::Report(_) => {}
            Received::Nothing => {
                channel.kill();
                return Err(failed("it does not answer within 10 seconds".to_owned()));
            }
            Received::End => break,
        }
    }
    if answer.is_none() {
        channel.kill();
    }
    answer.ok_or_else(|| failed("it does not call `run_if_requested` before everything else".to_owned()))
}

fn describe(fence: Fence, highest: SandboxLevel, proc_error: Option<io::Error>, notes: &mut Vec<String>) {
    match fence {
        Fence::Namespaces => notes.push(
            "Every attempt has a pid namespace: when it ends, the kernel ends all of its processes.".to_owned(),
        ),
        Fence::UserNamespaces => notes.push(
            "Every attempt has a pid namespace within a user namespace: when it ends, the kernel ends all of its processes."
                .to_owned(),
        ),
        Fence::Subreaper => {
            if highest < SandboxLevel::PidNamespace {
                notes.push("Pid namespaces were not asked for.".to_owned());
            }
            notes.push(
                "An attempt has a process group: Grey kills every descendant that it finds, and a task that kills its guard can leave processes behind."
                    .to_owned(),
            );
        }
    }
    if let Some(error) = proc_error {
        notes.push(format!("A task sees the machine's /proc, as its own cannot be mounted: {error}."));
    }
    notes.extend(
        [
            "Memory and processor time are not limited; a task that asks for less can take more.",
            "The network is not restricted.",
            "A task runs as the same user as Grey and can read and write whatever Grey can.",
            "Core dumps are off and set-user-id programs gain nothing; other resource limits are those that Grey runs under.",
            "Usage is what the kernel accounts to reaped processes; a task that hides its children from it is undercounted.",
        ]
        .map(str::to_owned),
    );
}
