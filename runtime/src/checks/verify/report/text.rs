//! The report as people read it: the table of rows, the summaries, the evidence, the tensors
//! without a row, the planted faults and the verdict.

use std::fmt;

use super::Report;
use crate::checks::verify::figures::{share, short};
use crate::checks::verify::tolerance::Tolerance;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} against {}", self.models, self.golden)?;
        self.table(f)?;
        self.summary(f)?;
        self.not_checked(f)?;
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
            "max rel: max abs divided by the largest reference value; \
             used: the largest part of the tolerance that an element uses\n"
        )
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = vec![cells([
            "worst row of each component",
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
                &t.wanted,
                &t.found,
                if t.met { "met" } else { "MISSED" },
                &t.tensor,
            ]));
        }
        columns(f, &table)?;
        if !self.precision.is_empty() {
            writeln!(
                f,
                "\nerror of the prediction, in relative root mean squares"
            )?;
        }
        for line in &self.precision {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "\nthe sink's keys and values do not depend on the step")?;
        self.sink
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }

    /// Writes the tensors without a row. Tensors with the same reason share a line.
    fn not_checked(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// Writes rows of cells in columns. The first and the last column are left-aligned.
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
