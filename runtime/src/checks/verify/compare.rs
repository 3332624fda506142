//! Computes the difference of two tensors, in f64.

use engines::contract::DType;
use engines::tensor::Tensor;
use half::{bf16, f16};

use super::tolerance::Tolerance;

/// The difference of two tensors of one shape.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Difference {
    /// Number of elements.
    pub count: usize,
    /// Number of elements that differ.
    pub differing: usize,
    /// Largest `|got - want|`; infinite where only one side is a number.
    pub max_abs: f64,
    /// `max_abs`, over the largest `|want|`.
    pub max_rel: f64,
    /// Cosine of the angle between both tensors, as vectors.
    pub cosine: f64,
    /// Root mean square of `got - want`, over the root mean square of `want`.
    pub rel_rms: f64,
    /// Index of the element that uses the largest part of its tolerance.
    pub worst: Vec<usize>,
    /// The value at `worst`.
    pub got: f64,
    /// The reference's value at `worst`.
    pub want: f64,
    /// Largest part of its tolerance that an element uses; above 1 it fails.
    pub used: f64,
}

impl Difference {
    /// Returns whether every element is within its tolerance.
    pub(super) fn passes(&self) -> bool {
        self.used <= 1.0
    }
}

/// Compares two tensors. Their shapes may differ by sides of 1 only.
///
/// # Errors
/// A sentence about the shapes, when they differ.
pub(super) fn compare(
    got: &Tensor,
    want: &Tensor,
    tolerance: Tolerance,
) -> Result<Difference, String> {
    if !sides(got).eq(sides(want)) {
        let (want, got) = (want.shape(), got.shape());
        return Err(format!("shape: wanted {want:?}, got {got:?}"));
    }
    let mut sums = Sums::default();
    let mut worst: Option<Worst> = None;
    let (mut count, mut differing, mut max_abs) = (0, 0, 0f64);
    for (at, (got, want)) in values(got).zip(values(want)).enumerate() {
        let distance = distance(got, want);
        let used = part_of(distance, tolerance.allowed(want));
        count += 1;
        differing += usize::from(distance > 0.0);
        max_abs = max_abs.max(distance);
        sums.add(got, want, distance);
        if worst.is_none_or(|w| (used, distance) > (w.used, w.distance)) {
            worst = Some(Worst {
                used,
                distance,
                at,
                got,
                want,
            });
        }
    }
    let rel_rms = sums.rel_rms();
    Ok(Difference {
        count,
        differing,
        max_abs,
        max_rel: match max_abs {
            0.0 => 0.0,
            most => most / sums.largest,
        },
        cosine: sums.cosine(),
        rel_rms,
        worst: worst.map_or(Vec::new(), |w| index(w.at, want.shape())),
        got: worst.map_or(0.0, |w| w.got),
        want: worst.map_or(0.0, |w| w.want),
        used: match tolerance {
            Tolerance::RelativeRms(limit) => rel_rms / limit,
            _ => worst.map_or(0.0, |w| w.used),
        },
    })
}

/// The element that uses the largest part of its tolerance; of equals, the most distant one.
#[derive(Clone, Copy)]
struct Worst {
    used: f64,
    distance: f64,
    /// Position in memory order.
    at: usize,
    got: f64,
    want: f64,
}

/// Sums over all elements.
#[derive(Default)]
struct Sums {
    dot: f64,
    got_square: f64,
    want_square: f64,
    off_square: f64,
    /// Largest `|want|`.
    largest: f64,
}

impl Sums {
    fn add(&mut self, got: f64, want: f64, distance: f64) {
        self.dot += got * want;
        self.got_square += got * got;
        self.want_square += want * want;
        self.off_square += distance * distance;
        self.largest = self.largest.max(want.abs());
    }

    fn rel_rms(&self) -> f64 {
        match self.off_square {
            0.0 => 0.0,
            off => (off / self.want_square).sqrt(),
        }
    }

    fn cosine(&self) -> f64 {
        if self.got_square == 0.0 && self.want_square == 0.0 {
            return 1.0;
        }
        self.dot / (self.got_square * self.want_square).sqrt()
    }
}

/// Returns the sides of a shape that are not 1.
fn sides(t: &Tensor) -> impl Iterator<Item = usize> + '_ {
    t.shape().iter().copied().filter(|&side| side != 1)
}

/// Returns 0 for equal values. Infinities and a pair of NaN count as equal. Returns infinity where
/// only one side is a number.
fn distance(got: f64, want: f64) -> f64 {
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    let d = (got - want).abs();
    if d.is_nan() { f64::INFINITY } else { d }
}

/// Returns the part of the allowed difference that a distance uses.
fn part_of(distance: f64, allowed: f64) -> f64 {
    match distance {
        0.0 => 0.0,
        f64::INFINITY => f64::INFINITY,
        d => d / allowed,
    }
}

/// Converts a position in memory order to an index.
fn index(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut out: Vec<usize> = Vec::with_capacity(shape.len());
    for &side in shape.iter().rev() {
        out.push(at % side);
        at /= side;
    }
    out.reverse();
    out
}

/// Reads the elements in memory order.
fn values(t: &Tensor) -> Box<dyn Iterator<Item = f64> + '_> {
    match t.dtype() {
        DType::F32 => Box::new(t.as_slice::<f32>().iter().map(|&x| f64::from(x))),
        DType::F16 => Box::new(t.as_slice::<f16>().iter().map(|x| x.to_f64())),
        DType::BF16 => Box::new(t.as_slice::<bf16>().iter().map(|x| x.to_f64())),
        DType::I64 => Box::new(t.as_slice::<i64>().iter().map(|&x| x as f64)),
        DType::U8 => Box::new(t.as_slice::<u8>().iter().map(|&x| f64::from(x))),
        DType::Bool => Box::new(t.bytes().iter().map(|&x| f64::from(x))),
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
