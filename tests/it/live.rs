//! Videos of sound that arrives on standard input: raw samples, whose end nobody knows.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use engines::error_kind::ErrorKind;
use runtime::media::probe;
use serde_json::{Value, json};
use tests::files::{listing, voice};
use tests::golden::{Golden, models};
use tests::program::{Finished, Program};

/// The command for a video of standard input, at the smallest size with one step.
fn command(out: &Path, more: &[&str]) -> Command {
    let mut command = Program::Run.command();
    command.args([
        "generate",
        "--models",
        models().to_str().unwrap(),
        "--image",
        Golden::carried().input("ref.png").to_str().unwrap(),
        "--audio",
        "-",
        "--prompt",
        "A man speaks.",
        "--size",
        "64*64",
        "--sample_steps",
        "1",
        "--json",
        "--out",
        out.to_str().unwrap(),
    ]);
    command.args(more);
    command
}

fn s16le(samples: &[f32]) -> Vec<u8> {
    let integers = samples.iter().map(|v| (v * 32_767.0) as i16);
    integers.flat_map(i16::to_le_bytes).collect()
}

/// Gives all of `sound` and closes the pipe.
fn finished(out: &Path, sound: &[u8], more: &[&str]) -> Finished {
    fed(&mut command(out, more), sound)
}

/// Gives all of `sound` to a command and closes the pipe.
fn fed(command: &mut Command, sound: &[u8]) -> Finished {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let sound = sound.to_vec();
    // A run that is refused closes the pipe.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&sound)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Finished::from(output)
}

fn events(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn a_video_of_standard_input_ends_with_its_sound() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("v.mp4");
    let mono = voice(2.5);
    let stereo = |rate: usize| {
        let at = |i: usize| (i as f32 * 0.05).sin() * 0.4;
        (0..rate * 5 / 2).flat_map(move |i| [at(i), at(i)].map(f32::to_le_bytes).concat())
    };
    let float: Vec<u8> = stereo(44_100).collect();
    let flags = [
        "--pcm-rate",
        "44100",
        "--pcm_channels",
        "2",
        "--pcm-format",
        "f32le",
    ];
    for (sound, more, rate) in [(s16le(&mono), &[][..], 48_000), (float, &flags, 44_100)] {
        let events = events(
            &finished(&out, &sound, &[more, &["--overwrite"]].concat())
                .ok()
                .stdout,
        );
        let named = |name: &str| {
            events
                .iter()
                .filter(|e| e["event"] == name)
                .collect::<Vec<_>>()
        };
        let started = named("started")[0];
        assert_eq!(
            (&started["look_ahead_seconds"], &started["frames"]),
            (&1.0.into(), &0.into())
        );
        // 62 frames and a half; the three that are dropped make six blocks of twelve.
        let blocks = named("block");
        let frames: Vec<u64> = blocks
            .iter()
            .map(|b| b["frames"].as_u64().unwrap())
            .collect();
        assert_eq!(frames, [9, 21, 33, 45, 57, 63]);
        assert!(
            blocks.iter().all(|b| b["latency_ms"].is_u64()),
            "{blocks:?}"
        );
        assert_eq!(named("finished")[0]["frames"], 63);
        let facts = probe(&out).unwrap();
        let audio = facts.audio.unwrap();
        assert_eq!((facts.frames, audio.rate), (63, rate));
        assert!(facts.av_offset_ms.abs() < 1.0, "{}", facts.av_offset_ms);
    }
    let finished = finished(
        &out,
        &s16le(&voice(9.0)),
        &["--overwrite", "--num_clip", "1"],
    )
    .ok();
    assert_eq!(events(&finished.stdout).pop().unwrap()["frames"], 45);
}

/// Starts a run, and returns its pipe and its events.
fn started(out: &Path, more: &[&str]) -> (Child, ChildStdin, impl Iterator<Item = Value> + use<>) {
    let mut command = command(out, more);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let pipe = child.stdin.take().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let events = lines.map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap());
    (child, pipe, events)
}

#[test]
fn blocks_are_made_while_the_sound_still_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut pipe, mut events) = started(&dir.path().join("v.mp4"), &[]);
    let sound = s16le(&voice(4.0));
    // The first block shows 0.36 s, and 1.0 s after it must be there.
    pipe.write_all(&sound[..2 * 16_000 * 3 / 2]).unwrap();
    pipe.flush().unwrap();
    assert!(events.any(|e| e["event"] == "block" && e["block"] == 0));
    pipe.write_all(&sound[2 * 16_000 * 3 / 2..]).unwrap();
    assert!(events.any(|e| e["event"] == "block" && e["block"] == 4));
    drop(pipe);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["frames"]),
        (&"finished".into(), &100.into())
    );
    assert!(child.wait().unwrap().success());
}

