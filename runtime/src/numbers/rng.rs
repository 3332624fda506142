//! Generates random numbers.
//!
//! Noise is the stream of torch's CPU generator. A seed thus gives the noise of the reference on a
//! CPU. CUDA has another generator, which this file does not reproduce. `relative_dist` has a small
//! keyed generator of our own.

use std::f64::consts::PI;

use half::bf16;

/// Channels of the noise of a clip.
pub(crate) const NOISE_CHANNELS: usize = 16;
/// Words of the state, `n` of the Mersenne Twister.
const STATE: usize = 624;
/// Distance of the two words that a twist combines, `m` of the Mersenne Twister.
const MIDDLE: usize = 397;
/// Values that torch makes together: eight radii and eight angles.
const GROUP: usize = 16;

/// torch's `Generator(device="cpu")`: the Mersenne Twister 19937, with `torch.randn`.
#[derive(Clone)]
pub(crate) struct TorchGenerator {
    state: [u32; STATE],
    next: usize,
    spare: Option<f64>,
}

impl TorchGenerator {
    /// Seeds a generator as `Generator().manual_seed(seed)` does. Only the low 32 bits count.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        state[0] = seed as u32;
        for i in 1..STATE {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: STATE,
            spare: None,
        }
    }

    /// Draws 32 random bits.
    pub(crate) fn random(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Computes the next 624 words of the Mersenne Twister.
    fn twist(&mut self) {
        for i in 0..STATE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % STATE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// Draws a value of `[0, 1)` in 24 bits, as torch's `uniform_real_distribution<float>`.
    fn uniform(&mut self) -> f32 {
        (self.random() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Draws a value of `[0, 1)` in 53 bits, as torch's `uniform_real_distribution<double>`.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.random());
        let bits = (high << 32 | u64::from(self.random())) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }

    /// Draws `torch.randn(n, dtype=float32)`.
    ///
    /// Sixteen values and more take torch's vectorised path, `normal_fill`. It fills groups of 16;
    /// for a remainder it draws the last 16 values again. Fewer values take the scalar path.
    pub(crate) fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < GROUP {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut out: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        for group in out.chunks_exact_mut(GROUP) {
            box_muller(group);
        }
        if !n.is_multiple_of(GROUP) {
            let last = &mut out[n - GROUP..];
            last.fill_with(|| self.uniform());
            box_muller(last);
        }
        out
    }

    /// Draws `torch.randn(n, dtype=bfloat16)`: the f32 stream, rounded.
    pub(crate) fn randn_bf16(&mut self, n: usize) -> Vec<bf16> {
        self.randn(n).into_iter().map(bf16::from_f32).collect()
    }

    /// Draws as torch's `normal_distribution<double>`: in pairs. It keeps the second value for the
    /// next call.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let (radius, angle) = ((-2.0 * (-u2).ln_1p()).sqrt(), 2.0 * PI * u1);
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Turns sixteen uniform values into normal ones. The first eight give radii, the others angles.
///
/// It rounds to f32 where torch's `normal_fill_16_AVX2` does. The rounding of the angle alone moves
/// a value by 1e-6.
fn box_muller(group: &mut [f32]) {
    const TWO_PI: f32 = std::f32::consts::TAU;
    let (first, last) = group.split_at_mut(GROUP / 2);
    for (a, b) in first.iter_mut().zip(last) {
        let log = f64::from(1.0 - *a).ln() as f32;
        let radius = (-2.0 * log).sqrt();
        let (sin, cos) = f64::from(TWO_PI * *b).sin_cos();
        *a = radius * cos as f32;
        *b = radius * sin as f32;
    }
}

/// Draws the noise of a clip, `torch.randn(16, frames, latent_h, latent_w)`.
///
/// The seed is `base_seed + clip`. `frames` counts latent frames (12 for 48 video frames).
/// [`crate::numbers::size::Size::latent`] gives `(latent_h, latent_w)`.
pub(crate) fn clip_noise(
    base_seed: u64,
    clip: usize,
    frames: usize,
    latent: (usize, usize),
) -> Vec<f32> {
    let mut generator = TorchGenerator::new(base_seed.wrapping_add(clip as u64));
    generator.randn(NOISE_CHANNELS * frames * latent.0 * latent.1)
}

/// Draws the distance of the reference token for one forward, an integer in `4..=30`.
///
/// The reference draws `random.randint(4, 30)` without a seed. This function depends on
/// `(seed, block, step)` alone, so neither the order of execution nor a restart changes its result.
/// The result is `4 + floor(27 * z / 2^64)`, with `z = mix(mix(mix(seed) + block) + step)`.
pub(crate) fn relative_dist(seed: u64, block: u64, step: u64) -> u32 {
    const LOW: u32 = 4;
    const COUNT: u128 = 27;
    let z = [block, step]
        .into_iter()
        .fold(mix(seed), |z, key| mix(z.wrapping_add(key)));
    LOW + ((u128::from(z) * COUNT) >> 64) as u32
}

/// Adds the increment of SplitMix64 and applies its output function.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;

    #[test]
    fn the_engine_is_mt19937() {
        let mut generator = TorchGenerator::new(5489);
        assert_eq!(generator.random(), 3_499_211_612);
        let ten_thousandth = (1..10_000).map(|_| generator.random()).last();
        assert_eq!(ten_thousandth, Some(4_123_659_995));
    }

    #[test]
    fn noise_is_torchs() {
        for (set, seed) in golden::sets()
            .iter()
            .flat_map(|set| [420, 421].map(|seed| (set, seed)))
        {
            let name = format!("seed{seed}.f32");
            let Some(want) = set.try_f32s("rng", &name) else {
                continue;
            };
            let n = want.len();
            let worst = golden::worst(&TorchGenerator::new(seed).randn(n), &want);
            assert!(worst <= 1e-6, "seed {seed}: {worst}");
            let small = golden::worst(
                &TorchGenerator::new(seed).randn(7),
                &set.f32s("rng", &format!("{name}_small")),
            );
            assert!(small <= 1e-6, "seed {seed}: {small}");
            let got: Vec<u16> = TorchGenerator::new(seed)
                .randn_bf16(n)
                .into_iter()
                .map(bf16::to_bits)
                .collect();
            assert!(
                got == set.u16s("rng", &format!("seed{seed}.bf16")),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn clip_noise_is_the_end_to_end_runs() {
        for (set, clip) in golden::sets()
            .iter()
            .flat_map(|set| [0, 1].map(|clip| (set, clip)))
        {
            let name = format!("clip{clip}.noise");
            let [_, frames, h, w] = set.shape("e2e_tpp", &name)[..] else {
                panic!("{name}")
            };
            let noise = clip_noise(set.number("/config/e2e_seed") as u64, clip, frames, (h, w));
            let worst = golden::worst(&noise, &set.f32s("e2e_tpp", &name));
            assert!(worst <= 1e-6, "clip {clip}: {worst}");
        }
    }

    #[test]
    fn a_remainder_draws_the_last_sixteen_anew() {
        let whole = TorchGenerator::new(1).randn(32);
        let part = TorchGenerator::new(1).randn(24);
        assert_eq!(part[..8], whole[..8]);
        assert_ne!(part[8..16], whole[8..16]);
        assert_eq!(part.len(), 24);
    }

    #[test]
    fn distances_fill_4_to_30_evenly_and_only_their_key_matters() {
        let mut seen = [0usize; 31];
        for block in 0..2000 {
            for step in 0..4 {
                seen[relative_dist(420, block, step) as usize] += 1;
            }
        }
        assert!(seen[..4].iter().all(|&n| n == 0));
        assert!(
            seen[4..].iter().all(|&n| (200..400).contains(&n)),
            "{seen:?}"
        );
        assert_eq!(relative_dist(420, 7, 3), relative_dist(420, 7, 3));
        assert_ne!(
            (0..8).map(|b| relative_dist(1, b, 0)).collect::<Vec<_>>(),
            (0..8).map(|b| relative_dist(2, b, 0)).collect::<Vec<_>>()
        );
    }
}
