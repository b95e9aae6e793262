//! The few system calls that have no safe form: the only unsafe code of Grey.
//!
//! All of it is called by a shim or its guards, which have one thread; [`SingleThread`] is the proof of it for what would
//! be unsound otherwise.
#![allow(unsafe_code, reason = "fork, exec and signals have no safe form; each use says why it is sound")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;

use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::UnshareFlags;

use crate::plan::{Consumed, Fence};

/// Proof that the calling process had one thread when it was made, and starts none: only a shim and its guards hold one.
pub(crate) struct SingleThread(());

impl SingleThread {
    /// Checks it by counting the process's threads, which `/proc/self/task` shows as links.
    pub(crate) fn verify() -> io::Result<SingleThread> {
        let threads = std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2);
        if threads == 1 { Ok(SingleThread(())) } else { Err(io::Error::from_raw_os_error(libc::EBUSY)) }
    }
}

/// Which side of a fork this is.
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old one, with the id of the new.
    Parent(Pid),
}

/// Forks. The child has one thread too and may do whatever the parent may.
pub(crate) fn fork(_proof: &SingleThread) -> io::Result<Forked> {
    // SAFETY: the process has one thread, so no lock can be held by a thread that the child lacks.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        pid => {
            Pid::from_raw(pid).filter(|_| pid > 0).map(Forked::Parent).ok_or_else(io::Error::last_os_error)
        }
    }
}

/// The stack of a process that runs until it becomes a program, in bytes.
const BRIEF_STACK_BYTES: usize = 256 * 1024;

/// Runs `brief` in a new process that shares this one's memory, and returns when the new process has become a program or
/// has ended, as it does when `brief` returns. Copying a memory that is about to be replaced would cost more than all that `brief` does.
///
/// Only a process that is killed from outside may wait like this: until then it hears nothing else.
pub(crate) fn run_until_exec<F: FnMut()>(_proof: &SingleThread, mut brief: F) -> io::Result<Pid> {
    extern "C" fn enter<F: FnMut()>(brief: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the pointer is to the closure below, which nobody else uses while this process shares the memory.
        unsafe { (*brief.cast::<F>())() };
        exit_now(1)
    }
    // Words of sixteen bytes, so that the top is aligned as every platform wants it.
    let mut stack = vec![0u128; BRIEF_STACK_BYTES / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the process has one thread, which CLONE_VFORK holds until the new process has left the shared memory, so both
    // never run in it at once, and stack and closure live through that. Descriptors, signal actions and the working
    // directory are copies. What the closure allocates and does not free before exec is lost, no more.
    let pid = unsafe {
        let top = stack.as_mut_ptr_range().end;
        libc::clone(enter::<F>, top.cast(), flags, (&raw mut brief).cast())
    };
    Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error)
}

/// Forks a child into the namespaces that `fence` needs from the first instruction on. The child has one thread too and
/// may do whatever this process may.
pub(crate) fn fork_guard(_proof: &SingleThread, fence: Fence) -> io::Result<Forked> {
    let namespaces = match fence {
        Fence::Namespaces => libc::CLONE_NEWPID,
        Fence::UserNamespaces => libc::CLONE_NEWUSER | libc::CLONE_NEWPID,
        Fence::Subreaper => 0,
    };
    let flags = libc::c_long::from(libc::SIGCHLD | namespaces);
    // SAFETY: without CLONE_VM the child has a copy of this one thread and its stack, as after fork(2); no pointer is
    // passed. The C library is not told; it keeps nothing about processes that the child would use.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) if pid > 0 => {
            Pid::from_raw(pid).map(Forked::Parent).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// A child that has ended and was not waited for yet, with what it used and its own waited-for children; `None` when there
/// is none.
pub(crate) fn reap(_proof: &SingleThread) -> io::Result<Option<(Pid, Consumed)>> {
    loop {
        // SAFETY: the structure is plain numbers, for which zeroes are a value, and lives through the call; the status is
        // not asked for.
        let (result, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(-1, ptr::null_mut(), libc::WNOHANG, &raw mut usage), usage)
        };
        if result >= 0 {
            return Ok(Pid::from_raw(result).map(|pid| (pid, consumed(&usage))));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            error => return Err(error),
        }
    }
}

