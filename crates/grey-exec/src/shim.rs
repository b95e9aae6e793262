//! The shim: parent of every guard, which goes on when the worker ends and is found again by the next one.
//!
//! It has one thread, waits for everything at once and touches no disk, so that nothing keeps it from ending what runs
//! when the lease ends. It knows an attempt by its number, its clock and its descriptors; what the attempt is to do is in
//! a file that it passes on and never reads. Output stays in the pipes until a worker takes it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use grey_core::AttemptId;
use grey_core::limits::WORKER_SLOTS;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_peercred};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::clock::{boot_ns, monotonic_ns, timespec};
use crate::datagram::{self, Got, Sent};
use crate::guard::{self, Owner, Request};
use crate::message::{Clock, End, FromShim, Halted, MESSAGE_BYTES, PROTOCOL, START_DESCRIPTORS, ToShim};
use crate::plan::{CONTROL_KILL, CONTROL_TERMINATE, Consumed, Fence, REPORT_BYTES, Report, Stage};
use crate::probe::PROBE;
use crate::system::{self, Forked, SingleThread};

/// The exit status of a shim that cannot go on; what it held ends with it.
const FAILED: i32 = 125;
/// What a task has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long an attempt runs before anybody listens to its guard, so that of a short one nothing is told but its end.
const SHORT: Duration = Duration::from_millis(10);
/// How long a shim stays for which nothing runs and to which nobody is connected: what has ended may be asked for so long.
const LINGER: Duration = Duration::from_secs(10);
/// Attempts that may be held: as many as a worker may hold.
const HELD: usize = WORKER_SLOTS as usize;
/// Messages that are taken from the worker before anything else is looked at.
const MESSAGES_PER_TURN: usize = 64;
/// Events that are taken at once.
const EVENTS: usize = 64;

const DOOR: u64 = 0;
const WORKER: u64 = 1;
const SIGNALS: u64 = 2;
const LEASE: u64 = 3;
/// The first number that stands for an attempt's channel.
const FIRST_CHANNEL: u64 = 4;

/// How much the worker was told of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Held,
    Started,
    Ended,
}

/// What the next worker needs to go on with an attempt: its plan, and the reading ends of its streams.
type Kept = [OwnedFd; crate::message::HELD_DESCRIPTORS];

struct Held {
    /// Stands for its channel among the events.
    number: u64,
    fence: Fence,
    clock: Clock,
    /// The guard, until it is reaped.
    guard: Option<Pid>,
    /// The socket to the guard, until its last word.
    channel: Option<OwnedFd>,
    /// When the guard is listened to from then on, in nanoseconds of the monotonic clock; `None` once it is.
    listen_ns: Option<u64>,
    /// What was read of a report.
    inbox: Vec<u8>,
    /// Nothing where no other worker will come.
    kept: Option<Kept>,
    is_started: bool,
    last: Option<Report>,
    halted: Option<Halted>,
    /// When its time is over, or the patience with it, in nanoseconds of the monotonic clock.
    due_ns: Option<u64>,
    end: Option<End>,
    told: Told,
    /// Whether nobody wants to know any more how it ended.
    is_released: bool,
}

/// The worker that is connected.
struct Worker {
    socket: OwnedFd,
    greeted: bool,
    /// What it is to be told of, in order.
    untold: VecDeque<AttemptId>,
    /// Whether it was told of everything that was held when it came.
    ready: Readiness,
    pongs: u32,
    is_full: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// So many attempts of before are to be told first.
    After(usize),
    Said,
}

struct Shim<'a> {
    thread: &'a SingleThread,
    owner: Owner,
    descriptors: Option<u64>,
    /// Where workers connect; none where the shim ends with its only one.
    door: Option<OwnedFd>,
    worker: Option<Worker>,
    events: OwnedFd,
    signals: OwnedFd,
    timer: OwnedFd,
    /// When the lease ends that was told last, in nanoseconds of the boot clock.
    lease_ns: Option<u64>,
    held: BTreeMap<AttemptId, Held>,
    by_guard: HashMap<Pid, AttemptId>,
    by_number: BTreeMap<u64, AttemptId>,
    due: BTreeSet<(u64, AttemptId)>,
    /// When the guards of attempts that have just begun are listened to.
    to_listen: BTreeSet<(u64, AttemptId)>,
    next_number: u64,
    /// Since when nobody is connected, in nanoseconds of the monotonic clock.
    alone_ns: Option<u64>,
}

