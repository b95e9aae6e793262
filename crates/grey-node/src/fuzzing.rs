//! A door for the fuzz targets: what clients send becomes submissions, batches of a stream and items of a list.

use grey_core::{Resources, Submit, TaskDefaults};

use crate::{http, items};

/// The submissions that a body becomes at each of the endpoints that take it; those that refuse it are left out.
pub fn submissions(body: &[u8]) -> Vec<Submit> {
    let resources = Resources { cpu_millicores: 1_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 };
    let defaults = TaskDefaults { resources, timeout_ms: 60_000, output_limit_bytes: 1 << 20, priority: 100 };
    http::submissions(body, &defaults)
}

/// The batches of a stream that comes in pieces of so many bytes, or why it is refused.
///
/// # Errors
/// What the client would be told.
pub fn batches(text: &[u8], piece_bytes: usize) -> Result<Vec<Vec<u8>>, String> {
    http::batches(text, piece_bytes)
}

/// What `GREY_ITEM` says of a line of a list, where it is one.
pub fn item(line: &[u8]) -> Option<String> {
    items::parse(line).ok().map(|item| item.text)
}
