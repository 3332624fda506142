//! Rates and counts of frames that the reference fixes.
//!
//! Source: `liveavatar/models/wan/causal_s2v_pipeline_tpp.py` @ 9c2c38d.

/// Video frames a second.
pub(crate) const FPS: u32 = 25;

/// Video frames of one latent frame.
pub(crate) const FRAMES_PER_LATENT: usize = engines::components::vae::TEMPORAL_STRIDE;

/// Pixel frames of the motion history, `motion_frames` of the reference.
pub(crate) const MOTION_PIXEL_FRAMES: usize = 73;

/// Motion latents that prime the streaming decoder. Their frames are dropped.
pub(crate) const PRIMING_LATENTS: usize = 7;

/// Video frames that the very first block drops: they belong to the priming.
pub(crate) const DROPPED_FRAMES: usize = 3;
