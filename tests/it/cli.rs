//! Runs the commands and checks their help, their plans, and one clear error for every bad input. A
//! refused run leaves no file half-written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::error_kind::ErrorKind;
use runtime::media::probe;
use runtime::media::{Encoding, Target, VideoWriter};
use runtime::numbers::Size;
use runtime::placement::{Lanes, Plan, PlanError, Stages};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::files::{
    Samples, copy_folder, edit_header, listing, ppm, safetensors, split_safetensors, torch_archive,
    voice, wav,
};
use tests::golden::{Golden, LORA_SCALE, models, workspace};
use tests::program::{Finished, Program, Transcript, started_by};

#[test]
fn help_of_every_command() {
    let commands = [
        (
            Program::Export,
            "export",
            &[
                "download",
                "inspect",
                "synth",
                "onnx",
                "graphs",
                "build",
                "completions",
                "man",
            ][..],
        ),
        (
            Program::Run,
            "run",
            &[
                "generate",
                "batch",
                "replay",
                "diff",
                "presets",
                "compat",
                "exec",
                "verify",
                "bench",
                "parity",
                "probe",
                "verify-video",
                "doctor",
                "completions",
                "man",
            ],
        ),
    ];
    for (program, name, subcommands) in commands {
        insta::assert_snapshot!(format!("help_{name}"), program.run(["--help"]).ok().stdout);
        for command in subcommands {
            let help = program.run([command, "--help"]).ok();
            assert_eq!(help.stderr, "");
            insta::assert_snapshot!(format!("help_{name}_{command}"), help.stdout);
        }
    }
}

#[test]
fn an_articles_command_line_is_answered_word_by_word() {
    let line = "ENABLE_COMPILE=true torchrun --nproc_per_node=5 s2v_streaming_interact.py \
                --size \"688*368\" --audio my_speech.wav --fp8 --save_file=o.mp4";
    let answers = Program::Run.run(["compat", line]).ok().stdout;
    assert!(!answers.contains("unknown"), "{answers}");
    assert_eq!(answers.matches("refused").count(), 1, "{answers}");
    let ours = "avatar-run generate --models MODELS --size '688*368' --audio my_speech.wav \
                --out o.mp4\n";
    assert!(answers.ends_with(ours), "{answers}");
    // A shell has split this one already. The flag is the first word.
    let words = ["compat", "--sample_steps", "4", "--no_such_flag"];
    let answers = Program::Run.run(words).ok().stdout;
    assert!(answers.contains("unknown"), "{answers}");
    let open = Program::Run.run(["compat", "--prompt 'a man"]);
    let message = open.error(ErrorKind::Usage);
    assert!(message.contains("a quote is not closed"), "{message}");
}

#[test]
fn plans_of_the_published_model() {
    let (layers, steps) = (40, 4);
    let of = |stages: &str, lanes: &str| -> Result<String, PlanError> {
        let (stages, lanes): (Stages, Lanes) = (stages.parse()?, lanes.parse()?);
        let plan = Plan::new(&stages, lanes, layers, steps)?;
        Ok(format!("{plan}\n    {} devices", plan.devices()))
    };
    let mut text = String::new();
    for (stages, lanes) in [
        ("1", "auto"),
        ("1", "1"),
        ("1x4", "auto"),
        ("4x1", "auto"),
        ("4x1", "4"),
        ("layers=2,steps=2", "auto"),
        ("layers=3", "2"),
        ("0:0-19/0-3;1:20-39/0-3", "auto"),
        ("0:0-39/0-0;0:0-39/1-3", "auto"),
        ("", "auto"),
        ("0x1", "auto"),
        ("41x1", "auto"),
        ("1x5", "auto"),
        ("rows=2", "auto"),
        ("1", "0"),
        ("1", "5"),
        ("0:0-19/0-3;1:21-39/0-3", "auto"),
        ("0:0-19/0-3;1:19-39/0-3", "auto"),
        ("0:0-38/0-3", "auto"),
        ("0:0-39/0-2", "auto"),
        ("0:0-39/3-0", "auto"),
    ] {
        let shown =
            of(stages, lanes).unwrap_or_else(|e| format!("error: {e} (exit {})", e.kind().code()));
        text += &format!("--stages '{stages}' --lanes {lanes}\n    {shown}\n");
    }
    insta::assert_snapshot!("plans", text);
}

