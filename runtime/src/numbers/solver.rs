//! The solvers of the flow: how the predictions of a block's steps give its next latents.
//!
//! All of them follow a path of sigmas from noise to clean latents. Euler looks at one prediction,
//! and the graph computes it. The others look at predictions of earlier steps as well, so each
//! block keeps a [`Memory`]. A prediction is a flow `v`, and `x - sigma * v` is the clean latent
//! that it means.

use std::str::FromStr;

use crate::numbers::schedule::{self, Even, SHIFT, ScheduleError};

/// A solver, by the name that `--sample_solver` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Solver {
    /// One step along the flow, on the model's own sigmas.
    #[default]
    Euler,
    /// UniPC of second order: predictor and corrector.
    UniPc,
    /// DPM-Solver++ of second order over several steps.
    DpmPlusPlus,
}

impl Solver {
    /// Returns the name that users know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::UniPc => "unipc",
            Self::DpmPlusPlus => "dpm++",
        }
    }
}

impl FromStr for Solver {
    type Err = String;

    /// Reads a solver's name. The articles write `dpmpp_2m` for `dpm++`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "euler" => Ok(Self::Euler),
            "unipc" => Ok(Self::UniPc),
            "dpm++" | "dpmpp_2m" => Ok(Self::DpmPlusPlus),
            _ => Err(format!(
                "euler, unipc or dpm++ (also called dpmpp_2m) is wanted, got `{text}`"
            )),
        }
    }
}

/// How a run goes from noise to clean latents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Solver of the steps.
    pub solver: Solver,
    /// Shift of the sigmas towards noise, 0.01 to 100.
    pub shift: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            solver: Solver::default(),
            shift: SHIFT,
        }
    }
}

/// The path of a run: a solver with its sigmas and timesteps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path {
    solver: Solver,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

/// What a solver of several steps keeps of a block between two of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Clean latents that the last two predictions meant, the newest last.
    clean: Vec<Vec<f32>>,
    /// Latents from which the last step began, after their correction.
    began: Vec<f32>,
    /// Order of the last step.
    order: usize,
}

/// A sum of latents, each times a number.
type Terms<'a> = Vec<(f64, &'a [f32])>;

fn sum(terms: &[(f64, &[f32])]) -> Vec<f32> {
    let length = terms.first().map_or(0, |(_, values)| values.len());
    let at = |i: usize| terms.iter().map(|(c, v)| c * f64::from(v[i])).sum::<f64>() as f32;
    (0..length).map(at).collect()
}

impl Path {
    /// Makes the path of `steps` steps.
    ///
    /// # Errors
    /// The number of steps or the shift cannot be used.
    pub(crate) fn new(sampling: Sampling, steps: usize) -> Result<Self, ScheduleError> {
        let Sampling { solver, shift } = sampling;
        let (sigmas, timesteps) = match solver {
            Solver::Euler => {
                let sigmas = schedule::shifted_sigmas(steps, shift)?;
                let timesteps = schedule::timesteps_of(&sigmas);
                (sigmas, timesteps)
            }
            Solver::UniPc => schedule::even(steps, shift, Even::FromOne)?,
            Solver::DpmPlusPlus => schedule::even(steps, shift, Even::ToZero)?,
        };
        Ok(Self {
            solver,
            sigmas,
            timesteps,
        })
    }

    /// Returns the sigmas, one more than there are steps. The last one is 0.
    pub(crate) fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns the timesteps that the model is told, one per step.
    pub(crate) fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Returns whether the graph's own update is the solver's.
    pub(crate) fn is_in_graph(&self) -> bool {
        self.solver == Solver::Euler
    }

