//! Makes many videos on one loaded engine. Counts the loads, and compares each video with that of a
//! process of its own. Checks the files and the state that a failed video leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use engines::contract::{Contract, Port};
use engines::error_kind::ErrorKind;
use engines::memory::{HostMemory, Memory};
use engines::recipe::Recipe;
use engines::tensor::{Tensor, View};
use engines::weights::{BoundWeights, HostWeights};
use runtime::chain::{Cancel, Event, Mode, Observer, Phase, Silent};
use runtime::generate::{Clips, Engine, Request, generate};
use runtime::inputs::Speech;
use runtime::media::probe;
use runtime::numbers::Timing;
use runtime::placement::{Devices, Plan, Told};
use tests::files::{RATE, Samples, wav};
use tests::golden::{models, open};
use tests::program::{Finished, Program};

use crate::placement::wanted;
use crate::stream::{Run, line};

/// A backend that counts loads, and whose `fails` component fails at one of its runs.
struct Watched {
    inner: Arc<dyn Backend>,
    /// Loads of each component, with or without its weights.
    loads: Mutex<BTreeMap<String, usize>>,
    fails: Option<(&'static str, usize)>,
    runs: Arc<AtomicUsize>,
}

impl Watched {
    fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Self::failing(inner, None)
    }

    fn failing(inner: Arc<dyn Backend>, fails: Option<(&'static str, usize)>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            loads: Mutex::default(),
            fails,
            runs: Arc::default(),
        })
    }

    fn loads(&self) -> BTreeMap<String, usize> {
        self.loads.lock().unwrap().clone()
    }

    fn counted(&self, component: &str, inner: Box<dyn Session>) -> Box<dyn Session> {
        *self
            .loads
            .lock()
            .unwrap()
            .entry(component.to_owned())
            .or_default() += 1;
        match self.fails {
            Some((name, run)) if name == component => Box::new(Failing {
                inner,
                run,
                runs: Arc::clone(&self.runs),
            }),
            _ => inner,
        }
    }
}

impl Backend for Watched {
    fn memory(&self) -> &Arc<dyn Memory> {
        self.inner.memory()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        Ok(self.counted(component, self.inner.load(component, options)?))
    }

    fn load_unbound(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        Ok(self.counted(component, self.inner.load_unbound(component, options)?))
    }

    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        self.inner.weights(component)
    }
}

/// A session that fails at one run.
struct Failing {
    inner: Box<dyn Session>,
    run: usize,
    runs: Arc<AtomicUsize>,
}

impl Session for Failing {
    fn component(&self) -> &str {
        self.inner.component()
    }

    fn contract(&self) -> &'static Contract {
        self.inner.contract()
    }

    fn recipe(&self) -> Recipe {
        self.inner.recipe()
    }

    fn bind(&mut self, weights: BoundWeights) {
        self.inner.bind(weights);
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        if self.runs.fetch_add(1, Ordering::SeqCst) == self.run {
            return Err(EngineError::Memory {
                component: self.component().to_owned(),
                reason: "as planned".to_owned(),
            });
        }
        self.inner.run(inputs, state)
    }
}

/// Opens the carried models on one watched device of the process's own memory.
fn engine(told: &Told, change: impl FnOnce(&mut Plan)) -> (Arc<Watched>, Engine) {
    let backend = open(models());
    let models = backend.models().clone();
    let mut plan = told.plan(models.config().dit.layers, 4).unwrap();
    change(&mut plan);
    let watched = Watched::new(Arc::new(backend));
    let devices = Devices::one(Arc::<Watched>::clone(&watched));
    (watched, Engine::new(models, devices, plan))
}

/// Returns two requests that differ in everything that conditions a video.
fn requests(runs: &[Run; 2]) -> [Request; 2] {
    let mut requests = runs.each_ref().map(Run::request);
    requests[1].seed = 7;
    requests[1].prompt = "A woman laughs at night.".to_owned();
    requests[1].audio = tests::golden::Golden::carried().input("speech_44k1_stereo.wav");
    requests
}

