//! Decides whether a checkpoint folder can be exported. `inspect` and `onnx` both ask this module,
//! so they accept and refuse the same folders with the same words.
//!
//! The module opens every component, compares its tensors with the published layout, reads its
//! configuration and builds its graphs. It goes on after a fault, so that all faults are told
//! together.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use engines::manifest::ModelConfig;
use engines::recipe::Recipe;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::checkpoint::layout::{
    self, DIT_STEM, DitSizes, SizeError, T5_FILE, T5Sizes, TOKENIZER_DIR, TOKENIZER_FILE,
    TensorSpec, VAE_FILE, VaeSizes, WAV2VEC2_DIR, WavSizes,
};
use crate::checkpoint::sums::{self, SUMS_FILE, Stopped, SumFault, SumsCount, SumsWatch};
use crate::checkpoint::{
    Checkpoint, CheckpointError, LayoutFaults, Lora, LoraFile, LoraReport, Repack, names_hash,
    read_json,
};
use crate::config::{self, ConfigError};
use crate::families::{FamilyError, FamilyErrors, ModelShapes};

/// The repository of the published files, for messages.
const REPOSITORY: &str = "Wan-AI/Wan2.2-S2V-14B";

/// A component of a checkpoint folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Dit,
    TextEncoder,
    Tokenizer,
    Vae,
    AudioEncoder,
    Lora,
    /// The lists of sums and the files that they name.
    Sums,
}

impl Component {
    /// Returns the published file to take in place of a repack.
    fn published(self) -> String {
        let file = match self {
            Self::Dit => "diffusion_pytorch_model-0000N-of-00004.safetensors with their index.json",
            Self::TextEncoder => T5_FILE,
            Self::Tokenizer => "google/umt5-xxl/tokenizer.json",
            Self::Vae => VAE_FILE,
            Self::AudioEncoder => "wav2vec2-large-xlsr-53-english/model.safetensors",
            Self::Sums => SUMS_FILE,
            Self::Lora => return "liveavatar.safetensors of Quark-Vision/Live-Avatar".to_owned(),
        };
        format!("{file} of {REPOSITORY}")
    }
}

/// A path that is no folder.
#[derive(Debug, thiserror::Error)]
#[error("{}: wanted a checkpoint folder, found {found}", path.display())]
pub struct NoFolder {
    path: PathBuf,
    found: &'static str,
}

/// Checks that the path of a checkpoint is a folder.
///
/// # Errors
/// A file, or nothing at that path.
pub(crate) fn check_folder(path: &Path) -> Result<(), NoFolder> {
    if path.is_dir() {
        return Ok(());
    }
    Err(NoFolder {
        path: path.to_owned(),
        found: if path.exists() { "a file" } else { "nothing" },
    })
}

/// A reason why a component cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    /// A file is missing, damaged, of another form, or has other tensors.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A configuration does not fit the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A graph cannot be built.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// A file differs from the sum that a list states, or the list is malformed.
    #[error(transparent)]
    Sum(#[from] SumFault),
}

/// The reasons why a folder cannot be exported, one line each.
#[derive(Debug, Default)]
pub struct Refusals(Vec<(Component, Reason)>);

