//! What this machine has to give.

use std::io;
use std::path::{Path, PathBuf};

use grey_core::Resources;
use grey_core::limits::RESOURCE_TOTAL;

use crate::error::ExecError;

/// Processor, memory and disk of this machine, as far as this process may use them: processors by affinity and control
/// group, memory by the machine's total and the control groups above this process, disk by what is free where `path`
/// lies. Each is at most `RESOURCE_TOTAL`.
///
/// # Errors
/// [`ExecError::Machine`] when one of them cannot be read.
pub fn machine_resources(path: &Path) -> Result<Resources, ExecError> {
    let unreadable = |what: &'static str| move |source: io::Error| ExecError::Machine { what, source };
    let processors = std::thread::available_parallelism().map_err(unreadable("the number of processors"))?;
    let information = std::fs::read_to_string("/proc/meminfo").map_err(unreadable("/proc/meminfo"))?;
    let total = memory_total_bytes(&information)
        .ok_or_else(|| unreadable("/proc/meminfo")(io::Error::from(io::ErrorKind::InvalidData)))?;
    let disk =
        rustix::fs::statvfs(path).map_err(io::Error::from).map_err(unreadable("the free disk space"))?;
    let resources = Resources {
        cpu_millicores: (processors.get() as u64).saturating_mul(1_000),
        memory_bytes: control_group_limits().fold(total, u64::min),
        disk_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
    };
    Ok(Resources {
        cpu_millicores: resources.cpu_millicores.min(RESOURCE_TOTAL),
        memory_bytes: resources.memory_bytes.min(RESOURCE_TOTAL),
        disk_bytes: resources.disk_bytes.min(RESOURCE_TOTAL),
    })
}

fn memory_total_bytes(information: &str) -> Option<u64> {
    let line = information.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// The memory limits of the control groups above this process, of both versions; none where there are none.
fn control_group_limits() -> impl Iterator<Item = u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files: Vec<PathBuf> = groups.lines().flat_map(limit_files).collect();
    files.into_iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
}

/// The files that may limit the memory of the group that a line of `/proc/self/cgroup` names, and of those above it.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (root, file) = if controllers.is_empty() {
        (Path::new("/sys/fs/cgroup"), "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    Path::new(group.trim_start_matches('/')).ancestors().map(|group| root.join(group).join(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_bytes() {
        assert_eq!(memory_total_bytes("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 * 1024 * 1024));
        assert_eq!(memory_total_bytes("MemTotal: many"), None);
    }

    #[test]
    fn limits_are_looked_for_in_the_group_and_above_it() {
        let paths = |line: &str| -> Vec<String> {
            limit_files(line).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(
            paths("0::/a/b"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        assert_eq!(paths("9:memory:/"), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
        assert!(paths("3:cpu,cpuacct:/a").is_empty() && paths("nonsense").is_empty());
    }

    #[test]
    fn this_machine_has_something_to_give() {
        let resources = machine_resources(Path::new("/")).unwrap();
        assert!(resources.cpu_millicores >= 1_000 && resources.memory_bytes > 0 && resources.disk_bytes > 0);
    }
}
