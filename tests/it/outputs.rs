//! Files that a command writes: nothing is lost, no two runs share one, and a failure leaves what
//! plays.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::cancel::Cancel;
use engines::claims::Existing;
use engines::error_kind::ErrorKind;
use engines::manifest::Models;
use engines::recipe::Recipe;
use exporter::export::{self, Options, Request, export_with};
use runtime::chain::{Event, Observer, Silent};
use runtime::generate::{Engine, generate};
use runtime::media::probe;
use runtime::placement::{Devices, Told};
use std::sync::Arc;
use tests::files::{Samples, copy_folder, listing, voice, wav};
use tests::golden::{Golden, models, open};
use tests::program::{Finished, Program, started_by};

use crate::signals::{Live, signal};
use crate::stream::{Run, line};

/// Flags of the shortest video: one block.
const SHORT: [&str; 6] = [
    "--num_clip=1",
    "--infer_frames=12",
    "--sample_steps=1",
    "--crf=40",
    "--base_seed=7",
    "--size=64*64",
];

fn finished(command: &mut Command) -> Finished {
    Finished::from(command.output().unwrap())
}

/// Makes the shortest video at `out`, with more flags.
fn short(out: &Path, more: &[&str]) -> Finished {
    let audio = Golden::carried().input("speech_16k_mono.wav");
    finished(&mut line(out, &audio, 1, &[&SHORT[..], more].concat()))
}

/// Writes speech of so many seconds into the run's folder.
pub(crate) fn speech(run: &Run, seconds: f32) -> PathBuf {
    let audio = run.path("speech.wav");
    fs::write(&audio, wav(&voice(seconds), Samples::Integer)).unwrap();
    audio
}

#[test]
fn no_input_is_ever_overwritten() {
    let run = Run::new();
    let golden = Golden::carried();
    let (sound, picture) = (golden.input("speech_16k_mono.wav"), golden.input("ref.png"));
    let file = |name: &str, from: &Path| {
        fs::copy(from, run.path(name)).unwrap();
        run.path(name)
    };
    let me = file("me.mp4", &sound);
    let part = file("in.partial.mp4", &sound);
    let png = file("me.png", &picture);
    symlink("me.mp4", run.path("link.mp4")).unwrap();
    let copy = run.path("models");
    copy_folder(models(), &copy);
    let before = listing(run.path("").as_path());
    let data = fs::read(copy.join("vae.data")).unwrap();
    let out = run.path("o.mp4");
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    for (out, audio, more) in [
        (me.clone(), &me, vec![]),
        (run.path("link.mp4"), &me, vec![]),
        (run.path("in.mp4"), &part, vec![]),
        (
            out.clone(),
            &sound,
            vec!["--contact-sheet".to_owned(), text(&png)],
        ),
        (
            out,
            &sound,
            vec!["--trace".to_owned(), text(&copy.join("vae.data"))],
        ),
    ] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let mut command = line(
            &out,
            audio,
            1,
            &[&SHORT[..], &more, &["--overwrite"]].concat(),
        );
        command.args(["--image", &text(&png), "--models", &text(&copy)]);
        let message = finished(&mut command).error(ErrorKind::Input);
        assert!(message.contains("would overwrite --"), "{message}");
    }
    assert_eq!(listing(run.path("").as_path()), before);
    assert_eq!(fs::read(&me).unwrap(), fs::read(&sound).unwrap());
    assert_eq!(fs::read(&part).unwrap(), fs::read(&sound).unwrap());
    assert_eq!(fs::read(&png).unwrap(), fs::read(&picture).unwrap());
    assert_eq!(fs::read(copy.join("vae.data")).unwrap(), data);
}

