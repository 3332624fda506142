//! Values of flags that only `batch` has.

use std::time::Duration;

/// Videos at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jobs {
    /// One for each device of the placement, where memory allows.
    Auto,
    /// So many, or a refusal.
    Exactly(usize),
}

/// Reads `--jobs`.
///
/// # Errors
/// What is wanted, and what was got.
pub(crate) fn jobs(text: &str) -> Result<Jobs, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Jobs::Auto),
        (_, Ok(n)) if (1..=64).contains(&n) => Ok(Jobs::Exactly(n)),
        _ => Err(format!(
            "auto or a number from 1 to 64 is wanted, got `{text}`"
        )),
    }
}

/// Reads a time: a number and a unit. A bare number means seconds.
///
/// # Errors
/// What is wanted, and what was got.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let factor = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    let seconds = number.parse().unwrap_or(f64::NAN) * factor;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!(
            "a time such as 90s, 30m or 2h is wanted, got `{text}`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90", 90.0), ("1.5s", 1.5), ("30m", 1800.0), ("2h", 7200.0)] {
            assert_eq!(time(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        assert_eq!(time("20ms"), Ok(Duration::from_millis(20)));
        for text in ["", "0", "m", "3 m", "-1", "1d", "1e3"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
