//! The four opened checkpoints of an export: their sizes, their identity and the graphs they give.
use super::error::ExportError;
use super::journal::{Identity, MergedLora, Stamp};
use crate::checkpoint::sums::{SumsCount, SumsWatch};
use crate::checkpoint::{Checkpoint, CheckpointError, LoraFile, LoraReport, StoredDType, layout};
use crate::config::zeros_notice;
use crate::families::{CheckpointKind, Family, FamilyErrors, ModelShapes};
use crate::graph::WeightSource;
use crate::graph::data::{DataPlan, WeightBytes};
use crate::verdict;
use engines::contract::DType;
use engines::manifest::{self, LoraEntry, ModelConfig};
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
    /// Files that are as their lists of sums say; `None` where no list names one.
    pub(super) sums: Option<SumsCount>,
    /// Layers of the checkpoint, when only the first of them are exported.
    pub(super) layers_of: Option<usize>,
}

impl Checkpoints {
    /// Opens the folder's checkpoints and reads their sizes.
    ///
    /// # Errors
    /// Every fault of every checkpoint, together; a stop that was asked for.
    pub(super) fn open(
        dir: &Path,
        loras: &[LoraFile],
        watch: &mut SumsWatch<'_>,
    ) -> Result<Self, ExportError> {
        verdict::check_folder(dir)?;
        let sound = verdict::Opened::open(dir, loras, watch)?.finish()?;
        Ok(Self {
            dit: sound.dit,
            text: sound.text,
            vae: sound.vae,
            speech: sound.speech,
            config: sound.config,
            sums: sound.sums,
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
        identity.loras = self.dit.loras().map(merged).collect::<Result<_, _>>()?;
        identity.checkpoint = self
            .files()
            .iter()
            .map(|f| stamp(f))
            .collect::<Result<_, _>>()?;
        Ok(identity)
    }

    /// Returns one line about each LoRA, for the user.
    pub(super) fn lora_notices(&self) -> Vec<String> {
        let sizes = layout::DitSizes::derive(&self.dit);
        let adaptable: BTreeSet<String> = sizes
            .map(|s| s.lora_targets())
            .unwrap_or_default()
            .into_iter()
            .map(|(module, ..)| format!("{module}.weight"))
            .collect();
        let notice = |lora| lora_notice(lora, &adaptable);
        self.dit.loras().map(notice).collect()
    }

    /// Returns a line about the parts of the VAE that are left out, where there are any.
    pub(super) fn vae_notice(&self) -> Option<String> {
        zeros_notice(&self.vae, &self.config.vae)
    }

    /// Returns the LoRAs as the manifest lists them. `hashes` are the hashes of their files.
    pub(super) fn lora_entries<'h>(&self, hashes: impl Iterator<Item = &'h str>) -> Vec<LoraEntry> {
        let entry = |(lora, blake3): (&LoraReport, &str)| {
            let [low, high] = lora.factors;
            let listed = |key: &&String| self.dit.is_listed(key);
            LoraEntry {
                file: file_name(&lora.file),
                blake3: Some(blake3.to_owned()),
                scale: low,
                highest_scale: (low != high).then_some(high),
                strength: lora.strength,
                ranks: lora.ranks.iter().copied().collect(),
                targets: lora.weights.keys().filter(listed).count(),
            }
        };
        self.dit.loras().zip(hashes).map(entry).collect()
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

/// Returns the line about a LoRA. `adaptable` are the weights that the published LoRA changes.
fn lora_notice(lora: &LoraReport, adaptable: &BTreeSet<String>) -> String {
    let within = lora.weights.keys().filter(|k| adaptable.contains(*k));
    let (within, of) = (within.count(), adaptable.len());
    let others = match lora.weights.len() - within {
        0 => String::new(),
        n => format!(" and {n} others"),
    };
    let rest = match of - within {
        0 => String::new(),
        n => format!("; the other {n} modules keep the weights of the checkpoint"),
    };
    format!(
        "LoRA {}: {}, {within} of {of} modules{others}, {}{rest}",
        file_name(&lora.file),
        lora.form(),
        lora.strength_text()
    )
}

/// Returns the hashes of a LoRA. Of several files, it hashes their hashes in the order of names.
fn merged(lora: &LoraReport) -> Result<MergedLora, ExportError> {
    let hashes = lora.files.iter().map(|path| {
        manifest::hash_file(path).map_err(|source| ExportError::Io {
            path: path.clone(),
            source,
        })
    });
    let hashes = hashes.collect::<Result<Vec<_>, _>>()?;
    let blake3 = match &hashes[..] {
        [one] => one.clone(),
        several => blake3::hash(several.concat().as_bytes())
            .to_hex()
            .to_string(),
    };
    let mut factors = blake3::Hasher::new();
    for (key, factor) in &lora.weights {
        factors.update(format!("{key} {:08x}\n", factor.to_bits()).as_bytes());
    }
    Ok(MergedLora {
        blake3,
        factors: factors.finalize().to_hex().to_string(),
    })
}

fn file_name(path: &Path) -> String {
    let name = path.file_name();
    name.map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn stamp(path: &Path) -> Result<Stamp, ExportError> {
    let meta = fs::metadata(path).map_err(|source| ExportError::Io {
        path: path.to_owned(),
        source,
    })?;
    let changed = meta.modified().ok();
    Ok(Stamp {
        file: file_name(path),
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
