//! Reports the content of a checkpoint folder: components, sizes, types, the published files that
//! it recognises, and the LoRA. It reads headers, the VAE's weights as far as they are zero, and
//! whole files where a list states their sums. `verdict.rs` decides whether the folder can be
//! exported; a damaged component does not hide the others.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use engines::recipe::Recipe;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::layout::{
    DIT_STEM, DitSizes, LORA_FILE, T5_FILE, TOKENIZER_DIR, TOKENIZER_FILE, VAE_FILE, WAN_DIR,
    WAV2VEC2_DIR, published,
};
use crate::checkpoint::sums::{Stopped, SumsCount, SumsWatch};
use crate::checkpoint::{
    Checkpoint, CheckpointError, LayoutFault, LoraFile, LoraReport, LoraScale, read_json,
};
use crate::verdict::{self, NoFolder, Opened, Part, Reason, Refusals};

/// A folder without a checkpoint, or with one that cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    NoFolder(#[from] NoFolder),
    #[error(
        "{dir}: no checkpoint there; \
         wanted {WAN_DIR}/ and {LORA_FILE} in it, or the inside of {WAN_DIR}",
        dir = dir.display()
    )]
    Empty { dir: PathBuf },
    #[error(transparent)]
    Refused(#[from] Refusals),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl InspectError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(e) => e.kind(),
            Self::Stopped(_) => ErrorKind::Interrupted,
            _ => ErrorKind::Model,
        }
    }
}

/// The report on a checkpoint folder.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    /// The base folder.
    pub dir: PathBuf,
    /// Whether `onnx` exports the folder.
    pub sound: bool,
    pub components: Vec<Component>,
    pub lora: LoraFacts,
    /// The comparison with lists of sums; `None` where no list is there or names one of the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sums: Option<SumsFacts>,
    /// The reasons why `onnx` refuses the folder.
    #[serde(skip)]
    pub refusals: Refusals,
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
    /// Hash of the names and shapes of its tensors, by which DiffSynth-Studio knows a file.
    pub names_md5: Option<String>,
    /// Whether the names and shapes are those of the published file.
    pub published: Option<bool>,
    /// Sizes, read from the tensors.
    pub sizes: Value,
    /// Facts from its config file.
    pub config: BTreeMap<String, Value>,
    /// A line about the parts that an export leaves out, because they are zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    pub problems: Vec<Problem>,
}

/// A fault that stops an export.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Problem {
    /// The line that `onnx` prints.
    pub reason: String,
    /// Every tensor of the fault, where it concerns tensors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<LayoutFault>,
}

impl From<&Reason> for Problem {
    fn from(reason: &Reason) -> Self {
        Self {
            reason: reason.to_string(),
            tensors: match reason {
                Reason::Checkpoint(CheckpointError::Layout { faults, .. }) => faults.0.clone(),
                _ => Vec::new(),
            },
        }
    }
}

/// The LoRA that an export would merge.
#[derive(Debug, Serialize)]
pub(crate) struct LoraFacts {
    pub path: PathBuf,
    pub parameters: u64,
    /// Rank, targets and scale; `None` where no LoRA was opened.
    pub report: Option<LoraReport>,
    /// Number of adapted modules, among the modules that the published LoRA adapts.
    pub matched: usize,
    pub adaptable: usize,
    pub problems: Vec<Problem>,
}

/// The comparison of files with lists of their sums.
#[derive(Debug, Serialize)]
pub(crate) struct SumsFacts {
    #[serde(flatten)]
    pub count: SumsCount,
    pub problems: Vec<Problem>,
}

impl Inspection {
    /// Returns the number of parameters of all components and the LoRA.
    #[cfg(test)]
    pub(crate) fn parameters(&self) -> u64 {
        self.lora.parameters + self.components.iter().map(|c| c.parameters).sum::<u64>()
    }
}

