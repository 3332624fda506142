//! Smoke test of `bench`, on exports of every recipe. It looks at no figure, because a shared
//! machine gives no steady times.

use engines::recipe::Recipe;
use exporter::export::{Request, export};
use exporter::synth::{Preset, SynthOptions, synth};
use tests::program::{Finished, Program};

#[test]
fn bench_runs_on_every_recipe_and_reports_a_time_for_each_part() {
    let dir = tempfile::tempdir().unwrap();
    let made = synth(
        Preset::Tiny,
        &SynthOptions::default(),
        &dir.path().join("ckpt"),
    )
    .unwrap();
    for recipe in [Recipe::Fp32, Recipe::Bf16] {
        let out = dir.path().join(recipe.to_string());
        let request = Request {
            ckpt_dir: made.ckpt_dir.clone(),
            loras: Vec::new(),
            layers: None,
            recipe,
            out: out.clone(),
        };
        export(&request, &mut |_, _, _| {}).unwrap();
        let mut command = Program::Run.command();
        command.args("bench --size 64*64 --runs 1 --threads 1 --json".split(' '));
        command.arg("--models").arg(&out);
        let finished = Finished::from(command.output().unwrap()).ok();
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        let rows = report["rows"].as_array().unwrap();
        let timed = |r: &serde_json::Value| r["min_ms"].as_f64().is_some_and(|ms| ms > 0.0);
        assert!(rows.len() >= 8 && rows.iter().all(timed), "{report}");
    }
}
