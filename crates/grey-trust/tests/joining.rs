//! What a join is bound to, what a request for a certificate can ask for, and what is written of secrets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_core::{NodeRole, Tier};
use grey_proof::{Certificate, Digest, Role, SigningKey};
use grey_trust::join::{
    CHALLENGE_MS, Evidence, JoinMessage, OpenChallenge, Policy, RejectCode, appraise, binding,
    software_evidence,
};
use grey_trust::{
    ApiToken, Authority, JoinToken, TlsIdentity, certificate_request, needs_rekey, peer_of, tls_key_of_seed,
};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
};

const NOW_MS: u64 = 1_790_000_000_000;

fn authority() -> Authority {
    Authority::found(&SigningKey::from_seed([1; 32]), [2; 32], NOW_MS).unwrap()
}

#[test]
fn evidence_holds_for_its_node_connection_and_challenge_only() {
    let key = SigningKey::from_seed([7; 32]);
    let (cluster, node, tls) = (Digest::of(b"c"), key.verifying_key().id(), Digest::of(b"tls"));
    let (nonce, exporter) = ([1; 32], [2; 32]);
    let bound = binding(&cluster, &nonce, &node, &tls, &exporter);
    let measurement = Digest::of(b"binary");
    let evidence = software_evidence(&key, measurement, "1".to_owned(), &bound);
    let public = key.verifying_key().to_bytes();
    let any = Policy::default();
    assert_eq!(appraise(&any, &evidence, &bound, &public).unwrap().tier, Tier::Software);
    let (other, elsewhere) = (Digest::of(b"x"), [9; 32]);
    for (what, bound) in [
        ("another cluster", binding(&other, &nonce, &node, &tls, &exporter)),
        ("another challenge", binding(&cluster, &elsewhere, &node, &tls, &exporter)),
        ("another node", binding(&cluster, &nonce, &other, &tls, &exporter)),
        ("another TLS key", binding(&cluster, &nonce, &node, &other, &exporter)),
        ("another connection", binding(&cluster, &nonce, &node, &tls, &elsewhere)),
    ] {
        assert_eq!(appraise(&any, &evidence, &bound, &public), Err(RejectCode::NotBound), "{what}");
    }
    let thief = SigningKey::from_seed([8; 32]).verifying_key().to_bytes();
    assert_eq!(appraise(&any, &evidence, &bound, &thief), Err(RejectCode::NotBound));
    assert_eq!(appraise(&any, &Evidence::None, &bound, &public), Err(RejectCode::NoEvidence));
    let strict = |allowed| Policy { allowed_measurements: Some(allowed) };
    assert_eq!(appraise(&strict(vec![other]), &evidence, &bound, &public), Err(RejectCode::Measurement));
    assert!(appraise(&strict(vec![measurement]), &evidence, &bound, &public).is_ok());
    let Evidence::Software { measurement, signature, .. } = evidence else { panic!("it is software's") };
    let renamed = Evidence::Software { measurement, version: "2".to_owned(), signature: signature.clone() };
    assert_eq!(appraise(&any, &renamed, &bound, &public), Err(RejectCode::NotBound));
    let endless = Evidence::Software { measurement, version: "v".repeat(129), signature };
    assert_eq!(appraise(&any, &endless, &bound, &public), Err(RejectCode::Malformed));
}

#[test]
fn a_challenge_is_answered_once_in_time_and_by_whom_it_was_for() {
    let key = SigningKey::from_seed([7; 32]);
    let (cluster, tls, nonce, exporter) = (Digest::of(b"c"), Digest::of(b"tls"), [1; 32], [2; 32]);
    let public = key.verifying_key().to_bytes();
    let open = |nonce, public| OpenChallenge::new(&cluster, nonce, public, &tls, &exporter, 5_000);
    let bound = binding(&cluster, &nonce, &key.verifying_key().id(), &tls, &exporter);
    let evidence = software_evidence(&key, Digest::of(b"binary"), "1".to_owned(), &bound);
    let any = Policy::default();
    assert_eq!(open(nonce, public).message().nonce, nonce);
    assert!(open(nonce, public).answer(&any, &evidence, 5_000 + CHALLENGE_MS).is_ok());
    let late = open(nonce, public).answer(&any, &evidence, 5_001 + CHALLENGE_MS);
    assert_eq!(late, Err(RejectCode::Expired));
    assert_eq!(open([3; 32], public).answer(&any, &evidence, 5_000), Err(RejectCode::NotBound));
    let other = SigningKey::from_seed([8; 32]).verifying_key().to_bytes();
    assert_eq!(open(nonce, other).answer(&any, &evidence, 5_000), Err(RejectCode::NotBound));
    assert_eq!(open(nonce, [0; 32]).answer(&any, &evidence, 5_000), Err(RejectCode::Malformed));
    assert_eq!(open(nonce, public).answer(&any, &Evidence::None, 5_000), Err(RejectCode::NoEvidence));
}

