//! Reads sound files and pictures, and writes videos. Only this room knows FFmpeg, `hound`, the
//! `image` crate, `zune-jpeg` and `moxcms`.
//!
//! A build without the feature `media` has no FFmpeg. The files of `absent/` then take the place of
//! its users. They read WAV files, and refuse all other sound and every video.

#[cfg_attr(not(feature = "media"), path = "media/absent/audio_file.rs")]
pub(crate) mod audio_file;
pub(crate) mod contact_sheet;
#[cfg(feature = "media")]
pub(crate) mod ffmpeg;
pub(crate) mod input_file;
#[cfg_attr(not(feature = "media"), path = "media/absent/mp4.rs")]
pub(crate) mod mp4;
#[cfg(feature = "media")]
mod mp4_boxes;
#[cfg(feature = "media")]
mod mp4_index;
pub(crate) mod partial;
pub(crate) mod pcm;
pub(crate) mod picture;
pub(crate) mod playlist;
pub(crate) mod sound_file;
#[cfg_attr(not(feature = "media"), path = "media/absent/video_facts.rs")]
pub(crate) mod video_facts;
#[cfg(any(test, not(feature = "media")))]
#[cfg_attr(
    feature = "media",
    expect(
        unreachable_pub,
        reason = "only tests use it where FFmpeg reads WAV files"
    )
)]
pub(crate) mod wav;
pub(crate) mod wav_header;

pub use mp4::{Encoding, Finished, Writer};
pub use partial::{NameError, Partial};
pub use pcm::{Gaps, Pcm, PipeError, SampleForm};
pub use picture::{Background, Fit, Icc, Reading};
pub use video_facts::{Probe, probe};
