//! Random numbers by counting: element `i` of a tensor is a function of (seed, name, i). So tensors
//! can be made in any order, in pieces, on any number of threads. The numbers are uniform: one hash
//! gives four of them, and only their mean and variance matter here.

use std::num::NonZero;
use std::thread;

use half::bf16;

use crate::checkpoint::StoredDType;

/// A uniform distribution around `mean`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fill {
    pub(super) mean: f32,
    pub(super) std: f32,
}

/// The stream of one tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    key: u64,
    fill: Fill,
}

/// Number of values from one hash.
const LANES: usize = 4;

impl Stream {
    pub(super) fn new(seed: u64, component: &str, name: &str, fill: Fill) -> Self {
        let hash = blake3::hash(format!("{seed}:{component}:{name}").as_bytes());
        let key = hash
            .as_bytes()
            .first_chunk()
            .map_or(0, |b| u64::from_le_bytes(*b));
        Self { key, fill }
    }

    /// Returns the values `LANES * group ..` of the stream.
    fn group(&self, group: u64) -> [f32; LANES] {
        let half_width = self.fill.std * 3f32.sqrt();
        let bits = mix(self
            .key
            .wrapping_add(group.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        // Odd multiples of 2^-16: symmetric, and never 0.
        [0, 16, 32, 48].map(|shift| {
            let u = f32::from((bits >> shift) as u16);
            self.fill.mean + half_width * ((2.0 * u + 1.0) / 65536.0 - 1.0)
        })
    }

    /// Fills `out` with elements `from..` as little-endian `dtype`; `from` is a multiple of 4,
    /// `dtype` BF16 or F32.
    pub(super) fn write(&self, from: usize, dtype: StoredDType, out: &mut [u8]) {
        let threads = if out.len() < 1 << 20 {
            1
        } else {
            thread::available_parallelism().map_or(1, NonZero::get)
        };
        let share = (out.len() / dtype.size())
            .div_ceil(threads)
            .next_multiple_of(LANES);
        thread::scope(|scope| {
            for (i, part) in out.chunks_mut(share * dtype.size()).enumerate() {
                let group = ((from + i * share) / LANES) as u64;
                scope.spawn(move || self.write_part(group, dtype, part));
            }
        });
    }

    fn write_part(&self, group: u64, dtype: StoredDType, out: &mut [u8]) {
        match dtype {
            StoredDType::BF16 => self.encode(group, out, |x| bf16::from_f32(x).to_le_bytes()),
            _ => self.encode(group, out, f32::to_le_bytes),
        }
    }

    fn encode<const N: usize>(&self, group: u64, out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
        for (i, four) in out.chunks_mut(N * LANES).enumerate() {
            let values = self.group(group + i as u64);
            four.chunks_exact_mut(N)
                .zip(values)
                .for_each(|(o, x)| o.copy_from_slice(&bytes(x)));
        }
    }
}

/// Applies the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(stream: Stream, from: usize, n: usize) -> Vec<f32> {
        let mut out = vec![0; n * 4];
        stream.write(from, StoredDType::F32, &mut out);
        out.as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    #[test]
    fn mean_and_deviation_are_as_asked_and_nothing_is_zero() {
        let x = values(
            Stream::new(
                1,
                "dit",
                "w",
                Fill {
                    mean: 0.0,
                    std: 0.5,
                },
            ),
            0,
            400_001,
        );
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let std = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
        assert!(
            mean.abs() < 3e-3 && (std - 0.5).abs() < 3e-3,
            "{mean} {std}"
        );
        assert!(x.iter().all(|&x| x != 0.0));
    }

    #[test]
    fn a_piece_is_the_same_as_the_whole() {
        let s = Stream::new(
            7,
            "t5",
            "w",
            Fill {
                mean: 1.0,
                std: 0.2,
            },
        );
        assert_eq!(
            values(s, 0, 600_000)[400_000..401_003],
            values(s, 400_000, 1003)
        );
    }

    #[test]
    fn seed_component_and_name_each_make_another_stream() {
        let fill = Fill {
            mean: 0.0,
            std: 1.0,
        };
        let all = [(1, "a", "x"), (2, "a", "x"), (1, "b", "x"), (1, "a", "y")]
            .map(|(s, c, n)| values(Stream::new(s, c, n, fill), 0, 8));
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
