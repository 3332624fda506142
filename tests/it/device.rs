//! What runs on a device, run on the CPU: the real shapes' benchmark at tiny sizes, resident and
//! under a cap, and components against themselves. On a machine without a driver every command that
//! asks for a GPU says so in one line.

use std::path::Path;

use engines::error_kind::ErrorKind;
use serde_json::Value;
use tests::golden::models;
use tests::program::Program;

fn graphs(out: &Path) {
    let out = out.to_str().unwrap();
    Program::Export
        .run(["graphs", "--preset", "tiny", "--out", out])
        .ok();
}

fn bench(graphs: &Path, more: &[&str]) -> Vec<String> {
    let line = ["bench", "--synthetic", "--graphs", graphs.to_str().unwrap()];
    let sizes = ["--size", "64*64", "--matmul", "64", "--runs", "1"];
    let all = line.iter().chain(&sizes).chain(more);
    all.map(|s| (*s).to_owned()).collect()
}

#[test]
fn the_transformer_is_timed_without_a_checkpoint_and_streams_under_a_cap() {
    let dir = tempfile::tempdir().unwrap();
    graphs(dir.path());
    let line = bench(
        dir.path(),
        &["--lanes", "1,4", "--offload", "22MB", "--json"],
    );
    let report: Value = serde_json::from_str(&Program::Run.run(line).ok().stdout).unwrap();
    let lanes: Vec<u64> = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["lanes"].as_u64().unwrap())
        .collect();
    assert_eq!(lanes, [1, 4]);
    let (resident, offload) = (&report["memory"], &report["offload"]);
    let bytes = |v: &Value| v.as_u64().unwrap();
    assert_eq!(bytes(&offload["budget"]), 22_000_000);
    assert!(bytes(&offload["memory"]["peak"]) <= 22_000_000, "{report}");
    assert!(bytes(&resident["counted"]) > 22_000_000, "{report}");
    assert!(
        bytes(&offload["resident_layers"]) < bytes(&report["layers"]),
        "{report}"
    );
    assert_eq!(
        bytes(&offload["memory"]["by_class"]["rings"]),
        0,
        "rings wait on the host"
    );
}

#[test]
fn what_no_slot_fits_is_refused_with_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    graphs(dir.path());
    let error = Program::Run
        .run(bench(dir.path(), &["--offload", "4MB"]))
        .error(ErrorKind::Resources);
    assert!(error.contains("4000000 of 4000000 are free"), "{error}");
    let error = Program::Run
        .run(bench(&dir.path().join("none"), &[]))
        .error(ErrorKind::Model);
    assert!(error.contains("`avatar-export graphs`"), "{error}");
}

#[test]
fn a_device_that_is_the_cpu_agrees_with_it() {
    let line = ["parity", "--models", models().to_str().unwrap(), "--json"];
    let report: Value = serde_json::from_str(&Program::Run.run(line).ok().stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let of = |component: &str| rows.iter().filter(|r| r["component"] == component).count();
    assert!(of("dit_layer.00") == 3 && of("vae_decoder_next") > 3 && of("text_encoder") == 1);
    assert!(rows.iter().all(|r| r["difference"] == 0.0), "{report}");
}

#[test]
fn a_gpu_that_is_not_there_is_one_clear_line() {
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let models = models().to_str().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    for line in [
        &["parity", "--models", models][..],
        &["verify", "--models", models, "--golden", golden],
        &["bench", "--models", models],
        &[
            "exec",
            "dit_head",
            "--models",
            models,
            "--inputs",
            "i",
            "--outputs",
            "o",
        ],
    ] {
        let line = line.iter().chain(&["--device", "cuda:0"]);
        let error = Program::Run.run(line).error(ErrorKind::Resources);
        assert!(
            error.contains("libcuda.so.1") && error.contains("Debian: libcuda1"),
            "{error}"
        );
    }
    let error = Program::Run
        .run(["bench", "--models", models, "--device", "gpu"])
        .error(ErrorKind::Usage);
    assert!(error.contains("cpu or cuda:N, got `gpu`"), "{error}");
}
