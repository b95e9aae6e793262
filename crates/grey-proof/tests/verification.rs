//! Proofs: what holds is accepted, and what was changed anywhere is refused with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use grey_proof::{
    BUNDLE_TYPE, BundledLeaf, BundledLog, Certificate, Digest, Envelope, Evidence, EvidenceFile,
    ExecutionStatement, LogEntry, LogTree, ProofBundle, ReportHeader, ResultFile, ResultManifest, Role,
    RootClass, RootFile, SignedCheckpoint, SigningKey, inclusion_path, leaf_hash, leaf_salt,
    log_inclusion_path, merkle_root, report_digest, statement_leaf, verify,
};

const NOW_MS: u64 = 1_795_512_600_000;

fn root_key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn certificate(seed: u8, role: Role) -> (SigningKey, Certificate, Envelope) {
    let key = SigningKey::from_seed([seed; 32]);
    let certificate = Certificate {
        cluster: root_key().verifying_key().id(),
        node_id: key.verifying_key().id(),
        role,
        public_key: key.verifying_key(),
        tier: "software".to_owned(),
        serial: u64::from(seed),
        not_before_ms: NOW_MS - 1_000,
        not_after_ms: NOW_MS + 1_000_000,
    };
    let envelope = certificate.sign(&root_key()).unwrap();
    (key, certificate, envelope)
}

fn result() -> ResultManifest {
    ResultManifest {
        outcome_class: "exited".to_owned(),
        exit_code: Some(3),
        stdout_size_bytes: 6,
        stdout_digest: Digest::of(b"hello\n"),
        files: vec![
            ResultFile { path: b"a".to_vec(), executable: true, size_bytes: 1, digest: Digest::of(b"x") },
            ResultFile { path: b"\xff".to_vec(), executable: false, size_bytes: 0, digest: Digest::of(b"") },
        ],
    }
}

/// A proof of the third of five attempts, in the second of three reports of the log.
fn bundle(refused: Vec<u32>) -> ProofBundle {
    let cluster = root_key().verifying_key().id();
    let (worker, worker_certificate, envelope) = certificate(2, Role::Worker);
    let (server, _, server_envelope) = certificate(3, Role::Server);
    let result = result();
    let statement = ExecutionStatement {
        cluster,
        tenant: "default".to_owned(),
        job_id: 1,
        task_id: 2,
        attempt_epoch: 1,
        worker_id: worker_certificate.node_id,
        executor: "process".to_owned(),
        sandbox_level: "pid-namespace".to_owned(),
        tier: "software".to_owned(),
        exec_key: Digest::of(b"exec"),
        result_hash: result.result_hash().unwrap(),
        outcome: result.outcome_class.clone(),
        exit_code: result.exit_code,
        started_at_ms: NOW_MS,
        completed_at_ms: NOW_MS + 5,
        duration_us: 5_000,
        cpu_time_us: 1_000,
        peak_memory_bytes: 4_096,
        usage_source: "rusage".to_owned(),
        certificate: worker_certificate.id().unwrap(),
        assignment_term: 1,
        assignment_index: 4,
    };
    let index = 2u32;
    let salt = leaf_salt(&[9; 32], index);
    let mut bytes = Vec::new();
    statement.encode_v1(&mut bytes).unwrap();
    let mut leaves: Vec<Digest> = (0u8..5).map(|other| Digest::of(&[other])).collect();
    leaves[2] = statement_leaf(&salt, &bytes);
    let report = ReportHeader {
        cluster,
        worker_id: worker_certificate.node_id,
        certificate: worker_certificate.id().unwrap(),
        incarnation: 1,
        sequence: 2,
        leaf_count: 5,
        root: merkle_root(&leaves),
    };
    let signature = report.sign(&worker).unwrap().to_vec();
    let entry =
        LogEntry { report_digest: report_digest(&report, &signature).unwrap(), term: 1, index: 6, refused };
    let (mut tree, mut stored) = (LogTree::default(), Vec::new());
    stored.extend(tree.append(leaf_hash(b"before")));
    stored.extend(tree.append(leaf_hash(&entry.encode_v1().unwrap())));
    stored.extend(tree.append(leaf_hash(b"after")));
    let read = |position: u64| Ok::<_, ()>(stored[position as usize]);
    let path = log_inclusion_path(1, 3, read).unwrap().unwrap();
    let mut checkpoint = SignedCheckpoint::new(cluster, 3, tree.root());
    checkpoint.sign(&server);
    ProofBundle {
        kind: BUNDLE_TYPE.to_owned(),
        statement,
        result,
        leaf: BundledLeaf { index, salt: Digest(salt), path: inclusion_path(&leaves, 2).unwrap() },
        report,
        signature,
        certificate: envelope,
        issuers: Vec::new(),
        log: BundledLog {
            entry,
            position: 1,
            path,
            checkpoint: checkpoint.encode(),
            servers: vec![server_envelope],
        },
    }
}

