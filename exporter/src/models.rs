//! The networks as graphs, one file for each. Each file reads beside its PyTorch twin. Not here:
//! bytes of weights, files.
pub(crate) mod umt5;
pub(crate) mod wan_s2v;
pub(crate) mod wan_vae;
pub(crate) mod wav2vec2;