/// Inspects `dir`: the folder that holds `Wan2.2-S2V-14B` and `LiveAvatar`, or the folder
/// `Wan2.2-S2V-14B` itself. `lora` is the file of a LoRA; `None` takes the published place, where
/// a LoRA may be absent.
///
/// # Errors
/// A folder without a checkpoint, or a stop that was asked for. A checkpoint that cannot be
/// exported is no error here: [`Inspection::refusals`] says why.
pub(crate) fn inspect(
    dir: &Path,
    lora: Option<&Path>,
    sums: &mut SumsWatch<'_>,
) -> Result<Inspection, InspectError> {
    verdict::check_folder(dir)?;
    let (wan, parent) = match dir.join(WAN_DIR) {
        inner if inner.is_dir() => (inner, dir.to_owned()),
        _ => (dir.to_owned(), dir.join("..")),
    };
    let place = lora.map_or_else(|| parent.join(LORA_FILE), Path::to_owned);
    let wanted = lora.is_some() || place.is_file();
    let laid = wanted.then(|| LoraFile {
        path: place.clone(),
        scale: LoraScale::default(),
        strength: 1.0,
    });
    let mut opened = Opened::open(&wan, laid.as_slice(), sums)?;
    // The precision of the graphs does not change whether they can be built.
    opened.build_graphs(Recipe::Bf16);
    let components = vec![
        dit(&wan, &opened),
        text_encoder(&wan, &opened),
        tokenizer(&wan, &opened),
        vae(&wan, &opened),
        audio_encoder(&wan, &opened),
    ];
    if components.iter().all(|c| c.files.is_empty()) && !wanted {
        return Err(InspectError::Empty {
            dir: dir.to_owned(),
        });
    }
    Ok(Inspection {
        dir: wan,
        sound: opened.refusals.is_empty(),
        components,
        lora: lora_facts(place, &opened),
        sums: sums_facts(&opened),
        refusals: opened.refusals,
    })
}

impl Component {
    fn new(
        (name, of): (&'static str, verdict::Component),
        path: PathBuf,
        refusals: &Refusals,
    ) -> Self {
        let (files, dtypes, config, left_out) = Default::default();
        Self {
            name,
            path,
            files,
            tensors: 0,
            parameters: 0,
            dtypes,
            names_md5: None,
            published: None,
            sizes: Value::Null,
            config,
            left_out,
            problems: refusals.of(of).map(Problem::from).collect(),
        }
    }

    /// Adds the files of `dir` that belong to the component.
    fn files(mut self, dir: &Path, belongs: impl Fn(&str) -> bool) -> Self {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if belongs(&name) {
                self.file(name, &entry.path());
            }
        }
        self
    }

    fn file(&mut self, name: String, path: &Path) {
        // Follows links: the cache of huggingface_hub is made of them.
        if let Some(meta) = fs::metadata(path).ok().filter(fs::Metadata::is_file) {
            self.files.insert(name, meta.len());
        }
    }

    /// Adds some fields of a JSON file. A file that cannot be read is among the problems, or the
    /// export does not need it.
    fn json(mut self, file: &Path, fields: &[&str]) -> Self {
        let all: BTreeMap<String, Value> = read_json(file).unwrap_or_default();
        let wanted = all
            .into_iter()
            .filter(|(k, _)| fields.contains(&k.as_str()));
        self.config = wanted.collect();
        self
    }

    /// Adds the facts of the opened tensors. `hash` belongs to the published file.
    fn tensors(mut self, part: &Part, hash: &str) -> Self {
        for path in part.checkpoint.iter().flat_map(Checkpoint::own_files) {
            if let Some(name) = path.file_name() {
                self.file(name.to_string_lossy().into_owned(), path);
            }
        }
        self.tensors = part.facts.tensors;
        self.parameters = part.facts.parameters;
        self.dtypes = part.facts.dtypes.clone();
        self.names_md5 = part.facts.names_md5.clone();
        self.published = part.facts.names_md5.as_ref().map(|got| got == hash);
        self.sizes = part.sizes.clone();
        self
    }
}

fn dit(wan: &Path, opened: &Opened) -> Component {
    let belongs = |n: &str| {
        n == "config.json"
            || (n.starts_with(DIT_STEM) && (n.ends_with(".safetensors") || n.ends_with(".json")))
    };
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
    let name = ("dit", verdict::Component::Dit);
    Component::new(name, wan.to_owned(), &opened.refusals)
        .files(wan, belongs)
        .json(&wan.join("config.json"), &fields)
        .tensors(&opened.dit, published::DIT)
}

