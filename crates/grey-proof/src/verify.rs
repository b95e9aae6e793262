//! The offline check of a proof: every link from the root that the verifier brings down to the bytes of the result.

use serde::Serialize;

use crate::bundle::ProofBundle;
use crate::certificate::{Certificate, MOST_ISSUERS, Role};
use crate::checkpoint::SignedCheckpoint;
use crate::digest::Digest;
use crate::error::ProofError;
use crate::keys::VerifyingKey;
use crate::merkle::{leaf_hash, statement_leaf, verify_inclusion};
use crate::report::report_digest;
use crate::root::{RootClass, RootFile};

/// One output file that the verifier has at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceFile {
    /// Path below the output directory, raw bytes.
    pub path: Vec<u8>,
    /// Whether its owner may execute it.
    pub executable: bool,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the content.
    pub digest: Digest,
}

/// What the verifier has at hand to compare with the proof, and what it asks of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Length and SHA-256 of standard output.
    pub stdout: Option<(u64, Digest)>,
    /// Output files.
    pub files: Option<Vec<EvidenceFile>>,
    /// How many different servers must have signed the log's root, beside what the root asks for.
    pub quorum: Option<u32>,
}

/// One check and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, as a short name that stays the same.
    pub name: &'static str,
    /// What it means that it holds.
    pub meaning: String,
    /// Why it does not hold; absent when it does.
    pub refusal: Option<String>,
}

/// Everything that was checked, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// In the order of the chain, from the root to the result.
    pub checks: Vec<Check>,
    /// The servers that signed the log's root, by their identities, ascending; none where the check of that does not hold.
    pub cosigners: Vec<Digest>,
    /// What nobody should read into the answer, one sentence each.
    pub not_checked: Vec<String>,
}

impl Verification {
    /// Whether every check holds.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.refusal.is_none())
    }

    fn record(&mut self, name: &'static str, meaning: impl Into<String>, outcome: Result<(), String>) {
        self.checks.push(Check { name, meaning: meaning.into(), refusal: outcome.err() });
    }
}

fn ensure(holds: bool, refusal: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(refusal.to_owned()) }
}

fn text(error: ProofError) -> String {
    error.to_string()
}

/// Checks a proof against a root that the verifier brings, and against what it has of the result. Never fails: what is
/// wrong is in the checks.
pub fn verify(bundle: &ProofBundle, root: &RootFile, evidence: &Evidence) -> Verification {
    let mut verification =
        Verification { checks: Vec::new(), cosigners: Vec::new(), not_checked: Vec::new() };
    let keys = root.verifying_keys().unwrap_or_default();
    verification.record(
        "cluster",
        format!("the proof is of cluster {}, whose root was given", root.cluster),
        cluster(bundle, root),
    );
    if !bundle.issuers.is_empty() {
        let (named, outcome) = issuers(bundle, root, &keys);
        let meaning = format!("the root certified the keys that issued certificates here: {named}");
        verification.record("issuers", meaning, outcome);
    }
    let certificate = Certificate::open_issued(&bundle.certificate, &keys, &bundle.issuers).map_err(text);
    verification.record(
        "certificate",
        "the root, or an issuer that it certified, certified the worker's key, and the statement names that certificate",
        certificate.as_ref().map_err(Clone::clone).and_then(|found| worker_certificate(bundle, found)),
    );
    verification.record(
        "validity",
        "the execution lies within the certificate's validity, by the worker's clock",
        certificate.as_ref().map_err(|_| NO_CERTIFICATE.to_owned()).and_then(|found| validity(bundle, found)),
    );
    verification.record(
        "signature",
        "the worker signed the report",
        certificate
            .as_ref()
            .map_err(|_| NO_CERTIFICATE.to_owned())
            .and_then(|found| bundle.report.verify(&found.public_key, &bundle.signature).map_err(text)),
    );
    verification.record("statement", "the statement is in the signed report", statement(bundle));
    verification.record("acceptance", "the cluster accepted this attempt's result", acceptance(bundle));
    let checkpoint = SignedCheckpoint::decode(&bundle.log.checkpoint).map_err(text);
    verification.record(
        "inclusion",
        "the report is in the cluster's log",
        checkpoint.as_ref().map_err(Clone::clone).and_then(|found| inclusion(bundle, found)),
    );
    let signed =
        checkpoint.as_ref().map_err(Clone::clone).and_then(|found| signers(bundle, root, &keys, found));
    verification.cosigners = signed.clone().unwrap_or_default();
    let count = verification.cosigners.len();
    verification.record(
        "checkpoint",
        format!(
            "{count} certified server(s) signed the log's root, where the root file asks for {}",
            root.checkpoint_signatures
        ),
        signed.map(drop),
    );
    if let Some(quorum) = evidence.quorum {
        let enough = ensure(
            count >= quorum as usize,
            &format!("{count} certified server(s) signed the log's root; {quorum} were asked for"),
        );
        let meaning = format!("at least {quorum} different servers signed the log's root");
        verification.record("quorum", meaning, enough);
    }
    verification.record("result", "the result hash stands for the result described", result(bundle));
    compare_evidence(&mut verification, bundle, evidence);
    disclaim(&mut verification, bundle, root, evidence);
    verification
}

