//! Computes the denoising schedule: sigmas, timesteps and the sinusoid of a timestep.
//!
//! The graph does the Euler update. This file gives the sigmas before and after it.

use engines::error_kind::ErrorKind;

/// Flow-matching shift. The reference fixes it and ignores its own `--sample_shift`.
pub(crate) const SHIFT: f64 = 3.0;
/// Number of training timesteps: `t = 1000 * sigma`.
pub(crate) const TRAIN_STEPS: f64 = 1000.0;
/// Width of [`sinusoid`].
pub(crate) const FREQUENCIES: usize = 256;

/// A number of steps that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// There is no step.
    #[error("sample_steps wants at least 1, got {got}; the model is distilled for 4")]
    NoSteps {
        /// Steps that were asked for.
        got: usize,
    },
    /// There are more steps than training timesteps.
    #[error("sample_steps wants at most {most}, got {got}; the model is distilled for 4")]
    TooManySteps {
        /// Steps that were asked for.
        got: usize,
        /// Largest number of steps.
        most: usize,
    },
}

impl ScheduleError {
    /// Returns `Usage`.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }
}

/// Largest number of steps. The model was trained with as many, so more have no meaning.
pub(crate) const MAX_STEPS: usize = 1000;

/// Returns `n + 1` sigmas that fall from 1 to 0.
///
/// `sigma = 3u / (1 + 2u)` over `n` even points. They go from 1 to the smallest training sigma,
/// which is *already shifted*. A last sigma of 0 follows. Source: diffusers
/// `FlowMatchEulerDiscreteScheduler(shift=3).set_timesteps(n)`.
///
/// # Errors
/// `n` is outside `1..=1000`.
pub(crate) fn sigmas(n: usize) -> Result<Vec<f32>, ScheduleError> {
    match n {
        0 => return Err(ScheduleError::NoSteps { got: n }),
        MAX_STEPS.. if n > MAX_STEPS => {
            return Err(ScheduleError::TooManySteps {
                got: n,
                most: MAX_STEPS,
            });
        }
        _ => {}
    }
    let lowest = shifted(1.0 / TRAIN_STEPS);
    let step = if n > 1 {
        (lowest - 1.0) / (n - 1) as f64
    } else {
        0.0
    };
    let points = (0..n).map(|i| shifted(1.0 + step * i as f64) as f32);
    Ok(points.chain([0.0]).collect())
}

/// Returns `n` timesteps `1000 * sigma`, one per step.
///
/// # Errors
/// The same as [`sigmas`].
pub(crate) fn timesteps(n: usize) -> Result<Vec<f32>, ScheduleError> {
    let mut t = sigmas(n)?;
    t.pop();
    Ok(t.into_iter()
        .map(|sigma| sigma * TRAIN_STEPS as f32)
        .collect())
}

/// Returns the sigma of a time `u` with the model's shift.
fn shifted(u: f64) -> f64 {
    SHIFT * u / (1.0 + (SHIFT - 1.0) * u)
}

/// Returns `[cos | sin]` of `t * 10000^(-i/128)`, `[256]`, computed in f64.
///
/// Reference: `sinusoidal_embedding_1d`.
pub(crate) fn sinusoid(t: f32) -> [f32; FREQUENCIES] {
    const HALF: usize = FREQUENCIES / 2;
    let mut out = [0.0; FREQUENCIES];
    for i in 0..HALF {
        let angle = f64::from(t) * 10000f64.powf(-(i as f64) / HALF as f64);
        out[i] = angle.cos() as f32;
        out[HALF + i] = angle.sin() as f32;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;

    #[test]
    fn four_steps_are_the_models_own() {
        let want = [1.0, 0.857_692_3, 0.602_150_5, 0.008_928_571, 0.0];
        assert!(golden::worst(&sigmas(4).unwrap(), &want) < 1e-6);
        assert!(
            golden::worst(
                &timesteps(4).unwrap(),
                &[1000.0, 857.692_3, 602.150_6, 8.928_572]
            ) < 1e-3
        );
    }

    #[test]
    fn no_steps_is_an_error_and_so_are_too_many() {
        assert_eq!(sigmas(0), Err(ScheduleError::NoSteps { got: 0 }));
        assert_eq!(
            timesteps(1001),
            Err(ScheduleError::TooManySteps {
                got: 1001,
                most: 1000
            })
        );
        assert_eq!(sigmas(1000).map(|s| s.len()), Ok(1001));
    }

    #[test]
    fn sigmas_fall_strictly() {
        for n in 1..=64 {
            assert!(sigmas(n).unwrap().is_sorted_by(|a, b| a > b), "{n} steps");
        }
    }

    #[test]
    fn schedules_of_1_to_8_steps_are_the_references() {
        for (set, n) in golden::sets()
            .iter()
            .flat_map(|set| (1..=8).map(move |n| (set, n)))
        {
            let want = set.f32s("scheduler", &format!("steps{n}.sigmas"));
            assert!(
                golden::worst(&sigmas(n).unwrap(), &want) <= 1e-6,
                "{n} steps"
            );
            let want = set.f32s("scheduler", &format!("steps{n}.timesteps"));
            assert!(
                golden::worst(&timesteps(n).unwrap(), &want) <= 1e-3,
                "{n} steps"
            );
        }
    }

    #[test]
    fn the_sinusoid_is_cos_then_sin() {
        let s = sinusoid(0.0);
        assert!(s[..128].iter().all(|&c| c == 1.0) && s[128..].iter().all(|&s| s == 0.0));
        for set in golden::sets() {
            for tag in ["t0", "t1", "t2", "t3", "tzero"] {
                let t = set.f32s("time", &format!("{tag}.timestep"));
                let want = set.f32s("time", &format!("{tag}.sinusoid"));
                let worst = golden::worst(&sinusoid(t[0]), &want);
                assert!(worst <= 1e-6, "{tag}: {worst}");
            }
        }
    }
}
