//! Says that no encoder can be used, in a build without FFmpeg (feature `media`).

/// Encoders that `generate` needs.
pub(crate) const NEEDED: [&str; 2] = ["libx264", "aac"];
/// Encoders that a user may want besides.
pub(crate) const OTHERS: [&str; 0] = [];

/// Says that there is no FFmpeg.
pub(crate) fn version() -> String {
    "this program was built without FFmpeg".to_owned()
}

/// Refuses every encoder.
///
/// # Errors
/// Always.
pub(crate) fn usable(_: &str) -> Result<(), String> {
    Err("use a program built with the feature `media`".to_owned())
}
