//! Compares a checkpoint folder with the published layout. It reports components, sizes, types, and
//! every tensor that is missing, misshaped or unexpected. It reads headers only. A damaged
//! component is reported and does not hide the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::layout::{
    self, DIT_STEM, DitSizes, LORA_FILE, T5_FILE, T5Sizes, TOKENIZER_DIR, TensorSpec, VAE_FILE,
    VaeSizes, WAN_DIR, WAV2VEC2_DIR, WavSizes,
};
use crate::checkpoint::{Checkpoint, CheckpointError, Lora, LoraReport, LoraScale};

/// Most rows of a list in the printed form. The JSON form has all rows.
const SHOWN: usize = 10;

/// A folder without a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("{dir}: wanted a checkpoint folder, found {found}", dir = dir.display())]
    NoFolder { dir: PathBuf, found: &'static str },
    #[error(
        "{dir}: no checkpoint there; \
         wanted {WAN_DIR}/ and {LORA_FILE} in it, or the inside of {WAN_DIR}",
        dir = dir.display()
    )]
    Empty { dir: PathBuf },
}

impl InspectError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Model
    }
}

/// The report on a checkpoint folder.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    /// The base folder.
    pub dir: PathBuf,
    pub components: Vec<Component>,
    pub lora: LoraFacts,
}

/// One component of the base folder.
#[derive(Debug, Serialize)]
pub(crate) struct Component {
    pub name: &'static str,
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Its files, with their size in bytes.
    pub files: BTreeMap<String, u64>,
    pub tensors: usize,
    pub parameters: u64,
    /// Number of parameters by stored type.
    pub dtypes: BTreeMap<String, u64>,
    /// Sizes, read from the tensors.
    pub sizes: Value,
    /// Facts from its config file.
    pub config: BTreeMap<String, Value>,
    pub problems: Vec<Problem>,
}

/// A fault that would stop an export.
#[derive(Clone, Debug, PartialEq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Problem {
    #[error("file {path} is missing")]
    MissingFile { path: String },
    #[error("{reason}")]
    Unreadable { reason: String },
    #[error("tensor {key} {shape:?} is missing")]
    MissingTensor { key: String, shape: Vec<usize> },
    #[error("tensor {key} is {got:?}, wanted {want:?}")]
    Shape {
        key: String,
        want: Vec<usize>,
        got: Vec<usize>,
    },
    #[error("tensor {key} {shape:?} is not expected")]
    Unexpected { key: String, shape: Vec<usize> },
    #[error("{file} states {field} = {stated}, the tensors give {derived}")]
    Config {
        file: &'static str,
        field: &'static str,
        stated: Value,
        derived: Value,
    },
}

/// The LoRA beside the base folder.
#[derive(Debug, Serialize)]
pub(crate) struct LoraFacts {
    pub path: PathBuf,
    pub parameters: u64,
    /// Rank, targets, and the scale of the published configuration, which is not in the file.
    pub report: Option<LoraReport>,
    /// Number of adapted modules, among the modules that the published LoRA adapts.
    pub matched: usize,
    pub adaptable: usize,
    pub problems: Vec<Problem>,
}

impl Inspection {
    /// Returns whether nothing is missing, misshaped, unexpected or unreadable.
    pub(crate) fn is_sound(&self) -> bool {
        self.lora.problems.is_empty() && self.components.iter().all(|c| c.problems.is_empty())
    }

    /// Returns the number of parameters of all components and the LoRA.
    #[cfg(test)]
    pub(crate) fn parameters(&self) -> u64 {
        self.lora.parameters + self.components.iter().map(|c| c.parameters).sum::<u64>()
    }
}

/// Inspects `dir`: the folder that holds `Wan2.2-S2V-14B` and `LiveAvatar`, or the folder
/// `Wan2.2-S2V-14B` itself.
///
/// # Errors
/// A folder without a checkpoint.
pub(crate) fn inspect(dir: &Path) -> Result<Inspection, InspectError> {
    if !dir.is_dir() {
        let found = if dir.exists() { "a file" } else { "nothing" };
        return Err(InspectError::NoFolder {
            dir: dir.to_owned(),
            found,
        });
    }
    let (wan, parent) = match dir.join(WAN_DIR) {
        inner if inner.is_dir() => (inner, dir.to_owned()),
        _ => (dir.to_owned(), dir.join("..")),
    };
    let lora = parent.join(LORA_FILE);
    let (dit, checkpoint) = dit(&wan);
    let lora = lora_facts(&lora, checkpoint);
    let components = vec![
        dit,
        text_encoder(&wan),
        tokenizer(&wan),
        vae(&wan),
        audio_encoder(&wan),
    ];
    if components.iter().all(|c| c.files.is_empty()) && lora.report.is_none() {
        return Err(InspectError::Empty {
            dir: dir.to_owned(),
        });
    }
    Ok(Inspection {
        dir: wan,
        components,
        lora,
    })
}

