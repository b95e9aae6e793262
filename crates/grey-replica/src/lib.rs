//! One node of the control plane: the Raft engine around the core. The only crate that names the engine.
//!
//! A [`Replica`] is a state machine: calls go in, [`Output`]s come out, and making things durable is an output like any
//! other. It owns no thread, clock, disk or socket, so a simulator can run a cluster of them. A [`Server`] is a replica with what
//! it does for workers while it leads.

mod door;
mod error;
mod guard;
mod installation;
mod level;
mod links;
mod members;
#[cfg(feature = "mutants")]
mod mutants;
mod ports;
mod recall;
mod reconfigure;
mod replica;
mod server;
mod watch;
mod window;

pub use door::{DoorOptions, DoorRefusal};
pub use error::{NoSuccessor, ReplicaError};
pub use installation::Installation;
pub use links::{LinkOptions, Parcel, Peer, PeerMessage};
pub use ports::{
    Checkpoint, HardState, LogEntry, LogEntryKind, LogReader, Membership, PersistBatch, ReadError, Recovered,
    RowChange,
};
pub use reconfigure::MemberChange;
pub use replica::{Options, Output, Replica, TICK_MS, Ticket};
pub use server::{Server, ServerOptions, ServerOutput};
pub use watch::WatchOptions;
