//! Computes Pillow's bilinear resize with antialias, bit for bit.

/// Bits of a weight's fraction, as in Pillow: 8 of 32 hold the value, 2 the carry and the sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The source positions and fixed-point weights of one target sample.
pub(super) struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Computes Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` for the triangle filter.
pub(super) fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight =
            |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| (0.5 + w / sum * f64::from(1 << PRECISION_BITS)) as i32;
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(tap).collect()
}

/// Lines of pixels in a buffer: `count` lines, `next` bytes apart, of `length` pixels, `stride`
/// bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) count: usize,
    pub(super) length: usize,
    pub(super) stride: usize,
    pub(super) next: usize,
}

/// Applies `taps` along every line.
///
/// The lines of the result are `next` bytes apart, and its pixels `stride` bytes.
pub(super) fn resample(
    from: &[u8],
    lines: Lines,
    taps: &[Taps],
    next: usize,
    stride: usize,
) -> Vec<u8> {
    debug_assert!(
        taps.iter()
            .all(|t| t.first + t.weights.len() <= lines.length)
    );
    let mut out = vec![0; 3 * lines.count * taps.len()];
    for line in 0..lines.count {
        for (i, tap) in taps.iter().enumerate() {
            let mut sums = [1 << (PRECISION_BITS - 1); 3];
            for (k, weight) in tap.weights.iter().enumerate() {
                let at = line * lines.next + (tap.first + k) * lines.stride;
                for (sum, &value) in sums.iter_mut().zip(&from[at..at + 3]) {
                    *sum += i32::from(value) * weight;
                }
            }
            let into = line * next + i * stride;
            for (value, sum) in out[into..into + 3].iter_mut().zip(sums) {
                *value = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
            }
        }
    }
    out
}
