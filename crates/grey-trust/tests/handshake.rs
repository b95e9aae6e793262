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
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SanType};
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
        let root = SigningKey::from_seed([seed; 32]);
        let authority = Authority::found(&root, [seed + 1; 32], now_ms() - 24 * HOUR_MS).unwrap();
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
    // Also when a clock was as far off as can be while they were issued.
    for odd in [0, now_ms() + 400 * 24 * HOUR_MS] {
        shake(house.client(10, NodeRole::Server, odd), house.server(20, odd)).unwrap();
    }
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
    let client = client_config(&house.trust, Some(&IdentityHandle::new(&stolen).unwrap())).unwrap();
    assert!(shake(client, house.server(20, now_ms())).is_err());
}

#[test]
fn a_pinned_key_cannot_say_itself_whose_it_is() {
    let house = House::new(1);
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let seed: [u8; 32] = key.serialize_der()[16..48].try_into().unwrap();
    house.trust.pin([tls_key_of_seed(&seed)]);
    let request = certificate_request(&seed).unwrap();
    let issue = |at_ms| {
        house.authority.issue_tls(&request, &Digest::of(b"n"), NodeRole::Server, &[], 1, at_ms).unwrap()
    };
    let client = |chain| {
        let handle = IdentityHandle::new(&TlsIdentity::new(seed, chain, now_ms())).unwrap();
        client_config(&house.trust, Some(&handle)).unwrap()
    };
    // What the cluster issued holds whatever its dates; what the key signed for itself does not, whatever stands behind it.
    let mut chain = issue(now_ms() - 3 * HOUR_MS);
    shake(client(chain.clone()), house.server(20, now_ms())).unwrap();
    let mut params = CertificateParams::default();
    let name = format!("grey://{}/server/{}", house.authority.cluster(), Digest::of(b"another"));
    params.subject_alt_names = vec![SanType::URI(name.as_str().try_into().unwrap())];
    chain[0] = params.self_signed(&key).unwrap().der().to_vec();
    assert_eq!(tls_key(&chain[0]).unwrap(), tls_key_of_seed(&seed));
    assert!(shake(client(chain), house.server(20, now_ms())).is_err());
}

#[test]
fn an_older_version_of_tls_is_refused() {
    let house = House::new(1);
    let mut server = ServerConnection::new(Arc::new(house.server(20, now_ms()))).unwrap();
    // A hello of TLS 1.2 (RFC 5246, section 7.4.1.2): random, no session, one suite, no compression, and the extensions that say
    // which signatures and groups it knows.
    let extensions = [&[0, 13, 0, 4, 0, 2, 8, 7][..], &[0, 10, 0, 4, 0, 2, 0, 29]].concat();
    let mut body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16]].concat();
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let record = [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat();
    server.read_tls(&mut record.as_slice()).unwrap();
    let refused = server.process_new_packets();
    assert!(matches!(refused, Err(rustls::Error::PeerIncompatible(_))), "{refused:?}");
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
