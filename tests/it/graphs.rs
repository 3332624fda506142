//! Prints graphs without weights at the tiny preset, and builds every graph at the published sizes.

use std::collections::BTreeMap;

use engines::contract::{DType, Weights};
use engines::recipe::Recipe;
use exporter::families::{Family, ModelShapes, generic};
use exporter::graph::lower::for_cpu;
use exporter::graph::{Graph, ValueInfo};
use exporter::graphs::{bindings, parse_size};
use exporter::synth::{self, Preset};

fn families(preset: Preset, layers: usize) -> Vec<Family> {
    families_in(Recipe::Fp32, preset, layers)
}

fn families_in(recipe: Recipe, preset: Preset, layers: usize) -> Vec<Family> {
    let s = synth::shapes(preset, Some(layers));
    let shapes = ModelShapes {
        recipe,
        dit: &s.dit,
        text: &s.text,
        vae: &s.vae,
        speech: &s.speech,
        config: &s.config,
    };
    shapes
        .graphs()
        .unwrap_or_else(|e| panic!("{preset:?}: {e}"))
}

fn graphs(families: &[Family]) -> BTreeMap<&str, &Graph> {
    families
        .iter()
        .flat_map(|f| &f.graphs)
        .map(|(_, g)| (g.name.as_str(), g))
        .collect()
}

