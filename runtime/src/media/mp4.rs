//! Writes the output video while it is made: H.264 and AAC in fragmented MP4.
//!
//! Each block of frames is a fragment and reaches the disk before the next one begins. So the file
//! is playable at any moment. It grows under `<stem>.partial.mp4`. The final name appears only when
//! the whole video is written.
//!
//! Equal frames and sound give equal bytes, so the encoder has a fixed number of threads and
//! bit-exact flags. For the same reason the file has no dates. Every block begins with a key frame.
//! The encoder waits for no later frame, so each block leaves it at once. Colour is BT.709 in
//! limited range, and the file states this.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use engines::error_kind::{ErrorKind, Shortage};
use engines::files::WholeFile;
use ffmpeg_next::codec::{self, Id};
use ffmpeg_next::format::context::{Output, StreamIo};
use ffmpeg_next::format::{self, Pixel, Sample, sample};
use ffmpeg_next::util::color::{Primaries, Range, Space, TransferCharacteristic};
use ffmpeg_next::util::picture;
use ffmpeg_next::{ChannelLayout, Dictionary, Error, Packet, Rational, encoder, ffi, frame};

use crate::media::audio_file::{AudioError, AudioTrack};
use crate::media::ffmpeg;
use crate::media::mp4_boxes::BoxError;
use crate::media::mp4_index;
use crate::media::partial::{NameError, Partial, partial_path};
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// A reason why a video cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Mp4Error {
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
    /// FFmpeg lacks an encoder.
    #[error("FFmpeg has no usable encoder {name}: {source}")]
    Encoder {
        /// FFmpeg's name of the encoder.
        name: &'static str,
        /// Answer of FFmpeg.
        source: Error,
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

impl Mp4Error {
    /// Returns `Usage` or `Input` where the user can name another path.
    ///
    /// A full disk and a missing encoder are `Resources`. Sound has its own kinds.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(error) => error.kind(),
            Self::Create { source, .. } if source.kind() != io::ErrorKind::StorageFull => {
                ErrorKind::Input
            }
            Self::Audio(error) => error.kind(),
            _ => ErrorKind::Resources,
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

/// The settings of the H.264 encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// Constant rate factor of x264: 0 is lossless, 17 looks lossless, 23 gives small files.
    pub crf: u8,
    /// Preset of x264.
    pub preset: String,
    /// Slices that are encoded at once.
    ///
    /// The number changes the bytes of the file, so it does not depend on the machine.
    pub threads: u32,
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            crf: 17,
            preset: "fast".to_owned(),
            threads: 4,
        }
    }
}

/// A finished video file.
#[derive(Debug)]
pub struct Finished {
    /// The final name.
    pub path: PathBuf,
    /// Why the file keeps its fragments, if it has no index first. It plays in both forms.
    pub fragmented: Option<BoxError>,
}

/// A video file that is being written.
pub struct Writer {
    out: PathBuf,
    partial: PathBuf,
    file: File,
    muxer: Output,
    size: Size,
    video: Track<encoder::video::Encoder>,
    audio: Option<Sound>,
    frames: usize,
    header_written: bool,
    /// What is on the disk in whole fragments.
    whole: Whole,
    /// A write failed, so the file may end within a fragment.
    torn: bool,
}

/// The beginning of a file that plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Whole {
    frames: usize,
    bytes: u64,
}

/// An encoder, and the stream that takes its packets.
struct Track<E> {
    encoder: E,
    stream: usize,
    time_base: Rational,
}

/// The sound of the video, with its encoder.
struct Sound {
    track: Track<encoder::audio::Encoder>,
    source: AudioTrack,
    /// Samples, `[n, channels]`, that wait for a whole AAC frame.
    pending: Vec<f32>,
    read: usize,
    sent: usize,
}

impl Writer {
    /// Creates `<stem>.partial.mp4` beside `out`, and the folders that it needs.
    ///
    /// The sound is cut, or filled with silence, to the length of the video.
    ///
    /// # Errors
    /// A path that cannot be written, or an encoder that FFmpeg lacks. No file stays behind.
    pub fn create(
        out: &Path,
        size: Size,
        encoding: &Encoding,
        audio: Option<AudioTrack>,
    ) -> Result<Self, Mp4Error> {
        let partial = partial_path(out)?;
        let create = |source| Mp4Error::Create {
            path: out.to_owned(),
            source,
        };
        let folder = partial.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(create)?;
        let file = File::create(&partial).map_err(create)?;
        let begun = file
            .try_clone()
            .map_err(create)
            .and_then(|copy| Self::begin(out, &partial, [file, copy], size, encoding, audio));
        if begun.is_err() {
            remove(&partial);
        }
        begun
    }

