//! `avatar-run plan` and `simulate` as commands: help, refusals in one line, JSON that parses, a
//! picture that is written.

use engines::error_kind::ErrorKind;
use tests::program::{Program, Transcript};

/// A profile that differs from a built-in one in one place.
fn changed(dir: &std::path::Path, from: &str, to: &str) -> String {
    let text = include_str!("../../engines/profiles/4x24g.toml");
    assert!(text.contains(from), "{from}");
    let path = dir.join("mine.toml");
    std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    path.display().to_string()
}

#[test]
fn help_of_plan_and_simulate() {
    for command in ["plan", "simulate"] {
        let out = Program::Run.run([command, "--help"]).ok();
        insta::assert_snapshot!(format!("help_run_{command}"), out.stdout);
    }
}

#[test]
fn bad_plans() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = Transcript::default().naming(dir.path(), "DIR");
    for (from, to) in [
        ("memory_gib = 24", "memory_gb = 24"),
        ("memory_gib = 24", "memory_gib = 0"),
        ("memory_gib = 24", "memory_gib = nan"),
        ("reserve_gib = 1.25", "reserve_gib = 30"),
        ("lanes = 1", "lanes = 5"),
        ("layers = [11, 7, 11, 11]", "layers = [1, 1, 1, 100]"),
        ("count = 4", "count = 3"),
        ("recipe = \"bf16\"", "recipe = \"int4\""),
        ("[host]", "[host"),
    ] {
        let profile = changed(dir.path(), from, to);
        let message = Program::Run
            .run(["plan", "--profile", &profile])
            .error(ErrorKind::Usage);
        assert_eq!(message.lines().count(), 1, "{message}");
        t.add(to, ErrorKind::Usage, &message);
    }
    for (line, exit) in [
        (&["plan", "--profile", "3x24g"][..], ErrorKind::Usage),
        (
            &["plan", "--profile", "4x24g", "--size", "700*384"],
            ErrorKind::Usage,
        ),
        (
            &["plan", "--profile", "4x24g", "--infer_frames", "47"],
            ErrorKind::Usage,
        ),
        (
            &["plan", "--profile", "4x24g", "--sample_steps", "0"],
            ErrorKind::Usage,
        ),
        (
            &["simulate", "--profile", "4x24g", "--blocks", "0"],
            ErrorKind::Usage,
        ),
        (
            &["plan", "--profile", "4x24g", "--models", "/nowhere"],
            ErrorKind::Model,
        ),
        (
            &[
                "plan",
                "--profile",
                "4x24g",
                "--size",
                "720*400",
                "--sample_steps",
                "6",
            ],
            ErrorKind::Resources,
        ),
        (
            &["plan", "--profile", "1x16g-offload", "--size", "1280*720"],
            ErrorKind::Resources,
        ),
    ] {
        let message = Program::Run.run(line).error(exit);
        assert_eq!(message.lines().count(), 1, "{message}");
        t.add(&line.join(" "), exit, &message);
    }
    insta::assert_snapshot!("bad_plans", t.text());
}

#[test]
fn a_plan_and_a_timeline_are_json_and_a_picture() {
    let line = [
        "plan",
        "--profile",
        "4x24g",
        "--size",
        "384*256",
        "--sample_steps",
        "3",
        "--json",
    ];
    let plan: serde_json::Value =
        serde_json::from_str(&Program::Run.run(line).ok().stdout).unwrap();
    assert_eq!(plan["placement"]["stages"].as_array().unwrap().len(), 4);
    let sum: u64 = [
        "weights",
        "rings",
        "condition",
        "activations",
        "slots",
        "vae",
        "workspace",
        "encoders",
    ]
    .iter()
    .map(|k| plan["devices"][1]["memory"][k].as_u64().unwrap())
    .sum();
    assert_eq!(plan["devices"][1]["in_use"].as_u64(), Some(sum));
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("t.svg").display().to_string();
    let line = [
        "simulate",
        "--profile",
        "2x24g",
        "--blocks",
        "5",
        "--svg",
        &svg,
        "--json",
    ];
    let t: serde_json::Value = serde_json::from_str(&Program::Run.run(line).ok().stdout).unwrap();
    assert_eq!(t["decoded"].as_array().unwrap().len(), 5);
    assert!(std::fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
    let line = ["simulate", "--profile", "2x24g", "--svg", "/nowhere/t.svg"];
    Program::Run.run(line).error(ErrorKind::Input);
}
