//! Places the models as every machine would, on virtual devices with memory of their own. Compares
//! the numbers, counts the memory, and reads the refusals. Each run is one process with one thread,
//! so that nothing but the placement differs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engines::backend::Backend;
use engines::backend::ort::Ort;
use engines::claims::Existing;
use engines::error_kind::ErrorKind;
use engines::memory::{Class, HostMemory, Ledger, Memory};
use engines::profile::Profile;
use engines::recipe::Recipe;
use engines::tensor::Tensor;
use engines::tensor_file;
use exporter::checkpoint::{LoraFile, LoraScale};
use exporter::export::{Request, export};
use exporter::synth::{Preset, SynthOptions, synth};
use runtime::chain::{Cancel, Event, Mode, Observer, Silent};
use runtime::generate::{self, Clips, Engine, GenerateError, generate};
use runtime::inputs::Speech;
use runtime::numbers::{Geometry, Timing};
use runtime::placement::{
    Devices, Footprints, Lanes, Latency, PlacementError, Residency, Rings, Told, Workload,
};
use runtime::planner::{self, Ask, PlannerError};
use tempfile::TempDir;
use tests::files::{Samples, listing, voice, wav};
use tests::golden::{Golden, LORA_SCALE, bf16_models, models, open};
use tests::program::{Finished, Program};

use crate::stream::Run;

/// The machines of the design, and the flags that make a virtual one of each.
const MACHINES: [(&str, &[&str]); 9] = [
    (
        "5x80g: a step a device, the VAE apart",
        &["--stages", "1x4", "--vae-device", "4"],
    ),
    ("4x80g: the VAE shares", &["--stages", "1x4"]),
    (
        "4x24g: layers split, all steps on each",
        &["--stages", "4x1", "--lanes", "4"],
    ),
    ("2x48g", &["--stages", "2x1", "--lanes", "4"]),
    ("2x2", &["--stages", "2x2", "--lanes", "2"]),
    ("1x80g: all resident", &["--lanes", "4"]),
    (
        "1x24g: all streams",
        &[
            "--lanes",
            "4",
            "--offload_model",
            "True",
            "--offload_kv_cache",
        ],
    ),
    (
        "1x24g: half resident, rings stay",
        &["--lanes", "4", "--resident-layers", "2"],
    ),
    (
        "2x16g: one layer resident, rings stream, lane by lane",
        &[
            "--stages",
            "2x1",
            "--resident-layers",
            "1",
            "--host-rings",
            "--slots",
            "3",
        ],
    ),
];

/// An export of a random checkpoint of four layers.
struct Model {
    dir: TempDir,
}

impl Model {
    fn new(preset: Preset) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SynthOptions {
            layers: Some(4),
            seed: 5,
        };
        let made = synth(preset, &options, &dir.path().join("ckpt")).unwrap();
        let request = Request {
            ckpt_dir: made.ckpt_dir,
            loras: vec![LoraFile {
                path: made.lora,
                scale: LoraScale::Scale(LORA_SCALE),
                strength: 1.0,
            }],
            layers: None,
            recipe: engines::recipe::Recipe::Fp32,
            out: dir.path().join("models"),
        };
        export(&request, &mut |_, _, _| {}).unwrap();
        Self { dir }
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }
}

/// Makes two clips of two blocks: the ring wraps, and the anchor is swapped between them.
fn command(models: &Path, dir: &Path, more: &[&str]) -> Finished {
    let golden = Golden::carried();
    let mut command = Program::Run.command();
    let words = "generate --prompt x --size 64*64 --infer_frames 24 --num_clip 2 --threads 1";
    command.args(words.split(' ')).arg("--models").arg(models);
    command.arg("--image").arg(golden.input("ref.png"));
    let audio = golden.input("speech_16k_mono.wav");
    command.arg("--audio").arg(audio).args(more);
    command.arg("--out").arg(dir.join("video.mp4"));
    command.arg("--trace").arg(dir.join("trace.safetensors"));
    Finished::from(command.output().unwrap())
}

fn traced(models: &Path, more: &[&str]) -> BTreeMap<String, Tensor> {
    let dir = tempfile::tempdir().unwrap();
    command(models, dir.path(), more).ok();
    tensor_file::read(&dir.path().join("trace.safetensors")).unwrap()
}