fn root() -> RootFile {
    RootFile::new(RootClass::Local, &root_key().verifying_key(), 1)
}

fn evidence() -> Evidence {
    let files = result()
        .files
        .into_iter()
        .map(|file| EvidenceFile {
            path: file.path,
            executable: file.executable,
            size_bytes: file.size_bytes,
            digest: file.digest,
        })
        .collect();
    Evidence { stdout: Some((6, Digest::of(b"hello\n"))), files: Some(files), quorum: None }
}

fn refused(bundle: &ProofBundle, root: &RootFile, evidence: &Evidence) -> Vec<&'static str> {
    let verification = verify(bundle, root, evidence);
    verification.checks.into_iter().filter(|check| check.refusal.is_some()).map(|check| check.name).collect()
}

#[test]
fn a_whole_proof_holds_and_says_what_it_leaves_open() {
    let bundle = ProofBundle::decode(&bundle(vec![]).encode()).unwrap();
    let verification = verify(&bundle, &root(), &evidence());
    assert!(verification.holds(), "{verification:#?}");
    assert_eq!(verification.checks.len(), 11);
    assert!(verification.not_checked.iter().any(|sentence| sentence.contains("class local")));

    let verification = verify(&bundle, &root(), &Evidence::default());
    assert!(verification.holds());
    assert!(verification.not_checked.iter().any(|sentence| sentence.contains("--stdout")));
    assert!(verification.not_checked.iter().any(|sentence| sentence.contains("--results")));
}

#[test]
fn a_flipped_bit_anywhere_is_refused_unless_it_only_moves_white_space() {
    let (root, evidence) = (root(), evidence());
    for whole in [bundle(vec![]), issued()] {
        let bytes = whole.encode();
        for position in 0..bytes.len() {
            for bit in [0x01, 0x20] {
                let mut changed = bytes.clone();
                changed[position] ^= bit;
                let Ok(read) = ProofBundle::decode(&changed) else { continue };
                if read == whole {
                    assert!(changed[position].is_ascii_whitespace(), "byte {position} has a second spelling");
                    continue;
                }
                assert!(!verify(&read, &root, &evidence).holds(), "byte {position} may be changed");
            }
        }
    }
}