impl Component {
    fn new(name: &'static str, path: PathBuf) -> Self {
        let (files, dtypes, config) = Default::default();
        Self {
            name,
            path,
            files,
            tensors: 0,
            parameters: 0,
            dtypes,
            sizes: Value::Null,
            config,
            problems: Vec::new(),
        }
    }

    /// Adds the files of `dir` that belong to the component, and the `wanted` files that are
    /// missing.
    fn files(mut self, dir: &Path, belongs: impl Fn(&str) -> bool, wanted: &[&str]) -> Self {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Follows links: the cache of huggingface_hub is made of them.
            if let Some(meta) = fs::metadata(entry.path())
                .ok()
                .filter(|m| m.is_file() && belongs(&name))
            {
                self.files.insert(name, meta.len());
            }
        }
        let missing = wanted.iter().filter(|&&w| !self.files.contains_key(w));
        self.problems.extend(missing.map(|w| Problem::MissingFile {
            path: dir.join(w).display().to_string(),
        }));
        self
    }

    fn json(&mut self, file: &Path, fields: &[&str]) {
        let Ok(text) = fs::read(file) else { return };
        match serde_json::from_slice::<BTreeMap<String, Value>>(&text) {
            Ok(all) => {
                self.config = all
                    .into_iter()
                    .filter(|(k, _)| fields.contains(&k.as_str()))
                    .collect();
            }
            Err(e) => self.problems.push(Problem::Unreadable {
                reason: format!("{}: not a JSON object: {e}", file.display()),
            }),
        }
    }

    /// Opens the tensors and compares them with the tensors that `expect` derives from them.
    fn tensors<S: Serialize>(
        &mut self,
        open: Result<Checkpoint, CheckpointError>,
        expect: impl Fn(&Checkpoint) -> Result<Expected<S>, layout::SizeError>,
    ) -> Option<(Checkpoint, S)> {
        let checkpoint = match open {
            Ok(c) => c,
            // A file that is not there has been reported by name.
            Err(CheckpointError::Missing { .. }) if !self.problems.is_empty() => return None,
            Err(e) => {
                self.problems.push(Problem::Unreadable {
                    reason: e.to_string(),
                });
                return None;
            }
        };
        for info in checkpoint.names().filter_map(|n| checkpoint.info(n)) {
            let numel = info.shape.iter().product::<usize>() as u64;
            self.tensors += 1;
            self.parameters += numel;
            *self.dtypes.entry(info.dtype.to_string()).or_default() += numel;
        }
        match expect(&checkpoint) {
            Ok(Expected {
                sizes,
                needed,
                idle,
            }) => {
                self.problems.extend(compare(&checkpoint, &needed, &idle));
                self.sizes = serde_json::to_value(&sizes).expect("sizes are plain data");
                Some((checkpoint, sizes))
            }
            Err(e) => {
                self.problems.push(Problem::Unreadable {
                    reason: e.to_string(),
                });
                None
            }
        }
    }

    fn states(&mut self, file: &'static str, field: &'static str, derived: usize) {
        let stated = self.config.get(field).cloned().unwrap_or_default();
        if stated != derived {
            self.problems.push(Problem::Config {
                file,
                field,
                stated,
                derived: derived.into(),
            });
        }
    }
}

/// The tensors of a component. The idle ones may be absent.
struct Expected<S> {
    sizes: S,
    needed: Vec<TensorSpec>,
    idle: Vec<TensorSpec>,
}

impl<S> Expected<S> {
    fn new(sizes: S, needed: Vec<TensorSpec>) -> Self {
        Self {
            sizes,
            needed,
            idle: Vec::new(),
        }
    }
}

fn compare(c: &Checkpoint, needed: &[TensorSpec], idle: &[TensorSpec]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for (t, must) in needed
        .iter()
        .map(|t| (t, true))
        .chain(idle.iter().map(|t| (t, false)))
    {
        known.insert(t.name.as_str());
        match c.info(&t.name).map(|i| &i.shape) {
            None if must => problems.push(Problem::MissingTensor {
                key: t.name.clone(),
                shape: t.shape.clone(),
            }),
            Some(got) if *got != t.shape => problems.push(Problem::Shape {
                key: t.name.clone(),
                want: t.shape.clone(),
                got: got.clone(),
            }),
            _ => {}
        }
    }
    let extra = c
        .names()
        .filter(|n| !known.contains(n))
        .filter_map(|n| Some((n, c.info(n)?)));
    problems.extend(extra.map(|(key, info)| Problem::Unexpected {
        key: key.to_owned(),
        shape: info.shape.clone(),
    }));
    problems
}