    /// Opens the encoders and the muxer on a file that exists.
    fn begin(
        out: &Path,
        partial: &Path,
        [file, copy]: [File; 2],
        size: Size,
        encoding: &Encoding,
        audio: Option<AudioTrack>,
    ) -> Result<Self, Mp4Error> {
        let write = |source| Mp4Error::Write {
            path: partial.to_owned(),
            source,
        };
        let open = || {
            ffmpeg::start()?;
            format::output_to_stream(StreamIo::from_write_seek(copy)?, None, Some("mp4"))
        };
        let mut muxer = open().map_err(write)?;
        let video =
            video_track(&mut muxer, size, encoding).map_err(|source| Mp4Error::Encoder {
                name: "libx264",
                source,
            })?;
        let audio = match audio {
            Some(source) => {
                Some(
                    Sound::new(&mut muxer, source).map_err(|source| Mp4Error::Encoder {
                        name: "aac",
                        source,
                    })?,
                )
            }
            None => None,
        };
        let mut options = Dictionary::new();
        // The header waits for the first fragment. By then the lead-in of the AAC encoder is
        // known, and the header can tell players to skip it.
        options.set(
            "movflags",
            "frag_custom+delay_moov+default_base_moof+skip_trailer",
        );
        options.set("fflags", "bitexact");
        options.set("flush_packets", "1");
        muxer.write_header_with(options).map_err(write)?;
        Ok(Self {
            out: out.to_owned(),
            partial: partial.to_owned(),
            file,
            muxer,
            size,
            video,
            audio,
            frames: 0,
            header_written: false,
            whole: Whole::default(),
            torn: false,
        })
    }

    /// Counts the frames written so far.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Returns the path under which the video grows.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Appends one block, `[T, H, W, 3]` 8-bit RGB, with its sound, and puts it on the disk.
    ///
    /// # Errors
    /// A block that is no whole number of frames, a full disk, or sound that cannot be read. The
    /// earlier blocks stay playable.
    pub fn write_frames(&mut self, frames: &[u8]) -> Result<(), Mp4Error> {
        let written = self.write_block(frames);
        self.torn |= written.is_err();
        written
    }

    fn write_block(&mut self, frames: &[u8]) -> Result<(), Mp4Error> {
        let wanted = 3 * self.size.width * self.size.height;
        if frames.is_empty() || !frames.len().is_multiple_of(wanted) {
            return Err(Mp4Error::Frames {
                size: self.size,
                wanted,
                got: frames.len(),
            });
        }
        for (i, rgb) in frames.chunks_exact(wanted).enumerate() {
            let mut picture = to_yuv(rgb, self.size);
            picture.set_pts(Some(self.frames as i64));
            picture.set_kind(if i == 0 {
                picture::Type::I
            } else {
                picture::Type::None
            });
            self.frames += 1;
            let sent = self
                .video
                .encoder
                .send_frame(&picture)
                .and_then(|()| self.video.drain(&mut self.muxer));
            sent.map_err(|e| self.write_error(e))?;
        }
        if let Some(audio) = &mut self.audio {
            audio.read_to(self.frames)?;
            audio
                .encode(&mut self.muxer)
                .map_err(|source| Mp4Error::Write {
                    path: self.partial.clone(),
                    source,
                })?;
        }
        if !self.header_written {
            // `delay_moov` held the header back; this flush writes it and nothing else.
            flush_fragment(&mut self.muxer).map_err(|e| self.write_error(e))?;
        }
        flush_fragment(&mut self.muxer).map_err(|e| self.write_error(e))?;
        self.header_written = true;
        let facts = self.file.metadata();
        self.whole = Whole {
            frames: self.frames,
            bytes: facts.map_or(0, |facts| facts.len()),
        };
        Ok(())
    }