/// Serves a worker over a socket until it is gone, or one worker after another where the socket listens.
pub(crate) fn serve(thread: &SingleThread, socket: OwnedFd) -> ! {
    let status = match Shim::new(thread, socket).and_then(Shim::run) {
        Ok(()) => 0,
        Err(_) => FAILED,
    };
    // The guards end with this process: they are told by its death, or by their closed channels.
    system::exit_now(status)
}

impl<'a> Shim<'a> {
    fn new(thread: &'a SingleThread, socket: OwnedFd) -> io::Result<Shim<'a>> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        let signals = system::child_signals()?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
        let mut shim = Shim {
            thread,
            owner: Owner::of_this_process(),
            descriptors: system::raise_descriptors(),
            door: None,
            worker: None,
            events,
            signals,
            timer,
            lease_ns: None,
            held: BTreeMap::new(),
            by_guard: HashMap::new(),
            by_number: BTreeMap::new(),
            due: BTreeSet::new(),
            to_listen: BTreeSet::new(),
            next_number: FIRST_CHANNEL,
            alone_ns: None,
        };
        shim.listen_to(&shim.signals, SIGNALS)?;
        shim.listen_to(&shim.timer, LEASE)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        if socket_acceptconn(&socket)? {
            // Whoever connects sees who listened last, which is how it knows whom it speaks to.
            rustix::net::listen(&socket, 8)?;
            shim.listen_to(&socket, DOOR)?;
            shim.door = Some(socket);
            shim.alone_ns = Some(monotonic_ns());
        } else {
            shim.meet(socket)?;
        }
        Ok(shim)
    }