fn dit(wan: &Path) -> (Component, Option<Checkpoint>) {
    let belongs = |n: &str| {
        n == "config.json"
            || (n.starts_with(DIT_STEM) && (n.ends_with(".safetensors") || n.ends_with(".json")))
    };
    let mut c = Component::new("dit", wan.to_owned()).files(wan, belongs, &["config.json"]);
    let fields = [
        "dim",
        "ffn_dim",
        "num_heads",
        "num_layers",
        "audio_inject_layers",
        "audio_dim",
        "num_audio_token",
        "freq_dim",
        "text_len",
        "eps",
    ];
    c.json(&wan.join("config.json"), &fields);
    if !c.files.keys().any(|n| n != "config.json") {
        c.problems.push(Problem::MissingFile {
            path: wan
                .join(format!("{DIT_STEM}*.safetensors"))
                .display()
                .to_string(),
        });
        return (c, None);
    }
    let found = c.tensors(Checkpoint::open_safetensors(wan), |t| {
        DitSizes::derive(t).map(|s| Expected::new(s, s.tensors()))
    });
    let Some((checkpoint, s)) = found else {
        return (c, None);
    };
    if !c.config.is_empty() {
        let facts = [
            ("dim", s.dim),
            ("ffn_dim", s.ffn),
            ("num_layers", s.layers),
            ("audio_dim", s.audio_dim),
            ("freq_dim", s.freq_dim),
        ];
        facts
            .into_iter()
            .for_each(|(field, derived)| c.states("config.json", field, derived));
        let stated = c
            .config
            .get("audio_inject_layers")
            .cloned()
            .unwrap_or_default();
        if stated.as_array().map(Vec::len) != Some(s.injectors) {
            c.problems.push(Problem::Config {
                file: "config.json",
                field: "audio_inject_layers",
                stated,
                derived: format!("{} injectors", s.injectors).into(),
            });
        }
    }
    (c, Some(checkpoint))
}

fn text_encoder(wan: &Path) -> Component {
    let mut c =
        Component::new("text_encoder", wan.join(T5_FILE)).files(wan, |n| n == T5_FILE, &[T5_FILE]);
    c.tensors(Checkpoint::open_torch(&wan.join(T5_FILE)), |t| {
        T5Sizes::derive(t).map(|s| Expected::new(s, s.tensors()))
    });
    c
}

fn tokenizer(wan: &Path) -> Component {
    let dir = wan.join(TOKENIZER_DIR);
    let known = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "spiece.model",
    ];
    let mut c = Component::new("tokenizer", dir.clone()).files(
        &dir,
        |n| known.contains(&n),
        &["tokenizer.json"],
    );
    c.json(
        &dir.join("tokenizer_config.json"),
        &[
            "eos_token",
            "extra_ids",
            "pad_token",
            "tokenizer_class",
            "unk_token",
        ],
    );
    c
}

fn vae(wan: &Path) -> Component {
    let mut c =
        Component::new("vae", wan.join(VAE_FILE)).files(wan, |n| n == VAE_FILE, &[VAE_FILE]);
    c.tensors(Checkpoint::open_torch(&wan.join(VAE_FILE)), |t| {
        VaeSizes::derive(t).map(|s| Expected::new(s, s.tensors()))
    });
    c
}

fn audio_encoder(wan: &Path) -> Component {
    let dir = wan.join(WAV2VEC2_DIR);
    let known = [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "pytorch_model.bin",
    ];
    let mut c = Component::new("audio_encoder", dir.clone()).files(
        &dir,
        |n| known.contains(&n),
        &["config.json", "preprocessor_config.json"],
    );
    let fields = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "conv_stride",
        "do_stable_layer_norm",
        "feat_extract_norm",
    ];
    c.json(&dir.join("config.json"), &fields);
    if !["model.safetensors", "pytorch_model.bin"]
        .iter()
        .any(|n| c.files.contains_key(*n))
    {
        c.problems.push(Problem::MissingFile {
            path: dir.join("model.safetensors").display().to_string(),
        });
        return c;
    }
    let found = c.tensors(Checkpoint::open(&dir), |t| {
        let (sizes, form) = WavSizes::derive(t)?;
        Ok(Expected {
            needed: sizes.tensors(form),
            idle: sizes.idle(),
            sizes,
        })
    });
    if let Some((_, s)) = found.filter(|_| !c.config.is_empty()) {
        for (field, derived) in [
            ("hidden_size", s.hidden),
            ("intermediate_size", s.ffn),
            ("num_hidden_layers", s.layers),
        ] {
            c.states("config.json", field, derived);
        }
    }
    c
}

