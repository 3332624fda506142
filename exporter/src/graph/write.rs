//! Writes a graph as an ONNX file, which has its name only once it is complete. Not here: the data
//! files of its weights ([`super::data`]), the manifest.
use super::data::{DataLayout, Placed};
use super::error::WriteError;
use super::{Attribute, Constant, ConstantData, Fact, Graph, Node, Weight};
use crate::graph::builder::is_unknown;
use engines::contract::DType;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::MessageField;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Operator set of every graph.
pub const OPSET: i64 = 24;
/// Version of the ONNX file format that belongs to [`OPSET`].
pub const IR_VERSION: i64 = 12;
/// The form in which an ONNX file refers to its weights.
#[derive(Clone, Copy, Debug)]
pub enum WeightPlacement<'a> {
    /// As initializers, whose bytes are in data files.
    External(&'a DataLayout),
    /// As graph inputs. Such a file needs no bytes of weights.
    AsInputs,
}

/// Returns ONNX's number of an element type.
pub(super) fn onnx_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::BF16 => 16,
    }
}

/// Returns the graph as an ONNX model. Symbolic dimensions become `dim_param` texts such as
/// `3*h*w`; every intermediate value has its type and shape.
///
/// # Errors
/// A weight that the layout lacks.
pub fn to_model(graph: &Graph, placement: WeightPlacement<'_>) -> Result<ModelProto, WriteError> {
    let infos = |ids: &[usize]| {
        ids.iter()
            .map(|&id| value_info(&graph.values[id].name, &graph.values[id].fact))
            .collect::<Vec<_>>()
    };
    let mut input = infos(&graph.inputs);
    let mut initializer: Vec<TensorProto> =
        graph.constants.iter().map(|c| constant(graph, c)).collect();
    for w in &graph.weights {
        match placement {
            WeightPlacement::AsInputs => {
                input.push(value_info(&w.name, &graph.values[w.value].fact));
            }
            WeightPlacement::External(layout) => {
                let placed = layout.get(&w.name);
                let placed = placed.ok_or_else(|| WriteError::Unplaced {
                    graph: graph.name.clone(),
                    name: w.name.clone(),
                })?;
                initializer.push(external(w, placed));
            }
        }
    }
    let inner: Vec<usize> = graph
        .nodes
        .iter()
        .flat_map(|n| n.outputs.iter().copied())
        .filter(|id| !graph.outputs.contains(id))
        .collect();
    let graph_proto = GraphProto {
        node: graph.nodes.iter().map(|n| node(graph, n)).collect(),
        name: graph.name.clone(),
        initializer,
        input,
        output: infos(&graph.outputs),
        value_info: infos(&inner),
        ..GraphProto::default()
    };
    Ok(ModelProto {
        ir_version: IR_VERSION,
        producer_name: "avatar-export".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: MessageField::some(graph_proto),
        opset_import: vec![OperatorSetIdProto {
            version: OPSET,
            ..OperatorSetIdProto::default()
        }],
        metadata_props: graph.metadata.iter().map(|(k, v)| entry(k, v)).collect(),
        ..ModelProto::default()
    })
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
        ..StringStringEntryProto::default()
    }
}