const NO_CERTIFICATE: &str = "there is no certificate to check it against";

fn cluster(bundle: &ProofBundle, root: &RootFile) -> Result<(), String> {
    let named = bundle.statement.cluster;
    if named != root.cluster {
        return Err(format!("the proof is of cluster {named}; the root given is of {}", root.cluster));
    }
    ensure(bundle.report.cluster == root.cluster, "the signed report is of another cluster")
}

/// The identities of the issuers, and whether the root certified each as one.
fn issuers(bundle: &ProofBundle, root: &RootFile, keys: &[VerifyingKey]) -> (String, Result<(), String>) {
    if bundle.issuers.len() > MOST_ISSUERS {
        let refusal = format!("there are {}; {MOST_ISSUERS} are the most", bundle.issuers.len());
        return ("too many to name".to_owned(), Err(refusal));
    }
    let mut named = Vec::new();
    let mut outcome = Ok(());
    for envelope in &bundle.issuers {
        let checked = Certificate::open(envelope, keys).map_err(text).and_then(|issuer| {
            ensure(issuer.role == Role::Issuer, "a certificate among them is no issuer's")?;
            ensure(issuer.cluster == root.cluster, "an issuer is of another cluster")?;
            Ok(issuer.node_id)
        });
        match checked {
            Ok(id) => named.push(id.to_string()),
            Err(refusal) => outcome = Err(refusal),
        }
    }
    (if named.is_empty() { "none".to_owned() } else { named.join(", ") }, outcome)
}

fn worker_certificate(bundle: &ProofBundle, certificate: &Certificate) -> Result<(), String> {
    let statement = &bundle.statement;
    ensure(certificate.role == Role::Worker, "it certifies a server, not a worker")?;
    ensure(certificate.cluster == statement.cluster, "it is of another cluster")?;
    let id = certificate.id().map_err(text)?;
    ensure(statement.certificate == id, "the statement names another certificate")?;
    ensure(bundle.report.certificate == id, "the signed report names another certificate")?;
    ensure(statement.worker_id == certificate.node_id, "the statement names another worker")?;
    ensure(bundle.report.worker_id == certificate.node_id, "the signed report names another worker")?;
    ensure(statement.tier == certificate.tier, "the statement claims another tier than the certificate")
}

fn validity(bundle: &ProofBundle, certificate: &Certificate) -> Result<(), String> {
    let statement = &bundle.statement;
    ensure(
        certificate.not_before_ms <= statement.started_at_ms
            && statement.completed_at_ms <= certificate.not_after_ms,
        "the execution lies outside the certificate's validity",
    )?;
    ensure(statement.started_at_ms <= statement.completed_at_ms, "the execution ends before it starts")
}

fn statement(bundle: &ProofBundle) -> Result<(), String> {
    let mut bytes = Vec::with_capacity(2_048);
    bundle.statement.encode_v1(&mut bytes).map_err(text)?;
    let leaf = statement_leaf(&bundle.leaf.salt.0, &bytes);
    let (index, count) = (u64::from(bundle.leaf.index), u64::from(bundle.report.leaf_count));
    let included = verify_inclusion(&leaf, index, count, &bundle.leaf.path, &bundle.report.root);
    ensure(included, "the statement's hash does not lead to the signed root")
}

fn acceptance(bundle: &ProofBundle) -> Result<(), String> {
    let digest = report_digest(&bundle.report, &bundle.signature).map_err(text)?;
    ensure(bundle.log.entry.report_digest == digest, "the log's entry is of another report")?;
    ensure(
        !bundle.log.entry.refused.contains(&bundle.leaf.index),
        "the cluster refused this attempt's result: it came too late, or was not the worker's to give",
    )
}

fn inclusion(bundle: &ProofBundle, checkpoint: &SignedCheckpoint) -> Result<(), String> {
    let leaf = leaf_hash(&bundle.log.entry.encode_v1().map_err(text)?);
    let log = &bundle.log;
    let included = verify_inclusion(&leaf, log.position, checkpoint.size, &log.path, &checkpoint.root);
    ensure(included, "the entry's hash does not lead to the checkpoint's root")
}

