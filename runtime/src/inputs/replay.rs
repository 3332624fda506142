//! Reads the random numbers of a recorded run, under the names of the golden end-to-end files.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use engines::contract::DType;
use engines::error_kind::ErrorKind;
use engines::tensor::Tensor;
use engines::tensor_file::{self, TensorFileError};

use crate::numbers::geometry::Geometry;
use crate::numbers::rng;

/// Key of the recorded reference distances.
pub(crate) const RELATIVE_DIST: &str = "relative_dist";

/// Returns the key of a clip's recorded noise.
pub(crate) fn noise_key(clip: usize) -> String {
    format!("clip{clip}.noise")
}

/// A reason why a recorded run cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] TensorFileError),
    /// A tensor does not fit this run.
    #[error("{}: key {key}: wanted {want}, got {got}", path.display())]
    Tensor {
        /// Path of the file.
        path: PathBuf,
        /// Key of the tensor.
        key: String,
        /// Type, shape or range that this run needs.
        want: String,
        /// Type, shape or value in the file.
        got: String,
    },
}

impl ReplayError {
    /// Returns `Input`: the user can name another file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// The random numbers of a recorded run.
#[derive(Debug)]
pub(crate) struct Replay {
    noise: Vec<Tensor>,
    distances: Option<Tensor>,
}

impl Replay {
    /// Reads `clip{r}.noise` `[Z, frames, H/8, W/8]` of every clip.
    ///
    /// It also reads `relative_dist` `[blocks, steps]` if the file has it.
    ///
    /// # Errors
    /// A file that cannot be read, or a key that is missing or has another type or shape.
    pub(crate) fn open(
        path: &Path,
        geometry: &Geometry,
        clips: usize,
        steps: usize,
    ) -> Result<Self, ReplayError> {
        let mut tensors = tensor_file::read(path)?;
        let frames = geometry.clip_blocks * geometry.block_frames;
        let shape = &geometry.latents_shape(frames)[1..];
        let noise = (0..clips).map(|clip| {
            let key = noise_key(clip);
            match tensors.remove(&key) {
                Some(t) if t.dtype() == DType::F32 && t.shape() == shape => Ok(t),
                found => Err(mismatch(
                    path,
                    &key,
                    format!("f32 {shape:?}"),
                    found.as_ref(),
                )),
            }
        });
        let noise = noise.collect::<Result<_, _>>()?;
        let distances = tensors.remove(RELATIVE_DIST);
        if let Some(d) = &distances {
            check_distances(path, d, clips * geometry.clip_blocks, steps)?;
        }
        Ok(Self { noise, distances })
    }

    /// Returns the noise of one clip, `[Z, frames, H/8, W/8]`.
    ///
    /// # Panics
    /// If `clip` is not below the number of clips given to [`Self::open`].
    pub(crate) fn noise(&self, clip: usize) -> &Tensor {
        &self.noise[clip]
    }

    /// Returns the distance of the reference token, if the file records one.
    pub(crate) fn relative_dist(&self, block: usize, step: usize) -> Option<u32> {
        let table = self.distances.as_ref()?;
        let at = block * table.shape()[1] + step;
        table
            .as_slice::<i64>()
            .get(at)
            .and_then(|&d| u32::try_from(d).ok())
    }
}

/// Makes the error of a tensor that is missing or has another type or shape.
fn mismatch(path: &Path, key: &str, want: String, found: Option<&Tensor>) -> ReplayError {
    let got = found.map_or_else(
        || "nothing".to_owned(),
        |t| format!("{} {:?}", t.dtype(), t.shape()),
    );
    ReplayError::Tensor {
        path: path.to_owned(),
        key: key.to_owned(),
        want,
        got,
    }
}

/// Refuses distances of another type or shape, or outside 0 to 30.
fn check_distances(
    path: &Path,
    found: &Tensor,
    blocks: usize,
    steps: usize,
) -> Result<(), ReplayError> {
    let shape = found.shape();
    if found.dtype() != DType::I64 || shape.len() != 2 || shape[0] < blocks || shape[1] != steps {
        return Err(mismatch(
            path,
            RELATIVE_DIST,
            format!("i64 [at least {blocks}, {steps}]"),
            Some(found),
        ));
    }
    match found
        .as_slice::<i64>()
        .iter()
        .find(|d| !(0..=30).contains(*d))
    {
        None => Ok(()),
        Some(bad) => Err(ReplayError::Tensor {
            path: path.to_owned(),
            key: RELATIVE_DIST.to_owned(),
            want: "values within 0 and 30".to_owned(),
            got: bad.to_string(),
        }),
    }
}

/// How far behind the newest frames the reference token stands, in latent frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distance {
    /// Drawn anew for every step of every block, as the reference does.
    #[default]
    Random,
    /// Drawn once for the video, from its seed.
    Fixed,
    /// This distance, 4 to 30.
    At(u32),
}

impl FromStr for Distance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self::Random),
            "fixed" => Ok(Self::Fixed),
            _ => {
                let number = text.parse().ok().filter(|n| (4..=30).contains(n));
                let wanted =
                    || format!("wants random, fixed or a number from 4 to 30, got `{text}`");
                number.map(Self::At).ok_or_else(wanted)
            }
        }
    }
}

/// The distances of the reference token: recorded ones, or drawn from a seed.
#[derive(Default)]
pub(crate) struct Distances<'a> {
    /// How they are drawn.
    pub rule: Distance,
    /// Seed of drawn distances.
    pub seed: u64,
    /// Recorded run, if one is replayed.
    pub replay: Option<&'a Replay>,
}

impl Distances<'_> {
    /// Returns the distance for a step of a block.
    pub(crate) fn of(&self, block: usize, step: usize) -> u32 {
        let drawn = || match self.rule {
            Distance::Random => rng::relative_dist(self.seed, block as u64, step as u64),
            Distance::Fixed => rng::relative_dist(self.seed, 0, 0),
            Distance::At(distance) => distance,
        };
        self.replay
            .and_then(|r| r.relative_dist(block, step))
            .unwrap_or_else(drawn)
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
        assert_eq!(replay.relative_dist(1, 2), Some(10));
        let recorded = Distances {
            seed: 1,
            replay: Some(&replay),
            rule: Distance::At(30),
        };
        assert_eq!(recorded.of(0, 3), 7);
    }

    #[test]
    fn a_distance_is_drawn_often_or_once_or_given() {
        let of = |rule: &str| {
            let distances = Distances {
                rule: rule.parse().unwrap(),
                seed: 420,
                replay: None,
            };
            let all = (0..6).flat_map(|block| (0..4).map(move |step| (block, step)));
            all.map(|(block, step)| distances.of(block, step))
                .collect::<Vec<_>>()
        };
        let (random, fixed) = (of("random"), of("fixed"));
        assert!(random.iter().any(|&d| d != random[0]));
        assert!(fixed.iter().all(|&d| d == random[0]));
        assert_eq!(of("17"), [17; 24]);
        for wrong in ["3", "31", "-4", "often"] {
            let error = wrong.parse::<Distance>().unwrap_err();
            assert!(error.contains(&format!("got `{wrong}`")), "{error}");
        }
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
}
