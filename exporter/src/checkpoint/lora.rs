//! A LoRA as a lazy overlay: `W' = round(W + factor * (B @ A))`. The sum is computed when a tensor
//! is read, and rounded to the stored type of W.
//!
//! The reference merges in the same way before it runs: `liveavatar` loads the LoRA with peft and
//! casts the sum to bf16. A merge in f32 without the rounding moves a prediction by about 1e-2.
//! Every spelling of a plain LoRA is read (`lora/forms.rs`), for every name of a module
//! (`lora/names.rs`), at the strength that the file states (`lora/scale.rs`).

mod factor;
mod forms;
mod merge;
mod module;
mod names;
mod report;
mod scale;

pub use forms::LoraForm;
pub(crate) use merge::Merge;
pub use report::LoraReport;
pub use scale::LoraScale;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::dtype::StoredDType;
use super::error::{CheckpointError, Faults, LoraFault as Fault};
use super::stored::StoredTensors;
use factor::set_factors;
use forms::Part;
use merge::Pair;
use module::{Keys, Module, pair, shape};
use names::{Found, Names};

const WANT: &str = "MODULE.lora_A.weight, MODULE.lora_down.weight or another spelling of a LoRA";
/// Names of the weights in a folder that PEFT wrote.
const PEFT_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// A LoRA to merge, as the user names it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraFile {
    /// The file, or PEFT's folder.
    pub path: PathBuf,
    /// The factor of each module.
    pub scale: LoraScale,
    /// A further factor of the whole LoRA; 1 is the strength that it was trained for.
    pub strength: f64,
}

impl LoraFile {
    /// Opens the LoRA.
    ///
    /// # Errors
    /// The errors of [`Lora::open`].
    pub fn open(&self) -> Result<Lora, CheckpointError> {
        let mut lora = Lora::open(&self.path, self.scale)?;
        lora.strength = self.strength;
        Ok(lora)
    }
}

/// An opened LoRA file. Its own tensors are checked; no checkpoint was compared yet.
#[derive(Debug)]
pub struct Lora {
    file: PathBuf,
    tensors: StoredTensors,
    forms: BTreeSet<LoraForm>,
    /// The pairs by the module's name in the file.
    modules: BTreeMap<String, Module>,
    origin: String,
    strength: f64,
}

impl Lora {
    /// Opens a safetensors file, a torch file or a folder of LoRA weights, at strength 1.
    ///
    /// # Errors
    /// A form that is no plain LoRA, a pair without one half, statements about alpha that disagree.
    pub fn open(path: &Path, scale: LoraScale) -> Result<Self, CheckpointError> {
        let inside = PEFT_FILES.map(|name| path.join(name));
        let weights = inside.iter().find(|file| file.is_file());
        let tensors = StoredTensors::open(weights.map_or(path, PathBuf::as_path))?;
        let fail = |faults: Vec<Fault>| CheckpointError::Lora {
            file: path.to_owned(),
            faults: Faults(faults),
        };
        let (keys, forms, mut faults) = sort(&tensors);
        if keys.is_empty() && faults.is_empty() {
            let found = tensors.names().take(4).map(str::to_owned).collect();
            return Err(fail(vec![Fault::NoMatch { want: WANT, found }]));
        }
        let statements = scale::statements(path, tensors.files(), &mut faults)?;
        faults.extend(other_types(&tensors, &keys));
        let mut modules = BTreeMap::new();
        for (module, keys) in &keys {
            match pair(&tensors, module, keys) {
                Ok(pair) => drop(modules.insert(module.clone(), pair)),
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(fail(faults));
        }
        let origin =
            set_factors(&tensors, &keys, &mut modules, scale, &statements).map_err(fail)?;
        Ok(Self {
            file: path.to_owned(),
            forms,
            modules,
            origin,
            strength: 1.0,
            tensors,
        })
    }

    /// Returns the rank, the factors and the adapted modules.
    pub fn report(&self) -> LoraReport {
        let mut targets = BTreeMap::new();
        for module in self.modules.keys() {
            *targets.entry(kind(module)).or_default() += 1;
        }
        let info = |name| self.tensors.info(name);
        let pairs = self.modules.values();
        let factors = pairs.clone().map(|p| p.factor as f32);
        LoraReport {
            file: self.file.clone(),
            forms: self.forms.clone(),
            ranks: pairs.clone().map(|p| p.rank).collect(),
            factors: [
                factors.clone().fold(f32::INFINITY, f32::min),
                factors.fold(f32::NEG_INFINITY, f32::max),
            ],
            origin: self.origin.clone(),
            strength: self.strength as f32,
            dtypes: pairs
                .flat_map(|p| [&p.a, &p.b])
                .filter_map(|key| info(key).map(|i| i.dtype.to_string()))
                .collect(),
            modules: self.modules.len(),
            targets,
            weights: BTreeMap::new(),
            files: self
                .tensors
                .files()
                .into_iter()
                .map(Path::to_owned)
                .collect(),
        }
    }

    /// Returns the number of elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors
            .names()
            .map(|n| shape(&self.tensors, n).iter().product::<usize>() as u64)
            .sum()
    }

