//! The verdict, for people and for programs: the table of rows, the worst of each component, the project's own exactness targets beside what
//! was found, how the sink's independence of the step was shown, the control's faults, and what was not checked.

use std::fmt;

use engines::components::{ALL, dit};
use engines::manifest::Models;
use engines::recipe::Recipe;
use serde::Serialize;

use super::control::Fault;
use super::precision::{BF16, stated};
use super::set::{Set, Tolerance};
use super::sheet::{Focus, Left, Results, Row};
use super::{Timings, VerifyError};

/// The worst of one component's rows.
#[derive(Clone, Debug, Serialize)]
pub struct Worst {
    pub component: String,
    pub rows: usize,
    pub failed: usize,
    /// Largest absolute difference; as a word when it is no number.
    pub max_abs: String,
    pub tensor: String,
    /// Most of a tolerance that a row uses.
    pub tolerance_used: String,
}

/// One exactness target of the project, tighter than the set's tolerances. It is shown; the verdict goes by the tolerances alone.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    pub what: &'static str,
    pub wanted: &'static str,
    pub found: String,
    pub tensor: String,
    pub met: bool,
}

/// Everything that a run of `verify` found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub pass: bool,
    #[serde(flatten)]
    pub results: Results,
    pub components: Vec<Worst>,
    pub targets: Vec<Target>,
    /// How it was shown that the sink's keys and values are the same for every step.
    pub sink: Vec<String>,
    /// For an export in bf16: how near its prediction is to the reference's, and how near the reference's own bf16 is.
    pub precision: Vec<String>,
    pub faults: Vec<Fault>,
    timings: Timings,
    pub seconds: f64,
    control: bool,
    golden: String,
    models: String,
}

