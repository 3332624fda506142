//! Joins videos of equal parameters into one. The frames are copied, bit for bit, and keep even
//! times.
//!
//! The sound is decoded and encoded once more. A packet of AAC holds 1024 samples and no video
//! frame ends on that grid; each file also begins with a lead-in. Copied packets would shift the
//! sound at every join. Now one encoder makes one track, in which each piece begins with its
//! picture.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use engines::cancel::Cancel;
use ffmpeg_next::codec::{self, Id};
use ffmpeg_next::format::context::{Input, Output};
use ffmpeg_next::{Error, Packet, Rational, Stream, ffi, media};

use crate::media::audio_file::AudioTrack;
use crate::media::ffmpeg;
use crate::media::joining::Joining;
use crate::media::merge_error::MergeError;
use crate::media::partial;
use crate::media::target::Target;
use crate::numbers::size::Size;

/// Frames between two flushes, at least.
const BLOCK: usize = 12;

/// What a merged video holds.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Merged {
    /// The video.
    pub out: PathBuf,
    /// Videos that it was made of.
    pub inputs: usize,
    /// Its frames.
    pub frames: usize,
    /// Its length.
    pub seconds: f64,
}

impl std::fmt::Display for Merged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (out, seconds) = (self.out.display(), self.seconds);
        write!(
            f,
            "{out}: {} frames ({seconds:.2} s) of {} videos",
            self.frames, self.inputs
        )
    }
}

/// Joins the videos `inputs` in their order. `target` is a file in a container.
///
/// # Errors
/// An input cannot be read, differs from the first one, or has frames that are not even in time;
/// the output cannot be written; a stop was asked for. Nothing has the final name then, and no
/// partial file stays.
pub fn merge(inputs: &[PathBuf], target: &Target, cancel: &Cancel) -> Result<Merged, MergeError> {
    let not_a_file = || MergeError::Target {
        path: target.path(),
    };
    let container = target.muxer().filter(|_| !target.is_stream());
    let container = container.ok_or_else(not_a_file)?;
    let first = inputs.first().ok_or_else(not_a_file)?;
    let wanted = Piece::open(first)?.facts;
    for path in &inputs[1..] {
        Piece::open(path)?.facts.equals(path, first, &wanted)?;
    }
    let aside = target.partial().unwrap_or_default();
    partial::move_aside(&aside).map_err(|source| MergeError::Aside {
        path: aside.clone(),
        source,
    })?;
    let result = join(inputs, target, container, cancel);
    if result.is_err() {
        // Every input is still there, so nothing is lost.
        drop(std::fs::remove_file(&aside));
    }
    result
}

fn join(
    inputs: &[PathBuf],
    target: &Target,
    container: &'static str,
    cancel: &Cancel,
) -> Result<Merged, MergeError> {
    let mut first = Piece::open(&inputs[0])?;
    let sound = first.sound(target)?;
    let rate = first.facts.rate;
    let add = |muxer: &mut Output| first.add_stream(muxer);
    let mut joining = Joining::create(target, container, sound, add)?;
    let mut frames = 0;
    for (i, path) in inputs.iter().enumerate() {
        let mut piece = Piece::open(path)?;
        if i > 0
            && let Some(sound) = piece.sound(target)?
        {
            joining.next_sound(sound);
        }
        frames += copy(&mut piece, frames, &mut joining, cancel)?;
    }
    joining.finish()?;
    Ok(Merged {
        out: target.path(),
        inputs: inputs.len(),
        frames,
        seconds: frames as f64 / f64::from(rate),
    })
}

/// Copies the frames of a video behind the `before` frames that are there, with its sound. Returns
/// how many it has.
fn copy(
    piece: &mut Piece,
    before: usize,
    joining: &mut Joining,
    cancel: &Cancel,
) -> Result<usize, MergeError> {
    let (rate, unit) = (piece.facts.rate, piece.time_base);
    let (mut packet, mut frames, mut since, mut begun) = (Packet::empty(), 0, 0, None);
    loop {
        match packet.read(&mut piece.input) {
            Ok(()) => {}
            Err(Error::Eof) => break,
            Err(source) => return Err(piece.read_error(source)),
        }
        if packet.stream() != piece.stream {
            continue;
        }
        if cancel.is_cancelled() {
            return Err(MergeError::Cancelled);
        }
        let time = packet.pts().filter(|_| packet.pts() == packet.dts());
        let time = time.ok_or_else(|| piece.uneven(frames))?;
        let start = *begun.get_or_insert(time);
        // Containers round times to their unit; a frame is much longer.
        let due = frames as f64 / f64::from(rate);
        let late = (time - start) as f64 * f64::from(unit) - due;
        if late.abs() * f64::from(rate) > 0.1 {
            return Err(piece.uneven(frames));
        }
        if since >= BLOCK && packet.is_key() {
            joining.sound_to(frames, rate)?;
            joining.flush()?;
            since = 0;
        }
        joining.frame(&mut packet, before + frames)?;
        frames += 1;
        since += 1;
    }
    if frames == 0 {
        return Err(MergeError::NoVideo {
            path: piece.path.clone(),
        });
    }
    joining.sound_to(frames, rate)?;
    joining.flush()?;
    Ok(frames)
}