/// A folder of inputs and one for outputs that must stay empty.
struct Bench {
    dir: TempDir,
    golden: Golden,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        Self {
            dir,
            golden: Golden::carried(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn transcript(&self) -> Transcript {
        Transcript::default()
            .naming(self.dir.path(), "DIR")
            .naming(models(), "MODELS")
            .naming(&self.golden.root, "GOLDEN")
            .naming(workspace(), "REPO")
    }

    /// Returns `avatar-run generate` with good inputs, some of which `replaced` replaces. Each flag
    /// stands once.
    fn generate(&self, replaced: &[(&str, &str)]) -> Command {
        let shown = |p: PathBuf| p.display().to_string();
        let usual = [
            ("--models", models().display().to_string()),
            ("--image", shown(self.golden.input("ref.png"))),
            ("--audio", shown(self.golden.input("speech_16k_mono.wav"))),
            ("--prompt", "a man speaks".to_owned()),
            ("--size", "64x64".to_owned()),
            ("--num_clip", "1".to_owned()),
            ("--infer_frames", "12".to_owned()),
            ("--out", shown(self.path("out/video.mp4"))),
        ];
        let mut command = Program::Run.command();
        command.args(["generate", "--threads", "2"]);
        for (flag, value) in &usual {
            let value = replaced
                .iter()
                .find(|(f, _)| f == flag)
                .map_or(value.as_str(), |(_, v)| v);
            command.arg(format!("{flag}={value}"));
        }
        for (flag, value) in replaced
            .iter()
            .filter(|(f, _)| usual.iter().all(|(u, _)| u != f))
        {
            command.arg(format!("{flag}={value}"));
        }
        command
    }

    fn run(&self, replaced: &[(&str, &str)]) -> Finished {
        self.generate(replaced)
            .output()
            .map(Finished::from)
            .unwrap()
    }

    /// Asserts that the run fails with `exit` and leaves nothing in the output folder.
    #[track_caller]
    fn refused(
        &self,
        transcript: &mut Transcript,
        case: &str,
        exit: ErrorKind,
        replaced: &[(&str, &str)],
    ) {
        let message = self.run(replaced).error(exit);
        assert_eq!(message.lines().count(), 1, "{case}: {message}");
        self.assert_nothing_left(case);
        transcript.add(case, exit, &message);
    }

    #[track_caller]
    fn assert_nothing_left(&self, case: &str) {
        assert_eq!(listing(&self.path("out")), Vec::<PathBuf>::new(), "{case}");
    }

    fn export(&self, ckpt: &Path) -> Finished {
        let mut command = Program::Export.command();
        command
            .args(["onnx", "--lora"])
            .arg(ckpt.join("LiveAvatar/liveavatar.safetensors"));
        command
            .arg("--ckpt_dir")
            .arg(ckpt.join("Wan2.2-S2V-14B"))
            .arg("--out")
            .arg(self.path("out/models"));
        command.output().map(Finished::from).unwrap()
    }
}

#[test]
fn bad_usage() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    for (flag, values) in [
        (
            "--size",
            &[
                "704",
                "0*0",
                "704*",
                "-1*384",
                "",
                "704*384*3",
                "65*64",
                "9000*64",
                "seven*four",
            ][..],
        ),
        ("--infer_frames", &["0", "13", "32", "-12", "x"]),
        ("--sample_steps", &["0", "-1", "1001", "four"]),
        ("--sample_solver", &["heun"]),
        ("--sample_shift", &["0", "x", "nan"]),
        ("--sample_guide_scale", &["-1", "31", "much"]),
        ("--preset", &["quick"]),
        ("--num_clip", &["0", "-1", "many"]),
        ("--stages", &["4x1", "rows=2"]),
        ("--num_gpus_dit", &["0", "5"]),
        ("--start_frame", &["48"]),
        ("--output_file", &["f.mp4"]),
        ("--num_clips", &["3"]),
        ("--lanes", &["5", "0"]),
        ("--crf", &["52"]),
        ("--threads", &["0"]),
        ("--mode", &["dual"]),
        ("--out", &["video.avi", ""]),
        ("--base_seed", &["1.5", "18446744073709551616"]),
    ] {
        for value in values {
            bench.refused(
                &mut t,
                &format!("{flag}={value}"),
                ErrorKind::Usage,
                &[(flag, value)],
            );
        }
    }
    insta::assert_snapshot!("bad_usage", t.text());
    for line in [
        &["generate"][..],
        &["generates"],
        &["exec", "dit_layer.00"],
        &["probe"],
    ] {
        assert_eq!(Program::Run.run(line).code, Some(2), "{line:?}");
        assert_eq!(Program::Export.run(line).code, Some(2), "{line:?}");
    }
}

#[test]
fn every_spelling_of_a_size_works() {
    for size in ["64x80", "６４＊８０", "64×80", " 64 * 80 "] {
        let bench = Bench::new();
        let finished = bench.run(&[("--size", size)]).ok();
        assert!(finished.stderr.contains("-> 64*80"), "{}", finished.stderr);
        let found = probe(&bench.path("out/video.mp4")).unwrap();
        assert_eq!((found.width, found.height, found.frames), (64, 80, 9));
    }
}

#[test]
fn bad_pictures() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let png = fs::read(bench.golden.input("ref.png")).unwrap();
    let mut no_width = png.clone();
    no_width[16..20].fill(0);
    for (name, bytes) in [
        ("empty.png", Vec::new()),
        ("truncated.png", png[..png.len() / 2].to_vec()),
        ("header_only.png", png[..20].to_vec()),
        ("no_width.png", no_width),
        ("0xn.ppm", ppm(0, 5, 0)),
        ("nx0.ppm", ppm(5, 0, 0)),
        ("1x1.ppm", ppm(1, 1, 1)),
        ("1000x1.ppm", ppm(1000, 1, 1000)),
        ("20000_wide.ppm", ppm(20_000, 20, 400_000)),
        ("a_lie.ppm", ppm(16_000, 16_000, 4)),
        ("words.jpg", b"this is no picture\n".to_vec()),
        ("cut.ppm", ppm(32, 32, 32 * 20)),
        ("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0".to_vec()),
    ] {
        let path = bench.file(name, &bytes);
        bench.refused(
            &mut t,
            name,
            ErrorKind::Input,
            &[("--image", path.to_str().unwrap())],
        );
    }
    for (case, path) in [
        ("missing", bench.path("nobody.png")),
        ("a folder", bench.dir.path().to_owned()),
    ] {
        bench.refused(
            &mut t,
            case,
            ErrorKind::Input,
            &[("--image", path.to_str().unwrap())],
        );
    }
    insta::assert_snapshot!("bad_pictures", t.text());
}

