//! The components as graphs, one file per network; each reads beside its PyTorch twin. No bytes, no files: see `export.rs`.
pub mod umt5;
pub mod wan_s2v;
pub mod wan_vae;
pub mod wav2vec2;