    /// Completes the video, writes it again with its index first under the final name, and removes
    /// the partial file. Where the index cannot be written, for example on a disk without room for
    /// a second copy, the partial file gets the final name.
    ///
    /// # Errors
    /// A full disk. The partial file then stays, and the final name does not appear.
    pub fn finish(mut self) -> Result<Finished, Mp4Error> {
        self.complete()?;
        let fragmented = self.index().err();
        if fragmented.is_some() {
            self.keep_fragments().map_err(|source| Mp4Error::Finish {
                path: self.out.clone(),
                source,
            })?;
        }
        Ok(Finished {
            path: self.out,
            fragmented,
        })
    }

    /// Writes the indexed video. The partial file is removed only when the new one is on the disk
    /// under its name.
    fn index(&self) -> Result<(), BoxError> {
        let whole = WholeFile::create(&self.out)?;
        mp4_index::index_first(&File::open(&self.partial)?, whole.file())?;
        whole.file().sync_all()?;
        whole.finish()?;
        sync_folder(&self.out);
        remove(&self.partial);
        Ok(())
    }

    /// Gives the partial file the final name.
    fn keep_fragments(&self) -> io::Result<()> {
        set_durations(&self.partial);
        self.file.sync_all()?;
        std::fs::rename(&self.partial, &self.out)
    }

    /// Completes the unfinished video and leaves it under the partial name. After a failed write it
    /// cuts the file to its last whole fragment. Without a whole fragment it removes the file and
    /// returns `None`.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn finish_partial(mut self) -> Result<Option<Partial>, Mp4Error> {
        let torn = self.torn || self.whole.frames == 0 || self.complete().is_err();
        let Self {
            muxer,
            file,
            whole,
            partial,
            ..
        } = self;
        // The muxer writes what it still holds, so it goes before the cut.
        drop(muxer);
        if whole.frames == 0 {
            remove(&partial);
            return Ok(None);
        }
        if torn {
            file.set_len(whole.bytes)
                .map_err(|source| Mp4Error::Finish {
                    path: partial.clone(),
                    source,
                })?;
        }
        set_durations(&partial);
        Ok(Some(Partial {
            path: partial,
            frames: whole.frames,
        }))
    }

    /// Empties both encoders and writes the end of the file.
    fn complete(&mut self) -> Result<(), Mp4Error> {
        let ended = self.video.end(&mut self.muxer);
        let ended = match &mut self.audio {
            Some(audio) => ended.and_then(|()| audio.end(&mut self.muxer)),
            None => ended,
        };
        ended
            .and_then(|()| self.muxer.write_trailer())
            .map_err(|e| self.write_error(e))
    }

    /// Adds the file to FFmpeg's error.
    fn write_error(&self, source: Error) -> Mp4Error {
        Mp4Error::Write {
            path: self.partial.clone(),
            source,
        }
    }
}

/// Puts the names of a folder on the disk. Some file systems have no such request, and a failure is
/// no reason to lose the video.
fn sync_folder(file: &Path) {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    drop(File::open(folder).and_then(|folder| folder.sync_all()));
}

/// Puts the length into the header of a fragmented file. A failure is no reason to lose the video:
/// players then count its fragments.
fn set_durations(path: &Path) {
    drop(mp4_index::set_durations(path));
}

/// Removes a file without frames.
///
/// A failure here is ignored, so that it does not hide the first error.
fn remove(path: &Path) {
    drop(std::fs::remove_file(path));
}

/// Opens the H.264 encoder and adds its stream.
fn video_track(
    muxer: &mut Output,
    size: Size,
    encoding: &Encoding,
) -> Result<Track<encoder::video::Encoder>, Error> {
    let codec = encoder::find_by_name("libx264").ok_or(Error::EncoderNotFound)?;
    let mut context = codec::Context::new_with_codec(codec);
    context
        .set_flags(codec::Flags::GLOBAL_HEADER | codec::Flags::BITEXACT | codec::Flags::CLOSED_GOP);
    let mut video = context.encoder().video()?;
    let time_base = Rational::new(1, FPS as i32);
    video.set_width(size.width as u32);
    video.set_height(size.height as u32);
    video.set_format(Pixel::YUV420P);
    video.set_time_base(time_base);
    video.set_frame_rate(Some(Rational::new(FPS as i32, 1)));
    video.set_colorspace(Space::BT709);
    video.set_color_primaries(Primaries::BT709);
    video.set_color_transfer_characteristic(TransferCharacteristic::BT709);
    video.set_color_range(Range::MPEG);
    let mut options = Dictionary::new();
    options.set("preset", &encoding.preset);
    options.set("tune", "zerolatency");
    options.set("crf", &encoding.crf.to_string());
    options.set("threads", &encoding.threads.to_string());
    options.set("forced-idr", "1");
    options.set("sc_threshold", "0");
    let encoder = video.open_as_with(codec, options)?;
    let mut stream = muxer.add_stream_with(encoder.as_ref())?;
    stream.set_time_base(time_base);
    stream.set_avg_frame_rate(Rational::new(FPS as i32, 1));
    Ok(Track {
        stream: stream.index(),
        encoder,
        time_base,
    })
}

