//! The graphs of a preset without weights, at symbolic or at real sizes.
//!
//! They take seconds and no checkpoint. A shape checker or another engine builder can read them
//! before anyone downloads 60 GB.
use crate::families::{FamilyError, FamilyErrors, ModelShapes};
use crate::graph::error::WriteError;
use crate::graph::write::{WeightPlacement, to_model, write_model};
use crate::graph::{Builder, Graph};
use crate::synth::{self, Preset};
use engines::components::matmul;
use engines::dim::Bindings;
use engines::error_kind::ErrorKind;
use engines::graph_folder::{self, GraphFolder};
use engines::recipe::Recipe;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Graphs that cannot be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum GraphsError {
    #[error(transparent)]
    Build(#[from] FamilyErrors),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl GraphsError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Build(e) => e.kind(),
            Self::Write(e) => e.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
        }
    }
}

/// Pixels per token row or column: 8 by the VAE, 2 by the patches.
pub(crate) const TOKEN_PIXELS: usize = 16;
/// Fewest pixels a side: the motion history is packed at a quarter of the tokens.
const MIN_PIXELS: usize = 64;

/// Parses `W*H`, both multiples of 16 and at least 64.
///
/// # Errors
/// A message that says the wanted form.
pub fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let want = || {
        format!(
            "wanted W*H in multiples of {TOKEN_PIXELS}, at least {MIN_PIXELS}, \
             e.g. 704*384; got {text:?}"
        )
    };
    let (w, h) = text.split_once(['*', 'x', 'X']).ok_or_else(want)?;
    let side = |t: &str| {
        t.trim()
            .parse::<usize>()
            .ok()
            .filter(|n| n.is_multiple_of(TOKEN_PIXELS) && *n >= MIN_PIXELS)
            .ok_or_else(want)
    };
    Ok((side(w)?, side(h)?))
}

/// Returns the values of the symbols for `w` x `h` pixels, one lane, one actor and a ring of four
/// blocks.
pub fn bindings(w: usize, h: usize) -> Bindings {
    let (h, w) = (h / TOKEN_PIXELS, w / TOKEN_PIXELS);
    let sink = 2 * h * w + (h / 2) * (w / 2) + 4 * (h / 4) * (w / 4);
    let sizes = [
        ("h", h),
        ("w", w),
        ("H", 2 * h),
        ("W", 2 * w),
        ("S", 12 * h * w),
        ("C", sink),
        ("B", 1),
        ("G", 1),
        ("A", 1),
    ];
    sizes
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v as i64))
        .collect()
}

/// Writes every graph of a preset to `out`, with its weights as inputs. Returns the number of
/// graphs.
///
/// # Errors
/// A graph that cannot be built or written.
pub fn write(
    preset: Preset,
    layers: Option<usize>,
    recipe: Recipe,
    size: Option<(usize, usize)>,
    out: &Path,
) -> Result<usize, GraphsError> {
    let shapes = synth::shapes(preset, layers);
    let families = ModelShapes {
        dit: &shapes.dit,
        text: &shapes.text,
        vae: &shapes.vae,
        speech: &shapes.speech,
        config: &shapes.config,
        recipe,
    }
    .graphs()?;
    fs::create_dir_all(out).map_err(|source| GraphsError::Io {
        path: out.to_owned(),
        source,
    })?;
    let bindings = size.map(|(w, h)| bindings(w, h)).unwrap_or_default();
    let mut count = 0;
    for (_, graph) in families.iter().flat_map(|f| &f.graphs) {
        let model = to_model(&graph.bind(&bindings), WeightPlacement::AsInputs)?;
        write_model(&out.join(format!("{}.onnx", graph.name)), &model)?;
        count += 1;
    }
    write_model(
        &out.join(format!("{}.onnx", matmul::MATMUL.name)),
        &to_model(&matmul(recipe)?, WeightPlacement::AsInputs)?,
    )?;
    // The sizes of these graphs: a preset with fewer layers is another model.
    let set = GraphFolder::new(recipe, shapes.config.clone());
    let path = out.join(graph_folder::FILE);
    let text = serde_json::to_vec_pretty(&set).expect("a description is plain data");
    fs::write(&path, text).map_err(|source| GraphsError::Io { path, source })?;
    Ok(count + 1)
}

/// Builds the graph that measures a device: one matrix product.
fn matmul(recipe: Recipe) -> Result<Graph, GraphsError> {
    let none = BTreeMap::<String, Vec<usize>>::new();
    let b = Builder::new(matmul::MATMUL.name, &none).with_recipe(recipe);
    b.contract(&matmul::MATMUL);
    let product = b.input(&matmul::LEFT).matmul(b.input(&matmul::RIGHT));
    b.output(&matmul::PRODUCT, product);
    b.finish().map_err(|errors| {
        GraphsError::Build(FamilyErrors(vec![FamilyError::Graph {
            family: matmul::MATMUL.name,
            checkpoint: matmul::MATMUL.name.to_owned(),
            errors,
        }]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_size_is_named() {
        for bad in ["704", "0*0", "704*", "-1*384", "700*384", "48*64"] {
            assert!(
                parse_size(bad).unwrap_err().contains(&format!("{bad:?}")),
                "{bad}"
            );
        }
    }
}
