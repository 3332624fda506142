//! Writes a video again with its sound moved in time. Pictures and sound are copied as they are.

use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use engines::files::WholeFile;
use ffmpeg_next::format::context::{Input, Output};
use ffmpeg_next::{Dictionary, Error, Packet, Rational, codec, encoder, format, media};

use crate::media::ffmpeg::{self, OpenError};

/// What a file says of itself and a copy says too. The rest describes the container.
const KEPT_METADATA: [&str; 3] = ["title", "artist", "comment"];

/// A reason why the sound of a video cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum RemuxError {
    /// The video cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The name says a container that is not written.
    #[error("{path}: wants a name that ends in .mp4, .m4v, .mov or .mkv")]
    Name {
        /// Path of the new video.
        path: PathBuf,
    },
    /// A packet cannot be copied.
    #[error("{path}: cannot copy the video: {source}")]
    Copy {
        /// Path of the new video.
        path: PathBuf,
        /// Answer of FFmpeg.
        source: Error,
    },
    /// The new file cannot be created or named.
    #[error("{path}: cannot write the output: {source}")]
    Write {
        /// Path of the new video.
        path: PathBuf,
        /// Answer of the system.
        source: std::io::Error,
    },
}

impl RemuxError {
    /// Returns `Usage` for a name, `Input` for a file, and `Resources` for a disk.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Name { .. } => ErrorKind::Usage,
            Self::Copy { .. } => ErrorKind::Resources,
            Self::Write { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
        }
    }
}

/// Writes `from` to `to` with its sound later by `seconds`, or earlier if they are negative. `to`
/// may be `from`; it is replaced when the new file is whole.
///
/// The pictures keep their packets and times. Sound that would begin before the video is cut off.
///
/// # Errors
/// A file cannot be read or written, or the name of `to` says no container that is written.
pub(crate) fn move_sound(from: &Path, to: &Path, seconds: f64) -> Result<(), RemuxError> {
    let container = container(to)?;
    let mut input = ffmpeg::open(from)?;
    let write = |source| RemuxError::Write {
        path: to.to_owned(),
        source,
    };
    let copy = |source| RemuxError::Copy {
        path: to.to_owned(),
        source,
    };
    let whole = WholeFile::create(to).map_err(write)?;
    // The scheme keeps a colon in the name from naming a protocol.
    let name = whole.temporary_path().to_str().ok_or_else(|| {
        write(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "the name is no UTF-8, and FFmpeg cannot read it back",
        ))
    })?;
    let mut output = format::output_as(&format!("file:{name}"), container).map_err(copy)?;
    copy_packets(&mut input, &mut output, seconds).map_err(copy)?;
    drop(output);
    whole.file().sync_all().map_err(write)?;
    whole.finish().map(drop).map_err(write)
}

/// Returns FFmpeg's name of the container that a name says.
fn container(path: &Path) -> Result<&'static str, RemuxError> {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match ending.as_deref() {
        Some("mp4" | "m4v") => Ok("mp4"),
        Some("mov") => Ok("mov"),
        Some("mkv") => Ok("matroska"),
        _ => Err(RemuxError::Name {
            path: path.to_owned(),
        }),
    }
}

/// A stream of pictures or sound on its way to the new file.
struct Copied {
    from: usize,
    to: usize,
    unit: Rational,
    sound: bool,
}

fn copy_packets(input: &mut Input, output: &mut Output, seconds: f64) -> Result<(), Error> {
    let mut streams = Vec::new();
    for stream in input.streams() {
        let kind = stream.parameters().medium();
        if ![media::Type::Video, media::Type::Audio].contains(&kind) {
            continue;
        }
        let mut added = output.add_stream(encoder::find(codec::Id::None))?;
        let mut parameters = stream.parameters();
        #[expect(
            unsafe_code,
            reason = "the wrapper cannot clear the container's own tag"
        )]
        // SAFETY: the parameters are valid as long as `parameters` is, and nobody else has them.
        unsafe {
            (*parameters.as_mut_ptr()).codec_tag = 0;
        }
        added.set_parameters(parameters);
        added.set_time_base(stream.time_base());
        added.set_avg_frame_rate(stream.avg_frame_rate());
        streams.push(Copied {
            from: stream.index(),
            to: added.index(),
            unit: stream.time_base(),
            sound: kind == media::Type::Audio,
        });
    }
    let mut metadata = Dictionary::new();
    for name in KEPT_METADATA {
        if let Some(text) = input.metadata().get(name) {
            metadata.set(name, text);
        }
    }
    output.set_metadata(metadata);
    let mut options = Dictionary::new();
    options.set("movflags", "faststart");
    options.set("fflags", "bitexact");
    output.write_header_with(options)?;
    let mut packet = Packet::empty();
    loop {
        match packet.read(input) {
            Ok(()) => {}
            Err(Error::Eof) => break,
            Err(error) => return Err(error),
        }
        let Some(copied) = streams.iter().find(|s| s.from == packet.stream()) else {
            continue;
        };
        if copied.sound && !shift(&mut packet, copied.unit, seconds) {
            continue;
        }
        let unit = output.stream(copied.to).map(|s| s.time_base());
        packet.rescale_ts(copied.unit, unit.unwrap_or(copied.unit));
        packet.set_position(-1);
        packet.set_stream(copied.to);
        packet.write_interleaved(output)?;
    }
    output.write_trailer()
}

/// Moves a packet of sound in time. Returns whether anything of it is still heard. The packet
/// before the first one that is heard stays, because a decoder needs it.
fn shift(packet: &mut Packet, unit: Rational, seconds: f64) -> bool {
    let by = (seconds / f64::from(unit)).round() as i64;
    packet.set_pts(packet.pts().map(|at| at + by));
    packet.set_dts(packet.dts().map(|at| at + by));
    let lasts = packet.duration();
    packet.pts().is_none_or(|at| at + 2 * lasts > 0)
}
