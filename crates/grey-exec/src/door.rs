//! Where a shim listens for workers: a socket in the data directory that its owner alone may open.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// The longest path that a socket's address takes, in bytes, without its end.
const ADDRESS_BYTES: usize = 107;
/// How often is looked whether there is room.
const LOOK: Duration = Duration::from_millis(10);
/// Workers that may wait to be let in.
const WAITING: i32 = 8;

/// An address that means a path, however long that is: through its open directory.
struct Address {
    address: SocketAddrUnix,
    /// Open while the address is used.
    _directory: Option<File>,
}

fn address(path: &Path) -> io::Result<Address> {
    if path.as_os_str().len() <= ADDRESS_BYTES {
        return Ok(Address { address: SocketAddrUnix::new(path)?, _directory: None });
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from_raw_os_error(Errno::NAMETOOLONG.raw_os_error()));
    };
    let directory = File::open(parent)?;
    let through = PathBuf::from("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok(Address { address: SocketAddrUnix::new(through)?, _directory: Some(directory) })
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Connects to whoever listens; `None` when nobody does. Waits while others wait to be let in, for so long at most.
pub(crate) fn dial(path: &Path, patience: Duration) -> io::Result<Option<OwnedFd>> {
    let begun = Instant::now();
    loop {
        let socket = socket()?;
        match rustix::net::connect(&socket, &address(path)?.address) {
            Ok(()) => return Ok(Some(socket)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            Err(Errno::AGAIN) if begun.elapsed() < patience => std::thread::sleep(LOOK),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Listens at a path, in the place of whoever was there. Whoever calls has the directory to itself.
pub(crate) fn make(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket()?;
    rustix::net::bind(&socket, &address(path)?.address)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(socket)
}