    /// Returns the latents after step `step` of a block, from its latents before and the flow that
    /// the model predicted there. Steps of a block come in order, with the same `memory`.
    ///
    /// Source: diffusers `UniPCMultistepScheduler` (`solver_order=2`, `bh2`) and
    /// `DPMSolverMultistepScheduler` (`solver_order=2`, `dpmsolver++`, `midpoint`), both with
    /// `prediction_type="flow_prediction"`.
    ///
    /// # Panics
    /// If `step` is not a step of the path.
    pub(crate) fn advance(
        &self,
        step: usize,
        latents: &[f32],
        flow: &[f32],
        memory: &mut Memory,
    ) -> Vec<f32> {
        let sigma = f64::from(self.sigmas[step]);
        let clean = sum(&[(1.0, latents), (-sigma, flow)]);
        match self.solver {
            Solver::Euler => {
                let by = f64::from(self.sigmas[step + 1]) - sigma;
                sum(&[(1.0, latents), (by, flow)])
            }
            Solver::DpmPlusPlus => {
                let before = memory.clean.last().map(Vec::as_slice);
                let last = step + 1 == self.timesteps.len();
                let next = sum(&self.prediction(step, latents, &clean, before.filter(|_| !last)));
                memory.clean = vec![clean];
                next
            }
            Solver::UniPc => {
                let began = match step {
                    0 => latents.to_vec(),
                    _ => sum(&self.correction(step, &clean, memory)),
                };
                let left = self.timesteps.len() - step;
                memory.order = left.min(2).min(memory.clean.len() + 1);
                let before = memory.clean.last().map(Vec::as_slice);
                let before = before.filter(|_| memory.order > 1);
                let next = sum(&self.prediction(step, &began, &clean, before));
                memory.began = began;
                memory.clean.push(clean);
                let old = memory.clean.len().saturating_sub(2);
                memory.clean.drain(..old);
                next
            }
        }
    }

    /// Returns the share of clean latents at a sigma, as f32 arithmetic has it.
    fn alpha(&self, at: usize) -> f64 {
        f64::from(1.0 - self.sigmas[at])
    }

    /// Returns half the logarithm of the signal-to-noise ratio. It is infinite where noise ends.
    fn lambda(&self, at: usize) -> f64 {
        self.alpha(at).ln() - f64::from(self.sigmas[at]).ln()
    }

    /// Returns `sigma[to] / sigma[from]`.
    fn falls(&self, from: usize, to: usize) -> f64 {
        f64::from(self.sigmas[to]) / f64::from(self.sigmas[from])
    }

