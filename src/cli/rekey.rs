//! `grey cluster rekey`: the root key certifies the next issuing key here, and stays here.

use std::path::PathBuf;

use grey_api::{IssuingKeyAsked, IssuingKeyStatus};

use super::error::CliError;
use super::output::{Output, harmless};
use super::run::connect;
use super::session::{Target, runtime};
use super::token::until;

/// Arguments of `grey cluster rekey`.
#[derive(clap::Args)]
pub struct RekeyArguments {
    /// The root key of the cluster, which `grey cluster init` made. It is not sent anywhere
    #[arg(long, value_name = "FILE")]
    root_key: PathBuf,
}

/// Until when an issuing key is good, and why another one is due.
pub fn shown(key: &IssuingKeyStatus) -> String {
    let here = if key.here { "" } else { "; this server does not have it yet" };
    let warning =
        key.warning.as_ref().map(|warning| format!("\n          {}", harmless(warning))).unwrap_or_default();
    format!("number {}, ends {}{here}{warning}", key.serial, until(key.not_after_ms))
}

/// Has another issuing key follow the current one.
pub fn rekey(arguments: &RekeyArguments, target: &Target, output: &Output) -> Result<u8, CliError> {
    runtime()?.block_on(async {
        let client = connect(target, output).await?;
        let nothing = serde_json::json!({});
        let asked: IssuingKeyAsked = client.post("/v1/cluster/authority/request", &nothing, None).await?;
        let certified = grey_node::certify(&arguments.root_key, &asked);
        let certified = certified.map_err(|error| CliError::failed(error.to_string()))?;
        let key: IssuingKeyStatus = client.post("/v1/cluster/authority", &certified, None).await?;
        output.note("nodes renew their certificates within a minute; proofs of before stay good");
        output.result(&key, || format!("issuing key {}\n", shown(&key)))?;
        Ok(0)
    })
}
