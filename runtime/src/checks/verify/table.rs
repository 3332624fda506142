//! The table of one pass over a golden set. Every tensor of the set ends in exactly one list: rows,
//! inputs, or not checked with a reason.

use std::cell::RefCell;
use std::collections::BTreeMap;

use engines::recipe::Recipe;
use engines::tensor::Tensor;
use serde::{Serialize, Serializer};

use super::compare::{Difference, compare};
use super::golden::{Entry, Golden};
use super::precision::Precision;
use super::tolerance::Tolerance;

/// One comparison of a value with the reference's tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// File of the golden set, without its extension.
    pub file: String,
    /// Name of the tensor in the file.
    pub tensor: String,
    /// Component of the export, or part of the runtime, that made the value.
    pub component: String,
    /// Shape of the reference's tensor.
    pub shape: Vec<usize>,
    /// Largest absolute difference; infinite when there is no value to compare.
    #[serde(serialize_with = "number")]
    pub max_abs: f64,
    /// `max_abs`, over the largest absolute value of the reference.
    #[serde(serialize_with = "number")]
    pub max_rel: f64,
    /// Cosine of the angle between the value and the reference, as vectors.
    #[serde(serialize_with = "number")]
    pub cosine: f64,
    /// Root mean square of the difference, over the root mean square of the reference.
    #[serde(serialize_with = "number")]
    pub rel_rms: f64,
    /// Index of the element that uses the largest part of its tolerance.
    pub worst_index: Vec<usize>,
    /// The value at `worst_index`.
    #[serde(serialize_with = "number")]
    pub got: f64,
    /// The reference's value at `worst_index`.
    #[serde(serialize_with = "number")]
    pub want: f64,
    /// Number of elements that differ.
    pub differing: usize,
    /// Number of elements.
    pub count: usize,
    /// Largest part of its tolerance that an element uses; above 1 the row fails.
    #[serde(serialize_with = "number")]
    pub tolerance_used: f64,
    /// The applied rule, as JSON.
    pub tolerance: serde_json::Value,
    /// The applied rule.
    #[serde(skip)]
    pub rule: Tolerance,
    /// Whether the value is within the tolerance.
    pub pass: bool,
    /// Whether there was a value of the right shape to compare.
    pub made: bool,
    /// Explains a row: the reason why the value could not be compared, or a note on how it was
    /// computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Writes a number. JSON has no infinities and no NaN, so that they become strings.
fn number<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        to.serialize_f64(*value)
    } else {
        to.serialize_str(&value.to_string())
    }
}

/// A tensor without a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotChecked {
    /// File of the golden set, without its extension.
    pub file: String,
    /// Name of the tensor in the file; `*` for a file that cannot be read.
    pub tensor: String,
    /// Why no check compared the tensor.
    pub reason: String,
}

impl Row {
    /// Returns `file.tensor`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.file, self.tensor)
    }

    fn new(
        component: &str,
        entry: &Entry,
        rule: Tolerance,
        want: &Tensor,
        result: Result<Difference, String>,
        note: Option<String>,
    ) -> Self {
        let made = result.is_ok();
        let (d, note) = match result {
            Ok(d) => (d, note),
            Err(reason) => (nothing(want.shape().iter().product()), Some(reason)),
        };
        Self {
            file: entry.file.clone(),
            tensor: entry.name.clone(),
            component: component.to_owned(),
            shape: want.shape().to_vec(),
            pass: d.passes(),
            made,
            max_abs: d.max_abs,
            max_rel: d.max_rel,
            cosine: d.cosine,
            rel_rms: d.rel_rms,
            worst_index: d.worst,
            got: d.got,
            want: d.want,
            differing: d.differing,
            count: d.count,
            tolerance_used: d.used,
            tolerance: match rule {
                Tolerance::RelativeRms(limit) => serde_json::json!({ "relative_rms": limit }),
                _ => entry.rule.clone(),
            },
            rule,
            note,
        }
    }
}

/// Returns the difference from a value that could not be made.
fn nothing(count: usize) -> Difference {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    Difference {
        count,
        differing: count,
        max_abs: inf,
        max_rel: inf,
        cosine: nan,
        rel_rms: inf,
        worst: Vec::new(),
        got: nan,
        want: nan,
        used: inf,
    }
}

/// Selects the tensors of a pass, by file and name.
pub(super) type Focus<'a> = &'a dyn Fn(&str, &str) -> bool;

