//! Prepares an exported graph for TensorRT.
//!
//! Sizes that a profile fixes become numbers, sizes that vary become ranges, and an attention
//! without a fused kernel may be split into its parts. The module turns bytes into bytes and runs
//! nothing.
use crate::graph::write::encode;
use engines::backend::tensorrt::engine_list::Range;
use engines::dim::{Bindings, Dim};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{AttributeProto, Message, ModelProto, ValueInfoProto, type_proto};
use std::collections::{BTreeMap, BTreeSet};
use std::thread;

/// Values of the symbols of one graph.
pub type Sizes = BTreeMap<String, Range>;

/// The three sizes of an input that varies, as an optimisation profile takes them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InputShape {
    /// Name of the input.
    pub name: String,
    /// Smallest shape.
    pub min: Vec<i64>,
    /// Usual shape, for which TensorRT optimises.
    pub opt: Vec<i64>,
    /// Largest shape.
    pub max: Vec<i64>,
}

/// A graph that TensorRT can parse.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The ONNX file, without its weights.
    pub onnx: Vec<u8>,
    /// Inputs whose size varies.
    pub varying: Vec<InputShape>,
    /// Bytes of the weights inside the engine.
    pub weights: u64,
    /// Bytes of all inputs at their largest, the bound weights included.
    pub inputs: u64,
    /// Files beside the graph that hold its weights.
    pub files: Vec<String>,
    /// Symbols in the sizes of its inputs.
    pub symbols: BTreeSet<String>,
}

/// A graph that cannot be prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum PrepareError {
    #[error("not an ONNX file: {0}")]
    Decode(String),
    #[error("an ONNX file of {got} bytes, wanted at most {most}: its weights are in another file")]
    Large { got: usize, most: usize },
    #[error("input {input}: size {dim:?} has a symbol that no profile gives a value")]
    Symbol { input: String, dim: String },
}

/// Most bytes of a graph without its weights. The largest of ours has 0.16 MB.
const MOST_BYTES: usize = 64 << 20;
/// Stack for parsing any file that our exporter wrote.
const STACK_BASE: usize = 2 << 20;
/// Stack for a byte of a hostile file; 561 were measured in a debug build, 80 in a release build.
const STACK_PER_BYTE: usize = 1024;
/// ONNX's number for f32.
const FLOAT: i32 = 1;
/// Largest head size that a fused attention kernel of TensorRT takes.
const FUSED_HEAD: i64 = 256;

/// Prepares an ONNX file. `sizes` gives each symbol of its inputs a value or a range.
///
/// # Errors
/// Bytes that are no ONNX file, a symbol without a value.
pub fn prepare(onnx: &[u8], sizes: &Sizes) -> Result<Prepared, PrepareError> {
    let mut model = decode(onnx)?;
    let graph = model
        .graph
        .as_mut()
        .ok_or_else(|| PrepareError::Decode("it has no graph".to_owned()))?;
    let facts: BTreeMap<String, (i32, Vec<i64>)> = graph
        .value_info
        .iter()
        .chain(&graph.input)
        .filter_map(|v| Some((v.name.clone(), fact(v)?)))
        .collect();
    for node in &mut graph.node {
        let q = node.input.first().and_then(|q| facts.get(q));
        if node.op_type == "Attention" && q.is_some_and(|q| !fused(q)) {
            node.attribute.push(AttributeProto {
                name: "TRT_decomposable".to_owned(),
                i: 1,
                type_: AttributeType::INT.into(),
                ..AttributeProto::default()
            });
        }
    }
    // TensorRT infers these itself, and cannot compare them with symbols that it does not know.
    graph.value_info.clear();
    let mut prepared = Prepared {
        onnx: Vec::new(),
        varying: Vec::new(),
        weights: 0,
        inputs: 0,
        files: Vec::new(),
        symbols: BTreeSet::new(),
    };
    for input in &mut graph.input {
        prepared.symbols.extend(symbols(input, sizes));
        let (shape, bytes) = shape(input, sizes)?;
        prepared.inputs += bytes;
        prepared.varying.extend(shape);
    }
    for output in &mut graph.output {
        bind_known(output, sizes);
    }
    for w in &graph.initializer {
        let of = |key: &str| {
            let found = w.external_data.iter().find(|e| e.key == key);
            found.map(|e| e.value.clone())
        };
        let length = of("length").and_then(|l| l.parse::<u64>().ok());
        prepared.weights += length.unwrap_or(0);
        if let Some(file) = of("location").filter(|f| !prepared.files.contains(f)) {
            prepared.files.push(file);
        }
    }
    prepared.onnx = encode(&model);
    Ok(prepared)
}

