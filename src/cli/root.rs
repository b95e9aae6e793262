//! The root file: where it comes from and how it is read.

use std::path::Path;

use grey_proof::RootFile;

use super::error::CliError;

/// A root file is a few hundred bytes; anything much larger is something else.
const LARGEST_ROOT_BYTES: u64 = 1024 * 1024;

/// Reads a root file.
pub fn read(path: &Path) -> Result<RootFile, CliError> {
    let bytes = read_bounded(path, LARGEST_ROOT_BYTES)?;
    RootFile::decode(&bytes).map_err(|error| {
        CliError::usage(format!("{}: {error}", path.display()))
            .hint("`grey cluster root > root.json` writes one, on the cluster")
    })
}

/// A root file as the cluster gives it, where nothing is asked for, or one that asks for so many signatures of a checkpoint.
pub fn asking(bytes: &[u8], quorum: Option<u32>) -> Result<Vec<u8>, CliError> {
    let Some(quorum) = quorum else { return Ok(bytes.to_vec()) };
    let root = RootFile::decode(bytes)
        .map_err(|error| CliError::failed(format!("what the cluster gives: {error}")))?;
    Ok(RootFile { checkpoint_signatures: quorum, ..root }.encode())
}

/// Reads a file that must not be larger than `limit_bytes`.
pub fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, CliError> {
    use std::io::Read;
    let wrong = |error: &std::io::Error| {
        let mut wrong = CliError::io("read", path.display(), error);
        wrong.exit_status = super::error::USAGE;
        wrong
    };
    let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(CliError::usage(format!("{} is larger than {limit_bytes} bytes", path.display())));
    }
    Ok(bytes)
}
