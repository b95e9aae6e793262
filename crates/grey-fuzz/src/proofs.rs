//! Proofs and what they are made of: only what was signed holds.

use std::sync::LazyLock;

use grey_proof::{
    BUNDLE_TYPE, BundledLeaf, BundledLog, Certificate, Digest, Envelope, Evidence, EvidenceFile,
    ExecutionStatement, LogEntry, LogTree, ProofBundle, ReportHeader, ResultFile, ResultManifest, Role,
    RootClass, RootFile, SignedCheckpoint, SigningKey, inclusion_path, leaf_hash, leaf_salt,
    log_inclusion_path, merkle_root, report_digest, statement_leaf, verify,
};

use crate::bytes::Bytes;

const NOW_MS: u64 = 1_795_512_600_000;

fn root_key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn certified(seed: u8, role: Role) -> (SigningKey, Certificate, Envelope) {
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
    let envelope = certificate.sign(&root_key()).expect("a certificate is signed");
    (key, certificate, envelope)
}

fn root() -> RootFile {
    RootFile::new(RootClass::Local, &root_key().verifying_key(), 1)
}

fn result() -> ResultManifest {
    let file = |path: &[u8], executable| ResultFile {
        path: path.to_vec(),
        executable,
        size_bytes: 1,
        digest: Digest::of(path),
    };
    ResultManifest {
        outcome_class: "exited".to_owned(),
        exit_code: Some(0),
        stdout_size_bytes: 6,
        stdout_digest: Digest::of(b"hello\n"),
        files: vec![file(b"a", true), file(b"b/\xff", false)],
    }
}

fn statement(certificate: &Certificate) -> ExecutionStatement {
    let result = result();
    ExecutionStatement {
        cluster: certificate.cluster,
        tenant: "default".to_owned(),
        job_id: 1,
        task_id: 2,
        attempt_epoch: 1,
        worker_id: certificate.node_id,
        executor: "process".to_owned(),
        sandbox_level: "pid-namespace".to_owned(),
        tier: "software".to_owned(),
        exec_key: Digest::of(b"exec"),
        result_hash: result.result_hash().expect("a result has a hash"),
        outcome: result.outcome_class,
        exit_code: result.exit_code,
        started_at_ms: NOW_MS,
        completed_at_ms: NOW_MS + 5,
        duration_us: 5_000,
        cpu_time_us: 1_000,
        peak_memory_bytes: 4_096,
        usage_source: "rusage".to_owned(),
        certificate: certificate.id().expect("a certificate has an id"),
        assignment_term: 1,
        assignment_index: 4,
    }
}

fn whole() -> ProofBundle {
    let (worker, certificate, envelope) = certified(2, Role::Worker);
    let (server, _, server_envelope) = certified(3, Role::Server);
    let statement = statement(&certificate);
    let salt = leaf_salt(&[9; 32], 2);
    let mut bytes = Vec::new();
    statement.encode_v1(&mut bytes).expect("a statement is encoded");
    let mut leaves: Vec<Digest> = (0u8..5).map(|other| Digest::of(&[other])).collect();
    if let Some(leaf) = leaves.get_mut(2) {
        *leaf = statement_leaf(&salt, &bytes);
    }
    let report = ReportHeader {
        cluster: statement.cluster,
        worker_id: certificate.node_id,
        certificate: statement.certificate,
        incarnation: 1,
        sequence: 2,
        leaf_count: 5,
        root: merkle_root(&leaves),
    };
    let signature = report.sign(&worker).expect("a report is signed").to_vec();
    let report_digest = report_digest(&report, &signature).expect("a report has a digest");
    let entry = LogEntry { report_digest, term: 1, index: 6, refused: vec![4] };
    let (mut tree, mut stored) = (LogTree::default(), Vec::new());
    for leaf in [b"before".to_vec(), entry.encode_v1().expect("an entry is encoded"), b"after".to_vec()] {
        stored.extend(tree.append(leaf_hash(&leaf)));
    }
    let read = |at: u64| stored.get(at as usize).copied().ok_or(());
    let path = log_inclusion_path(1, 3, read).expect("the hashes are there").unwrap_or_default();
    let mut checkpoint = SignedCheckpoint::new(statement.cluster, 3, tree.root());
    checkpoint.sign(&server);
    let leaf =
        BundledLeaf { index: 2, salt: Digest(salt), path: inclusion_path(&leaves, 2).unwrap_or_default() };
    let servers = vec![server_envelope];
    let log = BundledLog { entry, position: 1, path, checkpoint: checkpoint.encode(), servers };
    let kind = BUNDLE_TYPE.to_owned();
    ProofBundle {
        kind,
        statement,
        result: result(),
        leaf,
        report,
        signature,
        certificate: envelope,
        issuers: Vec::new(),
        log,
    }
}