#[test]
fn silence_fills_a_gap_of_live_sound() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut pipe, mut events) = started(&dir.path().join("v.mp4"), &["--live"]);
    pipe.write_all(&s16le(&voice(0.5))).unwrap();
    // Nothing more is written, and yet blocks come.
    assert!(events.any(|e| e["event"] == "block" && e["block"] == 2));
    drop(pipe);
    assert_eq!(events.last().unwrap()["event"], "finished");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_run_that_waits_for_sound_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    // No state is kept of what cannot be heard again.
    let (mut child, mut pipe, mut events) =
        started(&dir.path().join("v.mp4"), &["--keep-state", "0"]);
    pipe.write_all(&s16le(&voice(4.0))).unwrap();
    assert!(events.any(|e| e["event"] == "block" && e["block"] == 4));
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status();
    assert!(kill.unwrap().success());
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["exit"]),
        (&"error".into(), &ErrorKind::Interrupted.code().into())
    );
    assert_eq!(
        child.wait().unwrap().code(),
        Some(ErrorKind::Interrupted.code().into())
    );
    assert_eq!(listing(dir.path()), [Path::new("v.partial.mp4")]);
    let message = finished(&dir.path().join("v.mp4"), &[], &["--resume"]).error(ErrorKind::Usage);
    assert!(
        message.contains("--audio -: --resume wants a file"),
        "{message}"
    );
    assert_eq!(listing(dir.path()), [Path::new("v.partial.mp4")]);
}

#[test]
fn every_output_has_the_sound_that_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let [mp4, webm] = ["v.mp4", "v.webm"].map(|name| dir.path().join(name));
    let flags = [
        "--pcm-rate",
        "44100",
        "--out",
        webm.to_str().unwrap(),
        "--vcodec",
        "libvpx-vp9",
    ];
    let sound = s16le(&vec![0.25; 44_100 * 5 / 2]);
    finished(&mp4, &sound, &flags).ok();
    for (out, rate) in [(&mp4, 44_100), (&webm, 48_000)] {
        let facts = probe(out).unwrap();
        let audio = facts.audio.unwrap();
        assert_eq!((facts.frames, audio.rate), (63, rate), "{}", out.display());
        assert!((audio.seconds - 2.52).abs() < 0.05, "{}", audio.seconds);
    }
}

#[test]
fn a_run_of_standard_input_is_no_run_that_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("v.mp4");
    finished(&out, &s16le(&voice(0.5)), &["--base_seed", "7"]).ok();
    let run = dir.path().join("v.run.json");
    let file: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    let gone = json!({"path": "-", "sha256": null, "bytes": null});
    assert_eq!(file["inputs"]["audio"], gone);
    let replay = |more: &[&str], sound: &[u8]| {
        let mut command = Program::Run.command();
        command.arg("replay").arg(&run).args(more);
        fed(&mut command, sound)
    };
    let message = replay(&[], &[]).error(ErrorKind::Input);
    let want = "--audio - was a pipe, whose bytes are gone";
    assert!(message.contains(want), "{message}");
    replay(&["--changed-inputs"], &s16le(&voice(0.5))).ok();
}

#[test]
fn sound_that_is_too_short_and_flags_without_a_pipe_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("v.mp4");
    for sound in [0.0, 0.02] {
        let message = finished(&out, &s16le(&voice(sound)), &[]).error(ErrorKind::Input);
        let want = "standard input: wants at least 45 ms of audio, got ";
        assert!(message.contains(want), "{message}");
    }
    assert_eq!(listing(dir.path()), Vec::<std::path::PathBuf>::new());
    let wav = dir.path().join("a.wav");
    fs::write(&wav, b"RIFF").unwrap();
    let wav = wav.to_str().unwrap();
    for (flags, want) in [
        (
            &["--audio", wav, "--pcm-rate", "8000"][..],
            "--pcm-rate wants --audio -",
        ),
        (&["--audio", wav, "--live"], "--live wants --audio -"),
        (
            &["--timing", "reference"],
            "--timing reference wants a recording whose length is known",
        ),
        (
            &["--contact-sheet", "s.png"],
            "--contact-sheet wants a recording",
        ),
    ] {
        let message = finished(&out, &[], flags).error(ErrorKind::Usage);
        assert!(message.contains(want), "{message}");
    }
}
