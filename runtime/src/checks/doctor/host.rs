//! Processor, memory, disk and limits of the host.

use std::path::Path;

use engines::error_kind::ErrorKind;
use engines::procfs::{self, HostMemory};

use super::report::Line;

/// Free memory below which even a small model may not fit.
const LITTLE_MEMORY: u64 = 4_000_000_000;
/// Free disk below which a long video may not fit. An hour at 704*384 takes about 3 GB, and for a
/// moment the disk holds it twice.
const LITTLE_DISK: u64 = 6_000_000_000;
/// Open files below which a model of forty layers may not open.
const FEW_FILES: u64 = 512;

/// Checks the host, and the disk of `save_dir`.
pub(super) fn lines(save_dir: &Path) -> Vec<Line> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    vec![
        Line::ok(
            "processor",
            format!("{cores} cores, {}", std::env::consts::ARCH),
        ),
        memory(procfs::host_memory(), memory_limit()),
        files(procfs::most_open_files()),
        usage(procfs::process_memory().is_some()),
        disk(save_dir),
        temporary(&std::env::temp_dir()),
    ]
}

/// Returns the memory that the control group of this process allows, if it limits memory.
fn memory_limit() -> Option<u64> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    text.trim().parse().ok()
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn memory(host: Option<HostMemory>, limit: Option<u64>) -> Line {
    let Some(host) = host else {
        let remedy = "mount /proc; without it no plan knows the memory of this host";
        return Line::warning("memory", "/proc/meminfo cannot be read", remedy);
    };
    let limited = limit.filter(|&limit| limit < host.total);
    let free = limited.map_or(host.available, |limit| limit.min(host.available));
    let limited = limited.map_or_else(String::new, |limit| {
        format!(", limited to {:.1} GB by the control group", gb(limit))
    });
    let text = format!(
        "{:.1} of {:.1} GB free{limited}",
        gb(host.available),
        gb(host.total)
    );
    match free < LITTLE_MEMORY {
        true => Line::warning("memory", text, "end other programs, or raise the limit"),
        false => Line::ok("memory", text),
    }
}

fn files(most: Option<u64>) -> Line {
    match most {
        Some(u64::MAX) => Line::ok("open files", "no limit"),
        Some(most) if most < FEW_FILES => {
            let text = format!("at most {most}");
            Line::warning("open files", text, "raise the limit: ulimit -n 4096")
        }
        Some(most) => Line::ok("open files", format!("at most {most}")),
        None => Line::warning(
            "open files",
            "/proc/self/limits cannot be read",
            "mount /proc",
        ),
    }
}

fn usage(told: bool) -> Line {
    match told {
        true => Line::ok("/proc", "tells the memory of this process"),
        false => Line::warning(
            "/proc",
            "/proc/self/status cannot be read",
            "mount /proc; without it no summary has the peak of memory",
        ),
    }
}

/// Checks the disk that videos go to. A folder that does not exist yet lies on its parent's disk.
fn disk(folder: &Path) -> Line {
    let subject = format!("disk of {}", folder.display());
    let there = folder.ancestors().find(|f| f.is_dir());
    let there = there.unwrap_or(Path::new("."));
    let remedy = "choose another folder for the videos";
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK);
    match (rustix::fs::statvfs(there), writable) {
        (Err(error), _) | (_, Err(error)) => {
            let reason = std::io::Error::from(error).to_string();
            Line::error(subject, reason, remedy, ErrorKind::Resources)
        }
        (Ok(disk), Ok(())) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            room(
                subject,
                free,
                "free some room: a long video needs twice its size at the end",
            )
        }
    }
}

fn room(subject: String, free: u64, remedy: &str) -> Line {
    let text = format!("{:.1} GB free", gb(free));
    match free < LITTLE_DISK {
        true => Line::warning(subject, text, remedy),
        false => Line::ok(subject, text),
    }
}

/// Checks the folder of temporary files, which keeps speech that comes through a pipe.
fn temporary(folder: &Path) -> Line {
    let subject = format!("temporary files in {}", folder.display());
    match tempfile::tempfile_in(folder) {
        Ok(_) => Line::ok(subject, "can be made"),
        Err(error) => Line::warning(
            subject,
            error.to_string(),
            "name a folder that can be written by TMPDIR; speech from a pipe needs it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn little_memory_few_files_and_a_full_disk_are_warnings() {
        let host = |available| {
            Some(HostMemory {
                total: 64_000_000_000,
                available,
            })
        };
        let much = 60_000_000_000;
        for (line, level) in [
            (memory(host(much), None), Level::Ok),
            (memory(host(much), Some(3_000_000_000)), Level::Warning),
            (memory(host(3_000_000_000), None), Level::Warning),
            (memory(None, None), Level::Warning),
            (files(Some(1024)), Level::Ok),
            (files(Some(256)), Level::Warning),
            (files(None), Level::Warning),
            (room("disk".to_owned(), much, "x"), Level::Ok),
            (room("disk".to_owned(), 1_000_000, "x"), Level::Warning),
        ] {
            assert_eq!(line.level, level, "{line:?}");
            assert_eq!(line.remedy.is_some(), level != Level::Ok, "{line:?}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_yet_lies_on_its_parents_disk() {
        let dir = tempfile::tempdir().unwrap();
        let line = disk(&dir.path().join("a/b"));
        assert!(line.text.ends_with("GB free"), "{line:?}");
        let line = disk(Path::new("/proc/1/no/such"));
        assert_ne!(line.level, Level::Ok, "{line:?}");
    }
}