#[test]
fn another_root_another_signer_and_another_result_are_refused_with_the_reason() {
    let whole = bundle(vec![]);
    let other = RootFile::new(RootClass::Local, &SigningKey::from_seed([8; 32]).verifying_key(), 1);
    assert!(refused(&whole, &other, &evidence()).contains(&"cluster"));
    assert!(refused(&whole, &other, &evidence()).contains(&"certificate"));

    let mut greedy = root();
    greedy.checkpoint_signatures = 2;
    assert_eq!(refused(&whole, &greedy, &evidence()), ["checkpoint"]);

    // A certified server is no worker, and a worker is no server.
    let mut changed = whole.clone();
    changed.certificate = whole.log.servers[0].clone();
    assert!(refused(&changed, &root(), &evidence()).contains(&"certificate"));
    let mut changed = whole.clone();
    changed.log.servers = vec![whole.certificate.clone()];
    assert_eq!(refused(&changed, &root(), &evidence()), ["checkpoint"]);

    // Certificates without a signature of theirs are not even checked, however many there are.
    let mut changed = whole.clone();
    changed.log.servers = vec![whole.log.servers[0].clone(); 2];
    assert_eq!(refused(&changed, &root(), &evidence()), ["checkpoint"]);

    // A valid signature over another report does not carry this statement.
    let (worker, ..) = certificate(2, Role::Worker);
    let mut changed = whole.clone();
    changed.report.sequence += 1;
    changed.signature = changed.report.sign(&worker).unwrap().to_vec();
    assert_eq!(refused(&changed, &root(), &evidence()), ["acceptance"]);

    for (evidence, name) in [
        (Evidence { stdout: Some((6, Digest::of(b"hullo\n"))), ..Evidence::default() }, "stdout"),
        (Evidence { stdout: Some((7, Digest::of(b"hello\n"))), ..Evidence::default() }, "stdout"),
        (Evidence { files: Some(vec![]), ..Evidence::default() }, "files"),
    ] {
        assert_eq!(refused(&whole, &root(), &evidence), [name]);
    }
    for change in [
        (|file| file.digest = Digest::ZERO) as fn(&mut EvidenceFile),
        |file| file.executable = !file.executable,
        |file| file.path.push(b'x'),
    ] {
        let mut evidence = evidence();
        change(&mut evidence.files.as_mut().unwrap()[0]);
        assert_eq!(refused(&whole, &root(), &evidence), ["files"]);
    }
}

#[test]
fn a_result_that_the_cluster_refused_is_no_proof() {
    assert!(verify(&bundle(vec![0, 4]), &root(), &evidence()).holds());
    assert_eq!(refused(&bundle(vec![1, 2]), &root(), &evidence()), ["acceptance"]);
}

#[test]
fn an_execution_outside_the_certificate_s_validity_is_refused() {
    let mut late = bundle(vec![]);
    late.statement.completed_at_ms = NOW_MS + 2_000_000;
    assert!(refused(&late, &root(), &evidence()).contains(&"validity"));
}

#[test]
fn a_member_that_is_left_out_is_refused_also_where_it_may_be_null() {
    let mut timed_out = bundle(vec![]);
    timed_out.statement.exit_code = None;
    timed_out.result.exit_code = None;
    let whole: serde_json::Value = serde_json::from_slice(&timed_out.encode()).unwrap();
    assert!(ProofBundle::decode(&serde_json::to_vec(&whole).unwrap()).is_ok());
    for place in ["/statement/predicate", "/result"] {
        let mut without = whole.clone();
        without.pointer_mut(place).unwrap().as_object_mut().unwrap().remove("exit_code").unwrap();
        let refused = ProofBundle::decode(&serde_json::to_vec(&without).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("exit_code"), "{place}: {refused}");
    }
}

#[test]
fn files_that_are_no_proof_or_no_root_are_refused_and_never_panic() {
    for wrong in [&b""[..], b"{}", b"null", b"[]", b"\xff", b"{\"type\":\"urn:grey:proof:v2\"}"] {
        assert!(ProofBundle::decode(wrong).is_err());
        assert!(RootFile::decode(wrong).is_err());
    }
    assert_eq!(RootFile::decode(&root().encode()), Ok(root()));
    let mut wrong = root();
    wrong.cluster = Digest::ZERO;
    assert!(RootFile::decode(&wrong.encode()).is_err());
    let mut wrong = root();
    wrong.checkpoint_signatures = 0;
    assert!(RootFile::decode(&wrong.encode()).is_err());
}

fn issuer(seed: u8) -> (SigningKey, Certificate) {
    let (key, certificate, _) = certificate(seed, Role::Issuer);
    (key, certificate)
}

/// The same proof, with an issuer between the root and both certificates.
fn issued() -> ProofBundle {
    let mut proof = bundle(vec![]);
    let (issuing, issuer) = issuer(77);
    proof.certificate = certificate(2, Role::Worker).1.sign(&issuing).unwrap();
    proof.log.servers = vec![certificate(3, Role::Server).1.sign(&issuing).unwrap()];
    proof.issuers = vec![issuer.sign(&root_key()).unwrap()];
    proof
}

