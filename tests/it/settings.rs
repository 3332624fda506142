//! Solvers, guidance, and where the flags of a video come from, as a user meets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::error_kind::ErrorKind;
use serde_json::Value;
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

    /// Returns `avatar-run generate` of two clips of one block, with nothing else decided.
    fn generate(&self, name: &str) -> Command {
        let mut command = Program::Run.command();
        command.args(["generate", "--threads", "2", "--size", "64*64"]);
        for (flag, path) in [
            ("--models", models().to_owned()),
            ("--image", self.golden.input("ref.png")),
            ("--audio", self.golden.input("speech_16k_mono.wav")),
            ("--out", self.path(name)),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(["--prompt", "a man speaks", "--json"]);
        command
    }

    fn video(&self, name: &str, more: &[&str]) -> Vec<u8> {
        let mut command = self.generate(name);
        command.args(["--num_clip", "2", "--infer_frames", "12"]);
        finished(command.args(more)).ok();
        fs::read(self.path(name)).unwrap()
    }
}

fn finished(command: &mut Command) -> Finished {
    command.output().map(Finished::from).unwrap()
}

/// Returns the settings of a run, as its first event has them.
fn settings(run: &Finished) -> Value {
    let events = run
        .stdout
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    events
        .into_iter()
        .find(|e| e["event"] == "started")
        .unwrap()
}

#[test]
fn solvers_and_guidance_give_the_same_bytes_for_every_split() {
    let desk = Desk::new();
    let plain = desk.video("plain.mp4", &[]);
    for (name, flags) in [
        ("guided", &["--sample_guide_scale", "3"][..]),
        ("unipc", &["--sample_solver", "unipc"]),
        (
            "dpm",
            &["--sample_solver", "dpmpp_2m", "--sample_shift", "5"],
        ),
        (
            "both",
            &[
                "--sample_guide_scale",
                "2.5",
                "--sample_solver",
                "dpm++",
                "--sample_steps",
                "3",
            ],
        ),
    ] {
        let file = |at: &str| format!("{name}_{at}.mp4");
        let whole = desk.video(&file("whole"), flags);
        assert_ne!(whole, plain, "{name} changes the video");
        for split in ["3x1", "layers=2,steps=3"] {
            let flags = [flags, &["--stages", split]].concat();
            assert!(
                desk.video(&file("split"), &[&flags[..], &["--overwrite"]].concat()) == whole,
                "{name} {split}"
            );
        }
    }
    let other = [
        "--sample_guide_scale",
        "3",
        "--negative_prompt",
        "a woman sings",
    ];
    assert_ne!(
        desk.video("other.mp4", &other),
        desk.video("same.mp4", &other[..2])
    );
    assert_eq!(desk.video("one.mp4", &["--sample_guide_scale", "1"]), plain);
}

#[test]
fn settings_come_from_flags_environment_file_and_preset_in_this_order() {
    let desk = Desk::new();
    let config = desk.path("run.toml");
    fs::write(
        &config,
        "sample_steps = 2\nnum_clip = 1\ncrf = 30\nbase_seed = 7\n",
    )
    .unwrap();
    let mut command = desk.generate("v.mp4");
    command.args([
        "--preset",
        "quick-preview",
        "--preset",
        "veryfast",
        "--config",
    ]);
    command.arg(&config).args(["--sample_solver", "unipc"]);
    command
        .env("AVATAR_BASE_SEED", "9")
        .env("AVATAR_SAMPLE_SOLVER", "dpm++");
    let run = finished(&mut command).ok();
    let settings = settings(&run);
    assert_eq!(settings["steps"], 2, "the file's, not the preset's 3");
    assert_eq!(settings["infer_frames"], 36, "the preset's");
    assert_eq!(settings["seed"], 9, "the environment's, not the file's");
    assert_eq!(
        settings["solver"], "unipc",
        "the flag's, not the environment's"
    );
    assert_eq!(
        settings["requested_size"]["width"], 64,
        "the flag's, not the preset's"
    );

    let mut unknown = desk.generate("w.mp4");
    unknown
        .args(["--num_clip", "1", "--infer_frames", "12"])
        .env("AVATAR_SAMPLE_STEP", "3");
    let told = finished(&mut unknown).ok().stderr;
    assert!(
        told.contains("AVATAR_SAMPLE_STEP names no flag of generate"),
        "{told}"
    );
}

