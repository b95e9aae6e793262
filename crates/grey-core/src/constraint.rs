//! What a task asks of the worker that runs it, beyond amounts: labels, trust, enforcement, devices.

use serde::{Deserialize, Serialize};

use crate::attempt::SandboxLevel;
use crate::limits;
use crate::rejection::Rejection;
use crate::spec::BlobReference;

/// How far the cluster trusts a worker, from what was found out about it; a higher tier includes the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// An operator has shut it out.
    Blocked,
    /// Nothing is known of it. Nothing runs on it.
    None,
    /// It says itself what it runs.
    Software,
    /// A security module has measured what it booted.
    MeasuredTpm,
    /// Hardware vouches for it, with a weakness that is known and tolerated.
    HardwareDegraded,
    /// Hardware vouches for it.
    Hardware,
}

impl Tier {
    /// Every tier that a task may ask for, lowest first.
    pub const ASKED_FOR: [Tier; 4] =
        [Tier::Software, Tier::MeasuredTpm, Tier::HardwareDegraded, Tier::Hardware];

    /// The name in task files, statements and listings.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Blocked => "blocked",
            Tier::None => "none",
            Tier::Software => "software",
            Tier::MeasuredTpm => "measured-tpm",
            Tier::HardwareDegraded => "hardware-degraded",
            Tier::Hardware => "hardware",
        }
    }
}

/// What a worker must be like.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Constraints {
    /// Labels that it must have, sorted by key, no key twice.
    pub labels: Vec<(String, String)>,
    /// How far it must be trusted at least.
    pub tier: Tier,
    /// What it must enforce at least.
    pub sandbox: SandboxLevel,
}

impl Default for Constraints {
    fn default() -> Constraints {
        Constraints { labels: Vec::new(), tier: Tier::Software, sandbox: SandboxLevel::None }
    }
}

/// Devices of a kind: how many an attempt needs, or a worker has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Devices {
    /// The kind, as the operator names it: `gpu`.
    pub name: String,
    /// How many; at least one.
    pub count: u32,
}

/// What the items of an array are: the `GREY_ITEM` of each of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Items {
    /// Numbers that follow one another, from this on.
    Numbers(i64),
    /// The lines of a blob, each a JSON text, or a JSON object that names a file; as many as the array has tasks.
    Listed(BlobReference),
}

impl Items {
    /// What an execution key says of them.
    pub(crate) fn stated(&self) -> (String, String) {
        match self {
            Items::Numbers(first) => ("GREY_ITEM".to_owned(), format!("{first}..")),
            // No environment variable has such a name, so nothing else is stated alike.
            Items::Listed(blob) => ("GREY_ITEM=".to_owned(), blob.digest.to_string()),
        }
    }
}

fn refuse<T>(field: &str, problem: &str, limit: u64) -> Result<T, Rejection> {
    Err(Rejection::OutOfBounds { field: field.to_owned(), problem: problem.to_owned(), limit })
}

/// Checks the bounds of labels, of jobs and workers alike.
pub(crate) fn check_labels(field: &str, labels: &[(String, String)]) -> Result<(), Rejection> {
    if labels.len() > limits::LABELS {
        return refuse(field, "are too many", limits::LABELS as u64);
    }
    for (key, value) in labels {
        if key.len().max(value.len()) > limits::NAME_BYTES {
            return refuse(field, "have a key or value that is too long", limits::NAME_BYTES as u64);
        }
        if key.is_empty() {
            return refuse(field, "have an empty key", 1);
        }
    }
    let ascending = labels.windows(2).all(|pair| matches!(pair, [left, right] if left.0 < right.0));
    if ascending { Ok(()) } else { refuse(field, "name a key twice or are not sorted", 0) }
}

/// Checks the bounds of devices.
pub(crate) fn check_devices(devices: &[Devices]) -> Result<(), Rejection> {
    if devices.len() > limits::DEVICE_KINDS {
        return refuse("devices", "are of too many kinds", limits::DEVICE_KINDS as u64);
    }
    for kind in devices {
        // The name becomes part of a variable's: `gpu` is told by GREY_DEVICE_GPU.
        let letters = kind.name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if kind.name.is_empty() || kind.name.len() > limits::DEVICE_NAME_BYTES || !letters {
            let problem = "has a name that is not of lower-case letters, digits and `_`, or too long";
            return refuse("devices", problem, limits::DEVICE_NAME_BYTES as u64);
        }
        if kind.count == 0 || kind.count > limits::DEVICES {
            return refuse("devices", "are none or too many of a kind", u64::from(limits::DEVICES));
        }
    }
    let ascending = devices.windows(2).all(|pair| matches!(pair, [left, right] if left.name < right.name));
    if ascending { Ok(()) } else { refuse("devices", "name a kind twice or are not sorted", 0) }
}
