//! TensorRT itself on every exported graph, with no GPU: what it refuses to parse or to build fails
//! here. Needs the libraries that `scripts/setup --tensorrt` fetches; `scripts/test` runs it, or
//! says that it was told to skip it.
use engines::backend::tensorrt::library::Library;
use engines::backend::tensorrt::{Flavour, TensorRtError, build};
use engines::components::vae;
use engines::manifest::Models;
use engines::recipe::Recipe;
use exporter::build::sizes::Limits;
use exporter::build::{
    BuildInput, InsideWeights, Item, LayerDetail, Made, PeakMemory, Request, items, library,
    prepare,
};
use exporter::export;
use exporter::families::ModelShapes;
use exporter::graph::data::Placed;
use exporter::graph::write::{WeightPlacement, encode, to_model};
use exporter::synth::{self, Preset, SynthOptions};
use onnx_protobuf::{Message, ModelProto};
use std::path::Path;
use std::time::Instant;

/// Ampere, Ada and Blackwell cards.
const CARDS: [u32; 3] = [86, 89, 120];

fn request(input: BuildInput, (width, height): (usize, usize), sm: u32, out: &Path) -> Request {
    Request {
        input,
        limits: Limits {
            width,
            height,
            ..Limits::default()
        },
        flavour: Flavour::Rtx,
        sm,
        workspace: 4 << 30,
        level: 3,
        weights: InsideWeights::Resident,
        detail: LayerDetail::Names,
        memory_limit: u64::MAX,
        skip: Vec::new(),
        out: out.to_owned(),
        command: String::new(),
    }
}

/// Each distinct graph once: the layers of the speech encoder between the first and the last differ
/// by their weights alone.
fn distinct(items: Vec<Item>) -> Vec<Item> {
    let middle = |name: &str| {
        name.strip_prefix("audio_encoder_layer.")
            .and_then(|n| n.parse::<usize>().ok())
            .is_some_and(|n| (1..23).contains(&n))
    };
    items.into_iter().filter(|i| !middle(&i.name)).collect()
}

fn make(request: &Request, item: &Item, graph: &Path) -> Result<Made, TensorRtError> {
    let library = Library::load()?;
    library::make(library, request, item, graph, Box::new(|_, _, _| {}))
}

/// Builds every distinct graph that `keep` names; one line each, and every refusal at once.
fn build_all(what: &str, request: &Request, keep: &dyn Fn(&str) -> bool) {
    let all = distinct(items(request, "1.7.1").unwrap_or_else(|e| panic!("{e}")));
    exporter::build::write_graphs(request, &all).unwrap();
    let mut refused = Vec::new();
    for item in all.iter().filter(|i| keep(&i.name)) {
        let graph = request.out.join("graphs").join(item.graph_file());
        let start = format!(
            "{what} {} sm{} {:<24}",
            request.input.recipe(),
            request.sm,
            item.name
        );
        match make(request, item, &graph) {
            Ok(made) => {
                println!(
                    "{start} {:>10} bytes {:>6.2} s {:>5} MB of host memory",
                    made.plan.len(),
                    made.seconds,
                    made.memory / 1_000_000
                );
                // What is inside is inside: no smaller, whatever else it holds.
                assert!(
                    !item.buildable() || made.plan.len() as u64 > item.weights,
                    "{start}"
                );
            }
            Err(e) => refused.push(format!("{start} {e}")),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn every_graph_of_the_tiny_model_builds_for_every_card() {
    let out = tempfile::tempdir().unwrap();
    for (recipe, cards) in [(Recipe::Bf16, &CARDS[..]), (Recipe::Fp32, &[89][..])] {
        for &sm in cards {
            let input = BuildInput::Preset(Preset::Tiny, recipe);
            build_all("tiny", &request(input, (256, 256), sm, out.path()), &|_| {
                true
            });
        }
    }
}

#[test]
fn every_graph_of_the_published_model_builds_at_its_size() {
    let out = tempfile::tempdir().unwrap();
    for sm in CARDS {
        let input = BuildInput::Preset(Preset::Full, Recipe::Bf16);
        // One card for all of them; for the others the layers, and the decoder as it streams.
        let often = ["dit_layer", "dit_layer_audio", "vae_decoder_next"];
        let keep = |name: &str| sm == 89 || often.contains(&name);
        build_all("full", &request(input, (704, 384), sm, out.path()), &keep);
    }
}

#[test]
fn an_export_builds_with_its_weights_inside() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = dir.path().join("ckpt");
    let options = SynthOptions {
        layers: Some(2),
        seed: 7,
    };
    synth::synth(Preset::Tiny, &options, &ckpt).unwrap();
    let export = export::Request {
        ckpt_dir: ckpt.join("Wan2.2-S2V-14B"),
        loras: Vec::new(),
        layers: None,
        recipe: Recipe::Bf16,
        out: dir.path().join("models"),
    };
    export::export(&export, &mut |_, _, _| {}).unwrap();
    let input = BuildInput::Models(Box::new(Models::open(&export.out).unwrap()));
    let out = dir.path().join("engines");
    build_all("export", &request(input, (256, 256), 89, &out), &|_| true);
}

/// Small numbers of either sign, as bf16 and as f32; no two stretches alike, since TensorRT stores
/// equal weights once.
fn write_noise(path: &Path, bytes: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state & 0x81ff_81ff_81ff_81ff | 0x3c00_3c00_3c00_3c00).to_le_bytes()
    });
    std::fs::write(path, words.collect::<Vec<u8>>()).unwrap();
}

