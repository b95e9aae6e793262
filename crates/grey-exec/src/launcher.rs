//! The launcher: the binary re-executed to build the fence of one attempt and to watch over it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::UnshareFlags;

use crate::plan::{
    CONTROL_KILL, CONTROL_TERMINATE, Fence, LAUNCH_ARGUMENT, PLAN_BYTES, Plan, PlannedInput, Report, Stage,
};
use crate::supervise;
use crate::system::{self, Forked, SingleThread};

/// The exit status of a launcher that was started by hand or could not do its work.
const FAILED: i32 = 125;
/// How much of an input is copied between two looks at whether the attempt was stopped.
const COPY_BYTES: usize = 16 * 1024 * 1024;
/// The buffer for copying between file systems that cannot copy for us.
const COPY_BUFFER_BYTES: usize = 256 * 1024;

/// Becomes a launcher and never returns if the process was started as one; otherwise does nothing.
///
/// It must be the first statement of the `main` of every binary that is given as `ProcessOptions::launcher`: a launcher
/// may have one thread only, and must not open anything that a task could inherit.
pub fn run_if_requested() {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|argument| argument == LAUNCH_ARGUMENT) {
        run()
    }
}

/// A step that failed, as the worker is told.
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

fn run() -> ! {
    let taken = SingleThread::verify()
        .and_then(|thread| system::take_channel(&thread).map(|channel| (thread, channel)));
    let (thread, channel) = taken.unwrap_or_else(|error| {
        eprintln!("grey: {LAUNCH_ARGUMENT} is for Grey itself: {error}");
        system::exit_now(FAILED)
    });
    match launch(&thread, &channel) {
        Ok(()) => system::exit_now(0),
        Err(failure) => {
            send(&channel, failure.report());
            system::exit_now(FAILED)
        }
    }
}

/// Writes a report. An error means that the worker is gone, which the closed socket tells as well.
pub(crate) fn send(channel: &OwnedFd, report: Report) {
    let mut rest: &[u8] = &report.encode();
    while !rest.is_empty() {
        match rustix::io::write(channel, rest) {
            Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

fn launch(thread: &SingleThread, channel: &OwnedFd) -> Result<(), Failure> {
    let plan = read_plan(channel).map_err(Failure::at(Stage::Plan))?;
    let process = || Failure::at(Stage::Process);
    rustix::process::setsid().map_err(io::Error::from).map_err(process())?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io::Error::from)
        .map_err(process())?;
    // The lock tells a later life of the worker that this attempt may still have processes.
    let _lock = if plan.probe { None } else { Some(lock(&plan.directory).map_err(process())?) };
    lay_inputs(channel, &plan)?;
    std::env::set_current_dir("/").map_err(process())?;
    let stdin = open_stdin(&plan).map_err(Failure::at(Stage::Stdin))?;
    match plan.fence {
        Fence::Subreaper => {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                .map_err(io::Error::from)
                .map_err(Failure::at(Stage::Fence))?;
            if plan.probe {
                send(channel, Report::Probed(0));
            } else {
                supervise::supervise(thread, &plan, &stdin, channel, channel)?;
            }
        }
        Fence::Namespaces | Fence::UserNamespaces => run_init(thread, &plan, stdin, channel)?,
    }
    send(channel, Report::Gone(system::consumed_by_children()));
    Ok(())
}

fn read_plan(channel: &OwnedFd) -> io::Result<Plan> {
    let mut file = File::from(channel.try_clone()?);
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let invalid = || io::Error::from_raw_os_error(Errno::INVAL.raw_os_error());
    if length > PLAN_BYTES {
        return Err(invalid());
    }
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
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

/// Lays the input files in. The launcher does it and not the worker: a worker that forks elsewhere while it writes an
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

/// Whether the worker asked for an end, or is gone. Before the program runs, every control byte means the end.
fn is_stopped(channel: &OwnedFd) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(channel, PollFlags::IN)];
    Ok(poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

/// Makes the namespaces, forks their init and waits until the last process in them is gone.
fn run_init(thread: &SingleThread, plan: &Plan, stdin: File, channel: &OwnedFd) -> Result<(), Failure> {
    enter_namespaces(thread, plan.fence).map_err(Failure::at(Stage::Fence))?;
    let (control, forward) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .map_err(Failure::at(Stage::Process))?;
    match system::fork(thread).map_err(Failure::at(Stage::Fence))? {
        Forked::Child => {
            drop(forward);
            let result = init(thread, plan, &stdin, &control, channel);
            if let Err(failure) = &result {
                send(channel, failure.report());
            }
            system::exit_now(if result.is_ok() { 0 } else { FAILED })
        }
        Forked::Parent(pid) => {
            drop((control, stdin));
            send(channel, Report::Init(pid.as_raw_nonzero().get()));
            guard_init(pid, channel, &forward).map_err(Failure::at(Stage::Process))
        }
    }
}

fn enter_namespaces(thread: &SingleThread, fence: Fence) -> io::Result<()> {
    if fence == Fence::UserNamespaces {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        system::unshare(thread, UnshareFlags::NEWUSER)?;
        // An unprivileged process may map its group only after it gave up changing its groups.
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    system::unshare(thread, UnshareFlags::NEWPID | UnshareFlags::NEWNS)?;
    // Without this a mount made for the task would appear on the machine.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// The first process of the namespace.
fn init(
    thread: &SingleThread,
    plan: &Plan,
    stdin: &File,
    control: &OwnedFd,
    channel: &OwnedFd,
) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io::Error::from)
        .map_err(Failure::at(Stage::Process))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A container may forbid it. The task then sees the worker's `/proc`; it is still killed as a whole.
    let mounted = rustix::mount::mount("proc", "/proc", "proc", flags, None);
    if plan.probe {
        if rustix::process::getpid() != Pid::INIT {
            return Err(Failure { stage: Stage::Fence, error: Errno::PERM.into(), position: 0 });
        }
        send(channel, Report::Probed(mounted.err().map_or(0, Errno::raw_os_error)));
        return Ok(());
    }
    supervise::supervise(thread, plan, stdin, control, channel)
}

/// Passes the worker's wishes on to the init until the init has ended, which it does after its whole namespace.
fn guard_init(pid: Pid, channel: &OwnedFd, forward: &OwnedFd) -> io::Result<()> {
    let init = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut listening = true;
    loop {
        let interest = if listening { PollFlags::IN } else { PollFlags::empty() };
        let mut descriptors =
            [PollFd::new(&init, PollFlags::IN), PollFd::from_borrowed_fd(channel.as_fd(), interest)];
        let watched = if listening { &mut descriptors[..] } else { &mut descriptors[..1] };
        match poll(watched, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let [ended, spoken] = descriptors.map(|descriptor| !descriptor.revents().is_empty());
        if ended {
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
            return Ok(());
        }
        if listening && spoken {
            match read_control(channel) {
                Some(CONTROL_TERMINATE) => {
                    // A full pipe or an init that has just ended: in both cases there is nothing to add.
                    let _ = rustix::io::write(forward, &[CONTROL_TERMINATE]);
                }
                _ => {
                    listening = false;
                    rustix::process::kill_process(pid, Signal::KILL)?;
                }
            }
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