    fn listen_to(&self, descriptor: &OwnedFd, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.events, descriptor, EventData::new_u64(number), EventFlags::IN)?)
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            let timeout = self.next_ns().map(|at_ns| {
                // Rounded up to whole milliseconds, which is what is counted with.
                let left_ms = at_ns.saturating_sub(monotonic_ns()).div_ceil(1_000_000);
                timespec(left_ms.saturating_mul(1_000_000))
            });
            match epoll::wait(&self.events, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Err(Errno::INTR) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            self.end_with_lease();
            for Event { data, .. } in events.iter().copied() {
                match data.u64() {
                    DOOR => self.open()?,
                    WORKER => {
                        if !self.hear_worker()? {
                            return Ok(());
                        }
                    }
                    SIGNALS => self.reap()?,
                    LEASE => {
                        let mut times = [0; 8];
                        // That it went off was looked at.
                        let _ = rustix::io::read(&self.timer, &mut times);
                    }
                    number => self.hear_guard(number),
                }
            }
            self.listen_to_guards()?;
            self.end_what_is_due();
            self.tell()?;
            if self.is_of_no_use() {
                return Ok(());
            }
        }
    }

    /// When there is something to be done by the monotonic clock.
    fn next_ns(&self) -> Option<u64> {
        let due = self.due.first().map(|(at_ns, _)| *at_ns);
        let listen = self.to_listen.first().map(|(at_ns, _)| *at_ns);
        let lingers = self.alone_ns.filter(|_| self.by_guard.is_empty());
        let lingers = lingers.map(|since_ns| since_ns.saturating_add(in_ns(LINGER)));
        due.into_iter().chain(listen).chain(lingers).min()
    }

    /// Whether nothing runs and nobody has come for what has ended.
    fn is_of_no_use(&self) -> bool {
        self.by_guard.is_empty()
            && self.alone_ns.is_some_and(|since_ns| {
                self.door.is_none() || monotonic_ns() >= since_ns.saturating_add(in_ns(LINGER))
            })
    }

    fn lease_is_over(&self) -> bool {
        self.lease_ns.is_some_and(|until_ns| boot_ns() >= until_ns)
    }

    /// Ends everything when the lease does, whoever is connected.
    fn end_with_lease(&mut self) {
        if self.lease_is_over() {
            self.halt_all(Halted::LeaseEnded);
        }
    }

    fn halt_all(&mut self, why: Halted) {
        // A probe runs nothing of anybody's: a worker tries what works here before it has a lease of its own.
        for attempt in self.by_guard.values().copied().filter(|attempt| *attempt != PROBE).collect::<Vec<_>>()
        {
            self.halt(attempt, why, false);
        }
    }

    /// Lets the next worker in. One at a time: the door is not looked at while one is there.
    fn open(&mut self) -> io::Result<()> {
        let Some(door) = self.door.as_ref().filter(|_| self.worker.is_none()) else { return Ok(()) };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(door, flags) {
            Ok(socket) => socket,
            // Whoever wanted in is gone, or there is no room now: that is nothing for which something would have to end.
            Err(_) => return Ok(()),
        };
        if !socket_peercred(&socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid()) {
            return Ok(());
        }
        epoll::delete(&self.events, door)?;
        self.meet(socket)
    }

    fn meet(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.listen_to(&socket, WORKER)?;
        let (untold, ready) = (VecDeque::new(), Readiness::Said);
        self.worker = Some(Worker { socket, greeted: false, untold, ready, pongs: 0, is_full: false });
        self.alone_ns = None;
        Ok(())
    }

    /// The worker is gone, or says what no worker says.
    fn part(&mut self) -> io::Result<()> {
        if let Some(worker) = self.worker.take() {
            // A guard that was just forked may have a copy, which would keep the socket among the events.
            epoll::delete(&self.events, &worker.socket)?;
        }
        self.alone_ns = Some(monotonic_ns());
        for held in self.held.values_mut() {
            held.told = Told::Nothing;
        }
        if let Some(door) = &self.door {
            self.listen_to(door, DOOR)?;
        }
        if self.door.is_none() || self.lease_ns.is_none() {
            self.halt_all(Halted::LeaseEnded);
        }
        Ok(())
    }

    /// Takes what the worker says; false when it says that this is the end.
    fn hear_worker(&mut self) -> io::Result<bool> {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(worker) = &mut self.worker else { return Ok(true) };
            let mut bytes = [0; MESSAGE_BYTES];
            let (message, descriptors) = match datagram::receive(&worker.socket, &mut bytes) {
                Got::Message(length, descriptors) => {
                    (ToShim::decode(bytes.get(..length).unwrap_or_default()), descriptors)
                }
                Got::Nothing => return Ok(true),
                Got::End => (None, Vec::new()),
            };
            let greeted = worker.greeted;
            match (message, greeted) {
                (Some(ToShim::Hello(protocol)), false) => {
                    if !self.greet(protocol)? {
                        return Ok(false);
                    }
                }
                (Some(ToShim::End), true) if self.held.is_empty() => return Ok(false),
                (Some(message), true) if self.take(message, descriptors)? => {}
                _ => {
                    self.part()?;
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Answers a worker's first message; false when it speaks another protocol. Whatever is held then, that worker cannot
    /// take, and no other will come before the lease ends.
    fn greet(&mut self, protocol: u32) -> io::Result<bool> {
        let Some(worker) = &mut self.worker else { return Ok(true) };
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let hello = FromShim::Hello(PROTOCOL, held).encode();
        // The first message finds room, and who is gone is noticed.
        let _ = datagram::send(&worker.socket, &hello, &[]);
        worker.greeted = true;
        worker.untold.extend(self.held.keys().copied());
        worker.ready = Readiness::After(self.held.len());
        Ok(protocol == PROTOCOL)
    }

    /// Does what the worker asks for; false when no worker would ask for it.
    fn take(&mut self, message: ToShim, descriptors: Vec<OwnedFd>) -> io::Result<bool> {
        match message {
            ToShim::Start(attempt, fence, clock) => {
                let Ok(descriptors) = <[OwnedFd; START_DESCRIPTORS]>::try_from(descriptors) else {
                    return Ok(false);
                };
                if self.held.contains_key(&attempt) || self.held.len() >= HELD {
                    return Ok(false);
                }
                self.start(attempt, fence, clock, descriptors);
            }
            ToShim::Halt(attempt, why, gently) => self.halt(attempt, why, gently),
            ToShim::ChangeTimeout(attempt, timeout_ms) => self.change_timeout(attempt, timeout_ms),
            ToShim::Release(attempt) => self.release(attempt),
            ToShim::Lease(until_ns) => {
                let at = Itimerspec { it_interval: timespec(0), it_value: timespec(until_ns.max(1)) };
                rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &at)?;
                self.lease_ns = Some(until_ns);
            }
            ToShim::Ping => {
                if let Some(worker) = &mut self.worker {
                    worker.pongs = worker.pongs.saturating_add(1);
                }
            }
            ToShim::End => {}
            ToShim::Hello(_) => return Ok(false),
        }
        Ok(true)
    }

    fn start(
        &mut self,
        attempt: AttemptId,
        fence: Fence,
        clock: Clock,
        descriptors: [OwnedFd; START_DESCRIPTORS],
    ) {
        let [plan, stdout, stderr, stdout_read, stderr_read] = descriptors;
        let kept = self.door.as_ref().map(|_| plan.try_clone().map(|plan| [plan, stdout_read, stderr_read]));
        let number = self.next_number;
        self.next_number = self.next_number.saturating_add(1);
        let mut held = Held {
            number,
            fence,
            clock,
            guard: None,
            channel: None,
            listen_ns: None,
            inbox: Vec::new(),
            kept: None,
            is_started: false,
            last: None,
            halted: None,
            due_ns: None,
            end: None,
            told: Told::Held,
            is_released: false,
        };
        let forked = if attempt != PROBE && self.lease_is_over() {
            held.halted = Some(Halted::LeaseEnded);
            Ok(())
        } else {
            kept.transpose().and_then(|kept| {
                held.kept = kept;
                self.fork(&mut held, plan, stdout, stderr)
            })
        };
        if let Err(error) = forked {
            held.last = Some(Report::Failed(Stage::Fence, error.raw_os_error().unwrap_or(0), 0));
        }
        match held.guard {
            Some(guard) => {
                self.by_guard.insert(guard, attempt);
                self.by_number.insert(number, attempt);
                held.due_ns = Some(time_out_ns(clock));
                self.due.extend(held.due_ns.map(|at_ns| (at_ns, attempt)));
                held.listen_ns = Some(monotonic_ns().saturating_add(in_ns(SHORT)));
                self.to_listen.extend(held.listen_ns.map(|at_ns| (at_ns, attempt)));
            }
            None => {
                let (halted, last) = (held.halted, held.last);
                let consumed = Consumed::default();
                held.end = Some(End { ended_ns: monotonic_ns(), halted, last, consumed });
            }
        }
        self.held.insert(attempt, held);
        self.news(attempt);
    }

    /// Forks the guard. It has a copy of everything that is open here, and closes what is not its own before anything else.
    fn fork(&self, held: &mut Held, plan: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<()> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        match system::fork_guard(self.thread, held.fence)? {
            Forked::Child => {
                let own = [&plan, &theirs, &stdout, &stderr].map(AsFd::as_fd);
                if system::close_all_but(self.thread, &own).is_err() {
                    system::exit_now(FAILED);
                }
                system::lower_descriptors(self.descriptors);
                let request = Request { fence: held.fence, plan, channel: theirs, stdout, stderr };
                guard::attend(self.thread, self.owner, request)
            }
            Forked::Parent(guard) => {
                held.guard = Some(guard);
                held.channel = Some(ours);
                Ok(())
            }
        }
    }

    fn change_timeout(&mut self, attempt: AttemptId, timeout_ms: u64) {
        let Some(held) = self.held.get_mut(&attempt) else { return };
        held.clock.timeout_ms = timeout_ms;
        // Of one that is being stopped, what is due is the end of the patience.
        if held.halted.is_none() && held.last.is_none() {
            let at_ns = time_out_ns(held.clock);
            self.set_due(attempt, Some(at_ns));
        }
    }

    fn set_due(&mut self, attempt: AttemptId, at_ns: Option<u64>) {
        let Some(held) = self.held.get_mut(&attempt) else { return };
        if let Some(before_ns) = std::mem::replace(&mut held.due_ns, at_ns) {
            self.due.remove(&(before_ns, attempt));
        }
        self.due.extend(at_ns.map(|at_ns| (at_ns, attempt)));
    }

    /// Begins to listen to the guards of attempts that are no short ones.
    fn listen_to_guards(&mut self) -> io::Result<()> {
        while let Some((at_ns, attempt)) = self.to_listen.first().copied() {
            if at_ns > monotonic_ns() {
                break;
            }
            self.to_listen.pop_first();
            let Some(held) = self.held.get_mut(&attempt) else { continue };
            held.listen_ns = None;
            let (number, channel) =
                (held.number, self.held.get(&attempt).and_then(|held| held.channel.as_ref()));
            if let Some(channel) = channel {
                self.listen_to(channel, number)?;
            }
        }
        Ok(())
    }

    fn end_what_is_due(&mut self) {
        while let Some((at_ns, attempt)) = self.due.first().copied() {
            if at_ns > monotonic_ns() {
                return;
            }
            let being_stopped = self.held.get(&attempt).and_then(|held| held.halted);
            self.set_due(attempt, None);
            match being_stopped {
                Some(why) => self.halt(attempt, why, false),
                None => self.halt(attempt, Halted::TimedOut, true),
            }
        }
    }

    /// Begins to stop an attempt, or hastens a stop that has begun; the first reason stays. What has ended by itself
    /// cannot be stopped any more.
    fn halt(&mut self, attempt: AttemptId, why: Halted, gently: bool) {
        if let Some(number) = self.held.get(&attempt).map(|held| held.number) {
            self.hear_guard(number);
        }
        let Some(held) = self.held.get_mut(&attempt) else { return };
        let Some(guard) = held.guard.filter(|_| held.last.is_none()) else { return };
        let first = held.halted.is_none();
        held.halted.get_or_insert(why);
        if gently {
            if first {
                control(held.channel.as_ref(), CONTROL_TERMINATE);
                self.set_due(attempt, Some(monotonic_ns().saturating_add(in_ns(GRACE))));
            }
            return;
        }
        // With the first process of its namespace, or by the guard that knows them.
        control(held.channel.as_ref(), CONTROL_KILL);
        if held.fence != Fence::Subreaper {
            kill(guard);
        }
        self.set_due(attempt, None);
    }

    fn release(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.get_mut(&attempt) else { return };
        held.is_released = true;
        if held.guard.is_some() {
            self.halt(attempt, Halted::Infrastructure, false);
        } else {
            self.forget(attempt);
        }
    }

    fn forget(&mut self, attempt: AttemptId) {
        self.set_due(attempt, None);
        self.stop_listening(attempt);
        if let Some(held) = self.held.remove(&attempt) {
            self.by_number.remove(&held.number);
        }
    }

    fn stop_listening(&mut self, attempt: AttemptId) {
        let Some(held) = self.held.get_mut(&attempt) else { return };
        let (channel, listen_ns) = (held.channel.take(), held.listen_ns.take());
        match (channel, listen_ns) {
            (_, Some(at_ns)) => drop(self.to_listen.remove(&(at_ns, attempt))),
            // A guard that was just forked may have a copy, which would keep it among the events.
            (Some(channel), None) => drop(epoll::delete(&self.events, &channel)),
            (None, None) => {}
        }
    }

    /// Takes what a guard reports.
    fn hear_guard(&mut self, number: u64) {
        let Some(attempt) = self.by_number.get(&number).copied() else { return };
        let Some(held) = self.held.get_mut(&attempt) else { return };
        let before = (held.is_started, held.last);
        let goes_on = held.hear();
        let after = (held.is_started, held.last);
        if !goes_on {
            if after.1.is_none()
                && let Some(guard) = held.guard
            {
                // The guard did not end in order.
                kill(guard);
            }
            self.stop_listening(attempt);
            // What has ended has no time-out any more.
            self.set_due(attempt, None);
        }
        if before != after {
            self.news(attempt);
        }
    }

    /// Waits for every guard that has ended; in a namespace every other process ended before it.
    fn reap(&mut self) -> io::Result<()> {
        let mut drained = [0; 128];
        // One readable signal stands for any number of ended children, so its content says nothing.
        let _ = rustix::io::read(&self.signals, &mut drained);
        while let Some((guard, consumed)) = system::reap(self.thread)? {
            let Some(attempt) = self.by_guard.remove(&guard) else { continue };
            let number =
                self.held.get(&attempt).filter(|held| held.channel.is_some()).map(|held| held.number);
            // Its last word may lie in the channel yet.
            if let Some(number) = number {
                self.hear_guard(number);
            }
            let Some(held) = self.held.get_mut(&attempt) else { continue };
            held.guard = None;
            let consumed = match held.last {
                Some(Report::Ended(_, used)) => used,
                _ => consumed,
            };
            let (halted, last) = (held.halted, held.last);
            held.end = Some(End { ended_ns: monotonic_ns(), halted, last, consumed });
            self.stop_listening(attempt);
            self.set_due(attempt, None);
            if self.held.get(&attempt).is_some_and(|held| held.is_released) {
                self.forget(attempt);
            } else {
                self.news(attempt);
            }
        }
        Ok(())
    }

    /// There is something to be told of an attempt.
    fn news(&mut self, attempt: AttemptId) {
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.greeted) {
            worker.untold.push_back(attempt);
        }
    }

    /// Tells the worker what it was not told yet, as far as it takes it.
    fn tell(&mut self) -> io::Result<()> {
        let sent = match &mut self.worker {
            Some(worker) if worker.greeted => worker.tell(&mut self.held),
            _ => return Ok(()),
        };
        if sent == Sent::Gone {
            return self.part();
        }
        let full = sent == Sent::Full;
        if let Some(worker) = self.worker.as_mut().filter(|worker| worker.is_full != full) {
            worker.is_full = full;
            let flags = if full { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.events, &worker.socket, EventData::new_u64(WORKER), flags)?;
        }
        Ok(())
    }
}