#[test]
fn the_published_decoder_builds_with_its_weights_inside() {
    let s = synth::shapes(Preset::Full, Some(1));
    let shapes = ModelShapes {
        recipe: Recipe::Bf16,
        dit: &s.dit,
        text: &s.text,
        vae: &s.vae,
        speech: &s.speech,
        config: &s.config,
    };
    let families = shapes.graphs().unwrap();
    let mut graphs = families.iter().flat_map(|f| &f.graphs);
    let (contract, graph) = graphs.find(|(c, _)| *c == &vae::DECODER_NEXT).unwrap();
    let mut end = 0;
    let placed = graph.weights.iter().map(|w| {
        let (offset, length, file) = (end, w.bytes(), "noise.data".to_owned());
        end += length.next_multiple_of(256);
        (
            w.name.clone(),
            Placed {
                file,
                offset,
                length,
            },
        )
    });
    let layout = placed.collect();
    let dir = tempfile::tempdir().unwrap();
    write_noise(&dir.path().join("noise.data"), end);
    let model = to_model(graph, WeightPlacement::External(&layout)).unwrap();
    let sizes = Limits::default().of(contract, &s.config);
    let prepared = prepare::prepare(&encode(&model), &sizes).unwrap();
    let path = dir.path().join("vae_decoder_next.onnx");
    std::fs::write(&path, &prepared.onnx).unwrap();
    let library = Library::load().unwrap();
    for sm in CARDS {
        let options = build::Options {
            sm,
            workspace: Some(4 << 30),
            level: 3,
            weights: build::WeightMemory::Resident,
            ranges: &[],
            detail: build::Detail::Names,
        };
        let (watch, start) = (PeakMemory::start(), Instant::now());
        let plan = build::build(library, &path, &options, Box::new(|_, _, _| {})).unwrap();
        println!(
            "full bf16 sm{sm} vae_decoder_next with {} bytes of weights inside \
             {:>10} bytes {:>6.2} s {:>5} MB of host memory",
            prepared.weights,
            plan.len(),
            start.elapsed().as_secs_f64(),
            watch.growth().unwrap_or(0) / 1_000_000
        );
        assert!(plan.len() as u64 > prepared.weights);
    }
}

/// The control: without what the preparation puts in, or with what TensorRT lacks, a build fails
/// and says why.
#[test]
fn a_graph_that_tensorrt_refuses_is_an_error_that_says_why() {
    let out = tempfile::tempdir().unwrap();
    let input = BuildInput::Preset(Preset::Tiny, Recipe::Fp32);
    let request = request(input, (256, 256), 89, out.path());
    let all = items(&request, "1.7.1").unwrap();
    let layer = all.iter().find(|i| i.name == "dit_layer").unwrap();
    type Spoil = fn(&mut ModelProto);
    let cases: [(&str, Spoil); 2] = [
        ("Attention", |m| {
            for n in &mut m.graph.as_mut().unwrap().node {
                n.attribute.retain(|a| a.name != "TRT_decomposable");
            }
        }),
        ("TensorScatter", |m| {
            for a in m
                .graph
                .as_mut()
                .unwrap()
                .node
                .iter_mut()
                .flat_map(|n| &mut n.attribute)
            {
                if a.name == "mode" {
                    a.s = b"circular".to_vec();
                }
            }
        }),
    ];
    for (word, spoil) in cases {
        let mut model = ModelProto::parse_from_bytes(&layer.prepared.onnx).unwrap();
        spoil(&mut model);
        let graph = out.path().join("spoilt.onnx");
        std::fs::write(&graph, encode(&model)).unwrap();
        let error = make(&request, layer, &graph).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("spoilt.onnx"),
            "{error}"
        );
    }
}

#[test]
fn a_card_that_the_library_does_not_know_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let input = BuildInput::Preset(Preset::Tiny, Recipe::Bf16);
    let request = request(input, (256, 256), 90, out.path());
    let all = items(&request, "1.7.1").unwrap();
    exporter::build::write_graphs(&request, &all).unwrap();
    let graph = out.path().join("graphs").join(all[0].graph_file());
    let error = make(&request, &all[0], &graph).unwrap_err();
    assert!(matches!(error, TensorRtError::Sm { sm: 90, .. }), "{error}");
}

#[test]
fn a_graph_can_be_parsed_without_building_it() {
    let out = tempfile::tempdir().unwrap();
    let input = BuildInput::Preset(Preset::Tiny, Recipe::Bf16);
    let request = request(input, (256, 256), 89, out.path());
    let all = items(&request, "1.7.1").unwrap();
    exporter::build::write_graphs(&request, &all).unwrap();
    let graph = out.path().join("graphs/dit_head.onnx");
    build::parse(Library::load().unwrap(), &graph).unwrap();
    std::fs::write(&graph, "not a graph").unwrap();
    assert!(build::parse(Library::load().unwrap(), &graph).is_err());
}

#[test]
fn a_scratch_limit_that_is_too_low_is_named() {
    let out = tempfile::tempdir().unwrap();
    let input = BuildInput::Preset(Preset::Full, Recipe::Bf16);
    let mut request = request(input, (704, 384), 89, out.path());
    request.workspace = 64 << 20;
    let all = items(&request, "1.7.1").unwrap();
    exporter::build::write_graphs(&request, &all).unwrap();
    let layer = all.iter().find(|i| i.name == "dit_layer").unwrap();
    let graph = out.path().join("graphs/dit_layer.onnx");
    let error = make(&request, layer, &graph).unwrap_err().to_string();
    assert!(error.contains("limited to 64 MiB"), "{error}");
}
