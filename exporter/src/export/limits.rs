//! Measures how fast an export could be at best.
//!
//! Limit (a) reads the checkpoint and writes the output by plain copies of 1 MiB. Limit (b)
//! computes the LoRA's multiply-adds at 70 % of this machine's f32 rate. Both rates come from short
//! runs on the same disk and cores. A short run does not see a disk that slows down later, or other
//! users of the disk.
use crate::checkpoint::product;
use rustix::fs::{Advice, fadvise};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of one plain copy.
const COPY: usize = 1 << 20;
/// Share of the measured rate of multiply-adds that a good product reaches.
const GOOD: f64 = 0.7;

/// The work of one export.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Task {
    /// Bytes of the checkpoint that were read.
    pub(super) read: u64,
    /// Of these, bytes read from storage. `None`: the system does not tell, and all bytes count.
    pub(super) from_storage: Option<u64>,
    /// Bytes written.
    pub(super) written: u64,
    /// Multiply-adds of the LoRA.
    pub(super) multiply_adds: u64,
    /// Threads that worked.
    pub(super) threads: usize,
    /// Wall time.
    pub(super) seconds: f64,
}

/// The length of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Effort {
    /// Most bytes that each of the three copies moves.
    bytes: u64,
    /// Most time that each copy takes, without the final synchronisation.
    time: Duration,
}

impl Effort {
    /// For exports without the flag: less than two seconds in all.
    pub(super) const BRIEF: Self = Self {
        bytes: 256 << 20,
        time: Duration::from_millis(600),
    };
    /// For exports with the flag: long enough to fill a disk's write cache.
    pub(super) const THOROUGH: Self = Self {
        bytes: 1 << 30,
        time: Duration::from_secs(4),
    };
}

/// Rates of the machine, in bytes or multiply-adds a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Reads from storage: the pages are dropped from the page cache first.
    pub cold_read: f64,
    /// Reads of the same pages from the page cache.
    pub cached_read: f64,
    /// Writes beside the output, synchronised at the end.
    pub write: f64,
    /// Multiply-adds of all cores with the exporter's own kernel.
    pub multiply_adds: f64,
}

/// The work and the time of an export, beside the rates of the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Rates of the machine.
    pub rates: Rates,
    /// Bytes of the checkpoint that were read.
    pub read: u64,
    /// Of these, bytes read from storage; the rest came from the page cache.
    pub from_storage: u64,
    /// Bytes written.
    pub written: u64,
    /// Multiply-adds of the LoRA.
    pub multiply_adds: u64,
    /// Threads that worked.
    pub threads: usize,
    /// Wall time of the export.
    pub seconds: f64,
}

impl Limits {
    pub(super) fn new(task: Task, rates: Rates) -> Self {
        Self {
            rates,
            read: task.read,
            from_storage: task.from_storage.unwrap_or(task.read).min(task.read),
            written: task.written,
            multiply_adds: task.multiply_adds,
            threads: task.threads,
            seconds: task.seconds,
        }
    }

    /// Returns limit (a): seconds of plain copies.
    pub fn copies(&self) -> f64 {
        self.from_storage as f64 / self.rates.cold_read
            + (self.read - self.from_storage) as f64 / self.rates.cached_read
            + self.written as f64 / self.rates.write
    }

    /// Returns limit (b): seconds of the LoRA's multiply-adds.
    pub fn lora(&self) -> f64 {
        self.multiply_adds as f64 / (GOOD * self.rates.multiply_adds)
    }

    /// Returns the export's time divided by the larger limit.
    pub fn ratio(&self) -> f64 {
        self.seconds / self.copies().max(self.lora())
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gb, mb) = (|n: u64| n as f64 / 1e9, |r: f64| r / 1e6);
        writeln!(
            f,
            "limit (a), 1 MiB copies: {:.1} s = {:.2} GB from storage at {:.0} MB/s \
             + {:.2} GB from the page cache at {:.0} MB/s \
             + {:.2} GB written and synchronised at {:.0} MB/s",
            self.copies(),
            gb(self.from_storage),
            mb(self.rates.cold_read),
            gb(self.read - self.from_storage),
            mb(self.rates.cached_read),
            gb(self.written),
            mb(self.rates.write)
        )?;
        writeln!(
            f,
            "limit (b), LoRA: {:.1} s = {:.1} G multiply-adds at 70 % of {:.1} G/s \
             (own kernel, {} threads)",
            self.lora(),
            gb(self.multiply_adds),
            self.rates.multiply_adds / 1e9,
            self.threads
        )?;
        write!(
            f,
            "time {:.1} s = {:.2} x the larger limit; rates are from short probes, scaled",
            self.seconds,
            self.ratio()
        )
    }
}

