//! The figures of a measurement with made-up weights, as JSON and as text.

use std::collections::BTreeMap;
use std::fmt;

use engines::device::Device;
use engines::recipe::Recipe;

use crate::numbers::size::Size;

/// The whole measurement.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Report {
    /// The measured device.
    pub device: Device,
    /// Precision of the graphs.
    pub recipe: Recipe,
    /// Size of the video.
    pub size: Size,
    /// Layers of the transformer.
    pub layers: usize,
    /// The matrix product.
    pub product: Product,
    /// Times with everything on the device, by number of lanes.
    pub rows: Vec<Row>,
    /// Memory with everything on the device.
    pub memory: MemoryUse,
    /// The streamed run, where the user wants one.
    pub offload: Option<Offload>,
}

/// Times of a call with so many lanes.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Row {
    /// Lanes of the call.
    pub lanes: usize,
    /// Median of the timed calls, in milliseconds.
    pub median_ms: f64,
    /// Shortest timed call, in milliseconds.
    pub min_ms: f64,
    /// Operations of the call, from its shapes, in 10^12.
    pub tflop: f64,
    /// Operations per second, in 10^12.
    pub tflop_per_s: f64,
    /// The rate, over the rate of the matrix product.
    pub share: f64,
}

/// Time of the matrix product.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Product {
    /// Side of the square matrices.
    pub side: usize,
    /// Median of the timed products, in milliseconds.
    pub median_ms: f64,
    /// Operations per second, in 10^12.
    pub tflop_per_s: f64,
}

/// Bytes of the device in use: as this program counts them, and as the driver counts them.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct MemoryUse {
    /// Counted bytes by purpose.
    pub by_class: BTreeMap<String, u64>,
    /// All counted bytes.
    pub counted: u64,
    /// Most counted bytes at any time.
    pub peak: u64,
    /// Bytes that the planner foresees for the same run; `None` for a streamed run.
    pub planned: Option<u64>,
    /// Bytes that all processes used before the run, by the driver. This process's context counts.
    pub device_used_before: Option<u64>,
    /// Bytes that all processes use at the end of the run, by the driver.
    pub device_used: Option<u64>,
}

/// A run that streams the layers which do not fit a cap.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Offload {
    /// The cap, in bytes.
    pub budget: u64,
    /// Lanes of the call.
    pub lanes: usize,
    /// Layers whose weights stay on the device.
    pub resident_layers: usize,
    /// Median of the timed calls, in milliseconds.
    pub median_ms: f64,
    /// The time, over the time of the resident run with as many lanes.
    pub ratio: f64,
    /// Bytes that a call copies from the host.
    pub streamed: u64,
    /// Memory of the device.
    pub memory: MemoryUse,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = &self.product;
        writeln!(
            f,
            "{}, {}, {}, {} layers; matrix product of {}^3: {:.2} ms, {:.2} TFLOP/s",
            self.device, self.size, self.recipe, self.layers, p.side, p.median_ms, p.tflop_per_s
        )?;
        writeln!(
            f,
            "{:<10} {:>12} {:>12} {:>10} {:>10} {:>8}",
            "lanes", "median ms", "min ms", "TFLOP", "TFLOP/s", "share"
        )?;
        for r in &self.rows {
            writeln!(
                f,
                "{:<10} {:>12.1} {:>12.1} {:>10.3} {:>10.2} {:>7.0}%",
                r.lanes,
                r.median_ms,
                r.min_ms,
                r.tflop,
                r.tflop_per_s,
                100.0 * r.share
            )?;
        }
        writeln!(f, "resident: {}", self.memory)?;
        if let Some(o) = &self.offload {
            writeln!(
                f,
                "under {:.2} GB, {} lanes: {:.1} ms a call, {:.2} times the resident call; \
                 {} layers resident, {:.2} GB from the host in a call",
                gb(o.budget),
                o.lanes,
                o.median_ms,
                o.ratio,
                o.resident_layers,
                gb(o.streamed)
            )?;
            writeln!(f, "streamed: {}", o.memory)?;
        }
        Ok(())
    }
}

impl fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.3} GB counted, peak {:.3} (",
            gb(self.counted),
            gb(self.peak)
        )?;
        let parts = self.by_class.iter().filter(|(_, b)| **b > 0);
        let parts: Vec<String> = parts.map(|(c, b)| format!("{c} {:.3}", gb(*b))).collect();
        write!(f, "{})", parts.join(", "))?;
        if let Some(planned) = self.planned {
            write!(f, "; planned {:.3}", gb(planned))?;
        }
        match (self.device_used_before, self.device_used) {
            (Some(before), Some(now)) => {
                let (now, before) = (gb(now), gb(before));
                write!(f, "; in use on the device {now:.3}, {before:.3} before")
            }
            _ => Ok(()),
        }
    }
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
