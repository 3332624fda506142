//! Computes the denoising schedule: sigmas, timesteps and the sinusoid of a timestep.
//!
//! The graph does the Euler update. This file gives the sigmas before and after it. Other updates
//! are in [`super::solver`], which takes its sigmas from here as well.

use engines::error_kind::ErrorKind;

/// Flow-matching shift of the model. The reference fixes it and ignores its own `--sample_shift`.
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
    /// The shift is no positive number.
    #[error(
        "sample_shift wants a number from 0.01 to 100, got {got}; the model is distilled for 3"
    )]
    Shift {
        /// The shift, as text.
        got: String,
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

/// Returns the sigmas of `n` steps with the model's own shift, see [`shifted_sigmas`].
///
/// # Errors
/// `n` is outside `1..=1000`.
pub(crate) fn sigmas(n: usize) -> Result<Vec<f32>, ScheduleError> {
    shifted_sigmas(n, SHIFT)
}

/// Returns `n + 1` sigmas that fall from 1 to 0.
///
/// `sigma = s u / (1 + (s - 1) u)` for a shift `s`, over `n` even points. They go from 1 to the
/// smallest training sigma, which is *already shifted*. A last sigma of 0 follows. Source:
/// diffusers `FlowMatchEulerDiscreteScheduler(shift=s).set_timesteps(n)`.
///
/// # Errors
/// `n` is outside `1..=1000`, or the shift outside `0.01..=100`.
pub(crate) fn shifted_sigmas(n: usize, shift: f64) -> Result<Vec<f32>, ScheduleError> {
    usable(n, shift)?;
    let lowest = shifted(1.0 / TRAIN_STEPS, shift);
    let step = if n > 1 {
        (lowest - 1.0) / (n - 1) as f64
    } else {
        0.0
    };
    let points = (0..n).map(|i| shifted(1.0 + step * i as f64, shift) as f32);
    Ok(points.chain([0.0]).collect())
}

fn usable(n: usize, shift: f64) -> Result<(), ScheduleError> {
    if !(0.01..=100.0).contains(&shift) {
        let got = shift.to_string();
        return Err(ScheduleError::Shift { got });
    }
    match n {
        0 => Err(ScheduleError::NoSteps { got: n }),
        MAX_STEPS.. if n > MAX_STEPS => Err(ScheduleError::TooManySteps {
            got: n,
            most: MAX_STEPS,
        }),
        _ => Ok(()),
    }
}

/// How the points of an even schedule lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Even {
    /// The first point is 1, less what keeps logarithms finite. Source: diffusers
    /// `UniPCMultistepScheduler(use_flow_sigmas=True)`.
    FromOne,
    /// The points are even from 0.999 to 0. Source: diffusers
    /// `DPMSolverMultistepScheduler(use_flow_sigmas=True)`.
    ToZero,
}

/// Returns `n + 1` sigmas and `n` timesteps whose unshifted points are even. The timesteps are
/// whole numbers, as in the sources.
///
/// # Errors
/// `n` is outside `1..=1000`, or the shift outside `0.01..=100`.
pub(crate) fn even(
    n: usize,
    shift: f64,
    even: Even,
) -> Result<(Vec<f32>, Vec<f32>), ScheduleError> {
    usable(n, shift)?;
    let step = (1.0 - 1.0 / TRAIN_STEPS) / n as f64;
    let sigma = |i: usize| match even {
        Even::FromOne if i == 0 => 1.0 - 1e-6,
        Even::FromOne => shifted(1.0 - step * i as f64, shift),
        Even::ToZero => shifted(step * (n - i) as f64, shift),
    };
    let sigmas = (0..n).map(|i| sigma(i) as f32).chain([0.0]).collect();
    let timesteps = (0..n).map(|i| (sigma(i) * TRAIN_STEPS).floor() as f32);
    Ok((sigmas, timesteps.collect()))
}

/// Returns `n` timesteps `1000 * sigma`, one per step.
///
/// # Errors
/// The same as [`sigmas`].
pub(crate) fn timesteps(n: usize) -> Result<Vec<f32>, ScheduleError> {
    Ok(timesteps_of(&sigmas(n)?))
}

/// Returns the timesteps of the steps between `sigmas`.
pub(crate) fn timesteps_of(sigmas: &[f32]) -> Vec<f32> {
    let steps = sigmas.len().saturating_sub(1);
    let time = |sigma: &f32| sigma * TRAIN_STEPS as f32;
    sigmas[..steps].iter().map(time).collect()
}

/// Returns the sigma of a time `u` with a shift.
fn shifted(u: f64, shift: f64) -> f64 {
    shift * u / (1.0 + (shift - 1.0) * u)
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
