//! Writes figures for the tables of a report.

/// Writes a number with three digits; infinity and NaN become words.
pub(super) fn short(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if x.is_finite() => format!("{x:.2e}"),
        x => x.to_string(),
    }
}

/// Writes the used part of a tolerance in percent, or `over` where it is not finite.
pub(super) fn share(x: f64) -> String {
    if x.is_finite() {
        format!("{:.1} %", 100.0 * x)
    } else {
        "over".to_owned()
    }
}
