//! Whoever signs is a server that was asked, of this cluster, and signs what was asked for; anybody else is as good as absent.

use futures_util::stream;
use grey_core::{NodeRole, NodeStanding, Tier};
use grey_proof::{SigningKey, leaf_hash};
use grey_trust::Authority;

use super::*;

fn root() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn authority() -> Authority {
    Authority::found(&root(), [9; 32], 1).unwrap()
}

fn trusted() -> Trusted {
    Trusted {
        cluster: root().verifying_key().id(),
        roots: vec![root().verifying_key()],
        issuers: vec![authority().issuer().clone()],
    }
}

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed([number; 32])
}

fn row(number: u8) -> NodeRow {
    let key = key(number).verifying_key();
    NodeRow {
        node: key.id(),
        public_key: key.to_bytes(),
        tls_key: Digest([number; 32]),
        name: String::new(),
        role: NodeRole::Server,
        server: Some(u64::from(number)),
        address: String::new(),
        tier: Tier::Software,
        serial: 1,
        evidence: Digest::ZERO,
        certificates: Vec::new(),
        admitted_wall_ms: 0,
        standing: NodeStanding::Admitted,
        cordoned: false,
    }
}

fn certificate(number: u8, role: NodeRole) -> Envelope {
    authority().issue_proof(&key(number).verifying_key(), role, Tier::Software, 1, 1).unwrap()
}

/// A log, the checkpoint as server 2 signed it, and its certificate.
fn begun() -> (LogTree, SignedCheckpoint, Vec<Envelope>) {
    let mut log = LogTree::default();
    log.append(leaf_hash(b"a"));
    log.append(leaf_hash(b"b"));
    let mut signed = SignedCheckpoint::new(trusted().cluster, log.size(), log.root());
    signed.sign(&key(2));
    (log, signed, vec![certificate(2, NodeRole::Server)])
}

fn reply(certificate: &Envelope, signature: Vec<u8>) -> CosignReply {
    let certificate = serde_json::to_vec(certificate).unwrap();
    CosignReply { signature: signature.into(), certificate: certificate.into() }
}

/// What a server answers that does as it is asked.
fn good(number: u8) -> (NodeRow, io::Result<CosignReply>) {
    let signature = begun().1.signature(&key(number));
    (row(number), Ok(reply(&certificate(number, NodeRole::Server), signature)))
}

async fn gathered(
    answers: impl Stream<Item = (NodeRow, io::Result<CosignReply>)> + Unpin,
    quorum: usize,
) -> (SignedCheckpoint, Vec<Envelope>) {
    let (_, mut signed, mut servers) = begun();
    gather(answers, &trusted(), (quorum, BTreeSet::from([3, 4])), &mut signed, &mut servers).await;
    (signed, servers)
}

#[tokio::test]
async fn whoever_signs_as_asked_is_in_the_proof_once() {
    let (signed, servers) = gathered(stream::iter([good(3), good(4), good(3)]), 2).await;
    assert_eq!((signed.signature_count(), servers.len()), (3, 3));
    for number in 2..=4 {
        assert_eq!(signed.verify(&key(number).verifying_key()), Ok(()));
        assert!(servers.contains(&certificate(number, NodeRole::Server)));
    }
}

#[tokio::test]
async fn what_a_verifier_would_refuse_is_left_out_and_spoils_nothing() {
    let signed = begun().1;
    let certified = certificate(3, NodeRole::Server);
    let fork = SignedCheckpoint::new(signed.cluster, signed.size, Digest::of(b"fork"));
    let mut changed = signed.signature(&key(3));
    changed[7] ^= 1;
    let foreign = Authority::found(&key(50), [51; 32], 1).unwrap();
    let foreign =
        foreign.issue_proof(&key(3).verifying_key(), NodeRole::Server, Tier::Software, 1, 1).unwrap();
    let unread = CosignReply { certificate: b"{".to_vec().into(), signature: Vec::new().into() };
    for (what, answer) in [
        ("absent", Err(io::Error::other("connection refused"))),
        // tonic's own answer to a call that a service does not have.
        ("of an earlier version", Err(io::Error::other(tonic::Status::unimplemented("").to_string()))),
        ("a fork", Ok(reply(&certified, fork.signature(&key(3))))),
        ("changed", Ok(reply(&certified, changed))),
        ("of nobody", Ok(reply(&certified, Vec::new()))),
        ("another server's", Ok(reply(&certificate(4, NodeRole::Server), signed.signature(&key(4))))),
        ("a worker's", Ok(reply(&certificate(3, NodeRole::Worker), signed.signature(&key(3))))),
        ("another cluster's", Ok(reply(&foreign, signed.signature(&key(3))))),
        ("without a certificate", Ok(unread)),
    ] {
        let (signed, servers) = gathered(stream::iter([(row(3), answer), good(4)]), 3).await;
        assert_eq!((signed.signature_count(), servers.len()), (2, 2), "{what}");
        assert_eq!(signed.verify(&key(4).verifying_key()), Ok(()), "{what}");
    }
}

