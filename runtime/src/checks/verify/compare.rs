//! How far one tensor is from another. Pure numbers, in f64.

use engines::contract::DType;
use engines::tensor::Tensor;
use half::{bf16, f16};

use super::tolerance::Tolerance;

/// The difference of two tensors of one shape.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Difference {
    pub count: usize,
    /// Elements that differ at all.
    pub differing: usize,
    /// Largest `|got - want|`; infinite where only one side is a number.
    pub max_abs: f64,
    /// `max_abs` over the largest `|want|`.
    pub max_rel: f64,
    pub cosine: f64,
    /// Root mean square of `got - want` over that of `want`.
    pub rel_rms: f64,
    /// Where the tolerance is used most, and the values there.
    pub worst: Vec<usize>,
    pub got: f64,
    pub want: f64,
    /// Most of the tolerance that an element uses: above 1 it fails.
    pub used: f64,
}

impl Difference {
    pub(super) fn passes(&self) -> bool {
        self.used <= 1.0
    }
}

/// Compares two tensors whose shapes agree but for sides of 1.
///
/// # Errors
/// Shapes that do not agree, in words.
pub(super) fn compare(
    got: &Tensor,
    want: &Tensor,
    tolerance: Tolerance,
) -> Result<Difference, String> {
    let sides = |t: &Tensor| {
        t.shape()
            .iter()
            .copied()
            .filter(|&n| n != 1)
            .collect::<Vec<_>>()
    };
    if sides(got) != sides(want) {
        return Err(format!(
            "shape: wanted {:?}, got {:?}",
            want.shape(),
            got.shape()
        ));
    }
    let count: usize = want.shape().iter().product();
    let (got_at, want_at) = (reader(got), reader(want));
    let mut out = Difference {
        count,
        differing: 0,
        max_abs: 0.0,
        max_rel: 0.0,
        cosine: 1.0,
        rel_rms: 0.0,
        worst: Vec::new(),
        got: 0.0,
        want: 0.0,
        used: 0.0,
    };
    let (mut dot, mut got_square, mut want_square, mut largest) = (0.0, 0.0, 0.0, 0f64);
    let mut off_square = 0.0;
    let mut worst = (-1.0, -1.0, 0);
    for i in 0..count {
        let (g, w) = (got_at(i), want_at(i));
        let distance = distance(g, w);
        let used = match distance {
            0.0 => 0.0,
            f64::INFINITY => f64::INFINITY,
            d => d / tolerance.allowed(w),
        };
        out.differing += usize::from(distance > 0.0);
        out.max_abs = out.max_abs.max(distance);
        if (used, distance) > (worst.0, worst.1) {
            worst = (used, distance, i);
        }
        largest = largest.max(w.abs());
        off_square += distance * distance;
        (dot, got_square, want_square) = (dot + g * w, got_square + g * g, want_square + w * w);
    }
    if count > 0 {
        (out.got, out.want, out.used) = (got_at(worst.2), want_at(worst.2), worst.0);
        out.worst = place(worst.2, want.shape());
    }
    out.rel_rms = match off_square {
        0.0 => 0.0,
        off => (off / want_square).sqrt(),
    };
    if let Tolerance::RelativeRms(limit) = tolerance {
        out.used = out.rel_rms / limit;
    }
    out.max_rel = if out.max_abs == 0.0 {
        0.0
    } else {
        out.max_abs / largest
    };
    out.cosine = if got_square == 0.0 && want_square == 0.0 {
        1.0
    } else {
        dot / (got_square * want_square).sqrt()
    };
    Ok(out)
}

/// Zero for equal values, infinities and a pair of NaN included; infinite where only one is a number.
fn distance(got: f64, want: f64) -> f64 {
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    let d = (got - want).abs();
    if d.is_nan() { f64::INFINITY } else { d }
}

fn place(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut out: Vec<usize> = Vec::with_capacity(shape.len());
    for &side in shape.iter().rev() {
        out.push(at % side);
        at /= side;
    }
    out.reverse();
    out
}

