//! Runs the scripts that have the names of upstream's and the articles'.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::error_kind::ErrorKind;
use runtime::media::probe;
use tempfile::TempDir;
use tests::golden::{Golden, models, workspace};
use tests::program::{Finished, Program};

/// A folder to run scripts in.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a program that a script may call.
    fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A script, with no variables of the developer's shell.
    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(workspace().join("scripts/articles").join(name));
        command.current_dir(self.dir.path());
        for (variable, _) in std::env::vars() {
            if variable.starts_with("AVATAR_") {
                command.env_remove(variable);
            }
        }
        command.env("COLUMNS", "100");
        command
    }

    /// Returns the variables and the words that a script gives to `avatar-run`, one a line.
    fn given(&self, name: &str, flags: &[&str]) -> String {
        let recorder = "env | grep ^AVATAR_ | grep -v ^AVATAR_RUN= | sort\nprintf '%s\\n' \"$@\"";
        let run = self.program("recorder", recorder);
        let mut script = self.script(name);
        let output = script.args(flags).env("AVATAR_RUN", run).output();
        Finished::from(output.unwrap()).ok().stdout
    }
}

/// The smallest video of the golden model.
fn smallest() -> Vec<String> {
    let golden = Golden::carried();
    let path = |p: &Path| p.display().to_string();
    [
        ("--models", path(models())),
        ("--image", path(&golden.input("ref.png"))),
        ("--audio", path(&golden.input("speech_16k_mono.wav"))),
        ("--prompt", "a man speaks".to_owned()),
        ("--size", "64*64".to_owned()),
        ("--num_clip", "1".to_owned()),
        ("--infer_frames", "12".to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

#[test]
fn a_script_makes_its_video_where_the_articles_look_for_it() {
    let desk = Desk::new();
    for (script, video) in [
        ("run_4gpu_tpp.sh", "output.mp4"),
        (
            "infinite_inference_single_gpu.sh",
            "output/ref-speech_16k_mono.mp4",
        ),
        (
            "infinite_inference_multi_gpu.sh",
            "output/ref-speech_16k_mono-2.mp4",
        ),
    ] {
        let mut command = desk.script(script);
        command.args(smallest());
        command.env("AVATAR_RUN", Program::Run.path());
        let run = Finished::from(command.output().unwrap());
        assert_eq!(run.code, Some(0), "{script}: {}", run.stderr);
        let made = desk.path(video);
        assert!(made.is_file(), "{script}: {}{}", run.stdout, run.stderr);
        let facts = probe(&made).unwrap();
        assert_eq!((facts.width, facts.height), (64, 64));
    }
}

#[test]
fn the_defaults_are_those_of_upstream_and_of_the_articles() {
    let desk = Desk::new();
    for (script, wanted) in [
        (
            "run_4gpu_tpp.sh",
            &[
                "AVATAR_SIZE=688*368",
                "AVATAR_NUM_CLIP=100",
                "AVATAR_NUM_GPUS_DIT=3",
                "AVATAR_OUT=output.mp4",
            ][..],
        ),
        (
            "infinite_inference_multi_gpu.sh",
            &[
                "AVATAR_SIZE=720*400",
                "AVATAR_NUM_CLIP=10000",
                "AVATAR_NUM_GPUS_DIT=4",
                "AVATAR_ENABLE_VAE_PARALLEL=1",
                "AVATAR_OFFLOAD_MODEL=False",
            ],
        ),
        (
            "infinite_inference_single_gpu.sh",
            &[
                "AVATAR_SIZE=704*384",
                "AVATAR_NUM_GPUS_DIT=1",
                "AVATAR_SINGLE_GPU=1",
                "AVATAR_OFFLOAD_MODEL=True",
            ],
        ),
    ] {
        let given = desk.given(script, &["--prompt", "two words"]);
        let lines: Vec<&str> = given.lines().collect();
        for line in wanted.iter().chain(&["AVATAR_SAMPLE_STEPS=4"]) {
            assert!(lines.contains(line), "{script}: {line} in {given}");
        }
        assert!(
            given.ends_with("generate\n--prompt\ntwo words\n"),
            "{given}"
        );
    }
}

#[test]
fn a_batch_has_the_articles_timeout_unless_another_is_given() {
    let desk = Desk::new();
    for (flags, want) in [
        (
            &["in", "out", "--prompt", "p"][..],
            "--timeout 30m --prompt p",
        ),
        (&["in", "out", "--timeout=5m"], "--timeout=5m"),
    ] {
        let given = desk.given("batch_avatar.sh", flags).replace('\n', " ");
        assert_eq!(given.trim(), format!("batch in --out-dir out {want}"));
    }
    let run = desk
        .script("batch_avatar.sh")
        .args(["in", "--prompt"])
        .output();
    let message = Finished::from(run.unwrap()).error(ErrorKind::Usage);
    assert!(message.contains("wanted AUDIO_DIR OUT_DIR"), "{message}");
}

#[test]
fn finished_videos_are_joined_and_filtered_by_ffmpeg() {
    let desk = Desk::new();
    // Writes its words and the list of videos to the file that ffmpeg would make.
    let ffmpeg = "list=$(expr \"$*\" : '.* -i \\([^ ]*\\) ')\n\
                  for out; do :; done\n\
                  { echo \"$@\"; test ! -f \"$list\" || cat \"$list\"; } > \"$out\"";
    let ffmpeg = desk.program("ffmpeg", ffmpeg);
    fs::write(desk.path("it's 1.mp4"), "").unwrap();
    fs::write(desk.path("2.mp4"), "").unwrap();
    let process = |flags: &[&str]| {
        let mut script = desk.script("post_process.sh");
        script.args(flags).env("FFMPEG", &ffmpeg);
        Finished::from(script.output().unwrap())
    };
    process(&["it's 1.mp4", "2.mp4", "out.mp4"]).ok();
    let given = fs::read_to_string(desk.path("out.mp4")).unwrap();
    assert!(
        given.contains("-vf hqdn3d=1.5:1.5:6:6 -c:v libx264"),
        "{given}"
    );
    assert!(given.contains("/it'\\''s 1.mp4'\nfile '"), "{given}");

    let refused = process(&["2.mp4", "out.mp4"]).error(ErrorKind::Input);
    assert!(refused.contains("--overwrite"), "{refused}");
    let scaled = ["--scale", "1920x1080", "--denoise", "none", "--overwrite"];
    process(&[&scaled[..], &["2.mp4", "out.mp4"]].concat()).ok();
    let given = fs::read_to_string(desk.path("out.mp4")).unwrap();
    assert!(
        given.contains("-vf scale=1920:1080:flags=lanczos"),
        "{given}"
    );
    process(&["--denoise", "none", "2.mp4", "copied.mp4"]).ok();
    let given = fs::read_to_string(desk.path("copied.mp4")).unwrap();
    assert!(given.contains("-c:v copy"), "{given}");

    for (flags, kind, word) in [
        (&["2.mp4"][..], ErrorKind::Usage, "IN.mp4... OUT.mp4"),
        (
            &["--loud", "2.mp4", "b.mp4"],
            ErrorKind::Usage,
            "no such flag",
        ),
        (&["2.mp4", "2.mp4"], ErrorKind::Usage, "also an input"),
        (&["9.mp4", "b.mp4"], ErrorKind::Input, "no such file"),
    ] {
        let message = process(flags).error(kind);
        assert!(message.contains(word), "{flags:?}: {message}");
    }
    let mut without = desk.script("post_process.sh");
    without
        .args(["2.mp4", "b.mp4"])
        .env("FFMPEG", "no-ffmpeg-here");
    let message = Finished::from(without.output().unwrap()).error(ErrorKind::Resources);
    assert!(message.contains("apt-get install ffmpeg"), "{message}");
    assert!(!desk.path("b.mp4").exists());
}
