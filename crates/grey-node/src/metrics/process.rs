//! What the node's process takes of its machine.

use std::path::Path;

use super::exposition::Exposition;

/// The most open files that are counted: a count must not take for ever.
const MOST_FILES: usize = 65_536;

/// Processor time of all threads so far, in seconds: the fourteenth and fifteenth field of `/proc/self/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name of the program stands in brackets, and may have brackets and spaces in it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(user.saturating_add(system) as f64 / ticks_per_second as f64)
}

/// Memory that lies in the machine's, in bytes: the second field of `/proc/self/statm`, which counts pages.
fn resident_bytes(statm: &str) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// Exposes what the process takes. What the system does not tell is left out.
pub(super) fn expose(exposition: &mut Exposition, data_dir: &Path) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(bytes) = resident_bytes(&read("/proc/self/statm")) {
        exposition.bytes("process_resident", "Memory of the process that lies in the machine's", bytes);
    }
    if let Some(seconds) = cpu_seconds(&read("/proc/self/stat")) {
        exposition.total_seconds("process_cpu", "Processor time of the process", seconds);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        exposition.gauge(
            "process_open_files",
            "Files and connections that are open",
            files.take(MOST_FILES).count() as u64,
        );
    }
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    exposition.gauge("process_open_files_limit", "The most that may be open", soft.unwrap_or(u64::MAX));
    if let Ok(bytes) = grey_store::free_bytes(data_dir) {
        exposition.bytes("disk_free", "Free on the disk of the data directory", bytes);
    }
    if let Ok(bytes) = grey_store::total_bytes(data_dir) {
        exposition.bytes("disk_size", "The size of that disk", bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_name_does_not_shift_the_fields() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b)) S 1 7 7 0 -1 0 0 0 0 0 {} {} 0 0 20 0 9", 2 * ticks, ticks);
        assert_eq!(cpu_seconds(&stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn this_process_has_memory_and_used_its_processor() {
        let read = |path: &str| std::fs::read_to_string(path).unwrap();
        assert!(resident_bytes(&read("/proc/self/statm")).unwrap() > 100_000);
        assert!(cpu_seconds(&read("/proc/self/stat")).is_some());
    }
}
