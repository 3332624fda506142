//! Ctrl-C and SIGTERM are heard in every phase of every command, within a second.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use engines::cancel::Cancel;
use engines::error_kind::ErrorKind;
use engines::manifest::Models;
use serde_json::Value;
use tests::files::listing;
use tests::golden::{Golden, models};
use tests::program::{Finished, Program};

use crate::outputs::speech;
use crate::stream::{Run, line};

/// Longest time from a signal to the end of the process.
const SOON: Duration = Duration::from_secs(1);

/// Sends a signal to a process.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// A command that runs and tells its events.
pub(crate) struct Live {
    child: Child,
    stdout: BufReader<ChildStdout>,
    text: String,
}

impl Live {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
            text: String::new(),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first event for which `ready` holds.
    pub(crate) fn until(&mut self, ready: impl Fn(&Value) -> bool) {
        loop {
            let at = self.text.len();
            let read = self.stdout.read_line(&mut self.text).unwrap();
            assert!(read > 0, "ended too early: {}", self.text);
            if ready(&serde_json::from_str(&self.text[at..]).unwrap()) {
                return;
            }
        }
    }

    /// Waits for the end. Returns the run and the time that it took from here.
    pub(crate) fn end(mut self) -> (Finished, Duration) {
        let since = Instant::now();
        self.stdout.read_to_string(&mut self.text).unwrap();
        let output = self.child.wait_with_output().unwrap();
        let took = since.elapsed();
        let finished = Finished {
            stdout: self.text,
            ..Finished::from(output)
        };
        (finished, took)
    }
}

#[test]
fn a_signal_is_heard_in_every_phase_within_a_second() {
    for (phase, name, seconds) in [
        ("opening the models", "TERM", 2.0),
        ("reading inputs", "INT", 30.0),
        ("encoding the prompt", "TERM", 2.0),
        ("encoding the speech", "TERM", 30.0),
        ("encoding the picture", "INT", 2.0),
        ("denoising", "TERM", 2.0),
    ] {
        let run = Run::new();
        // Each phase but the first takes some hundred milliseconds, so the signal falls into it.
        let audio = speech(&run, seconds);
        let flags = ["--json", "--size=256*256", "--crf=40"];
        let mut live = Live::start(&mut line(&run.out(), &audio, 2, &flags));
        live.until(|e| e["event"] == "phase" && e["name"] == phase);
        std::thread::sleep(Duration::from_millis(30));
        signal(live.id(), name);
        let (finished, took) = live.end();
        let message = finished.error(ErrorKind::Interrupted);
        assert_eq!(
            message, "interrupted after 0 frames; nothing was written",
            "{phase}"
        );
        assert!(took < SOON, "{phase}: {took:?}");
        println!("{phase}: {} ms", took.as_millis());
        assert_eq!(
            listing(run.path("").as_path()),
            [PathBuf::from("speech.wav")],
            "{phase}"
        );
    }
}

#[test]
fn an_export_is_opened_until_a_stop_is_asked_for() {
    let cancel = Cancel::default();
    assert!(Models::open_until(models(), &cancel).is_ok());
    cancel.cancel();
    let error = Models::open_until(models(), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let run = Run::new();
    let audio = speech(&run, 60.0);
    let mut live = Live::start(&mut line(&run.out(), &audio, 2, &["--json", "--crf=40"]));
    live.until(|e| e["event"] == "block" && e["block"] == 0);
    let process = live.id();
    signal(process, "INT");
    // The process may have ended by itself between the two.
    let mut second = Command::new("kill");
    second.arg("-TERM").arg(process.to_string());
    drop(second.stderr(Stdio::null()).status());
    let (finished, took) = live.end();
    assert_eq!(finished.code, Some(6), "{}", finished.stderr);
    assert!(took < SOON, "{took:?}");
}

#[test]
fn commands_that_keep_nothing_end_with_code_6() {
    let run = Run::new();
    let golden = Golden::carried();
    let verify = |program: Program| {
        let mut command = program.command();
        command.args(["verify", "--models"]).arg(models());
        command.arg("--golden").arg(&golden.root);
        command
    };
    let mut bench = Program::Run.command();
    bench
        .args(["bench", "--runs=60000", "--models"])
        .arg(models());
    let mut synth = Program::Export.command();
    synth.args(["synth", "--preset=small", "--layers=200", "--out"]);
    synth.arg(run.path("ckpt"));
    for (what, mut command) in [
        ("verify", verify(Program::Run)),
        ("verify of the exporter", verify(Program::Export)),
        ("bench", bench),
        ("synth", synth),
    ] {
        let live = Live::start(&mut command);
        std::thread::sleep(Duration::from_millis(400));
        signal(live.id(), "TERM");
        let (finished, took) = live.end();
        let message = finished.error(ErrorKind::Interrupted);
        assert!(took < SOON, "{what}: {took:?}");
        println!("{what}: {} ms, {message}", took.as_millis());
    }
    assert_eq!(listing(run.path("").as_path()), Vec::<PathBuf>::new());
}
