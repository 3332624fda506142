//! Every graph of a model, built from tensor names and shapes alone.
//!
//! A [`Family`] is the set of graphs that read one checkpoint, so they share one data file. The
//! export, the `graphs` command and the engine build all start here. Not here: bytes of weights,
//! files.
//!
//! ```
//! use engines::recipe::Recipe;
//! use exporter::families::ModelShapes;
//! use exporter::synth::{Preset, shapes};
//!
//! let shapes = shapes(Preset::Tiny, Some(1));
//! let model = ModelShapes {
//!     dit: &shapes.dit,
//!     text: &shapes.text,
//!     vae: &shapes.vae,
//!     speech: &shapes.speech,
//!     config: &shapes.config,
//!     recipe: Recipe::Bf16,
//! };
//! let families = model.graphs()?;
//! let names: Vec<&str> = families.iter().map(|family| family.name).collect();
//! assert_eq!(names, ["text_encoder", "audio_encoder", "vae", "dit"]);
//! # Ok::<(), exporter::families::FamilyErrors>(())
//! ```
use crate::checkpoint::first;
use crate::graph::{Builder, Fault, Graph, GraphError, GraphErrors, WeightSource};
use crate::models::{umt5, wan_s2v, wan_vae, wav2vec2};
use engines::components::{dit, speech, text, vae};
use engines::contract::{Contract, Sizes};
use engines::error_kind::ErrorKind;
use engines::manifest::ModelConfig;
use engines::recipe::Recipe;
use std::collections::BTreeSet;

/// A fault of one checkpoint or of one graph that reads it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FamilyError {
    /// A graph cannot be built from this checkpoint.
    #[error("{}", lines(errors.0.iter().map(|e| format!("{checkpoint}: {e}"))))]
    Graph {
        /// Name of the family.
        family: &'static str,
        /// Path of the checkpoint, or the family's name.
        checkpoint: String,
        /// Every fault of the graph.
        errors: GraphErrors,
    },
    /// The checkpoint holds tensors that this version does not know.
    #[error("{checkpoint}: {} tensors that no graph reads: {}", keys.len(), first(keys, ", "))]
    Unused {
        /// Name of the family.
        family: &'static str,
        /// Path of the checkpoint, or the family's name.
        checkpoint: String,
        /// Names of the tensors.
        keys: Vec<String>,
    },
}

impl FamilyError {
    /// Returns the name of the family that failed.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Graph { family, .. } | Self::Unused { family, .. } => family,
        }
    }
}

/// The faults of all families, reported together.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", lines(.0.iter().map(ToString::to_string)))]
pub struct FamilyErrors(pub Vec<FamilyError>);

fn lines(messages: impl Iterator<Item = String>) -> String {
    messages.collect::<Vec<_>>().join("\n")
}

impl FamilyErrors {
    /// Returns the kind of failure: the checkpoint does not fit the model.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Model
    }
}

/// The graphs that share one checkpoint, hence one data file.
pub struct Family {
    /// Stem of the data file, for example `dit`.
    pub name: &'static str,
    /// The checkpoint that the graphs read.
    pub checkpoint: CheckpointKind,
    /// Each graph with the contract that it keeps, in data-flow order.
    pub graphs: Vec<(&'static Contract, Graph)>,
}

/// One of the four checkpoints of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// The video transformer, with its LoRA.
    Dit,
    /// The umT5 text encoder.
    Text,
    /// The video VAE.
    Vae,
    /// The wav2vec2 speech encoder.
    Speech,
}

/// The names and shapes of a model's tensors, its sizes and its precision: all that graphs need.
pub struct ModelShapes<'s> {
    /// Tensors of the video transformer.
    pub dit: &'s dyn WeightSource,
    /// Tensors of the text encoder.
    pub text: &'s dyn WeightSource,
    /// Tensors of the VAE.
    pub vae: &'s dyn WeightSource,
    /// Tensors of the speech encoder.
    pub speech: &'s dyn WeightSource,
    /// Sizes of every component.
    pub config: &'s ModelConfig,
    /// Precision of the graphs.
    pub recipe: Recipe,
}

