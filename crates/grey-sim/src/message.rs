//! What travels between nodes.

use grey_core::{Answer, AttemptId, Command, Counts, FromWorker, JobId, Rejection, ToWorker, WorkerMessage};
use grey_health::Advice;
use grey_replica::DoorRefusal;

/// What a client asks.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Propose a command.
    Propose(Box<Command>),
    /// Where the tasks of a job are, as of now.
    Read(JobId),
}

/// What a server answers to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It was committed and applied.
    Applied(Result<Answer, Rejection>),
    /// The job as it is, absent once it has ended.
    Read(Option<Counts>),
    /// This server does not lead; who does, 0 when unknown. Nothing was proposed.
    NotLeader(u64),
    /// It was proposed, and this server lost track of it.
    Unknown,
    /// Too much is under way; nothing was proposed. By which rule of the door, where it was the door's.
    Overloaded(Option<DoorRefusal>),
}

/// Everything that travels.
#[derive(Debug, Clone)]
pub enum Packet {
    /// Between servers, in the engine's own bytes.
    Engine(Vec<u8>),
    FromWorker(FromWorker),
    ToWorker(ToWorker),
    Request {
        number: u64,
        ask: Ask,
    },
    Reply {
        number: u64,
        told: Told,
        /// What the level of the server's door means for whoever asked.
        advice: Advice,
    },
}

impl Packet {
    /// About how long it is on the wire.
    pub fn bytes(&self) -> usize {
        match self {
            Packet::Engine(bytes) => bytes.len(),
            Packet::FromWorker(FromWorker::Report(report)) => 300 + 100 * report.finished.len(),
            Packet::FromWorker(_) | Packet::ToWorker(_) | Packet::Request { .. } | Packet::Reply { .. } => {
                200
            }
        }
    }

    /// What it says, for the trace.
    pub fn describe(&self) -> String {
        match self {
            Packet::Engine(bytes) => format!("engine, {} bytes", bytes.len()),
            Packet::FromWorker(FromWorker::Register(body)) => {
                let (life, session) = (body.incarnation, body.session);
                format!("register {life}/{session} holding {:?}", Names(&body.holding))
            }
            Packet::FromWorker(FromWorker::Report(body)) => {
                let finished: Vec<String> = body
                    .finished
                    .iter()
                    .map(|run| format!("{}+{}/{}", run.tasks.first, run.tasks.count, run.epoch))
                    .collect();
                let started = Names(&body.started);
                format!("report {}: started {started:?}, finished {finished:?}", body.sequence)
            }
            Packet::FromWorker(FromWorker::Revoked(body)) => format!("revoked {:?}", Names(&body.attempts)),
            Packet::FromWorker(FromWorker::Heartbeat(beat)) => {
                format!("heartbeat {}/{}: {}", beat.incarnation, beat.session, beat.number)
            }
            Packet::ToWorker(to) => {
                let (life, session, number) = (to.incarnation, to.session, to.number);
                format!("{life}/{session}/{number} {}", describe(&to.message))
            }
            Packet::Request { number, .. } => format!("request {number}"),
            Packet::Reply { number, told, .. } => format!("reply {number}: {told:?}"),
        }
    }
}

/// Attempts as they are written in a trace.
struct Names<'a>(&'a [AttemptId]);

impl std::fmt::Debug for Names<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.0.iter().map(|attempt| format!("{}/{}", attempt.task, attempt.epoch));
        formatter.write_str(&names.collect::<Vec<_>>().join(" "))
    }
}

fn describe(message: &WorkerMessage) -> String {
    match message {
        WorkerMessage::Assign(assignment) => {
            let placement = &assignment.placement;
            format!("assign {}+{}/{}", placement.tasks.first, placement.tasks.count, placement.epoch)
        }
        WorkerMessage::Stop(attempt) => format!("stop {:?}", Names(&[*attempt])),
        WorkerMessage::ChangeTimeout(attempts, timeout_ms) => {
            format!("time-out {timeout_ms} ms for {:?}", Names(attempts))
        }
        WorkerMessage::Revoke(attempts) => format!("revoke {:?}", Names(attempts)),
        WorkerMessage::Registered { worker, unknown } => {
            format!("registered {worker}, unknown {:?}", Names(unknown))
        }
        WorkerMessage::Reported(sequence, answer) => format!("reported {sequence}: {answer:?}"),
        WorkerMessage::Heard(number) => format!("heard {number}"),
        WorkerMessage::Unavailable { leader } => format!("unavailable, {leader} leads"),
    }
}
