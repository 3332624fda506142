//! Compares numbers under the tolerance that they carry, in memory and in a snapshot file.

use std::fmt;
use std::str::FromStr;

use insta::comparator::{Comparator, DefaultComparator};
use insta::internals::SnapshotContents;

/// Values that count as equal when each pair differs by `atol + rtol * |other|` at most.
#[derive(Clone, Debug)]
pub struct Close {
    /// Absolute tolerance.
    pub atol: f64,
    /// Relative tolerance.
    pub rtol: f64,
    /// The numbers.
    pub values: Vec<f64>,
}

impl Close {
    /// Gives numbers a tolerance.
    pub fn new(atol: f64, rtol: f64, values: impl IntoIterator<Item = f64>) -> Self {
        Self {
            atol,
            rtol,
            values: values.into_iter().collect(),
        }
    }

    /// Runs an insta assertion that compares snapshots of [`Close`] under their tolerance.
    pub fn compared(assertion: impl FnOnce()) {
        let mut settings = insta::Settings::clone_current();
        settings.set_comparator(Box::new(CloseComparator));
        settings.bind(assertion);
    }
}

impl PartialEq for Close {
    fn eq(&self, other: &Self) -> bool {
        let within = |(a, b): (&f64, &f64)| (a - b).abs() <= self.atol + self.rtol * b.abs();
        (self.atol, self.rtol, self.values.len()) == (other.atol, other.rtol, other.values.len())
            && self.values.iter().zip(&other.values).all(within)
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "within {:e} + {:e} * |x|", self.atol, self.rtol)?;
        self.values.iter().try_for_each(|v| writeln!(f, "{v:.7e}"))
    }
}

/// The error for a text that is not a [`Close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotClose;

impl FromStr for Close {
    type Err = NotClose;

    fn from_str(text: &str) -> Result<Self, NotClose> {
        let number = |word: &str| word.parse::<f64>().map_err(|_| NotClose);
        let mut lines = text.trim().lines();
        let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let ["within", atol, "+", rtol, "*", "|x|"] = words[..] else {
            return Err(NotClose);
        };
        Ok(Self {
            atol: number(atol)?,
            rtol: number(rtol)?,
            values: lines.map(number).collect::<Result<_, _>>()?,
        })
    }
}

/// Compares two snapshots of [`Close`] under their tolerance, and other snapshots as insta does.
struct CloseComparator;

impl Comparator for CloseComparator {
    fn matches(&self, reference: &insta::Snapshot, test: &insta::Snapshot) -> bool {
        let read = |s: &insta::Snapshot| match s.contents() {
            SnapshotContents::Text(text) => text.to_string().parse::<Close>().ok(),
            SnapshotContents::Binary(_) => None,
        };
        match (read(reference), read(test)) {
            (Some(want), Some(got)) => got == want,
            _ => DefaultComparator.matches(reference, test),
        }
    }

    fn dyn_clone(&self) -> Box<dyn Comparator> {
        Box::new(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tolerance_decides_and_must_be_the_same() {
        let of = |atol, values: &[f64]| Close::new(atol, 0.0, values.iter().copied());
        let want = of(0.1, &[1.0, 2.0]);
        for (got, equal) in [
            (of(0.1, &[1.05, 1.95]), true),
            (of(0.1, &[1.2, 2.0]), false),
            (of(0.1, &[1.0]), false),
            (of(0.1, &[1.0, f64::NAN]), false),
            (of(0.2, &[1.0, 2.0]), false),
        ] {
            assert_eq!(got == want, equal, "{got:?}");
        }
        assert_eq!(Close::new(0.0, 0.1, [95.0]), Close::new(0.0, 0.1, [100.0]));
    }

    #[test]
    fn a_snapshot_says_its_tolerance() {
        let close = Close::new(1e-4, 0.0, [1.0, -2.5e-8]);
        assert_eq!(
            close.to_string(),
            "within 1e-4 + 0e0 * |x|\n1.0000000e0\n-2.5000000e-8\n"
        );
        assert_eq!(close.to_string().parse(), Ok(close));
        assert_eq!("1.0\n2.0".parse::<Close>(), Err(NotClose));
    }
}