/// Reads an ONNX file, on a thread whose stack suffices for any file of its length.
///
/// protobuf 3.4.0 skips a group of an unknown field by recursion, without a limit
/// (RUSTSEC-2024-0437). A level takes at least one byte of the file, and at most [`STACK_PER_BYTE`]
/// of the stack.
fn decode(onnx: &[u8]) -> Result<ModelProto, PrepareError> {
    if onnx.len() > MOST_BYTES {
        return Err(PrepareError::Large {
            got: onnx.len(),
            most: MOST_BYTES,
        });
    }
    let parse = || ModelProto::parse_from_bytes(onnx);
    let stack = STACK_BASE + onnx.len() * STACK_PER_BYTE;
    let parsed = thread::scope(|scope| {
        let reader = thread::Builder::new()
            .stack_size(stack)
            .spawn_scoped(scope, parse);
        reader.map(|r| r.join().expect("the parser does not panic"))
    });
    match parsed {
        Ok(Ok(model)) => Ok(model),
        Ok(Err(e)) => Err(PrepareError::Decode(e.to_string())),
        Err(e) => Err(PrepareError::Decode(format!("no thread to read it: {e}"))),
    }
}

/// Returns whether a query of this type and shape `[B, N, L, d]` has a fused kernel: half precision
/// and a usual head size. Only these must be fused; a build fails when one is not.
fn fused((dtype, shape): &(i32, Vec<i64>)) -> bool {
    let head = shape.last().copied().unwrap_or(0);
    *dtype != FLOAT && head > 0 && head <= FUSED_HEAD && head % 8 == 0
}

/// Returns the element type and the sizes of a tensor. A symbolic size is 0.
fn fact(v: &ValueInfoProto) -> Option<(i32, Vec<i64>)> {
    let Some(type_proto::Value::TensorType(tensor)) = &v.type_.as_ref()?.value else {
        return None;
    };
    let dims = tensor.shape.as_ref()?.dim.iter().map(|d| match d.value {
        Some(dimension::Value::DimValue(n)) => n,
        _ => 0,
    });
    Some((tensor.elem_type, dims.collect()))
}

/// Returns the sizes of a tensor that are stated, as numbers or as texts.
fn stated(v: &mut ValueInfoProto) -> Vec<&mut dimension::Value> {
    let Some(type_proto::Value::TensorType(tensor)) =
        v.type_.as_mut().and_then(|t| t.value.as_mut())
    else {
        return Vec::new();
    };
    let dims = tensor.shape.as_mut().map(|s| s.dim.iter_mut());
    dims.into_iter()
        .flatten()
        .filter_map(|d| d.value.as_mut())
        .collect()
}

fn ends(sizes: &Sizes) -> [Bindings; 3] {
    [|r: &Range| r.min, |r: &Range| r.opt, |r: &Range| r.max]
        .map(|end| sizes.iter().map(|(k, r)| (k.clone(), end(r))).collect())
}

/// Writes the fixed sizes into an input. Returns its ranges when it varies, and its largest number
/// of bytes.
fn shape(
    input: &mut ValueInfoProto,
    sizes: &Sizes,
) -> Result<(Option<InputShape>, u64), PrepareError> {
    let name = input.name.clone();
    let element = fact(input).map_or(0, |(t, _)| bytes_of(t));
    let ends = ends(sizes);
    let mut all: [Vec<i64>; 3] = Default::default();
    for value in stated(input) {
        let sizes = match value {
            dimension::Value::DimValue(n) => [*n; 3],
            dimension::Value::DimParam(text) => {
                let dim = Dim::parse(text).ok();
                let [min, opt, max] = [0, 1, 2].map(|i| dim.as_ref()?.eval(&ends[i]));
                let all = min
                    .zip(opt)
                    .zip(max)
                    .map(|((min, opt), max)| [min, opt, max]);
                all.ok_or_else(|| PrepareError::Symbol {
                    input: name.clone(),
                    dim: text.clone(),
                })?
            }
            // The enum is open for future kinds of sizes; ONNX has none.
            _ => continue,
        };
        if sizes[0] == sizes[2] {
            *value = dimension::Value::DimValue(sizes[0]);
        }
        for (list, n) in all.iter_mut().zip(sizes) {
            list.push(n);
        }
    }
    let bytes = all[2].iter().product::<i64>().max(0) as u64 * element;
    let [min, opt, max] = all;
    let varies = min != max;
    Ok((
        varies.then_some(InputShape {
            name,
            min,
            opt,
            max,
        }),
        bytes,
    ))
}

/// Returns the symbols that the size of the input depends on.
fn symbols(input: &mut ValueInfoProto, sizes: &Sizes) -> Vec<String> {
    let [values, ..] = ends(sizes);
    let mut found = Vec::new();
    for value in stated(input) {
        if let dimension::Value::DimParam(text) = value
            && let Ok(dim) = Dim::parse(text)
        {
            found.extend(
                values
                    .keys()
                    .filter(|k| {
                        let mut others = values.clone();
                        others.remove(*k);
                        dim.eval(&others).is_none()
                    })
                    .cloned(),
            );
        }
    }
    found
}