fn lora_facts(path: &Path, dit: Option<Checkpoint>) -> LoraFacts {
    let mut facts = LoraFacts {
        path: path.to_owned(),
        parameters: 0,
        report: None,
        matched: 0,
        adaptable: 0,
        problems: Vec::new(),
    };
    let targets = dit
        .as_ref()
        .and_then(|c| DitSizes::derive(c).ok())
        .map(|s| {
            s.lora_targets()
                .into_iter()
                .map(|t| format!("{}.weight", t.0))
        });
    let targets: Vec<String> = targets.into_iter().flatten().collect();
    facts.adaptable = targets.len();
    if !path.is_file() {
        facts.problems.push(Problem::MissingFile {
            path: path.display().to_string(),
        });
        return facts;
    }
    let lora = match Lora::open(path, LoraScale::default()) {
        Ok(lora) => lora,
        Err(e) => {
            facts.problems.push(Problem::Unreadable {
                reason: e.to_string(),
            });
            return facts;
        }
    };
    facts.parameters = lora.parameters();
    facts.report = Some(lora.report());
    match dit.map(|c| c.with_lora(lora)) {
        Some(Ok(merged)) => {
            facts.matched = targets
                .iter()
                .filter(|t| merged.computed(t).is_some())
                .count();
        }
        Some(Err(e)) => facts.problems.push(Problem::Unreadable {
            reason: e.to_string(),
        }),
        None => {}
    }
    facts
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.dir.display())?;
        writeln!(
            f,
            "{:<14} {:>8} {:>15} {:>15}  dtypes",
            "component", "tensors", "parameters", "bytes"
        )?;
        for c in &self.components {
            let bytes: u64 = c.files.values().sum();
            let dtypes: Vec<&str> = c.dtypes.keys().map(String::as_str).collect();
            writeln!(
                f,
                "{:<14} {:>8} {:>15} {:>15}  {}",
                c.name,
                c.tensors,
                grouped(c.parameters),
                grouped(bytes),
                dtypes.join(" ")
            )?;
        }
        if let Some(r) = &self.lora.report {
            let dtypes: Vec<&str> = r.dtypes.iter().map(String::as_str).collect();
            let tensors = 2 * r.modules;
            writeln!(
                f,
                "{:<14} {tensors:>8} {:>15} {:>15}  {}",
                "lora",
                grouped(self.lora.parameters),
                "",
                dtypes.join(" ")
            )?;
        }
        for c in &self.components {
            write!(f, "\n{}: {}\n", c.name, c.path.display())?;
            pairs(f, "sizes", c.sizes.as_object().into_iter().flatten())?;
            pairs(f, "config", &c.config)?;
            problems(f, &c.problems)?;
        }
        write!(f, "\nlora: {}\n", self.lora.path.display())?;
        if let Some(r) = &self.lora.report {
            writeln!(f, "  {}, {}", r.form(), r.strength_text())?;
            writeln!(
                f,
                "  adapts {} of {} modules",
                self.lora.matched, self.lora.adaptable
            )?;
            pairs(f, "targets", &r.targets)?;
        }
        problems(f, &self.lora.problems)
    }
}

fn pairs<K: fmt::Display, V: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    items: impl IntoIterator<Item = (K, V)>,
) -> fmt::Result {
    let items: Vec<String> = items.into_iter().map(|(k, v)| format!("{k} {v}")).collect();
    if items.is_empty() {
        Ok(())
    } else {
        writeln!(f, "  {title}: {}", items.join(", "))
    }
}

fn problems(f: &mut fmt::Formatter<'_>, problems: &[Problem]) -> fmt::Result {
    problems
        .iter()
        .take(SHOWN)
        .try_for_each(|p| writeln!(f, "  ! {p}"))?;
    match problems.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => writeln!(f, "  ! and {more} more"),
    }
}