fn differing(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> Vec<String> {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let same = |name: &String| a[name].bytes() == b[name].bytes();
    a.keys().filter(|name| !same(name)).cloned().collect()
}

#[track_caller]
fn assert_same(preset: Preset, machines: &[(&str, &[&str])]) {
    let model = Model::new(preset);
    let want = traced(&model.models(), &["--lanes", "1"]);
    assert!(want.contains_key("frames_u8") && want.contains_key("block3.latents"));
    for (machine, more) in machines {
        let more = [*more, &["--device-memory", "4GB"]].concat();
        let got = traced(&model.models(), &more);
        assert_eq!(differing(&got, &want), Vec::<String>::new(), "{machine}");
    }
}

#[test]
fn every_machine_computes_the_same_bits() {
    assert_same(Preset::Tiny, &MACHINES);
}

#[test]
fn every_kind_of_machine_computes_the_same_bits_at_small() {
    let kinds = [MACHINES[0], MACHINES[2], MACHINES[6], MACHINES[8]];
    assert_same(Preset::Small, &kinds);
}

/// Makes five blocks, in clips of three, on rings of two. One device has all layers, or each of
/// four has one.
#[test]
fn a_shorter_ring_gives_the_same_bits_everywhere_and_another_video() {
    let model = Model::new(Preset::Tiny);
    let of = |ring: &str, more: &[&str]| {
        let ring = ["--infer_frames", "36", "--ring-blocks", ring];
        traced(&model.models(), &[&ring[..], more].concat())
    };
    let short = of("2", &[]);
    let stages = ["--stages", "4x1", "--lanes", "4", "--device-memory", "4GB"];
    assert_eq!(differing(&of("2", &stages), &short), Vec::<String>::new());
    let differ = differing(&of("3", &[]), &short);
    let has = |name: &str| differ.iter().any(|d| d == name);
    assert!(has("block2.latents") && has("block4.latents"), "{differ:?}");
    assert!(!has("block1.latents"), "{differ:?}");
    let dir = tempfile::tempdir().unwrap();
    let profile = include_str!("../../engines/profiles/2x24g.toml");
    let profile = profile.replace("ring_blocks = 4", "ring_blocks = 2");
    let file = dir.path().join("short.toml");
    std::fs::write(&file, profile).unwrap();
    let file = file.to_str().unwrap();
    let planned = ["--infer_frames", "36", "--virtual", "--profile", file];
    let planned = traced(&model.models(), &planned);
    assert_eq!(differing(&planned, &short), Vec::<String>::new());
    let message =
        command(&model.models(), dir.path(), &["--ring-blocks", "3"]).error(ErrorKind::Usage);
    assert!(
        message.contains("ring_blocks") && message.contains("got 3"),
        "{message}"
    );
}

/// A record of the bytes on device 0 at the start of each phase. Device 0 has the encoders and the
/// transformer, device 1 the VAE decoder.
#[derive(Default)]
struct Watch {
    memories: Vec<Arc<HostMemory>>,
    seen: Mutex<Vec<(String, u64)>>,
}

impl Observer for Watch {
    fn event(&self, event: &Event<'_>) {
        let name = match event {
            Event::Phase(phase) => phase.name().to_owned(),
            Event::Denoised { block: 0, .. } => "block 0".to_owned(),
            _ => return,
        };
        let held = self.memories[0].ledger().counts().total();
        self.seen.lock().unwrap().push((name, held));
    }
}

#[test]
fn encoders_are_freed_before_the_next_is_loaded_and_all_before_the_transformer() {
    let (run, backend) = (Run::new(), open(models()));
    let memories: Vec<Arc<HostMemory>> = (0..2)
        .map(|i| HostMemory::new(format!("cpu:{i}"), u64::MAX))
        .collect();
    let devices = each(&backend, memories.iter().map(Arc::clone));
    let watch = Watch {
        memories: memories.clone(),
        ..Watch::default()
    };
    let told = Told {
        vae_device: Some(1),
        ..Told::default()
    };
    let (models, request) = (backend.models().clone(), run.request());
    let plan = told
        .plan(models.config().dit.layers, request.steps)
        .unwrap();
    let engine = Engine::new(models, devices, plan);
    generate(&engine, &request, &watch, &Cancel::default()).unwrap();
    drop(engine);
    let seen = watch.seen.into_inner().unwrap();
    let of = |name: &str| seen.iter().find(|(n, _)| n == name).unwrap().1;
    for phase in [
        "encoding the prompt",
        "encoding the speech",
        "encoding the picture",
        "denoising",
    ] {
        assert_eq!(of(phase), 0, "{phase}");
    }
    let layer = backend.weights("dit_layer.00").unwrap().slab_bytes() as u64;
    assert!(of("block 0") > 3 * layer, "the transformer is there");
    for memory in &memories {
        let counts = memory.ledger().counts();
        assert_eq!(counts.total(), 0, "everything is freed");
    }
    // The other device held the decoder's graphs and caches, and no ring.
    let decoder = backend.weights("vae_decoder_next").unwrap().slab_bytes() as u64;
    assert!(memories[1].ledger().counts().peak > 2 * decoder);
    assert_eq!(memories[1].ledger().counts().of(Class::Rings), 0);
}

/// Makes a virtual device on each of `memories`.
fn each(backend: &Ort, memories: impl Iterator<Item = Arc<HostMemory>>) -> Devices {
    let device = |m: Arc<HostMemory>| -> Arc<dyn Backend> { Arc::new(backend.on(m)) };
    Devices::each(memories.map(device).collect())
}

/// Runs once in this process on devices with the given budgets. Returns the peak bytes of each
/// device and of the host.
fn held(
    told: &Told,
    request: &generate::Request,
    budgets: &dyn Fn(usize) -> u64,
) -> Result<(Vec<u64>, u64), GenerateError> {
    let backend = open(models());
    let layers = backend.models().config().dit.layers;
    let plan = told.plan(layers, request.steps).unwrap();
    let last = *plan.device_ids().last().unwrap();
    let memories: Vec<Arc<HostMemory>> = (0..=last)
        .map(|i| HostMemory::new(format!("cpu:{i}"), budgets(i)))
        .collect();
    let host = Ledger::new("host", u64::MAX);
    let devices = each(&backend, memories.iter().map(Arc::clone));
    let devices = devices.with_host(Arc::clone(&host));
    let engine = Engine::new(backend.models().clone(), devices, plan);
    generate(&engine, request, &Silent, &Cancel::default())?;
    let peak = |m: &Arc<HostMemory>| m.ledger().counts().peak;
    Ok((memories.iter().map(peak).collect(), host.counts().peak))
}

pub(crate) fn wanted(told: &Told, request: &generate::Request) -> Footprints {
    let samples = Speech::open(&request.audio).unwrap().samples.len();
    let backend = open(models());
    let frames = backend.models().config().speech.frames(samples).unwrap();
    counted(told, request, frames, false)
}

fn counted(
    told: &Told,
    request: &generate::Request,
    speech_frames: usize,
    speech_in_windows: bool,
) -> Footprints {
    let backend = open(models());
    let config = backend.models().config();
    let plan = told.plan(config.dit.layers, request.steps).unwrap();
    let last = *plan.device_ids().last().unwrap();
    let memories = (0..=last).map(|i| HostMemory::new(format!("cpu:{i}"), u64::MAX));
    let devices = each(&backend, memories);
    let geometry = Geometry::new(&config.dit, request.size, request.infer_frames).unwrap();
    let work = Workload {
        config,
        geometry: &geometry,
        swaps: request.mode.swaps(),
        passes: 1,
        encodes_motion: request.mode.encodes_motion(),
        speech_frames,
        speech_in_windows,
    };
    Footprints::new(&devices, &plan, work).unwrap()
}

/// Checks that the arithmetic is a close upper bound. A run succeeds with exactly so much memory on
/// each device. With a byte less it is refused before it begins.
#[test]
fn no_device_ever_holds_more_than_the_arithmetic_says() {
    let resident = Residency::default();
    for (mode, stages, lanes, residency, vae_device) in [
        (Mode::Tpp, "1", 4, resident, Some(1)),
        (Mode::Tpp, "3x1", 4, resident, None),
        (Mode::Tpp, "1x4", 1, resident, Some(4)),
        (Mode::Tpp, "1", 4, streamed(0, Rings::OnHost), Some(1)),
        (Mode::Tpp, "1", 2, streamed(1, Rings::OnDevice), Some(1)),
        (Mode::Tpp, "3x1", 3, streamed(0, Rings::OnHost), Some(3)),
        // Here the decoder's device also encodes motion between clips.
        (Mode::Single, "1", 1, resident, Some(1)),
        (Mode::SingleOnline, "1", 1, resident, None),
    ] {
        let run = Run::new();
        let told = Told {
            stages: stages.parse().unwrap(),
            lanes: Lanes::AtMost(lanes),
            residency,
            vae_device,
            ..Told::default()
        };
        let mut request = run.request();
        (request.mode, request.files.trace) = (mode, None);
        request.files.existing = Existing::Replace;
        let wanted = wanted(&told, &request);
        let of = |device: usize| wanted.devices[&device].total();
        let (peaks, host) = held(&told, &request, &of).unwrap_or_else(|e| panic!("{stages}: {e}"));
        assert_eq!(host, wanted.host, "{stages} {residency:?}");
        for (device, &peak) in peaks.iter().enumerate() {
            println!(
                "{stages} {residency:?} cpu:{device}: {peak} of {}",
                wanted.devices[&device]
            );
            assert!(peak <= of(device));
            assert!(
                peak * 10 >= of(device) * 7,
                "{stages} {residency:?} cpu:{device}"
            );
        }
        for short in 0..peaks.len() {
            let error = held(&told, &request, &|d| of(d) - u64::from(d == short)).unwrap_err();
            assert!(
                matches!(&error, GenerateError::Placement(PlacementError::TooSmall(e))
                    if e.device == format!("cpu:{short}")),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::Resources);
        }
    }
}

/// Speech in windows needs the speech encoder between blocks, beside everything else.
#[test]
fn a_device_has_room_for_the_next_window_of_speech() {
    let run = Run::new();
    let mut request = run.request();
    let audio = run.path("long.wav");
    fs::write(&audio, wav(&voice(62.0), Samples::Integer)).unwrap();
    (request.audio, request.timing) = (audio, Timing::Recording);
    // 21 s of video, whose last second is in the second window.
    (request.clips, request.steps) = (Clips::AtMost(11), 1);
    (request.files.trace, request.files.existing) = (None, Existing::Replace);
    let told = Told::default();
    let wanted = counted(&told, &request, 3000, true);
    let (of, without) = (
        wanted.devices[&0].total(),
        counted(&told, &request, 3000, false),
    );
    assert!(
        of > without.devices[&0].total(),
        "windows add to what runs beside blocks"
    );
    let (peaks, _) = held(&told, &request, &|_| of).unwrap();
    println!("{} of {of}", peaks[0]);
    assert!(
        peaks[0] <= of && peaks[0] * 10 >= of * 7,
        "{} of {of}",
        peaks[0]
    );
    let error = held(&told, &request, &|_| of - 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources, "{error}");
}

fn streamed(resident_layers: usize, rings: Rings) -> Residency {
    Residency {
        resident_layers,
        rings,
        slots: 2,
    }
}

#[test]
fn a_device_that_is_too_small_is_refused_and_nothing_is_left_behind() {
    for more in [
        &["--device-memory", "900kB"][..],
        &[
            "--device-memory",
            "900kB",
            "--offload_model",
            "true",
            "--host-rings",
        ],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let message = command(models(), dir.path(), more).error(ErrorKind::Resources);
        assert!(
            message.contains("cpu:0") && message.contains("900000"),
            "{message}"
        );
        assert_eq!(listing(dir.path()), Vec::<PathBuf>::new());
    }
}

/// The planner counts by formulas, the footprint by the ports of the export's graphs. Its engines'
/// scratch is left out of the plan: the footprint does not know it, and it is larger than a tiny
/// model.
#[test]
fn the_planner_never_plans_less_than_the_footprint_counts() {
    let (steps, infer_frames) = (4, 48);
    let size = "64*96".parse().unwrap();
    let (mut compared, mut skipped, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    let tiny = Model::new(Preset::Tiny);
    for (recipe, models, clips, speech_frames) in [
        (Recipe::Fp32, models(), 2, 400),
        (Recipe::Bf16, bf16_models(), 2, 400),
        (Recipe::Fp32, &tiny.models(), 2, 400),
        (Recipe::Fp32, models(), 40, 3000),
    ] {
        let backend = open(models);
        let config = backend.models().config();
        for profile in Profile::built_in().unwrap() {
            let name = format!("{} in {recipe}, {clips} clips", profile.name);
            let ask = Ask {
                size,
                steps,
                passes: 1,
                infer_frames,
                latency: Latency::default(),
                clips: Some(clips),
            };
            let profile = profile.with_recipe(recipe).unwrap();
            let planned = match planner::plan(&profile, config, &ask) {
                Ok(planned) => planned,
                Err(PlannerError::Profile { want, .. }) => {
                    skipped.push(format!("{name} wants {want}"));
                    continue;
                }
                Err(error) => panic!("{name}: {error}"),
            };
            let plan = planned.placement.plan(config.dit.layers, steps).unwrap();
            let memories = planned.devices.iter().enumerate();
            let memories = memories.map(|(i, b)| HostMemory::new(format!("cpu:{i}"), b.usable));
            let geometry = Geometry::new(&config.dit, size, infer_frames).unwrap();
            let geometry = geometry.with_ring(planned.placement.ring_blocks).unwrap();
            let work = Workload {
                config,
                geometry: &geometry,
                swaps: true,
                passes: 1,
                encodes_motion: false,
                speech_frames,
                speech_in_windows: speech_frames == 3000,
            };
            let counted = Footprints::new(&each(&backend, memories), &plan, work).unwrap();
            for (device, footprint) in &counted.devices {
                let budget = &planned.devices[*device];
                let most = budget.peak() - budget.workspace;
                if most < footprint.total() {
                    faults.push(format!("{name}, device {device}: {footprint}, {budget:?}"));
                }
            }
            compared.push(name);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // The carried models have three layers, too few for the four parts of 4x24g.
    assert!(
        compared.len() >= 50 && skipped.len() <= 3,
        "compared {compared:?}, skipped {skipped:?}"
    );
    println!("compared {}, skipped {skipped:?}", compared.len());
}
