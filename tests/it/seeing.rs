//! Runs `generate` with its eyes open: metrics, the red line of memory, the bottleneck and logs.

use std::path::Path;
use std::process::Command;

use engines::error_kind::ErrorKind;
use serde_json::Value;
use tests::golden::{Golden, models};
use tests::program::{Finished, Program};

/// Returns a run of two blocks on two virtual devices.
fn generate(out: &Path, more: &[&str]) -> Command {
    let golden = Golden::carried();
    let mut command = Program::Run.command();
    command
        .args(["generate", "--models"])
        .arg(models())
        .arg("--image")
        .arg(golden.input("ref.png"))
        .arg("--audio")
        .arg(golden.input("speech_16k_mono.wav"))
        .args([
            "--prompt",
            "a person speaks",
            "--size",
            "64*64",
            "--infer_frames",
            "24",
        ])
        .args(["--num_clip", "1", "--stages", "2x1", "--out"])
        .arg(out)
        .args(more);
    command
}

fn run(out: &Path, more: &[&str]) -> Finished {
    Finished::from(generate(out, more).output().unwrap())
}

fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect()
}

#[test]
fn metrics_hold_blocks_memory_and_components() {
    let dir = tempfile::tempdir().unwrap();
    let (out, metrics) = (dir.path().join("o.mp4"), dir.path().join("m.jsonl"));
    let flags = [
        "--device-memory",
        "1GB",
        "--metrics",
        metrics.to_str().unwrap(),
    ];
    let told = run(&out, &flags).ok().stderr;
    assert!(told.contains("\nnote: bottleneck: "), "{told}");
    assert!(told.contains("\nnote: most memory: cpu:0 "), "{told}");
    assert!(!told.contains("red line"), "{told}");
    let lines = objects(&std::fs::read_to_string(&metrics).unwrap());
    let at = |name: &str| lines.iter().filter(|l| l["at"] == name).count();
    assert_eq!((at("start"), at("block"), at("end")), (1, 2, 1));
    let end = lines.last().unwrap();
    assert_eq!((&end["blocks"], &end["frames"]), (&2.into(), &21.into()));
    let devices = end["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    for device in devices {
        let (peak, planned) = (&device["peak_bytes"], &device["planned_bytes"]);
        assert!(
            peak.as_u64() > Some(0) && peak.as_u64() <= planned.as_u64(),
            "{device}"
        );
        assert_eq!(device["in_use_bytes"], Value::Null);
    }
    let components = end["components"].as_array().unwrap();
    for device in ["cpu:0", "cpu:1"] {
        let of = |c: &&Value| c["component"] == "transformer" && c["device"] == device;
        let calls = components.iter().find(of).unwrap()["calls"].as_u64();
        assert!(calls > Some(0), "{end}");
    }
}

#[test]
fn a_low_red_line_is_told_once_for_each_device() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--device-memory", "1GB", "--memory_red_line", "1kB"];
    let told = run(&dir.path().join("o.mp4"), &flags).ok().stderr;
    for device in ["cpu:0", "cpu:1"] {
        let warning = format!("note: memory of {device} is ");
        assert_eq!(told.matches(&warning).count(), 1, "{told}");
    }
}

#[test]
fn a_file_of_metrics_is_never_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = dir.path().join("m.jsonl");
    std::fs::write(&metrics, "mine").unwrap();
    let flags = ["--metrics", metrics.to_str().unwrap()];
    let message = run(&dir.path().join("o.mp4"), &flags).error(ErrorKind::Input);
    assert!(message.contains("m.jsonl"), "{message}");
    assert_eq!(std::fs::read_to_string(&metrics).unwrap(), "mine");
}

#[test]
fn logs_are_asked_for_and_quiet_leaves_only_errors() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let plain = run(&out("plain.mp4"), &[]).ok().stderr;
    assert!(!plain.contains("component opened"), "{plain}");
    let told = run(&out("v.mp4"), &["-v"]).ok().stderr;
    let opened = |l: &str| l.contains("INFO") && l.contains("component opened");
    assert!(told.lines().filter(|l| opened(l)).count() > 5, "{told}");
    assert!(
        told.contains("video placed") && !told.contains("DEBUG"),
        "{told}"
    );

    let all = run(&out("vv.mp4"), &["-vv", "--log-format", "json"])
        .ok()
        .stderr;
    let objects: Vec<Value> = all
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect();
    let call = |o: &&Value| o["message"] == "call" && o["component"] == "transformer";
    let call = objects
        .iter()
        .find(call)
        .unwrap_or_else(|| panic!("no call in {all}"));
    assert!(
        call["seconds"].as_f64() > Some(0.0) && call["level"] == "DEBUG",
        "{call}"
    );

    assert_eq!(run(&out("q.mp4"), &["-q"]).ok().stderr, "");
    let refused = run(&out("q.mp4"), &["-q"]);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    refused.error(ErrorKind::Input);
    let both = run(&out("both.mp4"), &["-q", "-v"]).error(ErrorKind::Usage);
    assert!(both.contains("cannot be used with"), "{both}");
}

#[test]
fn an_export_tells_what_it_opens_and_can_be_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Golden::carried();
    let export = |name: &str, more: &[&str]| {
        let mut command = Program::Export.command();
        command
            .args(["onnx", "--lora"])
            .arg(golden.lora())
            .arg("--ckpt_dir")
            .arg(golden.base())
            .arg("--out")
            .arg(dir.path().join(name));
        Finished::from(command.args(more).output().unwrap()).ok()
    };
    let told = export("v", &["-vv"]).stderr;
    for text in ["checkpoints opened", "graph written", "export complete"] {
        assert!(told.contains(text), "{text}: {told}");
    }
    assert_eq!(export("q", &["-q"]).stderr, "");
}
