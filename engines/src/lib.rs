//! The waist of the project: what an engine is (its contract), how it is described on disk (its
//! manifest) and how it is loaded and run (its backend). It knows no checkpoint, no pipeline and no
//! device arithmetic.
//!
//! ```text
//! checkpoint --exporter--> graph (.onnx + .data) --engines::backend--> session --runtime--> frame
//! ```
#![warn(missing_docs)]

pub mod backend;
pub mod components;
pub mod contract;
pub mod device;
pub mod dim;
pub mod dtype;
pub mod error_kind;
pub mod files;
pub mod graph_folder;
pub mod manifest;
pub mod memory;
pub mod profile;
pub mod recipe;
pub mod tensor;
pub mod tensor_file;
pub mod weights;