    /// Binds every module to its tensor `MODULE.weight` `[out, in]` of a checkpoint. `names` are
    /// the names of its tensors, and `shape_of` returns their shapes.
    pub(super) fn onto<'s>(
        self,
        names: impl Iterator<Item = &'s str>,
        shape_of: impl Fn(&str) -> Option<&'s [usize]>,
    ) -> Result<Merge, CheckpointError> {
        let names = Names::new(names);
        let (mut faults, mut unmatched) = (Vec::new(), Vec::new());
        let mut bound: BTreeMap<String, (&String, Pair)> = BTreeMap::new();
        for (module, parts) in &self.modules {
            let found = match names.find(module) {
                Found::One(target) => {
                    let key = format!("{target}.weight");
                    let want = shape_of(&key).unwrap_or_default();
                    self.pair(module, parts, &key, want).map(|pair| (key, pair))
                }
                Found::Several(first, second) => Err(Fault::Ambiguous {
                    module: module.clone(),
                    first: first.to_owned(),
                    second: second.to_owned(),
                }),
                Found::Nothing => {
                    unmatched.push(module.clone());
                    continue;
                }
            };
            match found {
                Err(fault) => faults.push(fault),
                Ok((key, pair)) => {
                    if let Some((first, _)) = bound.insert(key.clone(), (module, pair)) {
                        faults.push(Fault::Twice {
                            module: key,
                            first: first.clone(),
                            second: module.clone(),
                        });
                    }
                }
            }
        }
        if !unmatched.is_empty() {
            let of = self.modules.len();
            faults.push(Fault::Unmatched {
                modules: unmatched,
                of,
            });
        }
        if !faults.is_empty() {
            return Err(CheckpointError::Lora {
                file: self.file,
                faults: Faults(faults),
            });
        }
        let pairs = bound.into_iter().map(|(k, (_, p))| (k, p)).collect();
        Ok(self.merge(pairs))
    }

    /// Returns the merge of pairs that are bound to the tensors of a checkpoint.
    fn merge(self, pairs: BTreeMap<String, Pair>) -> Merge {
        let mut report = self.report();
        report.targets.clear();
        for key in pairs.keys() {
            let module = key.strip_suffix(".weight").unwrap_or(key);
            *report.targets.entry(kind(module)).or_default() += 1;
        }
        report.weights = pairs.iter().map(|(k, p)| (k.clone(), p.factor)).collect();
        Merge {
            tensors: self.tensors,
            pairs,
            report,
        }
    }

    /// Returns the pair of a module for the base tensor `key` of shape `want`.
    fn pair(&self, module: &str, parts: &Module, key: &str, want: &[usize]) -> Result<Pair, Fault> {
        let rows = shape(&self.tensors, &parts.b)[0];
        let got = [rows, shape(&self.tensors, &parts.a)[1]];
        if want != got {
            return Err(Fault::Shape {
                module: module.to_owned(),
                key: key.to_owned(),
                want: want.to_vec(),
                got: got.to_vec(),
            });
        }
        let factor = parts.factor * self.strength;
        if !(factor as f32).is_finite() {
            return Err(Fault::Scale { got: factor });
        }
        Ok(Pair {
            a: parts.a.clone(),
            b: parts.b.clone(),
            rank: parts.rank,
            factor: factor as f32,
        })
    }
}

/// Returns the keys of a file by module and the spellings. Every key of another form is a fault.
fn sort(tensors: &StoredTensors) -> (BTreeMap<String, Keys>, BTreeSet<LoraForm>, Vec<Fault>) {
    let mut modules: BTreeMap<String, Keys> = BTreeMap::new();
    let (mut forms, mut faults) = (BTreeSet::new(), Vec::new());
    let mut others: BTreeMap<Option<&str>, Vec<String>> = BTreeMap::new();
    for key in tensors.names() {
        let Some(parsed) = forms::parse(key) else {
            let form = forms::refused(key);
            others.entry(form).or_default().push(key.to_owned());
            continue;
        };
        forms.extend(parsed.form);
        let keys = modules.entry(parsed.module.to_owned()).or_default();
        let slot = match parsed.part {
            Part::Down => &mut keys.a,
            Part::Up => &mut keys.b,
            Part::Alpha => &mut keys.alpha,
        };
        if let Some(first) = slot.replace(key.to_owned()) {
            faults.push(Fault::Twice {
                module: parsed.module.to_owned(),
                first,
                second: key.to_owned(),
            });
        }
    }
    for (form, keys) in others {
        match form {
            Some(form) => faults.push(Fault::Form { form, keys }),
            // Of a file without any LoRA, the caller names the first keys.
            None if modules.is_empty() => {}
            None => faults.push(Fault::NotLora { keys, want: WANT }),
        }
    }
    (modules, forms, faults)
}

/// Returns a fault for each element type that is not floating point of 16 bits or more.
fn other_types(tensors: &StoredTensors, modules: &BTreeMap<String, Keys>) -> Vec<Fault> {
    let mut others: BTreeMap<StoredDType, Vec<String>> = BTreeMap::new();
    for key in modules.values().flat_map(|k| [&k.a, &k.b]).flatten() {
        match tensors.info(key).map(|i| i.dtype) {
            Some(StoredDType::F32 | StoredDType::BF16 | StoredDType::F16 | StoredDType::F64)
            | None => {}
            Some(got) => others.entry(got).or_default().push(key.clone()),
        }
    }
    let fault = |(got, keys)| Fault::DType { got, keys };
    others.into_iter().map(fault).collect()
}

/// Returns a module's name without its layer number: `blocks.3.self_attn.q` ->
/// `blocks.self_attn.q`, `blocks.3.ffn.0` -> `blocks.ffn.0`.
fn kind(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    let last = parts.len().saturating_sub(1);
    let kept = parts
        .iter()
        .enumerate()
        .filter(|&(i, p)| i == last || !p.bytes().all(|b| b.is_ascii_digit()));
    kept.map(|(_, &p)| p).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests;