fn reader(t: &Tensor) -> Box<dyn Fn(usize) -> f64 + '_> {
    match t.dtype() {
        DType::F32 => Box::new(|i| f64::from(t.as_slice::<f32>()[i])),
        DType::F16 => Box::new(|i| t.as_slice::<f16>()[i].to_f64()),
        DType::BF16 => Box::new(|i| t.as_slice::<bf16>()[i].to_f64()),
        DType::I64 => Box::new(|i| t.as_slice::<i64>()[i] as f64),
        DType::U8 => Box::new(|i| f64::from(t.as_slice::<u8>()[i])),
        DType::Bool => Box::new(|i| f64::from(t.bytes()[i])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSE: Tolerance = Tolerance::Close {
        atol: 0.1,
        rtol: 0.1,
    };

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(&[values.len()], values)
    }

    #[test]
    fn the_worst_element_is_the_one_that_uses_most_of_its_tolerance() {
        let want = Tensor::from_slice(&[2, 2], &[10f32, 0., 1., -1.]);
        let got = Tensor::from_slice(&[2, 2], &[10.5f32, 0.09, 1., -1.]);
        let d = compare(&got, &want, CLOSE).unwrap();
        assert!(d.passes() && (d.used - 0.9).abs() < 1e-6, "{d:?}");
        assert_eq!(
            (d.worst.as_slice(), d.max_abs, d.max_rel, d.differing),
            (&[0, 1][..], 0.5, 0.05, 2)
        );
    }

    #[test]
    fn each_rule_can_fail() {
        let levels = |got: u8| {
            (
                Tensor::from_slice(&[1], &[got]),
                Tensor::from_slice(&[1], &[7u8]),
                Tolerance::Levels(1.0),
            )
        };
        let exact = |got: i64| {
            (
                Tensor::from_slice(&[1], &[got]),
                Tensor::from_slice(&[1], &[7i64]),
                Tolerance::Exact,
            )
        };
        let close = |got: f32| (row(&[got]), row(&[1.0]), CLOSE);
        for ((got, want, tolerance), passes) in [
            (levels(6), true),
            (levels(8), true),
            (levels(9), false),
            (exact(7), true),
            (exact(8), false),
            (close(1.19), true),
            (close(1.21), false),
            (close(f32::NAN), false),
            (close(f32::INFINITY), false),
        ] {
            assert_eq!(
                compare(&got, &want, tolerance).unwrap().passes(),
                passes,
                "{got:?} {tolerance:?}"
            );
        }
    }

    #[test]
    fn the_root_mean_square_is_of_the_whole_tensor() {
        let want = row(&[3.0, 4.0, 0.0, 0.0]);
        let off = |by: f32| row(&[3.0, 4.0, by, 0.0]);
        for (by, passes) in [(0.4, true), (0.6, false), (f32::NAN, false)] {
            let d = compare(&off(by), &want, Tolerance::RelativeRms(0.1)).unwrap();
            assert_eq!(d.passes(), passes, "{d:?}");
        }
        let d = compare(&off(0.5), &want, CLOSE).unwrap();
        assert!((d.rel_rms - 0.1).abs() < 1e-9, "{d:?}");
        let zeros = compare(&row(&[1.0]), &row(&[0.0]), Tolerance::RelativeRms(0.1)).unwrap();
        assert!(!zeros.passes());
    }

    #[test]
    fn what_is_no_number_is_equal_only_to_itself() {
        let odd = row(&[f32::NAN, f32::INFINITY, 1.0]);
        assert!(compare(&odd, &odd, Tolerance::Exact).unwrap().passes());
        let d = compare(&row(&[1.0, f32::INFINITY, 1.0]), &odd, CLOSE).unwrap();
        assert!(
            !d.passes() && d.max_abs == f64::INFINITY && d.worst == [0],
            "{d:?}"
        );
        let d = compare(&row(&[f32::NAN, 1.0, 1.0]), &odd, CLOSE).unwrap();
        assert!(!d.passes() && d.worst == [1], "{d:?}");
    }

    #[test]
    fn zero_tolerance_means_equal() {
        let zero = Tolerance::Close {
            atol: 0.0,
            rtol: 0.0,
        };
        assert!(
            compare(&row(&[0.0, 2.0]), &row(&[0.0, 2.0]), zero)
                .unwrap()
                .passes()
        );
        assert!(
            !compare(&row(&[0.0, 2.0]), &row(&[1e-30, 2.0]), zero)
                .unwrap()
                .passes()
        );
    }

    #[test]
    fn only_sides_of_one_may_differ() {
        let t = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        assert!(compare(&t(&[1, 2, 1, 3]), &t(&[2, 3]), CLOSE).is_ok());
        let error = compare(&t(&[3, 2]), &t(&[2, 3]), CLOSE).unwrap_err();
        assert_eq!(error, "shape: wanted [2, 3], got [3, 2]");
    }

    #[test]
    fn the_cosine_tells_a_scaled_tensor_from_another_one() {
        let cosine = |a: &[f32], b: &[f32]| compare(&row(a), &row(b), CLOSE).unwrap().cosine;
        assert!((cosine(&[2.0, 4.0], &[1.0, 2.0]) - 1.0).abs() < 1e-12);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-12);
        assert_eq!(cosine(&[0.0], &[0.0]), 1.0);
    }
}
