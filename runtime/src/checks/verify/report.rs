//! What a verification found: the rows, the worst row of each component, the project's own
//! exactness targets, the evidence that one prefill serves every step, and the planted faults.

mod text;

use engines::components::dit;
use engines::contract::Contract;
use engines::manifest::Models;
use engines::recipe::Recipe;
use serde::Serialize;

use super::control::Fault;
use super::error::VerifyError;
use super::figures::{share, short};
use super::golden::Golden;
use super::pass::Timings;
use super::precision::{BF16, stated};
use super::table::{Focus, NotChecked, Results, Row};
use super::targets::{Target, targets};

/// Summary of one component's rows.
#[derive(Clone, Debug, Serialize)]
pub struct Worst {
    /// Component of the export, or part of the runtime, that made the values.
    pub component: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of rows that failed.
    pub failed: usize,
    /// Largest absolute difference; a word when it is not finite.
    pub max_abs: String,
    /// Tensor of the largest absolute difference.
    pub tensor: String,
    /// Largest part of its tolerance that a row uses.
    pub tolerance_used: String,
}

/// The whole result of a verification.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether every row passed and every planted fault was noticed, see [`Report::verdict`].
    pub pass: bool,
    /// The fate of every tensor of the golden set.
    #[serde(flatten)]
    pub results: Results,
    /// Summaries of the rows, by component.
    pub components: Vec<Worst>,
    /// The project's own exactness targets.
    pub targets: Vec<Target>,
    /// Evidence that the keys and values of the sink are the same for every step, in sentences.
    pub sink: Vec<String>,
    /// For an export in bf16: the error of its prediction, beside the error of the reference's own
    /// bf16 prediction.
    pub precision: Vec<String>,
    /// The planted faults; empty without a control run.
    pub faults: Vec<Fault>,
    timings: Timings,
    /// Seconds of the whole verification.
    pub seconds: f64,
    control: bool,
    golden: String,
    models: String,
}

impl Report {
    /// Makes the report of finished checks; [`Report::seconds`] is still 0.
    pub(super) fn new(
        golden: &Golden,
        models: &Models,
        results: Results,
        timings: Timings,
        faults: Vec<Fault>,
        control: bool,
    ) -> Self {
        let mut report = Self {
            pass: false,
            components: components(&results.rows),
            targets: targets(&results.rows),
            sink: sink(&results.rows),
            precision: precision(golden, models.recipe(), &results.rows),
            results,
            faults,
            timings,
            seconds: 0.0,
            control,
            golden: golden.root().display().to_string(),
            models: models.dir().display().to_string(),
        };
        report.pass = report.verdict().is_ok();
        report
    }

    /// Adds the tensors that lie in the folder and that the manifest does not list.
    pub(super) fn add_unlisted(&mut self, golden: &Golden, focus: Focus<'_>) {
        let unlisted = golden
            .unlisted()
            .into_iter()
            .filter(|(file, name)| focus(file, name.as_deref().unwrap_or_default()));
        self.results
            .not_checked
            .extend(unlisted.map(|(file, name)| match name {
                Some(tensor) => NotChecked {
                    file,
                    tensor,
                    reason: "not in the manifest, so without a tolerance".to_owned(),
                },
                None => NotChecked {
                    file,
                    tensor: "*".to_owned(),
                    reason: "file cannot be read".to_owned(),
                },
            }));
    }

    fn failed(&self) -> usize {
        self.results.rows.iter().filter(|r| !r.pass).count()
    }

    fn missed(&self) -> usize {
        self.faults.iter().filter(|f| f.caught_by.is_none()).count()
    }

    /// Judges the rows and the planted faults.
    ///
    /// # Errors
    /// `Failed` when a row failed, `Missed` when no check noticed a planted fault, `Nothing`
    /// without rows.
    pub fn verdict(&self) -> Result<(), VerifyError> {
        let (failed, missed) = (self.failed(), self.missed());
        if self.results.rows.is_empty() {
            return Err(VerifyError::Nothing {
                path: self.golden.clone().into(),
            });
        }
        match (failed, missed) {
            (0, 0) => Ok(()),
            (0, _) => Err(VerifyError::Missed {
                missed,
                faults: self.faults.len(),
            }),
            _ => Err(VerifyError::Failed {
                failed,
                rows: self.results.rows.len(),
            }),
        }
    }
}

