//! Contracts and sizes of the Wan 2.1 video VAE as a stream: the first frame, then chunks of one
//! latent frame (four pixel frames). The feature cache of each causal convolution is a state port:
//! it has the name of the convolution's checkpoint path and holds its last input frames.
//!
//! Mirrors `WanVAE_`, liveavatar/models/wan/wan_2_2/modules/vae2_1.py @ 9c2c38d.

use super::symbols;
use crate::contract::{Contract, DType::F32, DType::U8, Port, Sizes, StateKind, Weights};
use crate::dim::Bindings;
use std::collections::BTreeSet;

/// The first pixel frame, `[1, 3, 1, 8*H, 8*W]`, RGB in [-1, 1].
pub const PIXELS_FIRST: Port = Port::new("pixels", F32, "1 3 1 8*H 8*W");
/// The next four pixel frames, `[1, 3, 4, 8*H, 8*W]`, RGB in [-1, 1].
pub const PIXELS_NEXT: Port = Port::new("pixels", F32, "1 3 4 8*H 8*W");
/// Normalised latent of one latent frame, `[1, Z, 1, H, W]`: `(mu - mean) / std`.
pub const LATENTS_OUT: Port = Port::new("latents_out", F32, "1 Z 1 H W");
/// Normalised latent of one latent frame, `[1, Z, 1, H, W]`.
pub const LATENTS: Port = Port::new("latents", F32, "1 Z 1 H W");
/// The first decoded frame, `[1, 3, 1, 8*H, 8*W]`, RGB clamped to [-1, 1].
pub const FRAMES_FIRST: Port = Port::new("frames", F32, "1 3 1 8*H 8*W");
/// The next four decoded frames, `[1, 3, 4, 8*H, 8*W]`, RGB clamped to [-1, 1].
pub const FRAMES_NEXT: Port = Port::new("frames", F32, "1 3 4 8*H 8*W");
/// The first decoded frame as the video encoder takes it, `[1, 8*H, 8*W, 3]`:
/// `trunc((x + 1) / 2 * 255)`.
pub const FRAMES_U8_FIRST: Port = Port::new("frames_u8", U8, "1 8*H 8*W 3");
/// The next four decoded frames as the video encoder takes them, `[4, 8*H, 8*W, 3]`.
pub const FRAMES_U8_NEXT: Port = Port::new("frames_u8", U8, "4 8*H 8*W 3");