fn text_encoder(wan: &Path, opened: &Opened) -> Component {
    let name = ("text_encoder", verdict::Component::TextEncoder);
    Component::new(name, wan.join(T5_FILE), &opened.refusals)
        .files(wan, |n| n == T5_FILE)
        .tensors(&opened.text, published::TEXT)
}

fn tokenizer(wan: &Path, opened: &Opened) -> Component {
    let dir = wan.join(TOKENIZER_DIR);
    let known = [
        TOKENIZER_FILE,
        "tokenizer_config.json",
        "special_tokens_map.json",
        "spiece.model",
    ];
    let fields = [
        "eos_token",
        "extra_ids",
        "pad_token",
        "tokenizer_class",
        "unk_token",
    ];
    let name = ("tokenizer", verdict::Component::Tokenizer);
    Component::new(name, dir.clone(), &opened.refusals)
        .files(&dir, |n| known.contains(&n))
        .json(&dir.join("tokenizer_config.json"), &fields)
}

fn vae(wan: &Path, opened: &Opened) -> Component {
    let name = ("vae", verdict::Component::Vae);
    let vae = Component::new(name, wan.join(VAE_FILE), &opened.refusals)
        .files(wan, |n| n == VAE_FILE)
        .tensors(&opened.vae, published::VAE);
    Component {
        left_out: opened.vae_notice(),
        ..vae
    }
}

fn audio_encoder(wan: &Path, opened: &Opened) -> Component {
    let dir = wan.join(WAV2VEC2_DIR);
    let known = [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "pytorch_model.bin",
    ];
    let fields = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "conv_stride",
        "do_stable_layer_norm",
        "feat_extract_norm",
    ];
    let name = ("audio_encoder", verdict::Component::AudioEncoder);
    Component::new(name, dir.clone(), &opened.refusals)
        .files(&dir, |n| known.contains(&n))
        .json(&dir.join("config.json"), &fields)
        .tensors(&opened.speech, published::SPEECH)
}

fn lora_facts(path: PathBuf, opened: &Opened) -> LoraFacts {
    let dit = opened.dit.checkpoint.as_ref();
    let sizes = dit.and_then(|c| DitSizes::derive(c).ok());
    let targets = sizes.map(|s| s.lora_targets()).unwrap_or_default();
    let adapted = |(module, ..): &&(String, usize, usize)| {
        dit.is_some_and(|c| c.computed(&format!("{module}.weight")) == Some("LoRA merge"))
    };
    LoraFacts {
        path,
        parameters: opened.loras.first().map_or(0, |l| l.parameters),
        report: opened.loras.first().map(|l| l.report.clone()),
        matched: targets.iter().filter(adapted).count(),
        adaptable: targets.len(),
        problems: opened
            .refusals
            .of(verdict::Component::Lora)
            .map(Problem::from)
            .collect(),
    }
}

fn sums_facts(opened: &Opened) -> Option<SumsFacts> {
    let reasons = opened.refusals.of(verdict::Component::Sums);
    let problems: Vec<Problem> = reasons.map(Problem::from).collect();
    if opened.sums.is_none() && problems.is_empty() {
        return None;
    }
    let count = opened.sums.unwrap_or_default();
    Some(SumsFacts { count, problems })
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
        self.lora.row(f)?;
        for c in &self.components {
            write!(f, "\n{c}")?;
        }
        write!(f, "\n{}", self.lora)?;
        if let Some(sums) = &self.sums {
            write!(f, "\n{sums}")?;
        }
        f.write_str(match self.sound {
            true => "\nsound: avatar-export onnx can export it",
            false => "\nnot sound: avatar-export onnx refuses it",
        })
    }
}