/// Reads the files of a run: its trace and its video, byte for byte.
fn files(run: &Run) -> (BTreeMap<String, Tensor>, Vec<u8>) {
    (run.traced(), fs::read(run.out()).unwrap())
}

fn assert_same(got: &Run, want: &Run, what: &str) {
    let ((got, video), (want, wanted_video)) = (files(got), files(want));
    let keys = |t: &BTreeMap<String, Tensor>| t.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&got), keys(&want), "{what}");
    for (name, tensor) in &got {
        assert!(tensor.bytes() == want[name].bytes(), "{what}: {name}");
    }
    assert!(video == wanted_video, "{what}: the video");
}

/// Notes the seconds until the first prefill is done: from the start, and from the last condition.
#[derive(Default)]
struct FirstAnchor(Mutex<Vec<Instant>>);

impl Observer for FirstAnchor {
    fn event(&self, event: &Event<'_>) {
        if let Event::Phase(Phase::ReadingInputs | Phase::Denoising)
        | Event::Anchored { index: 0 } = event
        {
            self.0.lock().unwrap().push(Instant::now());
        }
    }
}

impl FirstAnchor {
    fn seconds(&self) -> [f64; 2] {
        let at = self.0.lock().unwrap();
        [0, 1].map(|from| (at[2] - at[from]).as_secs_f64())
    }
}

#[test]
fn two_videos_in_one_process_load_the_weights_once_and_are_the_bits_of_two_processes() {
    let alone = [Run::new(), Run::new()];
    for (run, request) in alone.iter().zip(requests(&alone)) {
        let more = ["--seed", &request.seed.to_string()].map(str::to_owned);
        let timing = ["--timing", "reference"];
        let mut command = line(&run.out(), &request.audio, 2, &timing);
        command.args(more).arg("--prompt").arg(&request.prompt);
        command.arg("--trace").arg(run.trace());
        Finished::from(command.output().unwrap()).ok();
    }
    for encoders_stay in [false, true] {
        let (watched, engine) = engine(&Told::default(), |p| p.encoders_stay = encoders_stay);
        let runs = [Run::new(), Run::new()];
        let mut loads = Vec::new();
        for request in requests(&runs) {
            generate(&engine, &request, &Silent, &Cancel::default()).unwrap();
            loads.push(watched.loads());
        }
        for (run, alone) in runs.iter().zip(&alone) {
            assert_same(run, alone, "in one process");
        }
        assert!(loads[0].len() > 15, "{:?}", loads[0]);
        for (name, count) in &loads[1] {
            let sink = name.starts_with("dit_sink");
            let encoders = ["text_encoder", "audio_encoder", "vae_encoder", "dit_text"];
            let encoder = encoders.iter().any(|e| name.starts_with(e));
            let first = loads[0][name];
            let most = if sink || (encoder && !encoders_stay) {
                2 * first
            } else {
                first
            };
            let least = if encoder && !encoders_stay {
                most
            } else {
                first
            };
            // The sink's graphs are loaded for each anchor, and the second video may have fewer.
            assert!(
                (least..=most).contains(count),
                "{name}, stay: {encoders_stay}: {first}, then {count}"
            );
        }
    }
}

/// The figures of docs/measured.md: two videos on an engine of the `small` preset.
#[test]
#[ignore = "measures: cargo test -p tests --test it second_video -- --ignored --nocapture"]
fn the_second_video_of_a_larger_model_starts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (ckpt, out) = (at("ckpt"), at("models"));
    Program::Export
        .run(["synth", "--preset", "small", "--out", &ckpt])
        .ok();
    let base = format!("{ckpt}/Wan2.2-S2V-14B");
    let lora = format!("{ckpt}/LiveAvatar/liveavatar.safetensors");
    let export = ["onnx", "--ckpt_dir", &base, "--lora", &lora, "--out", &out];
    Program::Export.run(export).ok();
    for encoders_stay in [false, true] {
        let backend = open(Path::new(&out));
        let models = backend.models().clone();
        let mut plan = Told::default().plan(models.config().dit.layers, 4).unwrap();
        plan.encoders_stay = encoders_stay;
        let engine = Engine::new(models, Devices::one(Arc::new(backend)), plan);
        for video in 1..=2 {
            let (run, first) = (Run::new(), FirstAnchor::default());
            let mut request = run.request();
            (request.size, request.files.trace) = ("256*256".parse().unwrap(), None);
            (request.clips, request.infer_frames) = (Clips::AtMost(1), 12);
            generate(&engine, &request, &first, &Cancel::default()).unwrap();
            let [all, load] = first.seconds();
            println!(
                "encoders stay {encoders_stay}, video {video}: first anchor after {all:.2} s, {load:.2} s of it after the conditions"
            );
        }
    }
}