static WHOLE: LazyLock<ProofBundle> = LazyLock::new(whole);

/// A proof that reads and holds says what the whole one says: of everything signed, no other does.
pub(crate) fn bundle(data: &[u8]) {
    let Ok(read) = ProofBundle::decode(data) else { return };
    let again = ProofBundle::decode(&read.encode());
    assert_eq!(again.as_ref(), Ok(&read), "a proof reads back as written");
    let evidence = Evidence {
        stdout: Some((6, Digest::of(b"hello\n"))),
        files: Some(
            result()
                .files
                .into_iter()
                .map(|ResultFile { path, executable, size_bytes, digest }| EvidenceFile {
                    path,
                    executable,
                    size_bytes,
                    digest,
                })
                .collect(),
        ),
        quorum: None,
    };
    for evidence in [Evidence::default(), evidence] {
        if verify(&read, &root(), &evidence).holds() {
            assert_eq!(read.statement, WHOLE.statement, "another statement than the one signed holds");
            assert_eq!(read.report, WHOLE.report, "another report than the one signed holds");
            let signed = |bundle: &ProofBundle| {
                let mut files = bundle.result.files.clone();
                files.sort_by(|left, right| left.path.cmp(&right.path));
                (bundle.result.stdout_digest, files)
            };
            assert_eq!(signed(&read), signed(&WHOLE), "another result than the one signed holds");
        }
    }
}

pub(crate) fn bundle_corpus() -> Vec<Vec<u8>> {
    let whole = whole();
    let compact = serde_json::to_vec(&whole).expect("a proof is written");
    vec![whole.encode(), compact]
}

/// Certificates, envelopes, notes, root files and statements: what reads is written back the same.
pub(crate) fn documents(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let kind = bytes.below(5);
    let text = bytes.rest();
    match kind {
        0 => {
            if let Ok(read) = Certificate::decode(text) {
                assert_eq!(read.encode_v1().as_deref(), Ok(text), "a certificate has one form");
            }
        }
        1 => {
            let Ok(read) = serde_json::from_slice::<Envelope>(text) else { return };
            let written = serde_json::to_vec(&read).expect("an envelope is written");
            assert_eq!(serde_json::from_slice::<Envelope>(&written).ok().as_ref(), Some(&read));
            if let Ok(opened) = Certificate::open(&read, &[root_key().verifying_key()]) {
                assert!([2, 3].contains(&opened.serial), "a certificate that nobody signed is taken");
            }
        }
        2 => {
            let Ok(note) = core::str::from_utf8(text) else { return };
            let Ok(read) = SignedCheckpoint::decode(note) else { return };
            assert_eq!(read.encode(), note, "a note has one form");
            if read.verify(&certified(3, Role::Server).0.verifying_key()).is_ok() {
                assert_eq!(read.size, 3, "a checkpoint that nobody signed is taken");
            }
        }
        3 => {
            let Ok(read) = RootFile::decode(text) else { return };
            assert_eq!(RootFile::decode(&read.encode()).as_ref(), Ok(&read));
            assert!(read.verifying_keys().is_ok_and(|keys| !keys.is_empty()));
        }
        _ => {
            let Ok(read) = serde_json::from_slice::<ExecutionStatement>(text) else { return };
            let mut written = Vec::new();
            if read.encode_v1(&mut written).is_ok() {
                let again = serde_json::from_slice::<ExecutionStatement>(&written);
                assert_eq!(again.ok().as_ref(), Some(&read), "a statement reads back as written");
            }
        }
    }
}

pub(crate) fn documents_corpus() -> Vec<Vec<u8>> {
    let (_, certificate, envelope) = certified(2, Role::Worker);
    let whole = whole();
    let mut statement = Vec::new();
    whole.statement.encode_v1(&mut statement).expect("a statement is encoded");
    [
        (0u8, certificate.encode_v1().expect("a certificate is encoded")),
        (1, serde_json::to_vec(&envelope).expect("an envelope is written")),
        (2, whole.log.checkpoint.into_bytes()),
        (3, root().encode()),
        (4, statement),
    ]
    .into_iter()
    .map(|(kind, text)| [vec![kind], text].concat())
    .collect()
}
