//! Watching over one program: as the init of its namespace, or as the adopter of its orphans.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::guard::{Failure, Streams, read_control, send};
use crate::plan::{CONTROL_TERMINATE, Fence, Plan, Report, Stage};
use crate::program::{self, StartError};
use crate::system::{self, Forked, SingleThread};

/// Runs the plan's program and returns when it and every descendant are gone and reaped, having reported all of it.
pub(crate) fn supervise(
    thread: &SingleThread,
    plan: &Plan,
    streams: &Streams,
    channel: &OwnedFd,
) -> Result<(), Failure> {
    let process = || Failure::at(Stage::Process);
    let signals = system::child_signals().map_err(process())?;
    let (verdict, answer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(process())?;
    let isolated = plan.fence != Fence::Subreaper;
    let main = if isolated {
        system::run_until_exec(thread, || program::run(plan, streams, &answer)).map_err(process())?
    } else {
        // Here nobody but this process can end the attempt, so it must listen even while the program is loaded.
        match system::fork(thread).map_err(process())? {
            Forked::Child => program::run(plan, streams, &answer),
            Forked::Parent(pid) => pid,
        }
    };
    drop(answer);
    let watched = Watched { main, isolated, verdict: Some(verdict), status: None };
    watched.watch(&signals, channel)
}

struct Watched {
    main: Pid,
    isolated: bool,
    /// Closed by a successful exec, or filled by a failed one.
    verdict: Option<OwnedFd>,
    /// The main process's wait status.
    status: Option<i32>,
}

impl Watched {
    fn watch(mut self, signals: &OwnedFd, channel: &OwnedFd) -> Result<(), Failure> {
        let mut failure = None;
        while self.status.is_none() && failure.is_none() {
            let spoken = self.wait(signals, channel).map_err(Failure::at(Stage::Process))?;
            if spoken.verdict {
                failure = self.read_verdict(channel).err();
            }
            if spoken.child {
                self.reap(signals).map_err(Failure::at(Stage::Process))?;
            }
            if spoken.control {
                match read_control(channel) {
                    Some(CONTROL_TERMINATE) => self.terminate(),
                    _ => break,
                }
            }
        }
        self.kill_everything().map_err(Failure::at(Stage::Descendants))?;
        if failure.is_none() {
            // A main process that ended faster than its verdict was read has left it in the pipe.
            failure = self.read_verdict(channel).err();
        }
        match (failure, self.status) {
            (Some(NotRun::Reported), _) | (None, None) => Ok(()),
            (Some(NotRun::Failed(failure)), _) => Err(failure),
            (None, Some(status)) => {
                send(channel, Report::Ended(status, system::consumed_by_children()));
                Ok(())
            }
        }
    }

    fn wait(&self, signals: &OwnedFd, channel: &OwnedFd) -> io::Result<Spoken> {
        let mut descriptors = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(channel, PollFlags::IN)];
        descriptors.extend(self.verdict.as_ref().map(|verdict| PollFd::new(verdict, PollFlags::IN)));
        match poll(&mut descriptors, None) {
            Err(Errno::INTR) => return Ok(Spoken::default()),
            result => result?,
        };
        let spoken = |position: usize| {
            descriptors.get(position).is_some_and(|descriptor| !descriptor.revents().is_empty())
        };
        Ok(Spoken { child: spoken(0), control: spoken(1), verdict: spoken(2) })
    }

    /// Reads whether the program was started, once.
    fn read_verdict(&mut self, channel: &OwnedFd) -> Result<(), NotRun> {
        let Some(verdict) = self.verdict.take() else { return Ok(()) };
        match program::read_answer(&verdict) {
            None => {
                send(channel, Report::Started);
                Ok(())
            }
            Some(StartError::NotStarted(why, error)) => {
                send(channel, Report::NotStarted(why, error));
                Err(NotRun::Reported)
            }
            Some(StartError::Failed(stage, error)) => Err(NotRun::Failed(Failure {
                stage,
                error: io::Error::from_raw_os_error(error),
                position: 0,
            })),
        }
    }

    /// Reaps every process that has ended, and notes the main one's status.
    fn reap(&mut self, signals: &OwnedFd) -> io::Result<()> {
        let mut drained = [0; 128];
        // One readable signal stands for any number of ended children, so its content says nothing.
        let _ = rustix::io::read(signals, &mut drained);
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.note(pid, status.as_raw()),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn note(&mut self, pid: Pid, status: i32) {
        if pid == self.main {
            self.status = Some(status);
        }
    }

    fn terminate(&self) {
        // Before the program has its own group, the process itself is all there is.
        if rustix::process::kill_process_group(self.main, Signal::TERM).is_err() && self.status.is_none() {
            let _ = rustix::process::kill_process(self.main, Signal::TERM);
        }
    }

    /// Kills and reaps until no child is left.
    fn kill_everything(&mut self) -> io::Result<()> {
        if self.isolated {
            system::kill_namespace()?;
            loop {
                match rustix::process::wait(WaitOptions::empty()) {
                    Ok(Some((pid, status))) => self.note(pid, status.as_raw()),
                    Ok(None) | Err(Errno::INTR) => {}
                    Err(Errno::CHILD) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.kill_descendants()
    }

    /// Without a namespace: kills what `/proc` shows below this process, whose children orphans become, until the last
    /// child is reaped. Each round waits only for a child that it has just killed.
    fn kill_descendants(&mut self) -> io::Result<()> {
        // The usual task leaves nobody behind, and `/proc` need not be read.
        let mut options = WaitOptions::NOHANG;
        while !self.reap_the_last(options)? {
            options = WaitOptions::NOHANG;
            let this = rustix::process::getpid();
            for (pid, parent) in descendants(this, &parents_by_process()?) {
                let killed = rustix::process::kill_process(pid, Signal::KILL).is_ok();
                if killed && parent == this {
                    options = WaitOptions::empty();
                }
            }
        }
        Ok(())
    }

    /// Reaps what has ended, after waiting for one unless `NOHANG` is given; true when no child is left.
    fn reap_the_last(&mut self, mut options: WaitOptions) -> io::Result<bool> {
        loop {
            match rustix::process::wait(options) {
                Ok(Some((pid, status))) => {
                    self.note(pid, status.as_raw());
                    options = WaitOptions::NOHANG;
                }
                Ok(None) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(Errno::CHILD) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[derive(Default)]
struct Spoken {
    child: bool,
    control: bool,
    verdict: bool,
}

enum NotRun {
    /// The shim was told already.
    Reported,
    Failed(Failure),
}

/// The parent of every process that `/proc` shows.
fn parents_by_process() -> io::Result<HashMap<Pid, Pid>> {
    let mut parents = HashMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        // A process that ended since has no parent any more.
        let Ok(stat) = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { continue };
        if let Some(parent) = parent_in_stat(&stat) {
            parents.insert(pid, parent);
        }
    }
    Ok(parents)
}

/// The fourth field of `/proc/<pid>/stat`. The second is the program's name, which may hold anything, brackets too.
fn parent_in_stat(stat: &[u8]) -> Option<Pid> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')?.checked_add(1)?;
    let fields = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok().and_then(Pid::from_raw)
}

/// Every process below `ancestor` with its parent.
fn descendants(ancestor: Pid, parents: &HashMap<Pid, Pid>) -> Vec<(Pid, Pid)> {
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for (pid, parent) in parents {
        children.entry(*parent).or_default().push(*pid);
    }
    let mut found = Vec::new();
    let mut seen = HashSet::from([ancestor]);
    let mut waiting = vec![ancestor];
    while let Some(parent) = waiting.pop() {
        for pid in children.get(&parent).map_or(&[][..], Vec::as_slice) {
            // The listing is no snapshot, so a reused id could close a circle.
            if seen.insert(*pid) {
                found.push((*pid, parent));
                waiting.push(*pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn the_parent_is_found_behind_a_name_full_of_brackets_and_spaces() {
        assert_eq!(parent_in_stat(b"17 (a) S 99 (b)) S 4 17 17 0"), Some(pid(4)));
        for wrong in [&b""[..], b"17 (a", b"17 (a)", b"17 (a) S", b"17 (a) S x"] {
            assert_eq!(parent_in_stat(wrong), None);
        }
    }

    #[test]
    fn descendants_are_those_below_and_a_circle_ends() {
        let parents = HashMap::from(
            [(2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 8), (8, 7)]
                .map(|(child, parent)| (pid(child), pid(parent))),
        );
        assert_eq!(descendants(pid(2), &parents), vec![(pid(3), pid(2)), (pid(4), pid(3))]);
        assert_eq!(descendants(pid(7), &parents), vec![(pid(8), pid(7))]);
        assert!(descendants(pid(9), &parents).is_empty());
    }
}