#[test]
fn two_videos_at_a_time_are_the_bits_of_one_after_the_other() {
    let told = Told {
        stages: "2x2".parse().unwrap(),
        ..Told::default()
    };
    let after = [Run::new(), Run::new()];
    let (_, one_by_one) = engine(&told, |_| {});
    for request in requests(&after) {
        generate(&one_by_one, &request, &Silent, &Cancel::default()).unwrap();
    }
    let (watched, engine) = engine(&told, |_| {});
    let at_a_time = [Run::new(), Run::new()];
    thread::scope(|scope| {
        for request in requests(&at_a_time) {
            let engine = &engine;
            scope.spawn(move || {
                generate(engine, &request, &Silent, &Cancel::default()).unwrap();
            });
        }
    });
    for (run, after) in at_a_time.iter().zip(&after) {
        assert_same(run, after, "at a time");
    }
    let heads = watched.loads()["dit_head"];
    assert_eq!(heads, 2, "one head for each chain, shared by both videos");
}

#[test]
fn an_engine_frees_the_transformer_for_encoders_that_do_not_fit_beside_it() {
    let backend = open(models());
    let models = backend.models().clone();
    let plan = Told::default().plan(models.config().dit.layers, 4).unwrap();
    let peak = |budget: u64, videos: usize| {
        let memory = HostMemory::new("cpu:0", budget);
        let watched = Watched::new(Arc::new(backend.on(Arc::<HostMemory>::clone(&memory))));
        let devices = Devices::each(vec![Arc::<Watched>::clone(&watched)]);
        let engine = Engine::new(models.clone(), devices, plan.clone());
        for _ in 0..videos {
            let run = Run::new();
            generate(&engine, &run.request(), &Silent, &Cancel::default()).unwrap();
        }
        (memory.ledger().counts().peak, watched.loads()["dit_head"])
    };
    assert_eq!(peak(u64::MAX, 2).1, 1);
    let needs = wanted(&Told::default(), &Run::new().request());
    let (one, beside) = (needs.devices[&0].total(), needs.beside.1.total());
    let (held, loads) = peak(one, 2);
    assert!(held <= one);
    // Memory holds one video and no more: the second loads the transformer again where the encoders
    // do not fit beside it.
    assert_eq!(loads, if beside > one { 2 } else { 1 });
}

#[test]
fn the_sound_of_a_video_starts_with_the_frame_that_it_drove() {
    let run = Run::new();
    let at = 1.0_f32;
    let mut samples = vec![0_f32; 2 * RATE as usize];
    let click = (at * RATE as f32) as usize;
    samples[click..click + 32].fill(0.9);
    let audio = run.path("click.wav");
    fs::write(&audio, wav(&samples, Samples::Integer)).unwrap();
    let mut request = run.request();
    (request.audio, request.files.trace) = (audio, None);
    let (_, engine) = engine(&Told::default(), |_| {});
    generate(&engine, &request, &Silent, &Cancel::default()).unwrap();
    let heard = heard_at(&run.out());
    // The run drops three frames of 40 ms, and their sound with them.
    let wanted = at - 0.12;
    assert!(
        (heard - wanted).abs() < 0.004,
        "heard at {heard} s, wanted {wanted} s"
    );
}