const ENCODER_CACHES: &[Port] = &[
    Port::compute("encoder.conv1", "1 3 2 8*H 8*W"),
    Port::compute("encoder.downsamples.0.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("encoder.downsamples.0.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("encoder.downsamples.1.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("encoder.downsamples.1.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("encoder.downsamples.3.residual.2", "1 c 2 4*H 4*W"),
    Port::compute("encoder.downsamples.3.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("encoder.downsamples.4.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("encoder.downsamples.4.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("encoder.downsamples.5.time_conv", "1 2*c 1 2*H 2*W"),
    Port::compute("encoder.downsamples.6.residual.2", "1 2*c 2 2*H 2*W"),
    Port::compute("encoder.downsamples.6.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("encoder.downsamples.7.residual.2", "1 4*c 2 2*H 2*W"),
    Port::compute("encoder.downsamples.7.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("encoder.downsamples.8.time_conv", "1 4*c 1 H W"),
    Port::compute("encoder.downsamples.9.residual.2", "1 4*c 2 H W"),
    Port::compute("encoder.downsamples.9.residual.6", "1 4*c 2 H W"),
    Port::compute("encoder.downsamples.10.residual.2", "1 4*c 2 H W"),
    Port::compute("encoder.downsamples.10.residual.6", "1 4*c 2 H W"),
    Port::compute("encoder.middle.0.residual.2", "1 4*c 2 H W"),
    Port::compute("encoder.middle.0.residual.6", "1 4*c 2 H W"),
    Port::compute("encoder.middle.2.residual.2", "1 4*c 2 H W"),
    Port::compute("encoder.middle.2.residual.6", "1 4*c 2 H W"),
    Port::compute("encoder.head.2", "1 4*c 2 H W"),
];

/// The convolutions that up-sample in time neither see nor keep the very first latent frame; their
/// caches start at zeros.
const DECODER_CACHES_FIRST: &[Port] = &[
    Port::compute("decoder.conv1", "1 Z 2 H W"),
    Port::compute("decoder.middle.0.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.middle.0.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.middle.2.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.middle.2.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.0.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.0.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.1.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.1.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.2.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.2.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.4.residual.2", "1 2*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.4.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.5.residual.2", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.5.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.6.residual.2", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.6.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.8.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.8.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.9.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.9.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.10.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.10.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.12.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.12.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.13.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.13.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.14.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.14.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("decoder.head.2", "1 c 2 8*H 8*W"),
];

const DECODER_CACHES: &[Port] = &[
    Port::compute("decoder.conv1", "1 Z 2 H W"),
    Port::compute("decoder.middle.0.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.middle.0.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.middle.2.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.middle.2.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.0.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.0.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.1.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.1.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.2.residual.2", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.2.residual.6", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.3.time_conv", "1 4*c 2 H W"),
    Port::compute("decoder.upsamples.4.residual.2", "1 2*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.4.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.5.residual.2", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.5.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.6.residual.2", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.6.residual.6", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.7.time_conv", "1 4*c 2 2*H 2*W"),
    Port::compute("decoder.upsamples.8.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.8.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.9.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.9.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.10.residual.2", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.10.residual.6", "1 2*c 2 4*H 4*W"),
    Port::compute("decoder.upsamples.12.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.12.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.13.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.13.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.14.residual.2", "1 c 2 8*H 8*W"),
    Port::compute("decoder.upsamples.14.residual.6", "1 c 2 8*H 8*W"),
    Port::compute("decoder.head.2", "1 c 2 8*H 8*W"),
];

/// Encodes the first frame and produces the caches.
pub const ENCODER_FIRST: Contract = Contract {
    name: "vae_encoder_first",
    inputs: &[PIXELS_FIRST],
    state: ENCODER_CACHES,
    state_kind: StateKind::Produce,
    outputs: &[LATENTS_OUT],
    weights: Weights::Inside,
};
/// Encodes the next four frames and replaces the caches.
pub const ENCODER_NEXT: Contract = Contract {
    name: "vae_encoder_next",
    inputs: &[PIXELS_NEXT],
    state: ENCODER_CACHES,
    state_kind: StateKind::Replace,
    outputs: &[LATENTS_OUT],
    weights: Weights::Inside,
};
/// Decodes the first latent frame and produces the caches.
pub const DECODER_FIRST: Contract = Contract {
    name: "vae_decoder_first",
    inputs: &[LATENTS],
    state: DECODER_CACHES_FIRST,
    state_kind: StateKind::Produce,
    outputs: &[FRAMES_FIRST, FRAMES_U8_FIRST],
    weights: Weights::Inside,
};
/// Decodes the next latent frame and replaces the caches.
pub const DECODER_NEXT: Contract = Contract {
    name: "vae_decoder_next",
    inputs: &[LATENTS],
    state: DECODER_CACHES,
    state_kind: StateKind::Replace,
    outputs: &[FRAMES_NEXT, FRAMES_U8_NEXT],
    weights: Weights::Inside,
};

/// Every contract of the VAE.
pub const ALL: [Contract; 4] = [ENCODER_FIRST, ENCODER_NEXT, DECODER_FIRST, DECODER_NEXT];

/// Pixels per latent row or column.
pub const SPATIAL_STRIDE: usize = 8;
/// Pixel frames per latent frame after the first.
pub const TEMPORAL_STRIDE: usize = 4;

/// Sizes of the VAE, and the parts that its graphs leave out because their weights are zero.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Base width: 96 in the published model.
    pub dim: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Paths of the modules whose branch adds zero, such as `decoder.upsamples.14`. The graphs have
    /// only their shortcut.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub idle_branches: BTreeSet<String>,
    /// Paths of the causal convolutions whose weights for older frames are zero, such as
    /// `decoder.head.2`. They see one frame at a time and have no cache.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub frame_convolutions: BTreeSet<String>,
}

impl VaeConfig {
    /// Returns a contract of the VAE without the caches that this model does not have.
    pub fn contract(&self, whole: &'static Contract) -> &'static Contract {
        whole.without_state(|port| !self.has_cache(port.name))
    }

    /// Returns whether a causal convolution keeps frames of the past.
    fn has_cache(&self, convolution: &str) -> bool {
        let inside = |module: &String| {
            let rest = convolution.strip_prefix(module.as_str());
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        !self.frame_convolutions.contains(convolution) && !self.idle_branches.iter().any(inside)
    }
}

/// Mean of each latent channel: `WanVAE.mean` of the reference.
pub const LATENT_MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
    -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
];
/// Standard deviation of each latent channel: `WanVAE.std` of the reference.
pub const LATENT_STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
    1.6382, 1.1253, 2.8251, 1.9160,
];

impl Sizes for VaeConfig {
    fn bindings(&self) -> Bindings {
        symbols::bindings([
            (symbols::VAE_WIDTH, self.dim),
            (symbols::LATENT_CHANNELS, self.latent_channels),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(contract: &Contract) -> Vec<&'static str> {
        contract.state.iter().map(|port| port.name).collect()
    }

    #[test]
    fn idle_branches_and_convolutions_of_one_frame_have_no_cache() {
        let config = VaeConfig {
            idle_branches: ["decoder.upsamples.1".to_owned()].into(),
            frame_convolutions: ["decoder.head.2".to_owned()].into(),
            ..VaeConfig::default()
        };
        let gone = [
            "decoder.upsamples.1.residual.2",
            "decoder.upsamples.1.residual.6",
            "decoder.head.2",
        ];
        for whole in [&DECODER_FIRST, &DECODER_NEXT] {
            let mut want = names(whole);
            // The modules 12 to 14 begin with the same letters.
            want.retain(|name| !gone.contains(name));
            let found = config.contract(whole);
            assert_eq!(names(found), want);
            assert_ne!(found.fingerprint(), whole.fingerprint());
            assert!(std::ptr::eq(found, config.contract(whole)));
        }
        assert_eq!(config.contract(&ENCODER_NEXT), &ENCODER_NEXT);
    }

    #[test]
    fn a_config_without_zeros_reads_and_writes_as_before() {
        let text = r#"{"dim":96,"latent_channels":16}"#;
        let config: VaeConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
    }
}
