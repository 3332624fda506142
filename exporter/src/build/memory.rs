//! Host memory of this process and of the machine, from /proc.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(5);

/// Watches how much anonymous memory the process takes over what it had.
pub struct Peak {
    before: u64,
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Peak {
    pub fn start() -> Self {
        let before = anonymous();
        let most = Arc::new(AtomicU64::new(before));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&most), Arc::clone(&stop));
        let watcher = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                shared.fetch_max(anonymous(), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        Self {
            before,
            most,
            stop,
            watcher: Some(watcher),
        }
    }

    /// Bytes over what the process had at the start, at most.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.most
            .load(Ordering::Relaxed)
            .max(anonymous())
            .saturating_sub(self.before)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            // The watcher only reads numbers; were it to fail, the peak is what it saw until then.
            let _ = watcher.join();
        }
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.end();
    }
}

/// Anonymous resident memory of this process, bytes; 0 where there is no /proc.
fn anonymous() -> u64 {
    field("/proc/self/status", "RssAnon:")
}

/// Memory that the machine can still give, bytes; 0 where it does not say.
pub fn available() -> u64 {
    field("/proc/meminfo", "MemAvailable:")
}

fn field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_taken_and_given_back_is_seen() {
        let peak = Peak::start();
        let held = vec![1u8; 64 << 20];
        thread::sleep(4 * INTERVAL);
        drop(std::hint::black_box(held));
        let most = peak.stop();
        assert!(most >= 60 << 20, "{most}");
    }
}
