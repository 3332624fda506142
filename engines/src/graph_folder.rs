//! `graphs.json`: describes a folder of graphs without weights, which `avatar-export graphs`
//! writes. Exports with weights are in [`crate::manifest`].

use crate::backend::ort::GraphFile;
use crate::components::{dit, matmul};
use crate::contract::{Contract, Sizes};
use crate::error_kind::ErrorKind;
use crate::manifest::ModelConfig;
use crate::recipe::Recipe;
use std::path::{Path, PathBuf};

/// Name of the description inside the folder.
pub const FILE: &str = "graphs.json";
/// Format that this version writes and reads.
const FORMAT: &str = "liveavatar-graphs/1";

/// A folder of graphs: its model and precision.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphFolder {
    format: String,
    /// Precision of the graphs.
    pub recipe: Recipe,
    /// Sizes of the model that they are graphs of.
    pub config: ModelConfig,
}

/// Why a folder of graphs cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum GraphFolderError {
    #[error("{}: cannot read: {source}; `avatar-export graphs` makes this folder", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {source}; make the folder again with `avatar-export graphs`", path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{}: format wants {FORMAT}, got {found}; make the folder again with `avatar-export graphs`",
        path.display()
    )]
    Format { path: PathBuf, found: String },
}

impl GraphFolderError {
    /// Returns the kind of failure: always the model.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Model
    }
}

impl GraphFolder {
    /// Describes a folder in this version's format.
    pub fn new(recipe: Recipe, config: ModelConfig) -> Self {
        Self {
            format: FORMAT.to_owned(),
            recipe,
            config,
        }
    }

    /// Reads a folder's description.
    ///
    /// # Errors
    /// A file that is missing, malformed or of another format.
    pub fn open(folder: &Path) -> Result<Self, GraphFolderError> {
        let path = folder.join(FILE);
        let text = std::fs::read(&path).map_err(|source| GraphFolderError::Read {
            path: path.clone(),
            source,
        })?;
        let set: Self =
            serde_json::from_slice(&text).map_err(|source| GraphFolderError::Parse {
                path: path.clone(),
                source,
            })?;
        if set.format == FORMAT {
            return Ok(set);
        }
        Err(GraphFolderError::Format {
            path,
            found: set.format,
        })
    }

    /// Returns the file of a component of the transformer, or of the matrix product. The graph of
    /// any layer stands for all of its kind.
    pub fn file(&self, folder: &Path, contract: &'static Contract) -> GraphFile {
        let inject = &self.config.dit.audio_inject_layers;
        let plain = (0..self.config.dit.layers).find(|l| !inject.contains(l));
        let name = match contract.name {
            n if n == dit::LAYER.name => dit::layer_name(plain.unwrap_or(0)),
            n if n == dit::LAYER_AUDIO.name => {
                dit::layer_name(inject.first().copied().unwrap_or(0))
            }
            n => n.to_owned(),
        };
        let sized = contract.name != matmul::MATMUL.name;
        GraphFile {
            path: folder.join(format!("{name}.onnx")),
            contract,
            recipe: self.recipe,
            bindings: match sized {
                true => self.config.dit.bindings(),
                false => crate::dim::Bindings::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components::preset::Preset;

    #[test]
    fn a_set_reads_as_it_was_written_and_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let set = GraphFolder::new(Recipe::Bf16, Preset::Full.config());
        let write = |set: &GraphFolder| {
            std::fs::write(dir.path().join(FILE), serde_json::to_vec(set).unwrap()).unwrap();
        };
        write(&set);
        let found = GraphFolder::open(dir.path()).unwrap();
        assert_eq!(found, set);
        let file = found.file(dir.path(), &dit::LAYER);
        assert!(file.path.ends_with("dit_layer.01.onnx"), "{file:?}");
        write(&GraphFolder {
            format: "liveavatar-graphs/0".to_owned(),
            ..set
        });
        let error = GraphFolder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("got liveavatar-graphs/0"), "{error}");
        let error = GraphFolder::open(&dir.path().join("none")).unwrap_err();
        assert!(
            error.to_string().contains("`avatar-export graphs`"),
            "{error}"
        );
    }
}
