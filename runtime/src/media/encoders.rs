//! Says which of FFmpeg's encoders this machine can use. A hardware encoder is opened, because
//! FFmpeg lists it also where its device is missing.

use ffmpeg_next::codec;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::{Error, Rational, encoder};

use crate::media::ffmpeg;

/// Encoders that `generate` needs.
pub(crate) const NEEDED: [&str; 2] = ["libx264", "aac"];
/// Encoders that a user may want besides.
pub(crate) const OTHERS: [&str; 4] = ["h264_nvenc", "hevc_nvenc", "libx265", "libvpx-vp9"];

/// Returns the version of FFmpeg's codecs, such as `libavcodec 61.19.100`.
pub(crate) fn version() -> String {
    let number = codec::version();
    let (major, minor, micro) = (number >> 16, number >> 8 & 0xff, number & 0xff);
    format!("libavcodec {major}.{minor}.{micro}")
}

/// Tries an encoder. The error says why it cannot be used.
///
/// # Errors
/// FFmpeg was built without it, or it does not open.
pub(crate) fn usable(name: &str) -> Result<(), String> {
    ffmpeg::start().map_err(|e| e.to_string())?;
    let Some(found) = encoder::find_by_name(name) else {
        return Err("FFmpeg was built without it".to_owned());
    };
    if !name.ends_with("_nvenc") {
        return Ok(());
    }
    opened(found).map_err(|e| format!("no NVIDIA device or driver for it ({e})"))
}

/// Opens a video encoder for a small picture, and closes it.
fn opened(codec: ffmpeg_next::Codec) -> Result<(), Error> {
    let context = codec::Context::new_with_codec(codec);
    let mut video = context.encoder().video()?;
    video.set_width(256);
    video.set_height(256);
    video.set_format(Pixel::YUV420P);
    video.set_time_base(Rational::new(1, 25));
    video.open_as(codec).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_encoders_are_there_and_a_missing_one_says_why() {
        for name in NEEDED {
            assert_eq!(usable(name), Ok(()), "{name}");
        }
        let missing = usable("no_such_encoder").unwrap_err();
        assert_eq!(missing, "FFmpeg was built without it");
        assert!(version().starts_with("libavcodec "), "{}", version());
    }
}
