//! A run that was killed and goes on ends with the bytes of a run that never stopped.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use engines::error_kind::ErrorKind;
use tests::golden::{Golden, models};
use tests::program::{Finished, Program};

/// A folder for one test, and the small inputs.
struct Desk {
    dir: tempfile::TempDir,
    golden: Golden,
}

impl Desk {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            golden: Golden::carried(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns `avatar-run generate` of 14 clips of one block. It keeps a state after each clip.
    fn generate(&self, name: &str, more: &[&str]) -> Command {
        let mut command = Program::Run.command();
        command.args(["generate", "--threads", "2", "--size", "64*64"]);
        for (flag, path) in [
            ("--models", models().to_owned()),
            ("--image", self.golden.input("ref.png")),
            (
                "--audio",
                tests::golden::workspace().join("assets/speech.wav"),
            ),
            ("--out", self.path(name)),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(["--prompt", "a man speaks", "--infer_frames", "12"]);
        command.args(["--keep-state", "0"]);
        command.args(more);
        command
    }

    fn whole(&self, name: &str, more: &[&str]) -> Vec<u8> {
        finished(self.generate(name, more)).ok();
        fs::read(self.path(name)).unwrap()
    }

    /// Kills a run once it has kept a state before `block` or a later one.
    fn killed(&self, name: &str, more: &[&str], block: u64) {
        let mut run = self.generate(name, more).spawn().unwrap();
        let state = self
            .path(name)
            .with_extension("partial.state")
            .join("state.json");
        let begun = Instant::now();
        while self.kept(&state).is_none_or(|kept| kept < block) {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "no state was kept"
            );
            assert!(
                ended(&mut run).is_none(),
                "the run ended before it was killed"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        // SIGKILL.
        run.kill().unwrap();
        run.wait().unwrap();
        assert!(!self.path(name).exists());
    }

    fn kept(&self, state: &PathBuf) -> Option<u64> {
        let text = fs::read(state).ok()?;
        let state: serde_json::Value = serde_json::from_slice(&text).ok()?;
        state["block"].as_u64()
    }
}

fn ended(run: &mut Child) -> Option<std::process::ExitStatus> {
    run.try_wait().unwrap()
}

fn finished(mut command: Command) -> Finished {
    command.output().map(Finished::from).unwrap()
}

#[test]
fn a_killed_run_goes_on_to_the_bytes_of_a_whole_run() {
    for mode in [
        &["--mode", "tpp"][..],
        &["--mode", "single", "--enable_online_decode"],
    ] {
        let desk = Desk::new();
        let whole = desk.whole("whole.mp4", mode);
        desk.killed("v.mp4", mode, 2);
        // Killed again, further on.
        let resume = [mode, &["--resume"]].concat();
        desk.killed("v.mp4", &resume, 6);
        let run = finished(desk.generate("v.mp4", &resume)).ok();
        assert!(run.stderr.contains("going on after"), "{}", run.stderr);
        assert!(fs::read(desk.path("v.mp4")).unwrap() == whole, "{mode:?}");
        // Two videos and their run files.
        let left: Vec<_> = fs::read_dir(desk.dir.path()).unwrap().collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }
}

#[test]
fn a_stopped_run_names_the_command_that_goes_on() {
    let desk = Desk::new();
    let whole = desk.whole("whole.mp4", &[]);
    let run = desk.generate("v.mp4", &[]).spawn().unwrap();
    let state = desk.path("v.partial.state").join("state.json");
    while !state.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = Command::new("kill")
        .args(["-TERM", &run.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let run = Finished::from(run.wait_with_output().unwrap());
    let message = run.error(ErrorKind::Interrupted);
    assert!(
        message.contains("the same command with --resume goes on"),
        "{message}"
    );
    finished(desk.generate("v.mp4", &["--resume"])).ok();
    assert!(fs::read(desk.path("v.mp4")).unwrap() == whole);
}

#[test]
fn another_video_is_not_gone_on_from() {
    let desk = Desk::new();
    desk.killed("v.mp4", &[], 1);
    let other = finished(desk.generate("v.mp4", &["--resume", "--base_seed", "1"]));
    let message = other.error(ErrorKind::Usage);
    assert!(message.contains("base_seed was 420, is 1;"), "{message}");
    // A damaged ring is found, and what is there stays.
    let folder = desk.path("v.partial.state");
    let block = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
    let block = block.filter(|p| p.is_dir()).min().unwrap();
    let ring = block.join("ring.step00.layer00.safetensors");
    let mut bytes = fs::read(&ring).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&ring, &bytes).unwrap();
    let damaged = finished(desk.generate("v.mp4", &["--resume"]));
    let message = damaged.error(ErrorKind::Input);
    assert!(message.contains("checksum"), "{message}");
    // Without --resume a new video begins, and the old one is kept.
    let run = finished(desk.generate("v.mp4", &[])).ok();
    assert!(
        run.stderr.contains("--resume would have gone on"),
        "{}",
        run.stderr
    );
}