#[test]
fn a_proof_under_an_issuer_holds_and_says_so_and_one_without_the_issuer_does_not() {
    let whole = issued();
    assert_eq!(ProofBundle::decode(&whole.encode()), Ok(whole.clone()));
    let verification = verify(&whole, &root(), &evidence());
    assert!(verification.holds(), "{verification:#?}");
    let (issuing, certified) = issuer(77);
    let said = verification.checks.iter().find(|check| check.name == "issuers").unwrap();
    assert!(said.meaning.contains(&certified.node_id.to_string()), "{}", said.meaning);

    let mut without = whole.clone();
    without.issuers.clear();
    assert!(refused(&without, &root(), &evidence()).contains(&"certificate"));
    assert!(refused(&without, &root(), &evidence()).contains(&"checkpoint"));

    // What is not needed must be right, too, so that a proof has no room for anything else.
    let foreign = Certificate { cluster: Digest::ZERO, ..issuer(78).1 };
    let late = Certificate { not_before_ms: NOW_MS + 1, ..issuer(78).1 };
    for (what, extra) in [
        ("nobody signed it", issuer(78).1.sign(&SigningKey::from_seed([79; 32])).unwrap()),
        ("another issuer signed it", issuer(78).1.sign(&issuing).unwrap()),
        ("it is a worker's", certificate(2, Role::Worker).2),
        ("it is of another cluster", foreign.sign(&root_key()).unwrap()),
    ] {
        let mut changed = whole.clone();
        changed.issuers.push(extra);
        assert_eq!(refused(&changed, &root(), &evidence()), ["issuers"], "{what}");
    }
    let mut many = whole.clone();
    many.issuers = vec![whole.issuers[0].clone(); 9];
    assert_eq!(refused(&many, &root(), &evidence()), ["issuers"]);

    // An issuer that was certified only after the certificates began vouches for none of them.
    let mut changed = whole;
    let late = Certificate { node_id: certified.node_id, public_key: certified.public_key, ..late };
    changed.issuers = vec![late.sign(&root_key()).unwrap()];
    assert!(refused(&changed, &root(), &evidence()).contains(&"certificate"));
}

#[test]
fn an_issuer_signs_certificates_and_no_report_and_no_checkpoint() {
    let (issuing, certified) = issuer(77);
    let mut proof = issued();
    proof.certificate = certified.sign(&root_key()).unwrap();
    proof.signature = proof.report.sign(&issuing).unwrap().to_vec();
    assert!(refused(&proof, &root(), &evidence()).contains(&"certificate"));
    let mut proof = issued();
    let mut checkpoint = SignedCheckpoint::decode(&proof.log.checkpoint).unwrap();
    checkpoint = SignedCheckpoint::new(checkpoint.cluster, checkpoint.size, checkpoint.root);
    checkpoint.sign(&issuing);
    proof.log.checkpoint = checkpoint.encode();
    proof.log.servers = vec![certified.sign(&root_key()).unwrap()];
    assert_eq!(refused(&proof, &root(), &evidence()), ["checkpoint"]);
}

/// The proof, cosigned by so many servers beside the first, and the checkpoint as it stands in it.
fn cosigned(others: u8) -> (ProofBundle, SignedCheckpoint) {
    let mut proof = bundle(vec![]);
    let mut checkpoint = SignedCheckpoint::decode(&proof.log.checkpoint).unwrap();
    for seed in (30..).take(usize::from(others)) {
        let (key, certified, envelope) = certificate(seed, Role::Server);
        checkpoint.add(&certified.public_key, &checkpoint.signature(&key)).unwrap();
        proof.log.servers.push(envelope);
    }
    proof.log.checkpoint = checkpoint.encode();
    (proof, checkpoint)
}

fn asking(quorum: u32) -> Evidence {
    Evidence { quorum: Some(quorum), ..evidence() }
}