/// Closes every descriptor above standard error but these, at once: for a process that was forked with what it has no
/// part in and never touches it.
pub(crate) fn close_all_but(_proof: &SingleThread, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<libc::c_uint> =
        kept.iter().filter_map(|descriptor| libc::c_uint::try_from(descriptor.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first: libc::c_uint = 3;
    for number in kept {
        if first < number {
            // SAFETY: the caller's promise: owners of what is closed live on in the parent only.
            unsafe { close_between(first, number.saturating_sub(1), 0) }?;
        }
        first = first.max(number.saturating_add(1));
    }
    // SAFETY: as above.
    unsafe { close_between(first, libc::c_uint::MAX, 0) }
}

/// Lets this process have as many descriptors open as it may ever have; how many they were before, where that is a change.
pub(crate) fn raise_descriptors() -> Option<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).ok().and(limit.current)
}

/// Undoes [`raise_descriptors`], for a process whose programs expect what is usual.
pub(crate) fn lower_descriptors(before: Option<u64>) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // To lower a limit is always allowed.
    let _ = before.map(|before| {
        let lowered = Rlimit { current: Some(before), maximum: limit.maximum };
        rustix::process::setrlimit(Resource::Nofile, lowered)
    });
}

/// Leaves the process without running what a parent registered for its own exit.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

/// Enters new namespaces.
pub(crate) fn unshare(_proof: &SingleThread, flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no caller shares out its descriptor table, and there is no other thread to be surprised.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Marks every descriptor above standard error to be closed by the next exec.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: with this flag nothing is closed now.
    unsafe { close_between(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
}

/// # Safety
/// Without `CLOSE_RANGE_CLOEXEC` the descriptors are closed at once, so nobody in this process may use one of them again.
unsafe fn close_between(first: libc::c_uint, last: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: no pointer is passed; what happens to the descriptors is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `descriptor` a standard one: input 0, output 1, error 2.
pub(crate) fn become_standard(descriptor: BorrowedFd<'_>, number: libc::c_int) -> io::Result<()> {
    if !(0..=2).contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open; the standard ones are owned by nobody in a shim and what is forked from it.
    let result = unsafe { libc::dup2(descriptor.as_raw_fd(), number) };
    if result == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a shim's socket from standard input: closes whatever else was inherited, and returns a close-on-exec copy
/// above the standard descriptors.
pub(crate) fn take_channel(_proof: &SingleThread) -> io::Result<OwnedFd> {
    // SAFETY: the caller is at the start of `main`, where nothing in the process owns a descriptor above the standard ones.
    unsafe { close_between(3, libc::c_uint::MAX, 0) }?;
    // SAFETY: no pointer is passed, and the result is checked before it is owned.
    let copy = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `copy` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Holds back every signal and returns a descriptor that becomes readable when a child has ended.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut every = empty_signal_set();
    let mut child = empty_signal_set();
    // SAFETY: both sets are initialised and live through the calls; the old mask is not asked for.
    let descriptor = unsafe {
        libc::sigfillset(&raw mut every);
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        // An ignored SIGCHLD would let children vanish without a status.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const every, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const child, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `descriptor` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Gives every signal its default effect and holds none back, as a program expects to find them.
pub(crate) fn default_signals() -> io::Result<()> {
    /// The kernel's signals. The C library refuses those that it keeps for itself, which may be ignored all the same.
    const SIGNALS: libc::c_int = 64;
    // Handler, flags, restorer and mask as the kernel has them on 64-bit machines: the default handler is zero.
    let default = [0u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: the kernel reads the action, of which the mask has the size told, and writes none back; the default
        // disposition runs no code of ours. It refuses what cannot be changed, which is at its default anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    let none = empty_signal_set();
    // SAFETY: the set is initialised and lives through the call; the old mask is not asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn empty_signal_set() -> libc::sigset_t {
    // SAFETY: a signal set is plain bits, for which zeroes are a value; `sigemptyset` then makes it the empty set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

/// What the children that were waited for used, with their own waited-for children.
pub(crate) fn consumed_by_children() -> Consumed {
    // SAFETY: the structure is plain numbers, for which zeroes are a value, and lives through the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    consumed(&usage)
}

fn consumed(usage: &libc::rusage) -> Consumed {
    let microseconds = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    Consumed {
        cpu_time_us: microseconds(usage.ru_utime).saturating_add(microseconds(usage.ru_stime)),
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0).saturating_mul(1_024),
    }
}

/// Kills every process of the namespace that the caller is the first process of; refused to anyone else, for whom it
/// would be every process of the machine.
pub(crate) fn kill_namespace() -> io::Result<()> {
    if rustix::process::getpid() != Pid::INIT {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // SAFETY: no pointer is passed; the caller is the init of its namespace, so the signal stays inside it.
    let result = unsafe { libc::kill(-1, libc::SIGKILL) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

/// Replaces the process by a program; returns only the error.
pub(crate) fn exec(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer, and they and their strings live through the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
