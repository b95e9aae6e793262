//! A door for the fuzz targets: what reads what a user writes.

use std::path::Path;

use super::{task_file, units};

/// Reads a task file that lies on the disk and returns the request that it becomes, as JSON.
///
/// # Errors
/// What the user would be told.
pub fn task_file(path: &Path) -> Result<Vec<u8>, String> {
    let prepared = task_file::read(path).map_err(|error| error.message)?;
    serde_json::to_vec(&prepared.request).map_err(|error| error.to_string())
}

/// Sizes in bytes, times in milliseconds and shares of a processor in thousandths, where the text is one.
pub fn units(text: &str) -> [Option<u64>; 3] {
    [units::size_bytes(text).ok(), units::duration_ms(text).ok(), units::cpu_millicores(text).ok()]
}

/// Whether the text is a variable, a key, or devices of a kind.
pub fn words(text: &str) -> [bool; 3] {
    [units::variable(text).is_ok(), units::key(text).is_ok(), units::devices(text).is_ok()]
}
