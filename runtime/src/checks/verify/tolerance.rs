//! The rules by which a value is judged, as a manifest writes them.

use std::fmt;

use serde_json::Value;

/// Largest difference between a value and the reference's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Equal values; the rule for integers.
    Exact,
    /// `|got - want| <= atol + rtol * |want|`.
    Close {
        /// Absolute tolerance.
        atol: f64,
        /// Relative tolerance.
        rtol: f64,
    },
    /// A difference of so many 8-bit levels.
    Levels(f64),
    /// Root mean square of the difference, over the root mean square of the reference. It judges
    /// values that bf16 arithmetic made, because a single element says little about them. No
    /// manifest has this rule; `precision.rs` makes it.
    RelativeRms(f64),
}

impl Tolerance {
    /// Parses `"exact"`, `{"atol": a, "rtol": r}` or `{"max_abs_levels": n}`. Refuses every other
    /// form, so that no unknown rule passes by mistake.
    pub fn parse(value: &Value) -> Option<Self> {
        if value.as_str() == Some("exact") {
            return Some(Self::Exact);
        }
        let fields = value.as_object()?;
        let known = |names: &[&str]| fields.keys().all(|k| names.contains(&k.as_str()));
        let number = |name: &str| match fields.get(name) {
            None => Some(0.0),
            Some(v) => v.as_f64().filter(|x| x.is_finite() && *x >= 0.0),
        };
        match fields.get("max_abs_levels") {
            Some(_) if known(&["max_abs_levels"]) => Some(Self::Levels(number("max_abs_levels")?)),
            None if !fields.is_empty() && known(&["atol", "rtol"]) => Some(Self::Close {
                atol: number("atol")?,
                rtol: number("rtol")?,
            }),
            _ => None,
        }
    }

    /// Returns the largest difference that the rule allows beside the reference value `want`.
    pub fn allowed(self, want: f64) -> f64 {
        match self {
            Self::Exact => 0.0,
            Self::Close { atol, rtol } => atol + rtol * want.abs(),
            Self::Levels(n) => n,
            // This rule limits the whole tensor; `compare` applies it.
            Self::RelativeRms(_) => f64::INFINITY,
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Close {
                atol: 0.0,
                rtol: 0.0,
            } => f.write_str("equal"),
            Self::Close { atol, rtol: 0.0 } => write!(f, "{atol:.1e}"),
            Self::Close { atol: 0.0, rtol } => write!(f, "{rtol:.1e}*|x|"),
            Self::Close { atol, rtol } => write!(f, "{atol:.1e} + {rtol:.1e}*|x|"),
            Self::RelativeRms(limit) => write!(f, "rms {limit:.2e}*rms(x)"),
            Self::Levels(n) => write!(f, "{n} level{}", if *n == 1.0 { "" } else { "s" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_rules_that_are_understood_whole_are_rules() {
        for (rule, want) in [
            (json!("exact"), Some(Tolerance::Exact)),
            (
                json!({"atol": 1e-4, "rtol": 0}),
                Some(Tolerance::Close {
                    atol: 1e-4,
                    rtol: 0.0,
                }),
            ),
            (
                json!({"rtol": 0.5}),
                Some(Tolerance::Close {
                    atol: 0.0,
                    rtol: 0.5,
                }),
            ),
            (json!({"max_abs_levels": 1}), Some(Tolerance::Levels(1.0))),
            (json!({"max_abs_levels": 1, "atol": 9}), None),
            (json!({"atol": 1e-4, "fraction": 0.9}), None),
            (json!({"atol": -1.0}), None),
            (json!({"atol": "1e-4"}), None),
            (json!({}), None),
            (json!("about"), None),
            (Value::Null, None),
        ] {
            assert_eq!(Tolerance::parse(&rule), want, "{rule}");
        }
    }
}
