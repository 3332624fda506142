//! Exports a VAE whose weights are zero in some places. The graphs without the idle parts compute
//! the same, chunk after chunk, and have fewer nodes, weights and caches.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engines::backend::{Backend, FeatureCache, LoadOptions, Session, State};
use engines::components::symbols;
use engines::components::vae::{self, VaeConfig};
use engines::contract::{Contract, Port, Sizes};
use engines::manifest::Models;
use engines::memory::HostMemory;
use engines::recipe::Recipe;
use engines::tensor::Tensor;
use exporter::checkpoint::Checkpoint;
use exporter::export::{Event, Options, Request, export_with};
use exporter::families::ModelShapes;
use exporter::synth::{Preset, SynthOptions, shapes, synth};
use runtime::numbers::Geometry;
use runtime::placement::{Devices, Footprint, Footprints, Told, Workload};
use tempfile::TempDir;
use tests::golden::open;

/// Rows and columns of a latent frame.
const SIDE: usize = 4;
/// Calls of a stream.
const CHUNKS: usize = 4;

/// A random checkpoint whose VAE has zeros.
struct Zeroed {
    dir: TempDir,
    /// First byte of each tensor that was changed, in the file of the VAE.
    places: BTreeMap<String, usize>,
}

impl Zeroed {
    /// Makes a checkpoint with idle branches (their modules) and convolutions of one frame.
    fn new(branches: &[&str], convolutions: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SynthOptions {
            layers: Some(1),
            seed: 3,
        };
        synth(Preset::Tiny, &options, &dir.path().join("ckpt")).unwrap();
        let mut zeroed = Self {
            dir,
            places: BTreeMap::new(),
        };
        for module in branches {
            let attends = module.ends_with("middle.1");
            let last = if attends { "proj" } else { "residual.6" };
            zeroed.set(&format!("{module}.{last}.weight"), |_, _| 0.0);
            zeroed.set(&format!("{module}.{last}.bias"), |_, _| 0.0);
        }
        for path in convolutions {
            let older = |i: usize| i % 27 < 18;
            zeroed.set(
                &format!("{path}.weight"),
                |i, x| {
                    if older(i) { 0.0 } else { x }
                },
            );
        }
        zeroed
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("ckpt/Wan2.2-S2V-14B")
    }

    /// Changes a tensor of the VAE in place. `value` takes the number and the value of an element.
    fn set(&mut self, name: &str, value: impl Fn(usize, f32) -> f32) {
        let path = self.base().join("Wan2.1_VAE.pth");
        let old = Checkpoint::open_torch(&path)
            .and_then(|c| c.bytes(name).map(<[u8]>::to_vec))
            .unwrap_or_else(|e| panic!("{e}"));
        let floats = old.as_chunks::<4>().0.iter().enumerate();
        let new: Vec<u8> = floats
            .flat_map(|(i, x)| value(i, f32::from_le_bytes(*x)).to_le_bytes())
            .collect();
        let mut file = fs::read(&path).unwrap();
        // Random values stand at one place; zeros would stand at many.
        let find = || file.windows(old.len()).position(|window| window == old);
        let place = self.places.entry(name.to_owned());
        let at = *place.or_insert_with(|| find().expect("the archive is not compressed"));
        assert_eq!(file[at..at + old.len()], old, "{name}");
        file[at..at + new.len()].copy_from_slice(&new);
        fs::write(&path, file).unwrap();
    }

    /// Exports to a folder of this name, and returns the folder and the notices.
    fn export(&self, recipe: Recipe, name: &str) -> (PathBuf, Vec<String>) {
        let request = Request {
            ckpt_dir: self.base(),
            loras: Vec::new(),
            recipe,
            layers: None,
            out: self.dir.path().join(name),
        };
        let mut notices = Vec::new();
        export_with(&request, &Options::default(), &mut |event| {
            if let Event::Notice(text) = event {
                notices.push(text.to_owned());
            }
        })
        .unwrap_or_else(|e| panic!("{e}"));
        (request.out, notices)
    }
}