impl Sound {
    /// Adds an AAC stream with the rate and the channels of `source`.
    fn new(muxer: &mut Output, source: AudioTrack) -> Result<Self, Error> {
        const BITS_PER_SAMPLE: usize = 4;
        const MOST_BITS: usize = 96_000;
        let codec = encoder::find(Id::AAC).ok_or(Error::EncoderNotFound)?;
        let mut context = codec::Context::new_with_codec(codec);
        context.set_flags(codec::Flags::GLOBAL_HEADER | codec::Flags::BITEXACT);
        let mut audio = context.encoder().audio()?;
        let time_base = Rational::new(1, source.rate() as i32);
        audio.set_rate(source.rate() as i32);
        audio.set_format(Sample::F32(sample::Type::Planar));
        audio.set_channel_layout(if source.channels() == 1 {
            ChannelLayout::MONO
        } else {
            ChannelLayout::STEREO
        });
        audio.set_bit_rate(
            source.channels() * MOST_BITS.min(BITS_PER_SAMPLE * source.rate() as usize),
        );
        audio.set_time_base(time_base);
        let encoder = audio.open_as(codec)?;
        let mut stream = muxer.add_stream_with(encoder.as_ref())?;
        stream.set_time_base(time_base);
        let track = Track {
            stream: stream.index(),
            encoder,
            time_base,
        };
        Ok(Self {
            track,
            source,
            pending: Vec::new(),
            read: 0,
            sent: 0,
        })
    }

    /// Reads the sound of the first `frames` of video.
    fn read_to(&mut self, frames: usize) -> Result<(), AudioError> {
        let end = self.source.samples_of(frames);
        self.pending.extend(self.source.read(end - self.read)?);
        self.read = end;
        Ok(())
    }

    /// Encodes every whole AAC frame.
    fn encode(&mut self, muxer: &mut Output) -> Result<(), Error> {
        let whole = self.track.encoder.frame_size() as usize * self.source.channels();
        while self.pending.len() >= whole {
            let samples: Vec<f32> = self.pending.drain(..whole).collect();
            self.send(&samples)?;
            self.track.drain(muxer)?;
        }
        Ok(())
    }

    /// Encodes the last, shorter frame, and empties the encoder.
    fn end(&mut self, muxer: &mut Output) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.send(&rest)?;
        }
        self.track.end(muxer)
    }

    /// Gives samples, `[n, channels]`, to the encoder as one frame.
    fn send(&mut self, samples: &[f32]) -> Result<(), Error> {
        let channels = self.source.channels();
        let n = samples.len() / channels;
        let encoder = &mut self.track.encoder;
        let mut audio = frame::Audio::new(encoder.format(), n, encoder.channel_layout());
        audio.set_rate(encoder.rate());
        audio.set_pts(Some(self.sent as i64));
        for channel in 0..channels {
            let values = samples.iter().skip(channel).step_by(channels);
            for (into, &value) in audio.plane_mut::<f32>(channel).iter_mut().zip(values) {
                *into = value;
            }
        }
        self.sent += n;
        encoder.send_frame(&audio)
    }
}

/// An encoder of pictures or of sound.
trait Encode {
    /// Returns the encoder without its kind.
    fn encoder(&mut self) -> &mut encoder::Encoder;
}

impl Encode for encoder::video::Encoder {
    fn encoder(&mut self) -> &mut encoder::Encoder {
        self
    }
}

impl Encode for encoder::audio::Encoder {
    fn encoder(&mut self) -> &mut encoder::Encoder {
        self
    }
}