#[test]
fn an_existing_file_is_replaced_only_when_asked_and_links_stay_links() {
    let run = Run::new();
    let (out, link) = (run.path("real/v.mp4"), run.path("link.mp4"));
    fs::create_dir(run.path("real")).unwrap();
    symlink("real/v.mp4", &link).unwrap();
    let sheet = run.path("sheet.jpg");
    let sheet_flags = ["--contact-sheet", sheet.to_str().unwrap()];
    short(&link, &sheet_flags).ok();
    assert!(fs::read(&sheet).unwrap().starts_with(b"\xff\xd8\xff"));
    let first = fs::read(&out).unwrap();
    // Refused before anything is loaded: these models do not exist.
    for out in [&link, &out] {
        let flags = [&sheet_flags[..], &["--models", "nowhere"]].concat();
        let message = short(out, &flags).error(ErrorKind::Input);
        let (video, sheet) = (run.path("real/v.mp4"), sheet.display());
        let wanted = format!("{}, {sheet} exist already", video.display());
        assert!(message.contains(&wanted), "{message}");
    }
    assert_eq!(fs::read(&out).unwrap(), first);
    let other = ["--base_seed=8", "--overwrite"];
    short(&link, &[&sheet_flags[..], &other].concat()).ok();
    assert_ne!(fs::read(&out).unwrap(), first);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let left = ["link.mp4", "real/v.mp4", "real/v.run.json", "sheet.jpg"].map(PathBuf::from);
    assert_eq!(listing(run.path("").as_path()), left);
    let message = short(&run.path("n.mp4"), &["--contact-sheet=s.gif"]).error(ErrorKind::Usage);
    assert!(
        message.contains("s.gif") && message.contains(".png, "),
        "{message}"
    );
}

#[test]
fn a_folder_of_videos_takes_a_second_one() {
    let run = Run::new();
    let golden = Golden::carried();
    let make = |prompt: &str, more: &[&str]| {
        let mut command = Program::Run.command();
        command.args(["generate", "--threads=1", "--prompt", prompt, "--models"]);
        command
            .arg(models())
            .arg("--image")
            .arg(golden.input("ref.png"));
        command
            .arg("--audio")
            .arg(golden.input("speech_16k_mono.wav"));
        command.arg("--save_dir").arg(run.path("all"));
        finished(command.args(SHORT).args(more)).ok();
    };
    make("a", &[]);
    make("b", &[]);
    let names = ["ref-speech_16k_mono-2.mp4", "ref-speech_16k_mono.mp4"].map(PathBuf::from);
    let mut all: Vec<PathBuf> = names.iter().map(|n| n.with_extension("run.json")).collect();
    all.extend(names.iter().cloned());
    all.sort();
    assert_eq!(listing(&run.path("all")), all);
    let video = |name: &PathBuf| fs::read(run.path("all").join(name)).unwrap();
    assert_ne!(video(&names[0]), video(&names[1]));
    make("b", &["--overwrite"]);
    assert_eq!(video(&names[0]), video(&names[1]));
}

#[test]
fn two_runs_never_share_an_output_and_a_killed_one_holds_nothing() {
    let run = Run::new();
    let audio = speech(&run, 60.0);
    let mut live = Live::start(&mut line(&run.out(), &audio, 1, &["--json", "--crf=40"]));
    live.until(|e| e["event"] == "block" && e["block"] == 1);
    let message = short(&run.out(), &[]).error(ErrorKind::Resources);
    let wanted = format!("process {} is writing here", live.id());
    assert!(message.contains(&wanted), "{message}");
    // The unfinished video is part of the claim.
    let message = short(&run.path("video.partial.mp4"), &["--overwrite"]);
    let message = message.error(ErrorKind::Resources);
    assert!(message.contains(&wanted), "{message}");
    signal(live.id(), "KILL");
    assert_eq!(live.end().0.code, None);
    let left = probe(&run.path("video.partial.mp4")).unwrap().frames;
    let told = short(&run.out(), &[]).ok().stderr;
    let moved = run.path("video.partial.1.mp4");
    let notice = format!(
        "note: an earlier unfinished video is kept: {}",
        moved.display()
    );
    assert!(told.contains(&notice), "{told}");
    assert!(
        left >= 21 && probe(&moved).unwrap().frames == left,
        "{left}"
    );
    let names = [
        "speech.wav",
        "video.mp4",
        "video.partial.1.mp4",
        "video.run.json",
    ];
    let names = names.map(PathBuf::from);
    assert_eq!(listing(run.path("").as_path()), names);
}

/// Makes a command that may write files of so many KiB. The shell counts in blocks of 512 bytes or
/// in KiB, so it says which.
fn limited(limit: &str, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")]);
    started_by(shell, command)
}