impl Report {
    pub(super) fn new(
        set: &Set,
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
            precision: precision(set, models.recipe(), &results.rows),
            results,
            faults,
            timings,
            seconds: 0.0,
            control,
            golden: set.root().display().to_string(),
            models: models.dir().display().to_string(),
        };
        report.pass = report.verdict().is_ok();
        report
    }

    /// Names what lies in the folder without being in the manifest.
    pub(super) fn add_unlisted(&mut self, set: &Set, focus: Focus<'_>) {
        let unlisted = set
            .unlisted()
            .into_iter()
            .filter(|(file, name)| focus(file, name.as_deref().unwrap_or_default()));
        self.results
            .not_checked
            .extend(unlisted.map(|(file, name)| match name {
                Some(tensor) => Left {
                    file,
                    tensor,
                    reason: "not in the manifest, so without a tolerance".to_owned(),
                },
                None => Left {
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

    /// # Errors
    /// [`VerifyError::Failed`] when a row failed, [`VerifyError::Missed`] when a fault was not caught, [`VerifyError::Nothing`] without rows.
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

/// Rules of resampled audio start here; below, a row shows a component's own error.
const RESAMPLED: f64 = 1e-3;

fn is_resampled(row: &Row) -> bool {
    row.file == "audio" && matches!(row.rule, Tolerance::Close { atol, .. } if atol >= RESAMPLED)
}

fn targets(rows: &[Row]) -> Vec<Target> {
    // These are of f32 arithmetic.
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|r| !matches!(r.rule, Tolerance::RelativeRms(_)))
        .collect();
    let exported = |r: &Row| ALL.iter().any(|c| c.name.starts_with(r.component.as_str()));
    let prediction = |r: &Row| r.tensor.ends_with("noise_pred");
    let whole = |r: &Row| r.file.starts_with("e2e_");
    let levels = |r: &Row| matches!(r.rule, Tolerance::Levels(_));
    let mut out = Vec::new();
    let mut add = |what,
                   wanted,
                   limit: f64,
                   of: &dyn Fn(&Row) -> bool,
                   measure: &dyn Fn(&Row) -> f64,
                   shown: &dyn Fn(&Row) -> String| {
        let most = rows
            .iter()
            .copied()
            .filter(|r| of(r))
            .reduce(|a, b| if measure(b) > measure(a) { b } else { a });
        out.extend(most.map(|r| Target {
            what,
            wanted,
            found: shown(r),
            tensor: r.name(),
            met: measure(r) <= limit,
        }));
    };
    let abs = |r: &Row| r.max_abs;
    let abs_shown = |r: &Row| short(r.max_abs);
    let share_of = |r: &Row| r.differing as f64 / r.count.max(1) as f64;
    let count_shown = |r: &Row| {
        format!(
            "{} of {} ({:.4} %)",
            r.differing,
            r.count,
            100.0 * share_of(r)
        )
    };
    add(
        "components",
        "1e-4",
        1e-4,
        &|r| exported(r) && !prediction(r) && !is_resampled(r),
        &abs,
        &abs_shown,
    );
    add(
        "DiT predictions",
        "2e-5",
        2e-5,
        &|r| prediction(r) && !whole(r),
        &abs,
        &abs_shown,
    );
    add(
        "end-to-end latents",
        "1e-4",
        1e-4,
        &|r| whole(r) && r.tensor.ends_with(".latents"),
        &abs,
        &abs_shown,
    );
    add(
        "end-to-end frames, off by",
        "1 level",
        1.0,
        &|r| whole(r) && levels(r),
        &abs,
        &abs_shown,
    );
    add(
        "end-to-end frames, values that differ",
        "0.1 %",
        1e-3,
        &|r| whole(r) && levels(r),
        &share_of,
        &count_shown,
    );
    add(
        "LoRA merge, of a bf16 ulp",
        "1",
        1.0,
        &|r| r.file == "lora",
        &|r| r.tolerance_used,
        &|r| short(r.tolerance_used),
    );
    add(
        "token ids that differ",
        "0",
        0.0,
        &|r| r.tensor.ends_with(".ids"),
        &|r| r.differing as f64,
        &|r| r.differing.to_string(),
    );
    add(
        "resampled audio",
        "2e-3",
        2e-3,
        &|r| is_resampled(r) && r.tensor.ends_with(".pcm16k"),
        &abs,
        &abs_shown,
    );
    add(
        "resized picture, off by",
        "1 level",
        1.0,
        &|r| r.file == "image" && levels(r),
        &abs,
        &abs_shown,
    );
    out
}

/// Evidence that one prefill serves every step: the contracts, and numbers of the reference, which prefills once a step.
fn sink(rows: &[Row]) -> Vec<String> {
    let names = |c: &engines::contract::Contract| {
        c.inputs
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let of_step = [&dit::SINUSOID, &dit::SIGMAS, &dit::E, &dit::E0];
    let takes_step = |c: &engines::contract::Contract| {
        c.inputs
            .iter()
            .any(|p| of_step.iter().any(|q| q.name == p.name))
    };
    let free = if takes_step(&dit::SINK_EMBED) || takes_step(&dit::SINK_LAYER) {
        "a step among them"
    } else {
        "no step, timestep or sigma among them"
    };
    let mut out = vec![format!(
        "the graphs take ({}) and ({}): {free}; the modulation is that of timestep 0, made inside",
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
        "predictions of every recorded step, in the reference by processes that each prefill for their own step, here over one prefill",
        &steps,
    );
    out
}

/// The predictions of block 0, in relative root mean squares.
fn precision(set: &Set, recipe: Recipe, rows: &[Row]) -> Vec<String> {
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
            "the reference's bf16 prediction from its f32 one, by its own account",
            stated(set),
        ),
        (
            "ours from the reference's f32 one",
            off("dit_blocks", "block0.noise_pred"),
        ),
        (
            "ours from the reference's bf16 one",
            off(BF16, "noise_pred"),
        ),
    ];
    let line = |(what, x): (&str, Option<f64>)| Some(format!("{what}: {}", short(x?)));
    lines.into_iter().filter_map(line).collect()
}

/// Three digits, or a word.
fn short(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if x.is_finite() => format!("{x:.2e}"),
        x => x.to_string(),
    }
}

/// Part of a tolerance.
fn share(x: f64) -> String {
    if x.is_finite() {
        format!("{:.1} %", 100.0 * x)
    } else {
        "over".to_owned()
    }
}

/// Lays rows of cells out in columns; the first is left-aligned, and so is the last.
fn columns(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, w))| match i {
                0 => format!("{cell:<w$}"),
                _ if i + 1 == count => cell.clone(),
                _ => format!("{cell:>w$}"),
            });
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|c| (*c).to_owned()).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against {}", self.models, self.golden)?;
        self.table(f)?;
        self.summary(f)?;
        self.left(f)?;
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        let seconds = self
            .timings
            .iter()
            .map(|(what, s)| format!("{what} {s:.1} s"));
        writeln!(f, "{}", seconds.collect::<Vec<_>>().join("; "))?;
        let (rows, left) = (self.results.rows.len(), self.results.not_checked.len());
        let inputs = self.results.inputs.len();
        writeln!(
            f,
            "{}: {rows} checks, {} failed; {inputs} inputs, {left} not checked{}; {:.1} s",
            if self.pass { "PASS" } else { "FAIL" },
            self.failed(),
            if self.control {
                format!(
                    "; {} faults, {} not caught",
                    self.faults.len(),
                    self.missed()
                )
            } else {
                String::new()
            },
            self.seconds
        )
    }
}

