//! Finds the parts of a VAE that add nothing because their weights are zero. Only values decide: a
//! tensor with one other number, a NaN among them, keeps its part.
//!
//! A tensor without zeros costs the read of its first elements.
use crate::checkpoint::{Checkpoint, CheckpointError};
use std::collections::BTreeSet;

/// Elements that are read at a time.
const PART: usize = 1 << 14;
/// Kernel of a causal convolution: frames, rows, columns.
const KERNEL: [usize; 3] = [3, 3, 3];

/// The parts of a VAE that are zero.
#[derive(Debug, Default)]
pub(super) struct Zeros {
    /// Modules whose branch adds zero.
    pub(super) idle_branches: BTreeSet<String>,
    /// Causal convolutions, outside these modules, whose weights for older frames are zero.
    pub(super) frame_convolutions: BTreeSet<String>,
}

impl Zeros {
    /// Reads the weights of `checkpoint` as far as they are zero.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let mut zeros = Self::default();
        for module in checkpoint.names().filter_map(branching) {
            let last = match checkpoint.info(&format!("{module}.proj.weight")) {
                Some(_) => format!("{module}.proj"),
                None => format!("{module}.residual.6"),
            };
            if is_zero(checkpoint, &last, "weight")? && is_zero(checkpoint, &last, "bias")? {
                zeros.idle_branches.insert(module.to_owned());
            }
        }
        for name in checkpoint.names() {
            let Some(path) = name.strip_suffix(".weight") else {
                continue;
            };
            let idle = |module: &String| path.starts_with(&format!("{module}."));
            if !zeros.idle_branches.iter().any(idle) && sees_one_frame(checkpoint, name)? {
                zeros.frame_convolutions.insert(path.to_owned());
            }
        }
        Ok(zeros)
    }
}

/// Returns the module of a residual block or of an attention, when `name` is its first tensor.
fn branching(name: &str) -> Option<&str> {
    let residual = name.strip_suffix(".residual.0.gamma");
    residual.or_else(|| name.strip_suffix(".to_qkv.weight"))
}

/// Returns whether every element of a tensor is zero. A tensor that is missing is not.
fn is_zero(checkpoint: &Checkpoint, path: &str, name: &str) -> Result<bool, CheckpointError> {
    all(checkpoint, &format!("{path}.{name}"), |_, x| x == 0.0)
}

/// Returns whether a tensor is the weight of a causal convolution and is zero for older frames.
fn sees_one_frame(checkpoint: &Checkpoint, name: &str) -> Result<bool, CheckpointError> {
    let shape = checkpoint.info(name).map(|info| info.shape.as_slice());
    if !matches!(shape, Some([_, _, kernel @ ..]) if *kernel == KERNEL) {
        return Ok(false);
    }
    let [frames, rows, columns] = KERNEL;
    let is_newest = |i: usize| i / (rows * columns) % frames == frames - 1;
    all(checkpoint, name, |i, x| x == 0.0 || is_newest(i))
}

/// Returns whether `test` holds for every element and its row-major number. It reads no further
/// than the first part with another element.
fn all(
    checkpoint: &Checkpoint,
    name: &str,
    test: impl Fn(usize, f32) -> bool,
) -> Result<bool, CheckpointError> {
    let Some(info) = checkpoint.info(name).filter(|info| info.dtype.is_float()) else {
        return Ok(false);
    };
    let count: usize = info.shape.iter().product();
    for from in (0..count).step_by(PART) {
        let part = checkpoint.read_f32_range(name, from..count.min(from + PART))?;
        if !part.iter().enumerate().all(|(i, &x)| test(from + i, x)) {
            return Ok(false);
        }
    }
    Ok(true)
}
