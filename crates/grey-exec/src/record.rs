//! The file that an attempt is started with: its plan, for the guard, then what the worker wants to have back with an
//! attempt that outlives it. It lies in memory and belongs to whoever has it open.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;

use crate::plan::{LENGTH_BYTES, PLAN_BYTES, Plan};

/// The most bytes of a record.
const RECORD_BYTES: usize = 16 * 1024 * 1024;

/// Writes both.
pub(crate) fn write(plan: &Plan, record: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = rustix::fs::memfd_create("grey-attempt", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(descriptor);
    let mut bytes = plan.encode();
    bytes.extend_from_slice(record);
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// Reads the record; an error where there is none of a length that one may have.
pub(crate) fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let mut length = [0; LENGTH_BYTES];
    file.read_exact_at(&mut length, 0)?;
    let plan = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    let begin = LENGTH_BYTES.saturating_add(plan);
    let end = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let length = end.checked_sub(begin).filter(|length| plan <= PLAN_BYTES && *length <= RECORD_BYTES);
    let mut record = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
    file.read_exact_at(&mut record, begin as u64)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_written_and_a_file_without_one_has_none() {
        let (plan, _) = (Plan::decode(&crate::fuzzing::examples()[0]).unwrap(), ());
        assert_eq!(read(write(&plan, b"kept").unwrap()).unwrap(), b"kept");
        assert_eq!(read(write(&plan, b"").unwrap()).unwrap(), b"");
        let file = |bytes: &[u8]| {
            let mut file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            file.write_all(bytes).unwrap();
            OwnedFd::from(file)
        };
        for wrong in [&b""[..], b"\x01\0\0", b"\x09\0\0\0short", b"\xff\xff\xff\xffx"] {
            assert!(read(file(wrong)).is_err(), "{wrong:?} has a record");
        }
    }
}
