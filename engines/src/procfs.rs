//! What Linux's `/proc` says of this process and its host. A system without `/proc` gives `None`.

use std::fs;

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Bytes in memory now. Mapped files count with the pages that are in memory.
    pub resident: u64,
    /// Most bytes that ever were in memory.
    pub peak: u64,
}

/// Memory of the host, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All memory.
    pub total: u64,
    /// Memory that programs can still get without swapping.
    pub available: u64,
}

/// Returns the memory of this process.
pub fn process_memory() -> Option<ProcessMemory> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    Some(ProcessMemory {
        resident: kib(&text, "VmRSS:")?,
        peak: kib(&text, "VmHWM:")?,
    })
}

/// Returns the memory of the host.
pub fn host_memory() -> Option<HostMemory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(HostMemory {
        total: kib(&text, "MemTotal:")?,
        available: kib(&text, "MemAvailable:")?,
    })
}

/// Returns the number of files that this process may have open. `u64::MAX` is no limit.
pub fn most_open_files() -> Option<u64> {
    open_files_in(&fs::read_to_string("/proc/self/limits").ok()?)
}

/// Reads one amount of memory from lines such as `VmRSS:   1234 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// Reads the soft limit from the text of `/proc/self/limits`.
fn open_files_in(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_limits_are_read() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(kib(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(kib(status, "VmSwap:"), None);
        let limits = "Limit            Soft Limit   Hard Limit  Units\n\
                      Max open files   1024         524288      files\n";
        assert_eq!(open_files_in(limits), Some(1024));
        let limits = "Max open files   unlimited    unlimited   files\n";
        assert_eq!(open_files_in(limits), Some(u64::MAX));
        assert_eq!(open_files_in("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_its_peak_is_no_less() {
        let memory = process_memory().unwrap();
        assert!(
            memory.resident > 0 && memory.peak >= memory.resident,
            "{memory:?}"
        );
        let host = host_memory().unwrap();
        assert!(
            host.available <= host.total && host.total > memory.resident,
            "{host:?}"
        );
    }
}
