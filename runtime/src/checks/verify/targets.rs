//! The project's own exactness targets. They are tighter than the tolerances of a golden set. A
//! report shows them, and its verdict ignores them.

use engines::components::ALL;
use serde::Serialize;

use super::figures::short;
use super::table::Row;
use super::tolerance::Tolerance;

/// One exactness target of the project, beside the figure that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// The figure that the target limits.
    pub what: &'static str,
    /// The limit, with its unit.
    pub wanted: String,
    /// The largest figure of all rows, with its unit.
    pub found: String,
    /// Name of the tensor with this figure.
    pub tensor: String,
    /// Whether the figure is within the limit.
    pub met: bool,
}

/// How a limit and a figure are written.
#[derive(Clone, Copy)]
enum Unit {
    /// A difference of values.
    Value,
    /// A difference of 8-bit levels.
    Levels,
    /// Part of the elements that differ.
    Share,
    /// Part of the tolerance of the golden set.
    Tolerance,
    /// Number of elements that differ.
    Count,
}

/// One line of the table of targets.
struct Limit {
    what: &'static str,
    /// Largest figure that meets the target.
    limit: f64,
    unit: Unit,
    /// Whether the target is about a row.
    of: fn(&Row) -> bool,
}

/// Every target of the project, in the order of the report.
const LIMITS: [Limit; 9] = [
    Limit {
        what: "components",
        limit: 1e-4,
        unit: Unit::Value,
        of: |r| is_exported(r) && !is_prediction(r) && !is_resampled(r),
    },
    Limit {
        what: "DiT predictions",
        limit: 2e-5,
        unit: Unit::Value,
        of: |r| is_prediction(r) && !is_end_to_end(r),
    },
    Limit {
        what: "end-to-end latents",
        limit: 1e-4,
        unit: Unit::Value,
        of: |r| is_end_to_end(r) && r.tensor.ends_with(".latents"),
    },
    Limit {
        what: "end-to-end frames, off by",
        limit: 1.0,
        unit: Unit::Levels,
        of: |r| is_end_to_end(r) && has_levels(r),
    },
    Limit {
        what: "end-to-end frames, values that differ",
        limit: 1e-3,
        unit: Unit::Share,
        of: |r| is_end_to_end(r) && has_levels(r),
    },
    Limit {
        what: "LoRA merge, of a bf16 ulp",
        limit: 1.0,
        unit: Unit::Tolerance,
        of: |r| r.file == "lora",
    },
    Limit {
        what: "token ids that differ",
        limit: 0.0,
        unit: Unit::Count,
        of: |r| r.tensor.ends_with(".ids"),
    },
    Limit {
        what: "resampled audio",
        limit: 2e-3,
        unit: Unit::Value,
        of: |r| is_resampled(r) && r.tensor.ends_with(".pcm16k"),
    },
    Limit {
        what: "resized picture, off by",
        limit: 1.0,
        unit: Unit::Levels,
        of: |r| r.file == "image" && has_levels(r),
    },
];

/// Returns the targets that some row is about. The limits hold for f32 arithmetic, so that rows of
/// bf16 arithmetic do not count.
pub(super) fn targets(rows: &[Row]) -> Vec<Target> {
    let rows = rows
        .iter()
        .filter(|r| !matches!(r.rule, Tolerance::RelativeRms(_)));
    let rows: Vec<&Row> = rows.collect();
    LIMITS.iter().filter_map(|l| l.target(&rows)).collect()
}

impl Limit {
    /// Compares the limit with the row of the largest figure; `None` without such a row.
    fn target(&self, rows: &[&Row]) -> Option<Target> {
        let own = rows.iter().copied().filter(|r| (self.of)(r));
        let figure = |r: &Row| self.unit.figure(r);
        let most = own.reduce(|a, b| if figure(b) > figure(a) { b } else { a })?;
        Some(Target {
            what: self.what,
            wanted: self.unit.limit(self.limit),
            found: self.unit.found(most),
            tensor: most.name(),
            met: figure(most) <= self.limit,
        })
    }
}

impl Unit {
    /// Returns the figure of a row that a limit of this unit limits.
    fn figure(self, row: &Row) -> f64 {
        match self {
            Self::Value | Self::Levels => row.max_abs,
            Self::Share => row.differing as f64 / row.count.max(1) as f64,
            Self::Tolerance => row.tolerance_used,
            Self::Count => row.differing as f64,
        }
    }

    /// Writes a limit.
    fn limit(self, limit: f64) -> String {
        match self {
            Self::Value => format!("{limit:e}"),
            Self::Levels if limit == 1.0 => "1 level".to_owned(),
            Self::Levels => format!("{limit} levels"),
            Self::Share => format!("{} %", 100.0 * limit),
            Self::Tolerance | Self::Count => limit.to_string(),
        }
    }

    /// Writes the figure of a row.
    fn found(self, row: &Row) -> String {
        let figure = self.figure(row);
        match self {
            Self::Value | Self::Levels | Self::Tolerance => short(figure),
            Self::Share => {
                let percent = 100.0 * figure;
                format!("{} of {} ({percent:.4} %)", row.differing, row.count)
            }
            Self::Count => row.differing.to_string(),
        }
    }
}

/// Smallest absolute tolerance of a rule for resampled audio. A rule below it judges the error of
/// a component alone.
const RESAMPLED: f64 = 1e-3;

fn is_resampled(row: &Row) -> bool {
    row.file == "audio" && matches!(row.rule, Tolerance::Close { atol, .. } if atol >= RESAMPLED)
}

fn is_exported(row: &Row) -> bool {
    let component = row.component.as_str();
    ALL.iter().any(|c| c.name.starts_with(component))
}

fn is_prediction(row: &Row) -> bool {
    row.tensor.ends_with("noise_pred")
}

fn is_end_to_end(row: &Row) -> bool {
    row.file.starts_with("e2e_")
}

fn has_levels(row: &Row) -> bool {
    matches!(row.rule, Tolerance::Levels(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_they_are_compared() {
        let written = LIMITS.map(|l| l.unit.limit(l.limit));
        let want = [
            "1e-4", "2e-5", "1e-4", "1 level", "0.1 %", "1", "0", "2e-3", "1 level",
        ];
        assert_eq!(written, want);
    }
}
