//! What the guard of one attempt is told and what it reports.
//!
//! Little-endian numbers, byte strings after their length. A plan may be of a later version than the guard that reads it, so
//! both are of the protocol between worker and shim. The guard trusts the worker; what is read is bounded.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The argument that turns the binary into a launcher.
pub(crate) const LAUNCH_ARGUMENT: &str = "__grey-launch";
/// The most bytes of an encoded plan: command, environment and the paths of every input fit several times.
pub(crate) const PLAN_BYTES: usize = 16 * 1024 * 1024;
/// The length of a plan's length, in bytes.
pub(crate) const LENGTH_BYTES: usize = 4;
/// The most items of one list in a plan.
const LIST_ITEMS: usize = 16 * 1024;
/// Asks a guard for SIGTERM to the process group of the task's main process.
pub(crate) const CONTROL_TERMINATE: u8 = b'T';
/// Asks a guard for the end of every process of the attempt. A closed socket asks the same.
pub(crate) const CONTROL_KILL: u8 = b'K';

const _: () =
    assert!(PLAN_BYTES > 4 * (grey_core::limits::COMMAND_BYTES * 2 + grey_core::limits::INPUT_FILES * 2_048));

/// How the processes of an attempt are kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fence {
    /// A pid and a mount namespace, made with the privilege that the worker has.
    Namespaces,
    /// The same inside a user namespace that maps the worker's user to itself.
    UserNamespaces,
    /// No namespace: the guard adopts orphans and kills every descendant that it finds.
    Subreaper,
}

impl Fence {
    /// The byte that stands for it.
    pub(crate) fn number(self) -> u8 {
        match self {
            Fence::Namespaces => 0,
            Fence::UserNamespaces => 1,
            Fence::Subreaper => 2,
        }
    }

    /// The fence of a byte.
    pub(crate) fn of(number: u8) -> Option<Fence> {
        [Fence::Namespaces, Fence::UserNamespaces, Fence::Subreaper]
            .into_iter()
            .find(|fence| fence.number() == number)
    }
}

/// One file to lay into the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedInput {
    /// Where the content lies; absolute.
    pub(crate) source: PathBuf,
    /// Where it goes, below the working directory.
    pub(crate) path: PathBuf,
    /// Whether the owner may execute it.
    pub(crate) executable: bool,
}

/// Everything a guard needs to know about one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// How to keep its processes together.
    pub(crate) fence: Fence,
    /// Only try the fence and report; no program is started.
    pub(crate) probe: bool,
    /// The attempt's directory, which has `work`, `out` and `tmp`; absolute.
    pub(crate) directory: PathBuf,
    /// Standard input; the null device without it.
    pub(crate) stdin: Option<PathBuf>,
    /// Input files.
    pub(crate) inputs: Vec<PlannedInput>,
    /// Program and arguments.
    pub(crate) command: Vec<Vec<u8>>,
    /// The whole environment, each `NAME=value`.
    pub(crate) environment: Vec<Vec<u8>>,
}

impl Plan {
    /// The plan behind its length, as it stands at the beginning of the file that the guard reads.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH_BYTES];
        bytes.push(self.fence.number());
        bytes.push(u8::from(self.probe));
        put(&mut bytes, self.directory.as_os_str().as_bytes());
        put(&mut bytes, self.stdin.as_deref().map_or(&[], |path| path.as_os_str().as_bytes()));
        put_length(&mut bytes, self.inputs.len());
        for input in &self.inputs {
            put(&mut bytes, input.source.as_os_str().as_bytes());
            put(&mut bytes, input.path.as_os_str().as_bytes());
            bytes.push(u8::from(input.executable));
        }
        for list in [&self.command, &self.environment] {
            put_length(&mut bytes, list.len());
            list.iter().for_each(|item| put(&mut bytes, item));
        }
        let length = u32::try_from(bytes.len().saturating_sub(LENGTH_BYTES)).unwrap_or(u32::MAX);
        if let Some(header) = bytes.first_chunk_mut::<LENGTH_BYTES>() {
            *header = length.to_le_bytes();
        }
        bytes
    }

    /// Reads a plan without its length; `None` when it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Plan> {
        let mut rest = bytes;
        let fence = Fence::of(take_byte(&mut rest)?)?;
        let probe = take_byte(&mut rest)? != 0;
        let directory = path(take(&mut rest)?);
        let stdin = Some(take(&mut rest)?).filter(|bytes| !bytes.is_empty()).map(path);
        let inputs = take_list(&mut rest, |rest| {
            Some(PlannedInput {
                source: path(take(rest)?),
                path: path(take(rest)?),
                executable: take_byte(rest)? != 0,
            })
        })?;
        let command = take_list(&mut rest, |rest| take(rest).map(<[u8]>::to_vec))?;
        let environment = take_list(&mut rest, |rest| take(rest).map(<[u8]>::to_vec))?;
        rest.is_empty().then_some(Plan { fence, probe, directory, stdin, inputs, command, environment })
    }

    /// The directory the program starts in.
    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join(crate::directory::WORK)
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    Path::new(&OsString::from_vec(bytes.to_vec())).to_path_buf()
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn put(bytes: &mut Vec<u8>, item: &[u8]) {
    put_length(bytes, item.len());
    bytes.extend_from_slice(item);
}

fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

