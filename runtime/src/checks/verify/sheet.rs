//! What was checked, what came out, and what was not checked and why. Every tensor of a golden set ends in exactly one of: rows, inputs,
//! not checked.

use std::cell::RefCell;
use std::collections::BTreeMap;

use engines::recipe::Recipe;
use engines::tensor::Tensor;
use serde::{Serialize, Serializer};

use super::compare::{Difference, compare};
use super::precision::Precision;
use super::set::{Entry, Set, Tolerance};

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub file: String,
    pub tensor: String,
    /// Who made the value: a component of the export, or a part of the runtime.
    pub component: String,
    pub shape: Vec<usize>,
    #[serde(serialize_with = "number")]
    pub max_abs: f64,
    #[serde(serialize_with = "number")]
    pub max_rel: f64,
    #[serde(serialize_with = "number")]
    pub cosine: f64,
    /// Root mean square of the difference over that of the reference.
    #[serde(serialize_with = "number")]
    pub rel_rms: f64,
    pub worst_index: Vec<usize>,
    #[serde(serialize_with = "number")]
    pub got: f64,
    #[serde(serialize_with = "number")]
    pub want: f64,
    pub differing: usize,
    pub count: usize,
    /// Most of the tolerance that an element uses.
    #[serde(serialize_with = "number")]
    pub tolerance_used: f64,
    pub tolerance: serde_json::Value,
    #[serde(skip)]
    pub rule: Tolerance,
    pub pass: bool,
    /// False when there was no value to compare, or none of the right shape.
    pub made: bool,
    /// Why there is nothing to compare, or how the value was made where that is not plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// JSON has no infinities and no NaN: those are strings.
fn number<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        to.serialize_f64(*value)
    } else {
        to.serialize_str(&value.to_string())
    }
}

/// A tensor without a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    pub file: String,
    pub tensor: String,
    pub reason: String,
}

impl Row {
    /// `file.tensor`.
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

/// The difference from a value that could not be made.
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

/// Which tensors are looked at, by file and name.
pub(super) type Focus<'a> = &'a dyn Fn(&str, &str) -> bool;

enum Fate {
    Open,
    Row,
    Input,
    NotChecked(String),
}

/// The sheet of one pass over a set.
pub(super) struct Sheet<'a> {
    set: &'a Set,
    precision: Precision,
    fates: RefCell<BTreeMap<(String, String), Fate>>,
    rows: RefCell<Vec<Row>>,
}

/// Everything of a finished pass.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    pub rows: Vec<Row>,
    /// Tensors that were fed, not compared.
    pub inputs: Vec<(String, String)>,
    pub not_checked: Vec<Left>,
}

impl<'a> Sheet<'a> {
    /// All tensors of `set` that `focus` wants are open. The others do not exist for this pass.
    pub(super) fn new(set: &'a Set, focus: Focus<'_>) -> Self {
        let wanted = set.entries().iter().filter(|e| focus(&e.file, &e.name));
        let fates = wanted
            .map(|e| ((e.file.clone(), e.name.clone()), Fate::Open))
            .collect();
        Self {
            set,
            precision: Precision::of(set, Recipe::Fp32),
            fates: RefCell::new(fates),
            rows: RefCell::default(),
        }
    }

    /// The same sheet for what an export of `recipe` makes.
    pub(super) fn of_recipe(self, recipe: Recipe) -> Self {
        Self {
            precision: Precision::of(self.set, recipe),
            ..self
        }
    }

    /// Names of a file's tensors that still have no fate, in the manifest's order.
    pub(super) fn open(&self, file: &str) -> Vec<String> {
        let fates = self.fates.borrow();
        let is_open = |e: &&Entry| {
            matches!(
                fates.get(&(e.file.clone(), e.name.clone())),
                Some(Fate::Open)
            )
        };
        self.set
            .entries()
            .iter()
            .filter(|e| e.file == file)
            .filter(is_open)
            .map(|e| e.name.clone())
            .collect()
    }

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

    /// The tensor is fed to what is checked.
    pub(super) fn input(&self, file: &str, name: &str) {
        self.settle(file, name, Fate::Input);
    }

    pub(super) fn not_checked(&self, file: &str, name: &str, reason: impl Into<String>) {
        self.settle(file, name, Fate::NotChecked(reason.into()));
    }

