//! What a run computes, recorded under the names of the golden end-to-end files.

use std::path::Path;

use engines::tensor::Tensor;
use engines::tensor_file::{self, TensorFileError, Tensors};

use crate::inputs::replay::{Distances, RELATIVE_DIST};
use crate::numbers::geometry::Geometry;

/// What a run computed, kept in memory until it is written: only made when it is asked for.
#[derive(Default)]
pub(crate) struct Trace {
    tensors: Tensors,
    frames: Vec<u8>,
}

impl Trace {
    pub(crate) fn keep(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// A block's clean latents `[1, Z, F, ...]`, kept without the batch.
    pub(crate) fn keep_block(&mut self, block: usize, latents: &Tensor) {
        let shape = latents.shape()[1..].to_vec();
        self.keep(
            format!("block{block}.latents"),
            latents.clone().reshaped(&shape),
        );
    }

    /// Frames `[T, H, W, 3]`.
    pub(crate) fn keep_frames(&mut self, rgb: &Tensor) {
        self.frames.extend_from_slice(rgb.bytes());
    }

    /// Distances of every item, as `relative_dist`.
    pub(crate) fn keep_distances(
        &mut self,
        distances: &Distances<'_>,
        blocks: usize,
        steps: usize,
    ) {
        let items = (0..blocks).flat_map(|block| (0..steps).map(move |step| (block, step)));
        let data: Vec<i64> = items
            .map(|(block, step)| i64::from(distances.of(block, step)))
            .collect();
        self.keep(RELATIVE_DIST, Tensor::from_slice(&[blocks, steps], &data));
    }

    /// Writes everything, the frames as `frames_u8` `[T, H, W, 3]`.
    ///
    /// # Errors
    /// A path that cannot be written.
    pub(crate) fn write(mut self, path: &Path, geometry: &Geometry) -> Result<(), TensorFileError> {
        let (h, w) = (geometry.size.height, geometry.size.width);
        let count = self.frames.len() / (3 * h * w);
        let frames = Tensor::from_slice(&[count, h, w, 3], &self.frames);
        self.tensors.insert("frames_u8".to_owned(), frames);
        tensor_file::write(path, &self.tensors)
    }
}

#[cfg(test)]
mod tests {
    use engines::contract::DType;

    use super::*;
    use crate::fixtures::sizes::geometry;

    #[test]
    fn a_trace_carries_the_golden_names_and_shapes() {
        let g = geometry(24);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.safetensors");
        let mut trace = Trace::default();
        trace.keep_block(3, &Tensor::zeros(DType::F32, &g.latents_shape(3)));
        trace.keep_frames(&Tensor::zeros(DType::U8, &[2, 64, 64, 3]));
        trace.keep_frames(&Tensor::zeros(DType::U8, &[3, 64, 64, 3]));
        trace.keep_distances(
            &Distances {
                rule: crate::inputs::replay::Distance::Random,
                seed: 420,
                replay: None,
            },
            2,
            4,
        );
        trace.write(&path, &g).unwrap();
        let shapes: Vec<(String, Vec<usize>)> = tensor_file::read(&path)
            .unwrap()
            .into_iter()
            .map(|(k, t)| (k, t.shape().to_vec()))
            .collect();
        let want = [
            ("block3.latents", vec![16, 3, 8, 8]),
            ("frames_u8", vec![5, 64, 64, 3]),
            ("relative_dist", vec![2, 4]),
        ];
        assert_eq!(shapes, want.map(|(k, s)| (k.to_owned(), s)));
    }
}
