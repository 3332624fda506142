//! TensorRT itself on every exported graph, with no GPU: what it refuses to parse or to build fails here. Needs the libraries that
//! `scripts/setup --tensorrt` fetches; `scripts/test` runs it, or says that it was told to skip it.
use engines::backend::tensorrt::build::{self, Detail, InputRange, Options, WeightMemory};
use engines::backend::tensorrt::library::Library;
use engines::contract::{Contract, Weights};
use engines::recipe::Recipe;
use exporter::build::prepare::prepare;
use exporter::build::sizes::Limits;
use exporter::export::{ShapeSources, generic};
use exporter::graph::Graph;
use exporter::graph::write::{WeightPlacement, to_model};
use exporter::synth::{self, Preset};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Every distinct graph of a preset, weights as inputs: layers of a stack are one graph.
fn graphs(
    preset: Preset,
    recipe: Recipe,
) -> (
    BTreeMap<String, (&'static Contract, Graph)>,
    engines::manifest::ModelConfig,
) {
    // Two layers: one with audio, one without.
    let s = synth::shapes(preset, Some(2));
    let sources = ShapeSources {
        recipe,
        dit: &s.dit,
        text: &s.text,
        vae: &s.vae,
        speech: &s.speech,
        config: &s.config,
    };
    let families = sources
        .graphs()
        .unwrap_or_else(|e| panic!("{preset:?}: {e}"));
    let graphs = families.into_iter().flat_map(|f| f.graphs);
    let named = graphs.map(|(contract, graph)| match contract.weights {
        Weights::Bound => (
            contract.name.to_owned(),
            (contract, generic(contract, &graph)),
        ),
        // All but the first and the last layer of the speech encoder are equal.
        Weights::Inside => {
            let name = graph.name.split('.').next().unwrap_or_default();
            (format!("{name}/{}", contract.name), (contract, graph))
        }
    });
    (named.collect(), s.config)
}

fn build_all(
    preset: Preset,
    recipe: Recipe,
    limits: &Limits,
    sms: &[u32],
    keep: &dyn Fn(&str) -> bool,
) {
    let library = Library::load().unwrap_or_else(|e| panic!("{e}"));
    let folder = tempfile::tempdir().unwrap();
    let (graphs, config) = graphs(preset, recipe);
    let mut refused = Vec::new();
    for (name, (contract, graph)) in graphs.iter().filter(|(n, _)| keep(n)) {
        let model = to_model(graph, WeightPlacement::AsInputs).unwrap();
        let p = prepare(&model.encode_to_vec(), &limits.of(contract, &config))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let path = folder.path().join("graph.onnx");
        std::fs::write(&path, &p.onnx).unwrap();
        let ranges: Vec<InputRange> = p
            .varying
            .into_iter()
            .map(|v| InputRange {
                name: v.name,
                min: v.min,
                opt: v.opt,
                max: v.max,
            })
            .collect();
        for &sm in sms {
            let options = Options {
                sm,
                workspace: None,
                level: 3,
                weights: WeightMemory::Resident,
                ranges: &ranges,
                detail: Detail::Names,
            };
            let start = Instant::now();
            match build_one(library, &path, &options) {
                Ok(bytes) => println!(
                    "{recipe} {name:40} sm{sm} {bytes:>10} bytes {:6.2} s",
                    start.elapsed().as_secs_f64()
                ),
                Err(e) => refused.push(format!(
                    "{recipe} {name} sm{sm}: {}",
                    e.chars().take(600).collect::<String>()
                )),
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

fn build_one(library: Library, path: &Path, options: &Options<'_>) -> Result<usize, String> {
    build::build(library, path, options, Box::new(|_, _, _| {}))
        .map(|b| b.len())
        .map_err(|e| e.to_string())
}

#[test]
fn every_graph_builds_at_tiny_shapes() {
    let limits = Limits {
        width: 256,
        height: 256,
        ..Limits::default()
    };
    build_all(Preset::Tiny, Recipe::Fp32, &limits, &[89], &|_| true);
}

#[test]
fn tmp_full() {
    let limits = Limits::default();
    build_all(Preset::Full, Recipe::Bf16, &limits, &[86, 89, 120], &|n| {
        n == "dit_layer"
    });
    build_all(Preset::Full, Recipe::Bf16, &limits, &[89], &|n| {
        n != "dit_layer"
    });
}
#[test]
fn tmp_tiny() {
    let limits = Limits {
        width: 256,
        height: 256,
        ..Limits::default()
    };
    build_all(Preset::Tiny, Recipe::Bf16, &limits, &[86, 89, 120], &|_| {
        true
    });
}
