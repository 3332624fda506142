//! Run files, batches, replays and differences, as a user meets them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use engines::error_kind::ErrorKind;
use serde_json::{Value, json};
use tests::files::{Samples, copy_folder, voice, wav};
use tests::golden::{Golden, models};
use tests::program::{Finished, Program};

use crate::signals::{Live, signal};

/// Flags of the shortest video: one block of 9 frames.
const SHORT: [&str; 8] = [
    "--threads=1",
    "--size=64*64",
    "--num_clip=1",
    "--infer_frames=12",
    "--sample_steps=1",
    "--crf=40",
    "--prompt=a man speaks",
    "--base_seed=7",
];

/// A folder for one test.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes speech of so many seconds.
    fn speech(&self, name: &str, seconds: f32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, wav(&voice(seconds), Samples::Integer)).unwrap();
        path
    }

    fn text(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Returns a command with the small models, the picture and the flags of the shortest video.
    fn command(&self, first: &[&str]) -> Command {
        let mut command = Program::Run.command();
        command.current_dir(self.0.path()).args(first).args(SHORT);
        command.arg("--models").arg(models());
        let image = Golden::carried().input("ref.png");
        command.arg("--image").arg(image);
        command
    }

    fn generate(&self, out: &str, audio: &str, more: &[&str]) -> Finished {
        let mut command = self.command(&["generate", "--out", out, "--audio", audio]);
        finished(command.args(more))
    }

    fn batch(&self, inputs: &str, more: &[&str]) -> Finished {
        let mut command = self.command(&["batch", inputs, "--out_dir", "out"]);
        finished(command.args(more))
    }

    fn run(&self, words: &[&str]) -> Finished {
        let mut command = Program::Run.command();
        finished(command.current_dir(self.0.path()).args(words))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

fn finished(command: &mut Command) -> Finished {
    command.output().map(Finished::from).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    let parsed = text.lines().map(|l| serde_json::from_str(l).unwrap());
    parsed.collect()
}

/// Returns the states of the videos of a batch, by name.
fn states(run: &Finished) -> Vec<(String, String)> {
    let events = lines(&run.stdout);
    let items = events.iter().filter(|e| e["event"] == "item");
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let mut states: Vec<_> = items
        .map(|e| (text(&e["item"]), text(&e["state"])))
        .collect();
    states.sort();
    states
}

fn is(name: &str, state: &str) -> (String, String) {
    (format!("out/{name}_avatar.mp4"), state.to_owned())
}

#[test]
fn a_run_file_says_what_made_the_video_and_where_each_value_came_from() {
    let desk = Desk::new();
    desk.speech("a.wav", 0.4);
    desk.text("c.toml", "# steps\nfit = 'pad'\n");
    let args = ["generate", "--out", "v.mp4", "--audio", "a.wav"];
    let mut command = desk.command(&args);
    command.args(["--config", "c.toml", "--preset", "fast-check", "--json"]);
    let run = finished(command.env("AVATAR_ICC", "ignore")).ok();
    let file = desk.json("v.run.json");
    let started = lines(&run.stdout)
        .into_iter()
        .find(|e| e["event"] == "started")
        .unwrap();
    for (name, value) in file["settings"].as_object().unwrap() {
        assert_eq!(&started[name], value, "{name}");
    }
    for (flag, value, from) in [
        ("fit", json!("pad"), "c.toml:2"),
        ("icc", json!("ignore"), "AVATAR_ICC"),
        ("sample-guide-scale", json!("0"), "preset fast-check"),
        ("sample-steps", json!("1"), "command line"),
        ("sample-solver", json!("euler"), "default"),
        ("json", json!(true), "command line"),
        ("host-rings", json!(false), "default"),
    ] {
        let found = &file["values"][flag];
        assert_eq!(found, &json!({"value": value, "from": from}), "{flag}");
    }
    let result = &file["result"];
    for (name, value) in [
        ("video", json!("v.mp4")),
        ("width", json!(64)),
        ("fps", json!(25)),
        ("frames", json!(9)),
        ("video_seconds", json!(0.36)),
        ("sound_seconds", json!(0.36)),
        ("bytes", json!(desk.bytes("v.mp4").len())),
    ] {
        assert_eq!(result[name], value, "{name}");
    }
    let sums = Command::new("sha256sum")
        .args([
            desk.path("v.mp4"),
            desk.path("a.wav"),
            models().join("manifest.json"),
        ])
        .output()
        .unwrap();
    let sums = String::from_utf8(sums.stdout).unwrap();
    let sums: Vec<&str> = sums.lines().map(|l| &l[..64]).collect();
    assert_eq!(result["sha256"], sums[0]);
    assert_eq!(file["inputs"]["audio"]["sha256"], sums[1]);
    assert_eq!(file["models"]["manifest_sha256"], sums[2]);
    // The file itself carries the settings, and no path of this machine.
    let video = desk.bytes("v.mp4");
    let holds = |text: &str| video.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds(r#""prompt":"a man speaks","mode":"tpp","steps":1"#));
    assert!(!holds(desk.0.path().to_str().unwrap()));
}

#[test]
fn a_run_file_without_its_video_is_replaced_and_another_file_is_not() {
    let desk = Desk::new();
    desk.speech("a.wav", 0.4);
    desk.generate("v.mp4", "a.wav", &[]).ok();
    fs::remove_file(desk.path("v.mp4")).unwrap();
    desk.generate("v.mp4", "a.wav", &[]).ok();
    desk.text("w.run.json", "notes");
    let refused = desk.generate("w.mp4", "a.wav", &[]).error(ErrorKind::Input);
    assert!(refused.contains("w.run.json exists already"), "{refused}");
    assert!(!desk.path("w.mp4").exists());
}

#[test]
fn a_batch_opens_the_models_once_and_goes_on_after_a_failure() {
    let desk = Desk::new();
    desk.speech("in/a.wav", 0.4);
    desk.text("in/b.wav", "no sound");
    desk.speech("in/c.wav", 0.5);
    let run = desk.batch("in", &["--json"]);
    let failed = run.error(ErrorKind::Input);
    assert!(
        failed.contains("1 of 3 videos failed, first out/b_avatar.mp4: "),
        "{failed}"
    );
    assert_eq!(
        states(&run),
        [is("a", "done"), is("b", "failed"), is("c", "done")]
    );
    let events = lines(&run.stdout);
    let summaries: Vec<&Value> = events.iter().filter(|e| e["event"] == "finished").collect();
    let opening = |at: usize| summaries[at]["opening_seconds"].as_f64().unwrap();
    assert_eq!(summaries[1]["item"], "out/c_avatar.mp4");
    assert!(
        opening(1) < 0.5 * opening(0),
        "{} then {}",
        opening(0),
        opening(1)
    );
    let counts = events.iter().find(|e| e["event"] == "batch").unwrap();
    assert_eq!(
        (&counts["done"], &counts["failed"]),
        (&json!(2), &json!(1)),
        "{counts}"
    );
    for name in ["a", "c"] {
        desk.generate(&format!("{name}.mp4"), &format!("in/{name}.wav"), &[])
            .ok();
        let alone = desk.bytes(&format!("{name}.mp4"));
        assert!(
            alone == desk.bytes(&format!("out/{name}_avatar.mp4")),
            "{name}"
        );
    }
    // What is done is not made again, and what was repaired is.
    desk.speech("in/b.wav", 0.6);
    let again = desk.batch("in", &["--json"]).ok();
    assert_eq!(
        states(&again),
        [is("a", "skipped"), is("b", "done"), is("c", "skipped")]
    );
    // A video whose sound changed is not replaced by itself.
    desk.speech("in/c.wav", 0.7);
    let kept = desk.bytes("out/c_avatar.mp4");
    let refused = desk.batch("in", &["--json"]).error(ErrorKind::Input);
    assert!(refused.contains("--overwrite replaces"), "{refused}");
    assert_eq!(desk.bytes("out/c_avatar.mp4"), kept);
    let replaced = desk.batch("in", &["--json", "--overwrite"]).ok();
    assert_eq!(
        states(&replaced),
        [is("a", "skipped"), is("b", "skipped"), is("c", "done")]
    );
    // Other flags make other videos.
    let other = desk
        .batch("in", &["--json", "--overwrite", "--base_seed=8"])
        .ok();
    assert!(states(&other).iter().all(|(_, state)| state == "done"));
    let table = desk.batch("in", &["--base_seed=8"]).ok().stdout;
    assert!(
        table.ends_with("3 of 3 videos are there: 0 made, 3 there before; 0 failed\n"),
        "{table}"
    );
}

#[test]
fn lists_give_each_video_its_own_flags_and_faults_have_a_place() {
    let desk = Desk::new();
    desk.speech("lists/a.wav", 0.4);
    let list = "audio,base_seed,out,num_clip\na.wav,7,one.mp4,\na.wav,8,two.mp4,1\n\
                a.wav,9,three.mp4,many\n";
    desk.text("lists/l.csv", list);
    let run = desk.batch("lists/l.csv", &["--json"]);
    let failed = run.error(ErrorKind::Usage);
    assert!(
        failed.contains("1 of 3 videos failed, first out/three.mp4: ")
            && failed.contains("'--num_clip <N|auto>'")
            && failed.ends_with("(from lists/l.csv:4)"),
        "{failed}"
    );
    let seeds = ["out/one", "out/two"].map(|name| {
        let file = desk.json(&format!("{name}.run.json"));
        (
            file["settings"]["seed"].clone(),
            file["values"]["base-seed"]["from"].clone(),
        )
    });
    assert_eq!(seeds[0], (json!(7), json!("lists/l.csv:2")));
    assert_eq!(seeds[1], (json!(8), json!("lists/l.csv:3")));
    for (name, text, want) in [
        (
            "m.csv",
            "audio,sed\na.wav,1\n",
            "m.csv:1: field 2: column sed is no flag",
        ),
        (
            "m.jsonl",
            "{\"audio\": 1",
            "m.jsonl:1:11: wants a JSON object on each line",
        ),
        (
            "m.toml",
            "[[video]]\nseed = [1]\n",
            "m.toml:2:8: key seed wants",
        ),
    ] {
        desk.text(name, text);
        let refused = desk.batch(name, &[]).error(ErrorKind::Usage);
        assert!(refused.starts_with(want), "{refused}");
    }
    let missing = desk.batch("none.csv", &[]).error(ErrorKind::Input);
    assert!(missing.contains("none.csv: cannot read: "), "{missing}");
    let out = desk
        .batch("m.csv", &["--out", "x.mp4"])
        .error(ErrorKind::Usage);
    assert!(out.contains("'--out'"), "{out}");
}

#[test]
fn a_video_that_takes_too_long_is_tried_again_and_the_next_one_is_made() {
    let desk = Desk::new();
    desk.speech("in/a.wav", 300.0);
    desk.speech("in/b.wav", 0.4);
    let long = ["--num_clip=auto", "--timeout=12s", "--retries=1", "--json"];
    let run = desk.batch("in", &long);
    let failed = run.error(ErrorKind::Resources);
    assert!(
        failed.contains("--timeout: stopped after 12.0 s; "),
        "{failed}"
    );
    assert_eq!(states(&run), [is("a", "failed"), is("b", "done")]);
    let journal = fs::read_to_string(desk.path("out/batch.jsonl")).unwrap();
    let told: Vec<(Value, Value)> = lines(&journal)[1..]
        .iter()
        .map(|l| (l["state"].clone(), l["attempt"].clone()))
        .collect();
    let want = [
        ("begun", 1),
        ("failed", 1),
        ("begun", 2),
        ("failed", 2),
        ("begun", 1),
        ("done", 1),
    ];
    assert_eq!(
        told,
        want.map(|(state, attempt)| (json!(state), json!(attempt)))
    );
}

#[test]
fn a_batch_that_was_stopped_goes_on() {
    let desk = Desk::new();
    desk.speech("in/a.wav", 0.4);
    desk.speech("in/b.wav", 30.0);
    desk.speech("in/c.wav", 0.4);
    let mut command = desk.command(&["batch", "in", "--out_dir", "out", "--json"]);
    let mut live = Live::start(command.arg("--num_clip=auto"));
    live.until(|e| e["event"] == "block" && e["item"] == "out/b_avatar.mp4");
    // No second batch writes the same journal.
    let busy = desk.batch("in", &[]).error(ErrorKind::Resources);
    assert!(busy.contains("batch.jsonl: process "), "{busy}");
    signal(live.id(), "TERM");
    let (stopped, _) = live.end();
    stopped.error(ErrorKind::Interrupted);
    assert!(desk.path("out/b_avatar.partial.mp4").exists());
    desk.speech("in/b.wav", 0.4);
    let run = desk.batch("in", &["--num_clip=auto", "--json"]).ok();
    assert_eq!(
        states(&run),
        [is("a", "skipped"), is("b", "done"), is("c", "done")]
    );
}

#[test]
fn videos_at_a_time_are_the_same_and_more_than_fit_are_refused() {
    let desk = Desk::new();
    for name in ["a", "b", "c"] {
        desk.speech(&format!("in/{name}.wav"), 0.4);
    }
    desk.batch("in", &[]).ok();
    let one = desk.bytes("out/b_avatar.mp4");
    for jobs in ["2", "auto"] {
        let dir = format!("--out_dir=jobs{jobs}");
        let run = desk.batch(
            "in",
            &[&dir, "--jobs", jobs, "--json", "--stages", "steps=1"],
        );
        let run = run.ok();
        assert_eq!(states(&run).len(), 3);
        assert!(
            desk.bytes(&format!("jobs{jobs}/b_avatar.mp4")) == one,
            "{jobs}"
        );
    }
    // The videos of a batch cannot share standard input.
    desk.text("l.csv", "audio\n-\n");
    let refused = desk.batch("l.csv", &[]).error(ErrorKind::Usage);
    let want = "l.csv:2: batch wants recordings, got --audio -";
    assert!(refused.contains(want), "{refused}");
    let small = ["--jobs=60", "--out_dir=none", "--device_memory=20MB"];
    let refused = desk.batch("in", &small).error(ErrorKind::Resources);
    assert!(
        refused.contains("--jobs 60: ") && refused.contains("each video needs "),
        "{refused}"
    );
    assert!(!desk.path("none/a_avatar.mp4").exists());
}

#[test]
fn a_replay_is_equal_and_refuses_what_changed() {
    let desk = Desk::new();
    desk.speech("a.wav", 0.4);
    let copy = desk.path("models");
    copy_folder(models(), &copy);
    desk.generate("v.mp4", "a.wav", &["--models", "models", "--base_seed=-1"])
        .ok();
    let seed = desk.json("v.run.json")["settings"]["seed"].clone();
    fs::create_dir(desk.path("elsewhere")).unwrap();
    let mut command = Program::Run.command();
    command.current_dir(desk.path("elsewhere"));
    let run = finished(command.args(["replay", "../v.run.json"])).ok();
    assert_eq!(
        run.stdout,
        "equal: all 9 frames, and the file byte for byte\n"
    );
    assert!(desk.bytes("v-replay.mp4") == desk.bytes("v.mp4"));
    assert_eq!(desk.json("v-replay.run.json")["settings"]["seed"], seed);
    // A replay replaces nothing.
    let again = desk.run(&["replay", "v.run.json"]).error(ErrorKind::Input);
    assert!(again.contains("v-replay.mp4 exists already"), "{again}");
    // Another sound is refused, or makes another video.
    let second = ["replay", "v.run.json", "--out", "w.mp4"];
    desk.text("a.wav", "");
    fs::write(desk.path("a.wav"), wav(&voice(0.5), Samples::Integer)).unwrap();
    let refused = desk.run(&second).error(ErrorKind::Input);
    assert!(
        refused.contains("--audio ") && refused.contains("a.wav had SHA-256 "),
        "{refused}"
    );
    assert!(!desk.path("w.mp4").exists());
    let manifest = copy.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text + "\n").unwrap();
    let refused = desk.run(&second).error(ErrorKind::Input);
    assert!(
        refused.contains("; --models ") && refused.contains(" had a manifest of SHA-256 "),
        "{refused}"
    );
    let other = desk.run(&[&second[..], &["--changed-inputs"]].concat());
    let other = other.error(ErrorKind::Verification);
    assert!(
        other.contains("w.mp4: the frames differ from those of v.run.json"),
        "{other}"
    );
    // Frames that differ are told with their block.
    let mut file = desk.json("v.run.json");
    file["result"]["frames_sha256"] = json!("0");
    file["settings"]["seed"] = json!(seed.as_u64().unwrap() + 1);
    desk.text("v.run.json", &file.to_string());
    let other = ["replay", "v.run.json", "--changed-inputs", "--out", "x.mp4"];
    let differs = desk.run(&other).error(ErrorKind::Verification);
    assert!(
        differs.contains("block 0 (frames 0 to 8, 0.00 s): max "),
        "{differs}"
    );
    desk.text("bad.run.json", "{}");
    let bad = desk
        .run(&["replay", "bad.run.json"])
        .error(ErrorKind::Input);
    assert!(bad.contains("bad.run.json: wants a run file"), "{bad}");
}

#[test]
fn a_difference_names_its_block_and_equal_pictures_in_other_bytes_are_equal() {
    let desk = Desk::new();
    desk.speech("a.wav", 2.0);
    let make = |name: &str, more: &[&str]| {
        let flags = [&["--num_clip=2"], more].concat();
        desk.generate(name, "a.wav", &flags).ok();
    };
    make("a.mp4", &["--crf=0"]);
    make("b.mp4", &["--crf=0", "--preset=ultrafast"]);
    assert!(desk.bytes("a.mp4") != desk.bytes("b.mp4"));
    let equal = desk.run(&["diff", "a.mp4", "b.mp4"]).ok().stdout;
    assert!(
        equal.starts_with("picture: equal, 21 frames\nsound: equal, "),
        "{equal}"
    );
    make("c.mp4", &["--crf=0", "--num_clip=1"]);
    let run = desk.run(&["diff", "a.mp4", "c.mp4", "--json"]);
    let told = run.error(ErrorKind::Verification);
    assert!(
        told.ends_with("block 1 (frames 9 to 20, 0.36 s): one video has 21 frames, the other 9"),
        "{told}"
    );
    let diff: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(diff["picture"]["frames"], json!([21, 9]));
    assert_eq!(diff["picture"]["all"]["max"], 0.0);
    make("d.mp4", &["--crf=0", "--base_seed=8"]);
    let told = desk.run(&["diff", "a.run.json", "d.run.json"]);
    told.error(ErrorKind::Verification);
    assert!(
        told.stdout
            .contains("stated differently: --base-seed: \"7\" and \"8\"")
            && told
                .stdout
                .contains("first difference in block 0 (frames 0 to 8, 0.00 s): max ")
            && told.stdout.contains("sound: equal, "),
        "{}",
        told.stdout
    );
    let kinds = desk
        .run(&["diff", "a.mp4", "a.run.json"])
        .error(ErrorKind::Usage);
    assert!(
        kinds.contains("a.run.json: wants a file of the kind of a.mp4"),
        "{kinds}"
    );
    let none = desk
        .run(&["diff", "a.mp4", "a.wav"])
        .error(ErrorKind::Input);
    assert!(none.contains("a.wav: wants a video stream"), "{none}");
}