/// Writes the fixed sizes into an output. A size that an input decides stays a symbol.
fn bind_known(output: &mut ValueInfoProto, sizes: &Sizes) {
    let fixed: Bindings = sizes
        .iter()
        .filter(|(_, r)| r.is_fixed())
        .map(|(k, r)| (k.clone(), r.min))
        .collect();
    for value in stated(output) {
        if let dimension::Value::DimParam(text) = value
            && let Some(n) = Dim::parse(text).ok().and_then(|d| d.eval(&fixed))
        {
            *value = dimension::Value::DimValue(n);
        }
    }
}

fn bytes_of(onnx_type: i32) -> u64 {
    match onnx_type {
        1 => 4,
        7 => 8,
        10 | 16 => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{AttentionOptions, Builder, write};
    use engines::contract::{DType, Port};

    /// One attention over ports of a type and shape, as bytes.
    fn attention(dtype: DType, shape: &'static str) -> Vec<u8> {
        let source: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let b = Builder::new("t", &source);
        let [q, k, v] = ["q", "k", "v"].map(|name| b.input(&Port::new(name, dtype, shape)));
        let o = q.attention(k, v, AttentionOptions::default());
        b.output(&Port::new("o", dtype, shape), o);
        let graph = b.finish().unwrap();
        let model = write::to_model(&graph, write::WeightPlacement::AsInputs).unwrap();
        encode(&model)
    }

    fn sizes(list: &[(&str, [i64; 3])]) -> Sizes {
        let range = |[min, opt, max]: [i64; 3]| Range { min, opt, max };
        list.iter()
            .map(|(k, r)| ((*k).to_owned(), range(*r)))
            .collect()
    }

    #[test]
    fn only_attention_without_a_fused_kernel_may_be_spelt_out() {
        let one = sizes(&[("L", [8, 8, 8])]);
        for (dtype, shape, spelt) in [
            (DType::F32, "1 4 L 64", true),
            (DType::BF16, "1 4 L 64", false),
            (DType::BF16, "1 40 L 128", false),
            (DType::BF16, "1 1 L 384", true),
            (DType::BF16, "1 3 L 28", true),
        ] {
            let onnx = prepare(&attention(dtype, shape), &one).unwrap().onnx;
            let graph = decode(&onnx).unwrap().graph.unwrap();
            let attributes = graph.node.iter().flat_map(|n| &n.attribute);
            let found = attributes.filter(|a| a.name == "TRT_decomposable");
            assert_eq!(found.count(), usize::from(spelt), "{dtype} {shape}");
        }
    }

    #[test]
    fn fixed_sizes_are_written_and_varying_ones_become_ranges() {
        let onnx = attention(DType::BF16, "B 2 3*h*w 64");
        let given = sizes(&[
            ("B", [1, 2, 4]),
            ("h", [2; 3]),
            ("w", [5; 3]),
            ("S", [9; 3]),
        ]);
        let p = prepare(&onnx, &given).unwrap();
        let q = &p.varying[0];
        assert_eq!((q.name.as_str(), &q.min[..]), ("q", &[1, 2, 30, 64][..]));
        assert_eq!(
            (&q.opt[..], &q.max[..]),
            (&[2, 2, 30, 64][..], &[4, 2, 30, 64][..])
        );
        // Three inputs of two bytes an element, at their largest.
        assert_eq!(p.inputs, 3 * 2 * 4 * 2 * 30 * 64);
        let used: Vec<&str> = p.symbols.iter().map(String::as_str).collect();
        assert_eq!(
            used,
            ["B", "h", "w"],
            "what the graph does not use changes no key"
        );
    }

    #[test]
    fn a_symbol_without_a_value_and_bytes_that_are_no_graph_are_named() {
        let onnx = attention(DType::BF16, "B 2 L 64");
        let error = prepare(&onnx, &sizes(&[("B", [1, 1, 1])])).unwrap_err();
        assert!(error.to_string().contains("input q: size \"L\""), "{error}");
        assert!(matches!(
            prepare(b"not a graph", &Sizes::new()),
            Err(PrepareError::Decode(_))
        ));
    }

    #[test]
    fn a_file_of_nested_groups_and_a_file_that_is_too_large_are_refused() {
        // Field 15 of no message of ONNX, "group begins", again and again.
        let hostile = vec![15 << 3 | 3u8; 1 << 20];
        let error = prepare(&hostile, &Sizes::new()).unwrap_err();
        assert!(matches!(error, PrepareError::Decode(_)), "{error}");
        let error = prepare(&vec![0; MOST_BYTES + 1], &Sizes::new()).unwrap_err();
        assert!(matches!(error, PrepareError::Large { .. }), "{error}");
    }
}