impl<E: Encode> Track<E> {
    /// Moves every finished packet into the file.
    fn drain(&mut self, muxer: &mut Output) -> Result<(), Error> {
        let mut packet = Packet::empty();
        loop {
            match self.encoder.encoder().receive_packet(&mut packet) {
                Ok(()) => {}
                Err(
                    Error::Eof
                    | Error::Other {
                        errno: ffmpeg_next::error::EAGAIN,
                    },
                ) => return Ok(()),
                Err(source) => return Err(source),
            }
            let to = muxer
                .stream(self.stream)
                .ok_or(Error::StreamNotFound)?
                .time_base();
            packet.set_stream(self.stream);
            packet.rescale_ts(self.time_base, to);
            packet.write(muxer)?;
        }
    }

    /// Ends the stream: moves the packets that the encoder still holds into the file.
    fn end(&mut self, muxer: &mut Output) -> Result<(), Error> {
        self.encoder.encoder().send_eof()?;
        self.drain(muxer)
    }
}

/// Ends the muxer's current fragment and puts it on the disk.
fn flush_fragment(muxer: &mut Output) -> Result<(), Error> {
    #[expect(
        unsafe_code,
        reason = "a null packet is FFmpeg's way to cut a fragment; the wrapper refuses it"
    )]
    // SAFETY: the context is valid and its header is written. The documentation of
    // `av_write_frame` gives a null packet the meaning of a flush.
    let code = unsafe { ffi::av_write_frame(muxer.as_mut_ptr(), std::ptr::null_mut()) };
    if code < 0 {
        Err(Error::from(code))
    } else {
        Ok(())
    }
}

/// BT.709 weights of R, G and B for luma, in 16 bits over 219 levels.
const LUMA: [i32; 3] = [11_966, 40_254, 4_064];
/// BT.709 weights of R, G and B for blue chroma, in 16 bits over 224 levels.
const BLUE: [i32; 3] = [-6_596, -22_189, 28_785];
/// BT.709 weights of R, G and B for red chroma, in 16 bits over 224 levels.
const RED: [i32; 3] = [28_785, -26_145, -2_640];

/// Turns RGB `[H, W, 3]` into planar 4:2:0 in limited range.
///
/// Chroma sits left, as H.264 assumes: columns have the weights 1-2-1, and two rows are averaged.
fn to_yuv(rgb: &[u8], size: Size) -> frame::Video {
    let mut out = frame::Video::new(Pixel::YUV420P, size.width as u32, size.height as u32);
    out.set_color_space(Space::BT709);
    out.set_color_range(Range::MPEG);
    let row = 3 * size.width;
    let stride = out.stride(0);
    for (from, into) in rgb
        .chunks_exact(row)
        .zip(out.data_mut(0).chunks_mut(stride))
    {
        for (rgb, y) in from.as_chunks::<3>().0.iter().zip(into) {
            *y = level(LUMA, rgb.map(i32::from), 16, 0);
        }
    }
    for (plane, weights) in [(1, BLUE), (2, RED)] {
        let stride = out.stride(plane);
        for (rows, into) in rgb
            .chunks_exact(2 * row)
            .zip(out.data_mut(plane).chunks_mut(stride))
        {
            for (x, c) in into.iter_mut().take(size.width / 2).enumerate() {
                *c = level(weights, eight_of(rows, x, size.width), 128, 3);
            }
        }
    }
    out
}

/// Returns eight times the colour at chroma column `x` of two rows.
fn eight_of(rows: &[u8], x: usize, width: usize) -> [i32; 3] {
    let columns = [
        ((2 * x).saturating_sub(1), 1),
        (2 * x, 2),
        ((2 * x + 1).min(width - 1), 1),
    ];
    let mut sum = [0; 3];
    for (column, weight) in columns {
        for row in [0, width] {
            let at = 3 * (row + column);
            for (s, &v) in sum.iter_mut().zip(&rows[at..at + 3]) {
                *s += weight * i32::from(v);
            }
        }
    }
    sum
}