fn value_info(name: &str, fact: &Fact) -> ValueInfoProto {
    let dim = fact.dims.iter().map(|d| Dimension {
        value: match d.as_const() {
            Some(n) => Some(dimension::Value::DimValue(n)),
            None if is_unknown(d) => None,
            None => Some(dimension::Value::DimParam(d.to_string())),
        },
        ..Dimension::default()
    });
    let shape = TensorShapeProto {
        dim: dim.collect(),
        ..TensorShapeProto::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: onnx_type(fact.dtype),
        shape: MessageField::some(shape),
        ..type_proto::Tensor::default()
    };
    ValueInfoProto {
        name: name.to_owned(),
        type_: MessageField::some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn node(graph: &Graph, n: &Node) -> NodeProto {
    NodeProto {
        input: n
            .inputs
            .iter()
            .map(|i| {
                i.map(|id| graph.values[id].name.clone())
                    .unwrap_or_default()
            })
            .collect(),
        output: n
            .outputs
            .iter()
            .map(|&id| graph.values[id].name.clone())
            .collect(),
        name: n.name.clone(),
        op_type: n.op.to_owned(),
        attribute: n
            .attributes
            .iter()
            .map(|(name, a)| attribute(name, a))
            .collect(),
        ..NodeProto::default()
    }
}

fn attribute(name: &str, a: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    };
    let type_ = match a {
        Attribute::Float(x) => {
            proto.f = *x;
            AttributeType::FLOAT
        }
        Attribute::Int(i) => {
            proto.i = *i;
            AttributeType::INT
        }
        Attribute::Text(word) => {
            proto.s = word.as_bytes().to_vec();
            AttributeType::STRING
        }
        Attribute::Ints(list) => {
            proto.ints.clone_from(list);
            AttributeType::INTS
        }
    };
    proto.type_ = type_.into();
    proto
}

fn tensor(name: &str, dtype: DType, shape: &[usize]) -> TensorProto {
    TensorProto {
        dims: shape
            .iter()
            .map(|&n| i64::try_from(n).unwrap_or(i64::MAX))
            .collect(),
        data_type: onnx_type(dtype),
        name: name.to_owned(),
        ..TensorProto::default()
    }
}

fn constant(graph: &Graph, c: &Constant) -> TensorProto {
    let (dtype, bytes) = match &c.data {
        ConstantData::F32(x) => (DType::F32, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ConstantData::I64(x) => (DType::I64, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ConstantData::BF16(x) => (
            DType::BF16,
            x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
    };
    TensorProto {
        raw_data: bytes,
        ..tensor(&graph.values[c.value].name, dtype, &c.shape)
    }
}

fn external(w: &Weight, placed: &Placed) -> TensorProto {
    let place = [
        ("location", placed.file.clone()),
        ("offset", placed.offset.to_string()),
        ("length", placed.length.to_string()),
    ];
    TensorProto {
        external_data: place.iter().map(|(k, v)| entry(k, v)).collect(),
        data_location: DataLocation::EXTERNAL.into(),
        ..tensor(&w.name, w.dtype, &w.shape)
    }
}

/// Returns the bytes of a model's ONNX file.
///
/// # Panics
/// For a model of 2 GiB, the limit of protobuf. Weights are in other files, so a graph stays far
/// below.
pub fn encode(model: &ModelProto) -> Vec<u8> {
    model
        .write_to_bytes()
        .expect("a graph without weight bytes is below the limit of 2 GiB")
}

/// Writes a model and returns the hash of the file in hex.
///
/// # Errors
/// An error of the file system.
pub fn write_model(path: &Path, model: &ModelProto) -> Result<String, WriteError> {
    let bytes = encode(model);
    let mut file = Partial::create(path)?;
    file.append(&bytes)?;
    file.finish()
}

/// A file that gets its name when it is complete. Dropped before, it is removed.
struct Partial {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Partial {
    fn create(path: &Path) -> Result<Self, WriteError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|source| WriteError::Io {
            path: part.clone(),
            source,
        })?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self {
            path: path.to_owned(),
            part,
            file,
            hasher: blake3::Hasher::new(),
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|source| WriteError::Io {
            path: self.part.clone(),
            source,
        })
    }

    /// Gives the file its name, and returns its hash in hex. The caller synchronises it, if it must
    /// survive a power cut.
    fn finish(mut self) -> Result<String, WriteError> {
        let fail = |source| WriteError::Io {
            path: self.path.clone(),
            source,
        };
        self.file
            .flush()
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(fail)?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

impl Drop for Partial {
    /// After a rename the temporary name is free. Drop cannot return an error.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::data::Placed;
    use crate::graph::{Builder, Fact, Transform};
    use engines::contract::Port;
    use engines::error_kind::ErrorKind;
    use std::collections::BTreeMap;

    const X: Port = Port::new("x", DType::F32, "B 3*h*w 4");
    const Y: Port = Port::new("y", DType::F32, "B 3*h*w 3");

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let model = to_model(
            &graph(&BTreeMap::from([("q.weight".to_owned(), vec![3, 4])])),
            WeightPlacement::AsInputs,
        )
        .unwrap();
        let error = write_model(&dir.path().join("no/w.onnx"), &model).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.to_string().contains("w.onnx"), "{error}");
    }

    fn graph(source: &BTreeMap<String, Vec<usize>>) -> Graph {
        let b = Builder::new("t", source);
        let (s, x) = (b.root().pp("q"), b.input(&X));
        let w = s.weight_as("weight", [3, 4], Transform::Transpose2);
        b.output(&Y, s.out((x * 0.5).softmax(-1).matmul(w)));
        b.finish().unwrap()
    }

    #[test]
    fn a_model_holds_types_shapes_and_places_of_weights() {
        let g = graph(&BTreeMap::from([("q.weight".to_owned(), vec![3, 4])]));
        let missing = to_model(&g, WeightPlacement::External(&DataLayout::new())).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "graph t: weight q.weight|transpose is in no data file"
        );
        let placed = Placed {
            file: "m.data".into(),
            offset: 512,
            length: 48,
        };
        let layout = DataLayout::from([("q.weight|transpose".to_owned(), placed)]);
        let model = to_model(&g, WeightPlacement::External(&layout)).unwrap();
        let again = ModelProto::parse_from_bytes(&encode(&model)).unwrap();
        assert_eq!(again, model);
        let graph = model.graph.as_ref().unwrap();
        let external = graph
            .initializer
            .iter()
            .find(|t| t.data_location == DataLocation::EXTERNAL.into())
            .unwrap();
        let place: Vec<&str> = external
            .external_data
            .iter()
            .map(|e| e.value.as_str())
            .collect();
        assert_eq!(
            (place, external.dims.as_slice()),
            (vec!["m.data", "512", "48"], [4, 3].as_slice())
        );
        assert_eq!(
            graph.input,
            [value_info(
                "x",
                &Fact {
                    dtype: DType::F32,
                    dims: X.dims()
                }
            )]
        );
        let axis = graph
            .node
            .iter()
            .flat_map(|n| &n.attribute)
            .find(|a| a.name == "axis")
            .unwrap();
        assert_eq!((axis.i, axis.type_), (-1, AttributeType::INT.into()));
        assert_eq!((model.ir_version, model.opset_import[0].version), (12, 24));
    }

    #[test]
    fn without_bytes_the_weights_are_inputs() {
        let g = graph(&BTreeMap::from([("q.weight".to_owned(), vec![3, 4])]));
        let model = to_model(&g, WeightPlacement::AsInputs).unwrap();
        let graph = model.graph.unwrap();
        let names: Vec<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["x", "q.weight|transpose"]);
        assert!(graph.initializer.iter().all(|t| t.external_data.is_empty()));
    }
}
