//! How a data directory's records are written.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::NodeError;

/// The file that says how a data directory's records are written.
const FORMAT_FILE: &str = "format";
/// What every data directory has had since before there was such a mark.
const FIRST_FILE: &str = "certificates.json";
/// The only way of writing them that this version knows.
const FORMAT: &str = "5";

/// Refuses a directory whose records this version cannot read, and marks a new one.
pub(crate) fn check_format(data_dir: &Path) -> Result<(), NodeError> {
    let path = data_dir.join(FORMAT_FILE);
    let shown = path.display().to_string();
    let found = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(NodeError::io("read", shown)(error));
        }
        // Before there was a mark, keys were the first thing that a directory got.
        Err(_) if data_dir.join(FIRST_FILE).exists() => "1".to_owned(),
        Err(_) => {
            let written = File::create(&path)
                .and_then(|mut file| writeln!(file, "{FORMAT}").and_then(|()| file.sync_all()))
                .and_then(|()| File::open(data_dir)?.sync_all());
            return written.map_err(NodeError::io("write", shown));
        }
    };
    if found == FORMAT {
        return Ok(());
    }
    Err(NodeError::Format { directory: data_dir.display().to_string(), found, supported: FORMAT })
}
