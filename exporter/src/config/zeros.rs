//! Finds the parts of a VAE that add nothing because their weights are zero. Only values decide: a
//! tensor with one other number, a NaN among them, keeps its part.
//!
//! A tensor without zeros costs the read of its first elements.
use crate::checkpoint::{Checkpoint, CheckpointError};
use engines::components::vae::VaeConfig;
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

/// Returns a line about the parts that are left out, or `None` where every part stays.
pub(crate) fn notice(checkpoint: &Checkpoint, config: &VaeConfig) -> Option<String> {
    let (idle, frames) = (config.idle_branches.len(), config.frame_convolutions.len());
    let branches = checkpoint.names().filter_map(branching).count();
    let convolutions = checkpoint
        .names()
        .filter(|name| is_causal(checkpoint, name));
    let convolutions = convolutions.count();
    (idle + frames > 0).then(|| {
        format!(
            "VAE: {idle} of {branches} branches add zero and are left out; {frames} of \
             {convolutions} causal convolutions see one frame and have no cache"
        )
    })
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

/// Returns whether a tensor is the weight of a causal convolution.
fn is_causal(checkpoint: &Checkpoint, name: &str) -> bool {
    let shape = checkpoint.info(name).map(|info| info.shape.as_slice());
    matches!(shape, Some([_, _, kernel @ ..]) if *kernel == KERNEL)
}

/// Returns whether a tensor is the weight of a causal convolution and is zero for older frames.
fn sees_one_frame(checkpoint: &Checkpoint, name: &str) -> Result<bool, CheckpointError> {
    if !is_causal(checkpoint, name) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
    use std::collections::BTreeMap;

    /// Sizes of the tensors of one residual block and one attention.
    const SHAPES: [(&str, &[usize]); 7] = [
        ("m.0.residual.0.gamma", &[2, 1, 1, 1]),
        ("m.0.residual.2.weight", &[2, 2, 3, 3, 3]),
        ("m.0.residual.6.weight", &[2, 2, 3, 3, 3]),
        ("m.0.residual.6.bias", &[2]),
        ("m.1.to_qkv.weight", &[6, 2, 1, 1]),
        ("m.1.proj.weight", &[2, 2, 1, 1]),
        ("m.1.proj.bias", &[2]),
    ];

    /// Returns the zeros of ones whose tensors `zero` are zero, but for one element.
    fn zeros(dtype: Dtype, zero: &[&str], put: Option<(&str, usize, f32)>) -> Zeros {
        let bytes = |name: &str, shape: &[usize]| {
            let fill = if zero.contains(&name) { 0.0 } else { 1.0 };
            let mut data = vec![fill; shape.iter().product()];
            if let Some((_, at, x)) = put.filter(|(of, ..)| *of == name) {
                data[at] = x;
            }
            let each = |x: &f32| match dtype {
                Dtype::BF16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
                Dtype::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
                _ => x.to_le_bytes().to_vec(),
            };
            data.iter().flat_map(each).collect::<Vec<u8>>()
        };
        let data: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = SHAPES
            .iter()
            .map(|&(name, shape)| (name, (shape.to_vec(), bytes(name, shape))))
            .collect();
        let views = data.iter().map(|(name, (shape, bytes))| {
            (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vae.safetensors");
        serialize_to_file(views, None, &path).unwrap();
        Zeros::of(&Checkpoint::open(&path).unwrap()).unwrap()
    }

    const RESIDUAL: [&str; 2] = ["m.0.residual.6.weight", "m.0.residual.6.bias"];
    const ATTENTION: [&str; 2] = ["m.1.proj.weight", "m.1.proj.bias"];

    #[test]
    fn a_branch_is_idle_where_its_last_layer_is_zero_in_every_type() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let idle = |zero: &[&str], put| {
                let found = zeros(dtype, zero, put).idle_branches;
                found.into_iter().collect::<Vec<_>>()
            };
            assert_eq!(idle(&RESIDUAL, None), ["m.0"]);
            assert_eq!(idle(&ATTENTION, None), ["m.1"]);
            assert!(idle(&RESIDUAL[..1], None).is_empty(), "its bias counts");
            assert!(idle(&ATTENTION[1..], None).is_empty(), "its weight counts");
            let negative = Some((RESIDUAL[0], 107, -0.0));
            assert_eq!(idle(&RESIDUAL, negative), ["m.0"]);
            for other in [f32::NAN, f32::INFINITY, 1e-6] {
                for place in [(RESIDUAL[0], 107), (RESIDUAL[1], 1)] {
                    let put = Some((place.0, place.1, other));
                    assert!(idle(&RESIDUAL, put).is_empty(), "{dtype} {place:?} {other}");
                }
            }
        }
    }

    #[test]
    fn a_convolution_sees_one_frame_where_only_the_newest_has_weights() {
        let name = "m.0.residual.2.weight";
        let found = |at: usize, x| zeros(Dtype::F32, &[name], Some((name, at, x)));
        // Of the 27 elements of a kernel, the last nine belong to the newest frame.
        for newest in [18, 26, 27 + 18, 107] {
            let frames = found(newest, f32::NAN).frame_convolutions;
            assert_eq!(frames.into_iter().collect::<Vec<_>>(), ["m.0.residual.2"]);
        }
        for older in [0, 9, 17, 27, 98] {
            assert!(found(older, 1e-38).frame_convolutions.is_empty(), "{older}");
            assert!(found(older, f32::NAN).frame_convolutions.is_empty());
        }
        // A convolution that is left out with its branch is not counted again.
        let all = [name, RESIDUAL[0], RESIDUAL[1]];
        assert!(zeros(Dtype::F32, &all, None).frame_convolutions.is_empty());
    }
}