impl ModelShapes<'_> {
    /// Builds every graph of the model and groups the graphs by checkpoint.
    ///
    /// # Errors
    /// Every fault of every graph, and every tensor that no graph reads.
    pub fn graphs(&self) -> Result<Vec<Family>, FamilyErrors> {
        let c = self.config;
        let prefix = if self
            .speech
            .keys()
            .iter()
            .any(|n| n.starts_with("wav2vec2."))
        {
            "wav2vec2"
        } else {
            ""
        };
        let mut errors = Vec::new();
        let families = vec![
            Family::build(
                "text_encoder",
                CheckpointKind::Text,
                (self.text, self.recipe),
                &mut errors,
                |f| {
                    f.add("text_encoder", &text::ENCODER, &c.text, |b| {
                        umt5::encoder(b, &c.text);
                    });
                },
            ),
            Family::build(
                "audio_encoder",
                CheckpointKind::Speech,
                (self.speech, self.recipe),
                &mut errors,
                |f| {
                    let sizes = &c.speech;
                    let (first, second) = (&speech::ENCODER_FEATURES, &speech::ENCODER_POSITIONS);
                    f.add(first.name, first, sizes, |b| {
                        wav2vec2::features(b, prefix, sizes);
                    });
                    f.add(second.name, second, sizes, |b| {
                        wav2vec2::positions(b, prefix, sizes);
                    });
                    for layer in 0..sizes.layers {
                        let (name, contract) = sizes.layer(layer);
                        f.add(&name, contract, sizes, |b| {
                            wav2vec2::layer(b, prefix, sizes, layer);
                        });
                    }
                },
            ),
            Family::build(
                "vae",
                CheckpointKind::Vae,
                (self.vae, self.recipe),
                &mut errors,
                |f| {
                    for contract in [&vae::ENCODER_FIRST, &vae::ENCODER_NEXT] {
                        let contract = c.vae.contract(contract);
                        f.add(contract.name, contract, &c.vae, |b| {
                            wan_vae::encoder(b, contract, &c.vae);
                        });
                    }
                    for contract in [&vae::DECODER_FIRST, &vae::DECODER_NEXT] {
                        let contract = c.vae.contract(contract);
                        f.add(contract.name, contract, &c.vae, |b| {
                            wan_vae::decoder(b, contract, &c.vae);
                        });
                    }
                    f.leave_out(&c.vae.idle_branches);
                },
            ),
            Family::build(
                "dit",
                CheckpointKind::Dit,
                (self.dit, self.recipe),
                &mut errors,
                |f| {
                    dit_graphs(f, &c.dit);
                },
            ),
        ];
        if errors.is_empty() {
            Ok(families)
        } else {
            Err(FamilyErrors(errors))
        }
    }
}

/// Returns a layer's graph without the layer's number: `blocks.3` becomes `blocks.N` in every name,
/// so that one graph serves every layer. The graph takes the name of its contract.
pub fn generic(contract: &Contract, graph: &Graph) -> Graph {
    let mut places = BTreeSet::new();
    for w in &graph.weights {
        places.extend(numbered_place(&w.key));
    }
    let places: Vec<(String, String)> = places.into_iter().collect();
    let mut graph = graph.renamed(&places);
    contract.name.clone_into(&mut graph.name);
    graph
        .metadata
        .insert("component".to_owned(), contract.name.to_owned());
    graph
}

/// Returns `blocks.3` and `blocks.N` for `blocks.3.ffn.0.weight`: the name up to its first number.
fn numbered_place(key: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = key.split('.').collect();
    let at = parts.iter().position(|p| p.parse::<usize>().is_ok())?;
    let stem = parts[..at].join(".");
    Some((format!("{stem}.{}", parts[at]), format!("{stem}.N")))
}

