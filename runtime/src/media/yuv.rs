//! RGB as the planes of BT.709 in limited range.

use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;
use ffmpeg_next::util::color::{Range, Space};

use crate::numbers::size::Size;

/// BT.709 weights of R, G and B for luma, in 16 bits over 219 levels.
const LUMA: [i32; 3] = [11_966, 40_254, 4_064];
/// BT.709 weights of R, G and B for blue chroma, in 16 bits over 224 levels.
const BLUE: [i32; 3] = [-6_596, -22_189, 28_785];
/// BT.709 weights of R, G and B for red chroma, in 16 bits over 224 levels.
const RED: [i32; 3] = [28_785, -26_145, -2_640];

/// Turns RGB `[H, W, 3]` into planar 4:2:0 in limited range.
///
/// Chroma sits left, as H.264 assumes: columns have the weights 1-2-1, and two rows are averaged.
pub(super) fn to_yuv(rgb: &[u8], size: Size) -> frame::Video {
    let mut out = frame::Video::new(Pixel::YUV420P, size.width as u32, size.height as u32);
    out.set_color_space(Space::BT709);
    out.set_color_range(Range::MPEG);
    let row = 3 * size.width;
    let stride = out.stride(0);
    for (from, into) in rgb
        .chunks_exact(row)
        .zip(out.data_mut(0).chunks_mut(stride))
    {
        for (rgb, y) in from.as_chunks::<3>().0.iter().zip(into) {
            *y = level(LUMA, rgb.map(i32::from), 16, 0);
        }
    }
    for (plane, weights) in [(1, BLUE), (2, RED)] {
        let stride = out.stride(plane);
        for (rows, into) in rgb
            .chunks_exact(2 * row)
            .zip(out.data_mut(plane).chunks_mut(stride))
        {
            for (x, c) in into.iter_mut().take(size.width / 2).enumerate() {
                *c = level(weights, eight_of(rows, x, size.width), 128, 3);
            }
        }
    }
    out
}

/// Returns eight times the colour at chroma column `x` of two rows.
fn eight_of(rows: &[u8], x: usize, width: usize) -> [i32; 3] {
    let columns = [
        ((2 * x).saturating_sub(1), 1),
        (2 * x, 2),
        ((2 * x + 1).min(width - 1), 1),
    ];
    let mut sum = [0; 3];
    for (column, weight) in columns {
        for row in [0, width] {
            let at = 3 * (row + column);
            for (s, &v) in sum.iter_mut().zip(&rows[at..at + 3]) {
                *s += weight * i32::from(v);
            }
        }
    }
    sum
}

/// Returns the weighted sum of three colours, rounded, plus `offset`, as a level of 8 bits.
///
/// The weights have 16 bits of fraction, and the colours are `2^shift` times too large.
fn level(weights: [i32; 3], rgb: [i32; 3], offset: i32, shift: u32) -> u8 {
    let bits = 16 + shift;
    let sum: i32 = weights.iter().zip(rgb).map(|(w, v)| w * v).sum();
    ((sum + (1 << (bits - 1))) >> bits)
        .saturating_add(offset)
        .clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_bt709() {
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 0, 255], [32, 240, 118]),
        ] {
            let frame = to_yuv(
                &rgb.repeat(32 * 32),
                Size {
                    width: 32,
                    height: 32,
                },
            );
            assert_eq!(
                [frame.data(0)[33], frame.data(1)[5], frame.data(2)[5]],
                yuv,
                "{rgb:?}"
            );
        }
    }
}