/// Returns the weighted sum of three colours, rounded, plus `offset`, as a level of 8 bits.
///
/// The weights have 16 bits of fraction, and the colours are `2^shift` times too large.
fn level(weights: [i32; 3], rgb: [i32; 3], offset: i32, shift: u32) -> u8 {
    let bits = 16 + shift;
    let sum: i32 = weights.iter().zip(rgb).map(|(w, v)| w * v).sum();
    ((sum + (1 << (bits - 1))) >> bits)
        .saturating_add(offset)
        .clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use hound::WavWriter;

    use super::*;
    use crate::fixtures::sound::integers;
    use crate::inputs::speech::Speech;
    use crate::media::audio_file::AudioFile;
    use crate::media::video_facts::probe;

    const SIZE: Size = Size {
        width: 128,
        height: 64,
    };

    /// A white bar that moves a column a frame, so that every frame is another.
    fn frames(range: std::ops::Range<usize>) -> Vec<u8> {
        let pixel = |t: usize, x: usize, y: usize| {
            if (x + 128 - t % 128) % 128 < 16 {
                [255; 3]
            } else {
                [(2 * x) as u8, (4 * y) as u8, 90]
            }
        };
        range
            .flat_map(|t| (0..64).flat_map(move |y| (0..128).flat_map(move |x| pixel(t, x, y))))
            .collect()
    }

    fn beep(dir: &Path, rate: u32, seconds: usize) -> PathBuf {
        let path = dir.join(format!("beep{rate}.wav"));
        let mut writer = WavWriter::create(&path, integers(rate, 1, 16)).unwrap();
        for i in 0..rate as usize * seconds {
            // A click at every whole second, on a quiet tone.
            let v = if i % rate as usize == 0 {
                30_000
            } else {
                (1000.0 * (i as f64 * 0.2).sin()) as i16
            };
            writer.write_sample(v).unwrap();
        }
        writer.finalize().unwrap();
        path
    }

    fn write(out: &Path, audio: Option<&Path>, blocks: usize) -> PathBuf {
        let audio = audio.map(|p| AudioTrack::open(p).unwrap());
        let mut writer = Writer::create(out, SIZE, &Encoding::default(), audio).unwrap();
        writer.write_frames(&frames(0..9)).unwrap();
        for block in 1..blocks {
            writer
                .write_frames(&frames(12 * block - 3..12 * block + 9))
                .unwrap();
        }
        let Finished { path, fragmented } = writer.finish().unwrap();
        assert!(fragmented.is_none(), "{fragmented:?}");
        path
    }

    #[test]
    fn a_video_has_its_frames_and_sound_of_the_same_length() {
        let dir = tempfile::tempdir().unwrap();
        for (rate, seconds, track_rate) in [
            (16_000, 10, 48_000),
            (44_100, 1, 44_100),
            (48_000, 10, 48_000),
        ] {
            let out = dir.path().join(format!("{rate}.mp4"));
            let audio = beep(dir.path(), rate, seconds);
            assert_eq!(write(&out, Some(&audio), 8), out);
            let p = probe(&out).unwrap();
            assert_eq!(
                (p.width, p.height, p.fps, p.frames),
                (128, 64, 25.0, 93),
                "{p}"
            );
            assert!((p.video_seconds - 3.72).abs() < 1e-6, "{p}");
            let sound = p.audio.as_ref().unwrap();
            assert_eq!((sound.codec, sound.rate), ("aac", track_rate));
            assert!(
                (sound.seconds - 3.72).abs() < 0.04 && p.av_offset_ms.abs() < 1.0,
                "{p}"
            );
        }
    }

    #[test]
    fn sound_is_where_it_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        write(&out, Some(&beep(dir.path(), 16_000, 10)), 8);
        let mut file = AudioFile::open(&out).unwrap();
        let mut heard = Vec::new();
        while let Some(chunk) = file.next_chunk().unwrap() {
            heard.extend(chunk.samples);
        }
        assert_eq!(
            Speech::open(&out).unwrap().samples.len(),
            heard.len().div_ceil(3)
        );
        for second in 1..3 {
            let around = 48_000 * second - 1000..48_000 * second + 1000;
            let loudest = around
                .max_by(|&a, &b| heard[a].abs().total_cmp(&heard[b].abs()))
                .unwrap();
            assert!(
                loudest.abs_diff(48_000 * second) <= 4,
                "click of second {second} at sample {loudest}"
            );
        }
    }

    #[test]
    fn equal_frames_give_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let audio = beep(dir.path(), 44_100, 2);
        let [a, b] = ["a.mp4", "b.mp4"]
            .map(|name| std::fs::read(write(&dir.path().join(name), Some(&audio), 4)).unwrap());
        assert!(a == b && a.len() > 1000);
    }

    #[test]
    fn what_is_written_is_playable_before_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        let audio = AudioTrack::open(&beep(dir.path(), 16_000, 2)).unwrap();
        let mut writer = Writer::create(&out, SIZE, &Encoding::default(), Some(audio)).unwrap();
        for (block, frames_so_far) in [(0..9, 9), (9..21, 21), (21..33, 33)] {
            writer.write_frames(&frames(block)).unwrap();
            let copy = dir.path().join("copy.mp4");
            std::fs::copy(writer.partial(), &copy).unwrap();
            assert_eq!(probe(&copy).unwrap().frames, frames_so_far);
        }
        drop(writer);
        assert!(!out.exists());
        assert_eq!(probe(&dir.path().join("v.partial.mp4")).unwrap().frames, 33);
    }

    #[test]
    fn a_block_may_be_a_single_frame() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        let audio = AudioTrack::open(&beep(dir.path(), 44_100, 2)).unwrap();
        let mut writer = Writer::create(&out, SIZE, &Encoding::default(), Some(audio)).unwrap();
        for frame in 0..5 {
            writer.write_frames(&frames(frame..frame + 1)).unwrap();
        }
        let p = probe(&writer.finish().unwrap().path).unwrap();
        let sound = p.audio.as_ref().unwrap();
        assert!(p.frames == 5 && (sound.seconds - 0.2).abs() < 0.04, "{p}");
        assert!(p.av_offset_ms.abs() < 1.0, "{p}");
    }

    #[test]
    fn an_interrupted_video_stays_under_the_partial_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        let mut writer = Writer::create(&out, SIZE, &Encoding::default(), None).unwrap();
        writer.write_frames(&frames(0..9)).unwrap();
        let partial = writer.finish_partial().unwrap().unwrap();
        assert_eq!(partial.frames, 9);
        let found = probe(&partial.path).unwrap().frames;
        assert_eq!((found, out.exists()), (9, false));
        let writer = Writer::create(&out, SIZE, &Encoding::default(), None).unwrap();
        assert_eq!(writer.finish_partial().unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder.mp4");
        std::fs::create_dir(&folder).unwrap();
        let nowhere = PathBuf::from("/proc/nowhere/v.mp4");
        for (out, exit, says) in [
            (nowhere, ErrorKind::Input, "No such file"),
            (folder, ErrorKind::Input, "got a folder"),
            (dir.path().join("v.avi"), ErrorKind::Usage, "ends in .mp4"),
            (dir.path().join(".mp4"), ErrorKind::Usage, "ends in .mp4"),
        ] {
            let error = Writer::create(&out, SIZE, &Encoding::default(), None)
                .err()
                .expect(says);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.kind(), exit, "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_named_and_nothing_gets_the_final_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        std::os::unix::fs::symlink("/dev/full", dir.path().join("v.partial.mp4")).unwrap();
        let mut writer = Writer::create(&out, SIZE, &Encoding::default(), None).unwrap();
        let error = writer.write_frames(&frames(0..9)).unwrap_err();
        assert!(
            error.to_string().contains("No space left on device"),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Resources);
        assert!(writer.finish().is_err() && !out.exists());
    }

    #[test]
    fn a_torn_frame_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            Writer::create(&dir.path().join("v.mp4"), SIZE, &Encoding::default(), None).unwrap();
        for bytes in [0, 1, 3 * 128 * 64 - 1, 3 * 128 * 64 + 3] {
            assert!(
                matches!(
                    writer.write_frames(&vec![0; bytes]),
                    Err(Mp4Error::Frames { .. })
                ),
                "{bytes}"
            );
        }
    }

    #[test]
    fn a_writer_can_move_to_its_own_thread() {
        fn movable<T: Send + 'static>() {}
        movable::<Writer>();
    }

    #[test]
    fn colours_follow_bt709() {
        for (rgb, yuv) in [
            ([0, 0, 0], [16, 128, 128]),
            ([255, 255, 255], [235, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 0, 255], [32, 240, 118]),
        ] {
            let frame = to_yuv(
                &rgb.repeat(32 * 32),
                Size {
                    width: 32,
                    height: 32,
                },
            );
            assert_eq!(
                [frame.data(0)[33], frame.data(1)[5], frame.data(2)[5]],
                yuv,
                "{rgb:?}"
            );
        }
    }
}