/// Writes a video without sound.
fn silent_film(path: &Path) {
    let size: Size = "64*64".parse().unwrap();
    let target = Target::of(path, None).unwrap();
    let mut writer = VideoWriter::create(&target, size, &Encoding::default(), None).unwrap();
    writer.write_frames(&vec![90; 3 * 64 * 64 * 4]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn bad_speech() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let good = wav(&voice(0.5), Samples::Integer);
    let mut nan = voice(0.5);
    nan[4000] = f32::NAN;
    let mut infinite = voice(0.5);
    infinite[8] = f32::INFINITY;
    for (name, bytes) in [
        ("empty.wav", Vec::new()),
        ("header_only.wav", good[..44].to_vec()),
        ("half_a_header.wav", good[..20].to_vec()),
        (
            "a_picture.wav",
            fs::read(bench.golden.input("ref.png")).unwrap(),
        ),
        ("5ms.wav", wav(&voice(0.005), Samples::Integer)),
        ("nan.wav", wav(&nan, Samples::Float)),
        ("infinite.wav", wav(&infinite, Samples::Float)),
        ("words.mp3", b"this is no speech\n".to_vec()),
        (
            "playlist.m3u8",
            b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.wav\n".to_vec(),
        ),
    ] {
        let path = bench.file(name, &bytes);
        bench.refused(
            &mut t,
            name,
            ErrorKind::Input,
            &[("--audio", path.to_str().unwrap())],
        );
    }
    let film = bench.path("silent_film.mp4");
    silent_film(&film);
    for (case, path) in [
        ("no audio stream", film),
        ("missing", bench.path("nobody.wav")),
        ("a folder", bench.dir.path().to_owned()),
    ] {
        bench.refused(
            &mut t,
            case,
            ErrorKind::Input,
            &[("--audio", path.to_str().unwrap())],
        );
    }
    insta::assert_snapshot!("bad_speech", t.text());
}

#[test]
fn odd_speech_works_and_silence_is_noted() {
    let truncated = {
        let whole = wav(&voice(2.0), Samples::Integer);
        whole[..whole.len() / 2].to_vec()
    };
    let loud: Vec<f32> = voice(0.5).iter().map(|v| 40.0 * v).collect();
    for (name, bytes, noted) in [
        ("silent.wav", wav(&[0.0; 8000], Samples::Integer), true),
        ("cut_off.wav", truncated, false),
        ("too_loud.wav", wav(&loud, Samples::Float), false),
    ] {
        let bench = Bench::new();
        let path = bench.file(name, &bytes);
        let finished = bench.run(&[("--audio", path.to_str().unwrap())]).ok();
        assert_eq!(
            finished.stderr.contains("note: recording is silent"),
            noted,
            "{name}: {}",
            finished.stderr
        );
        assert_eq!(
            probe(&bench.path("out/video.mp4")).unwrap().frames,
            9,
            "{name}"
        );
    }
}

#[test]
fn any_prompt_works_and_a_cut_is_noted() {
    let long = "the camera slowly moves closer, ".repeat(32_000);
    for (case, prompt, cut) in [
        ("empty", "", false),
        ("blank", " \t\u{3000} ", false),
        ("controls", "a\u{1}b\u{7f}\u{feff}c", false),
        ("astral", "👩🏽‍🚀 speaks 𝔰𝔩𝔬𝔴𝔩𝔶", false),
    ] {
        let bench = Bench::new();
        let finished = bench.run(&[("--prompt", prompt)]).ok();
        assert_eq!(
            finished.stderr.contains("prompt is cut"),
            cut,
            "{case}: {}",
            finished.stderr
        );
    }
    assert!(long.len() > 1_000_000);
    // One argument holds 128 KiB on Linux, so the command gets less text than the library got
    // above.
    let bench = Bench::new();
    let finished = bench.run(&[("--prompt", &long[..120_000])]).ok();
    assert!(
        finished
            .stderr
            .contains("note: prompt is cut to its first 512 tokens"),
        "{}",
        finished.stderr
    );
    let prompter = runtime::inputs::Prompter::open(&models().join("tokenizer.json")).unwrap();
    let prompt = prompter.encode(&long).unwrap();
    assert!(prompt.truncated && prompt.ids.len() == 512);
}

#[test]
fn a_video_is_written_into_folders_that_are_not_there_yet() {
    let bench = Bench::new();
    let out = bench.path("out/new/folder/video.mp4");
    bench.run(&[("--out", out.to_str().unwrap())]).ok();
    assert_eq!(probe(&out).unwrap().frames, 9);
}

#[test]
fn outputs_that_cannot_be_written() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let file = bench.file("a_file", b"");
    fs::create_dir(bench.path("folder.mp4")).unwrap();
    for (case, flag, path, exit) in [
        (
            "under a file",
            "--out",
            file.join("video.mp4"),
            ErrorKind::Input,
        ),
        (
            "no such place",
            "--out",
            PathBuf::from("/proc/nowhere/video.mp4"),
            ErrorKind::Input,
        ),
        (
            "a folder",
            "--out",
            bench.path("folder.mp4"),
            ErrorKind::Input,
        ),
        (
            "trace under a file",
            "--trace",
            file.join("t.safetensors"),
            ErrorKind::Input,
        ),
        (
            "contact sheet under a file",
            "--contact-sheet",
            file.join("t.png"),
            ErrorKind::Input,
        ),
        (
            "replay missing",
            "--replay",
            bench.path("nothing.safetensors"),
            ErrorKind::Input,
        ),
        (
            "replay of another size",
            "--replay",
            bench.golden.root.join("golden/e2e_tpp_steps.safetensors"),
            ErrorKind::Input,
        ),
    ] {
        bench.refused(&mut t, case, exit, &[(flag, path.to_str().unwrap())]);
    }
    insta::assert_snapshot!("bad_outputs", t.text());
}

/// Runs a script with `$1` a disk of `kib` KiB, as root of its own mount namespace. Returns `None`
/// where the system refuses the namespace.
fn on_a_small_disk(dir: &Path, kib: usize, script: &str, command: &Command) -> Option<Finished> {
    let disk = dir.join("disk");
    fs::create_dir_all(&disk).unwrap();
    let mount = format!("mount -t tmpfs -o size={kib}k tmpfs \"$0\"");
    let possible = Command::new("unshare")
        .args(["-rm", "sh", "-c", &mount])
        .arg(&disk)
        .output();
    if !possible.is_ok_and(|o| o.status.success()) {
        println!("skipped: no disk can be mounted in a namespace here");
        return None;
    }
    let mut inside = Command::new("unshare");
    inside
        .args(["-rm", "sh", "-c", &format!("{mount} && {{ {script} }}")])
        .arg(&disk);
    Some(Finished::from(
        started_by(inside, command).output().unwrap(),
    ))
}