impl Refusals {
    /// Returns the reasons that concern one component.
    pub(crate) fn of(&self, component: Component) -> impl Iterator<Item = &Reason> {
        let all = self.0.iter().filter(move |(of, _)| *of == component);
        all.map(|(_, reason)| reason)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the kind of failure: a lack of memory or disk only where every reason is one.
    pub fn kind(&self) -> ErrorKind {
        let lacks = |(_, reason): &(Component, Reason)| match reason {
            Reason::Checkpoint(e) => e.kind() == ErrorKind::Resources,
            Reason::Config(e) => e.kind() == ErrorKind::Resources,
            Reason::Sum(e) => e.kind() == ErrorKind::Resources,
            Reason::Family(_) => false,
        };
        match self.0.iter().all(lacks) {
            true => ErrorKind::Resources,
            false => ErrorKind::Model,
        }
    }

    /// Returns the value, or notes the reason and returns `None`.
    fn note<T>(&mut self, component: Component, found: Result<T, impl Into<Reason>>) -> Option<T> {
        found
            .map_err(|reason| self.0.push((component, reason.into())))
            .ok()
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(_, reason)| reason.to_string())
            .collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Refusals {}

/// Facts of a component's tensors, as they are stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TensorFacts {
    pub(crate) tensors: usize,
    pub(crate) parameters: u64,
    /// Number of parameters by stored type.
    pub(crate) dtypes: BTreeMap<String, u64>,
    /// Hash of the names and shapes; `None` where no file was opened.
    pub(crate) names_md5: Option<String>,
}

impl TensorFacts {
    fn of(checkpoint: &Checkpoint) -> Self {
        let tensors = || {
            checkpoint
                .names()
                .filter_map(|n| Some((n, checkpoint.info(n)?)))
        };
        let mut facts = Self::default();
        for (_, info) in tensors() {
            let parameters = info.shape.iter().product::<usize>() as u64;
            facts.tensors += 1;
            facts.parameters += parameters;
            *facts.dtypes.entry(info.dtype.to_string()).or_default() += parameters;
        }
        facts.names_md5 = Some(names_hash(tensors().map(|(n, i)| (n, i.shape.as_slice()))));
        facts
    }
}

/// One component with tensors, as far as it could be opened.
#[derive(Debug, Default)]
pub(crate) struct Part {
    /// The tensors. They may differ from the layout; a reason then says so.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) facts: TensorFacts,
    /// Sizes that the tensors have.
    pub(crate) sizes: Value,
    /// Whether every tensor is as the layout wants it.
    fits: bool,
}

/// The tensors of a component. The idle ones may be absent.
struct Expected<S> {
    sizes: S,
    needed: Vec<TensorSpec>,
    idle: Vec<TensorSpec>,
}

impl Part {
    /// Opens a component and compares its tensors with those that `expect` derives from them.
    fn open<S: Serialize>(
        component: Component,
        opened: Result<Checkpoint, CheckpointError>,
        expect: impl Fn(&Checkpoint) -> Result<Expected<S>, SizeError>,
        refusals: &mut Refusals,
    ) -> Self {
        let mut part = Self::default();
        let Some(checkpoint) = refusals.note(component, opened) else {
            return part;
        };
        part.facts = TensorFacts::of(&checkpoint);
        if let Some(form) = checkpoint.repack() {
            let repack = repack(component, only_file(&checkpoint), form);
            refusals.note::<()>(component, Err(repack));
            return part;
        }
        let path = checkpoint.path().to_owned();
        let derived = expect(&checkpoint).map_err(|source| ConfigError::Size {
            path: path.clone(),
            source,
        });
        let Some(expected) = refusals.note(component, derived) else {
            return part;
        };
        let faults = layout::compare(&checkpoint, &expected.needed, &expected.idle);
        part.fits = faults.is_empty();
        if !part.fits {
            let faults = LayoutFaults(faults);
            refusals.note::<()>(component, Err(CheckpointError::Layout { path, faults }));
        }
        part.sizes = serde_json::to_value(&expected.sizes).expect("sizes are plain data");
        part.checkpoint = Some(checkpoint);
        part
    }
}

/// Returns the only file of a checkpoint, or the folder of several files.
fn only_file(checkpoint: &Checkpoint) -> &Path {
    let files = checkpoint.files();
    match files.first() {
        Some(file) if files.len() == 1 => file,
        _ => checkpoint.path(),
    }
}

fn repack(component: Component, path: &Path, form: Repack) -> CheckpointError {
    CheckpointError::Repack {
        path: path.to_owned(),
        form,
        instead: component.published(),
    }
}

/// A LoRA, as far as it could be opened.
#[derive(Debug)]
pub(crate) struct OpenedLora {
    pub(crate) report: LoraReport,
    pub(crate) parameters: u64,
}

/// The opened components of a folder, and the reasons why it cannot be exported.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The transformer, with the LoRA laid over it where that is possible.
    pub(crate) dit: Part,
    pub(crate) text: Part,
    pub(crate) vae: Part,
    pub(crate) speech: Part,
    /// LoRAs that could be opened, in the order of their merge.
    pub(crate) loras: Vec<OpenedLora>,
    /// Files that were compared with lists of sums; `None` where no list names one.
    pub(crate) sums: Option<SumsCount>,
    config: Option<ModelConfig>,
    pub(crate) refusals: Refusals,
}

/// The components of a folder that has no fault so far, and their sizes.
pub(crate) struct Sound {
    pub(crate) dit: Checkpoint,
    pub(crate) text: Checkpoint,
    pub(crate) vae: Checkpoint,
    pub(crate) speech: Checkpoint,
    pub(crate) sums: Option<SumsCount>,
    pub(crate) config: ModelConfig,
}

