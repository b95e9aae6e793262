//! What an attempt produced, and the digest by which a proof names it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{Digest, DigestBuilder};
use crate::error::ProofError;

/// One output file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ResultFileJson", into = "ResultFileJson")]
pub struct ResultFile {
    /// Path below the output directory, raw bytes.
    pub path: Vec<u8>,
    /// Whether its owner may execute it.
    pub executable: bool,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the content.
    pub digest: Digest,
}

/// A file as it stands in JSON: its path as text, or in base64 where it is none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultFileJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    executable: bool,
    size_bytes: u64,
    digest: Digest,
}

impl From<ResultFile> for ResultFileJson {
    fn from(file: ResultFile) -> ResultFileJson {
        let ResultFile { path, executable, size_bytes, digest } = file;
        let (path, path_base64) = match String::from_utf8(path) {
            Ok(path) => (Some(path), None),
            Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        ResultFileJson { path, path_base64, executable, size_bytes, digest }
    }
}

impl TryFrom<ResultFileJson> for ResultFile {
    type Error = ProofError;

    fn try_from(json: ResultFileJson) -> Result<ResultFile, ProofError> {
        let decoded = match (json.path, json.path_base64) {
            (Some(path), None) => Some(path.into_bytes()),
            (None, Some(encoded)) => STANDARD.decode(encoded).ok(),
            _ => None,
        };
        let path = decoded.ok_or_else(|| ProofError::Unreadable {
            expected: "a file of a result",
            reason: "exactly one of `path` and `path_base64` is needed".to_owned(),
        })?;
        let ResultFileJson { executable, size_bytes, digest, .. } = json;
        Ok(ResultFile { path, executable, size_bytes, digest })
    }
}

/// A member that may be null and must be there: what is left out is not what was signed.
pub(crate) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer)
}

/// Everything of an attempt's result that a proof covers: no times, owners or standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultManifest {
    /// How it ended, as a class: `exited`, `timed_out`, ….
    pub outcome_class: String,
    /// The status, or 128 plus the signal; null when the program did not end by itself.
    #[serde(deserialize_with = "present")]
    pub exit_code: Option<i32>,
    /// Length of standard output in bytes.
    pub stdout_size_bytes: u64,
    /// SHA-256 of standard output.
    pub stdout_digest: Digest,
    /// Output files, in any order, no path twice.
    pub files: Vec<ResultFile>,
}

impl ResultManifest {
    /// The digest of the result: length-prefixed fields in a domain of their own, files by raw path.
    pub fn result_hash(&self) -> Result<Digest, ProofError> {
        let mut files: Vec<&ResultFile> = self.files.iter().collect();
        files.sort_by(|left, right| left.path.cmp(&right.path));
        if let Some([first, _]) = files.array_windows::<2>().find(|[left, right]| left.path == right.path) {
            return Err(ProofError::DuplicateFile(String::from_utf8_lossy(&first.path).into_owned()));
        }
        let mut hash = DigestBuilder::domain("grey/result/v1");
        hash.field(self.outcome_class.as_bytes());
        match self.exit_code {
            Some(code) => hash.field(&code.to_le_bytes()),
            None => hash.field(&[]),
        }
        hash.number(self.stdout_size_bytes);
        hash.field(&self.stdout_digest.0);
        hash.number(files.len() as u64);
        for file in files {
            hash.field(&file.path);
            hash.number(u64::from(file.executable));
            hash.number(file.size_bytes);
            hash.field(&file.digest.0);
        }
        Ok(hash.finish())
    }
}

/// Everything that decides what an attempt executes.
#[derive(Debug, Clone, Copy)]
pub struct ExecInputs<'a> {
    /// What runs it.
    pub executor: &'a str,
    /// Program and arguments.
    pub command: &'a [String],
    /// Variables, sorted by name.
    pub environment: &'a [(String, String)],
    /// Digest of standard input; nothing means an empty one.
    pub stdin: Option<Digest>,
    /// Input files: path, digest, executable.
    pub inputs: &'a [(String, Digest, bool)],
    /// Patterns of outputs.
    pub outputs: &'a [String],
}

/// The digest of everything that a submission says to execute: the same key means the same program on the same inputs.
pub fn exec_key(inputs: &ExecInputs<'_>) -> Digest {
    let mut hash = DigestBuilder::domain("grey/exec/v1");
    hash.field(inputs.executor.as_bytes());
    hash.number(inputs.command.len() as u64);
    inputs.command.iter().for_each(|word| hash.field(word.as_bytes()));
    hash.number(inputs.environment.len() as u64);
    for (name, value) in inputs.environment {
        hash.field(name.as_bytes());
        hash.field(value.as_bytes());
    }
    hash.field(inputs.stdin.as_ref().map_or(&[], |digest| digest.0.as_slice()));
    hash.number(inputs.inputs.len() as u64);
    for (path, digest, executable) in inputs.inputs {
        hash.field(path.as_bytes());
        hash.field(&digest.0);
        hash.number(u64::from(*executable));
    }
    hash.number(inputs.outputs.len() as u64);
    inputs.outputs.iter().for_each(|pattern| hash.field(pattern.as_bytes()));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ResultManifest {
        let file = |path: &[u8]| ResultFile {
            path: path.to_vec(),
            executable: false,
            size_bytes: 3,
            digest: Digest::of(path),
        };
        ResultManifest {
            outcome_class: "exited".to_owned(),
            exit_code: Some(0),
            stdout_size_bytes: 6,
            stdout_digest: Digest::of(b"hello\n"),
            files: vec![file(b"b"), file(b"a\xff")],
        }
    }

    #[test]
    fn the_result_hash_is_published_and_does_not_change() {
        assert_eq!(
            manifest().result_hash().unwrap().to_string(),
            "00cf6e6455096710ca8ffb8df08d1ab33a3c6a49d62c807a9e68c791809790e1"
        );
    }

    #[test]
    fn the_order_of_files_does_not_matter_and_every_field_does() {
        let hash = manifest().result_hash().unwrap();
        let changed = |change: fn(&mut ResultManifest)| {
            let mut other = manifest();
            change(&mut other);
            other.result_hash()
        };
        assert_eq!(changed(|other| other.files.reverse()).unwrap(), hash);
        for change in [
            (|other| other.outcome_class.push('x')) as fn(&mut ResultManifest),
            |other| other.exit_code = Some(1),
            |other| other.exit_code = None,
            |other| other.stdout_size_bytes += 1,
            |other| other.stdout_digest = Digest::ZERO,
            |other| other.files[0].executable = true,
            |other| other.files[0].size_bytes += 1,
            |other| other.files[0].digest = Digest::ZERO,
            |other| other.files[1].path = b"c".to_vec(),
            |other| drop(other.files.pop()),
        ] {
            assert_ne!(changed(change).unwrap(), hash);
        }
        let twice = changed(|other| other.files[0].path = other.files[1].path.clone());
        assert!(matches!(twice, Err(ProofError::DuplicateFile(_))));
    }
}