#[test]
fn a_full_disk_ends_a_run_with_its_name_and_a_playable_part() {
    let bench = Bench::new();
    let out = bench.path("disk/video.mp4");
    let speech = bench.file("speech.wav", &wav(&voice(20.0), Samples::Integer));
    let command = bench.generate(&[
        ("--out", out.to_str().unwrap()),
        ("--audio", speech.to_str().unwrap()),
        ("--num_clip", "auto"),
        ("--infer_frames", "48"),
        ("--crf", "0"),
    ]);
    // The namespace takes the disk with it, so the script copies the part out first.
    let script =
        "\"$@\"; code=$?; ls \"$0\" >&2; cp \"$0\"/video.partial.mp4 \"$0\"/../out/; exit $code;";
    let Some(finished) = on_a_small_disk(bench.dir.path(), 512, script, &command) else {
        return;
    };
    let message = finished.error(ErrorKind::Resources);
    assert!(
        message.contains("No space left on device") && message.contains("video"),
        "{message}"
    );
    assert!(
        !finished.stderr.contains("\nvideo.mp4"),
        "{}",
        finished.stderr
    );
    let part = probe(&bench.path("out/video.partial.mp4")).unwrap();
    assert!(part.frames > 0 && part.video_codec == "h264", "{part}");
}

#[test]
fn a_disk_without_room_for_a_second_copy_keeps_the_fragments() {
    let bench = Bench::new();
    let more = [("--infer_frames", "48"), ("--crf", "0")];
    bench.run(&more).ok();
    let whole = fs::metadata(bench.path("out/video.mp4")).unwrap().len();
    let out = bench.path("disk/video.mp4");
    let command = bench.generate(&[&more[..], &[("--out", out.to_str().unwrap())]].concat());
    let script =
        "\"$@\"; code=$?; ls -A \"$0\" >&2; cp \"$0\"/video.mp4 \"$0\"/../kept.mp4; exit $code;";
    let kib = whole as usize * 3 / 2 / 1024;
    let Some(finished) = on_a_small_disk(bench.dir.path(), kib, script, &command) else {
        return;
    };
    let finished = finished.ok();
    assert!(
        finished.stderr.contains("No space left on device")
            && finished.stderr.ends_with("\nvideo.mp4\nvideo.run.json\n"),
        "{}",
        finished.stderr
    );
    let fragments = |name| {
        let file = fs::read(bench.path(name)).unwrap();
        file.windows(4).filter(|kind| kind == b"moof").count()
    };
    // Four blocks, and the last sound.
    assert_eq!((fragments("out/video.mp4"), fragments("kept.mp4")), (0, 5));
    let [kept, whole] = ["kept.mp4", "out/video.mp4"].map(|name| probe(&bench.path(name)).unwrap());
    assert_eq!((kept.frames, whole.frames), (45, 45));
}

#[test]
fn an_export_that_does_not_fit_is_refused_before_its_first_byte() {
    let bench = Bench::new();
    let golden = &bench.golden;
    let mut command = Program::Export.command();
    command
        .arg("onnx")
        .arg("--ckpt_dir")
        .arg(golden.base())
        .arg("--lora")
        .arg(golden.lora())
        .arg("--out")
        .arg(bench.path("disk/models"));
    let script = "\"$@\"; code=$?; ls -A \"$0\"; exit $code;";
    let Some(finished) = on_a_small_disk(bench.dir.path(), 1024, script, &command) else {
        return;
    };
    let message = finished.error(ErrorKind::Resources);
    assert!(
        message.contains("bytes are needed, ") && message.contains(" are free"),
        "{message}"
    );
    assert_eq!(finished.stdout, "", "{message}");
}

/// Copies the carried checkpoint, so that a case may damage it.
fn checkpoint(bench: &Bench) -> PathBuf {
    let ckpt = bench.path("ckpt");
    if ckpt.exists() {
        fs::remove_dir_all(&ckpt).unwrap();
    }
    copy_folder(&bench.golden.ckpt(), &ckpt);
    ckpt
}

const FIRST_SHARD: &str = "Wan2.2-S2V-14B/diffusion_pytorch_model-00001-of-00003.safetensors";
const SHARD: &str = "Wan2.2-S2V-14B/diffusion_pytorch_model-00002-of-00003.safetensors";
const VAE: &str = "Wan2.2-S2V-14B/Wan2.1_VAE.pth";
const LORA: &str = "LiveAvatar/liveavatar.safetensors";

/// Returns the header's entries with their keys, in the order of their data.
fn by_offset(header: &mut Value) -> Vec<(String, &mut Value)> {
    let entries = header
        .as_object_mut()
        .unwrap()
        .iter_mut()
        .filter(|(k, _)| *k != "__metadata__");
    let mut entries: Vec<(String, &mut Value)> = entries.map(|(k, v)| (k.clone(), v)).collect();
    entries.sort_by_key(|(_, v)| v["data_offsets"][0].as_u64());
    entries
}

fn overlap(path: &Path) {
    edit_header(path, |header| {
        let mut entries = by_offset(header);
        let first = entries[0].1["data_offsets"].clone();
        let at = (1..entries.len())
            .find(|&i| entries[i].1["shape"] == entries[0].1["shape"])
            .unwrap_or(1);
        entries[at].1["data_offsets"] = first;
        entries[at].1["shape"] = entries[0].1["shape"].clone();
    });
}

/// Turns the first matrix that is not square on its side: the same bytes get another shape.
fn turn(path: &Path) {
    edit_header(path, |header| {
        let mut entries = by_offset(header);
        let shape = entries
            .iter_mut()
            .map(|(_, v)| &mut v["shape"])
            .find(|s| s.as_array().is_some_and(|s| s.len() == 2 && s[0] != s[1]))
            .unwrap();
        shape.as_array_mut().unwrap().reverse();
    });
}