    /// Compares what `component` made; nothing happens for a tensor that is not looked at.
    pub(super) fn check(&self, component: &str, file: &str, name: &str, got: &Tensor) {
        self.record(component, file, name, Ok(got), None);
    }

    /// As [`Self::check`], saying how the value was made.
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

    /// The value could not be made although everything it needs is there: that fails.
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
        let Some(entry) = self.set.entry(file, name).filter(|_| {
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
                format!("tolerance is not understood: {}", entry.rule),
            );
        };
        let rule = match self.precision.rule(component, (file, name), rule) {
            Ok(rule) => rule,
            Err(reason) => return self.not_checked(file, name, reason),
        };
        let want = match self.set.tensor(file, name) {
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

    /// Ends the pass: what is still open has no check.
    pub(super) fn finish(self) -> Results {
        let mut out = Results {
            rows: self.rows.into_inner(),
            ..Results::default()
        };
        for entry in self.set.entries() {
            let key = (entry.file.clone(), entry.name.clone());
            match self.fates.borrow().get(&key) {
                Some(Fate::Input) => out.inputs.push(key),
                Some(Fate::NotChecked(reason)) => out.not_checked.push(left(key, reason)),
                Some(Fate::Open) => out
                    .not_checked
                    .push(left(key, "no check knows this tensor")),
                Some(Fate::Row) | None => {}
            }
        }
        out
    }
}

fn left((file, tensor): (String, String), reason: &str) -> Left {
    Left {
        file,
        tensor,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A set of one file `f` with these tensors and rules.
    pub(crate) fn set(
        dir: &std::path::Path,
        tensors: &[(&str, Option<Tensor>, serde_json::Value)],
    ) -> Set {
        let facts: serde_json::Map<String, serde_json::Value> = tensors
            .iter()
            .map(|(name, _, rule)| ((*name).to_owned(), json!({"tolerance": rule})))
            .collect();
        std::fs::create_dir_all(dir.join("golden")).unwrap();
        let manifest = json!({"files": {"f.safetensors": facts}}).to_string();
        std::fs::write(dir.join("golden/manifest.json"), manifest).unwrap();
        let set = Set::open(dir).unwrap();
        let there = tensors
            .iter()
            .filter_map(|(name, t, _)| Some(((*name).to_owned(), t.clone()?)))
            .collect();
        engines::tensor_file::write(&set.file("f"), &there).unwrap();
        set
    }

    #[test]
    fn every_tensor_ends_in_one_place_and_none_passes_silently() {
        let dir = tempfile::tempdir().unwrap();
        let one = || Some(Tensor::from_slice(&[1], &[1f32]));
        let close = || json!({"atol": 0.1, "rtol": 0});
        let set = set(
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
        let sheet = Sheet::new(&set, &|_, name| name != "elsewhere");
        let value = |x: f32| Tensor::from_slice(&[1], &[x]);
        sheet.check("c", "f", "good", &value(1.05));
        sheet.check("c", "f", "bad", &value(1.2));
        sheet.check(
            "c",
            "f",
            "misshaped",
            &Tensor::from_slice(&[2], &[1f32, 1.0]),
        );
        sheet.failed("c", "f", "broken", "it burst");
        sheet.input("f", "fed");
        for name in ["absent", "odd", "elsewhere", "not in the set"] {
            sheet.check("c", "f", name, &value(1.0));
        }
        assert_eq!(sheet.open("f"), ["unknown"]);
        let results = sheet.finish();
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
            ("unknown", "no check knows this tensor"),
            ("absent", "listed in the manifest, but not in the folder"),
            ("odd", "tolerance is not understood: \"roughly\""),
        ];
        assert_eq!(left, want);
    }

    #[test]
    fn numbers_that_json_lacks_are_written_as_words() {
        let dir = tempfile::tempdir().unwrap();
        let set = set(
            dir.path(),
            &[(
                "x",
                Some(Tensor::from_slice(&[1], &[1f32])),
                json!({"atol": 1, "rtol": 0}),
            )],
        );
        let sheet = Sheet::new(&set, &|_, _| true);
        sheet.check("c", "f", "x", &Tensor::from_slice(&[1], &[f32::NAN]));
        let json = serde_json::to_value(sheet.finish()).unwrap();
        let row = &json["rows"][0];
        assert_eq!(
            (&row["max_abs"], &row["cosine"], &row["want"], &row["pass"]),
            (&json!("inf"), &json!("NaN"), &json!(1.0), &json!(false))
        );
    }
}