/// Returns numbers between -1 and 1 that do not repeat.
fn made_up(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let data = (0..count).map(|i| ((i + 7919 * seed) as f32 * 0.7390851).sin());
    Tensor::from_slice(shape, &data.collect::<Vec<_>>())
}

fn load(models: &Path, contract: &Contract) -> Box<dyn Session> {
    let loaded = open(models).load(contract.name, &LoadOptions::default());
    loaded.unwrap_or_else(|e| panic!("{e}"))
}

/// Returns the output of every call of a stream: first one frame, then four.
fn stream(models: &Path, graphs: [&'static Contract; 2]) -> Vec<Vec<f32>> {
    let config = Models::open(models).unwrap().config().vae.clone();
    let mut sizes = config.bindings();
    sizes.extend(symbols::bindings([
        (symbols::LATENT_ROWS, SIDE),
        (symbols::LATENT_COLUMNS, SIDE),
    ]));
    let shape = |port: &Port| -> Vec<usize> {
        let dims = port.dims();
        dims.iter()
            .map(|d| d.eval(&sizes).unwrap() as usize)
            .collect()
    };
    let mut sessions = graphs.map(|contract| load(models, contract));
    let mut cache = FeatureCache::new();
    let call = |chunk: usize| {
        let session = &mut sessions[chunk.min(1)];
        let contract = session.contract();
        if chunk > 0 {
            for port in contract.state {
                let dtype = port.dtype(session.recipe());
                let zeros = || Tensor::zeros(dtype, &shape(port));
                cache.entry(port.name).or_insert_with(zeros);
            }
        }
        let input = &contract.inputs[0];
        let given = made_up(&shape(input), chunk);
        let state = State::Replace(&mut cache);
        let mut out = session
            .run(&[(input, given.view())], state)
            .unwrap_or_else(|e| panic!("{e}"));
        out.take(&contract.outputs[0]).as_slice::<f32>().to_vec()
    };
    (0..CHUNKS).map(call).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Counts the nodes of a graph of the VAE at the tiny sizes.
fn nodes(config: &VaeConfig, name: &str) -> usize {
    let mut shapes = shapes(Preset::Tiny, Some(1));
    shapes.config.vae = config.clone();
    let model = ModelShapes {
        dit: &shapes.dit,
        text: &shapes.text,
        vae: &shapes.vae,
        speech: &shapes.speech,
        config: &shapes.config,
        recipe: Recipe::Fp32,
    };
    let families = model.graphs().unwrap_or_else(|e| panic!("{e}"));
    let mut graphs = families.iter().flat_map(|f| &f.graphs);
    graphs.find(|(_, g)| g.name == name).unwrap().1.nodes.len()
}

/// Idle branches and convolutions of one frame in both halves. Values change their layout within a
/// block and between blocks, in both directions, and meet shortcuts and resampling in both.
const BRANCHES: [&str; 7] = [
    "decoder.middle.1",
    "decoder.upsamples.1",
    "decoder.upsamples.8",
    "decoder.upsamples.12",
    "encoder.downsamples.0",
    "encoder.downsamples.3",
    "encoder.middle.1",
];
const CONVOLUTIONS: [&str; 16] = [
    "decoder.middle.0.residual.6",
    "decoder.middle.2.residual.2",
    "decoder.upsamples.4.residual.6",
    "decoder.upsamples.5.residual.2",
    "decoder.upsamples.5.residual.6",
    "decoder.upsamples.9.residual.2",
    "decoder.upsamples.10.residual.6",
    "decoder.upsamples.13.residual.6",
    "decoder.head.2",
    "encoder.conv1",
    "encoder.downsamples.1.residual.2",
    "encoder.downsamples.4.residual.6",
    "encoder.downsamples.6.residual.6",
    "encoder.downsamples.7.residual.2",
    "encoder.middle.2.residual.6",
    "encoder.head.2",
];

/// Exports the zeros, then the same with 1e-30 in the place of one zero of each part. That value
/// keeps the part, and moves no result by as much as a rounding.
fn pruned_and_whole(ckpt: &mut Zeroed, recipe: Recipe) -> [PathBuf; 2] {
    let (pruned, notices) = ckpt.export(recipe, "pruned");
    assert_eq!(notices.len(), 1, "{notices:?}");
    let tensors: Vec<String> = ckpt.places.keys().cloned().collect();
    for tensor in tensors.iter().filter(|name| name.ends_with("weight")) {
        ckpt.set(tensor, |i, x| if i == 5 { 1e-30 } else { x });
    }
    let (whole, notices) = ckpt.export(recipe, "whole");
    assert!(notices.is_empty(), "{notices:?}");
    [pruned, whole]
}

/// The graphs of the encoder and of the decoder: the first chunk's and the following ones'.
const STREAMS: [[&Contract; 2]; 2] = [
    [&vae::ENCODER_FIRST, &vae::ENCODER_NEXT],
    [&vae::DECODER_FIRST, &vae::DECODER_NEXT],
];

#[track_caller]
fn assert_equal(branches: &[&str], convolutions: &[&str]) {
    let mut ckpt = Zeroed::new(branches, convolutions);
    let [pruned, whole] = pruned_and_whole(&mut ckpt, Recipe::Fp32);
    for graphs in STREAMS {
        let (found, want) = (stream(&pruned, graphs), stream(&whole, graphs));
        for (chunk, (found, want)) in found.iter().zip(&want).enumerate() {
            assert_eq!(found.len(), want.len());
            let apart = found.iter().zip(want).map(|(a, b)| (a - b).abs());
            let worst = apart.fold(0.0, f32::max);
            let name = graphs[chunk.min(1)].name;
            // The sums have up to 864 terms of about 1, in another order.
            assert!(worst <= 1e-5, "{name}, chunk {chunk}: {worst}");
            let varies = |x: &f32| x.abs() > 0.01 && x.abs() < 0.99;
            assert!(want.iter().any(varies), "{name} computes constants");
        }
    }
}

/// Returns the root mean square of the differences of two streams.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let squares = pairs.map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.iter().map(Vec::len).sum::<usize>() as f64).sqrt()
}

#[test]
fn graphs_without_the_idle_parts_compute_the_same() {
    assert_equal(&BRANCHES, &CONVOLUTIONS);
}

/// Without a convolution of one frame, every value stays a video.
#[test]
fn branches_alone_can_be_left_out() {
    assert_equal(&BRANCHES, &[]);
}

/// In bf16 both differ from f32 by their roundings, by the same amount.
#[test]
fn graphs_in_bf16_are_as_exact_without_the_idle_parts() {
    let mut ckpt = Zeroed::new(&BRANCHES, &CONVOLUTIONS);
    let [pruned, whole] = pruned_and_whole(&mut ckpt, Recipe::Bf16);
    let (exact, _) = ckpt.export(Recipe::Fp32, "exact");
    for graphs in STREAMS {
        let exact = stream(&exact, graphs);
        let [found, want] = [&pruned, &whole].map(|m| distance(&stream(m, graphs), &exact));
        let name = graphs[1].name;
        assert!(
            found <= 1.1 * want,
            "{name}: {found}, with all parts {want}"
        );
        assert!(want > 1e-4, "{name}: bf16 rounds");
    }
}

#[test]
fn idle_parts_leave_no_node_no_weight_and_no_cache() {
    let ckpt = Zeroed::new(&BRANCHES, &CONVOLUTIONS);
    let (pruned, notices) = ckpt.export(Recipe::Fp32, "pruned");
    assert_eq!(
        notices,
        [
            "VAE: 7 of 26 branches add zero and are left out; 16 of 52 causal convolutions see one \
          frame and have no cache"
        ]
    );
    let models = Models::open(&pruned).unwrap();
    let config = &models.config().vae;
    assert_eq!(config.idle_branches, names(&BRANCHES));
    assert_eq!(config.frame_convolutions, names(&CONVOLUTIONS));
    let gone = |name: &str| {
        let inside = |module: &&str| name.starts_with(&format!("{module}."));
        BRANCHES.iter().any(inside) || CONVOLUTIONS.contains(&name)
    };
    for whole in vae::ALL {
        let (entry, contract) = models.component(whole.name).unwrap();
        let want = whole.state.iter().filter(|port| !gone(port.name));
        let state: Vec<&str> = contract.state.iter().map(|port| port.name).collect();
        assert_eq!(state, want.map(|port| port.name).collect::<Vec<_>>());
        assert!(state.len() < whole.state.len());
        let session = load(&pruned, &whole);
        assert_eq!(session.contract(), contract);
        let idle = |weight: &&String| {
            let branch = BRANCHES
                .iter()
                .find(|m| weight.starts_with(&format!("{m}.")));
            branch.is_some() && !weight.contains(".shortcut.")
        };
        assert_eq!(entry.weights.keys().find(idle), None, "{}", whole.name);
        let none = VaeConfig {
            idle_branches: BTreeSet::new(),
            frame_convolutions: BTreeSet::new(),
            ..config.clone()
        };
        let only_branches = VaeConfig {
            frame_convolutions: BTreeSet::new(),
            ..config.clone()
        };
        assert!(nodes(&only_branches, whole.name) < nodes(&none, whole.name));
    }
}

/// Doubling has a set of 2x3 weights for each of two rows. The planner counts the same
/// (`runtime/src/planner/tests.rs`).
#[test]
fn doubling_on_frames_stores_two_sets_of_six_weights() {
    let mut ckpt = Zeroed::new(&[], &["decoder.head.2"]);
    let [pruned, whole] = pruned_and_whole(&mut ckpt, Recipe::Fp32);
    let elements = |folder: &Path| -> usize {
        let models = Models::open(folder).unwrap();
        let (entry, _) = models.component(vae::DECODER_NEXT.name).unwrap();
        let kernels = entry
            .weights
            .keys()
            .filter(|w| w.contains("resample.1.weight"));
        let sizes = kernels.map(|name| {
            let (_, weight) = models.weight(entry, &entry.weights[name]).unwrap();
            weight.shape.iter().product::<usize>()
        });
        sizes.sum()
    };
    assert_eq!(9 * elements(&pruned), 12 * elements(&whole));
}

/// Counts the bytes of the decoder's device for a video of 64x64 pixels.
fn footprint(models: &Path) -> Footprint {
    let backend = open(models);
    let config = backend.models().config();
    let plan = Told::default().plan(config.dit.layers, 4).unwrap();
    let geometry = Geometry::new(&config.dit, "64*64".parse().unwrap(), 48).unwrap();
    let work = Workload {
        config,
        geometry: &geometry,
        swaps: false,
        passes: 1,
        encodes_motion: false,
        speech_frames: 100,
        speech_in_windows: false,
    };
    let device: Arc<dyn Backend> = Arc::new(backend.on(HostMemory::new("cpu:0", u64::MAX)));
    let counted = Footprints::new(&Devices::each(vec![device]), &plan, work).unwrap();
    counted.devices[&0]
}

/// A call reads the old caches and writes new ones, so each counts twice.
#[test]
fn a_footprint_counts_the_caches_that_are_there() {
    let mut ckpt = Zeroed::new(&["decoder.upsamples.14"], &["decoder.head.2"]);
    let models = pruned_and_whole(&mut ckpt, Recipe::Fp32);
    let [pruned, whole] = models.each_ref().map(|m| footprint(m).activations);
    // Three caches of eight channels and two frames.
    assert_eq!(whole - pruned, 2 * 3 * (8 * 2 * 64 * 64 * 4));
}

/// A manifest whose list differs from its graphs is refused.
#[test]
fn a_manifest_that_names_other_zeros_is_refused() {
    let ckpt = Zeroed::new(&["decoder.upsamples.14"], &[]);
    let (pruned, _) = ckpt.export(Recipe::Fp32, "pruned");
    let path = pruned.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"decoder.upsamples.14\"", "\"decoder.upsamples.13\"");
    assert_ne!(text, changed);
    fs::write(&path, changed).unwrap();
    let error = Models::open(&pruned).unwrap_err().to_string();
    assert!(
        error.contains("vae_decoder_first: wanted fingerprint"),
        "{error}"
    );
}
