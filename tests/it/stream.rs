//! Makes whole videos on the carried golden models. Checks their content, that no placement changes
//! it, and that length costs no memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use engines::claims::Existing;
use engines::error_kind::ErrorKind;
use engines::tensor::Tensor;
use engines::tensor_file;
use runtime::chain::{Cancel, Event, Mode, Observer, Silent, Summary};
use runtime::generate::{Clips, Engine, Guiding, Keeping, OutputFiles, Request, generate};
use runtime::inputs::Channels;
use runtime::media::{Encoding, Fit, Probe, Reading, probe};
use runtime::numbers::{Sampling, SizeMode, Timing};
use runtime::placement::{Devices, Lanes, Told};
use tempfile::TempDir;
use tests::close::Close;
use tests::files::{Samples, listing, voice, wav};
use tests::golden::{Golden, models, open};
use tests::program::{Finished, Program};

const SIZE: &str = "64*96";
const PROMPT: &str = "A man speaks to the camera.";

/// The folder of the files of one run.
pub(crate) struct Run {
    dir: TempDir,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.dir.path().join("video.mp4")
    }

    /// Returns the path of a file of the run's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn trace(&self) -> PathBuf {
        self.dir.path().join("trace.safetensors")
    }

    /// Returns the golden picture and two seconds of speech at the smallest size, as tpp on one
    /// stage, in the reference's timing.
    pub(crate) fn request(&self) -> Request {
        let golden = Golden::carried();
        Request {
            image: golden.input("ref.png"),
            reading: Reading::default(),
            audio: golden.input("speech_16k_mono.wav"),
            live: None,
            channels: Channels::Mix,
            prompt: PROMPT.to_owned(),
            size: SIZE.parse().unwrap(),
            size_mode: SizeMode::Exact,
            fit: Fit::Crop,
            clips: Clips::Auto,
            timing: Timing::Reference,
            steps: 4,
            sampling: Sampling::default(),
            guidance: Guiding::default(),
            infer_frames: 48,
            seed: 420,
            mode: Mode::Tpp,
            replay: None,
            keeping: Keeping::default(),
            files: OutputFiles {
                existing: Existing::Keep,
                asked: None,
                video: self.out(),
                copies: Vec::new(),
                format: None,
                encoding: Encoding::default(),
                contact_sheet: None,
                metrics: None,
                trace: Some(self.trace()),
            },
        }
    }

    fn generate(&self, request: &Request) -> Summary {
        self.generate_on(&Told::default(), request)
    }

    fn generate_on(&self, told: &Told, request: &Request) -> Summary {
        let engine = engine(told, request.steps);
        generate(&engine, request, &Silent, &Cancel::default()).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn traced(&self) -> BTreeMap<String, Tensor> {
        tensor_file::read(&self.trace()).unwrap()
    }
}

/// Opens the carried models on the process's own memory, placed as told.
fn engine(told: &Told, steps: usize) -> Engine {
    let backend = open(models());
    let models = backend.models().clone();
    let plan = told.plan(models.config().dit.layers, steps).unwrap();
    Engine::new(models, Devices::one(Arc::new(backend)), plan)
}

/// Makes one run and returns every tensor that it computed.
fn traced(change: impl FnOnce(&mut Request, &mut Told)) -> (Run, BTreeMap<String, Tensor>) {
    let run = Run::new();
    let (mut request, mut told) = (run.request(), Told::default());
    change(&mut request, &mut told);
    run.generate_on(&told, &request);
    let tensors = run.traced();
    (run, tensors)
}

