//! Puts a proof together from history: the same statements that the worker signed, rebuilt by the same function.

use grey_api::{ErrorCode, Problem};
use grey_core::{Signer, leaves, report_header, statement};
use grey_proof::{
    BUNDLE_TYPE, BundledLeaf, BundledLog, Certificate, Digest, Envelope, LogEntry, ProofBundle,
    inclusion_path, leaf_hash, leaf_salt, log_inclusion_path, report_digest, verify_inclusion,
};

use crate::cosign::{alone, current_log};
use crate::handle::{Node, unreadable};
use crate::views::Attempt;

fn broken(what: &str) -> Problem {
    Problem::new(ErrorCode::Internal, format!("the proof cannot be put together: {what}"))
}

/// Who signed a report, and the certificate that it names.
async fn certified(node: &Node, by: Digest, id: Digest) -> Result<(Signer, Envelope), Problem> {
    if let Some((signer, certificate)) = &node.signing.worker {
        return if (by, id) == (signer.node, signer.certificate) {
            Ok((*signer, certificate.clone()))
        } else {
            Err(broken("the report names a certificate that this node does not have"))
        };
    }
    let found = node.ask(move |replica| {
        replica.state().certificate(&id).filter(|(whose, _)| **whose == by).map(|(_, bytes)| bytes.to_vec())
    });
    let bytes =
        found.await?.ok_or_else(|| broken("the cluster does not have the report's certificate any more"))?;
    let certificate = serde_json::from_slice(&bytes).map_err(|error| broken(&error.to_string()))?;
    Ok((Signer { cluster: node.signing.cluster, node: by, certificate: id }, certificate))
}

/// What signed certificates, now and before, as far as this server knows: what signed its own, what it issues with, and those of the state.
pub(crate) fn issuers(node: &Node) -> Vec<Envelope> {
    let directory = node.directory();
    let kept = directory.issuers.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok());
    let held = node.issuing.iter().filter_map(|issuing| issuing.certificate());
    let mut found: Vec<Envelope> = Vec::new();
    for issuer in node.signing.certified().issuers.iter().cloned().chain(held).chain(kept) {
        if !found.contains(&issuer) {
            found.push(issuer);
        }
    }
    found
}

/// Those of the issuers that signed one of these certificates: a verifier takes only so many.
pub(crate) fn needed(mut issuers: Vec<Envelope>, certificates: &[&Envelope]) -> Vec<Envelope> {
    issuers.retain(|issuer| {
        let Ok(issuer) = Certificate::decode(&issuer.payload) else { return false };
        let mut opened = certificates.iter().map(|one| Certificate::open(one, [&issuer.public_key]));
        opened.any(|opened| opened.is_ok())
    });
    issuers
}

/// The proof of an attempt under a checkpoint of the log as it is now, or was a moment ago.
pub(crate) async fn prove(node: &Node, attempt: &Attempt) -> Result<ProofBundle, Problem> {
    let report = &attempt.report;
    let (signer, certificate) = certified(node, report.node, report.certificate).await?;
    let (run, offset) = attempt.run().ok_or_else(|| broken("the report does not have the attempt"))?;
    let context =
        run.context.as_ref().ok_or_else(|| broken("the report does not know the attempt's task"))?;
    let statement = statement(&signer, context, &run.finished, offset)
        .ok_or_else(|| broken("the statement cannot be written"))?;
    let index = attempt.found.pointer.leaf;
    let hashes =
        leaves(&signer, &report.signed.salt, &report.runs).map_err(|error| broken(&error.to_string()))?;
    let path = inclusion_path(&hashes, index as usize).ok_or_else(|| broken("the leaf is missing"))?;
    let leaf_count = u32::try_from(hashes.len()).map_err(|_| broken("the report has too many leaves"))?;
    let header = report_header(node.signing.cluster, report, leaf_count);
    let digest =
        report_digest(&header, &report.signed.signature).map_err(|error| broken(&error.to_string()))?;
    let entry = LogEntry {
        report_digest: digest,
        term: report.term,
        index: report.index,
        refused: report.refused.clone(),
    };
    let checkpoint = match &node.cosigners {
        None => alone(node, &current_log(node).await?),
        Some(cosigners) => cosigners.checkpoint(node, report.position).await?,
    };
    let log_path = log_inclusion_path(report.position, checkpoint.size, |hash| node.tree.read(hash));
    let log_path = log_path.map_err(|error| unreadable(&error))?;
    let log_path = log_path.ok_or_else(|| broken("the log does not have the report"))?;
    let leaf = leaf_hash(&entry.encode_v1().map_err(|error| broken(&error.to_string()))?);
    if !verify_inclusion(&leaf, report.position, checkpoint.size, &log_path, &checkpoint.root) {
        return Err(broken("the hashes in tree.hashes do not lead to the log's root; the file is damaged"));
    }
    let mut issuers = needed(issuers(node), &[&certificate]);
    issuers
        .extend(checkpoint.issuers.iter().filter(|one| !issuers.contains(one)).cloned().collect::<Vec<_>>());
    Ok(ProofBundle {
        kind: BUNDLE_TYPE.to_owned(),
        statement,
        result: run.finished.result.manifest(),
        leaf: BundledLeaf { index, salt: Digest(leaf_salt(&report.signed.salt, index)), path },
        report: header,
        signature: report.signed.signature.clone(),
        issuers,
        certificate,
        log: BundledLog {
            entry,
            position: report.position,
            path: log_path,
            checkpoint: checkpoint.note.clone(),
            servers: checkpoint.servers.clone(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use grey_core::{NodeRole, Tier};
    use grey_proof::SigningKey;
    use grey_trust::Authority;

    #[test]
    fn a_proof_names_the_issuers_of_its_own_certificates_however_many_there_were() {
        let root = SigningKey::from_seed([1; 32]);
        let key = SigningKey::from_seed([2; 32]).verifying_key();
        let authorities: Vec<Authority> =
            (10..22).map(|seed| Authority::found(&root, [seed; 32], 1).unwrap()).collect();
        let issue =
            |number: usize, role| authorities[number].issue_proof(&key, role, Tier::Software, 1, 1).unwrap();
        let (worker, server) = (issue(3, NodeRole::Worker), issue(7, NodeRole::Server));
        let all: Vec<Envelope> = authorities.iter().map(|authority| authority.issuer().clone()).collect();
        assert_eq!(needed(all.clone(), &[&worker, &server]), [all[3].clone(), all[7].clone()]);
        let same = issue(3, NodeRole::Server);
        assert_eq!(needed(all.clone(), &[&worker, &same]), [all[3].clone()]);
        let by_the_root = Certificate::decode(&worker.payload).unwrap().sign(&root).unwrap();
        assert!(needed(all, &[&by_the_root, &by_the_root]).is_empty());
    }
}
