//! Graphs without weights: their text at the tiny preset, and that every one builds at the published sizes.

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

/// The lines of a module and what is in it, and the head of the text with the ports.
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
        "dit_layer.01",
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

/// Every graph once, whatever the number of layers: ports and sizes of the rest.
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

/// Of layers that differ by their number alone, the first; in a published export they share a file.
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
        // Text, two embeddings, head; a layer with audio, one without, one of the sink.
        assert_eq!(layers.count(), 7, "{recipe}: the 40 layers are not alike");
        for (size, lanes) in SIZES.iter().flat_map(|size| [(size, 1), (size, 4)]) {
            let (w, h) = parse_size(size).unwrap();
            let mut sizes = bindings(w, h);
            // Three seconds of speech, all rows at once, and a prompt of as many tokens as that has frames.
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

/// In bf16, what computes in f32 stands between casts; for the CPU nothing else is left of bf16 but moves and results.
#[test]
fn texts_in_bf16() {
    let families = families_in(Recipe::Bf16, Preset::Tiny, 1);
    let graphs = graphs(&families);
    insta::assert_snapshot!("dit_layer.00.bf16", graphs["dit_layer.00"]);
    insta::assert_snapshot!("dit_embed.bf16", graphs["dit_embed"]);
    insta::assert_snapshot!("dit_head.bf16", graphs["dit_head"]);
    insta::assert_snapshot!("dit_text.bf16.cpu", for_cpu(graphs["dit_text"]));
    let vae = graphs["vae_decoder_next"].to_string();
    insta::assert_snapshot!("vae_decoder_next_head.bf16", part(&vae, "decoder.head"));
    insta::assert_snapshot!(
        "vae_decoder_next_attention.bf16",
        part(&vae, "decoder.middle.1")
    );
}

/// What ONNX Runtime, on its CPU provider or on any, has no bf16 kernel for.
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