/// Lists the tensors that are not the same bit for bit.
fn differing(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> Vec<String> {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let same =
        |name: &String| a[name].shape() == b[name].shape() && a[name].bytes() == b[name].bytes();
    a.keys().filter(|name| !same(name)).cloned().collect()
}

#[track_caller]
fn assert_is_the_video(p: &Probe, frames: usize) {
    let seconds = frames as f64 / 25.0;
    assert_eq!(
        (p.width, p.height, p.video_codec, p.fps, p.frames),
        (64, 96, "h264", 25.0, frames)
    );
    assert!((p.video_seconds - seconds).abs() < 1e-3, "{p}");
    let audio = p.audio.as_ref().expect("sound");
    assert_eq!(audio.codec, "aac");
    // Sound and picture agree within one frame, in length and in place.
    assert!((audio.seconds - seconds).abs() <= 0.04, "{p}");
    assert!(p.av_offset_ms.abs() <= 40.0, "{p}");
}

#[test]
fn every_pipeline_gives_48_frames_a_clip_less_3_with_sound_in_sync() {
    for (mode, clips, frames) in [
        (Mode::Tpp, Clips::AtMost(1), 45),
        (Mode::Tpp, Clips::Auto, 93),
        (Mode::Single, Clips::AtMost(2), 93),
        (Mode::SingleOnline, Clips::Auto, 93),
    ] {
        let run = Run::new();
        let summary = run.generate(&Request {
            mode,
            clips,
            ..run.request()
        });
        assert_eq!((summary.frames, summary.out), (frames, Some(run.out())));
        assert_is_the_video(&probe(&run.out()).unwrap(), frames);
        let traced = run.traced();
        assert_eq!(traced["frames_u8"].shape(), [frames, 96, 64, 3]);
        assert_eq!(
            listing(run.dir.path()),
            ["trace.safetensors", "video.mp4"].map(PathBuf::from)
        );
    }
}

#[test]
fn the_pipelines_differ_where_the_reference_does() {
    let clip = |mode| traced(|r, t| (r.mode, t.lanes) = (mode, Lanes::AtMost(1))).1;
    let [tpp, single, online] = [Mode::Tpp, Mode::Single, Mode::SingleOnline].map(clip);
    let same = |a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>, name: &str| {
        a[name].bytes() == b[name].bytes()
    };
    // Online decode changes the condition of the second clip, and nothing before.
    assert!(same(&single, &online, "block3.latents") && !same(&single, &online, "block4.latents"));
    // The single-device pipelines have another reference latent from the start.
    assert!(!same(&tpp, &single, "ref_latents.clip0") && !same(&tpp, &single, "block0.latents"));
}

#[test]
fn no_placement_changes_a_bit() {
    let (_, want) = traced(|_, t| t.lanes = Lanes::AtMost(1));
    for (stages, lanes) in [
        ("1x2", Lanes::AtMost(1)),
        ("3x1", Lanes::AtMost(1)),
        ("3x4", Lanes::Auto),
        ("0:0-0/0-3;1:1-2/0-3", Lanes::AtMost(1)),
        ("0:0-2/0-0;1:0-1/1-3;2:2-2/1-3", Lanes::AtMost(1)),
    ] {
        let (_, got) = traced(|_, t| (t.stages, t.lanes) = (stages.parse().unwrap(), lanes));
        assert_eq!(
            differing(&got, &want),
            Vec::<String>::new(),
            "{stages} {lanes:?}"
        );
    }
}

/// Compares lanes on one thread, where a lane computes the same as alone. On several threads ONNX
/// Runtime cuts a batched product at other places than a single one. Then the last bits differ. A
/// process has one pool of threads, so each run is one process.
#[test]
fn lanes_change_no_bit_on_one_thread() {
    let audio = Golden::carried().input("speech_16k_mono.wav");
    let traced = |stages: &str, lanes: &str| {
        let run = Run::new();
        let mut command = line(
            &run.out(),
            &audio,
            1,
            &["--stages", stages, "--lanes", lanes],
        );
        command.arg("--trace").arg(run.trace());
        Finished::from(command.output().unwrap()).ok();
        run.traced()
    };
    let want = traced("1", "1");
    for (stages, lanes) in [("1", "3"), ("2x1", "4")] {
        assert_eq!(
            differing(&traced(stages, lanes), &want),
            Vec::<String>::new(),
            "{stages}, {lanes} lanes"
        );
    }
}

#[test]
fn lanes_change_last_bits_at_most_on_several_threads() {
    let (_, want) = traced(|_, t| t.lanes = Lanes::AtMost(1));
    for lanes in [2, 4] {
        let (_, got) = traced(|_, t| t.lanes = Lanes::AtMost(lanes));
        for name in differing(&got, &want) {
            let (got, want) = (&got[&name], &want[&name]);
            if name == "frames_u8" {
                let levels = || {
                    got.bytes()
                        .iter()
                        .zip(want.bytes())
                        .map(|(a, b)| a.abs_diff(*b))
                };
                let moved = levels().filter(|&l| l > 0).count();
                assert!(
                    levels().all(|l| l <= 1) && moved * 1000 <= want.bytes().len(),
                    "{lanes} lanes: {moved} values differ"
                );
            } else {
                let worst = got
                    .as_slice::<f32>()
                    .iter()
                    .zip(want.as_slice::<f32>())
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(worst <= 1e-5, "{lanes} lanes: {name} differs by {worst}");
            }
        }
    }
}

#[test]
fn a_seed_gives_one_file_and_another_seed_another() {
    let file = |seed| {
        let run = Run::new();
        let mut request = run.request();
        (request.seed, request.files.trace) = (seed, None);
        run.generate(&request);
        fs::read(run.out()).unwrap()
    };
    let first = file(7);
    assert!(file(7) == first, "the same seed gave another file");
    assert!(file(8) != first, "another seed gave the same file");
}

#[test]
fn a_replayed_run_does_not_depend_on_its_seed() {
    let golden = Golden::carried();
    let replay = golden.root.join("golden/e2e_tpp.safetensors");
    let noise = tensor_file::read(&replay).unwrap()["clip0.noise"]
        .shape()
        .to_vec();
    let [_, _, rows, columns] = noise[..] else {
        panic!("{noise:?}")
    };
    let size = format!("{}*{}", 8 * columns, 8 * rows);
    let with = |seed| {
        traced(|r, _| {
            r.replay = Some(replay.clone());
            r.size = size.parse().unwrap();
            r.seed = seed;
        })
        .1
    };
    let recorded = &tensor_file::read(&replay).unwrap()["relative_dist"];
    let first = with(1);
    assert_eq!(first["relative_dist"].bytes(), recorded.bytes());
    assert_eq!(differing(&with(2), &first), Vec::<String>::new());
}

#[test]
fn a_trace_can_be_replayed() {
    let (run, first) = traced(|_, _| {});
    let (_, again) = traced(|r, _| {
        r.replay = Some(run.trace());
        r.seed += 1;
    });
    assert_eq!(differing(&again, &first), Vec::<String>::new());
    let (_, other) = traced(|r, _| r.seed += 1);
    assert!(!differing(&other, &first).is_empty(), "the seed counts");
}

#[test]
fn numbers_of_the_carried_models_stay_what_they_are() {
    let (_, tensors) = traced(|_, _| {});
    let first = |name: &str| {
        let values: Vec<f64> = tensors[name]
            .as_slice::<f32>()
            .iter()
            .take(16)
            .map(|&v| f64::from(v))
            .collect();
        Close::new(2e-4, 1e-3, values)
    };
    Close::compared(|| insta::assert_snapshot!("first_latents", first("block0.latents")));
    // The first block of the second clip has another noise and the swapped anchor.
    Close::compared(|| insta::assert_snapshot!("second_clip_latents", first("block4.latents")));
    Close::compared(|| insta::assert_snapshot!("last_latents", first("block7.latents")));
    let frames = tensors["frames_u8"].bytes();
    let means = frames
        .chunks(frames.len() / 93)
        .step_by(23)
        .map(|f| f.iter().map(|&b| f64::from(b)).sum::<f64>() / f.len() as f64);
    Close::compared(|| insta::assert_snapshot!("frame_means", Close::new(0.05, 0.0, means)));
}

/// Goes the whole way of a new user, at the tiny preset.
#[test]
fn a_random_checkpoint_speaks() {
    let run = Run::new();
    let at = |name: &str| run.dir.path().join(name).display().to_string();
    let (ckpt, models, base) = (at("ckpt"), at("models"), at("ckpt/Wan2.2-S2V-14B"));
    let export = |args: &[&str]| Program::Export.run(args).ok();
    export(&[
        "synth", "--preset", "tiny", "--layers", "2", "--seed", "3", "--out", &ckpt,
    ]);
    export(&["inspect", &ckpt]);
    export(&[
        "onnx",
        "--ckpt_dir",
        &base,
        "--lora",
        &at("ckpt/LiveAvatar/liveavatar.safetensors"),
        "--out",
        &models,
    ]);
    let golden = Golden::carried();
    let (image, audio) = (
        golden.input("ref.png"),
        golden.input("speech_44k1_stereo.wav"),
    );
    let mut command = Program::Run.command();
    command.args([
        "generate",
        "--models",
        &models,
        "--prompt",
        PROMPT,
        "--size",
        SIZE,
        "--threads",
        "2",
        "--infer_frames",
        "24",
    ]);
    command
        .args(["--num_clip", "2", "--out"])
        .arg(run.out())
        .arg("--contact-sheet")
        .arg(at("sheet.png"));
    command.arg("--image").arg(image).arg("--audio").arg(audio);
    Finished::from(command.output().unwrap()).ok();
    // 1.7 seconds, to the frame.
    assert_is_the_video(&probe(&run.out()).unwrap(), 43);
    assert!(fs::read(at("sheet.png")).unwrap().starts_with(b"\x89PNG"));
}

/// Returns the command line of `avatar-run generate` for the golden inputs.
pub(crate) fn line(out: &Path, audio: &Path, threads: usize, more: &[&str]) -> Command {
    let golden = Golden::carried();
    let mut command = Program::Run.command();
    command
        .arg("generate")
        .arg("--models")
        .arg(models())
        .arg("--image")
        .arg(golden.input("ref.png"))
        .arg("--audio")
        .arg(audio);
    command
        .args([
            "--prompt",
            PROMPT,
            "--size",
            SIZE,
            "--threads",
            &threads.to_string(),
            "--out",
        ])
        .arg(out)
        .args(more);
    command
}

fn events(run: &Finished) -> Vec<serde_json::Value> {
    run.stdout
        .lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect()
}

#[test]
fn every_line_of_json_is_an_event() {
    let run = Run::new();
    let audio = Golden::carried().input("speech_16k_mono.wav");
    let finished = Finished::from(line(&run.out(), &audio, 2, &["--json"]).output().unwrap()).ok();
    assert_eq!(finished.stderr, "");
    let events = events(&finished);
    let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    let counts = [
        "started", "phase", "anchor", "step", "block", "finished", "error",
    ]
    .map(|n| (n, count(n)));
    assert_eq!(
        counts,
        [
            ("started", 1),
            ("phase", 6),
            ("anchor", 2),
            ("step", 20),
            ("block", 5),
            ("finished", 1),
            ("error", 0)
        ]
    );
    let frames: Vec<u64> = events
        .iter()
        .filter(|e| e["event"] == "block")
        .map(|e| e["frames"].as_u64().unwrap())
        .collect();
    assert_eq!(frames, [9, 21, 33, 45, 50]);
    let keys = |name: &str| {
        let object = events
            .iter()
            .find(|e| e["event"] == name)
            .and_then(|e| e.as_object())
            .unwrap();
        format!(
            "{name}: {}",
            object.keys().cloned().collect::<Vec<_>>().join(", ")
        )
    };
    insta::assert_snapshot!(
        "json_events",
        ["started", "phase", "anchor", "step", "block", "finished"]
            .map(keys)
            .join("\n")
    );
}

#[test]
fn a_pipe_is_a_recording() {
    let run = Run::new();
    let sound = wav(&voice(0.3), Samples::Integer);
    let mut command = line(&run.out(), Path::new("/dev/stdin"), 2, &[]);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&sound).unwrap();
    Finished::from(child.wait_with_output().unwrap()).ok();
    assert_is_the_video(&probe(&run.out()).unwrap(), 8);
    let names = ["video.mp4", "video.run.json"].map(PathBuf::from);
    assert_eq!(listing(run.dir.path()), names);
    let text = fs::read_to_string(run.path("video.run.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let audio = &file["inputs"]["audio"];
    assert!(
        audio["sha256"].is_null(),
        "the bytes of a pipe are gone: {audio}"
    );
}

#[test]
fn lines_without_a_terminal() {
    let run = Run::new();
    let audio = Golden::carried().input("speech_16k_mono.wav");
    let finished = Finished::from(
        line(
            &run.out(),
            &audio,
            2,
            &["--stages", "layers=3,steps=2", "--num_clip", "9"],
        )
        .output()
        .unwrap(),
    )
    .ok();
    assert_eq!(finished.stdout, "");
    // Rates, times and memory depend on this machine.
    let settings: Vec<&str> = finished
        .stderr
        .lines()
        .take_while(|l| !l.starts_with("clip "))
        .collect();
    insta::assert_snapshot!("lines", settings.join("\n"));
    let blocks = finished
        .stderr
        .lines()
        .filter(|l| l.starts_with("clip "))
        .count();
    assert_eq!(blocks, 5, "{}", finished.stderr);
}

#[test]
fn a_longer_video_needs_no_more_memory() {
    let run = Run::new();
    let audio = run.dir.path().join("speech.wav");
    fs::write(&audio, wav(&voice(24.0), Samples::Integer)).unwrap();
    let peak = |clips: &str| {
        let out = run.dir.path().join(format!("{clips}.mp4"));
        let finished = Finished::from(
            line(&out, &audio, 2, &["--json", "--num_clip", clips])
                .output()
                .unwrap(),
        )
        .ok();
        let last = events(&finished).pop().unwrap();
        (
            last["frames"].as_u64().unwrap(),
            last["peak_memory_bytes"].as_u64().unwrap(),
        )
    };
    let (short, long) = (peak("2"), peak("12"));
    println!(
        "peak memory: {} frames {} bytes, {} frames {} bytes",
        short.0, short.1, long.0, long.1
    );
    assert_eq!((short.0, long.0), (93, 573));
    assert!(long.1 < short.1 + 8_000_000, "{short:?} {long:?}");
}

#[test]
fn a_clip_of_a_longer_recording_needs_no_more_memory() {
    let run = Run::new();
    let peak = |seconds: f32| {
        let audio = run.path(&format!("{seconds}.wav"));
        fs::write(&audio, wav(&voice(seconds), Samples::Integer)).unwrap();
        let out = run.path(&format!("{seconds}.mp4"));
        let flags = ["--json", "--num_clip", "1", "--infer_frames", "12"];
        let finished = Finished::from(line(&out, &audio, 2, &flags).output().unwrap()).ok();
        let last = events(&finished).pop().unwrap();
        assert_eq!(last["frames"], 9);
        last["peak_memory_bytes"].as_u64().unwrap()
    };
    // Both are longer than a window. The whole recording of the second has 38 MB of samples, and
    // its hidden states would take 48 MB.
    let (short, long) = (peak(100.0), peak(600.0));
    println!("peak memory: 100 s {short} bytes, 600 s {long} bytes");
    assert!(long < short + 8_000_000, "{short} {long}");
}

/// Starts a run of one minute, and stops it by Ctrl-C once `ready` holds for a line of its events.
fn interrupted(run: &Run, ready: impl Fn(&serde_json::Value) -> bool) -> Finished {
    let audio = run.dir.path().join("speech.wav");
    fs::write(&audio, wav(&voice(60.0), Samples::Integer)).unwrap();
    let mut child = line(&run.out(), &audio, 2, &["--json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    loop {
        let at = text.len();
        assert!(
            stdout.read_line(&mut text).unwrap() > 0,
            "ended before it was interrupted: {text}"
        );
        if ready(&serde_json::from_str(&text[at..]).unwrap()) {
            break;
        }
    }
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status()
        .unwrap();
    assert!(kill.success());
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    Finished {
        stdout: text,
        ..Finished::from(child.wait_with_output().unwrap())
    }
}

#[test]
fn an_interrupted_video_plays_and_has_no_final_name() {
    let run = Run::new();
    let finished = interrupted(&run, |e| e["event"] == "block" && e["block"] == 2);
    let message = finished.error(ErrorKind::Interrupted);
    let partial = run.dir.path().join("video.partial.mp4");
    let found = probe(&partial).unwrap();
    assert_eq!(
        message,
        format!(
            "interrupted after {} frames ({:.2} s); what is there plays: {}",
            found.frames,
            found.frames as f64 / 25.0,
            partial.display()
        )
    );
    assert!(found.frames >= 33 && found.frames < 1497, "{found}");
    assert_is_the_video(&found, found.frames);
    assert!(!run.out().exists());
    let last = events(&finished).pop().unwrap();
    assert_eq!(
        (&last["event"], &last["exit"]),
        (&"error".into(), &6.into())
    );
}

#[test]
fn a_run_interrupted_before_its_first_frame_leaves_nothing() {
    let run = Run::new();
    let finished = interrupted(&run, |e| e["event"] == "started");
    assert_eq!(
        finished.error(ErrorKind::Interrupted),
        "interrupted after 0 frames; nothing was written"
    );
    assert_eq!(listing(run.dir.path()), [PathBuf::from("speech.wav")]);
}

#[test]
fn cancelling_in_the_library_is_the_same() {
    struct After<'a>(&'a Cancel);
    impl Observer for After<'_> {
        fn event(&self, event: &Event<'_>) {
            if matches!(event, Event::Written { block: 1, .. }) {
                self.0.cancel();
            }
        }
    }
    let run = Run::new();
    let (engine, cancel) = (engine(&Told::default(), 4), Cancel::default());
    let error = generate(&engine, &run.request(), &After(&cancel), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    let partial = probe(&run.dir.path().join("video.partial.mp4")).unwrap();
    assert_is_the_video(&partial, 21);
    assert!(!run.out().exists() && !run.trace().exists());
}
