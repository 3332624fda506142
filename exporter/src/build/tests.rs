//! Tests of the folder of engines, with a builder that only returns bytes. TensorRT itself is
//! tested in `exporter/tests/tensorrt.rs`.
use super::item::Predicted;
use super::sizes::Limits;
use super::*;
use crate::export;
use crate::synth::{self, Preset, SynthOptions};
use engines::backend::tensorrt::Flavour;
use engines::backend::tensorrt::engine_list::{Engines, Here};
use engines::error_kind::ErrorKind;
use engines::manifest::Models;
use engines::recipe::Recipe;
use std::cell::Cell;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A tiny export without a LoRA, once for all tests of the process.
fn models() -> &'static (TempDir, Models) {
    static MADE: OnceLock<(TempDir, Models)> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let options = SynthOptions {
            layers: Some(2),
            seed: 1,
        };
        let ckpt = dir.path().join("ckpt");
        synth::synth(Preset::Tiny, &options, &ckpt).unwrap();
        let request = export::Request {
            layers: None,
            ckpt_dir: ckpt.join("Wan2.2-S2V-14B"),
            loras: Vec::new(),
            recipe: Recipe::Fp32,
            out: dir.path().join("models"),
        };
        export::export(&request, &mut |_, _, _| {}).unwrap();
        let models = Models::open(&request.out).unwrap();
        (dir, models)
    })
}

fn request(out: &Path) -> Request {
    Request {
        input: BuildInput::Models(Box::new(models().1.clone())),
        limits: Limits {
            width: 256,
            height: 256,
            ..Limits::default()
        },
        flavour: Flavour::Rtx,
        sm: 89,
        workspace: 1 << 29,
        level: 3,
        weights: InsideWeights::Resident,
        detail: LayerDetail::Names,
        memory_limit: u64::MAX,
        skip: Vec::new(),
        out: out.to_owned(),
        command: format!(
            "avatar-export build --profile p --out {} --sm 89",
            out.display()
        ),
    }
}

struct Silent;

impl Watch for Silent {
    fn begin(&self, _: &Item, _: usize, _: usize) {}
    fn done(&self, _: &Item, _: Done, _: Option<&EngineEntry>) {}
}

/// Builds everything; how many were really built.
fn build(request: &Request) -> usize {
    let items = items(request, "1.7.1").unwrap();
    write_graphs(request, &items).unwrap();
    let built = Cell::new(0);
    run(request, "1.7.1", &items, &Silent, &|item, graph| {
        assert!(graph.is_file());
        built.set(built.get() + 1);
        Ok(Made {
            plan: format!("plan of {}", item.name).into_bytes(),
            seconds: 0.0,
            memory: 0,
            layers: None,
        })
    })
    .unwrap();
    built.get()
}

fn here() -> Here {
    Here {
        flavour: Flavour::Rtx,
        version: "1.7.1".to_owned(),
        sm: 89,
    }
}

fn open(out: &Path, here: &Here) -> Result<Engines, TensorRtError> {
    Engines::open(out, &models().1, here, &|_| true)
}

#[test]
fn layers_share_an_engine_and_a_second_build_keeps_all() {
    let out = tempfile::tempdir().unwrap();
    let request = request(out.path());
    let graphs: BTreeSet<&str> = models()
        .1
        .manifest()
        .components
        .iter()
        .map(|c| c.graph.file.as_str())
        .collect();
    assert_eq!(build(&request), graphs.len());
    assert_eq!(build(&request), 0);
    let engines = open(out.path(), &here()).unwrap();
    assert_eq!(engines.list().engines.len(), graphs.len());
}

#[test]
fn what_an_engine_depends_on_rebuilds_it_and_nothing_else_does() {
    let out = tempfile::tempdir().unwrap();
    let first = request(out.path());
    let all = build(&first);
    // More lanes change the calls of the transformer alone.
    let mut lanes = first.clone();
    lanes.limits.lanes = 2;
    let some = build(&lanes);
    assert!(0 < some && some < all / 2, "{some} of {all}");
    let mut sm = lanes.clone();
    sm.sm = 86;
    assert_eq!(build(&sm), all);
    // The other card's list replaced this one's, whose files are still there but nobody's.
    sm.command = "avatar-export build --quick".to_owned();
    assert_eq!(build(&sm), 0);
}

