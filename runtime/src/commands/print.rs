//! Prints results on standard output.

use engines::console::{self, OutputError};

use crate::commands::error::Error;

/// Prints a report as text or as one line of JSON.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn show(
    report: &(impl serde::Serialize + std::fmt::Display),
    as_json: bool,
) -> Result<(), Error> {
    match as_json {
        true => print(&json(report)),
        false => print(report.to_string().trim_end()),
    }
}

/// Returns plain data as one line of JSON.
pub(super) fn json(data: &impl serde::Serialize) -> String {
    serde_json::to_string(data).expect("plain data is JSON")
}

/// Prints a line. A reader that closed the pipe is no error.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print(text: &str) -> Result<(), Error> {
    console::print_line(text).map_err(|OutputError(source)| Error::Write {
        path: "standard output".into(),
        source,
    })
}
