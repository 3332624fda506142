//! Rates and counts of frames that the reference fixes.
//!
//! Source: `liveavatar/models/wan/causal_s2v_pipeline_tpp.py` @ 9c2c38d.

/// Video frames a second.
pub const FPS: u32 = 25;

/// Video frames of one latent frame.
pub const FRAMES_PER_LATENT: usize = engines::components::vae::TEMPORAL_STRIDE;

/// Pixel frames of the motion history, `motion_frames` of the reference.
pub const MOTION_PIXEL_FRAMES: usize = 73;

/// Motion latents that prime the streaming decoder. Their frames are dropped.
pub const PRIMING_LATENTS: usize = 7;

/// Video frames that the very first block drops: they belong to the priming.
pub const DROPPED_FRAMES: usize = 3;