/// The list in which a tensor ends.
enum Fate {
    /// No check has used the tensor yet.
    Open,
    Row,
    Input,
    /// With the reason.
    NotChecked(String),
}

/// The table of one pass over a golden set, while checks fill it.
pub(super) struct Table<'a> {
    golden: &'a Golden,
    precision: Precision,
    fates: RefCell<BTreeMap<(String, String), Fate>>,
    rows: RefCell<Vec<Row>>,
}

/// The lists of a finished pass.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    /// The comparisons, in the order of the checks.
    pub rows: Vec<Row>,
    /// Tensors that checks used as inputs, as (file, name).
    pub inputs: Vec<(String, String)>,
    /// The tensors without a row.
    pub not_checked: Vec<NotChecked>,
}

impl<'a> Table<'a> {
    /// Makes the table of the tensors that `focus` selects. The pass ignores the other tensors.
    pub(super) fn new(golden: &'a Golden, focus: Focus<'_>) -> Self {
        let wanted = golden.entries().iter().filter(|e| focus(&e.file, &e.name));
        let fates = wanted
            .map(|e| ((e.file.clone(), e.name.clone()), Fate::Open))
            .collect();
        Self {
            golden,
            precision: Precision::of(golden, Recipe::Fp32),
            fates: RefCell::new(fates),
            rows: RefCell::default(),
        }
    }

    /// Judges the values by the rules for an export of `recipe`.
    pub(super) fn of_recipe(self, recipe: Recipe) -> Self {
        Self {
            precision: Precision::of(self.golden, recipe),
            ..self
        }
    }

    /// Returns the names of a file's tensors that no check has used yet, in the manifest's order.
    pub(super) fn open(&self, file: &str) -> Vec<String> {
        let fates = self.fates.borrow();
        let is_open = |e: &&Entry| {
            matches!(
                fates.get(&(e.file.clone(), e.name.clone())),
                Some(Fate::Open)
            )
        };
        self.golden
            .entries()
            .iter()
            .filter(|e| e.file == file)
            .filter(is_open)
            .map(|e| e.name.clone())
            .collect()
    }

    /// Returns whether no check has used a tensor of this pass yet.
    pub(super) fn is_open(&self, file: &str, name: &str) -> bool {
        matches!(
            self.fates.borrow().get(&(file.to_owned(), name.to_owned())),
            Some(Fate::Open)
        )
    }

    fn settle(&self, file: &str, name: &str, fate: Fate) {
        if let Some(at) = self
            .fates
            .borrow_mut()
            .get_mut(&(file.to_owned(), name.to_owned()))
            && matches!(at, Fate::Open)
        {
            *at = fate;
        }
    }

    /// Notes that a check uses the tensor as an input.
    pub(super) fn input(&self, file: &str, name: &str) {
        self.settle(file, name, Fate::Input);
    }

    /// Notes why no check compares the tensor.
    pub(super) fn not_checked(&self, file: &str, name: &str, reason: impl Into<String>) {
        self.settle(file, name, Fate::NotChecked(reason.into()));
    }

    /// Compares a value that `component` made. Ignores a tensor that the pass does not select.
    pub(super) fn check(&self, component: &str, file: &str, name: &str, got: &Tensor) {
        self.record(component, file, name, Ok(got), None);
    }

    /// Compares a value as [`Self::check`] does, and notes how it was made.
    pub(super) fn check_noted(
        &self,
        component: &str,
        file: &str,
        name: &str,
        got: &Tensor,
        note: &str,
    ) {
        self.record(component, file, name, Ok(got), Some(note.to_owned()));
    }

    /// Fails the tensor: its value could not be made although every input exists.
    pub(super) fn failed(&self, component: &str, file: &str, name: &str, reason: &str) {
        self.record(component, file, name, Err(reason.to_owned()), None);
    }

    fn record(
        &self,
        component: &str,
        file: &str,
        name: &str,
        got: Result<&Tensor, String>,
        note: Option<String>,
    ) {
        let Some(entry) = self.golden.entry(file, name).filter(|_| {
            self.fates
                .borrow()
                .contains_key(&(file.to_owned(), name.to_owned()))
        }) else {
            return;
        };
        let Some(rule) = entry.tolerance else {
            return self.not_checked(
                file,
                name,
                format!("the tolerance has an unknown form: {}", entry.rule),
            );
        };
        let rule = match self.precision.rule(component, (file, name), rule) {
            Ok(rule) => rule,
            Err(reason) => return self.not_checked(file, name, reason),
        };
        let want = match self.golden.tensor(file, name) {
            Ok(Some(want)) => want,
            Ok(None) => {
                return self.not_checked(
                    file,
                    name,
                    "listed in the manifest, but not in the folder",
                );
            }
            Err(error) => return self.not_checked(file, name, error.to_string()),
        };
        let result = got.and_then(|got| compare(got, &want, rule));
        self.rows
            .borrow_mut()
            .push(Row::new(component, entry, rule, &want, result, note));
        self.settle(file, name, Fate::Row);
    }