/// One video that is joined.
struct Piece {
    path: PathBuf,
    input: Input,
    stream: usize,
    time_base: Rational,
    /// Seconds of sound before the first frame. Matroska has the lead-in of the encoder there.
    late: f64,
    facts: Facts,
}

/// What must be equal in all videos, by name.
#[derive(Clone, Debug, PartialEq)]
struct Facts {
    rate: Rational,
    has_sound: bool,
    values: Vec<(&'static str, String)>,
}

impl Facts {
    /// Refuses the first value of the video at `path` that differs from that of `first`.
    fn equals(&self, path: &Path, first: &Path, wanted: &Self) -> Result<(), MergeError> {
        let pairs = self.values.iter().zip(&wanted.values);
        for ((field, got), (_, wanted)) in pairs {
            if got != wanted {
                return Err(MergeError::Differs {
                    path: path.to_owned(),
                    first: first.to_owned(),
                    field,
                    wanted: wanted.clone(),
                    got: got.clone(),
                });
            }
        }
        Ok(())
    }
}

impl Piece {
    fn open(path: &Path) -> Result<Self, MergeError> {
        let input = ffmpeg::open(path)?;
        let no_video = || MergeError::NoVideo {
            path: path.to_owned(),
        };
        let video = input
            .streams()
            .best(media::Type::Video)
            .ok_or_else(no_video)?;
        let (stream, time_base) = (video.index(), video.time_base());
        let start = |stream: &Stream<'_>| {
            let known = stream.start_time() != ffi::AV_NOPTS_VALUE;
            known.then(|| stream.start_time() as f64 * f64::from(stream.time_base()))
        };
        let first = input.streams().filter_map(|stream| start(&stream));
        let first = first.fold(f64::INFINITY, f64::min).max(0.0);
        let late = start(&video).map_or(0.0, |start| (start - first).max(0.0));
        let facts = facts(&input, &video).map_err(|source| MergeError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream,
            time_base,
            late,
            facts,
            input,
        })
    }

    /// Opens the sound, where the video has any.
    fn sound(&self, target: &Target) -> Result<Option<AudioTrack>, MergeError> {
        if !self.facts.has_sound {
            return Ok(None);
        }
        let mut sound = AudioTrack::open_at(&self.path, target.sound_rate())?;
        let before = (self.late * f64::from(sound.rate())).round();
        sound.read(before as usize)?;
        Ok(Some(sound))
    }

    /// Adds the stream of pictures to an output. Returns its number.
    fn add_stream(&mut self, muxer: &mut Output) -> Result<usize, Error> {
        let from = self
            .input
            .stream(self.stream)
            .ok_or(Error::StreamNotFound)?;
        let rate = self.facts.rate;
        let mut stream = muxer.add_stream(codec::encoder::find(Id::None))?;
        stream.set_parameters(from.parameters());
        stream.set_time_base(rate.invert());
        stream.set_avg_frame_rate(rate);
        #[expect(unsafe_code, reason = "the wrapper has no function for it")]
        // SAFETY: both streams live in contexts that are open, and nothing else holds the new one.
        // The tag of one container has no meaning in another.
        unsafe {
            let own = &mut *stream.as_mut_ptr();
            (*own.codecpar).codec_tag = 0;
            own.sample_aspect_ratio = (*from.as_ptr()).sample_aspect_ratio;
        }
        Ok(stream.index())
    }

    fn read_error(&self, source: Error) -> MergeError {
        MergeError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn uneven(&self, frame: usize) -> MergeError {
        MergeError::Uneven {
            path: self.path.clone(),
            frame,
        }
    }
}

fn facts(input: &Input, video: &Stream<'_>) -> Result<Facts, Error> {
    let parameters = video.parameters();
    let name = parameters.id().name();
    let rate = video.avg_frame_rate();
    #[expect(unsafe_code, reason = "the wrapper has no function for it")]
    // SAFETY: the parameters are those of an open stream; its header has so many bytes.
    let header = unsafe {
        let parameters = &*parameters.as_ptr();
        match usize::try_from(parameters.extradata_size) {
            Ok(length) if !parameters.extradata.is_null() => {
                std::slice::from_raw_parts(parameters.extradata, length).to_vec()
            }
            _ => Vec::new(),
        }
    };
    let picture = codec::Context::from_parameters(parameters)?
        .decoder()
        .video()?;
    let size = Size {
        width: picture.width() as usize,
        height: picture.height() as usize,
    };
    let pixel = picture
        .format()
        .descriptor()
        .map_or("unknown", |d| d.name());
    let mut hash = DefaultHasher::new();
    header.hash(&mut hash);
    let sound = input.streams().best(media::Type::Audio);
    let heard = match &sound {
        None => "none".to_owned(),
        Some(stream) => {
            let parameters = stream.parameters();
            let name = parameters.id().name();
            let sound = codec::Context::from_parameters(parameters)?
                .decoder()
                .audio()?;
            format!(
                "{name} of {} Hz in {} channels",
                sound.rate(),
                sound.channels()
            )
        }
    };
    Ok(Facts {
        rate,
        has_sound: sound.is_some(),
        values: vec![
            ("video codec", name.to_owned()),
            ("size", size.to_string()),
            ("pixel format", pixel.to_owned()),
            ("pixel aspect ratio", picture.aspect_ratio().to_string()),
            ("frame rate", rate.to_string()),
            ("sound", heard),
            ("header of the encoder", format!("{:016x}", hash.finish())),
        ],
    })
}