/// Makes a video with the default timing of `samples` samples at 16 kHz with a click at 0.05 s.
fn clicked(run: &Run, samples: usize, change: impl FnOnce(&mut Request)) -> PathBuf {
    let mut sound = vec![0_f32; samples];
    let click = RATE as usize / 20;
    sound[click.min(samples - 32)..][..32].fill(0.9);
    let audio = run.path("click.wav");
    fs::write(&audio, wav(&sound, Samples::Integer)).unwrap();
    let mut request = run.request();
    (request.audio, request.files.trace) = (audio, None);
    request.timing = Timing::Recording;
    change(&mut request);
    let (_, engine) = engine(&Told::default(), |_| {});
    generate(&engine, &request, &Silent, &Cancel::default()).unwrap();
    run.out()
}

#[test]
fn a_video_is_its_recording_to_the_frame() {
    // 28800 samples and the dropped frames are exactly a clip.
    for (samples, frames, change) in [
        (800, 2, None),
        (16_000, 25, None),
        (28_800, 45, None),
        (28_801, 46, None),
        (28_801, 46, Some(Mode::Single)),
        (28_801, 46, Some(Mode::SingleOnline)),
        (60_001, 94, None),
    ] {
        let run = Run::new();
        let video = clicked(&run, samples, |r| r.mode = change.unwrap_or(r.mode));
        let found = probe(&video).unwrap();
        assert_eq!(found.frames, frames, "{samples} samples");
        let seconds = frames as f64 / 25.0;
        let sound = found.audio.unwrap();
        assert!(
            (sound.seconds - seconds).abs() < 0.025,
            "{} s",
            sound.seconds
        );
        let heard = heard_at(&video);
        let wanted = if samples < 832 { 0.048 } else { 0.05 };
        assert!(
            (heard - wanted).abs() < 0.004,
            "{samples}: heard at {heard} s"
        );
    }
}

#[test]
fn fewer_clips_than_the_recording_fills_are_whole_but_for_the_dropped_frames() {
    let run = Run::new();
    let video = clicked(&run, 60_000, |r| r.clips = Clips::AtMost(1));
    assert_eq!(probe(&video).unwrap().frames, 45);
    assert!((heard_at(&video) - 0.05).abs() < 0.004);
}

/// Returns the seconds from the start of a video file to its loudest sample.
fn heard_at(video: &Path) -> f32 {
    let samples = Speech::open(video).unwrap().samples;
    let loudest = (0..samples.len()).max_by(|&a, &b| samples[a].abs().total_cmp(&samples[b].abs()));
    loudest.unwrap() as f32 / 16_000.0
}

/// The notices of a run.
#[derive(Default)]
struct Notices(Mutex<Vec<String>>);

impl Observer for Notices {
    fn event(&self, event: &Event<'_>) {
        if let Event::Notice(text) = event {
            self.0.lock().unwrap().push(text.clone());
        }
    }
}

#[test]
fn a_run_that_fails_keeps_its_frames_and_says_where() {
    for (component, at, frames) in [
        // A block takes four steps, one lane a call, so the third block fails in its second step.
        ("dit_head", 20, None),
        // The priming takes one call; a block has three latent frames.
        ("vae_decoder_next", 6 + 3 * 3, Some(33)),
        ("vae_decoder_next", 0, Some(0)),
    ] {
        let run = Run::new();
        let backend = open(models());
        let models = backend.models().clone();
        let plan = Told::default().plan(models.config().dit.layers, 4).unwrap();
        let watched = Watched::failing(Arc::new(backend), Some((component, at)));
        let engine = Engine::new(models, Devices::one(watched), plan);
        let notices = Notices::default();
        let error = generate(&engine, &run.request(), &notices, &Cancel::default()).unwrap_err();
        assert!(error.to_string().contains("as planned"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Resources);
        assert!(!run.out().exists() && !run.trace().exists());
        let (partial, notices) = (
            run.path("video.partial.mp4"),
            notices.0.into_inner().unwrap(),
        );
        let kept = match partial.exists() {
            true => probe(&partial).unwrap().frames,
            false => 0,
        };
        assert!(
            frames.is_none_or(|f| f == kept),
            "{component}: {kept} frames"
        );
        let says = format!(
            "the first {kept} frames ({:.2} s) are kept and play: {}",
            kept as f64 / 25.0,
            partial.display()
        );
        assert_eq!(notices.contains(&says), kept > 0, "{notices:?}");
    }
}
