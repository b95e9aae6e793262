//! Where spans are told, and how many.

use std::path::PathBuf;

use super::directory;
use super::reader::Section;

/// Parts per million that are all of them.
const ALL_PER_MILLION: u32 = 1_000_000;
/// The longest URL of a collector, in bytes.
const LONGEST_ENDPOINT_BYTES: usize = 1_024;
/// What `endpoint` says where nothing is to be told, whatever a variable of every program says.
const NOWHERE: &str = "none";

/// Where a node tells its spans, by OTLP over gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracesConfig {
    /// The collector, such as `http://127.0.0.1:4317`.
    pub endpoint: String,
    /// The certificates that the collector's must lead to, in PEM; there for https, and only there.
    pub ca_file: Option<PathBuf>,
    /// How many in a million traces are told that begin here; others are as whoever began them wants it.
    pub sampled_per_million: u32,
    /// Whether every program of this machine was told of the collector. It is unchecked then, and spans are told to nobody where it cannot be used.
    pub is_shared: bool,
}

impl TracesConfig {
    /// Whether the collector can be told anything.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let endpoint = endpoint(&self.endpoint)?;
        if needs_ca_file(&endpoint) && self.ca_file.is_none() {
            return Err("for https a file with the certificates is needed that the collector's must lead to"
                .to_owned());
        }
        Ok(())
    }
}

fn needs_ca_file(endpoint: &str) -> bool {
    endpoint.starts_with("https:")
}

/// Reads the table `[traces]`; where it names no collector, the one counts that every program is told of.
pub(super) fn traces(
    mut section: Section<'_>,
    shared: Option<&(String, Option<PathBuf>)>,
) -> Option<TracesConfig> {
    let shared = shared.filter(|_| !section.has("endpoint"));
    let endpoint = section.parsed("endpoint", endpoint);
    let ca_file = section.parsed("ca_file", directory);
    let sampled_per_million = section.ratio_per_million("ratio").unwrap_or(ALL_PER_MILLION);
    let endpoint = endpoint.filter(|endpoint| endpoint != NOWHERE);
    if endpoint.as_deref().is_some_and(needs_ca_file) && ca_file.is_none() && !section.has("ca_file") {
        let problem =
            "it must be there for an endpoint of https, such as ca_file = \"/etc/grey/collector-ca.pem\"";
        section.wrong("ca_file", problem);
    }
    section.end();
    let is_shared = shared.is_some();
    let (endpoint, ca_file) = match shared {
        None => (endpoint?, ca_file),
        Some((endpoint, shared_ca_file)) => (endpoint.clone(), ca_file.or_else(|| shared_ca_file.clone())),
    };
    Some(TracesConfig { endpoint, ca_file, sampled_per_million, is_shared })
}

fn endpoint(text: &str) -> Result<String, String> {
    let shown: String = text.chars().take(LONGEST_ENDPOINT_BYTES).collect();
    let wrong =
        |reason: &str| format!("`{shown}` is no collector: {reason}; examples: http://127.0.0.1:4317, none");
    if text == NOWHERE {
        return Ok(text.to_owned());
    }
    if text.len() > LONGEST_ENDPOINT_BYTES {
        return Err(wrong("it is too long"));
    }
    let uri: axum::http::Uri = text.parse().map_err(|_| wrong("it is no URL"))?;
    let is_known = uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
    match uri.authority() {
        Some(authority) if is_known && !authority.as_str().contains('@') => Ok(text.to_owned()),
        _ => Err(wrong("http:// or https:// stands before its host and port")),
    }
}