fn retype(path: &Path, to: &str) {
    edit_header(path, |header| by_offset(header)[0].1["dtype"] = json!(to));
}

#[test]
fn damaged_checkpoints() {
    type Damage = Box<dyn Fn(&Path)>;
    let edit =
        |file: &'static str, f: fn(&Path)| -> Damage { Box::new(move |ckpt| f(&ckpt.join(file))) };
    let replace = |file: &'static str, bytes: Vec<u8>| -> Damage {
        Box::new(move |ckpt| fs::write(ckpt.join(file), &bytes).unwrap())
    };
    let remove = |file: &'static str| -> Damage {
        Box::new(move |ckpt| fs::remove_file(ckpt.join(file)).unwrap())
    };
    let f32s = |key: &str, from: usize| {
        format!(
            r#"{{"{key}":{{"dtype":"F32","shape":[1],"data_offsets":[{from},{}]}}}}"#,
            from + 4
        )
    };
    let stranger = safetensors(&f32s("text_model.layers.0.weight", 0), &[0; 4]);
    let askew = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    let beyond = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let long_header = [&4096u64.to_le_bytes()[..], b"{}"].concat();
    let cases: Vec<(&str, Damage)> = vec![
        (
            "base folder missing",
            Box::new(|ckpt| fs::remove_dir_all(ckpt.join("Wan2.2-S2V-14B")).unwrap()),
        ),
        (
            "base folder empty",
            Box::new(|ckpt| {
                fs::remove_dir_all(ckpt.join("Wan2.2-S2V-14B")).unwrap();
                fs::create_dir(ckpt.join("Wan2.2-S2V-14B")).unwrap();
            }),
        ),
        ("one shard missing", remove(SHARD)),
        ("config missing", remove("Wan2.2-S2V-14B/config.json")),
        (
            "tokenizer missing",
            remove("Wan2.2-S2V-14B/google/umt5-xxl/tokenizer.json"),
        ),
        ("LoRA missing", remove(LORA)),
        (
            "shard truncated",
            edit(SHARD, |p| {
                let bytes = fs::read(p).unwrap();
                fs::write(p, &bytes[..bytes.len() - 100]).unwrap();
            }),
        ),
        ("shard empty", replace(SHARD, Vec::new())),
        ("header longer than any file", replace(SHARD, beyond)),
        ("header longer than the file", replace(SHARD, long_header)),
        (
            "header no JSON",
            replace(SHARD, safetensors("{\"a\":", &[])),
        ),
        ("offsets overlap", edit(SHARD, overlap)),
        (
            "offsets misaligned",
            replace(LORA, safetensors(askew, &[0; 5])),
        ),
        (
            "offsets leave a gap",
            replace(LORA, safetensors(&f32s("a", 4), &[0; 8])),
        ),
        ("dtype unknown", edit(SHARD, |p| retype(p, "F33"))),
        ("dtype of integers", edit(SHARD, |p| retype(p, "I16"))),
        ("dtype of another size", edit(SHARD, |p| retype(p, "F64"))),
        ("LoRA of another model", replace(LORA, stranger)),
        (
            "LoRA with an empty header",
            replace(LORA, safetensors("{}", &[])),
        ),
        (
            "one tensor of another shape, with a LoRA",
            edit(SHARD, turn),
        ),
        (
            "one tensor of another shape, without",
            edit(FIRST_SHARD, turn),
        ),
        (
            "config of another model",
            edit("Wan2.2-S2V-14B/config.json", |p| {
                let mut config: Value = serde_json::from_slice(&fs::read(p).unwrap()).unwrap();
                config["num_heads"] = json!(5);
                fs::write(p, config.to_string()).unwrap();
            }),
        ),
        (
            "config no JSON",
            replace("Wan2.2-S2V-14B/config.json", b"{".to_vec()),
        ),
        (
            "torch file truncated",
            edit(VAE, |p| {
                let bytes = fs::read(p).unwrap();
                fs::write(p, &bytes[..bytes.len() / 2]).unwrap();
            }),
        ),
        ("torch file empty", replace(VAE, Vec::new())),
        (
            "torch file of words",
            replace(
                VAE,
                b"this is no checkpoint, only a line of text\n".to_vec(),
            ),
        ),
        (
            "pickle ends early",
            replace(VAE, torch_archive(b"\x80\x02}q\x00(")),
        ),
        (
            "pickle of a list",
            replace(VAE, torch_archive(b"\x80\x02]q\x00.")),
        ),
    ];
    let bench = Bench::new();
    let mut t = bench.transcript();
    for (case, damage) in cases {
        let ckpt = checkpoint(&bench);
        damage(&ckpt);
        let message = bench.export(&ckpt).error(ErrorKind::Model);
        bench.assert_nothing_left(case);
        t.add(case, ErrorKind::Model, &message);
    }
    insta::assert_snapshot!("damaged_checkpoints", t.text());
}

#[test]
fn a_pickle_that_calls_something_is_refused_and_calls_nothing() {
    let bench = Bench::new();
    let proof = bench.path("called");
    let touch = format!("touch {}", proof.display());
    let mut t = bench.transcript();
    let word = |text: &str| {
        [
            b"X",
            &(text.len() as u32).to_le_bytes()[..],
            text.as_bytes(),
        ]
        .concat()
    };
    for (case, pickle) in [
        (
            "os.system by GLOBAL",
            [b"\x80\x02cos\nsystem\n", &word(&touch)[..], b"\x85R."].concat(),
        ),
        (
            "os.system by STACK_GLOBAL",
            [
                b"\x80\x04",
                &word("os")[..],
                &word("system"),
                b"\x93",
                &word(&touch),
                b"\x85R.",
            ]
            .concat(),
        ),
        (
            "os.system by INST",
            format!("(S'{touch}'\nios\nsystem\n.").into_bytes(),
        ),
        (
            "builtins.eval",
            [b"\x80\x02cbuiltins\neval\n", &word("1")[..], b"\x85R."].concat(),
        ),
    ] {
        let ckpt = checkpoint(&bench);
        fs::write(ckpt.join(VAE), torch_archive(&pickle)).unwrap();
        let message = bench.export(&ckpt).error(ErrorKind::Model);
        bench.assert_nothing_left(case);
        t.add(case, ErrorKind::Model, &message);
    }
    assert!(!proof.exists(), "the pickle was executed");
    insta::assert_snapshot!("hostile_pickles", t.text());
}