#[tokio::test]
async fn one_that_does_not_answer_is_waited_for_briefly_once_a_quorum_has_signed() {
    for (quorum, least, most) in
        [(2, REST_WITHIN, COSIGN_WITHIN), (3, COSIGN_WITHIN, COSIGN_WITHIN + COSIGN_WITHIN)]
    {
        let begun = Instant::now();
        let answers = stream::iter([good(3)]).chain(stream::pending());
        let (signed, _) = gathered(answers, quorum).await;
        assert_eq!(signed.signature_count(), 2);
        let took = begun.elapsed();
        assert!((least..most).contains(&took), "with a quorum of {quorum} it took {took:?}");
    }
}

#[test]
fn a_checkpoint_is_used_again_for_what_it_covers_while_it_is_fresh_or_says_all_there_is() {
    let (log, signed, servers) = begun();
    let mut longer = log.clone();
    longer.append(leaf_hash(b"c"));
    let now = Instant::now();
    for voters in [1, 3] {
        let made = checkpoint(&log, &signed, servers.clone(), trusted().issuers, voters);
        assert_eq!(made.issuers, trusted().issuers);
        let is_whole = voters == 1;
        let after = |age: Duration| now + age + Duration::from_millis(100);
        assert!(made.serves(&log, 1, now) && made.serves(&longer, 1, now));
        assert!(!made.serves(&longer, 2, now), "what was added since is not in it");
        assert_eq!(made.serves(&log, 1, after(FRESH)), is_whole, "who was absent is asked again");
        assert!(!made.serves(&longer, 1, after(FRESH)));
        assert!(!made.serves(&log, 1, after(KEPT)), "certificates are renewed");
    }
}

#[tokio::test]
async fn those_who_wait_while_somebody_asks_share_one_question_between_them() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (last, log) = (Arc::new(Last::default()), Arc::new(std::sync::Mutex::new(LogTree::default())));
    let grow = |log: &std::sync::Mutex<LogTree>| log.lock().unwrap().append(leaf_hash(b"more"));
    let (asked, goes_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let begin = |position: u64| {
        let (last, log, asked, goes_on) = (last.clone(), log.clone(), asked.clone(), goes_on.clone());
        async move {
            let current = || async { Ok(log.lock().unwrap().clone()) };
            let ask = |log: LogTree| async move {
                asked.fetch_add(1, Ordering::SeqCst);
                goes_on.acquire().await.unwrap().forget();
                let (_, signed, servers) = begun();
                Ok(checkpoint(&log, &signed, servers, trusted().issuers, 3))
            };
            last.checkpoint(position, current, ask).await.unwrap().size
        }
    };
    // Given: one asks, and what others need comes into the log while it waits for the answer.
    grow(&log);
    let mut first = Box::pin(begin(0));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut waiting = Vec::new();
    for position in 1..=4 {
        grow(&log);
        let mut next = Box::pin(begin(position));
        assert!(futures_util::poll!(&mut next).is_pending());
        waiting.push(next);
    }
    goes_on.add_permits(2);
    assert_eq!(first.await, 1);
    // Then: whoever is next asks for all of them.
    for next in waiting {
        assert_eq!(next.await, 5);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn a_server_that_did_not_answer_goes_on_being_asked_and_is_not_waited_for() {
    let silent = Silent::default();
    let begin = |voters: &[u64]| {
        let Round { asked, awaited } = silent.begin(voters, 1);
        (asked.into_iter().collect::<Vec<_>>(), awaited.into_iter().collect::<Vec<_>>())
    };
    let three = [1, 2, 3];
    assert_eq!(begin(&three), (vec![2, 3], vec![2, 3]));
    // Whoever refuses does so at once, and is waited for.
    silent.end(2, true, false);
    assert_eq!(begin(&three), (vec![2, 3], vec![2, 3]));
    silent.end(3, false, false);
    assert_eq!(begin(&three), (vec![2, 3], vec![2]));
    assert_eq!(begin(&three), (vec![2], vec![2]), "it is being asked");
    silent.end(3, false, false);
    assert_eq!(begin(&three), (vec![2, 3], vec![2]));
    // Both are silent: a proof of a quorum needs one of them.
    silent.end(2, false, false);
    assert_eq!(begin(&three), (vec![2, 3], vec![]));
    assert_eq!(begin(&three), (vec![2, 3], vec![]));
    // Whoever signs is back.
    silent.end(3, true, true);
    silent.end(2, true, false);
    assert_eq!(begin(&three), (vec![2, 3], vec![3]));
    // Whoever left and comes back is a new one.
    assert_eq!(begin(&[1, 3]), (vec![3], vec![3]));
    assert_eq!(begin(&three), (vec![2, 3], vec![2, 3]));
}

#[tokio::test]
async fn one_that_is_silent_is_waited_for_only_where_without_it_there_is_no_quorum() {
    let begun_at = Instant::now();
    for (answers, quorum, signatures) in [(vec![good(3)], 2, 2), (vec![good(3), good(4)], 3, 3)] {
        let (_, mut signed, mut servers) = begun();
        let answers = stream::iter(answers).chain(stream::pending());
        let waited = (quorum, BTreeSet::from([3]));
        gather(answers, &trusted(), waited, &mut signed, &mut servers).await;
        assert_eq!(signed.signature_count(), signatures);
    }
    assert!(begun_at.elapsed() < REST_WITHIN);
}
