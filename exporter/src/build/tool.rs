//! Command lines for NVIDIA's own tools that build the same engines: `trtexec` of TensorRT 11 and
//! `tensorrt_rtx` of TensorRT for RTX.
use super::item::Item;
use super::prepare::InputShape;
use super::request::{InsideWeights, LayerDetail, Request};
use engines::backend::tensorrt::Flavour;

/// Folder of the prepared graphs, inside the folder of the engines.
pub const GRAPHS: &str = "graphs";

/// Returns one command line for each engine. The commands run in the folder of the engines.
pub(super) fn lines(request: &Request, items: &[Item]) -> String {
    let head = match request.flavour {
        Flavour::Enterprise => format!(
            "# Run in this folder, on the GPU (SM {}). Engines built so are not in engines.json.\n",
            request.sm
        ),
        Flavour::Rtx => format!(
            "# Run in this folder. The tool builds for every RTX card from SM 80 on; \
             the program builds for SM {} alone. Engines built so are not in engines.json.\n",
            request.sm
        ),
    };
    let lines = items.iter().map(|i| {
        let note = if i.buildable() {
            ""
        } else {
            "# without its weights: "
        };
        format!("{note}{}\n", line(request, i))
    });
    head + &lines.collect::<String>()
}

fn line(request: &Request, item: &Item) -> String {
    let mut words = vec![
        match request.flavour {
            Flavour::Enterprise => "trtexec",
            Flavour::Rtx => "tensorrt_rtx",
        }
        .to_owned(),
        format!("--onnx={GRAPHS}/{}", item.graph_file()),
        format!("--saveEngine={}", item.engine_file()),
    ];
    type End = fn(&InputShape) -> &Vec<i64>;
    let ends: [(&str, End); 3] = [
        ("--minShapes", |v| &v.min),
        ("--optShapes", |v| &v.opt),
        ("--maxShapes", |v| &v.max),
    ];
    if !item.prepared.varying.is_empty() {
        words.extend(
            ends.map(|(flag, end)| format!("{flag}={}", shapes(&item.prepared.varying, end))),
        );
    }
    if request.flavour == Flavour::Enterprise {
        words.push(format!(
            "--memPoolSize=workspace:{}M",
            request.workspace >> 20
        ));
        words.push(format!("--builderOptimizationLevel={}", request.level));
        words.push("--timingCacheFile=timing.cache".to_owned());
        if request.weights == InsideWeights::Streamed && item.weights > 0 {
            words.push("--allowWeightStreaming".to_owned());
        }
        if request.detail == LayerDetail::Inspected {
            words.push("--profilingVerbosity=detailed".to_owned());
            words.push(format!("--exportLayerInfo={}.layers.json", item.name));
        }
    }
    words.push("--skipInference".to_owned());
    words.join(" ")
}

/// Returns shapes as `hidden:1x3168x5120,e0:1x3x6x5120`. A name with a special character for the
/// shell is quoted as a whole.
fn shapes(varying: &[InputShape], end: impl Fn(&InputShape) -> &Vec<i64>) -> String {
    let one = |v: &InputShape| {
        let dims: Vec<String> = end(v).iter().map(i64::to_string).collect();
        format!("{}:{}", v.name, dims.join("x"))
    };
    varying.iter().map(one).collect::<Vec<_>>().join(",")
}
