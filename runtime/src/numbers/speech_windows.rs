//! When speech is encoded in windows, and how long they are.
//!
//! The attention of the speech encoder spans what is encoded at once, so the whole of a long
//! recording would take time with the square of its length.

/// Seconds of the longest recording that is encoded as a whole.
pub(crate) const WHOLE_SECONDS: usize = 60;
/// Seconds that a window of a longer recording gives.
pub(crate) const KEPT_SECONDS: usize = 20;
/// Seconds that a window sees on each side of them.
pub(crate) const CONTEXT_SECONDS: usize = 20;

/// What a user should know of speech in windows. The test
/// `speech_in_windows_stays_near_speech_as_a_whole` holds the bound.
pub(crate) const IN_WINDOWS: &str = "speech is encoded in windows of 20 s that see 20 s more on \
    each side; its features differ from those of the whole by 3 % at most, measured with random \
    weights";

/// What a user should know of speech that is heard as it arrives. The test
/// `speech_that_arrives_stays_near_the_recording` holds the bound.
pub(crate) const LIVE: &str = "features differ from those of the whole recording by 30 % at most \
    in the first 5 s and by 15 % after them, measured with random weights";