#[test]
fn a_full_disk_leaves_whole_fragments_and_says_how_much() {
    let run = Run::new();
    let audio = speech(&run, 12.0);
    let whole = line(&run.out(), &audio, 1, &["--crf=0"]);
    let failed = finished(&mut limited("-f 400", &whole));
    let message = failed.error(ErrorKind::Resources);
    assert!(message.contains("ulimit -f"), "{message}");
    let partial = run.path("video.partial.mp4");
    let found = probe(&partial).unwrap();
    let (frames, seconds) = (found.frames, found.frames as f64 / 25.0);
    assert!(frames >= 9 && (frames - 9) % 12 == 0, "{found}");
    let notice = format!(
        "note: the first {frames} frames ({seconds:.2} s) are kept and play: {}",
        partial.display()
    );
    assert!(failed.stderr.contains(&notice), "{}", failed.stderr);
    assert!(ends_in_a_whole_box(&fs::read(&partial).unwrap()));
    // Where not even the first block fits, no empty file stays.
    fs::remove_file(&partial).unwrap();
    finished(&mut limited("-f 1", &whole)).error(ErrorKind::Resources);
    assert_eq!(
        listing(run.path("").as_path()),
        [PathBuf::from("speech.wav")]
    );
}

/// Says whether the boxes of an MP4 file fill it.
fn ends_in_a_whole_box(mut bytes: &[u8]) -> bool {
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        match bytes.get(length..) {
            Some(rest) if length >= 8 => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}

#[test]
fn a_lack_of_memory_or_files_is_no_fault_of_the_model() {
    let run = Run::new();
    let audio = Golden::carried().input("speech_16k_mono.wav");
    let command = line(&run.out(), &audio, 1, &SHORT);
    for (limit, names) in [
        ("-n 10", "ulimit -n"),
        ("-n 20", "ulimit -n"),
        ("-v 400000", "emory"),
    ] {
        let message = finished(&mut limited(limit, &command)).error(ErrorKind::Resources);
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(names), "{limit}: {message}");
        // The folder is there: making it again would not help.
        assert!(!message.contains("makes this folder"), "{limit}: {message}");
    }
    assert_eq!(listing(run.path("").as_path()), Vec::<PathBuf>::new());
}

/// Writes over a file when the first block is on the disk.
struct Meddler<'a>(&'a Path, fn(&File));

impl Observer for Meddler<'_> {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Written { block: 0, .. }) {
            self.1(&File::options().write(true).open(self.0).unwrap());
        }
    }
}

/// Opens a copy of the carried models.
fn copied(run: &Run) -> (PathBuf, Engine) {
    let copy = run.path("models");
    copy_folder(models(), &copy);
    let backend = open(&copy);
    let opened = backend.models().clone();
    let plan = Told::default().plan(opened.config().dit.layers, 4).unwrap();
    (
        copy,
        Engine::new(opened, Devices::one(Arc::new(backend)), plan),
    )
}