/// Returns the lines of a module and of the modules inside it, after the head with the ports.
fn part(text: &str, module: &str) -> String {
    let blocks: Vec<&str> = text.trim_end().split("\n\n").collect();
    let inside = |block: &&str| {
        let scope = block.lines().next().unwrap_or_default();
        scope == module
            || scope
                .strip_prefix(module)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    blocks
        .iter()
        .take(1)
        .chain(blocks.iter().filter(|b| inside(b)))
        .copied()
        .collect::<Vec<_>>()
        .join("\n\n")
}

#[test]
fn texts_of_the_transformer() {
    let families = families(Preset::Tiny, 2);
    let graphs = graphs(&families);
    for name in [
        "dit_layer.00",
        "dit_sink_layer.00",
        "dit_embed",
        "dit_sink_embed",
        "dit_head",
        "dit_text",
        "audio_adapter",
    ] {
        insta::assert_snapshot!(name, graphs[name]);
    }
}

#[test]
fn texts_of_the_encoders_and_the_decoder() {
    let families = families(Preset::Tiny, 1);
    let graphs = graphs(&families);
    insta::assert_snapshot!("text_encoder", graphs["text_encoder"]);
    insta::assert_snapshot!("audio_encoder_layer", graphs["audio_encoder_layer.03"]);
    insta::assert_snapshot!(
        "vae_decoder_next_head",
        part(&graphs["vae_decoder_next"].to_string(), "decoder.head")
    );
    insta::assert_snapshot!(
        "vae_encoder_first_stem",
        part(&graphs["vae_encoder_first"].to_string(), "encoder.conv1")
    );
}

/// Prints each graph of an export, with the number of its nodes, weights, ports and taps.
#[test]
fn an_export_has_these_graphs() {
    let families = families(Preset::Tiny, 3);
    let line = |(name, g): (&&str, &&Graph)| {
        let [nodes, weights, inputs, outputs, taps] = [
            g.nodes.len(),
            g.weights.len(),
            g.inputs.len(),
            g.outputs.len(),
            g.taps.len(),
        ];
        format!(
            "{name}: {nodes} nodes, {weights} weights, {inputs} inputs, {outputs} outputs, {taps} taps\n"
        )
    };
    insta::assert_snapshot!(
        "graphs",
        graphs(&families).iter().map(line).collect::<String>()
    );
}

/// Keeps the first of the layers that differ by their number alone. In a published export they
/// share a file.
fn distinct(families: &[Family]) -> Vec<Graph> {
    let mut seen: Vec<Graph> = Vec::new();
    for (contract, graph) in families.iter().flat_map(|f| &f.graphs) {
        let graph = match contract.weights {
            Weights::Inside => graph.clone(),
            Weights::Bound => generic(contract, graph),
        };
        let same = |g: &Graph| g.values == graph.values && g.nodes == graph.nodes;
        if !seen.iter().any(|g| g.name == graph.name && same(g)) {
            seen.push(graph);
        }
    }
    seen
}

#[test]
fn every_graph_builds_at_every_published_size() {
    const SIZES: [&str; 12] = [
        "384*256", "688*368", "704*384", "720*400", "480*832", "832*480", "720*1280", "1280*720",
        "704*1280", "1280*704", "704*1024", "1024*704",
    ];
    for recipe in [Recipe::Fp32, Recipe::Bf16] {
        let families = families_in(recipe, Preset::Full, 40);
        let graphs = distinct(&families);
        let layers = graphs.iter().filter(|g| g.name.starts_with("dit_"));
        // The seven are: text, two embeddings, head, a layer with audio, one without, one of the
        // sink.
        assert_eq!(layers.count(), 7, "{recipe}: the 40 layers are not alike");
        for (size, lanes) in SIZES.iter().flat_map(|size| [(size, 1), (size, 4)]) {
            let (w, h) = parse_size(size).unwrap();
            let mut sizes = bindings(w, h);
            // The speech has three seconds, all rows at once, and the prompt has a token for each
            // frame.
            let more = [("s", 48_000), ("t", 149), ("r", 149), ("B", lanes)];
            sizes.extend(more.map(|(k, v)| (k.to_owned(), v)));
            for graph in &graphs {
                assert_constant(&graph.bind(&sizes), &format!("{recipe} {size} x{lanes}"));
            }
        }
    }
}

fn assert_constant(graph: &Graph, case: &str) {
    let unknown = |v: &&ValueInfo| {
        v.fact
            .dims
            .iter()
            .any(|d| d.as_const().is_none_or(|n| n < 1))
    };
    if let Some(v) = graph.values.iter().find(unknown) {
        panic!("{case}: {}: {} is {}", graph.name, v.name, v.fact);
    }
}

/// Layer 0 hears audio and layer 1 does not. The layers agree otherwise, so one snapshot shows
/// both.
#[test]
fn a_layer_without_audio_is_the_start_of_a_layer_with_audio() {
    let families = families(Preset::Tiny, 2);
    let graphs = graphs(&families);
    let block = |layer: usize| {
        let text = graphs[format!("dit_layer.0{layer}").as_str()].to_string();
        let text = text.replace(&format!("blocks.{layer}"), "blocks.N");
        let modules = text.split("\n\n").map(str::to_owned);
        modules
            .filter(|m| m.starts_with("blocks.N"))
            .collect::<Vec<_>>()
    };
    let (with, without) = (block(0), block(1));
    assert!(without.len() > 20, "{without:#?}");
    let last = without.len() - 1;
    assert_eq!(with[..last], without[..last]);
    // The last value of a layer without audio is the graph's output.
    let end = without[last].replace("hidden_out:", "blocks.N:");
    assert_eq!(with[last].trim_end(), end.trim_end());
}

/// Lists the casts below a module, in order. In bf16 a part that computes in f32 stands between
/// casts.
fn casts(graph: &Graph, module: &str) -> String {
    let mut text = format!("{}\n", graph.name);
    let mut last = None;
    let casts = graph.nodes.iter().filter(|n| n.op == "Cast");
    for cast in casts.filter(|n| n.scope.starts_with(module)) {
        let scope = match cast.scope.as_str() {
            "" => "(root)",
            scope => scope,
        };
        if last.replace(scope) != Some(scope) {
            text += &format!("  {scope}\n");
        }
        let fact = |id: usize| &graph.values[id].fact;
        let from = cast.inputs[0].expect("a cast has an input");
        text += &format!("    {} -> {}\n", fact(from).dtype, fact(cast.outputs[0]));
    }
    text
}

#[test]
fn casts_in_bf16() {
    let families = families_in(Recipe::Bf16, Preset::Tiny, 1);
    let graphs = graphs(&families);
    let parts = [
        ("dit_layer.00", ""),
        ("dit_embed", ""),
        ("dit_head", ""),
        ("dit_text", ""),
        ("text_encoder", ""),
        // The cases take a residual block, the attention and the head; other blocks are like the
        // first.
        ("vae_decoder_next", "decoder.middle.0"),
        ("vae_decoder_next", "decoder.middle.1"),
        ("vae_decoder_next", "decoder.head"),
    ];
    let text: String = parts
        .iter()
        .map(|(name, module)| casts(graphs[name], module))
        .collect();
    insta::assert_snapshot!("casts_in_bf16", text);
    // ONNX Runtime's CPU provider computes nothing in bf16, so its graph has casts around every
    // layer.
    insta::assert_snapshot!("casts_for_the_cpu", casts(&for_cpu(graphs["dit_text"]), ""));
}

/// Asserts that no node touches bf16 where ONNX Runtime, on its CPU provider or on any, has no
/// kernel.
#[test]
fn no_graph_in_bf16_wants_a_kernel_that_is_not_there() {
    let families = families_in(Recipe::Bf16, Preset::Full, 2);
    for graph in distinct(&families) {
        let half = |id: &usize| graph.values[*id].fact.dtype == DType::BF16;
        for n in &graph.nodes {
            let touches = n.inputs.iter().flatten().chain(&n.outputs).any(half);
            assert!(
                !touches || !["Pad", "Resize"].contains(&n.op),
                "{} {}",
                graph.name,
                n.name
            );
            // TensorRT refuses an Attention node of f32 or of a large head.
            if let ("Attention", Some(q)) = (n.op, n.inputs[0]) {
                let fact = &graph.values[q].fact;
                let head = fact.dims[3].as_const().unwrap();
                assert!(half(&q) && head <= 256, "{} {}: {fact}", graph.name, n.name);
            }
        }
    }
}

#[test]
fn all_layers_of_the_published_model_build() {
    let families = families(Preset::Full, 40);
    let graphs = graphs(&families);
    let hears = |i: &usize| {
        graphs[format!("dit_layer.{i:02}").as_str()].inputs.len()
            > graphs["dit_layer.01"].inputs.len()
    };
    let audio: Vec<usize> = (0..40).filter(hears).collect();
    assert_eq!(audio, [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39]);
    assert_eq!(
        graphs
            .keys()
            .filter(|n| n.starts_with("dit_sink_layer."))
            .count(),
        40
    );
    let bound = graphs["dit_layer.39"].bind(&bindings(704, 384));
    insta::assert_snapshot!("full_dit_layer_ports", ports(&bound));
}

fn ports(graph: &Graph) -> String {
    let line = |role: &str, id: usize| {
        format!(
            "{role} {}: {}\n",
            graph.values[id].name, graph.values[id].fact
        )
    };
    let of = |role: &str, ids: &[usize]| ids.iter().map(|&id| line(role, id)).collect::<String>();
    of("in ", &graph.inputs) + &of("out", &graph.outputs)
}