fn signers(
    bundle: &ProofBundle,
    root: &RootFile,
    keys: &[VerifyingKey],
    checkpoint: &SignedCheckpoint,
) -> Result<Vec<Digest>, String> {
    ensure(checkpoint.cluster == root.cluster, "the checkpoint is of another cluster")?;
    // Each costs two checks of a signature, and a proof has room for tens of thousands.
    let count = bundle.log.servers.len();
    ensure(
        count <= checkpoint.signature_count(),
        "there are more certificates beside the checkpoint than signatures",
    )?;
    let mut signed: Vec<Digest> = Vec::new();
    for envelope in &bundle.log.servers {
        let certificate = Certificate::open_issued(envelope, keys, &bundle.issuers).map_err(text)?;
        ensure(certificate.role == Role::Server, "a certificate beside the checkpoint is no server's")?;
        ensure(certificate.cluster == root.cluster, "a server's certificate is of another cluster")?;
        checkpoint.verify(&certificate.public_key).map_err(text)?;
        signed.push(certificate.node_id);
    }
    signed.sort_unstable();
    signed.dedup();
    ensure(
        signed.len() == checkpoint.signature_count(),
        "the checkpoint has a signature whose server is not certified",
    )?;
    if signed.len() < root.checkpoint_signatures as usize {
        return Err(format!("{} server(s) signed; {} are needed", signed.len(), root.checkpoint_signatures));
    }
    Ok(signed)
}

fn result(bundle: &ProofBundle) -> Result<(), String> {
    let hash = bundle.result.result_hash().map_err(text)?;
    ensure(
        hash == bundle.statement.result_hash,
        "the result described has another hash than the one signed",
    )?;
    ensure(
        bundle.result.outcome_class == bundle.statement.outcome
            && bundle.result.exit_code == bundle.statement.exit_code,
        "the result described ended differently from the one signed",
    )
}

fn compare_evidence(verification: &mut Verification, bundle: &ProofBundle, evidence: &Evidence) {
    match evidence.stdout {
        Some((size_bytes, digest)) => {
            let same = (bundle.result.stdout_size_bytes, bundle.result.stdout_digest) == (size_bytes, digest);
            verification.record(
                "stdout",
                "the standard output given is the one signed",
                ensure(same, "the standard output given is another than the one signed"),
            );
        }
        None => verification
            .not_checked
            .push("Standard output was not compared: give it with --stdout FILE.".to_owned()),
    }
    match &evidence.files {
        Some(files) => verification.record(
            "files",
            "the output files given are the ones signed",
            compare_files(bundle, files),
        ),
        None if bundle.result.files.is_empty() => {}
        None => verification
            .not_checked
            .push("Output files were not compared: give their directory with --results DIR.".to_owned()),
    }
}

fn compare_files(bundle: &ProofBundle, given: &[EvidenceFile]) -> Result<(), String> {
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    for file in &bundle.result.files {
        let found = given.iter().find(|given| given.path == file.path);
        let found = found.ok_or_else(|| format!("`{}` is missing", shown(&file.path)))?;
        let same = (found.size_bytes, found.digest) == (file.size_bytes, file.digest);
        ensure(same, &format!("`{}` has another content than the one signed", shown(&file.path)))?;
        let same = found.executable == file.executable;
        ensure(same, &format!("`{}` differs in whether it may be executed", shown(&file.path)))?;
    }
    let extra = given.iter().find(|given| bundle.result.files.iter().all(|file| file.path != given.path));
    extra.map_or(Ok(()), |extra| Err(format!("`{}` is not part of the signed result", shown(&extra.path))))
}

fn disclaim(verification: &mut Verification, bundle: &ProofBundle, root: &RootFile, evidence: &Evidence) {
    let signed = verification.cosigners.len();
    let mut say = |sentence: &str| verification.not_checked.push(sentence.to_owned());
    if root.class == RootClass::Local {
        say("The root is of class local: who owns the machine could have signed anything.");
    }
    if bundle.statement.tier == "software" {
        say("The tier is software: no hardware vouches for what the worker ran.");
    }
    match evidence.quorum {
        Some(quorum) => say(&format!(
            "How many servers the cluster had is not in a proof: whether {quorum} are a majority of them, you know."
        )),
        None => say(&format!(
            "How many servers the cluster had is not in a proof: {signed} signed the log's root; --quorum N says how many must have."
        )),
    }
    say("Times are the worker's own clock; nobody else witnessed them.");
    say("Whether a key was revoked after the root was exported is not known offline.");
    say("Standard error is not part of the signed result.");
}