/// Formats `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::synth::{Preset, SynthOptions, synth};

    fn tiny() -> TempDir {
        let dir = tempdir().unwrap();
        synth(
            Preset::Tiny,
            &SynthOptions {
                layers: Some(1),
                seed: 0,
            },
            &dir.path().join("c"),
        )
        .unwrap();
        dir
    }

    #[test]
    fn a_whole_checkpoint_is_sound_from_either_folder() {
        let dir = tiny();
        for at in ["c", "c/Wan2.2-S2V-14B"] {
            let i = inspect(&dir.path().join(at)).unwrap();
            assert!(i.is_sound(), "{i}");
            assert_eq!(
                i.components.iter().map(|c| c.name).collect::<Vec<_>>(),
                ["dit", "text_encoder", "tokenizer", "vae", "audio_encoder"]
            );
            assert_eq!((i.lora.matched, i.lora.adaptable), (14, 14));
            assert_eq!(i.lora.report.as_ref().unwrap().targets["blocks.ffn.0"], 1);
            assert!(
                i.to_string()
                    .contains("rank 4, factor 0.5 (no alpha in the file")
            );
            let json = serde_json::to_value(&i).unwrap();
            assert_eq!(json["components"][0]["sizes"]["dim"], 256);
        }
    }

    #[cfg(unix)]
    #[test]
    fn linked_files_count_as_files() {
        let dir = tiny();
        let wan = dir.path().join("c").join(WAN_DIR);
        fs::rename(wan.join(VAE_FILE), dir.path().join("blob")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("blob"), wan.join(VAE_FILE)).unwrap();
        let i = inspect(&wan).unwrap();
        assert!(i.is_sound(), "{i}");
    }

    #[test]
    fn nothing_to_inspect_is_an_error() {
        let dir = tempdir().unwrap();
        assert!(matches!(
            inspect(dir.path()),
            Err(InspectError::Empty { .. })
        ));
        assert!(matches!(
            inspect(&dir.path().join("x")),
            Err(InspectError::NoFolder {
                found: "nothing",
                ..
            })
        ));
    }

    #[test]
    fn damage_is_reported_where_it_is_and_hides_nothing_else() {
        let dir = tiny();
        let wan = dir.path().join("c").join(WAN_DIR);
        let vae = fs::read(wan.join(VAE_FILE)).unwrap();
        fs::write(wan.join(VAE_FILE), &vae[..vae.len() / 2]).unwrap();
        fs::remove_file(wan.join(TOKENIZER_DIR).join("tokenizer.json")).unwrap();
        let config = fs::read_to_string(wan.join("config.json")).unwrap();
        fs::write(
            wan.join("config.json"),
            config.replace("\"dim\": 256", "\"dim\": 512"),
        )
        .unwrap();
        fs::remove_file(dir.path().join("c").join(LORA_FILE)).unwrap();
        let i = inspect(&dir.path().join("c")).unwrap();
        let of = |n| {
            i.components
                .iter()
                .find(|c| c.name == n)
                .unwrap()
                .problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert!(
            of("vae")[0].ends_with("zip: no end record; the file is truncated"),
            "{:?}",
            of("vae")
        );
        assert!(of("tokenizer")[0].ends_with("tokenizer.json is missing"));
        assert_eq!(
            of("dit"),
            ["config.json states dim = 512, the tensors give 256"]
        );
        assert!(of("text_encoder").is_empty() && of("audio_encoder").is_empty());
        assert_eq!(i.lora.problems.len(), 1);
        assert!(!i.is_sound());
    }

    #[test]
    fn missing_misshaped_and_extra_tensors_are_all_listed() {
        use ::safetensors::{Dtype, tensor::TensorView};
        let dir = tempdir().unwrap();
        let data = [0u8; 64];
        let views = [("a", vec![2]), ("b", vec![4]), ("x", vec![1])].map(|(n, s)| {
            (
                n,
                TensorView::new(Dtype::F32, s.clone(), &data[..s[0] * 4]).unwrap(),
            )
        });
        fs::write(
            dir.path().join("model.safetensors"),
            ::safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
        let c = Checkpoint::open(dir.path()).unwrap();
        let spec = |name: &str, n| TensorSpec {
            name: name.to_owned(),
            shape: vec![n],
        };
        let got = compare(
            &c,
            &[spec("a", 2), spec("b", 3), spec("c", 1)],
            &[spec("d", 1)],
        );
        let want = [
            "tensor b is [4], wanted [3]",
            "tensor c [1] is missing",
            "tensor x [1] is not expected",
        ];
        assert_eq!(
            got.iter().map(ToString::to_string).collect::<Vec<_>>(),
            want
        );
    }

    /// The shared set is not part of the repository: without it this test has nothing to say.
    #[test]
    fn the_reference_checkpoint_is_sound() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/ckpt");
        if shared.is_dir() {
            let i = inspect(&shared).unwrap();
            assert!(i.is_sound(), "{i}");
            assert_eq!((i.lora.matched, i.lora.adaptable), (52, 52));
        }
    }

    #[test]
    fn numbers_are_grouped_in_threes() {
        for (n, want) in [(7, "7"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), want);
        }
    }
}