    /// Ends the pass. A tensor that no check has used goes to the list of tensors without a row.
    pub(super) fn finish(self) -> Results {
        let mut out = Results {
            rows: self.rows.into_inner(),
            ..Results::default()
        };
        for entry in self.golden.entries() {
            let key = (entry.file.clone(), entry.name.clone());
            match self.fates.borrow().get(&key) {
                Some(Fate::Input) => out.inputs.push(key),
                Some(Fate::NotChecked(reason)) => out.not_checked.push(not_checked(key, reason)),
                Some(Fate::Open) => out
                    .not_checked
                    .push(not_checked(key, "no check compares this tensor")),
                Some(Fate::Row) | None => {}
            }
        }
        out
    }
}

fn not_checked((file, tensor): (String, String), reason: &str) -> NotChecked {
    NotChecked {
        file,
        tensor,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::golden::tests::golden_of;
    use super::*;

    #[test]
    fn every_tensor_ends_in_one_place_and_none_passes_silently() {
        let dir = tempfile::tempdir().unwrap();
        let one = || Some(Tensor::from_slice(&[1], &[1f32]));
        let close = || json!({"atol": 0.1, "rtol": 0});
        let golden = golden_of(
            dir.path(),
            &[
                ("good", one(), close()),
                ("bad", one(), close()),
                ("misshaped", one(), close()),
                ("broken", one(), close()),
                ("fed", one(), close()),
                ("unknown", one(), close()),
                ("absent", None, close()),
                ("odd", one(), json!("roughly")),
                ("elsewhere", one(), close()),
            ],
        );
        let table = Table::new(&golden, &|_, name| name != "elsewhere");
        let value = |x: f32| Tensor::from_slice(&[1], &[x]);
        table.check("c", "f", "good", &value(1.05));
        table.check("c", "f", "bad", &value(1.2));
        table.check(
            "c",
            "f",
            "misshaped",
            &Tensor::from_slice(&[2], &[1f32, 1.0]),
        );
        table.failed("c", "f", "broken", "it burst");
        table.input("f", "fed");
        for name in ["absent", "odd", "elsewhere", "not in the set"] {
            table.check("c", "f", name, &value(1.0));
        }
        assert_eq!(table.open("f"), ["unknown"]);
        let results = table.finish();
        let rows: Vec<(&str, bool)> = results
            .rows
            .iter()
            .map(|r| (r.tensor.as_str(), r.pass))
            .collect();
        assert_eq!(
            rows,
            [
                ("good", true),
                ("bad", false),
                ("misshaped", false),
                ("broken", false)
            ]
        );
        assert_eq!(results.inputs, [("f".to_owned(), "fed".to_owned())]);
        let left: Vec<(&str, &str)> = results
            .not_checked
            .iter()
            .map(|l| (l.tensor.as_str(), l.reason.as_str()))
            .collect();
        let want = [
            ("unknown", "no check compares this tensor"),
            ("absent", "listed in the manifest, but not in the folder"),
            ("odd", "the tolerance has an unknown form: \"roughly\""),
        ];
        assert_eq!(left, want);
    }

    #[test]
    fn numbers_that_json_lacks_are_written_as_words() {
        let dir = tempfile::tempdir().unwrap();
        let golden = golden_of(
            dir.path(),
            &[(
                "x",
                Some(Tensor::from_slice(&[1], &[1f32])),
                json!({"atol": 1, "rtol": 0}),
            )],
        );
        let table = Table::new(&golden, &|_, _| true);
        table.check("c", "f", "x", &Tensor::from_slice(&[1], &[f32::NAN]));
        let json = serde_json::to_value(table.finish()).unwrap();
        let row = &json["rows"][0];
        assert_eq!(
            (&row["max_abs"], &row["cosine"], &row["want"], &row["pass"]),
            (&json!("inf"), &json!("NaN"), &json!(1.0), &json!(false))
        );
    }
}
