//! The waist of the project. It says what an engine is (its contract), describes an export on disk
//! (its manifest), and loads and runs one (its backend). It knows no checkpoint, no pipeline and no
//! arithmetic with devices.
//!
//! ```text
//! checkpoint --exporter--> graph (.onnx + .data) --engines::backend--> session --runtime--> frame
//! ```
//!
//! A graph meets its [`contract`] when it is loaded, and a call meets it before anything runs. The
//! example multiplies two matrices on the CPU; `avatar-export graphs` wrote its ONNX file.
//!
//! ```
//! use engines::backend::ort::{GraphFile, Runtime};
//! use engines::backend::run_named;
//! use engines::components::matmul;
//! use engines::dim::Bindings;
//! use engines::recipe::Recipe;
//! use engines::tensor::Tensor;
//! use engines::tensor_file::Tensors;
//!
//! let runtime = Runtime::cpu(1)?;
//! let graph = GraphFile {
//!     path: "tests/data/probe_matmul.onnx".into(),
//!     contract: &matmul::MATMUL,
//!     recipe: Recipe::Fp32,
//!     bindings: Bindings::new(),
//! };
//! let (mut session, _) = runtime.open(&graph)?;
//! let left = Tensor::from_slice(&[1, 2], &[1f32, 2.]);
//! let right = Tensor::from_slice(&[2, 2], &[3f32, 4., 5., 6.]);
//! let given = Tensors::from([("left".to_owned(), left), ("right".to_owned(), right)]);
//! let results = run_named(&mut *session, &**runtime.memory(), given)?;
//! assert_eq!(results["product"].as_slice::<f32>(), [13., 16.]);
//!
//! let wrong = Tensors::from([("left".to_owned(), Tensor::from_slice(&[1], &[1i64]))]);
//! let error = run_named(&mut *session, &**runtime.memory(), wrong).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "component probe_matmul: port right: wanted f32 [k, n], got nothing"
//! );
//! # Ok::<(), engines::backend::EngineError>(())
//! ```

#![warn(missing_docs)]

pub mod backend;
pub mod cancel;
pub mod claims;
pub mod components;
pub mod console;
pub mod contract;
pub mod device;
pub mod dim;
pub mod dtype;
pub mod error_kind;
pub mod files;
pub mod graph_folder;
pub mod installed;
pub mod log;
pub mod manifest;
pub mod memory;
pub mod nvml;
pub mod procfs;
pub mod profile;
pub mod progress_bar;
pub mod recipe;
pub mod signals;
pub mod tensor;
pub mod tensor_file;
pub mod weights;
pub mod words;
