//! Cutting and joining latents along time: `[1, Z, T, H, W]` stores a channel's frames side by
//! side, so a range of frames is not one slice.

use std::ops::Range;

use engines::tensor::Tensor;

/// Frames `range` of `[1, Z, T, ...]` (or `[1, 3, T, ...]`) as a tensor of their own.
pub(crate) fn frames(latents: &Tensor, range: Range<usize>) -> Tensor {
    let shape = latents.shape();
    let (channels, total) = (shape[1], shape[2]);
    let plane = shape[3..].iter().product::<usize>() * latents.dtype().size();
    let mut cut = shape.to_vec();
    cut[2] = range.len();
    let mut out = Tensor::zeros(latents.dtype(), &cut);
    let (data, rows) = (latents.bytes(), out.bytes_mut());
    for channel in 0..channels {
        let (from, to) = (channel * total + range.start, channel * range.len());
        let (from, to, size) = (from * plane, to * plane, range.len() * plane);
        rows[to..to + size].copy_from_slice(&data[from..from + size]);
    }
    out
}

/// Joins along time. Panics on an empty list.
pub(crate) fn join(parts: &[Tensor]) -> Tensor {
    let mut shape = parts.first().expect("join of no latents").shape().to_vec();
    shape[2] = parts.iter().map(|p| p.shape()[2]).sum();
    let mut out = Vec::with_capacity(shape.iter().product());
    for channel in 0..shape[1] {
        for part in parts {
            let row: usize = part.shape()[2..].iter().product();
            out.extend_from_slice(&part.as_slice::<f32>()[channel * row..(channel + 1) * row]);
        }
    }
    Tensor::from_slice(&shape, &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_and_joining_are_inverse() {
        let whole = Tensor::from_slice(
            &[1, 2, 3, 1, 2],
            &(0..12).map(|i| i as f32).collect::<Vec<_>>(),
        );
        let middle = frames(&whole, 1..2);
        assert_eq!(
            (middle.shape(), middle.as_slice::<f32>()),
            (&[1usize, 2, 1, 1, 2][..], &[2., 3., 8., 9.][..])
        );
        let again = join(&[frames(&whole, 0..1), middle, frames(&whole, 2..3)]);
        assert_eq!(
            (again.shape(), again.bytes()),
            (whole.shape(), whole.bytes())
        );
    }
}
