//! The four opened checkpoints of an export: their sizes, their identity and the graphs they give.
use super::error::ExportError;
use super::journal::{Identity, Stamp};
use crate::checkpoint::{Checkpoint, CheckpointError, LoraScale, StoredDType};
use crate::families::{CheckpointKind, Family, FamilyErrors, ModelShapes};
use crate::graph::WeightSource;
use crate::graph::data::{DataPlan, WeightBytes};
use crate::verdict;
use engines::contract::DType;
use engines::manifest::ModelConfig;
use engines::recipe::Recipe;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The four opened checkpoints of a folder and their sizes.
pub(super) struct Checkpoints {
    pub(super) dit: Checkpoint,
    pub(super) text: Checkpoint,
    pub(super) vae: Checkpoint,
    pub(super) speech: Checkpoint,
    pub(super) config: ModelConfig,
    /// Layers of the checkpoint, when only the first of them are exported.
    pub(super) layers_of: Option<usize>,
}

impl Checkpoints {
    /// Opens the folder's checkpoints and reads their sizes.
    ///
    /// # Errors
    /// Every fault of every checkpoint, together.
    pub(super) fn open(
        dir: &Path,
        lora: Option<&(PathBuf, LoraScale)>,
    ) -> Result<Self, ExportError> {
        verdict::check_folder(dir)?;
        let sound = verdict::Opened::open(dir, lora).finish()?;
        Ok(Self {
            dit: sound.dit,
            text: sound.text,
            vae: sound.vae,
            speech: sound.speech,
            config: sound.config,
            layers_of: None,
        })
    }

    /// Leaves out all but the first `layers` layers of the transformer, and the audio injectors
    /// that belong to the others.
    ///
    /// # Errors
    /// Zero layers, or more layers than the checkpoint has.
    pub(super) fn cut(mut self, layers: usize) -> Result<Self, ExportError> {
        let config = &mut self.config.dit;
        let have = config.layers;
        if !(1..=have).contains(&layers) {
            return Err(ExportError::Layers { got: layers, have });
        }
        if layers == have {
            return Ok(self);
        }
        config.layers = layers;
        config.audio_inject_layers.retain(|&l| l < layers);
        let injectors = config.audio_inject_layers.len();
        let beyond = |key: &str, place: &str, kept: usize| {
            let rest = key.strip_prefix(place).and_then(|r| r.split('.').next());
            rest.and_then(|n| n.parse().ok())
                .is_some_and(|n: usize| n >= kept)
        };
        self.dit = self.dit.without(|key| {
            beyond(key, "blocks.", layers)
                || beyond(key, "audio_injector.injector.", injectors)
                || beyond(key, "audio_injector.injector_adain_layers.", injectors)
        });
        self.layers_of = Some(have);
        Ok(self)
    }

    /// Returns every file that the export reads, once and sorted.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let all = [&self.dit, &self.text, &self.vae, &self.speech];
        let files: BTreeSet<&Path> = all.into_iter().flat_map(|c| c.files()).collect();
        files.into_iter().map(Path::to_owned).collect()
    }

    /// Returns the identity of the export: everything that the bytes of its data files depend on.
    pub(super) fn identity(
        &self,
        recipe: Recipe,
        families: &[Family],
        plans: &[DataPlan<'_>],
    ) -> Result<Identity, ExportError> {
        let mut hasher = blake3::Hasher::new();
        for (contract, graph) in families.iter().flat_map(|f| &f.graphs) {
            let name = (&graph.name, contract.fingerprint());
            hasher.update(format!("{name:?}\n").as_bytes());
        }
        for (plan, (at, weight)) in plans.iter().flat_map(|p| p.weights().map(move |w| (p, w))) {
            // The same weight has another value number in another graph.
            let weight = crate::graph::Weight {
                value: 0,
                ..weight.clone()
            };
            hasher.update(format!("{} {at} {weight:?}\n", plan.file).as_bytes());
        }
        let graphs = hasher.finalize().to_hex().to_string();
        let mut identity = Identity::new(
            recipe,
            self.layers_of.map(|_| self.config.dit.layers),
            graphs,
        );
        identity.lora_scale = self.dit.lora().map(|l| l.scale.to_bits());
        identity.checkpoint = self
            .files()
            .iter()
            .map(|f| stamp(f))
            .collect::<Result<_, _>>()?;
        Ok(identity)
    }

    /// Builds every graph of the export.
    ///
    /// # Errors
    /// See [`ModelShapes::graphs`].
    pub(super) fn graphs(&self, recipe: Recipe) -> Result<Vec<Family>, FamilyErrors> {
        ModelShapes {
            recipe,
            dit: &self.dit,
            text: &self.text,
            vae: &self.vae,
            speech: &self.speech,
            config: &self.config,
        }
        .graphs()
    }

    pub(super) fn of(&self, family: &Family) -> &Checkpoint {
        match family.checkpoint {
            CheckpointKind::Dit => &self.dit,
            CheckpointKind::Text => &self.text,
            CheckpointKind::Vae => &self.vae,
            CheckpointKind::Speech => &self.speech,
        }
    }
}

fn stamp(path: &Path) -> Result<Stamp, ExportError> {
    let meta = fs::metadata(path).map_err(|source| ExportError::Io {
        path: path.to_owned(),
        source,
    })?;
    let changed = meta.modified().ok();
    Ok(Stamp {
        file: path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
        bytes: meta.len(),
        nanoseconds: changed
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |d| d.as_nanos()),
    })
}

impl WeightSource for Checkpoint {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.info(key).map(|i| i.shape.clone())
    }

    fn keys(&self) -> Vec<String> {
        self.names().map(str::to_owned).collect()
    }

    fn origin(&self) -> Option<String> {
        Some(self.path().display().to_string())
    }
}

impl WeightBytes for Checkpoint {
    type Error = CheckpointError;

    fn read_f32(&self, key: &str) -> Result<Vec<f32>, Self::Error> {
        Self::read_f32(self, key)
    }

    fn read_f32_range(
        &self,
        key: &str,
        elements: std::ops::Range<usize>,
    ) -> Result<Vec<f32>, Self::Error> {
        Self::read_f32_range(self, key, elements)
    }

    fn read_f32_tile(
        &self,
        key: &str,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), Self::Error> {
        Self::read_f32_tile(self, key, rows, columns, out)
    }

    fn raw(&self, key: &str) -> Option<(DType, &[u8])> {
        let (dtype, bytes) = Self::raw(self, key)?;
        let dtype = match dtype {
            StoredDType::F32 => DType::F32,
            StoredDType::BF16 => DType::BF16,
            StoredDType::F16 => DType::F16,
            _ => return None,
        };
        Some((dtype, bytes))
    }

    fn prefetch(&self, key: &str) {
        Self::prefetch(self, key);
    }
}