impl Worker {
    fn say(&self, message: FromShim, descriptors: &[OwnedFd]) -> Sent {
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        datagram::send(&self.socket, &message.encode(), &descriptors)
    }

    fn tell(&mut self, held: &mut BTreeMap<AttemptId, Held>) -> Sent {
        loop {
            if self.pongs > 0 {
                match self.say(FromShim::Pong, &[]) {
                    Sent::Whole => self.pongs = self.pongs.saturating_sub(1),
                    other => return other,
                }
            }
            if self.ready == Readiness::After(0) {
                match self.say(FromShim::Ready, &[]) {
                    Sent::Whole => self.ready = Readiness::Said,
                    other => return other,
                }
            }
            let Some(attempt) = self.untold.front().copied() else { return Sent::Whole };
            // What was released meanwhile, nobody wants to hear of.
            while let Some(held) = held.get_mut(&attempt) {
                let Some((message, told, descriptors)) = held.next_word(attempt) else { break };
                match self.say(message, &descriptors) {
                    Sent::Whole => held.told = told,
                    other => return other,
                }
            }
            self.untold.pop_front();
            if let Readiness::After(left) = self.ready {
                self.ready = Readiness::After(left.saturating_sub(1));
            }
        }
    }
}

impl Held {
    /// Reads reports; false after the last.
    fn hear(&mut self) -> bool {
        let Some(channel) = &self.channel else { return false };
        let mut buffer = [MaybeUninit::uninit(); 8 * REPORT_BYTES];
        loop {
            while let Some(bytes) = self.inbox.first_chunk::<REPORT_BYTES>() {
                let report = Report::decode(bytes);
                self.inbox.drain(..REPORT_BYTES);
                match report {
                    Some(Report::Started) => self.is_started = true,
                    Some(report) => {
                        self.last = Some(report);
                        return false;
                    }
                    None => return false,
                }
            }
            match rustix::io::read(channel, &mut buffer) {
                Ok(([], _)) => return false,
                Ok((bytes, _)) => self.inbox.extend_from_slice(bytes),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                // A guard that left something unread resets the connection.
                Err(_) => return false,
            }
        }
    }

