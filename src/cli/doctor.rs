//! `grey doctor`: what is enforced on this machine, and what is not and why.

use std::path::{Path, PathBuf};

use grey_api::ClusterStatus;
use grey_node::Inspection;

use super::error::{ANSWER_IS_NO, CliError};
use super::output::{Output, harmless};
use super::serve::LAUNCHER;
use super::session::{Target, runtime};
use super::status::{RETRIES, kept};
use super::units;

/// One thing that was looked at.
#[derive(serde::Serialize)]
struct Finding {
    subject: &'static str,
    well: bool,
    says: String,
}

fn finding(subject: &'static str, well: bool, says: impl Into<String>) -> Finding {
    Finding { subject, well, says: says.into() }
}

/// Looks at the machine, the data directory and the cluster; starts nothing.
pub fn doctor(target: Result<&Target, &CliError>, output: &Output) -> Result<u8, CliError> {
    output.must_not_be_names()?;
    let mut findings = vec![finding("version", true, env!("CARGO_PKG_VERSION"))];
    match target {
        Ok(Target::Local(directory)) => {
            look_at_directory(directory, &mut findings);
            look_at_cluster(&Target::Local(directory.clone()), output, &mut findings)?;
        }
        Ok(remote @ Target::Remote(_)) => look_at_cluster(remote, output, &mut findings)?,
        Err(error) => findings.push(finding("data", false, error.message.clone())),
    }
    look_at_sandbox(&mut findings);
    let well = findings.iter().all(|finding| finding.well);
    output.result(&findings, || {
        let line = |finding: &Finding| {
            let mark = if finding.well { "ok  " } else { "BAD " };
            format!("{mark} {:9} {}\n", finding.subject, harmless(&finding.says))
        };
        findings.iter().map(line).collect()
    })?;
    Ok(if well { 0 } else { ANSWER_IS_NO })
}

fn look_at_directory(directory: &Path, findings: &mut Vec<Finding>) {
    // The directory is made at the first start, so what counts is the nearest one that is there.
    let existing: Option<PathBuf> =
        directory.ancestors().find(|ancestor| ancestor.is_dir()).map(Path::to_path_buf);
    let writable = existing.as_deref().is_some_and(|existing| {
        rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
    });
    let free = existing.as_deref().and_then(|existing| rustix::fs::statvfs(existing).ok());
    let free_bytes = free.map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize));
    let says = format!("{}, {} free", directory.display(), units::shown_size(free_bytes));
    let says = if writable { says } else { format!("{says}; it cannot be written to") };
    findings.push(finding("data", writable, says));
}

fn look_at_cluster(target: &Target, output: &Output, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let client = target.client(output).with_retries(Some(RETRIES));
    let status = runtime()?.block_on(client.get::<ClusterStatus>("/v1/cluster"));
    if let Ok(status) = &status {
        let (history, blobs) = kept(&status.retention);
        findings.push(finding("kept", true, history));
        findings.push(finding("kept", true, blobs));
        if let Some(warning) = status.issuing_key.as_ref().and_then(|key| key.warning.clone()) {
            findings.push(finding("issuing", false, warning));
        }
    }
    findings.push(match (status, target) {
        (Ok(status), _) => {
            let says = format!("process {} runs cluster {}", status.process_id, status.cluster);
            match status.refusing {
                None => finding("cluster", true, says),
                Some(why) => finding("cluster", false, format!("{says} and takes no new work: {why}")),
            }
        }
        (Err(_), Target::Local(_)) => {
            finding("cluster", true, "the local cluster does not run; the first command starts it")
        }
        (Err(error), Target::Remote(_)) => finding("cluster", false, error.to_string()),
    });
    Ok(())
}

fn look_at_sandbox(findings: &mut Vec<Finding>) {
    match Inspection::of_this_machine(Path::new(LAUNCHER)) {
        Ok(inspection) => {
            findings.push(finding("sandbox", true, inspection.sandbox));
            findings.extend(inspection.notes.into_iter().map(|note| finding("sandbox", true, note)));
            let resources = format!(
                "{}m of processors, {} of memory",
                inspection.cpu_millicores,
                units::shown_size(inspection.memory_bytes)
            );
            findings.push(finding("resources", true, resources));
        }
        Err(error) => findings.push(finding("sandbox", false, error.to_string())),
    }
}