#[test]
fn different_servers_that_signed_the_log_s_root_are_counted_and_so_many_can_be_asked_for() {
    for others in 0..3 {
        let (proof, _) = cosigned(others);
        let signed = u32::from(others) + 1;
        let verification = verify(&proof, &root(), &evidence());
        assert!(verification.holds(), "{:?}", verification.checks);
        assert_eq!(verification.cosigners.len(), signed as usize);
        assert!(verification.cosigners.is_sorted());
        let open = verification.not_checked.join(" ");
        assert!(open.contains("--quorum N") && open.contains(&format!("{signed} signed")), "{open}");
        let whole = verify(&proof, &root(), &asking(signed));
        assert!(whole.holds() && whole.not_checked.iter().any(|open| open.contains("majority")));
        assert_eq!(refused(&proof, &root(), &asking(signed + 1)), ["quorum"]);
    }
}

#[test]
fn a_signature_that_is_foreign_doubled_or_changed_is_refused_and_counts_for_nothing() {
    // A server that nobody certified.
    let (mut proof, mut checkpoint) = cosigned(1);
    checkpoint.sign(&SigningKey::from_seed([99; 32]));
    proof.log.checkpoint = checkpoint.encode();
    assert_eq!(refused(&proof, &root(), &asking(3)), ["checkpoint", "quorum"]);
    assert!(verify(&proof, &root(), &evidence()).cosigners.is_empty());
    // One that another cluster certified, and a worker.
    for certify in [
        |certificate: &mut Certificate| certificate.cluster = Digest::of(b"another"),
        |certificate: &mut Certificate| certificate.role = Role::Worker,
    ] {
        let (mut proof, _) = cosigned(1);
        let (_, mut changed, _) = certificate(30, Role::Server);
        certify(&mut changed);
        proof.log.servers[1] = changed.sign(&root_key()).unwrap();
        assert_eq!(refused(&proof, &root(), &asking(2)), ["checkpoint", "quorum"]);
    }
    // One that stands there twice, with one certificate or with two.
    for certificates in [1, 2] {
        let (mut proof, mut checkpoint) = cosigned(0);
        let (server, ..) = certificate(3, Role::Server);
        checkpoint.sign(&server);
        proof.log.checkpoint = checkpoint.encode();
        proof.log.servers = vec![proof.log.servers[0].clone(); certificates];
        assert_eq!(refused(&proof, &root(), &asking(2)), ["checkpoint", "quorum"]);
    }
    // A signature over another root.
    let (mut proof, checkpoint) = cosigned(0);
    let (key, _, envelope) = certificate(30, Role::Server);
    let mut fork = SignedCheckpoint::new(checkpoint.cluster, checkpoint.size, Digest::of(b"fork"));
    fork.sign(&key);
    let forked = fork.encode();
    let line = forked.lines().last().unwrap();
    proof.log.checkpoint.push_str(&format!("{line}\n"));
    proof.log.servers.push(envelope);
    assert_eq!(refused(&proof, &root(), &asking(1)), ["checkpoint", "quorum"]);
}

#[test]
fn proofs_that_clusters_gave_out_hold_for_ever() {
    // One is of the time when one server signed, the other of three that did.
    let one = (include_bytes!("published/one/root.json"), &include_bytes!("published/one/proof.json")[..]);
    let three =
        (include_bytes!("published/three/root.json"), &include_bytes!("published/three/proof.json")[..]);
    for ((root, proof), signed) in [(one, 1), (three, 3)] {
        let root = RootFile::decode(root).unwrap();
        let proof = ProofBundle::decode(proof).unwrap();
        let asking = |quorum| Evidence { quorum: Some(quorum), ..Evidence::default() };
        let verification = verify(&proof, &root, &asking(signed));
        assert!(verification.holds(), "{:?}", verification.checks);
        assert_eq!(verification.cosigners.len(), signed as usize);
        assert_eq!(refused(&proof, &root, &asking(signed + 1)), ["quorum"]);
    }
}
