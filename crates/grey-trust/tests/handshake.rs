//! Who may speak with whom over TLS, with both ends real and the network in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use grey_core::NodeRole;
use grey_proof::{Digest, SigningKey};
use grey_trust::{
    Authority, IdentityHandle, JOIN_EXPORTER_LABEL, TlsIdentity, Trust, certificate_request, client_config,
    peer_of, server_config, tls_key, tls_key_of_seed,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

const HOUR_MS: u64 = 3_600 * 1_000;

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

struct House {
    authority: Authority,
    trust: Trust,
}

impl House {
    fn new(seed: u8) -> House {
        let authority =
            Authority::found(&SigningKey::from_seed([seed; 32]), [seed + 1; 32], now_ms()).unwrap();
        let trust = Trust::of_cluster(authority.cluster());
        House { authority, trust }
    }

    fn identity(&self, seed: u8, role: NodeRole, at_ms: u64) -> TlsIdentity {
        let node = Digest::of(&[seed]);
        let request = certificate_request(&[seed; 32]).unwrap();
        let addresses = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let chain =
            self.authority.issue_tls(&request, &node, role, &addresses, u64::from(seed), at_ms).unwrap();
        TlsIdentity::new([seed; 32], chain, at_ms)
    }

    fn server(&self, seed: u8, at_ms: u64) -> ServerConfig {
        let identity = IdentityHandle::new(&self.identity(seed, NodeRole::Server, at_ms)).unwrap();
        server_config(&self.trust, &identity).unwrap()
    }

    fn client(&self, seed: u8, role: NodeRole, at_ms: u64) -> ClientConfig {
        let identity = IdentityHandle::new(&self.identity(seed, role, at_ms)).unwrap();
        client_config(&self.trust, Some(&identity)).unwrap()
    }
}

/// Carries bytes between both ends until neither has any.
fn shake(
    client: ClientConfig,
    server: ServerConfig,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let name = ServerName::try_from("nobody.asks").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..16 {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        let mut up = up.as_slice();
        while !up.is_empty() {
            server.read_tls(&mut up).unwrap();
            server.process_new_packets()?;
        }
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        let mut down = down.as_slice();
        while !down.is_empty() {
            client.read_tls(&mut down).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn shown(connection: &ServerConnection) -> Option<Digest> {
    connection.peer_certificates().map(|chain| tls_key(&chain[0]).unwrap())
}

#[test]
fn nodes_of_a_cluster_meet_and_know_each_other_by_their_keys() {
    let house = House::new(1);
    let (client, server) =
        shake(house.client(10, NodeRole::Worker, now_ms()), house.server(20, now_ms())).unwrap();
    assert_eq!(shown(&server), Some(tls_key_of_seed(&[10; 32])));
    let leaf = &client.peer_certificates().unwrap()[0];
    let peer = peer_of(leaf).unwrap();
    assert_eq!(
        (peer.cluster, peer.role, peer.node),
        (house.authority.cluster(), NodeRole::Server, Digest::of(&[20]))
    );
    let export = |value: Result<[u8; 32], rustls::Error>| value.unwrap();
    let here = export(client.export_keying_material([0; 32], JOIN_EXPORTER_LABEL, None));
    let there = export(server.export_keying_material([0; 32], JOIN_EXPORTER_LABEL, None));
    assert_eq!(here, there);
    let (client, _) =
        shake(house.client(10, NodeRole::Worker, now_ms()), house.server(20, now_ms())).unwrap();
    assert_ne!(export(client.export_keying_material([0; 32], JOIN_EXPORTER_LABEL, None)), here);
}

#[test]
fn who_shows_no_certificate_is_nobody() {
    let house = House::new(1);
    let client = client_config(&Trust::of_cluster(house.authority.cluster()), None).unwrap();
    let (_, server) = shake(client, house.server(20, now_ms())).unwrap();
    assert_eq!(shown(&server), None);
}

#[test]
fn another_cluster_s_nodes_are_refused_on_both_sides() {
    let (house, other) = (House::new(1), House::new(50));
    assert!(shake(other.client(10, NodeRole::Worker, now_ms()), house.server(20, now_ms())).is_err());
    let trusting = client_config(&Trust::of_cluster(Digest::of(b"another")), None).unwrap();
    assert!(shake(trusting, house.server(20, now_ms())).is_err());
}

#[test]
fn a_worker_is_no_server() {
    let house = House::new(1);
    let identity = IdentityHandle::new(&house.identity(20, NodeRole::Worker, now_ms())).unwrap();
    let server = server_config(&house.trust, &identity).unwrap();
    assert!(shake(house.client(10, NodeRole::Server, now_ms()), server).is_err());
}

#[test]
fn what_has_expired_is_refused_unless_the_log_has_its_key() {
    let house = House::new(1);
    let old = now_ms() - 3 * HOUR_MS;
    assert!(shake(house.client(10, NodeRole::Server, old), house.server(20, now_ms())).is_err());
    assert!(shake(house.client(10, NodeRole::Server, now_ms()), house.server(20, old)).is_err());
    assert!(
        shake(house.client(10, NodeRole::Server, now_ms() + HOUR_MS), house.server(20, now_ms())).is_err()
    );
    house.trust.pin([tls_key_of_seed(&[10; 32]), tls_key_of_seed(&[20; 32])]);
    shake(house.client(10, NodeRole::Server, old), house.server(20, old)).unwrap();
    house.trust.pin([tls_key_of_seed(&[20; 32])]);
    assert!(shake(house.client(10, NodeRole::Server, old), house.server(20, old)).is_err());
}

#[test]
fn a_pinned_key_needs_its_owner() {
    let house = House::new(1);
    let old = now_ms() - 3 * HOUR_MS;
    house.trust.pin([tls_key_of_seed(&[10; 32])]);
    // The chain of one node shown with the key of another.
    let stolen = house.identity(10, NodeRole::Server, old).encode();
    let stolen = TlsIdentity::decode([11; 32], &stolen).unwrap();
    let refused = IdentityHandle::new(&stolen).and_then(|handle| client_config(&house.trust, Some(&handle)));
    if let Ok(client) = refused {
        assert!(shake(client, house.server(20, now_ms())).is_err());
    }
}

#[test]
fn no_connection_is_resumed() {
    let house = House::new(1);
    let (client, server) =
        (Arc::new(house.client(10, NodeRole::Worker, now_ms())), Arc::new(house.server(20, now_ms())));
    for _ in 0..2 {
        let (client, _) = shake((*client).clone(), (*server).clone()).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn a_renewed_identity_is_shown_from_then_on() {
    let house = House::new(1);
    let first = house.identity(10, NodeRole::Worker, now_ms());
    assert!(!first.needs_renewal(now_ms()));
    assert!(first.needs_renewal(now_ms() + HOUR_MS / 2) && first.needs_renewal(now_ms() - HOUR_MS));
    let handle = IdentityHandle::new(&first).unwrap();
    let client = client_config(&house.trust, Some(&handle)).unwrap();
    handle.replace(&house.identity(11, NodeRole::Worker, now_ms())).unwrap();
    let (_, server) = shake(client, house.server(20, now_ms())).unwrap();
    assert_eq!(shown(&server), Some(tls_key_of_seed(&[11; 32])));
}