#[test]
fn a_damaged_engine_is_built_again() {
    let out = tempfile::tempdir().unwrap();
    let request = request(out.path());
    build(&request);
    let entry = open(out.path(), &here()).unwrap().list().engines[3].clone();
    fs::write(out.path().join(&entry.file.file), "damage").unwrap();
    assert_eq!(build(&request), 1);
    open(out.path(), &here()).unwrap();
}

#[test]
fn an_interrupted_build_goes_on_where_it_stopped() {
    let out = tempfile::tempdir().unwrap();
    let request = request(out.path());
    let items = items(&request, "1.7.1").unwrap();
    write_graphs(&request, &items).unwrap();
    let left = Cell::new(5);
    let stopped = run(&request, "1.7.1", &items, &Silent, &|_, graph| {
        if left.replace(left.get() - 1) == 0 {
            return Err(TensorRtError::Build {
                path: graph.to_owned(),
                reason: "stopped".to_owned(),
            });
        }
        Ok(Made {
            plan: vec![1],
            seconds: 0.0,
            memory: 0,
            layers: None,
        })
    });
    assert!(stopped.is_err());
    assert!(
        open(out.path(), &here()).is_err(),
        "half a folder is refused"
    );
    assert_eq!(build(&request), items.len() - 5);
}

/// Every way an engine can be wrong is refused before use, in one line that says what is wrong and
/// how to rebuild.
#[test]
fn engines_that_do_not_fit_are_refused_with_the_command_that_rebuilds() {
    type Change = fn(&Path, &mut Here);
    fn edit(out: &Path, change: impl FnOnce(&mut EngineList)) {
        let path = out.join(engine_list::FILE);
        let mut list = engine_list::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut list);
        fs::write(&path, serde_json::to_string(&list).unwrap()).unwrap();
    }
    let cases: [(&str, &str, Change); 11] = [
        (
            "SM version of the GPU: wanted 86, engine has 89",
            "--sm 86",
            |_, h| h.sm = 86,
        ),
        (
            "version of TensorRT: wanted 1.8.0, engine has 1.7.1",
            "--sm 89",
            |_, h| {
                h.version = "1.8.0".to_owned();
            },
        ),
        (
            "TensorRT: wanted tensorrt, engine has tensorrt-rtx",
            "--sm 89",
            |_, h| {
                h.flavour = Flavour::Enterprise;
            },
        ),
        (
            "fingerprint of contract text_encoder",
            "--sm 89",
            |out, _| {
                edit(out, |s| s.engines[0].fingerprint = "0".repeat(16));
            },
        ),
        ("hash of the graph", "--sm 89", |out, _| {
            edit(out, |s| s.engines[0].graph = "0".repeat(64));
        }),
        ("hash of the weights", "--sm 89", |out, _| {
            edit(out, |s| s.engines[0].data = None);
        }),
        ("hash of the engine", "--sm 89", |out, _| {
            edit(out, |s| {
                let path = out.join(&s.engines[0].file.file);
                let mut bytes = fs::read(&path).unwrap();
                bytes[0] ^= 1;
                fs::write(&path, bytes).unwrap();
            });
        }),
        ("size: wanted", "--sm 89", |out, _| {
            edit(out, |s| {
                fs::write(out.join(&s.engines[0].file.file), "").unwrap();
            });
        }),
        ("no engine of text_encoder", "--sm 89", |out, _| {
            edit(out, |s| drop(s.engines.remove(0)));
        }),
        (
            "name of the file: wanted inside its folder",
            "--sm 89",
            |out, _| {
                edit(out, |s| s.engines[0].file.file = "../x.engine".to_owned());
            },
        ),
        ("not a set of engines", "--sm 89", |out, _| {
            fs::write(out.join(engine_list::FILE), "{}").unwrap();
        }),
    ];
    for (want, command, change) in cases {
        let out = tempfile::tempdir().unwrap();
        build(&request(out.path()));
        let mut here = here();
        change(out.path(), &mut here);
        let error = open(out.path(), &here).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want), "{text}: {want}");
        assert!(
            text.contains("avatar-export build") && text.contains(command),
            "{text}"
        );
        assert_eq!(
            (error.kind(), text.lines().count()),
            (ErrorKind::Model, 1),
            "{text}"
        );
    }
}