#[test]
fn faults_of_several_files_and_tensors_are_reported_together() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let ckpt = checkpoint(&bench);
    fs::write(ckpt.join(SHARD), b"").unwrap();
    fs::write(ckpt.join(VAE), b"").unwrap();
    fs::remove_file(ckpt.join("Wan2.2-S2V-14B/models_t5_umt5-xxl-enc-bf16.pth")).unwrap();
    t.add(
        "files",
        ErrorKind::Model,
        &bench.export(&ckpt).error(ErrorKind::Model),
    );
    let ckpt = checkpoint(&bench);
    turn(&ckpt.join(FIRST_SHARD));
    turn(&ckpt.join(SHARD));
    rename_a_tensor(&ckpt);
    let mut command = Program::Export.command();
    command
        .args(["onnx", "--no-lora", "--ckpt_dir"])
        .arg(ckpt.join("Wan2.2-S2V-14B"))
        .arg("--out")
        .arg(bench.path("out/models"));
    t.add(
        "tensors",
        ErrorKind::Model,
        &Finished::from(command.output().unwrap()).error(ErrorKind::Model),
    );
    bench.assert_nothing_left("several");
    insta::assert_snapshot!("several_faults", t.text());
}

/// Renames one tensor to a name that no reader knows: one is missing and one is left over.
fn rename_a_tensor(ckpt: &Path) {
    let shard = "diffusion_pytorch_model-00003-of-00003.safetensors";
    let base = ckpt.join("Wan2.2-S2V-14B");
    let mut renamed = None;
    edit_header(&base.join(shard), |header| {
        let key = by_offset(header)[0].0.clone();
        let value = header.as_object_mut().unwrap().shift_remove(&key).unwrap();
        header[format!("{key}.old")] = value;
        renamed = Some(key);
    });
    let (index, key) = (
        base.join("diffusion_pytorch_model.safetensors.index.json"),
        renamed.unwrap(),
    );
    let mut map: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    map["weight_map"]
        .as_object_mut()
        .unwrap()
        .shift_remove(&key);
    map["weight_map"][format!("{key}.old")] = json!(shard);
    fs::write(index, map.to_string()).unwrap();
}

#[test]
fn an_export_does_not_replace_what_is_no_export() {
    let bench = Bench::new();
    let occupied = bench.path("out/models");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("thesis.txt"), "years of work").unwrap();
    let message = bench.export(&bench.golden.ckpt()).error(ErrorKind::Usage);
    assert!(
        message.ends_with("already exists and is not an export; choose another --out or remove it"),
        "{message}"
    );
    assert_eq!(
        listing(&bench.path("out")),
        [PathBuf::from("models/thesis.txt")]
    );
}

#[test]
fn an_export_is_the_same_every_time_and_replaces_an_older_one() {
    let bench = Bench::new();
    let all = |folder: &Path| {
        listing(folder)
            .into_iter()
            .map(|f| (f.clone(), fs::read(folder.join(f)).unwrap()))
            .collect::<Vec<_>>()
    };
    bench.export(&bench.golden.ckpt()).ok();
    let first = all(&bench.path("out/models"));
    fs::write(bench.path("out/models/stale.onnx"), "").unwrap();
    bench.export(&bench.golden.ckpt()).ok();
    assert!(
        first == all(&bench.path("out/models")),
        "two exports of one checkpoint differ"
    );
    assert!(first == all(models()), "the command and the library differ");
}

#[test]
fn damaged_models() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let broken = bench.path("models");
    let other = bench.path("other");
    bench.golden.export(LORA_SCALE / 2.0, &other);
    let from_other = |name: &'static str| {
        let other = other.clone();
        move |models: &Path| {
            fs::copy(other.join(name), models.join(name)).unwrap();
        }
    };
    let flip = |name: &'static str| {
        move |models: &Path| {
            let path = models.join(name);
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    };
    let manifest = |from: &'static str, to: &'static str| {
        move |models: &Path| {
            let path = models.join("manifest.json");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{from}");
            fs::write(path, text.replacen(from, to, 1)).unwrap();
        }
    };
    type Damage = Box<dyn Fn(&Path)>;
    let cases: Vec<(&str, Damage)> = vec![
        ("missing", Box::new(|m| fs::remove_dir_all(m).unwrap())),
        (
            "empty",
            Box::new(|m| {
                fs::remove_dir_all(m).unwrap();
                fs::create_dir(m).unwrap();
            }),
        ),
        (
            "weights of another export",
            Box::new(from_other("dit.data")),
        ),
        (
            "manifest of another export",
            Box::new(from_other("manifest.json")),
        ),
        ("one bit of weights", Box::new(flip("dit.data"))),
        ("one bit of a graph", Box::new(flip("dit_layer.onnx"))),
        ("one bit of the tokenizer", Box::new(flip("tokenizer.json"))),
        (
            "weights truncated",
            Box::new(|m| fs::write(m.join("vae.data"), b"").unwrap()),
        ),
        (
            "a graph missing",
            Box::new(|m| fs::remove_file(m.join("dit_head.onnx")).unwrap()),
        ),
        (
            "manifest no JSON",
            Box::new(|m| fs::write(m.join("manifest.json"), "{").unwrap()),
        ),
        (
            "manifest of another version",
            Box::new(manifest("liveavatar-models/2", "liveavatar-models/0")),
        ),
        (
            "manifest with an unknown field",
            Box::new(manifest("\"recipe\"", "\"receipt\"")),
        ),
        (
            "manifest that leaves the folder",
            Box::new(manifest("\"dit_head.onnx\"", "\"../dit_head.onnx\"")),
        ),
    ];
    for (case, damage) in cases {
        if broken.exists() {
            fs::remove_dir_all(&broken).unwrap();
        }
        copy_folder(models(), &broken);
        damage(&broken);
        bench.refused(
            &mut t,
            case,
            ErrorKind::Model,
            &[("--models", broken.to_str().unwrap())],
        );
    }
    insta::assert_snapshot!("damaged_models", t.text());
}

