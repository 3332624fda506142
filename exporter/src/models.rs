//! The components as graphs, one file per network; each reads beside its PyTorch twin. No bytes, no
//! files: see `export.rs`.
pub(crate) mod umt5;
pub(crate) mod wan_s2v;
pub(crate) mod wan_vae;
pub(crate) mod wav2vec2;