impl Opened {
    /// Opens the components of the base folder `dir` and compares them with the published layout.
    /// Then compares the files with the lists of sums, where there are lists.
    ///
    /// # Errors
    /// A stop that was asked for during the second comparison.
    pub(crate) fn open(
        dir: &Path,
        loras: &[LoraFile],
        watch: &mut SumsWatch<'_>,
    ) -> Result<Self, Stopped> {
        let mut refusals = Refusals::default();
        let speech_dir = dir.join(WAV2VEC2_DIR);
        refusals.note(Component::Tokenizer, tokenizer(dir));
        let mut opened = Self {
            dit: dit(dir, &mut refusals),
            text: Part::open(
                Component::TextEncoder,
                open_torch(dir, Component::TextEncoder, T5_FILE),
                |c| T5Sizes::derive(c).map(|s| plain(s, s.tensors())),
                &mut refusals,
            ),
            vae: Part::open(
                Component::Vae,
                open_torch(dir, Component::Vae, VAE_FILE),
                |c| VaeSizes::derive(c).map(|s| plain(s, s.tensors())),
                &mut refusals,
            ),
            speech: speech(&speech_dir, &mut refusals),
            loras: Vec::new(),
            sums: None,
            config: None,
            refusals,
        };
        opened.lay(dir, loras);
        opened.config = opened.sizes(dir, &speech_dir);
        let report = sums::check(dir, loras.iter().map(|l| l.path.as_path()), watch)?;
        opened.sums = (report.count.files > 0).then_some(report.count);
        for fault in report.faults {
            opened.refusals.note::<()>(Component::Sums, Err(fault));
        }
        Ok(opened)
    }

    /// Lays the LoRAs over the transformer, in their order. After a fault, the base is kept.
    fn lay(&mut self, dir: &Path, files: &[LoraFile]) {
        let open = |file: &LoraFile| self.refusals.note(Component::Lora, file.open());
        let loras: Vec<Lora> = files.iter().filter_map(open).collect();
        let facts = |lora: &Lora| OpenedLora {
            report: lora.report(),
            parameters: lora.parameters(),
        };
        self.loras = loras.iter().map(facts).collect();
        // A transformer that differs from the layout would be reported a second time.
        if !loras.is_empty() && self.dit.fits {
            let base = Checkpoint::open_safetensors(dir);
            let merged =
                base.and_then(|base| loras.into_iter().try_fold(base, Checkpoint::with_lora));
            if let Some(merged) = self.refusals.note(Component::Lora, merged) {
                self.dit.checkpoint = Some(merged);
            }
        }
    }

    /// Reads the sizes of all components.
    fn sizes(&mut self, dir: &Path, speech_dir: &Path) -> Option<ModelConfig> {
        let r = &mut self.refusals;
        let dit = self.dit.checkpoint.as_ref();
        let dit = dit.and_then(|c| r.note(Component::Dit, config::dit(c, dir)));
        let text = self.text.checkpoint.as_ref();
        let text = text.and_then(|c| r.note(Component::TextEncoder, config::text(c)));
        let vae = self.vae.checkpoint.as_ref();
        let vae = vae.and_then(|c| r.note(Component::Vae, config::vae(c)));
        let speech = self.speech.checkpoint.as_ref();
        let speech =
            speech.and_then(|c| r.note(Component::AudioEncoder, config::speech(c, speech_dir)));
        Some(ModelConfig {
            dit: dit?,
            text: text?,
            vae: vae?,
            speech: speech?,
        })
    }

    /// Builds every graph, where the folder has no fault so far, and notes what fails. `onnx`
    /// builds the graphs that it writes itself, from the same [`ModelShapes`].
    pub(crate) fn build_graphs(&mut self, recipe: Recipe) {
        let parts = [&self.dit, &self.text, &self.vae, &self.speech];
        let [Some(dit), Some(text), Some(vae), Some(speech)] =
            parts.map(|part| part.checkpoint.as_ref())
        else {
            return;
        };
        let Some(config) = self.config.as_ref().filter(|_| self.refusals.is_empty()) else {
            return;
        };
        let model = ModelShapes {
            recipe,
            dit,
            text,
            vae,
            speech,
            config,
        };
        if let Err(FamilyErrors(errors)) = model.graphs() {
            for error in errors {
                let component = match error.family() {
                    "text_encoder" => Component::TextEncoder,
                    "audio_encoder" => Component::AudioEncoder,
                    "vae" => Component::Vae,
                    _ => Component::Dit,
                };
                self.refusals.note::<()>(component, Err(error));
            }
        }
    }