fn worse<'r>(a: &'r Row, b: &'r Row) -> &'r Row {
    if b.max_abs > a.max_abs { b } else { a }
}

fn worst<'r>(rows: impl Iterator<Item = &'r Row>) -> Option<&'r Row> {
    rows.reduce(worse)
}

fn components(rows: &[Row]) -> Vec<Worst> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.component.as_str()) {
            names.push(&row.component);
        }
    }
    let one = |name: &str| {
        let own = || rows.iter().filter(|r| r.component == name);
        let worst = worst(own())?;
        Some(Worst {
            component: name.to_owned(),
            rows: own().count(),
            failed: own().filter(|r| !r.pass).count(),
            max_abs: short(worst.max_abs),
            tensor: worst.name(),
            tolerance_used: share(own().map(|r| r.tolerance_used).fold(0.0, f64::max)),
        })
    };
    names.into_iter().filter_map(one).collect()
}

/// Collects the evidence that one prefill serves every step: the inputs of the graphs, and numbers
/// of the reference, which prefills once for each step.
fn sink(rows: &[Row]) -> Vec<String> {
    let names = |c: &Contract| {
        c.inputs
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let of_step = [&dit::SINUSOID, &dit::SIGMAS, &dit::E, &dit::E0];
    let takes_step = |c: &Contract| {
        c.inputs
            .iter()
            .any(|p| of_step.iter().any(|q| q.name == p.name))
    };
    let free = if takes_step(&dit::SINK_EMBED) || takes_step(&dit::SINK_LAYER) {
        "one of these inputs is a step"
    } else {
        "none of these inputs is a step, a timestep or a sigma"
    };
    let mut out = vec![format!(
        "the graphs take ({}) and ({}): {free}; they make the modulation of timestep 0 themselves",
        names(&dit::SINK_EMBED),
        names(&dit::SINK_LAYER)
    )];
    let mut evidence = |what: &str, of: &dyn Fn(&Row) -> bool| {
        let own: Vec<&Row> = rows.iter().filter(|r| of(r)).collect();
        if let Some(worst) = worst(own.iter().copied()) {
            let verdict = if own.iter().all(|r| r.pass) {
                "agree"
            } else {
                "DIFFER"
            };
            out.push(format!(
                "{what}: {} tensors {verdict}, worst {} at {}",
                own.len(),
                short(worst.max_abs),
                worst.name()
            ));
        }
    };
    let kept = |r: &Row| r.file == "dit_sink" && r.tensor.contains(".cond_");
    evidence("keys and values that the reference computed", &kept);
    let steps = |r: &Row| r.file == "e2e_tpp_steps" && r.tensor.ends_with("noise_pred");
    evidence(
        "predictions of every recorded step (the reference prefills for each step, the export once)",
        &steps,
    );
    out
}

/// Writes the errors of the predictions of block 0, in relative root mean squares.
fn precision(golden: &Golden, recipe: Recipe, rows: &[Row]) -> Vec<String> {
    if recipe == Recipe::Fp32 {
        return Vec::new();
    }
    let off = |file: &str, tensor: &str| {
        let row = rows
            .iter()
            .find(|r| r.file == file && r.tensor == tensor && r.made)?;
        Some(row.rel_rms)
    };
    let lines = [
        (
            "the reference's bf16 prediction against its f32 prediction, as the set states it",
            stated(golden),
        ),
        (
            "ours against the reference's f32 prediction",
            off("dit_blocks", "block0.noise_pred"),
        ),
        (
            "ours against the reference's bf16 prediction",
            off(BF16, "noise_pred"),
        ),
    ];
    let line = |(what, x): (&str, Option<f64>)| Some(format!("{what}: {}", short(x?)));
    lines.into_iter().filter_map(line).collect()
}
