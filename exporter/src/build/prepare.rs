//! An exported graph as TensorRT wants it: sizes that a profile fixes written as numbers, ranges for those that vary, and leave to spell out
//! the attentions that no fused kernel takes. Bytes in, bytes out; nothing is run.
use crate::graph::proto::{AttributeProto, ModelProto, ValueInfoProto, dimension};
use engines::backend::tensorrt::engine_list::Range;
use engines::dim::{Bindings, Dim};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Values of the symbols of one graph.
pub type Sizes = BTreeMap<String, Range>;

/// The three sizes of an input that varies, as an optimisation profile takes them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct InputShape {
    pub name: String,
    pub min: Vec<i64>,
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

/// A graph that TensorRT can parse.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The ONNX file, without its weights.
    pub onnx: Vec<u8>,
    /// Inputs that vary.
    pub varying: Vec<InputShape>,
    /// Bytes of the weights inside.
    pub weights: u64,
    /// Bytes of all inputs at their largest, the bound weights included.
    pub inputs: u64,
    /// Files beside the graph that hold its weights.
    pub files: Vec<String>,
    /// Symbols that its inputs' sizes are made of.
    pub symbols: BTreeSet<String>,
}

/// Why a graph cannot be prepared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    #[error("not an ONNX file: {0}")]
    Decode(String),
    #[error("input {input}: size {dim:?} has a symbol that no profile gives a value")]
    Symbol { input: String, dim: String },
}

/// ONNX's number for f32.
const FLOAT: i32 = 1;
/// Largest head size that a fused attention kernel of TensorRT takes.
const FUSED_HEAD: i64 = 256;

/// Prepares a file. `sizes` gives every symbol of its inputs a value or a range.
///
/// # Errors
/// Bytes that are no ONNX file, a symbol without a value.
pub fn prepare(onnx: &[u8], sizes: &Sizes) -> Result<Prepared, PrepareError> {
    let mut model = ModelProto::decode(onnx).map_err(|e| PrepareError::Decode(e.to_string()))?;
    let graph = model
        .graph
        .as_mut()
        .ok_or_else(|| PrepareError::Decode("it has no graph".to_owned()))?;
    let facts: BTreeMap<String, (i32, Vec<i64>)> = graph
        .value_info
        .iter()
        .chain(&graph.input)
        .filter_map(|v| Some((v.name.clone()?, fact(v)?)))
        .collect();
    for node in &mut graph.node {
        let q = node.input.first().and_then(|q| facts.get(q));
        if node.op_type.as_deref() == Some("Attention") && q.is_some_and(|q| !fused(q)) {
            node.attribute.push(AttributeProto {
                name: Some("TRT_decomposable".to_owned()),
                i: Some(1),
                r#type: Some(2),
                ..AttributeProto::default()
            });
        }
    }
    // TensorRT infers these itself, and would have to agree with symbols that it does not know.
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
            let found = w
                .external_data
                .iter()
                .find(|e| e.key.as_deref() == Some(key));
            found.and_then(|e| e.value.clone())
        };
        let length = of("length").and_then(|l| l.parse::<u64>().ok());
        prepared.weights += length.unwrap_or(0);
        if let Some(file) = of("location").filter(|f| !prepared.files.contains(f)) {
            prepared.files.push(file);
        }
    }
    prepared.onnx = model.encode_to_vec();
    Ok(prepared)
}

/// Whether a query of this type and shape `[B, N, L, d]` has a fused kernel: half precision and heads of a usual size. Only those must be
/// fused; a build fails where one is not.
fn fused((dtype, shape): &(i32, Vec<i64>)) -> bool {
    let head = shape.last().copied().unwrap_or(0);
    *dtype != FLOAT && head > 0 && head <= FUSED_HEAD && head % 8 == 0
}

/// Element type and sizes, 0 where symbolic.
fn fact(v: &ValueInfoProto) -> Option<(i32, Vec<i64>)> {
    let tensor = v.r#type.as_ref()?.tensor_type.as_ref()?;
    let dims = tensor.shape.as_ref()?.dim.iter().map(|d| match d.value {
        Some(dimension::Value::DimValue(n)) => n,
        _ => 0,
    });
    Some((tensor.elem_type?, dims.collect()))
}

fn texts(v: &mut ValueInfoProto) -> Vec<&mut dimension::Value> {
    let shape = v
        .r#type
        .as_mut()
        .and_then(|t| t.tensor_type.as_mut())
        .and_then(|t| t.shape.as_mut());
    shape
        .map(|s| s.dim.iter_mut().filter_map(|d| d.value.as_mut()).collect())
        .unwrap_or_default()
}

fn ends(sizes: &Sizes) -> [Bindings; 3] {
    [|r: &Range| r.min, |r: &Range| r.opt, |r: &Range| r.max]
        .map(|end| sizes.iter().map(|(k, r)| (k.clone(), end(r))).collect())
}

/// Writes the sizes that are fixed into an input. Returns its ranges when it varies, and its bytes at its largest.
fn shape(
    input: &mut ValueInfoProto,
    sizes: &Sizes,
) -> Result<(Option<InputShape>, u64), PrepareError> {
    let name = input.name.clone().unwrap_or_default();
    let element = fact(input).map_or(0, |(t, _)| bytes_of(t));
    let ends = ends(sizes);
    let mut all: [Vec<i64>; 3] = Default::default();
    for value in texts(input) {
        let sizes = match value {
            dimension::Value::DimValue(n) => [*n; 3],
            dimension::Value::DimParam(text) => {
                let symbol = || PrepareError::Symbol {
                    input: name.clone(),
                    dim: text.clone(),
                };
                let dim = Dim::parse(text).map_err(|_| symbol())?;
                let [a, b, c] = [0, 1, 2].map(|i| dim.eval(&ends[i]));
                [a, b, c]
                    .map(|n| n.ok_or_else(symbol))
                    .into_iter()
                    .collect::<Result<Vec<_>, _>>()?
                    .try_into()
                    .expect("three sizes")
            }
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

/// Symbols without whose value a size of the input is not known.
fn symbols(input: &mut ValueInfoProto, sizes: &Sizes) -> Vec<String> {
    let [values, ..] = ends(sizes);
    let mut found = Vec::new();
    for value in texts(input) {
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

/// Writes what is fixed into an output; what an input decides stays a symbol.
fn bind_known(output: &mut ValueInfoProto, sizes: &Sizes) {
    let fixed: Bindings = sizes
        .iter()
        .filter(|(_, r)| r.is_fixed())
        .map(|(k, r)| (k.clone(), r.min))
        .collect();
    for value in texts(output) {
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
        model.encode_to_vec()
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
            let graph = ModelProto::decode(&onnx[..]).unwrap().graph.unwrap();
            let attributes = graph.node.iter().flat_map(|n| &n.attribute);
            let found = attributes.filter(|a| a.name.as_deref() == Some("TRT_decomposable"));
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
}
