//! Several people, a pose, words that a program speaks, and lips beside their sound, as a user
//! meets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::error_kind::ErrorKind;
use engines::tensor_file;
use runtime::media::{Encoding, Target, VideoWriter};
use serde_json::Value;
use tests::files::{RATE, Samples, voice, wav};
use tests::golden::{Golden, models};
use tests::program::{Finished, Program};

use crate::frames::frames;

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

#[test]
fn a_program_speaks_the_words_and_no_shell_reads_them() {
    let desk = Desk::new();
    let sound = desk.sound("a.wav", 0.9, 1.0);
    let given = desk.video("given.mp4", &["--audio", &sound]);
    // Copies the recording, and keeps the words.
    let said = desk.path("said.txt").display().to_string();
    let command =
        format!(r#"sh -c 'cp "{sound}" "$1"; printf "%s" "$2" > "{said}"' sh {{out}} {{text}}"#);
    let words = format!(
        "Hello; $(touch {}) `id` {{out}}",
        desk.path("trap").display()
    );
    let spoken = desk.video("spoken.mp4", &["--tts_command", &command, "--text", &words]);
    assert!(spoken == given, "the spoken sound is the recording");
    assert_eq!(fs::read_to_string(&said).unwrap(), words);
    assert!(!desk.path("trap").exists());
    for (command, words, kind, want) in [
        (
            "sh -c 'echo no voice >&2; exit 7' {out} {text}",
            "a",
            ErrorKind::Input,
            "exit status: 7, and said: no voice",
        ),
        ("true {out} {text}", "a", ErrorKind::Input, "wrote no sound"),
        (
            "no-such-program {out} {text}",
            "a",
            ErrorKind::Resources,
            "cannot start no-such-program",
        ),
        ("say {text}", "a", ErrorKind::Usage, "wants {out}"),
        (
            "say {out} {text}",
            "-a",
            ErrorKind::Usage,
            "put `--` before",
        ),
        ("say {out} '{text}", "a", ErrorKind::Usage, "is not closed"),
    ] {
        let flags = ["--tts_command", command, "--text", words];
        let error = desk.generate("v.mp4", &flags).error(kind);
        assert!(error.contains(want), "{command}: {error}");
        assert!(!desk.path("v.mp4").exists());
    }
    let silent = "sh -c 'printf RIFF > \"$1\"' sh {out} {text}";
    let flags = ["--tts_command", silent, "--text", "a"];
    desk.generate("v.mp4", &flags).error(ErrorKind::Input);
}

/// Runs the synthesiser of the README where it is installed. `scripts/setup --checks` installs it.
#[test]
fn debians_synthesiser_speaks() {
    if Command::new("espeak-ng").arg("--version").output().is_err() {
        println!("NOT CHECKED: espeak-ng is missing; scripts/setup --checks installs it");
        return;
    }
    let desk = Desk::new();
    let flags = [
        "--tts_command",
        "espeak-ng -w {out} -- {text}",
        "--text",
        "Hello.",
    ];
    let made = desk.generate("v.mp4", &flags).ok();
    let seconds = event(&made, "started")["audio_seconds"].as_f64().unwrap();
    assert!((0.3..3.0).contains(&seconds), "{seconds}");
    let wrong = [
        "--tts_command",
        "espeak-ng -v nobody -w {out} -- {text}",
        "--text",
        "Hello.",
    ];
    let error = desk.generate("w.mp4", &wrong).error(ErrorKind::Input);
    assert!(error.contains("voice does not exist"), "{error}");
}

#[test]
fn a_pose_video_moves_the_person_clip_by_clip() {
    let desk = Desk::new();
    let sound = desk.sound("a.wav", 0.9, 1.0);
    let pose = |name: &str, frames: usize| {
        let path = desk.path(name);
        let size = "64*80".parse().unwrap();
        let target = Target::of(&path, None).unwrap();
        let mut writer = VideoWriter::create(&target, size, &Encoding::default(), None).unwrap();
        for at in 0..frames {
            let row = |y: usize| if y / 8 == at % 10 { 250u8 } else { 10 };
            let pixels: Vec<u8> = (0..80).flat_map(|y| vec![row(y); 3 * 64]).collect();
            writer.write_frames(&pixels).unwrap();
        }
        writer.finish().unwrap();
        path.display().to_string()
    };
    let (long, short) = (pose("long.mp4", 60), pose("short.mp4", 8));
    let without = desk.video("without.mp4", &["--audio", &sound]);
    let moved = desk.video("moved.mp4", &["--audio", &sound, "--pose_video", &long]);
    assert!(moved != without);
    // The first clip shows the same poses but for its end, and the picture is causal.
    desk.video("ended.mp4", &["--audio", &sound, "--pose_video", &short]);
    let [moved_frames, ended] = ["moved.mp4", "ended.mp4"].map(|v| frames(&desk.path(v)));
    assert_eq!(moved_frames.len(), 23);
    assert!(
        moved_frames[22] != ended[22],
        "the pose is black after its end"
    );
    for more in [&["--stages", "1x4"][..], &["--mode", "single"]] {
        let flags = [&["--audio", &sound, "--pose_video", &long], more].concat();
        let made = desk.video("other.mp4", &flags);
        assert_eq!(made == moved, more[0] == "--stages", "{more:?}");
    }
    let error = desk.generate("v.mp4", &["--audio", &sound, "--pose_video", &sound]);
    let error = error.error(ErrorKind::Input);
    assert!(
        error.contains("a.wav: wants a video, found no picture among 1 streams"),
        "{error}"
    );
}

#[test]
fn the_distance_of_the_picture_is_drawn_or_given() {
    let desk = Desk::new();
    let sound = desk.sound("a.wav", 0.9, 1.0);
    let trace = desk.path("trace.safetensors").display().to_string();
    let table = |distance: &str| {
        let flags = [
            "--audio",
            &sound,
            "--trace",
            &trace,
            "--relative_dist",
            distance,
        ];
        desk.video("v.mp4", &flags);
        let tensors = tensor_file::read(Path::new(&trace)).unwrap();
        tensors["relative_dist"].as_slice::<i64>().to_vec()
    };
    let (random, fixed, given) = (table("random"), table("fixed"), table("12"));
    assert!(random.iter().any(|d| *d != random[0]), "{random:?}");
    assert!(fixed.iter().all(|d| *d == random[0]), "{fixed:?}");
    assert!(given.iter().all(|d| *d == 12) && given.len() == random.len());
    let made = desk
        .generate("v.mp4", &["--audio", &sound, "--start_from_ref"])
        .ok();
    assert!(
        made.stdout
            .contains("the motion history of every mode is the picture")
    );
}

/// Draws a person whose mouth opens with the voice, `behind` frames later, and writes the video
/// with its sound.
fn talker(desk: &Desk, name: &str, behind: isize) -> PathBuf {
    let loud = |at: isize| -> f32 {
        // Syllables of uneven length, and pauses.
        let syllable = (at / 5 * 7919 % 101) as f32 / 101.0;
        if at < 0 || at / 35 % 3 == 2 {
            0.02
        } else {
            0.05 + 0.6 * syllable
        }
    };
    let frame_samples = RATE as usize / 25;
    let buzz = |at: usize| (at as f32 * 0.055).sin() * loud((at / frame_samples) as isize);
    let samples: Vec<f32> = (0..200 * frame_samples).map(buzz).collect();
    let sound = desk.path("talker.wav");
    fs::write(&sound, wav(&samples, Samples::Integer)).unwrap();
    let out = desk.path(name);
    let track = runtime::media::AudioTrack::open(&sound).unwrap();
    let size = "128*128".parse().unwrap();
    let target = Target::of(&out, None).unwrap();
    let encoding = Encoding {
        comment: "how it was made".to_owned(),
        ..Encoding::default()
    };
    let mut writer = VideoWriter::create(&target, size, &encoding, Some(track)).unwrap();
    for frame in 0..200isize {
        let open = 2.0 + 40.0 * loud(frame - behind);
        let turn = 6.0 * (frame as f32 / 40.0).sin();
        let pixel = |at: usize| -> u8 {
            let (x, y) = ((at % 128) as f32 - 64.0 - turn, (at / 128) as f32);
            let head = x.powi(2) / 1600.0 + (y - 64.0).powi(2) / 3000.0 < 1.0;
            let mouth = x.abs() < 16.0 && (y - 92.0).abs() < open / 2.0;
            let blink = frame % 47 < 3 && (y - 48.0).abs() < 3.0 && (10.0..22.0).contains(&x.abs());
            if mouth || blink {
                30
            } else if head {
                190
            } else {
                90
            }
        };
        let pixels: Vec<u8> = (0..128 * 128).flat_map(|at| [pixel(at); 3]).collect();
        writer.write_frames(&pixels).unwrap();
    }
    writer.finish().unwrap();
    out
}

fn measured(video: &Path, more: &[&str]) -> Value {
    let mut command = Program::Run.command();
    let made = run(command.arg("align").arg(video).arg("--json").args(more));
    serde_json::from_str(&made.ok().stdout).unwrap()
}

#[test]
fn a_known_offset_is_measured_and_only_the_sound_is_moved() {
    let desk = Desk::new();
    for behind in [-7isize, 0, 9] {
        let video = talker(&desk, "talker.mp4", behind);
        for method in ["onset", "dtw"] {
            let out = desk.path("moved.mp4");
            let flags = [
                "--method",
                method,
                "--overwrite",
                "--out",
                out.to_str().unwrap(),
            ];
            let found = measured(&video, &flags);
            let number = |key: &str| found[key].as_f64().unwrap();
            let error = (number("frames") - behind as f64).abs();
            assert!(
                error <= 1.0 && number("confidence") > 0.8,
                "{behind} {method}: {found}"
            );
            let expected = if number("frames").abs() < 0.5 {
                0.0
            } else {
                40.0 * number("frames")
            };
            assert!((number("moved_ms") - expected).abs() < 1e-6, "{found}");
            assert!(frames(&out) == frames(&video), "the frames stay");
            let bytes = fs::read(&out).unwrap();
            let comment = bytes.windows(15).any(|w| w == b"how it was made");
            assert!(comment, "the comment stays");
            let after = measured(&out, &["--method", method])["frames"]
                .as_f64()
                .unwrap();
            assert!(after.abs() <= 1.0, "{behind} {method}: {after} remain");
        }
    }
    // Another person's sound, and no face at all.
    let error = Program::Run.run(["align", desk.path("talker.wav").to_str().unwrap()]);
    assert!(error.error(ErrorKind::Input).contains("found no picture"));
    let talker = desk.path("talker.mp4").display().to_string();
    let webm = desk.path("v.webm").display().to_string();
    let error = Program::Run.run(["align", &talker, "--out", &webm]);
    assert!(error.error(ErrorKind::Usage).contains("ends in .mp4"));
    let error = Program::Run.run(["align", &talker, "--out", &talker, "--overwrite"]);
    error.error(ErrorKind::Input);
    let error = Program::Run.run(["align", &talker, "--method", "none"]);
    assert!(error.error(ErrorKind::Usage).contains("measures nothing"));
}

#[test]
fn a_video_whose_lips_cannot_be_told_keeps_its_bytes() {
    let desk = Desk::new();
    let sound = desk.sound("a.wav", 0.9, 1.0);
    let plain = desk.video("plain.mp4", &["--audio", &sound]);
    let flags = ["--audio", &sound, "--audio_align_method", "dtw"];
    let made = desk.generate("aligned.mp4", &flags).ok();
    assert!(fs::read(desk.path("aligned.mp4")).unwrap() == plain);
    let alignment = &event(&made, "finished")["alignment"];
    assert_eq!(
        (&alignment["method"], &alignment["moved_ms"]),
        (&"dtw".into(), &0.0.into())
    );
    assert!(
        made.stdout.contains("no offset can be told"),
        "{}",
        made.stdout
    );
    // Only the sound of a finished file can be moved.
    let webm = desk.path("copy.webm").display().to_string();
    let error = desk.generate("v.mp4", &[&flags[..], &["--out", &webm]].concat());
    let error = error.error(ErrorKind::Usage);
    assert!(error.contains(".mp4 or .mkv, got"), "{error}");
    assert!(!desk.path("v.mp4").exists());
}
