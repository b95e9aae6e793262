//! A door for the fuzz targets: what goes between worker, shim and guards, and patterns of output files.

use std::path::PathBuf;

use crate::message::{self, FromShim, ToShim};
use crate::pattern::Pattern;
use crate::plan::{Consumed, Fence, NotStarted, Plan, PlannedInput, REPORT_BYTES as LENGTH, Report, Stage};

/// The length of a report.
pub const REPORT_BYTES: usize = LENGTH;

/// Reads a plan without its length and writes it again; nothing when it is none.
pub fn plan(bytes: &[u8]) -> Option<Vec<u8>> {
    Plan::decode(bytes).and_then(|plan| plan.encode().get(4..).map(<[u8]>::to_vec))
}

/// Reads a report and writes it again; nothing when it is none.
pub fn report(bytes: &[u8]) -> Option<Vec<u8>> {
    Report::decode(bytes.first_chunk()?).map(|report| report.encode().to_vec())
}

/// Reads a message of a worker and writes it again; nothing when it is none.
pub fn to_shim(bytes: &[u8]) -> Option<Vec<u8>> {
    ToShim::decode(bytes).map(ToShim::encode)
}

/// Reads a message of a shim and writes it again; nothing when it is none.
pub fn from_shim(bytes: &[u8]) -> Option<Vec<u8>> {
    FromShim::decode(bytes).map(FromShim::encode)
}

/// A message of each kind, as it is written.
pub fn messages() -> Vec<Vec<u8>> {
    let (to, from) = message::examples();
    to.into_iter().map(ToShim::encode).chain(from.into_iter().map(FromShim::encode)).collect()
}

/// Whether a path matches a pattern; nothing when that is not known within the budget.
pub fn matches(pattern: &str, path: &[u8], mut budget: u64) -> Option<bool> {
    Pattern::new(pattern).matches(path, &mut budget).ok()
}

/// Plans and reports as they are written.
pub fn examples() -> Vec<Vec<u8>> {
    let input =
        PlannedInput { source: PathBuf::from("/blobs/b"), path: PathBuf::from("in/a"), executable: true };
    let plan = Plan {
        fence: Fence::UserNamespaces,
        probe: false,
        directory: PathBuf::from("/w/t1-e2"),
        stdin: Some(PathBuf::from("/blobs/a")),
        inputs: vec![input],
        command: vec![b"sh".to_vec(), b"-c".to_vec()],
        environment: vec![b"A=b".to_vec()],
    };
    let used = Consumed { cpu_time_us: 7, peak_memory_bytes: 4_096 };
    let reports = [
        Report::Probed(0),
        Report::Started,
        Report::NotStarted(NotStarted::NotFound, 2),
        Report::Ended(256, used),
        Report::Failed(Stage::Input, 5, 1),
    ];
    let reports = reports.into_iter().flat_map(Report::encode).collect();
    vec![plan.encode().split_off(4), reports]
}