#[test]
fn inspect_tells_a_sound_checkpoint_from_a_broken_one() {
    let bench = Bench::new();
    let t = bench.transcript();
    let inspect = |dir: &Path, more: &[&str]| {
        Program::Export.run([&["inspect", dir.to_str().unwrap()], more].concat())
    };
    insta::assert_snapshot!(
        "inspect",
        t.named(&inspect(&bench.golden.ckpt(), &[]).ok().stdout)
    );
    let ckpt = checkpoint(&bench);
    turn(&ckpt.join(SHARD));
    rename_a_tensor(&ckpt);
    fs::remove_file(ckpt.join(VAE)).unwrap();
    let found = inspect(&ckpt, &[]);
    let refusal = found.error(ErrorKind::Model);
    assert_eq!(refusal, bench.export(&ckpt).error(ErrorKind::Model));
    insta::assert_snapshot!(
        "inspect_broken",
        t.named(&format!("{}\nerror: {refusal}\n", found.stdout))
    );
    let json = inspect(&ckpt, &["--json"]);
    assert_eq!(json.code, Some(4));
    let object: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(object["components"].as_array().map(Vec::len), Some(5));
    for (dir, exit) in [
        (bench.path("nothing"), ErrorKind::Model),
        (bench.path("out"), ErrorKind::Model),
    ] {
        inspect(&dir, &[]).error(exit);
    }
}

#[test]
fn inspect_checks_the_lora_that_the_flag_names() {
    let bench = Bench::new();
    let ckpt = checkpoint(&bench);
    let other = bench.path("other.safetensors");
    fs::rename(ckpt.join(LORA), &other).unwrap();
    let inspect = |more: &[&str]| {
        let dir = ckpt.join("Wan2.2-S2V-14B");
        Program::Export.run([&["inspect", dir.to_str().unwrap()], more].concat())
    };
    assert!(inspect(&[]).ok().stdout.contains("none there"));
    let given = inspect(&["--lora", other.to_str().unwrap()]).ok();
    assert!(given.stdout.contains("adapts 38 of 38 modules"));
    let message = inspect(&["--lora", "nothing"]).error(ErrorKind::Model);
    assert_eq!(message, "nothing: no checkpoint file there");
}

/// `avatar-export inspect ... | head` and its like: the reader goes before the text comes.
#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let bench = Bench::new();
    let ckpt = bench.golden.ckpt();
    let ckpt = ckpt.to_str().unwrap();
    let wan = format!("{ckpt}/Wan2.2-S2V-14B");
    let (models, graphs) = (bench.path("out/models"), bench.path("out/graphs"));
    let (models, graphs) = (models.to_str().unwrap(), graphs.to_str().unwrap());
    let plan = ["plan", "--profile", "4x24g", "--size", "704*384"];
    for (program, arguments) in [
        (Program::Export, &["inspect", ckpt][..]),
        (Program::Export, &["inspect", ckpt, "--json"]),
        (
            Program::Export,
            &["graphs", "--preset", "tiny", "--out", graphs],
        ),
        (
            Program::Export,
            &["onnx", "--no-lora", "--ckpt_dir", &wan, "--out", models],
        ),
        (Program::Export, &["--help"]),
        (Program::Run, &plan),
        (Program::Run, &["plan", "--help"]),
    ] {
        let closed = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        };
        let mut command = program.command();
        let finished: Finished = command
            .args(arguments)
            .stdout(closed())
            .output()
            .unwrap()
            .into();
        assert_eq!(finished.stderr, "", "{arguments:?}");
        assert_eq!(finished.code, Some(0), "{arguments:?}");
        // Errors and progress go to standard error, which may be closed too.
        let mut command = program.command();
        let status = command
            .args(arguments)
            .stderr(closed())
            .stdout(closed())
            .status();
        assert_eq!(status.unwrap().code(), Some(0), "{arguments:?}");
    }
    let mut broken = Program::Export.command();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = broken.args(["inspect", "nothing"]).stderr(writer).status();
    assert_eq!(status.unwrap().code(), Some(4));
}

#[test]
fn graphs_are_written_without_weights() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let out = bench.path("out/graphs");
    let graphs = |size: &str| {
        Program::Export.run([
            "graphs",
            "--preset",
            "tiny",
            "--layers",
            "2",
            "--size",
            size,
            "--out",
            out.to_str().unwrap(),
        ])
    };
    t.add(
        "--size=704",
        ErrorKind::Usage,
        &graphs("704").error(ErrorKind::Usage),
    );
    bench.assert_nothing_left("--size=704");
    assert_eq!(
        t.named(&graphs("704*384").ok().stdout),
        "wrote 41 graphs without weights to DIR/out/graphs\n"
    );
    assert_eq!(listing(&out).len(), 42);
    insta::assert_snapshot!("bad_graphs", t.text());
}