/// Measures the machine: reads parts of `files`, writes and removes a file in `dir`, and
/// multiplies.
pub(super) fn measure(
    files: &[PathBuf],
    dir: &Path,
    threads: usize,
    effort: Effort,
) -> io::Result<Rates> {
    // The pages are read twice: first from storage, then from the cache.
    let cold = read(files, effort, true)?;
    let cached = read(files, effort, false)?;
    Ok(Rates {
        cold_read: cold,
        cached_read: cached,
        write: write(&dir.join(format!(".limits-{}", std::process::id())), effort)?,
        multiply_adds: product::rate(threads, effort.time.min(Duration::from_millis(500))),
    })
}

/// Returns the bytes a second of plain reads. Every file has an equal share.
fn read(files: &[PathBuf], effort: Effort, cold: bool) -> io::Result<f64> {
    let (mut buffer, mut done) = (vec![0u8; COPY], 0u64);
    let share = effort.bytes / files.len().max(1) as u64;
    let (mut taken, limit) = (Duration::ZERO, effort.time);
    for path in files {
        let file = File::open(path)?;
        let end = share.min(file.metadata()?.len()).max(COPY as u64);
        if cold {
            // This is advice. Pages that stay in the cache make the rate higher than the disk's.
            let _ = fadvise(&file, 0, NonZeroU64::new(end), Advice::DontNeed);
        }
        let start = Instant::now();
        let mut at = 0;
        while at < end && taken + start.elapsed() < limit {
            match file.read_at(&mut buffer, at)? {
                0 => break,
                n => at += n as u64,
            }
        }
        done += at;
        taken += start.elapsed();
    }
    Ok(done as f64 / taken.as_secs_f64().max(1e-9))
}

/// Returns the bytes a second of plain writes, synchronised at the end. Removes the file also after
/// an error.
fn write(path: &Path, effort: Effort) -> io::Result<f64> {
    let buffer: Vec<u8> = (0..COPY).map(|i| (i * 31 % 251) as u8).collect();
    let start = Instant::now();
    let run = || {
        let (mut file, mut done) = (File::create(path)?, 0u64);
        while done < effort.bytes && start.elapsed() < effort.time {
            file.write_all(&buffer)?;
            done += COPY as u64;
        }
        file.sync_all()?;
        Ok(done)
    };
    let done: io::Result<u64> = run();
    let taken = start.elapsed().as_secs_f64().max(1e-9);
    let removed = fs::remove_file(path);
    let done = done?;
    removed?;
    Ok(done as f64 / taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_limit_counts() {
        let rates = Rates {
            cold_read: 1e9,
            cached_read: 4e9,
            write: 2e9,
            multiply_adds: 1e11,
        };
        let task = Task {
            read: 10_000_000_000,
            from_storage: Some(2_000_000_000),
            written: 20_000_000_000,
            multiply_adds: 140_000_000_000,
            threads: 2,
            seconds: 21.0,
        };
        let limits = Limits::new(task, rates);
        assert!((limits.copies() - (2.0 + 2.0 + 10.0)).abs() < 1e-9);
        assert!((limits.lora() - 2.0).abs() < 1e-9);
        assert!((limits.ratio() - 1.5).abs() < 1e-9);
        let lora = Task {
            multiply_adds: 2_940_000_000_000,
            from_storage: None,
            ..task
        };
        let limits = Limits::new(lora, rates);
        assert!((limits.copies() - 20.0).abs() < 1e-9);
        assert!((limits.ratio() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_measurement_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, vec![7u8; 3 << 20]).unwrap();
        let effort = Effort {
            bytes: 2 << 20,
            time: Duration::from_millis(20),
        };
        let rates = measure(&[file], dir.path(), 1, effort).unwrap();
        for rate in [rates.cold_read, rates.cached_read, rates.write] {
            assert!(rate > 1e3 && rate.is_finite(), "{rates:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