fn take_length(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    usize::try_from(u32::from_le_bytes(*number)).ok()
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_length(rest)?;
    let (item, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(item)
}

fn take_list<T>(rest: &mut &[u8], mut item: impl FnMut(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let length = take_length(rest).filter(|length| *length <= LIST_ITEMS)?;
    (0..length).map(|_| item(rest)).collect()
}

/// Which step of an attempt's preparation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Reading and understanding the plan.
    Plan,
    /// Making the namespaces or becoming the reaper of orphans.
    Fence,
    /// Laying in the input file whose position is told.
    Input,
    /// Opening standard input.
    Stdin,
    /// Entering the working directory.
    WorkDirectory,
    /// Starting or restricting the first process.
    Process,
    /// Finding the descendants that were to be killed.
    Descendants,
}

const STAGES: [Stage; 7] = [
    Stage::Plan,
    Stage::Fence,
    Stage::Input,
    Stage::Stdin,
    Stage::WorkDirectory,
    Stage::Process,
    Stage::Descendants,
];

impl Stage {
    /// The number that stands for it in a report.
    pub(crate) fn number(self) -> u64 {
        STAGES.iter().zip(0..).find_map(|(stage, number)| (*stage == self).then_some(number)).unwrap_or(0)
    }

    /// The stage of a number.
    pub(crate) fn of(number: u64) -> Option<Stage> {
        usize::try_from(number).ok().and_then(|number| STAGES.get(number).copied())
    }
}

/// What the reaped processes of an attempt used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Consumed {
    /// Processor time in microseconds.
    pub(crate) cpu_time_us: u64,
    /// Largest resident set of one process, in bytes.
    pub(crate) peak_memory_bytes: u64,
}

/// Why a program did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotStarted {
    /// There is no such file, by name or on the search path.
    NotFound,
    /// The file exists and the system would not execute it.
    NotExecutable,
    /// The file exists and the interpreter or loader that it names does not.
    NoInterpreter,
}

/// What a guard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// Answer to a probe, and the last word: the error number of mounting `/proc`, zero when it succeeded.
    Probed(i32),
    /// The program is running.
    Started,
    /// The program could not be started: the last word.
    NotStarted(NotStarted, i32),
    /// The main process ended with this wait status, and every other one was killed and reaped.
    Ended(i32, Consumed),
    /// The attempt could not be prepared: stage, error number, position. Of a fence, the shim may say it.
    Failed(Stage, i32, u64),
}

/// The length of an encoded report: one write of it is never mixed with another's.
pub(crate) const REPORT_BYTES: usize = 21;

impl Report {
    /// The report as it is written.
    pub(crate) fn encode(self) -> [u8; REPORT_BYTES] {
        let (tag, small, first, second) = match self {
            Report::Probed(error) => (2, error, 0, 0),
            Report::Started => (3, 0, 0, 0),
            Report::NotStarted(why, error) => (
                4,
                error,
                match why {
                    NotStarted::NotFound => 0,
                    NotStarted::NotExecutable => 1,
                    NotStarted::NoInterpreter => 2,
                },
                0,
            ),
            Report::Ended(status, used) => (5, status, used.cpu_time_us, used.peak_memory_bytes),
            Report::Failed(stage, error, position) => (6, error, stage.number(), position),
        };
        let mut bytes = [0; REPORT_BYTES];
        let fields = std::iter::once(tag)
            .chain(i32::to_le_bytes(small))
            .chain(u64::to_le_bytes(first))
            .chain(u64::to_le_bytes(second));
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// Reads a report; `None` when it is not one.
    pub(crate) fn decode(bytes: &[u8; REPORT_BYTES]) -> Option<Report> {
        let (tag, rest) = bytes.split_first()?;
        let (small, rest) = rest.split_first_chunk::<4>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (second, _) = rest.split_first_chunk::<8>()?;
        let (small, first, second) =
            (i32::from_le_bytes(*small), u64::from_le_bytes(*first), u64::from_le_bytes(*second));
        let used = Consumed { cpu_time_us: first, peak_memory_bytes: second };
        Some(match tag {
            2 => Report::Probed(small),
            3 => Report::Started,
            4 => Report::NotStarted(
                match first {
                    0 => NotStarted::NotFound,
                    1 => NotStarted::NotExecutable,
                    2 => NotStarted::NoInterpreter,
                    _ => return None,
                },
                small,
            ),
            5 => Report::Ended(small, used),
            6 => Report::Failed(Stage::of(first)?, small, second),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            fence: Fence::UserNamespaces,
            probe: false,
            directory: PathBuf::from("/w/t1-e2"),
            stdin: Some(PathBuf::from("/blobs/a")),
            inputs: vec![PlannedInput {
                source: PathBuf::from("/blobs/b"),
                path: PathBuf::from("in/ü"),
                executable: true,
            }],
            command: vec![b"sh".to_vec(), b"\xff".to_vec()],
            environment: vec![b"A=".to_vec()],
        }
    }

    #[test]
    fn a_plan_reads_back_as_written_and_no_cut_or_longer_one_is_taken() {
        let bytes = plan().encode();
        let body = &bytes[4..];
        assert_eq!(u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize, body.len());
        assert_eq!(Plan::decode(body), Some(plan()));
        for end in 0..body.len() {
            assert_eq!(Plan::decode(&body[..end]), None, "{end} bytes were taken");
        }
        assert_eq!(Plan::decode(&[body, b"x"].concat()), None);
    }

    #[test]
    fn every_report_reads_back_as_written() {
        let used = Consumed { cpu_time_us: 7, peak_memory_bytes: u64::MAX };
        for report in [
            Report::Probed(13),
            Report::Started,
            Report::NotStarted(NotStarted::NoInterpreter, 2),
            Report::Ended(0x0100, used),
            Report::Failed(Stage::Descendants, 5, 1023),
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!(Report::decode(&[9; REPORT_BYTES]), None);
    }
}
