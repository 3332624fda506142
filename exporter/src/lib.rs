//! Published checkpoints to per-component ONNX graphs: `checkpoint` (tensors as lazy views) -> `models` over `graph` (nodes, no bytes) ->
//! `export` (weights once, graphs, manifest). It runs nothing; engines and their contracts are the crate below.
pub mod build;
pub mod checkpoint;
pub mod cli;
mod config;
pub mod export;
pub mod families;
pub mod graph;
pub mod graphs;
mod inspect;
mod models;
mod nn;
mod progress;
pub mod synth;
