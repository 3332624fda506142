//! Published checkpoints to one ONNX graph per component.
//!
//! [`checkpoint`] reads tensors as lazy views, [`families`] builds every graph from their names and
//! shapes, and [`export`] writes each weight once, the graphs and the manifest. The crate runs no
//! graph: `engines`, the crate below, holds the contracts and the backends.
#![warn(missing_docs)]
pub mod build;
pub mod checkpoint;
pub mod cli;
mod config;
pub mod export;
pub mod families;
pub mod graph;
pub mod graphs;
mod hub;
mod inspect;
mod log_args;
mod models;
mod nn;
mod progress;
pub mod synth;
mod usage;
mod verdict;
