//! What the process uses, as the system counts it: memory of its own apart from pages of files, and bytes that came from storage.
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often memory is looked at.
const EVERY: Duration = Duration::from_millis(10);

/// Watches memory until asked for the peak.
pub(super) struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start() -> Self {
        let (peak, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (seen, end) = (Arc::clone(&peak), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                seen.fetch_max(anonymous().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(EVERY);
            }
        });
        Self {
            peak,
            stop,
            thread: Some(thread),
        }
    }

    /// Most memory of the process's own so far, file pages apart, in bytes; `None` where the system does not tell.
    pub(super) fn peak_anonymous(&self) -> Option<u64> {
        let now = anonymous()?;
        Some(self.peak.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads a file; a panic there has been reported.
            let _ = thread.join();
        }
    }
}

fn anonymous() -> Option<u64> {
    field("/proc/self/status", "RssAnon:").map(|kb| kb << 10)
}

/// Most resident memory ever, pages of files included, in bytes.
pub(super) fn peak_resident() -> Option<u64> {
    field("/proc/self/status", "VmHWM:").map(|kb| kb << 10)
}

/// Bytes that this process has had read from storage.
pub(super) fn read_from_storage() -> Option<u64> {
    field("/proc/self/io", "read_bytes:")
}

/// Seconds of processor time that all threads of this process have had.
pub(super) fn processor_seconds() -> Option<f64> {
    /// Ticks a second in which Linux tells it to programs, on every machine this runs on.
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything: state, then numbers, of which the 12th and 13th are user and system time.
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
    fn memory_that_is_touched_is_seen() {
        let watch = Watch::start();
        let Some(before) = watch.peak_anonymous() else {
            return;
        };
        let held = vec![1u8; 64 << 20];
        thread::sleep(5 * EVERY);
        drop(std::hint::black_box(held));
        let after = watch.peak_anonymous().unwrap();
        assert!(after > before.min(after) && after >= 64 << 20, "{after}");
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
