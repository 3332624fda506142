//! Why a video cannot be written.

use std::fmt;
use std::io;
use std::path::PathBuf;

use engines::error_kind::{ErrorKind, Shortage, reason};
use ffmpeg_next::Error;

use crate::media::audio_file::AudioError;
use crate::media::encoding::Encoding;
use crate::media::partial::NameError;
use crate::media::target::Format;
use crate::numbers::size::Size;

/// A reason why a video cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum VideoError {
    /// The name is none of a video.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The system refuses to create the file.
    #[error("{path}: cannot write the output: {source}")]
    Create {
        /// Path of the video.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// FFmpeg cannot open an encoder.
    #[error("FFmpeg has no usable encoder {name}: {reason}")]
    Encoder {
        /// FFmpeg's name of the encoder.
        name: String,
        /// Words of FFmpeg.
        reason: String,
    },
    /// The unfinished video of an earlier run cannot be read.
    #[error("{path}: cannot take the frames of the unfinished video: {source}")]
    Earlier {
        /// Path of the unfinished video.
        path: PathBuf,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// FFmpeg does not know an encoder.
    #[error(
        "--vcodec {name}: FFmpeg here has no video encoder of this name; \
         libx264, libvpx-vp9 and h264_nvenc are examples"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// A container cannot hold the codec of an encoder.
    #[error(
        "--vcodec {name}: the format {container} cannot hold its video; choose another of both"
    )]
    Container {
        /// FFmpeg's name of the container.
        container: &'static str,
        /// FFmpeg's name of the encoder.
        name: String,
    },
    /// An encoder takes no frames from host memory in 4:2:0.
    #[error(
        "--vcodec {name}: wants an encoder of yuv420p or nv12 frames in host memory, this one \
         takes {takes}"
    )]
    Pixels {
        /// FFmpeg's name of the encoder.
        name: String,
        /// Formats that it takes.
        takes: String,
    },
    /// An encoder has no presets.
    #[error("--preset: the encoder {name} has no presets; leave the flag out")]
    NoPreset {
        /// FFmpeg's name of the encoder.
        name: String,
    },
    /// An encoder keeps no constant quality.
    #[error("--crf: the encoder {name} keeps no constant quality; give --bitrate, such as 4M")]
    NoQuality {
        /// FFmpeg's name of the encoder.
        name: String,
    },
    /// Filters make frames that no encoder of 4:2:0 takes.
    #[error("--vf: the encoder wants even sides, the filters make {size}")]
    OddSize {
        /// Size after the filters.
        size: Size,
    },
    /// The filters cannot be used.
    #[error("--vf {filters}: FFmpeg refuses the filters: {reason}")]
    Filters {
        /// The filters.
        filters: String,
        /// Words of FFmpeg.
        reason: String,
    },
    /// A format has no encoder.
    #[error("{flag} has no effect on --format {format}, whose frames are not encoded")]
    NotEncoded {
        /// The flag.
        flag: &'static str,
        /// The format.
        format: Format,
    },
    /// Nobody listens at a URL.
    #[error("{url}: cannot open the stream: {reason}")]
    Connect {
        /// The URL.
        url: String,
        /// Words of FFmpeg.
        reason: String,
    },
    /// A file of the video cannot be written.
    #[error("{path}: cannot continue to write the video: {}", reason(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// A frame cannot become a PNG file.
    #[error("{path}: cannot encode the frame: {source}")]
    Png {
        /// The file.
        path: PathBuf,
        /// Answer of the encoder.
        source: image::ImageError,
    },
    /// A folder holds more than frames of an earlier video.
    #[error("{path}: --out wants a folder that is new, empty or holds frames alone")]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The next part of the video cannot be written.
    #[error(
        "{path}: cannot continue to write the video: {source}{}",
        remedy(source)
    )]
    Write {
        /// Path of the partial video.
        path: PathBuf,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// The complete video cannot get its final name.
    #[error("{path}: cannot finish the video: {source}")]
    Finish {
        /// Path of the video.
        path: PathBuf,
        /// Answer of the system.
        source: io::Error,
    },
    /// A block is not a whole number of frames.
    #[error("video of {size} wants whole RGB frames of {wanted} bytes, got {got} bytes")]
    Frames {
        /// Size of the video.
        size: Size,
        /// Bytes of a frame.
        wanted: usize,
        /// Bytes of the block.
        got: usize,
    },
    /// The sound cannot be read.
    #[error(transparent)]
    Audio(#[from] AudioError),
}

impl VideoError {
    /// Returns `Usage` or `Input` where the user can choose another path or flag.
    ///
    /// A full disk and an encoder that does not open are `Resources`. Sound has its own kinds.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(error) => error.kind(),
            Self::Create { source, .. } if source.kind() != io::ErrorKind::StorageFull => {
                ErrorKind::Input
            }
            Self::Unknown { .. }
            | Self::Container { .. }
            | Self::Pixels { .. }
            | Self::NoPreset { .. }
            | Self::NoQuality { .. }
            | Self::OddSize { .. }
            | Self::Filters { .. }
            | Self::NotEncoded { .. } => ErrorKind::Usage,
            Self::Connect { .. } | Self::ForeignFolder { .. } | Self::Earlier { .. } => {
                ErrorKind::Input
            }
            Self::Audio(error) => error.kind(),
            _ => ErrorKind::Resources,
        }
    }

    /// Returns the refusal of the filters of an encoding.
    pub(super) fn filters(encoding: &Encoding, reason: impl fmt::Display) -> Self {
        let fps = encoding.fps.map(|fps| format!("fps={fps}"));
        let all = [encoding.filters.clone(), fps];
        let all: Vec<String> = all.into_iter().flatten().collect();
        Self::Filters {
            filters: all.join(","),
            reason: reason.to_string(),
        }
    }
}

/// Returns words on an exhausted resource, after a colon.
fn remedy(error: &Error) -> String {
    let Error::Other { errno } = error else {
        return String::new();
    };
    let shortage = Shortage::of(&io::Error::from_raw_os_error(*errno));
    shortage.map_or_else(String::new, |shortage| format!(": {shortage}"))
}
