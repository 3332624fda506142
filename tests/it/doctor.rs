//! Runs `avatar-run doctor` as a user runs it on a machine without a GPU, and with faults.

use engines::error_kind::ErrorKind;
use serde_json::Value;
use tests::files::copy_folder;
use tests::golden::models;
use tests::program::{Finished, Program};

fn doctor(more: &[&str]) -> Finished {
    Program::Run.run([&["doctor", "--json"], more].concat())
}

/// Finds one line of a report.
fn line(report: &Value, subject: &str) -> Value {
    let lines = report["lines"].as_array().unwrap();
    let found = lines.iter().find(|l| l["subject"] == subject);
    found
        .unwrap_or_else(|| panic!("no {subject} in {report}"))
        .clone()
}

fn report(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn a_sound_machine_has_no_errors_and_a_fault_has_its_code_and_remedy() {
    let found = report(&doctor(&["--models", models().to_str().unwrap()]).ok());
    assert_eq!(found["errors"], 0, "{found}");
    for subject in ["ONNX Runtime", "libx264", "aac", "memory", "models"] {
        let level = &line(&found, subject)["level"];
        assert!(level == "ok" || subject == "memory", "{subject}: {found}");
    }
    let version = line(&found, "ONNX Runtime")["text"].to_string();
    assert!(version.contains("libonnxruntime.so"), "{version}");

    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("models");
    copy_folder(models(), &broken);
    let data = std::fs::read_dir(&broken)
        .unwrap()
        .map(|e| e.unwrap().path());
    let data = data
        .into_iter()
        .find(|p| p.extension().is_some_and(|e| e == "data"));
    let data = data.unwrap();
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let ill = doctor(&["--models", broken.to_str().unwrap()]);
    let models = line(&report(&ill), "models");
    assert_eq!(models["level"], "error");
    assert!(
        models["remedy"]
            .as_str()
            .unwrap()
            .contains("avatar-export onnx")
    );
    let message = ill.error(ErrorKind::Model);
    assert!(message.starts_with("models: "), "{message}");
}

#[test]
fn a_missing_library_is_an_error_of_the_machine() {
    let mut command = Program::Run.command();
    command
        .args(["doctor", "--json"])
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so");
    let ill = Finished::from(command.output().unwrap());
    assert_eq!(line(&report(&ill), "ONNX Runtime")["level"], "error");
    ill.error(ErrorKind::Resources);
}