#[test]
fn only_the_engines_that_are_wanted_must_be_there() {
    let out = tempfile::tempdir().unwrap();
    let mut request = request(out.path());
    request.skip = vec!["text_encoder".to_owned()];
    build(&request);
    assert!(open(out.path(), &here()).is_err());
    let others = |name: &str| name != "text_encoder";
    Engines::open(out.path(), &models().1, &here(), &others).unwrap();
    request.skip = vec!["text_decoder".to_owned()];
    let error = items(&request, "1.7.1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[test]
fn a_build_over_the_memory_limit_is_refused_before_it_begins() {
    let out = tempfile::tempdir().unwrap();
    let mut request = request(out.path());
    let items = items(&request, "1.7.1").unwrap();
    let most = items.iter().map(|i| i.predicted.memory).max().unwrap();
    request.memory_limit = most - 1;
    let error = check(&request, &items).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Resources);
    let name = &items
        .iter()
        .find(|i| i.predicted.memory == most)
        .unwrap()
        .name;
    assert!(
        error.to_string().contains(&format!("--skip {name}")),
        "{error}"
    );
    request.memory_limit = most;
    check(&request, &items).unwrap();
}

#[test]
fn without_models_only_engines_with_bound_weights_are_built() {
    let out = tempfile::tempdir().unwrap();
    let mut request = request(out.path());
    request.input = BuildInput::Preset(Preset::Tiny, Recipe::Bf16);
    let items = items(&request, "1.7.1").unwrap();
    let names: Vec<&str> = items
        .iter()
        .filter(|i| i.buildable())
        .map(|i| i.name.as_str())
        .collect();
    assert_eq!(names, ["dit_layer_audio", "dit_sink_layer", "dit_layer"]);
    assert_eq!(build(&request), 3);
}

#[test]
fn engines_without_weights_do_not_care_where_their_graph_came_from() {
    let out = tempfile::tempdir().unwrap();
    let mut request = request(out.path());
    build(&request);
    // The same model by its sizes alone: the layers' engines are those of the export.
    request.input = BuildInput::Preset(Preset::Tiny, Recipe::Fp32);
    assert_eq!(build(&request), 0);
}

#[test]
fn lines_for_the_tool_have_ranges_and_flags_of_its_version() {
    let out = tempfile::tempdir().unwrap();
    let mut request = request(out.path());
    request.flavour = Flavour::Enterprise;
    request.weights = InsideWeights::Streamed;
    let items = items(&request, "11.4.0").unwrap();
    let lines = tool::lines(&request, &items);
    let of = |name: &str| {
        let saves = format!("--saveEngine={name}.");
        lines.lines().find(|l| l.contains(&saves)).unwrap()
    };
    let layer = of("dit_layer");
    for want in [
        "trtexec --onnx=graphs/dit_layer.onnx",
        "--minShapes=hidden:1x768x256,",
        "--maxShapes=hidden:4x768x256,",
        "--memPoolSize=workspace:512M",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ] {
        assert!(layer.contains(want), "{layer}: {want}");
    }
    // A layer has no weights inside that could stream.
    assert!(!layer.contains("--allowWeightStreaming"));
    assert!(of("text_encoder").contains("--allowWeightStreaming"));
    assert!(!lines.contains("--bf16") && !lines.contains("--stronglyTyped"));
}

#[test]
fn more_weights_are_predicted_to_take_more() {
    let [small, large] = [1 << 20, 1 << 34].map(Predicted::of);
    assert!(small.memory < large.memory && small.seconds < large.seconds);
    assert!(large.memory > 3 << 34 && large.bytes > 1 << 34);
}