    /// Goes from the beginning of `step` to its end, by one prediction or by two. With two, the
    /// midpoint rule of DPM-Solver++ and the predictor of UniPC are one rule.
    fn prediction<'a>(
        &self,
        step: usize,
        began: &'a [f32],
        clean: &'a [f32],
        before: Option<&'a [f32]>,
    ) -> Terms<'a> {
        let h = self.lambda(step + 1) - self.lambda(step);
        let by = -self.alpha(step + 1) * (-h).exp_m1();
        let mut terms = vec![(self.falls(step, step + 1), began), (by, clean)];
        if let Some(before) = before {
            let ratio = (self.lambda(step - 1) - self.lambda(step)) / h;
            terms.extend([(0.5 * by / ratio, before), (-0.5 * by / ratio, clean)]);
        }
        terms
    }

    /// The corrector of UniPC: the last step once more, now with what is `clean` at its end.
    fn correction<'a>(&self, step: usize, clean: &'a [f32], memory: &'a Memory) -> Terms<'a> {
        let h = self.lambda(step) - self.lambda(step - 1);
        let phi = (-h).exp_m1();
        let by = -self.alpha(step) * phi;
        let newest = memory.clean.last().map_or(clean, Vec::as_slice);
        let mut terms = vec![
            (self.falls(step - 1, step), memory.began.as_slice()),
            (by, newest),
        ];
        let now = if memory.order < 2 {
            0.5
        } else {
            let ratio = (self.lambda(step - 2) - self.lambda(step - 1)) / h;
            let first = phi / -h - 1.0;
            let second = first / -h - 0.5;
            let (first, second) = (first / phi, 2.0 * second / phi);
            let old = (first - second) / (1.0 - ratio);
            let share = by * old / ratio;
            terms.extend([(share, memory.clean[0].as_slice()), (-share, newest)]);
            first - old
        };
        terms.extend([(by * now, clean), (-by * now, newest)]);
        terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engines::tensor_file;
    use std::path::Path as FilePath;

    const SOLVERS: [Solver; 3] = [Solver::Euler, Solver::UniPc, Solver::DpmPlusPlus];

    /// Largest difference, as a part of the largest value.
    fn apart(got: &[f32], want: &[f32]) -> f32 {
        assert_eq!(got.len(), want.len());
        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        let pairs = got.iter().zip(want);
        pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / most
    }

    #[test]
    fn every_solver_takes_the_steps_of_the_public_one() {
        let file = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../tests/solvers.safetensors");
        let recorded = tensor_file::read(&file).unwrap();
        let of = |name: &str| recorded[name].as_slice::<f32>().to_vec();
        for solver in SOLVERS {
            let cases = (1..=8).map(|n| (n.to_string(), n, SHIFT));
            for (label, steps, shift) in cases.chain([("shift5".to_owned(), 4, 5.0)]) {
                let name = format!("{}.{label}", solver.name());
                let path = Path::new(Sampling { solver, shift }, steps).unwrap();
                assert!(
                    apart(path.sigmas(), &of(&format!("{name}.sigmas"))) < 1e-6,
                    "{name}"
                );
                let timesteps = of(&format!("{name}.timesteps"));
                assert!(apart(path.timesteps(), &timesteps) < 1e-6, "{name}");
                let (flows, want) = (of(&format!("{name}.flows")), of(&format!("{name}.latents")));
                let size = flows.len() / steps;
                let (mut latents, mut memory) = (want[..size].to_vec(), Memory::default());
                for step in 0..steps {
                    let flow = &flows[step * size..][..size];
                    latents = path.advance(step, &latents, flow, &mut memory);
                    let off = apart(&latents, &want[(step + 1) * size..][..size]);
                    assert!(off < 2e-6, "{name}, step {step}: {off}");
                }
            }
        }
    }

    #[test]
    fn names_are_read_and_written_and_a_wrong_one_is_refused() {
        for solver in SOLVERS {
            assert_eq!(solver.name().parse(), Ok(solver));
        }
        assert_eq!("dpmpp_2m".parse(), Ok(Solver::DpmPlusPlus));
        assert!("heun".parse::<Solver>().is_err());
    }

    #[test]
    fn a_flow_that_does_not_change_leads_every_solver_to_the_same_latents() {
        let (noise, clean) = ([1.0f32, -2.0, 0.5], [0.3f32, 0.1, -1.2]);
        for solver in SOLVERS {
            let path = Path::new(Sampling { solver, shift: 3.0 }, 6).unwrap();
            let first = path.sigmas()[0];
            let mix = |a: &f32, b: &f32| first * a + (1.0 - first) * b;
            let mut x: Vec<f32> = noise.iter().zip(&clean).map(|(a, b)| mix(a, b)).collect();
            let flow: Vec<f32> = noise.iter().zip(&clean).map(|(a, b)| a - b).collect();
            let mut memory = Memory::default();
            for step in 0..6 {
                x = path.advance(step, &x, &flow, &mut memory);
            }
            assert!(apart(&x, &clean) < 1e-5, "{solver:?}: {x:?}");
        }
    }

    #[test]
    fn steps_and_shifts_that_cannot_be_used_are_refused() {
        for solver in SOLVERS {
            let path = |steps, shift| Path::new(Sampling { solver, shift }, steps);
            assert_eq!(path(0, 3.0), Err(ScheduleError::NoSteps { got: 0 }));
            for shift in [0.0, -1.0, f64::NAN, 1e9] {
                assert!(matches!(path(4, shift), Err(ScheduleError::Shift { .. })));
            }
            assert!(path(1, 0.01).is_ok());
        }
    }
}
