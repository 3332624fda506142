//! Replaying a run's random numbers and recording what a run computes, under the names of the golden end-to-end files.

use std::path::{Path, PathBuf};

use engines::contract::DType;
use engines::error_kind::ErrorKind;
use engines::tensor::Tensor;

use crate::numbers::geometry::Geometry;
use crate::numbers::rng;
use crate::placement::wavefront::Item;
use engines::tensor_file::{self, TensorFileError, Tensors};

/// Key of the recorded reference distances.
const RELATIVE_DIST: &str = "relative_dist";

/// What a run computed, kept in memory until it is written: only made when it is asked for.
#[derive(Default)]
pub struct Trace {
    /// The run follows a single-device pipeline, whose files spell motion latents out.
    pub single: bool,
    tensors: Tensors,
    frames: Vec<u8>,
}

impl Trace {
    pub fn keep(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// A block's clean latents `[1, Z, F, ...]`, kept without the batch.
    pub fn keep_block(&mut self, block: usize, latents: &Tensor) {
        let shape = latents.shape()[1..].to_vec();
        self.keep(
            format!("block{block}.latents"),
            latents.clone().reshaped(&shape),
        );
    }

    /// Frames `[T, H, W, 3]`.
    pub fn keep_frames(&mut self, rgb: &Tensor) {
        self.frames.extend_from_slice(rgb.bytes());
    }

    /// Distances of every item, as `relative_dist`.
    pub fn keep_distances(&mut self, distances: &Distances<'_>, blocks: usize, steps: usize) {
        let items = (0..blocks).flat_map(|block| (0..steps).map(move |step| Item { block, step }));
        let data: Vec<i64> = items.map(|i| i64::from(distances.of(i))).collect();
        self.keep(RELATIVE_DIST, Tensor::from_slice(&[blocks, steps], &data));
    }

    /// Writes everything, the frames as `frames_u8` `[T, H, W, 3]`.
    ///
    /// # Errors
    /// A path that cannot be written.
    pub fn write(mut self, path: &Path, geometry: &Geometry) -> Result<(), TensorFileError> {
        let (h, w) = (geometry.size.height, geometry.size.width);
        let count = self.frames.len() / (3 * h * w);
        let frames = Tensor::from_slice(&[count, h, w, 3], &self.frames);
        self.tensors.insert("frames_u8".to_owned(), frames);
        tensor_file::write(path, &self.tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sizes::geometry;

    fn file(
        tensors: impl IntoIterator<Item = (&'static str, Tensor)>,
    ) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replay.safetensors");
        let tensors = tensors
            .into_iter()
            .map(|(k, t)| (k.to_owned(), t))
            .collect();
        tensor_file::write(&path, &tensors).unwrap();
        (dir, path)
    }

    #[test]
    fn a_recorded_run_gives_its_noise_and_distances() {
        let g = geometry(24);
        let noise = Tensor::from_slice(
            &[16, 6, 8, 8],
            &(0..16 * 6 * 64).map(|i| i as f32).collect::<Vec<_>>(),
        );
        let table = Tensor::from_slice(&[2, 4], &(4..12).collect::<Vec<i64>>());
        let (_dir, path) = file([("clip0.noise", noise.clone()), (RELATIVE_DIST, table)]);
        let replay = Replay::open(&path, &g, 1, 4).unwrap();
        assert_eq!(replay.noise(0).bytes(), noise.bytes());
        assert_eq!(replay.relative_dist(Item { block: 1, step: 2 }), Some(10));
        let recorded = Distances {
            seed: 1,
            replay: Some(&replay),
        };
        assert_eq!(recorded.of(Item { block: 0, step: 3 }), 7);
    }

    #[test]
    fn what_does_not_fit_is_named_with_file_key_wanted_and_got() {
        let g = geometry(24);
        let noise = || Tensor::zeros(DType::F32, &[16, 6, 8, 8]);
        let table = |shape: &[usize], value: i64| {
            Tensor::from_slice(shape, &vec![value; shape.iter().product()])
        };
        for (tensors, key, want, got) in [
            (vec![], "clip0.noise", "f32 [16, 6, 8, 8]", "nothing"),
            (
                vec![("clip0.noise", Tensor::zeros(DType::F32, &[16, 6, 8, 9]))],
                "clip0.noise",
                "f32 [16, 6, 8, 8]",
                "f32 [16, 6, 8, 9]",
            ),
            (
                vec![("clip0.noise", Tensor::zeros(DType::BF16, &[16, 6, 8, 8]))],
                "clip0.noise",
                "f32 [16, 6, 8, 8]",
                "bf16 [16, 6, 8, 8]",
            ),
            (
                vec![("clip0.noise", noise()), (RELATIVE_DIST, table(&[1, 4], 4))],
                RELATIVE_DIST,
                "i64 [at least 2, 4]",
                "i64 [1, 4]",
            ),
            (
                vec![("clip0.noise", noise()), (RELATIVE_DIST, table(&[2, 3], 4))],
                RELATIVE_DIST,
                "i64 [at least 2, 4]",
                "i64 [2, 3]",
            ),
            (
                vec![
                    ("clip0.noise", noise()),
                    (RELATIVE_DIST, table(&[2, 4], 31)),
                ],
                RELATIVE_DIST,
                "values within 0 and 30",
                "31",
            ),
        ] {
            let (_dir, path) = file(tensors);
            let error = Replay::open(&path, &g, 1, 4).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{}: key {key}: wanted {want}, got {got}", path.display())
            );
            assert_eq!(error.kind(), ErrorKind::Input);
        }
    }

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
