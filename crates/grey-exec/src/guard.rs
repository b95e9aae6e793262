//! The guard of one attempt: forked from the shim, it builds the fence around the task and watches over it. In a pid
//! namespace it is the first process there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Gid, Pid, Signal, Uid};
use rustix::thread::UnshareFlags;

use crate::plan::{CONTROL_KILL, Fence, LENGTH_BYTES, PLAN_BYTES, Plan, PlannedInput, Report, Stage};
use crate::supervise;
use crate::system::{self, SingleThread};

/// The exit status of a guard that could not do its work; its report is what counts.
const FAILED: i32 = 125;
/// How much of an input is copied between two looks at whether the attempt was stopped.
const COPY_BYTES: usize = 16 * 1024 * 1024;
/// The buffer for copying between file systems that cannot copy for us.
const COPY_BUFFER_BYTES: usize = 256 * 1024;

/// A step that failed, as the shim is told.
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) error: io::Error,
    pub(crate) position: u64,
}

impl Failure {
    /// A failure of a stage that has no position.
    pub(crate) fn at(stage: Stage) -> impl FnOnce(io::Error) -> Failure {
        move |error| Failure { stage, error, position: 0 }
    }

    /// The report of it.
    pub(crate) fn report(&self) -> Report {
        Report::Failed(self.stage, self.error.raw_os_error().unwrap_or(0), self.position)
    }
}

/// Who a process is outside of the user namespaces that it makes: inside it is nobody until it is mapped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    user: Uid,
    group: Gid,
}

impl Owner {
    /// The user and the group that this process has.
    pub(crate) fn of_this_process() -> Owner {
        Owner { user: rustix::process::geteuid(), group: rustix::process::getegid() }
    }

    /// Maps both to themselves in the user namespace that this process is in.
    fn map(self) -> io::Result<()> {
        let (user, group) = (self.user.as_raw(), self.group.as_raw());
        // An unprivileged process may map its group only after it gave up changing its groups.
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
    }
}

