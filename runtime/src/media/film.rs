//! The facts by which a finished video is recognised: its size, times and pictures.

use std::fmt;

/// The facts of a finished video. Its JSON object may serve as the description that another video
/// is held against.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Film {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Frames per second.
    pub fps: f64,
    /// Number of frames, by the file's packets.
    pub frames: usize,
    /// Number of frames that decode.
    pub decoded_frames: usize,
    /// Seconds from the beginning of the first frame to the end of the last one.
    pub video_seconds: f64,
    /// Seconds of sound; `None` for a video without sound.
    pub sound_seconds: Option<f64>,
    /// Milliseconds from the first frame to the first sound.
    pub av_offset_ms: f64,
    /// SHA-256 of all decoded frames, see [`FrameHash`].
    pub decoded_sha256: String,
    /// SHA-256 of the file.
    pub file_sha256: String,
}

/// A hash over the decoded frames of a video. Equal pictures have equal hashes, also in files that
/// differ in container, sound or names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHash {
    /// Number of frames.
    pub frames: usize,
    /// SHA-256 over the bytes of all frames, each the planes Y `[H, W]`, U and V `[H / 2, W / 2]`,
    /// in hexadecimal digits.
    pub sha256: String,
}

impl fmt::Display for Film {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "size    {}*{}", self.width, self.height)?;
        writeln!(f, "rate    {} frames per second", self.fps)?;
        writeln!(
            f,
            "frames  {}, of which {} decode",
            self.frames, self.decoded_frames
        )?;
        writeln!(f, "video   {:.3} s", self.video_seconds)?;
        match self.sound_seconds {
            Some(seconds) => writeln!(
                f,
                "sound   {seconds:.3} s, {:+.1} ms after the picture",
                self.av_offset_ms
            )?,
            None => writeln!(f, "sound   none")?,
        }
        write!(f, "sha256  {}", self.decoded_sha256)
    }
}
