//! Memory, storage and processor time of this process, as the system counts them. Every value is
//! `None` where the system does not tell it.
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Time between two samples of the memory.
const INTERVAL: Duration = Duration::from_millis(5);

/// Watches the anonymous memory of the process: its memory without pages of files.
pub struct PeakMemory {
    start: Option<u64>,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PeakMemory {
    /// Starts a thread that samples the memory until the watch is dropped.
    pub fn start() -> Self {
        let start = anonymous();
        let peak = Arc::new(AtomicU64::new(start.unwrap_or(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, end) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                seen.fetch_max(anonymous().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        Self {
            start,
            peak,
            stop,
            thread: Some(thread),
        }
    }

    /// Returns the highest memory so far, in bytes.
    pub fn peak(&self) -> Option<u64> {
        let now = anonymous()?;
        Some(self.peak.fetch_max(now, Ordering::Relaxed).max(now))
    }

    /// Returns how far the highest memory is above the memory at the start, in bytes.
    pub fn growth(&self) -> Option<u64> {
        Some(self.peak()?.saturating_sub(self.start?))
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread only reads a file; a panic there has been reported.
            let _ = thread.join();
        }
    }
}

/// Returns the memory that the machine can still give, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:").map(|kib| kib << 10)
}

fn anonymous() -> Option<u64> {
    field("/proc/self/status", "RssAnon:").map(|kib| kib << 10)
}

/// Returns the highest resident memory, pages of files included, in bytes.
pub(crate) fn peak_resident() -> Option<u64> {
    field("/proc/self/status", "VmHWM:").map(|kib| kib << 10)
}

/// Returns the bytes that the system read from storage for this process.
pub(crate) fn read_from_storage() -> Option<u64> {
    field("/proc/self/io", "read_bytes:")
}

/// Returns the processor time of all threads of this process, in seconds.
pub(crate) fn processor_seconds() -> Option<f64> {
    /// Ticks a second in /proc. Linux reports 100 to programs on every machine.
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything. After it come the state and numbers; the 12th and
    // 13th fields are user and system time.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11).map(str::parse::<f64>);
    Some((times.next()?.ok()? + times.next()?.ok()?) / TICKS)
}

fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_taken_and_given_back_is_seen() {
        let watch = PeakMemory::start();
        let Some(before) = watch.peak() else {
            return;
        };
        let held = vec![1u8; 64 << 20];
        thread::sleep(8 * INTERVAL);
        drop(std::hint::black_box(held));
        let after = watch.peak().unwrap();
        assert!(after >= before && after >= 64 << 20, "{after}");
        assert!(watch.growth().unwrap() >= 60 << 20);
        assert!(peak_resident().unwrap() >= after);
    }

    #[test]
    fn processor_time_goes_on() {
        let Some(before) = processor_seconds() else {
            return;
        };
        let since = std::time::Instant::now();
        while processor_seconds().unwrap() <= before {
            assert!(since.elapsed() < Duration::from_secs(60));
        }
    }
}
