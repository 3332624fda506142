//! The file of metrics: one JSON object a line.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::chain::clock::Busy;

/// The first line.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Start {
    at: &'static str,
    version: &'static str,
    /// Seconds since 1970, to lay the file over others.
    unix_seconds: f64,
    /// Whether NVML tells the memory of devices, or why not.
    nvml: String,
    red_line_bytes: Option<u64>,
}

impl Start {
    pub(super) fn new(nvml: String, red_line_bytes: Option<u64>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            at: "start",
            version: env!("CARGO_PKG_VERSION"),
            unix_seconds: now.unwrap_or_default().as_secs_f64(),
            nvml,
            red_line_bytes,
        }
    }
}

/// One look at a run.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Sample {
    /// `second`, `block` or `end`.
    pub(super) at: &'static str,
    /// Seconds since the start line.
    pub(super) seconds: f64,
    /// Part of the work that began last.
    pub(super) phase: Option<&'static str>,
    /// Blocks on the disk.
    pub(super) blocks: usize,
    /// Frames on the disk.
    pub(super) frames: usize,
    /// Frames a second since everything was loaded.
    pub(super) fps: Option<f64>,
    /// Seconds between the newest block and the one before.
    pub(super) block_seconds: Option<f64>,
    /// Memory of the process now.
    pub(super) rss_bytes: Option<u64>,
    /// Most memory of the process.
    pub(super) peak_rss_bytes: Option<u64>,
    /// The devices of the placement.
    pub(super) devices: Vec<DeviceSample>,
    /// Calls of each component on each device since the start line.
    pub(super) components: Vec<Busy>,
}

/// Memory of one device.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct DeviceSample {
    /// Its name.
    pub(super) device: String,
    /// Bytes that this run holds now.
    pub(super) counted_bytes: u64,
    /// Most bytes that this process held.
    pub(super) peak_bytes: u64,
    /// Bytes that the placement was planned to hold.
    pub(super) planned_bytes: Option<u64>,
    /// Bytes that all programs together use, by NVML.
    pub(super) in_use_bytes: Option<u64>,
    /// All bytes, by NVML.
    pub(super) total_bytes: Option<u64>,
}

/// The file, open for more lines.
pub(super) struct File {
    path: PathBuf,
    file: fs::File,
}

impl File {
    /// Creates the file with its first line.
    pub(super) fn create(path: &Path, start: &Start) -> io::Result<Self> {
        let mut file = Self {
            path: path.to_owned(),
            file: fs::File::create(path)?,
        };
        file.write(start)?;
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one line, which a reader sees at once.
    pub(super) fn write(&mut self, line: &impl serde::Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }
}
