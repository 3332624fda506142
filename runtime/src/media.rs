//! The only room that knows FFmpeg and the `image` crate: sound files, pictures and video files.
//!
//! A build without the feature `media` has stand-ins from `absent/`, which refuse their work.

#[cfg_attr(not(feature = "media"), path = "media/absent/audio_file.rs")]
pub(crate) mod audio_file;
pub(crate) mod contact_sheet;
#[cfg(feature = "media")]
pub(crate) mod ffmpeg;
#[cfg_attr(not(feature = "media"), path = "media/absent/mp4.rs")]
pub(crate) mod mp4;
pub(crate) mod partial;
pub(crate) mod picture;
#[cfg_attr(not(feature = "media"), path = "media/absent/video_facts.rs")]
pub(crate) mod video_facts;
#[cfg(any(test, not(feature = "media")))]
pub(crate) mod wav;

pub use mp4::{Encoding, Writer};
pub use partial::{NameError, Partial};
pub use picture::Fit;
pub use video_facts::{Probe, probe};