    /// Returns a line about the parts of the VAE that an export leaves out.
    pub(crate) fn vae_notice(&self) -> Option<String> {
        let (checkpoint, config) = (self.vae.checkpoint.as_ref()?, self.config.as_ref()?);
        config::zeros_notice(checkpoint, &config.vae)
    }

    /// Returns the components of a folder without a fault.
    ///
    /// # Errors
    /// Every reason why the folder cannot be exported.
    pub(crate) fn finish(self) -> Result<Sound, Refusals> {
        let parts = [self.dit, self.text, self.vae, self.speech].map(|part| part.checkpoint);
        match (parts, self.config, self.refusals.is_empty()) {
            ([Some(dit), Some(text), Some(vae), Some(speech)], Some(config), true) => Ok(Sound {
                dit,
                text,
                vae,
                speech,
                sums: self.sums,
                config,
            }),
            _ => Err(self.refusals),
        }
    }
}

fn plain<S>(sizes: S, needed: Vec<TensorSpec>) -> Expected<S> {
    Expected {
        sizes,
        needed,
        idle: Vec::new(),
    }
}

/// Checks that the tokenizer's file is there and is JSON.
fn tokenizer(dir: &Path) -> Result<(), CheckpointError> {
    let path = dir.join(TOKENIZER_DIR).join(TOKENIZER_FILE);
    if !path.is_file() {
        let want = "tokenizer of the prompt";
        return Err(CheckpointError::Missing { path, want });
    }
    read_json::<IgnoredAny>(&path).map(drop)
}

fn dit(dir: &Path, refusals: &mut Refusals) -> Part {
    let opened = Checkpoint::open_safetensors(dir);
    // The tensors of another model would only repeat that it is another model.
    if opened.is_ok()
        && refusals
            .note(Component::Dit, config::check_model(dir))
            .is_none()
    {
        return Part {
            facts: opened.as_ref().map(TensorFacts::of).unwrap_or_default(),
            ..Part::default()
        };
    }
    let expect = |c: &Checkpoint| DitSizes::derive(c).map(|s| plain(s, s.tensors()));
    Part::open(Component::Dit, opened, expect, refusals)
}

fn speech(dir: &Path, refusals: &mut Refusals) -> Part {
    let expect = |c: &Checkpoint| {
        let (sizes, form) = WavSizes::derive(c)?;
        Ok(Expected {
            needed: sizes.tensors(form),
            idle: sizes.idle(),
            sizes,
        })
    };
    let component = Component::AudioEncoder;
    let mut part = Part::open(component, Checkpoint::open(dir), expect, refusals);
    if part.fits {
        let normed = part.checkpoint.take().map(Checkpoint::with_weight_norm);
        part.checkpoint = normed.and_then(|c| refusals.note(component, c));
    }
    part
}

/// Opens the published file of a component. Where it is missing, a repack that lies in its place is
/// the fault.
fn open_torch(dir: &Path, component: Component, file: &str) -> Result<Checkpoint, CheckpointError> {
    match Checkpoint::open_torch(&dir.join(file)) {
        Err(missing @ CheckpointError::Missing { .. }) => {
            Err(repack_beside(dir, component).unwrap_or(missing))
        }
        opened => opened,
    }
}

/// Searches a folder for the component under another file name.
fn repack_beside(dir: &Path, component: Component) -> Option<CheckpointError> {
    let marks: &[&str] = match component {
        Component::TextEncoder => &["token_embedding.weight", "shared.weight"],
        Component::Vae => &["encoder.conv1.weight", "encoder.conv_in.weight"],
        _ => return None,
    };
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    files.iter().find_map(|path| {
        let name = path.file_name()?.to_str()?;
        let tensors = [".safetensors", ".pth", ".bin"];
        if name.starts_with(DIT_STEM) || !tensors.iter().any(|end| name.ends_with(end)) {
            return None;
        }
        let checkpoint = Checkpoint::open(path).ok()?;
        marks.iter().find(|mark| checkpoint.info(mark).is_some())?;
        let form = checkpoint.repack().unwrap_or(Repack::OtherName);
        Some(repack(component, path, form))
    })
}
