//! Finding out, by doing it, what can be enforced around an attempt on this machine.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use grey_core::{AttemptId, Epoch, SandboxLevel, TaskId};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::PipeFlags;

use crate::clock::{monotonic_ns, timespec};
use crate::connection::Outgoing;
use crate::error::ExecError;
use crate::keeper::{Keeper, PATIENCE};
use crate::mailbox::{Ending, Mailbox};
use crate::message::{Clock, End, ToShim};
use crate::plan::{Fence, LAUNCH_ARGUMENT, Plan, Report};
use crate::record;

/// The attempt that a probe is: of no task.
pub(crate) const PROBE: AttemptId = AttemptId { task: TaskId(0), epoch: Epoch(0) };

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
    let unusable = |error: io::Error| failed(format!("it does not start: {error}"));
    let mailbox = Arc::new(Mailbox::new().map_err(unusable)?);
    try_fence(keeper, fence, &plan, &mailbox).map_err(unusable)?;
    let ending = wait(&mailbox);
    keeper.release(PROBE);
    match ending {
        Some(Ending::Ended(End { last: Some(Report::Probed(error)), .. })) => {
            let proc_error = Some(error).filter(|error| *error != 0).map(io::Error::from_raw_os_error);
            Ok(Answer::Works { proc_error })
        }
        Some(Ending::Ended(End { last: Some(Report::Failed(_, error, _)), .. })) => {
            Ok(Answer::Refused(io::Error::from_raw_os_error(error)))
        }
        Some(_) => Err(failed("it says nothing about what was tried".to_owned())),
        None => Err(failed("it does not answer within 10 seconds".to_owned())),
    }
}

fn try_fence(keeper: &Keeper, fence: Fence, plan: &Plan, mailbox: &Arc<Mailbox>) -> io::Result<()> {
    let file = record::write(plan, &[])?;
    let mut descriptors = vec![file];
    let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    descriptors.extend([their_stdout, their_stderr, stdout, stderr]);
    let timeout_ms = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
    let clock = Clock { started_ns: monotonic_ns(), started_at_ms: 0, timeout_ms };
    keeper.start(PROBE, Outgoing { message: ToShim::Start(PROBE, fence, clock), descriptors }, mailbox)
}

/// How a probe ended; `None` when that takes too long.
fn wait(mailbox: &Mailbox) -> Option<Ending> {
    let begun = Instant::now();
    loop {
        if let Some(ending) = mailbox.look().ending {
            return Some(ending);
        }
        let left = PATIENCE.checked_sub(begun.elapsed())?;
        let left = timespec(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
        let _ = poll(&mut [PollFd::from_borrowed_fd(mailbox.descriptor(), PollFlags::IN)], Some(&left));
    }
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