#[test]
fn a_setting_that_cannot_be_used_is_named_with_its_source() {
    let desk = Desk::new();
    let config = |name: &str, text: &str| {
        fs::write(desk.path(name), text).unwrap();
        desk.path(name)
    };
    let fault = |path: &Path, exit| {
        let mut command = desk.generate("v.mp4");
        let run = finished(command.arg("--config").arg(path));
        assert!(!desk.path("v.mp4").exists());
        run.error(exit)
    };
    let usage = ErrorKind::Usage;
    let steps = fault(
        &config("a.toml", "# steps\nsample_steps = \"many\"\n"),
        usage,
    );
    assert!(
        steps.contains("'many'") && steps.ends_with("a.toml:2)"),
        "{steps}"
    );
    let key = fault(&config("b.toml", "sample_step = 4\n"), usage);
    assert!(
        key.contains("b.toml:1:1: key sample_step") && key.contains("`sample-steps`"),
        "{key}"
    );
    let syntax = fault(&config("c.toml", "crf = \n"), usage);
    assert!(syntax.contains("c.toml:1:7: "), "{syntax}");
    let missing = fault(&desk.path("none.toml"), ErrorKind::Input);
    assert!(missing.contains("none.toml: cannot read: "), "{missing}");
    let mut preset = desk.generate("v.mp4");
    let preset = finished(preset.args(["--preset", "quick"])).error(usage);
    assert!(preset.contains("--preset quick is not known"), "{preset}");
    let mut variable = desk.generate("v.mp4");
    let variable = finished(variable.env("AVATAR_CRF", "99")).error(usage);
    assert!(variable.ends_with("(from AVATAR_CRF)"), "{variable}");
}

#[test]
fn presets_completions_and_manual_pages_are_printed() {
    let presets = Program::Run.run(["presets"]).ok().stdout;
    assert!(
        presets.contains("quick-preview: ") && presets.contains("--size 384*256"),
        "{presets}"
    );
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = Program::Run.run(["completions", shell]).ok().stdout;
        assert!(script.contains("sample-steps"), "{shell}");
    }
    let page = Program::Run.run(["man"]).ok().stdout;
    assert!(page.contains(".TH avatar-run 1"), "{page}");
    let page = Program::Run.run(["man", "generate"]).ok().stdout;
    assert!(page.contains("sample\\-steps"), "{page}");
    let unknown = Program::Run.run(["man", "sing"]).error(ErrorKind::Usage);
    assert!(
        unknown.starts_with("man sing: wanted one of generate, batch"),
        "{unknown}"
    );
}

#[test]
fn guidance_is_planned_as_twice_the_calls_and_rings() {
    let plan = |more: &[&str]| {
        let line = [
            &["plan", "--profile", "1x80g", "--size", "384*256", "--json"],
            more,
        ]
        .concat();
        serde_json::from_str::<Value>(&Program::Run.run(line).ok().stdout).unwrap()
    };
    let (plain, guided) = (plan(&[]), plan(&["--sample_guide_scale", "5"]));
    let number = |plan: &Value, at: &str| {
        plan.pointer(at)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{at}: {plan}"))
    };
    let ratio = |at: &str| number(&guided, at) / number(&plain, at);
    assert_eq!(ratio("/devices/0/memory/rings"), 2.0);
    assert_eq!(ratio("/devices/0/memory/condition"), 2.0);
    assert!(
        (0.45..0.6).contains(&ratio("/speed/fps")),
        "{}",
        ratio("/speed/fps")
    );
}
