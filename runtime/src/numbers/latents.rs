//! Cuts and joins latents along time.
//!
//! `[1, Z, T, H, W]` keeps the frames of a channel together, so a range of frames is no slice.

use std::ops::Range;

use engines::tensor::Tensor;
use ndarray::{ArrayView3, ArrayViewMut3, Axis};

/// Axis of the frames in [`planes`] and [`planes_mut`].
const TIME: Axis = Axis(1);

/// Copies frames `range` of `[1, Z, T, ...]`, of any element type.
///
/// # Panics
/// If the range passes the last frame, or the elements do not lie on the host.
pub(crate) fn frames(latents: &Tensor, range: Range<usize>) -> Tensor {
    let mut shape = latents.shape().to_vec();
    shape[2] = range.len();
    let mut cut = Tensor::zeros(latents.dtype(), &shape);
    planes_mut(&mut cut).assign(&planes(latents).slice_axis(TIME, range.into()));
    cut
}

/// Joins `[1, Z, T, ...]` of one element type along time.
///
/// # Panics
/// If the list is empty, the parts differ in more than `T`, or elements do not lie on the host.
pub(crate) fn join(parts: &[Tensor]) -> Tensor {
    let first = parts.first().expect("join of no latents");
    let mut shape = first.shape().to_vec();
    shape[2] = parts.iter().map(|p| p.shape()[2]).sum();
    let mut joined = Tensor::zeros(first.dtype(), &shape);
    let mut rest = planes_mut(&mut joined);
    for part in parts {
        assert_eq!(part.dtype(), first.dtype(), "join of unequal latents");
        let (mut here, after) = rest.split_at(TIME, part.shape()[2]);
        here.assign(&planes(part));
        rest = after;
    }
    joined
}

/// Borrows the bytes as `[Z, T, bytes of a plane]`.
fn planes(latents: &Tensor) -> ArrayView3<'_, u8> {
    ArrayView3::from_shape(plane_shape(latents), latents.bytes()).expect("the shape of its bytes")
}

/// Borrows the bytes for writing, with the shape of [`planes`].
fn planes_mut(latents: &mut Tensor) -> ArrayViewMut3<'_, u8> {
    let shape = plane_shape(latents);
    ArrayViewMut3::from_shape(shape, latents.bytes_mut()).expect("the shape of its bytes")
}

/// Returns the shape of [`planes`].
fn plane_shape(latents: &Tensor) -> [usize; 3] {
    let (shape, size) = (latents.shape(), latents.dtype().size());
    let plane = shape[3..].iter().product::<usize>() * size;
    [shape[0] * shape[1], shape[2], plane]
}

#[cfg(test)]
mod tests {
    use engines::contract::DType;
    use half::bf16;

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

    #[test]
    fn every_element_type_is_cut_and_joined() {
        let whole = Tensor::from_slice(&[1, 2, 3, 1, 1], &[1u8, 2, 3, 4, 5, 6]);
        let parts = [frames(&whole, 2..3), frames(&whole, 0..2)];
        assert_eq!(join(&parts).as_slice::<u8>(), [3, 1, 2, 6, 4, 5]);
        let whole = Tensor::from_slice(&[1, 2, 2, 1, 1], &[1.0, 2.0, 3.0, 4.0].map(bf16::from_f32));
        let parts = [frames(&whole, 1..2), frames(&whole, 0..1)];
        let want = [2.0, 1.0, 4.0, 3.0].map(bf16::from_f32);
        assert_eq!(join(&parts).as_slice::<bf16>(), want);
    }

    #[test]
    #[should_panic(expected = "join of unequal latents")]
    fn latents_of_two_types_are_never_joined() {
        join(&[DType::F32, DType::BF16].map(|dtype| Tensor::zeros(dtype, &[1, 1, 1, 1, 1])));
    }
}
