//! What a worker and the leader say to each other.
//!
//! A worker announces itself; that opens a session. Within a session the leader's messages are numbered, so that the worker
//! notices when one is missing and announces itself anew, which makes good whatever was in it.

use serde::{Deserialize, Serialize};

use crate::attempt::AttemptId;
use crate::command::{RegisterWorker, Report, Revoked};
use crate::effect::Assignment;
use crate::ids::WorkerId;

/// A sign of life. Its answer prolongs the worker's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub worker: WorkerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Under which announcement.
    pub session: u64,
    /// Which of that session's heartbeats, from 1.
    pub number: u64,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// It is there.
    Register(RegisterWorker),
    /// What its attempts came to.
    Report(Report),
    /// What it gave back. Nothing is lost with it: the attempts are asked back again, or lost when this life ends.
    Revoked(Revoked),
    /// It is still there.
    Heartbeat(Heartbeat),
}

/// What the leader says to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToWorker {
    /// To which of its lives.
    pub incarnation: u64,
    /// To which announcement.
    pub session: u64,
    /// Which message of that session, from 0; the next has the next number.
    pub number: u64,
    /// What.
    pub message: WorkerMessage,
}

/// The kinds of [`ToWorker`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerMessage {
    /// The worker is known under a number; of what it holds, some is not wanted.
    Registered {
        /// Its number.
        worker: WorkerId,
        /// Attempts that it holds and the cluster does not want.
        unknown: Vec<AttemptId>,
    },
    /// Run attempts.
    Assign(Box<Assignment>),
    /// A cancel was committed.
    Stop(AttemptId),
    /// Attempts have another time-out, in milliseconds.
    ChangeTimeout(Vec<AttemptId>, u64),
    /// Give back what has not been started.
    Revoke(Vec<AttemptId>),
    /// What became of a report.
    Reported(u64, ReportAnswer),
    /// A heartbeat was heard by a leader that was one after it came.
    Heard(u64),
    /// This server cannot serve the worker; `leader` may, 0 when nobody is known to. It ends the session whatever its
    /// number.
    Unavailable {
        /// The leader's number.
        leader: u64,
    },
}

/// What the cluster said of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportAnswer {
    /// Accepted, now or before: the worker may forget it.
    Accepted,
    /// Not taken because the worker does not hold these attempts: it is sent again without them.
    NotHeld(Vec<AttemptId>),
    /// Not taken because an earlier report was not: it is sent again after that one.
    TooEarly,
    /// Not taken because the worker is unknown or was announced anew: it announces itself.
    Unregistered,
}