    /// What the worker is to be told next, and what it will have been told then.
    fn next_word(&self, attempt: AttemptId) -> Option<(FromShim, Told, Vec<OwnedFd>)> {
        if self.told < Told::Held {
            // Without all of them it cannot be gone on with.
            let kept = self.kept.iter().flatten().map(OwnedFd::try_clone).collect::<Result<_, _>>();
            let kept = kept.unwrap_or_default();
            return Some((FromShim::Held(attempt, self.fence, self.clock), Told::Held, kept));
        }
        match self.end {
            Some(end) if self.told < Told::Ended => {
                Some((FromShim::Ended(attempt, end), Told::Ended, Vec::new()))
            }
            None if self.is_started && self.told < Told::Started => {
                let guard =
                    self.guard.and_then(|guard| rustix::process::pidfd_open(guard, PidfdFlags::empty()).ok());
                Some((FromShim::Started(attempt), Told::Started, guard.into_iter().collect()))
            }
            _ => None,
        }
    }
}

fn control(channel: Option<&OwnedFd>, byte: u8) {
    // A guard that is gone does not need it any more.
    let _ = channel.map(|channel| rustix::net::send(channel, &[byte], rustix::net::SendFlags::NOSIGNAL));
}

fn kill(guard: Pid) {
    // It is a child that was not waited for, so the number still means it, even if it has ended.
    let _ = rustix::process::kill_process(guard, Signal::KILL);
}

fn in_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn time_out_ns(clock: Clock) -> u64 {
    clock.started_ns.saturating_add(clock.timeout_ms.saturating_mul(1_000_000))
}