fn dit_graphs(f: &mut FamilyBuilder<'_>, c: &dit::DitConfig) {
    f.add(speech::ADAPTER.name, &speech::ADAPTER, c, |b| {
        wan_s2v::audio_adapter(b, c);
    });
    f.add(dit::TEXT_EMBED.name, &dit::TEXT_EMBED, c, |b| {
        wan_s2v::text_embed(b, c);
    });
    f.add(dit::SINK_EMBED.name, &dit::SINK_EMBED, c, |b| {
        wan_s2v::sink_embed(b, c);
    });
    f.add(dit::EMBED.name, &dit::EMBED, c, |b| wan_s2v::embed(b, c));
    for layer in 0..c.layers {
        let contract = if c.audio_inject_layers.contains(&layer) {
            &dit::LAYER_AUDIO
        } else {
            &dit::LAYER
        };
        // First, so that what a denoising layer reads lies together in the data file.
        f.add(&dit::layer_name(layer), contract, c, |b| {
            wan_s2v::layer(b, c, layer);
        });
        f.add(&dit::sink_layer_name(layer), &dit::SINK_LAYER, c, |b| {
            wan_s2v::sink_layer(b, c, layer);
        });
    }
    f.add(dit::HEAD.name, &dit::HEAD, c, |b| wan_s2v::head(b, c));
}

/// A family under construction.
struct FamilyBuilder<'s> {
    name: &'static str,
    checkpoint: String,
    source: &'s dyn WeightSource,
    recipe: Recipe,
    graphs: Vec<(&'static Contract, Graph)>,
    /// Keys that a graph read or found misshaped, also where the graph failed.
    met: BTreeSet<String>,
    failed: Vec<FamilyError>,
}

impl Family {
    fn build(
        name: &'static str,
        checkpoint: CheckpointKind,
        (source, recipe): (&dyn WeightSource, Recipe),
        errors: &mut Vec<FamilyError>,
        add: impl FnOnce(&mut FamilyBuilder<'_>),
    ) -> Self {
        let mut draft = FamilyBuilder {
            name,
            checkpoint: source.origin().unwrap_or_else(|| name.to_owned()),
            source,
            recipe,
            graphs: Vec::new(),
            met: BTreeSet::new(),
            failed: Vec::new(),
        };
        add(&mut draft);
        draft.failed.extend(draft.unused());
        errors.append(&mut draft.failed);
        Self {
            name,
            checkpoint,
            graphs: draft.graphs,
        }
    }
}

impl FamilyBuilder<'_> {
    fn add(
        &mut self,
        component: &str,
        contract: &'static Contract,
        sizes: &impl Sizes,
        build: impl FnOnce(&'_ Builder<'_>),
    ) {
        let b = Builder::new(component, self.source).with_recipe(self.recipe);
        b.bind(sizes.bindings());
        b.contract(contract);
        build(&b);
        self.met.extend(b.used_keys());
        match b.finish() {
            Ok(graph) => self.graphs.push((contract, graph)),
            Err(errors) => {
                self.met.extend(errors.0.iter().filter_map(misshaped));
                self.failed.push(FamilyError::Graph {
                    family: self.name,
                    checkpoint: self.checkpoint.clone(),
                    errors,
                });
            }
        }
    }

    /// Counts the tensors of idle branches as read.
    fn leave_out(&mut self, modules: &BTreeSet<String>) {
        let keys = self.source.keys().into_iter();
        let inside = |key: &String| {
            let rest = modules.iter().filter_map(|m| key.strip_prefix(m.as_str()));
            rest.into_iter().any(|rest| rest.starts_with('.'))
        };
        self.met.extend(keys.filter(inside));
    }

    /// Returns an error when the checkpoint holds a tensor that no graph reads and no rule excuses.
    fn unused(&self) -> Option<FamilyError> {
        let idle = |key: &str| IDLE.iter().any(|p| key.starts_with(p));
        let unknown = |k: &String| !self.met.contains(k) && !idle(k);
        let keys: Vec<String> = self.source.keys().into_iter().filter(unknown).collect();
        (!keys.is_empty()).then(|| FamilyError::Unused {
            family: self.name,
            checkpoint: self.checkpoint.clone(),
            keys,
        })
    }
}

fn misshaped(error: &GraphError) -> Option<String> {
    match &error.fault {
        Fault::Misshaped { key, .. } => Some(key.clone()),
        _ => None,
    }
}

/// Tensors of published files that no component needs: the recognition head and the training mask
/// of the speech encoder.
const IDLE: &[&str] = &[
    "lm_head.",
    "wav2vec2.masked_spec_embed",
    "masked_spec_embed",
];
