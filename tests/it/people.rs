//! Several people, a pose, words that a program speaks, and lips beside their sound, as a user
//! meets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::error_kind::ErrorKind;
use engines::tensor_file;
use serde_json::Value;
use tests::files::{Samples, voice, wav};
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

    fn sound(&self, name: &str, seconds: f32, factor: f32) -> String {
        let samples: Vec<f32> = voice(seconds).into_iter().map(|v| v * factor).collect();
        fs::write(self.path(name), wav(&samples, Samples::Integer)).unwrap();
        self.path(name).display().to_string()
    }

    /// Runs `avatar-run generate` at the smallest size, with clips of one block.
    fn generate(&self, name: &str, more: &[&str]) -> Finished {
        let mut command = Program::Run.command();
        command.args([
            "generate",
            "--threads",
            "2",
            "--size",
            "64*64",
            "--overwrite",
        ]);
        command.args(["--infer_frames", "12", "--prompt", "a man speaks", "--json"]);
        for (flag, path) in [
            ("--models", models().to_owned()),
            ("--image", self.golden.input("ref.png")),
            ("--out", self.path(name)),
        ] {
            command.arg(flag).arg(path);
        }
        run(command.args(more))
    }

    fn video(&self, name: &str, more: &[&str]) -> Vec<u8> {
        self.generate(name, more).ok();
        fs::read(self.path(name)).unwrap()
    }
}

fn run(command: &mut Command) -> Finished {
    command.output().map(Finished::from).unwrap()
}

fn event(run: &Finished, name: &str) -> Value {
    let mut lines = run.stdout.lines();
    let event = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let found = lines.find_map(|line| Some(event(line)).filter(|e| e["event"] == name));
    found.unwrap_or_else(|| panic!("{name} in {}", run.stdout))
}

#[test]
fn two_people_speak_until_the_shorter_recording_ends() {
    let desk = Desk::new();
    let (long, short) = (desk.sound("a.wav", 1.3, 1.0), desk.sound("b.wav", 0.9, 0.4));
    let image = image::open(desk.golden.input("ref.png")).unwrap();
    let (width, height) = (image.width(), image.height());
    let left = format!("0,0,{},{height}", width / 2);
    let right = format!("{},0,{},{height}", width / 2, width - width / 2);
    let mask = image::GrayImage::from_fn(width, height, |x, _| {
        image::Luma([if x < width / 2 { 255 } else { 0 }])
    });
    mask.save(desk.path("left.png")).unwrap();
    let (both, masks) = (format!("{long}+{short}"), format!("{left}+{right}"));
    let trace = desk.path("trace.safetensors").display().to_string();
    let latents = |audio: &str, masks: &str| {
        let flags = ["--audio", audio, "--masks", masks, "--trace", &trace];
        let made = desk.generate("two.mp4", &flags);
        let made = made.ok();
        assert_eq!(event(&made, "started")["speakers"], 2);
        // 0.9 s at 25 frames a second: 22 whole frames and a part.
        assert_eq!(event(&made, "started")["frames"], 23);
        assert!(
            made.stdout.contains("ends first, after 0.90 s"),
            "{}",
            made.stdout
        );
        tensor_file::read(Path::new(&trace)).unwrap()["block1.latents"]
            .bytes()
            .to_vec()
    };
    let once = latents(&both, &masks);
    // A mask says the same as a box, and who speaks what makes the video.
    let drawn = format!("{}+{right}", desk.path("left.png").display());
    assert!(latents(&both, &drawn) == once);
    assert!(latents(&both, &format!("{right}+{left}")) != once);
    // Every split gives the same bytes.
    let flags = ["--audio", &both, "--masks", &masks];
    let whole = desk.video("whole.mp4", &flags);
    let split = [&flags[..], &["--stages", "3x1"]].concat();
    assert!(desk.video("split.mp4", &split) == whole);
    let probe = Program::Run.run(["probe", "--json", desk.path("whole.mp4").to_str().unwrap()]);
    let facts: Value = serde_json::from_str(&probe.ok().stdout).unwrap();
    assert_eq!(facts["audio"]["channels"], 1);
}

#[test]
fn two_people_who_cannot_be_told_apart_are_refused() {
    let desk = Desk::new();
    let sound = desk.sound("a.wav", 1.0, 1.0);
    let both = format!("{sound}+{sound}");
    fs::write(desk.path("small.png"), png(16)).unwrap();
    let small = format!("0,0,9,9+{}", desk.path("small.png").display());
    for (flags, kind, want) in [
        (
            &["--audio", &both][..],
            ErrorKind::Usage,
            "want --masks with 2 places, got 0",
        ),
        (
            &["--audio", &sound, "--masks", "0,0,9,9"],
            ErrorKind::Usage,
            "two recordings or more",
        ),
        (
            &["--audio", &both, "--masks", "0,0,9,9+9,9,999,9"],
            ErrorKind::Input,
            "inside the picture",
        ),
        (
            &["--audio", &both, "--masks", &small],
            ErrorKind::Input,
            "wants the size of the picture",
        ),
        (
            &["--audio", &both, "--masks", "0,0,1,1+0,0,99,99"],
            ErrorKind::Input,
            "mask 1 (0,0,1,1) covers no token",
        ),
        (
            &["--audio", &both, "--masks", "0,0,9,9+none.png"],
            ErrorKind::Input,
            "none.png: cannot open",
        ),
    ] {
        let error = desk.generate("v.mp4", flags).error(kind);
        assert!(error.contains(want), "{flags:?}: {error}");
        assert!(!desk.path("v.mp4").exists());
    }
}

fn png(side: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = image::GrayImage::from_pixel(side, side, image::Luma([255]));
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}