#[test]
fn an_issuing_key_is_followed_by_another_before_it_ends() {
    let (end_ms, day_ms) = (authority().not_after_ms(), 24 * 3_600 * 1_000);
    assert!(!needs_rekey(end_ms, NOW_MS));
    assert!(!needs_rekey(end_ms, end_ms - 31 * day_ms));
    assert!(needs_rekey(end_ms, end_ms - 30 * day_ms));
}

#[test]
fn of_a_request_only_the_key_counts_and_its_owner_must_have_signed_it() {
    let (authority, node) = (authority(), Digest::of(b"node"));
    let issue = |request: &[u8]| authority.issue_tls(request, &node, NodeRole::Worker, &[], 5, NOW_MS);
    let honest = issue(&certificate_request(&[3; 32]).unwrap()).unwrap();
    assert_eq!(peer_of(&honest[0]).unwrap().tls_key, tls_key_of_seed(&[3; 32]));
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut greedy = CertificateParams::default();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.subject_alt_names = vec![
        SanType::URI("grey://another/server/node".try_into().unwrap()),
        SanType::DnsName("example.com".try_into().unwrap()),
    ];
    let request = greedy.serialize_request(&key).unwrap();
    let leaf = &issue(request.der()).unwrap()[0];
    let peer = peer_of(leaf).unwrap();
    assert_eq!((peer.role, peer.node, peer.cluster), (NodeRole::Worker, node, authority.cluster()));
    let text = String::from_utf8_lossy(leaf).into_owned();
    assert!(!text.contains("example.com") && !text.contains("another"));
    let mut forged = request.der().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert!(issue(&forged).is_err(), "nobody proved that the key is theirs");
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(issue(CertificateParams::default().serialize_request(&other).unwrap().der()).is_err());
    assert!(issue(b"").is_err());
}

#[test]
fn an_authority_reads_back_for_its_cluster_only_and_issues_what_proofs_accept() {
    let authority = authority();
    let bytes = authority.encode();
    let again = Authority::decode(&bytes, &authority.cluster()).unwrap();
    let root = SigningKey::from_seed([1; 32]).verifying_key();
    assert!(Authority::decode(&bytes, &Digest::of(b"another")).is_err());
    assert!(!bytes.windows(32).any(|window| window == [1; 32]), "the root's key is not in it");
    let key = SigningKey::from_seed([9; 32]).verifying_key();
    let envelope = again.issue_proof(&key, NodeRole::Worker, Tier::Software, 3, NOW_MS).unwrap();
    let opened = Certificate::open_issued(&envelope, [&root], &[again.issuer().clone()]).unwrap();
    assert_eq!((opened.role, opened.node_id, opened.tier.as_str()), (Role::Worker, key.id(), "software"));
    assert!(Certificate::open_issued(&envelope, [&root], &[]).is_err());
    assert!(authority.root_pem().starts_with("-----BEGIN CERTIFICATE-----\n"));
}

#[test]
fn tokens_are_written_and_read_back_and_show_nothing_by_accident() {
    let join = JoinToken::new(Digest::of(b"c"), [5; 32]);
    let api = ApiToken::new([6; 32]);
    let read: JoinToken = format!(" {}\n", join.reveal()).parse().unwrap();
    assert!(read == join && read.cluster() == Digest::of(b"c") && read.secret() == [5; 32]);
    assert_eq!(api.reveal().parse::<ApiToken>().unwrap().id(), Digest::of(&[6; 32]));
    assert!(!format!("{join:?}{api:?}").contains(&join.reveal()[12..]));
    for wrong in ["", "grey-join-1.", "grey-join-1.!!", &api.reveal(), &join.reveal()[..40]] {
        assert!(wrong.parse::<JoinToken>().is_err(), "{wrong}");
        assert!(wrong.parse::<ApiToken>().is_err() || wrong.starts_with("grey-token"), "{wrong}");
    }
}

proptest! {
    #[test]
    fn whatever_bytes_come_reading_them_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        drop((text.parse::<JoinToken>(), text.parse::<ApiToken>()));
        drop((Authority::decode(&bytes, &Digest::ZERO), TlsIdentity::decode([1; 32], &bytes), peer_of(&bytes)));
        if let Ok(message) = JoinMessage::decode(&bytes) {
            prop_assert_eq!(JoinMessage::decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn a_damaged_authority_is_refused_or_the_same(place in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let authority = authority();
        let mut bytes = authority.encode().to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        if let Ok(read) = Authority::decode(&bytes, &authority.cluster()) {
            prop_assert_eq!(read.cluster(), authority.cluster());
        }
    }
}
