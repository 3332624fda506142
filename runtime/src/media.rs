//! Reads sound files and pictures, and writes videos. Only this room knows FFmpeg, `hound`, the
//! `image` crate, `zune-jpeg` and `moxcms`.
//!
//! A build without the feature `media` has no FFmpeg. The files of `absent/` then take the place of
//! its users. They read WAV files, and refuse all other sound and every video.

#[cfg_attr(not(feature = "media"), path = "media/absent/audio_file.rs")]
pub(crate) mod audio_file;
pub(crate) mod contact_sheet;
#[cfg_attr(not(feature = "media"), path = "media/absent/encoders.rs")]
pub(crate) mod encoders;
pub(crate) mod encoding;
#[cfg(feature = "media")]
pub(crate) mod ffmpeg;
#[cfg(feature = "media")]
mod ffmpeg_log;
pub(crate) mod film;
#[cfg(feature = "media")]
mod filters;
pub(crate) mod input_file;
#[cfg(feature = "media")]
mod joining;
#[cfg_attr(not(feature = "media"), path = "media/absent/merge.rs")]
pub(crate) mod merge;
#[cfg_attr(not(feature = "media"), path = "media/absent/merge_error.rs")]
pub(crate) mod merge_error;
#[cfg(feature = "media")]
mod mp4_boxes;
#[cfg(feature = "media")]
mod mp4_index;
#[cfg(feature = "media")]
mod muxed;
pub(crate) mod partial;
pub(crate) mod pcm;
pub(crate) mod picture;
#[cfg(feature = "media")]
mod plain;
pub(crate) mod playlist;
pub(crate) mod sound_file;
#[cfg(feature = "media")]
mod sound_track;
pub(crate) mod target;
#[cfg(feature = "media")]
mod track;
#[cfg_attr(not(feature = "media"), path = "media/absent/video_error.rs")]
pub(crate) mod video_error;
#[cfg_attr(not(feature = "media"), path = "media/absent/video_facts.rs")]
pub(crate) mod video_facts;
#[cfg_attr(not(feature = "media"), path = "media/absent/video_frames.rs")]
pub(crate) mod video_frames;
#[cfg(feature = "media")]
mod video_track;
#[cfg_attr(not(feature = "media"), path = "media/absent/video_writer.rs")]
pub(crate) mod video_writer;
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
#[cfg(feature = "media")]
mod yuv;

pub use encoding::{BitRate, BitRateError, Encoding, Rate};
pub use film::{Film, FrameHash};
pub use merge::{Merged, merge};
pub use merge_error::MergeError;
pub use partial::{NameError, Partial};
pub use pcm::{Gaps, Pcm, PipeError, SampleForm};
pub use picture::{Background, Fit, Icc, Reading};
pub use target::{Format, FormatError, Target};
pub use video_error::VideoError;
pub use video_facts::{Probe, probe};
pub use video_frames::{Pixels, SoundError, VideoFrames, VideoSound, hash_frames};
pub use video_writer::{Finished, VideoWriter};
