//! How one issuing key follows another under the same root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use grey_core::{NodeRole, Tier};
use grey_proof::{Certificate, Digest, Envelope, SigningKey};
use grey_trust::{
    Authority, CertifiedIssuer, IdentityHandle, TlsIdentity, Trust, TrustError, certificate_request,
    certify_issuer, client_config, server_config,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

const DAY_MS: u64 = 24 * 3_600 * 1_000;
const NEXT_SEED: [u8; 32] = [3; 32];

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn root() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

/// An authority that is two months old.
fn first() -> Authority {
    Authority::found(&root(), [2; 32], now_ms() - 60 * DAY_MS).unwrap()
}

fn certified_at(at_ms: u64) -> CertifiedIssuer {
    let key = SigningKey::from_seed(NEXT_SEED).verifying_key();
    certify_issuer(&root(), first().root(), &key, 2, at_ms).unwrap()
}

fn next_with(seed: [u8; 32], certified: CertifiedIssuer) -> Result<Authority, TrustError> {
    let first = first();
    Authority::next(&first.cluster(), seed, first.root().to_vec(), certified, now_ms())
}

fn identity(authority: &Authority, seed: u8, role: NodeRole) -> TlsIdentity {
    let request = certificate_request(&[seed; 32]).unwrap();
    let chain = authority.issue_tls(&request, &Digest::of(&[seed]), role, &[], seed.into(), now_ms());
    TlsIdentity::new([seed; 32], chain.unwrap(), now_ms())
}

/// Whether a node of one authority and a server of another meet.
fn meet(client: &Authority, server: &Authority) -> bool {
    let trust = Trust::of_cluster(first().cluster());
    let client = IdentityHandle::new(&identity(client, 10, NodeRole::Worker)).unwrap();
    let server = IdentityHandle::new(&identity(server, 20, NodeRole::Server)).unwrap();
    let client = client_config(&trust, Some(&client)).unwrap();
    let server = server_config(&trust, &server).unwrap();
    let name = ServerName::try_from("nobody.asks").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..16 {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut up).unwrap();
        }
        server.read_tls(&mut up.as_slice()).unwrap();
        if server.process_new_packets().is_err() {
            return false;
        }
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        client.read_tls(&mut down.as_slice()).unwrap();
        if client.process_new_packets().is_err() {
            return false;
        }
    }
    !client.is_handshaking() && !server.is_handshaking()
}

#[test]
fn nodes_of_the_next_key_and_of_the_one_before_meet_under_the_same_root() {
    let (first, next) = (first(), next_with(NEXT_SEED, certified_at(now_ms())).unwrap());
    assert_eq!(first.root_pem(), next.root_pem());
    assert_eq!((first.certificate().serial, next.certificate().serial), (1, 2));
    assert!(next.not_after_ms() > now_ms() + 89 * DAY_MS);
    for (client, server) in [(&first, &next), (&next, &first), (&next, &next)] {
        assert!(meet(client, server));
    }
    let again = Authority::decode(&next.encode(), &next.cluster()).unwrap();
    assert_eq!(again.certificate(), next.certificate());
}

#[test]
fn certificates_of_proof_keys_hold_under_the_key_that_issued_them_also_where_clocks_differ() {
    // The machine of the root key is almost an hour ahead of the server.
    let ahead = certified_at(now_ms() + 59 * 60 * 1_000);
    let (first, next) = (first(), next_with(NEXT_SEED, ahead).unwrap());
    let key = SigningKey::from_seed([9; 32]).verifying_key();
    let issue = |authority: &Authority| {
        authority.issue_proof(&key, NodeRole::Worker, Tier::Software, 7, now_ms()).unwrap()
    };
    let issuers = [first.issuer().clone(), next.issuer().clone()];
    for authority in [&first, &next] {
        let envelope = issue(authority);
        assert!(Certificate::open_issued(&envelope, [&root().verifying_key()], &issuers).is_ok());
        assert!(authority.vouches_for(&envelope, Tier::Software));
        assert!(!authority.vouches_for(&envelope, Tier::Hardware), "a node of another tier gets another one");
    }
    assert!(!next.vouches_for(&issue(&first), Tier::Software));
}

#[test]
fn a_foreign_root_key_certifies_nothing_here() {
    let (stranger, key) = (SigningKey::from_seed([7; 32]), SigningKey::from_seed(NEXT_SEED).verifying_key());
    let refused = certify_issuer(&stranger, first().root(), &key, 2, now_ms()).unwrap_err();
    assert!(refused.to_string().contains("not of this one; nothing was changed"), "{refused}");
    // Nor does it where somebody certifies with it all the same.
    let other = Authority::found(&stranger, [8; 32], now_ms()).unwrap();
    let foreign = certify_issuer(&stranger, other.root(), &key, 2, now_ms()).unwrap();
    assert!(matches!(next_with(NEXT_SEED, foreign.clone()), Err(TrustError::Issuer(_))));
    let right = certified_at(now_ms());
    for mixed in [
        CertifiedIssuer { issuing: foreign.issuing.clone(), ..right.clone() },
        CertifiedIssuer { issuer: foreign.issuer, ..right },
    ] {
        assert!(matches!(next_with(NEXT_SEED, mixed), Err(TrustError::Issuer(_))));
    }
}

#[test]
fn a_key_that_nobody_asked_for_or_that_is_no_issuer_is_refused() {
    assert!(matches!(next_with([4; 32], certified_at(now_ms())), Err(TrustError::Issuer(_))));
    let (key, right) = (SigningKey::from_seed(NEXT_SEED).verifying_key(), certified_at(now_ms()));
    let mut server = Certificate::open(&right.issuer, [&root().verifying_key()]).unwrap();
    server.role = grey_proof::Role::Server;
    let issuer: Envelope = server.sign(&root()).unwrap();
    assert!(matches!(
        next_with(NEXT_SEED, CertifiedIssuer { issuer, ..right.clone() }),
        Err(TrustError::Issuer(_))
    ));
    // A node's certificate of that key signs nobody.
    let request = certificate_request(&NEXT_SEED).unwrap();
    let chain = first().issue_tls(&request, &key.id(), NodeRole::Server, &[], 2, now_ms()).unwrap();
    let leaf = CertifiedIssuer { issuing: chain[0].clone(), ..right };
    assert!(matches!(next_with(NEXT_SEED, leaf), Err(TrustError::Issuer(_))));
}

#[test]
fn a_key_whose_dates_are_of_no_use_is_refused() {
    for (at_ms, said) in [
        (now_ms() - 91 * DAY_MS, "has expired"),
        (now_ms() - 61 * DAY_MS, "ends too soon"),
        (now_ms() + DAY_MS, "begins in the future"),
    ] {
        let refused = next_with(NEXT_SEED, certified_at(at_ms)).err().unwrap().to_string();
        assert!(refused.contains(said), "{refused}");
    }
    // Both of its certificates must hold for as long.
    let (earlier, right) = (certified_at(now_ms() - 50 * DAY_MS), certified_at(now_ms()));
    let mixed = CertifiedIssuer { issuing: earlier.issuing, issuer: right.issuer };
    assert!(matches!(next_with(NEXT_SEED, mixed), Err(TrustError::Issuer(_))));
}