#[test]
fn a_video_of_a_model_that_changed_gets_no_name() {
    let run = Run::new();
    let (copy, engine) = copied(&run);
    let (data, mut request) = (copy.join("vae.data"), run.request());
    request.files.trace = None;
    let zero = |file: &File| file.write_all_at(&[0; 4096], 8192).unwrap();
    let make = |observer: &dyn Observer| generate(&engine, &request, observer, &Cancel::default());
    let error = make(&Meddler(&data, zero)).unwrap_err();
    let partial = run.path("video.partial.mp4");
    let frames = probe(&partial).unwrap().frames;
    assert_eq!(error.kind(), ErrorKind::Model);
    let wanted = format!(
        "{}: changed while it was in use, so what was made with it is suspect; export again; \
         the video is kept, {frames} frames ({:.2} s): {}",
        data.display(),
        frames as f64 / 25.0,
        partial.display()
    );
    assert_eq!(error.to_string(), wanted);
    assert!(!run.out().exists() && frames == 93);
    // The next video on the same engine is not begun.
    let error = make(&Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    assert_eq!(probe(&partial).unwrap().frames, frames);
}

#[test]
fn a_model_that_is_written_again_with_the_same_bytes_is_the_same() {
    let run = Run::new();
    let (copy, engine) = copied(&run);
    let data = copy.join("vae.data");
    let again = data.with_extension("again");
    fs::copy(&data, &again).unwrap();
    fs::rename(&again, &data).unwrap();
    assert!(engine.models().unchanged().is_ok());
    let mut file = File::options().append(true).open(&data).unwrap();
    file.write_all(b"x").unwrap();
    assert!(engine.models().unchanged().is_err());
    fs::remove_file(copy.join("tokenizer.json")).unwrap();
    assert!(engine.models().unchanged().is_err());
}

#[test]
fn a_model_that_is_cut_short_is_named() {
    let run = Run::new();
    let audio = speech(&run, 60.0);
    let copy = run.path("models");
    copy_folder(models(), &copy);
    let mut command = line(&run.out(), &audio, 1, &["--json", "--crf=40"]);
    command.arg("--models").arg(&copy);
    let mut live = Live::start(&mut command);
    live.until(|e| e["event"] == "block" && e["block"] == 1);
    let data = copy.join("vae.data");
    let file = File::options().write(true).open(&data).unwrap();
    file.set_len(4096).unwrap();
    let message = live.end().0.error(ErrorKind::Model);
    let wanted = format!("{}: was cut short", data.display());
    assert!(message.starts_with(&wanted), "{message}");
    assert!(!run.out().exists());
    assert!(probe(&run.path("video.partial.mp4")).unwrap().frames >= 21);
}

#[test]
fn an_export_does_not_replace_a_model_in_use() {
    let run = Run::new();
    let golden = Golden::carried();
    let out = run.path("models");
    let export = || {
        let mut command = Program::Export.command();
        command
            .args(["onnx", "--no-lora", "--ckpt_dir"])
            .arg(golden.base());
        finished(command.arg("--out").arg(&out))
    };
    export().ok();
    let opened = Models::open(&out).unwrap();
    let message = export().error(ErrorKind::Resources);
    let wanted = format!("{}: process {} uses", out.display(), std::process::id());
    assert!(message.starts_with(&wanted), "{message}");
    // Refused at the start: nothing was written.
    assert!(opened.unchanged().is_ok() && !run.path(".models.partial").exists());
    drop(opened);
    // A run that opened the export since then keeps it as well.
    let request = Request {
        ckpt_dir: golden.base(),
        loras: Vec::new(),
        recipe: Recipe::Fp32,
        layers: None,
        out: out.clone(),
    };
    let mut opened = None;
    let mut open = |_: export::Event<'_>| {
        opened.get_or_insert_with(|| Models::open(&out).unwrap());
    };
    let error = export_with(&request, &Options::default(), &mut open).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources, "{error}");
    assert!(opened.unwrap().unchanged().is_ok());
    export().ok();
    // A checkpoint inside the folder that is replaced would go with it.
    copy_folder(&golden.base(), &out.join("ckpt"));
    let mut command = Program::Export.command();
    command
        .args(["onnx", "--no-lora", "--ckpt_dir"])
        .arg(out.join("ckpt"));
    let message = finished(command.arg("--out").arg(&out)).error(ErrorKind::Input);
    assert!(message.contains("would overwrite --ckpt_dir"), "{message}");
    assert!(out.join("ckpt").exists());
}

#[test]
fn every_command_claims_its_file() {
    let run = Run::new();
    let svg = run.path("t.svg");
    let simulate = |more: &[&str]| {
        let mut command = Program::Run.command();
        command.args(["simulate", "--profile=2x24g", "--blocks=2", "--svg"]);
        finished(command.arg(&svg).args(more))
    };
    simulate(&[]).ok();
    let message = simulate(&[]).error(ErrorKind::Input);
    assert!(message.ends_with("exists already; --overwrite replaces, another name keeps"));
    simulate(&["--overwrite"]).ok();
    // The inputs do not exist; the claim comes first.
    let mut exec = Program::Run.command();
    exec.args([
        "exec",
        "dit_head",
        "--models",
        "none",
        "--inputs",
        "i",
        "--outputs",
    ]);
    let message = finished(exec.arg(&svg)).error(ErrorKind::Input);
    assert!(message.contains("exists already"), "{message}");
    let mut verify = Program::Run.command();
    verify.args(["verify", "--models", "none", "--golden", "none", "--json"]);
    let message = finished(verify.arg(&svg)).error(ErrorKind::Input);
    assert!(message.contains("exists already"), "{message}");
    let mut request = run.request();
    request.files.video = run.path("v.mp4");
    request.files.existing = Existing::Keep;
    let held = request.clone().claim(&[]).unwrap();
    let error = request.claim(&[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources, "{error}");
    drop(held);
}