impl Report {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = vec![cells([
            "tensor",
            "component",
            "max abs",
            "max rel",
            "cosine",
            "worst at",
            "tolerance",
            "used",
            "",
        ])];
        for r in &self.results.rows {
            let place = r
                .worst_index
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(",");
            let mut verdict = vec![if r.pass { "pass" } else { "FAIL" }.to_owned()];
            if r.made && !r.pass {
                verdict.push(format!("wanted {}, got {}", r.want, r.got));
            }
            if r.made && (!r.pass || matches!(r.rule, Tolerance::Levels(_))) {
                verdict.push(format!("{} of {} differ", r.differing, r.count));
            }
            verdict.extend(r.note.clone());
            table.push(vec![
                r.name(),
                r.component.clone(),
                short(r.max_abs),
                short(r.max_rel),
                format!("{:.9}", r.cosine),
                place,
                r.rule.to_string(),
                share(r.tolerance_used),
                verdict.join(", "),
            ]);
        }
        columns(f, &table)?;
        writeln!(
            f,
            "max rel is max abs over the largest reference value; used is the largest part of its tolerance that an element takes\n"
        )
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = vec![cells([
            "worst of each component",
            "checks",
            "failed",
            "max abs",
            "used",
            "tensor",
        ])];
        for w in &self.components {
            table.push(vec![
                w.component.clone(),
                w.rows.to_string(),
                w.failed.to_string(),
                w.max_abs.clone(),
                w.tolerance_used.clone(),
                w.tensor.clone(),
            ]);
        }
        columns(f, &table)?;
        let mut table = vec![cells([
            "\nexactness target",
            "at most",
            "found",
            "",
            "tensor",
        ])];
        for t in &self.targets {
            table.push(cells([
                t.what,
                t.wanted,
                &t.found,
                if t.met { "met" } else { "MISSED" },
                &t.tensor,
            ]));
        }
        columns(f, &table)?;
        if !self.precision.is_empty() {
            writeln!(f, "\nhow far off, in relative root mean squares")?;
        }
        for line in &self.precision {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "\nthe sink's keys and values do not depend on the step")?;
        self.sink
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }

    /// Tensors with one reason share a line.
    fn left(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: Vec<(&str, Vec<String>)> = Vec::new();
        for l in &self.results.not_checked {
            let name = format!("{}.{}", l.file, l.tensor);
            match groups.iter_mut().find(|(reason, _)| *reason == l.reason) {
                Some((_, names)) => names.push(name),
                None => groups.push((&l.reason, vec![name])),
            }
        }
        if !groups.is_empty() {
            writeln!(f, "\nnot checked")?;
        }
        for (reason, names) in groups {
            writeln!(f, "  {}: {reason}", names.join(", "))?;
        }
        writeln!(f)
    }
}