impl fmt::Display for SumsFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sums: {}", self.count)?;
        problems(f, &self.problems)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.path.display())?;
        pairs(f, "sizes", self.sizes.as_object().into_iter().flatten())?;
        pairs(f, "config", &self.config)?;
        if let Some(left_out) = &self.left_out {
            writeln!(f, "  {left_out}")?;
        }
        match (&self.names_md5, self.published) {
            (Some(hash), Some(true)) => {
                writeln!(f, "  names and shapes: the published file's (md5 {hash})")?;
            }
            (Some(hash), _) => {
                writeln!(
                    f,
                    "  names and shapes: not the published file's (md5 {hash})"
                )?;
            }
            (None, _) => {}
        }
        problems(f, &self.problems)
    }
}

impl LoraFacts {
    /// Writes the row of the table, where a LoRA was opened.
    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(report) = &self.report else {
            return Ok(());
        };
        let dtypes: Vec<&str> = report.dtypes.iter().map(String::as_str).collect();
        let tensors = 2 * report.modules;
        writeln!(
            f,
            "{:<14} {tensors:>8} {:>15} {:>15}  {}",
            "lora",
            grouped(self.parameters),
            "",
            dtypes.join(" ")
        )
    }
}

impl fmt::Display for LoraFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lora: {}", self.path.display())?;
        if let Some(r) = &self.report {
            writeln!(f, "  {}, {}", r.form(), r.strength_text())?;
            writeln!(f, "  adapts {} of {} modules", self.matched, self.adaptable)?;
            pairs(f, "targets", &r.targets)?;
        } else if self.problems.is_empty() {
            writeln!(f, "  none there; --lora FILE names another one")?;
        }
        problems(f, &self.problems)
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
    let lines = problems.iter().flat_map(|p| p.reason.lines());
    lines
        .into_iter()
        .try_for_each(|line| writeln!(f, "  ! {line}"))
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
    use serde_json::json;
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::export::{self, Request};
    use crate::synth::{Preset, SynthOptions, synth};

    /// Inspects without an observer.
    fn inspect(dir: &Path, lora: Option<&Path>) -> Result<Inspection, InspectError> {
        super::inspect(dir, lora, &mut SumsWatch::idle())
    }

    /// A tiny checkpoint in the folder `c`.
    fn tiny() -> TempDir {
        let dir = tempdir().unwrap();
        let options = SynthOptions {
            layers: Some(1),
            seed: 0,
        };
        synth(Preset::Tiny, &options, &dir.path().join("c")).unwrap();
        dir
    }

    fn wan(dir: &TempDir) -> PathBuf {
        dir.path().join("c").join(WAN_DIR)
    }

    /// Inspects and exports the base folder, asserts one verdict, and returns its text.
    #[track_caller]
    fn verdict(wan: &Path) -> String {
        let found = inspect(wan, None).unwrap();
        let out = tempdir().unwrap();
        let request = Request {
            ckpt_dir: wan.to_owned(),
            loras: Vec::new(),
            recipe: Recipe::Bf16,
            layers: None,
            out: out.path().join("models"),
        };
        let exported = match export::export(&request, &mut |_, _, _| ()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found.refusals.to_string(), exported);
        assert_eq!(found.sound, exported.is_empty());
        exported.replace(&wan.display().to_string(), "WAN")
    }

    /// Changes one JSON file of a fresh checkpoint and returns the verdict.
    #[track_caller]
    fn with_config(file: &str, change: impl Fn(&mut Value)) -> String {
        let dir = tiny();
        let path = wan(&dir).join(file);
        let mut config: Value = read_json(&path).unwrap();
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
        verdict(&wan(&dir))
    }

    fn without(field: &'static str) -> impl Fn(&mut Value) {
        move |config| drop(config.as_object_mut().unwrap().remove(field))
    }

    #[test]
    fn a_whole_checkpoint_is_sound_from_either_folder() {
        let dir = tiny();
        for at in ["c", "c/Wan2.2-S2V-14B"] {
            let i = inspect(&dir.path().join(at), None).unwrap();
            assert!(i.sound, "{i}");
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
            assert_eq!(json["sound"], true);
            assert_eq!(json["components"][0]["sizes"]["dim"], 256);
            assert_eq!(json["components"][0]["published"], false);
            assert_eq!(json["components"][2]["names_md5"], Value::Null);
        }
    }

    #[test]
    fn a_lora_is_taken_from_its_place_or_from_the_flag() {
        let dir = tiny();
        let at = dir.path().join("c").join(LORA_FILE);
        let other = dir.path().join("other.safetensors");
        fs::rename(&at, &other).unwrap();
        let none = inspect(&wan(&dir), None).unwrap();
        assert!(none.sound && none.lora.report.is_none(), "{none}");
        assert!(none.to_string().contains("none there; --lora FILE"));
        let given = inspect(&wan(&dir), Some(&other)).unwrap();
        assert!(given.sound, "{given}");
        assert_eq!(given.lora.matched, 14);
        let missing = inspect(&wan(&dir), Some(&at)).unwrap();
        assert!(!missing.sound);
        assert_eq!(missing.lora.problems.len(), 1);
    }

    /// The cache of huggingface_hub, a file of another name, files that the export does not need.
    #[cfg(unix)]
    #[test]
    fn one_verdict_accepts_every_usual_form() {
        let dir = tiny();
        let at = wan(&dir);
        fs::rename(at.join(VAE_FILE), dir.path().join("blob")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("blob"), at.join(VAE_FILE)).unwrap();
        fs::remove_file(at.join(WAV2VEC2_DIR).join("preprocessor_config.json")).unwrap();
        assert_eq!(verdict(&at), "");
        let config = fs::read(at.join("config.json")).unwrap();
        fs::write(
            at.join("config.json"),
            [b"\xEF\xBB\xBF", &config[..]].concat(),
        )
        .unwrap();
        assert_eq!(verdict(&at), "");
        let single = dit_file(&at, &[], |_, _| ());
        assert_eq!(verdict(&at), "");
        let other = at.join("wan2.2_s2v_14B_bf16.safetensors");
        fs::rename(single, &other).unwrap();
        assert_eq!(verdict(&at), "");
    }

    /// Writes the transformer into one file without an index. `change` changes each name and type;
    /// `more` are further f32 scalars.
    fn dit_file(
        wan: &Path,
        more: &[&str],
        change: impl Fn(&mut String, &mut safetensors::Dtype),
    ) -> PathBuf {
        use safetensors::{Dtype, tensor::TensorView};
        let checkpoint = Checkpoint::open_safetensors(wan).unwrap();
        let mut tensors = Vec::new();
        for name in checkpoint.names() {
            let (mut key, mut dtype) = (name.to_owned(), Dtype::BF16);
            change(&mut key, &mut dtype);
            let shape = checkpoint.info(name).unwrap().shape.clone();
            let mut bytes = checkpoint.bytes(name).unwrap().to_vec();
            if dtype != Dtype::BF16 {
                bytes.truncate(bytes.len() / 2);
            }
            tensors.push((key, dtype, shape, bytes));
        }
        for &key in more {
            tensors.push((key.to_owned(), Dtype::F32, vec![1], vec![0; 4]));
        }
        let views = tensors
            .iter()
            .map(|(key, d, s, b)| (key, TensorView::new(*d, s.clone(), b).unwrap()));
        let bytes = safetensors::serialize(views, None).unwrap();
        for path in checkpoint.files() {
            fs::remove_file(path).unwrap();
        }
        drop(fs::remove_file(
            wan.join("diffusion_pytorch_model.safetensors.index.json"),
        ));
        let path = wan.join("diffusion_pytorch_model.safetensors");
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn repacks_are_refused_by_name_with_the_file_to_take() {
        const INSTEAD: &str = "; take diffusion_pytorch_model-0000N-of-00004.safetensors \
                               with their index.json of Wan-AI/Wan2.2-S2V-14B instead";
        type Change = fn(&mut String, &mut safetensors::Dtype);
        let comfy: Change = |key, _| key.insert_str(0, "model.diffusion_model.");
        let fp8: Change = |key, dtype| {
            if key.ends_with(".ffn.0.weight") {
                *dtype = safetensors::Dtype::F8_E4M3;
            }
        };
        let none: Change = |_, _| ();
        for (more, change, want) in [
            (
                &[][..],
                comfy,
                "a repack for ComfyUI, with the prefix `model.diffusion_model.`",
            ),
            (
                &["blocks.0.ffn.0.scale_weight"],
                fp8,
                "an fp8 repack with scales; its weights are rounded to 8 bits",
            ),
            (&[], fp8, "an fp8 repack; its weights are rounded to 8 bits"),
            (
                &["condition_embedder.x"],
                none,
                "a repack for diffusers (WanTransformer3DModel)",
            ),
        ] {
            let dir = tiny();
            let path = dit_file(&wan(&dir), more, change);
            let path = path.strip_prefix(wan(&dir)).unwrap().display();
            assert_eq!(verdict(&wan(&dir)), format!("WAN/{path}: {want}{INSTEAD}"));
        }
        // Other components, under the names that ComfyUI gives their files.
        let dir = tiny();
        let at = wan(&dir);
        fs::rename(at.join(VAE_FILE), at.join("wan_2.1_vae.safetensors")).unwrap();
        assert_eq!(
            verdict(&at),
            "WAN/wan_2.1_vae.safetensors: a repack under another file name, as ComfyUI uses it; \
             take Wan2.1_VAE.pth of Wan-AI/Wan2.2-S2V-14B instead"
        );
    }

    #[test]
    fn a_bare_speech_encoder_is_named() {
        use safetensors::{Dtype, tensor::TensorView};
        let dir = tiny();
        let path = wan(&dir).join(WAV2VEC2_DIR).join("model.safetensors");
        let key = "feature_extractor.conv_layers.0.conv.weight";
        let view = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
        fs::write(&path, safetensors::serialize([(key, view)], None).unwrap()).unwrap();
        assert_eq!(
            verdict(&wan(&dir)),
            "WAN/wav2vec2-large-xlsr-53-english/model.safetensors: a bare Wav2Vec2Model, \
             without the prefix `wav2vec2.`; take wav2vec2-large-xlsr-53-english/\
             model.safetensors of Wan-AI/Wan2.2-S2V-14B instead"
        );
    }

    #[test]
    fn fields_of_the_config_have_the_defaults_of_the_reference_or_must_be_there() {
        for field in ["text_len", "eps", "num_audio_token", "enable_tsm", "dim"] {
            assert_eq!(with_config("config.json", without(field)), "", "{field}");
        }
        for (field, want) in [
            ("zero_timestep", "true"),
            ("enable_adain", "true"),
            ("enable_framepack", "true"),
            ("enable_motioner", "false"),
            ("framepack_drop_mode", "\"padd\""),
        ] {
            assert_eq!(
                with_config("config.json", without(field)),
                format!(
                    "WAN/config.json: field {field}: \
                     wanted {want} (nothing else is supported), got nothing"
                )
            );
        }
        for (field, value, want) in [
            (
                "enable_tsm",
                json!(true),
                "false (nothing else is supported), got true",
            ),
            ("dim", json!(512), "256, as the tensors have it, got 512"),
            (
                "text_len",
                json!("long"),
                "a whole number of 1 or more, got \"long\"",
            ),
            ("eps", json!(null), "a number, got null"),
        ] {
            let got = with_config("config.json", |c| c[field] = value.clone());
            assert_eq!(
                got,
                format!("WAN/config.json: field {field}: wanted {want}")
            );
        }
    }

    /// The synthetic configuration states the published values.
    #[test]
    fn absent_fields_have_the_published_values() {
        let dir = tiny();
        let path = wan(&dir).join("config.json");
        let open = || Opened::open(&wan(&dir), &[], &mut SumsWatch::idle()).unwrap();
        let config = || open().finish().unwrap().config.dit;
        let stated = config();
        let mut fields: Value = read_json(&path).unwrap();
        for field in ["text_len", "eps", "num_audio_token"] {
            without(field)(&mut fields);
        }
        fs::write(&path, fields.to_string()).unwrap();
        assert_eq!(config(), stated);
    }

    /// Every tensor and field is sound alone, but they do not fit each other.
    #[test]
    fn a_folder_whose_graphs_cannot_be_built_is_refused_by_both() {
        let got = with_config("config.json", |c| c["num_audio_token"] = json!(2));
        assert!(got.starts_with("WAN: audio_adapter: "), "{got}");
    }

    #[test]
    fn the_config_of_another_model_is_named() {
        let other = with_config("config.json", |c| c["model_type"] = json!("t2v"));
        assert_eq!(
            other,
            "WAN/config.json: model_type is \"t2v\": this is another model, wanted \"s2v\"; \
             take Wan-AI/Wan2.2-S2V-14B with its config.json"
        );
        let class = with_config("config.json", |c| {
            c["_class_name"] = json!("WanModel");
            without("model_type")(c);
        });
        assert!(
            class.contains("_class_name is \"WanModel\": this is another model"),
            "{class}"
        );
        let speech = format!("{WAV2VEC2_DIR}/config.json");
        let hubert = with_config(&speech, |c| c["model_type"] = json!("hubert"));
        assert!(
            hubert.contains("field model_type: wanted \"wav2vec2\""),
            "{hubert}"
        );
    }

    #[test]
    fn nothing_to_inspect_is_an_error() {
        let dir = tempdir().unwrap();
        assert!(matches!(
            inspect(dir.path(), None),
            Err(InspectError::Empty { .. })
        ));
        let error = inspect(&dir.path().join("x"), None).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("wanted a checkpoint folder, found nothing")
        );
    }

    #[test]
    fn damage_is_reported_where_it_is_and_hides_nothing_else() {
        let dir = tiny();
        let wan = wan(&dir);
        let vae = fs::read(wan.join(VAE_FILE)).unwrap();
        fs::write(wan.join(VAE_FILE), &vae[..vae.len() / 2]).unwrap();
        let tokenizer = wan.join(TOKENIZER_DIR).join(TOKENIZER_FILE);
        fs::write(&tokenizer, "version https://git-lfs.github.com/spec/v1\n").unwrap();
        let config = fs::read_to_string(wan.join("config.json")).unwrap();
        fs::write(
            wan.join("config.json"),
            config.replace("\"dim\": 256", "\"dim\": 512"),
        )
        .unwrap();
        let i = inspect(&dir.path().join("c"), None).unwrap();
        let of = |n| {
            let component = i.components.iter().find(|c| c.name == n).unwrap();
            let reasons = component.problems.iter().map(|p| p.reason.as_str());
            reasons.collect::<Vec<_>>().join("\n")
        };
        assert!(of("vae").ends_with("zip: no end record; the file is truncated"));
        assert!(of("tokenizer").contains("a git-lfs pointer"));
        assert!(of("dit").ends_with("field dim: wanted 256, as the tensors have it, got 512"));
        assert_eq!(of("text_encoder") + &of("audio_encoder"), "");
        assert!(i.lora.problems.is_empty() && !i.sound);
        assert_eq!(verdict(&wan).lines().count(), 3);
    }

    #[test]
    fn many_tensors_are_one_line_with_a_count_and_the_first_three() {
        let dir = tiny();
        dit_file(&wan(&dir), &["x.0", "x.1", "x.2", "x.3"], |key, _| {
            if key.starts_with("blocks.0.norm3") || key == "head.head.bias" {
                key.push_str(".old");
            }
        });
        assert_eq!(
            verdict(&wan(&dir)),
            "WAN/diffusion_pytorch_model.safetensors: \
             3 tensors are missing: blocks.0.norm3.weight [256], blocks.0.norm3.bias [256], \
             head.head.bias [64]; \
             7 tensors are not expected: blocks.0.norm3.bias.old [256], \
             blocks.0.norm3.weight.old [256], head.head.bias.old [64], and 4 more"
        );
        let json = serde_json::to_value(inspect(&wan(&dir), None).unwrap()).unwrap();
        let tensors = &json["components"][0]["problems"][0]["tensors"];
        assert_eq!(tensors.as_array().map(Vec::len), Some(10));
        assert_eq!(tensors[0]["kind"], "missing_tensor");
    }

    /// The shared set is not part of the repository: without it this test has nothing to say.
    #[test]
    fn the_reference_checkpoint_is_sound() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/ckpt");
        if shared.is_dir() {
            let i = inspect(&shared, None).unwrap();
            assert!(i.sound, "{i}");
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
