//! The other ends of a server's connections, as its control thread sees them: what to write to whom, and whom to dial.

use std::collections::{BTreeMap, BTreeSet};

use grey_core::NodeVersion;
use grey_replica::{Parcel, Peer, Server};
use tokio::sync::mpsc::UnboundedSender;

use crate::directory::ServerPlace;
use crate::error::NodeError;

/// What happens to connections, as their tasks tell it.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// There is one now. What is to be written goes into the channel, which the window of the peer's outbox bounds.
    Connected {
        /// With whom.
        peer: Peer,
        /// Which connection: no number is used twice.
        connection: u64,
        /// What to write.
        parcels: UnboundedSender<Parcel>,
    },
    /// A connection ended.
    Disconnected {
        /// With whom.
        peer: Peer,
        /// Which.
        connection: u64,
    },
    /// A server said what it runs.
    Version {
        /// Which.
        server: u64,
        /// What.
        version: NodeVersion,
    },
    /// A server could not be reached.
    Unreachable(u64),
    /// A parcel was written.
    Written {
        /// To whom.
        peer: Peer,
        /// Over which connection.
        connection: u64,
        /// The parcel's number.
        number: u64,
    },
}

struct Connection {
    number: u64,
    parcels: UnboundedSender<Parcel>,
}

/// The connections of a server.
pub(crate) struct Peers {
    own: u64,
    dial: UnboundedSender<ServerPlace>,
    connections: BTreeMap<Peer, Connection>,
    dialling: BTreeSet<u64>,
    /// Servers that spoke to this one.
    heard: BTreeSet<u64>,
    /// Where servers were when this one last started.
    known: BTreeMap<u64, ServerPlace>,
}

impl Peers {
    pub(crate) fn new(own: u64, dial: UnboundedSender<ServerPlace>, known: Vec<ServerPlace>) -> Peers {
        let known = known.into_iter().map(|place| (place.number, place)).collect();
        Peers {
            own,
            dial,
            connections: BTreeMap::new(),
            dialling: BTreeSet::new(),
            heard: BTreeSet::new(),
            known,
        }
    }

    /// Whether a connection is the one that is used with this peer. What an earlier one brought is too late once there is another.
    pub(crate) fn is_present(&self, peer: Peer, connection: u64) -> bool {
        self.connections.get(&peer).is_some_and(|known| known.number == connection)
    }

    /// A server spoke.
    pub(crate) fn heard(&mut self, server: u64) {
        self.heard.insert(server);
    }

    pub(crate) fn event(&mut self, server: &mut Server, event: PeerEvent) -> Result<(), NodeError> {
        match event {
            PeerEvent::Connected { peer, connection, parcels } => {
                if let Peer::Server(number) = peer {
                    self.dialling.remove(&number);
                }
                if self.connections.remove(&peer).is_some() {
                    server.disconnected(peer);
                }
                match server.connected(peer) {
                    Ok(()) => drop(self.connections.insert(peer, Connection { number: connection, parcels })),
                    // The channel is dropped with it, which ends the connection.
                    Err(error) => tracing::warn!(?peer, %error, "a connection is not taken"),
                }
            }
            PeerEvent::Disconnected { peer, connection } => {
                if self.is_present(peer, connection) {
                    self.connections.remove(&peer);
                    server.disconnected(peer);
                }
            }
            PeerEvent::Version { server: number, version } => server.heard_version(number, version),
            PeerEvent::Unreachable(number) => {
                self.dialling.remove(&number);
                server.disconnected(Peer::Server(number));
            }
            PeerEvent::Written { peer, connection, number } => {
                if self.is_present(peer, connection) {
                    server.sent(peer, number);
                }
            }
        }
        Ok(())
    }

    /// Writes what may be written now, and dials servers to which there is no connection.
    pub(crate) fn pump(&mut self, server: &mut Server) {
        let mut broken = Vec::new();
        for peer in server.busy_peers() {
            let Some(connection) = self.connections.get(&peer) else { continue };
            while let Some(parcel) = server.take(peer) {
                let number = parcel.number;
                if connection.parcels.send(parcel).is_err() {
                    server.not_sent(peer, number);
                    broken.push(peer);
                    break;
                }
            }
        }
        for peer in broken {
            self.connections.remove(&peer);
            server.disconnected(peer);
        }
        self.dial(server);
    }

    fn dial(&mut self, server: &mut Server) {
        let membership = server.replica().membership();
        let members = membership.voters.iter().chain(&membership.voters_outgoing).chain(&membership.learners);
        let mut wanted: BTreeSet<u64> = members.copied().collect();
        // A server that has just entered knows itself in no membership yet, and must answer.
        if !wanted.contains(&self.own) {
            wanted.extend(&self.heard);
        }
        wanted.remove(&self.own);
        for number in wanted {
            let peer = Peer::Server(number);
            if self.connections.contains_key(&peer) || self.dialling.contains(&number) {
                continue;
            }
            let Some(place) = self.place(server, number) else { continue };
            if server.may_connect(peer).is_ok() && self.dial.send(place).is_ok() {
                self.dialling.insert(number);
            }
        }
    }

    fn place(&self, server: &Server, number: u64) -> Option<ServerPlace> {
        let row = server.state().node_of_server(number).filter(|row| !row.address.is_empty());
        let place = row.map(|row| ServerPlace { number, address: row.address.clone(), tls_key: row.tls_key });
        place.or_else(|| self.known.get(&number).cloned())
    }
}