/// What the shim gives a guard.
pub(crate) struct Request {
    pub(crate) fence: Fence,
    /// The file that begins with the plan.
    pub(crate) plan: OwnedFd,
    /// The guard's end of the socket to the shim.
    pub(crate) channel: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The three streams of a task, still under numbers of their own.
pub(crate) struct Streams {
    pub(crate) stdin: File,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Writes a report. An error means that the shim is gone, which the closed socket tells as well.
pub(crate) fn send(channel: &OwnedFd, report: Report) {
    let mut rest: &[u8] = &report.encode();
    while !rest.is_empty() {
        match rustix::net::send(channel, rest, rustix::net::SendFlags::NOSIGNAL) {
            Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// The next control byte. `None` is a closed or broken channel, which means the end as [`CONTROL_KILL`] does.
pub(crate) fn read_control(channel: &OwnedFd) -> Option<u8> {
    let mut byte = [CONTROL_KILL];
    loop {
        match rustix::io::read(channel, &mut byte) {
            Ok(1) => return byte.first().copied(),
            Err(Errno::INTR) => {}
            _ => return None,
        }
    }
}

/// Serves the attempt behind a request, from its plan to the end of its last process.
pub(crate) fn attend(thread: &SingleThread, owner: Owner, request: Request) -> ! {
    let Request { fence, plan, channel, stdout, stderr } = request;
    // Should the shim have died before this call, the channel is closed, which every later step looks at. A guard without a namespace must live to kill what it adopts, so it has
    // the closed channel alone.
    let signal = Some(Signal::KILL).filter(|_| fence != Fence::Subreaper);
    let died_with = rustix::process::set_parent_process_death_signal(signal);
    let result = died_with
        .map_err(io::Error::from)
        .map_err(Failure::at(Stage::Process))
        .and_then(|()| guard(thread, owner, fence, plan, &channel, (stdout, stderr)));
    if let Err(failure) = &result {
        send(&channel, failure.report());
    }
    system::exit_now(if result.is_ok() { 0 } else { FAILED })
}

fn guard(
    thread: &SingleThread,
    owner: Owner,
    fence: Fence,
    plan: OwnedFd,
    channel: &OwnedFd,
    (stdout, stderr): (OwnedFd, OwnedFd),
) -> Result<(), Failure> {
    rustix::process::setsid().map_err(io::Error::from).map_err(Failure::at(Stage::Process))?;
    if fence == Fence::UserNamespaces {
        owner.map().map_err(Failure::at(Stage::Fence))?;
    }
    let plan = read_plan(plan).map_err(Failure::at(Stage::Plan))?;
    // The lock tells a later life of the worker that this attempt may still have processes.
    let _lock =
        if plan.probe { None } else { Some(lock(&plan.directory).map_err(Failure::at(Stage::Process))?) };
    lay_inputs(channel, &plan)?;
    let stdin = open_stdin(&plan).map_err(Failure::at(Stage::Stdin))?;
    let refused = raise_fence(thread, fence).map_err(Failure::at(Stage::Fence))?;
    if plan.probe {
        send(channel, Report::Probed(refused.map_or(0, Errno::raw_os_error)));
        return Ok(());
    }
    // What was stopped meanwhile, or has lost its shim, must not begin.
    if is_stopped(channel).map_err(Failure::at(Stage::Process))? {
        return Err(Failure::at(Stage::Process)(Errno::CANCELED.into()));
    }
    supervise::supervise(thread, &plan, &Streams { stdin, stdout, stderr }, channel)
}

/// Reads the plan and closes its file. Others read it too, so its position is nobody's.
fn read_plan(file: OwnedFd) -> io::Result<Plan> {
    let file = File::from(file);
    let mut length = [0; LENGTH_BYTES];
    file.read_exact_at(&mut length, 0)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let invalid = || io::Error::from_raw_os_error(Errno::INVAL.raw_os_error());
    if length > PLAN_BYTES {
        return Err(invalid());
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, LENGTH_BYTES as u64)?;
    Plan::decode(&bytes).ok_or_else(invalid)
}

fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
    Ok(file)
}

fn open_stdin(plan: &Plan) -> io::Result<File> {
    File::open(plan.stdin.as_deref().unwrap_or(Path::new("/dev/null")))
}

/// Lays the input files in. The guard does it and not the worker: a worker that forks elsewhere while it writes an
/// executable file makes that file busy for exec.
fn lay_inputs(channel: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    let work = plan.work();
    for (input, position) in plan.inputs.iter().zip(0..) {
        lay_input(channel, &work, input).map_err(|error| Failure { stage: Stage::Input, error, position })?;
    }
    Ok(())
}

fn lay_input(channel: &OwnedFd, work: &Path, input: &PlannedInput) -> io::Result<()> {
    let path = work.join(&input.path);
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let source = File::open(&input.source)?;
    let mode = if input.executable { 0o700 } else { 0o600 };
    let target = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
    copy(channel, source, target)
}

fn copy(channel: &OwnedFd, mut source: File, mut target: File) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if is_stopped(channel)? {
            return Err(Errno::CANCELED.into());
        }
        if buffer.is_empty() {
            match rustix::fs::copy_file_range(&source, None, &target, None, COPY_BYTES) {
                Ok(0) => return Ok(()),
                Ok(_) => continue,
                // Both offsets stand where the last success left them, so plain copying goes on from there.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    buffer = vec![0; COPY_BUFFER_BYTES];
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        let count = source.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        target.write_all(buffer.get(..count).unwrap_or_default())?;
    }
}

/// Whether the shim asked for an end, or is gone. Before the program runs, every control byte means the end.
fn is_stopped(channel: &OwnedFd) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(channel, PollFlags::IN)];
    Ok(poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

/// Makes what the fence needs besides the namespaces that the guard was forked into. Returns why `/proc` could not be
/// mounted.
fn raise_fence(thread: &SingleThread, fence: Fence) -> io::Result<Option<Errno>> {
    if fence == Fence::Subreaper {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        return Ok(None);
    }
    if rustix::process::getpid() != Pid::INIT {
        return Err(Errno::PERM.into());
    }
    system::unshare(thread, UnshareFlags::NEWNS)?;
    // Without this a mount made for the task would appear on the machine.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A container may forbid it. The task then sees the worker's `/proc`; it is still killed as a whole.
    Ok(rustix::mount::mount("proc", "/proc", "proc", flags, None).err())
}