#[test]
fn exec_runs_one_component_and_names_what_does_not_fit() {
    let bench = Bench::new();
    let mut t = bench.transcript();
    let exec = |component: &str, inputs: &Path, more: &[&str]| {
        let mut command = Program::Run.command();
        command
            .args(["exec", component, "--threads", "2", "--models"])
            .arg(models())
            .arg("--inputs")
            .arg(inputs);
        command
            .arg("--outputs")
            .arg(bench.path("out/o.safetensors"))
            .args(more);
        Finished::from(command.output().unwrap())
    };
    let ids = |dtype: &str, shape: &str, bytes: usize| {
        let header = format!(
            r#"{{"ids":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#
        );
        bench.file("i.safetensors", &safetensors(&header, &vec![0; bytes]))
    };
    let good = ids("I64", "[1,3]", 24);
    let finished = exec("text_encoder", &good, &[]).ok();
    assert_eq!(finished.stdout, "context_rows: f32[1, 3, 48]\n");
    let written = fs::read(bench.path("out/o.safetensors")).unwrap();
    assert_eq!(
        split_safetensors(&written).0["context_rows"]["shape"],
        json!([1, 3, 48])
    );
    fs::remove_file(bench.path("out/o.safetensors")).unwrap();
    let mut refuse = |case: &str, exit: ErrorKind, finished: Finished| {
        bench.assert_nothing_left(case);
        t.add(case, exit, &finished.error(exit));
    };
    refuse(
        "no such component",
        ErrorKind::Model,
        exec("text_decoder", &good, &[]),
    );
    refuse(
        "no such tap",
        ErrorKind::Usage,
        exec("text_encoder", &good, &["--tap", "blocks.99"]),
    );
    refuse(
        "no such file",
        ErrorKind::Input,
        exec("text_encoder", &bench.path("nothing"), &[]),
    );
    refuse(
        "another component's inputs",
        ErrorKind::Input,
        exec("dit_text", &good, &[]),
    );
    refuse(
        "another type",
        ErrorKind::Input,
        exec("text_encoder", &ids("F32", "[1,3]", 12), &[]),
    );
    refuse(
        "another shape",
        ErrorKind::Input,
        exec("text_encoder", &ids("I64", "[3]", 24), &[]),
    );
    refuse(
        "no tensor file",
        ErrorKind::Input,
        exec("text_encoder", &bench.file("i.safetensors", b"words"), &[]),
    );
    insta::assert_snapshot!("bad_exec", t.text());
}

#[test]
fn probe_tells_what_is_in_a_file() {
    let bench = Bench::new();
    let film = bench.path("film.mp4");
    silent_film(&film);
    let probe = |path: &Path, more: &[&str]| {
        Program::Run.run([&["probe", path.to_str().unwrap()], more].concat())
    };
    let mut t = bench.transcript();
    assert_eq!(
        probe(&film, &[]).ok().stdout,
        "64x64 h264 25 fps, 4 frames, 0.160 s; no audio\n"
    );
    let object: Value = serde_json::from_str(&probe(&film, &["--json"]).ok().stdout).unwrap();
    assert_eq!(
        (&object["frames"], &object["audio"]),
        (&json!(4), &Value::Null)
    );
    for (case, path) in [
        ("missing", bench.path("nothing.mp4")),
        ("empty", bench.file("empty.mp4", b"")),
        ("words", bench.file("words.mp4", b"this is no video")),
        ("sound only", bench.golden.input("speech_16k_mono.wav")),
        ("a folder", bench.dir.path().to_owned()),
    ] {
        t.add(
            case,
            ErrorKind::Input,
            &probe(&path, &[]).error(ErrorKind::Input),
        );
    }
    insta::assert_snapshot!("bad_probe", t.text());
}

/// Writes a short film with sound, whose frames have a brightness each.
fn film_of(path: &Path, brightness: &[u8]) {
    let side = 64;
    let size = Size {
        width: side,
        height: side,
    };
    let target = Target::of(path, None).unwrap();
    let mut writer = VideoWriter::create(&target, size, &Encoding::default(), None).unwrap();
    for b in brightness {
        writer.write_frames(&vec![*b; 3 * side * side]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn verify_video_holds_a_film_against_another_and_against_a_run() {
    let bench = Bench::new();
    let [one, same, other] = ["one.mp4", "same.mp4", "other.mp4"].map(|n| bench.path(n));
    film_of(&one, &[10, 200, 30]);
    film_of(&same, &[10, 200, 30]);
    film_of(&other, &[10, 190, 30]);
    let verify = |path: &Path, more: &[&str]| {
        Program::Run.run([&["verify-video", path.to_str().unwrap()], more].concat())
    };
    let json = verify(&one, &["--json"]).ok().stdout;
    let facts: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&facts["frames"], &facts["decoded_frames"]),
        (&json!(3), &json!(3))
    );
    let of_one = bench.file("one.json", json.as_bytes());
    let against = ["--against", of_one.to_str().unwrap()];
    let text = verify(&same, &against).ok().stdout;
    assert!(
        text.contains("ok      sha256: ") && !text.contains("wrong"),
        "{text}"
    );
    let message = verify(&other, &against).error(ErrorKind::Verification);
    assert!(message.contains("other.mp4: differs from its description: sha256: wanted"));
    let run = json!({"settings": {"effective_size": {"width": 64, "height": 64}, "frames": 4}});
    let run = bench.file("run.json", run.to_string().as_bytes());
    let against = ["--against", run.to_str().unwrap()];
    let message = verify(&one, &against).error(ErrorKind::Verification);
    assert!(message.ends_with("frames: wanted 4, got 3"), "{message}");
    let words = bench.file("words.json", b"no object");
    let mut t = bench.transcript();
    for (case, film, description) in [
        ("no description", &one, &bench.path("nothing.json")),
        ("words", &one, &words),
        ("no film", &words, &of_one),
    ] {
        let run = verify(film, &["--against", description.to_str().unwrap()]);
        t.add(case, ErrorKind::Input, &run.error(ErrorKind::Input));
    }
    insta::assert_snapshot!("bad_verify_video", t.text());
}
