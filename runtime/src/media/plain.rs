//! Frames that no codec touches: a folder of PNG files with the sound as WAV, or one file of raw
//! frames.
//!
//! Raw frames are `[T, H, W, 3]` of 8-bit RGB, as the model makes them. YUV4MPEG2 has a header that
//! states size, rate and colours, and frames in 4:2:0.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ffmpeg_next::format::Pixel;
use ffmpeg_next::{Error, Rational, frame};
use hound::{SampleFormat, WavSpec, WavWriter};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::media::audio_file::AudioTrack;
use crate::media::encoding::{Encoding, Rate};
use crate::media::filters::Filters;
use crate::media::partial::Partial;
use crate::media::target::{Format, Target};
use crate::media::video_error::VideoError;
use crate::media::yuv::to_yuv;
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// Name of the sound in a folder of frames.
const SOUND: &str = "sound.wav";

/// Frames that are written as they are.
pub(crate) struct Plain {
    sink: Sink,
    pixel: Pixel,
    filters: Option<Filters>,
    /// Size of the model's frames.
    size: Size,
    /// Frames of the model so far.
    frames: usize,
    /// Frames of the model, and bytes, of the whole blocks so far.
    whole: (usize, u64),
    torn: bool,
}

enum Sink {
    Folder(Box<Folder>),
    Stream(Stream),
}

impl Plain {
    /// Creates the folder or the file under its partial name, or takes standard output.
    ///
    /// # Errors
    /// A place that cannot be written, or filters that FFmpeg refuses.
    pub(crate) fn create(
        target: &Target,
        size: Size,
        encoding: &Encoding,
        audio: Option<AudioTrack>,
    ) -> Result<Self, VideoError> {
        let pixel = pixel(target);
        let filters = open_filters(target, size, encoding)?;
        let sink = match target {
            Target::Folder { path } => {
                let partial = target.partial().unwrap_or_default();
                Sink::Folder(Box::new(Folder::create(path, partial, audio)?))
            }
            _ => Sink::Stream(Stream::create(target)?),
        };
        Ok(Self {
            sink,
            pixel,
            filters,
            size,
            frames: 0,
            whole: (0, 0),
            torn: false,
        })
    }

    /// Counts the frames of the model so far.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Appends one block, `[T, H, W, 3]` 8-bit RGB, with its sound.
    ///
    /// # Errors
    /// A block that is no whole number of frames, a full disk, or sound that cannot be read.
    pub(crate) fn write_frames(&mut self, frames: &[u8]) -> Result<(), VideoError> {
        let written = self.write_block(frames);
        self.torn |= written.is_err();
        written
    }

    fn write_block(&mut self, frames: &[u8]) -> Result<(), VideoError> {
        let wanted = 3 * self.size.width * self.size.height;
        if frames.is_empty() || !frames.len().is_multiple_of(wanted) {
            return Err(VideoError::Frames {
                size: self.size,
                wanted,
                got: frames.len(),
            });
        }
        for rgb in frames.chunks_exact(wanted) {
            self.push(rgb)?;
            self.frames += 1;
        }
        if let Sink::Folder(folder) = &mut self.sink {
            folder.sound_to(self.frames)?;
        }
        let bytes = self.sink.flush()?;
        self.whole = (self.frames, bytes);
        Ok(())
    }

    /// Writes one frame of the model, or what the filters make of it.
    fn push(&mut self, rgb: &[u8]) -> Result<(), VideoError> {
        let Some(filters) = &mut self.filters else {
            let picture = match self.pixel {
                Pixel::RGB24 => Picture::rgb(rgb, self.size),
                _ => Picture::of(&to_yuv(rgb, self.size)),
            };
            return self.sink.write(&picture, Rational::new(FPS as i32, 1));
        };
        let mut frame = match self.pixel {
            Pixel::RGB24 => packed(rgb, self.size),
            _ => to_yuv(rgb, self.size),
        };
        frame.set_pts(Some(self.frames as i64));
        let pushed = filters.push(&frame);
        pushed.map_err(|e| self.sink.failed(e))?;
        self.pull()
    }

    /// Writes what left the filters.
    fn pull(&mut self) -> Result<(), VideoError> {
        let Some(filters) = &mut self.filters else {
            return Ok(());
        };
        let rate = filters.leaving().rate;
        while let Some(frame) = filters.next().map_err(|e| self.sink.failed(e))? {
            self.sink.write(&Picture::of(&frame), rate)?;
        }
        Ok(())
    }

    /// Writes what the filters still hold.
    fn complete(&mut self) -> Result<(), VideoError> {
        let frames = self.frames;
        if let Some(filters) = &mut self.filters {
            let closed = filters.close(frames);
            closed.map_err(|e| self.sink.failed(e))?;
            self.pull()?;
        }
        self.sink.flush().map(drop)
    }

    /// Completes the frames under their final name.
    ///
    /// # Errors
    /// A full disk. The partial name then stays.
    pub(crate) fn finish(mut self) -> Result<(), VideoError> {
        self.complete()?;
        match self.sink {
            Sink::Folder(folder) => folder.finish(),
            Sink::Stream(stream) => stream.finish(),
        }
    }

    /// Leaves what is whole under the partial name. Returns `None` where that is nothing.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub(crate) fn finish_partial(mut self) -> Result<Option<Partial>, VideoError> {
        let torn = self.torn || self.complete().is_err();
        let (frames, bytes) = self.whole;
        let path = match self.sink {
            Sink::Folder(folder) => folder.finish_partial(frames),
            Sink::Stream(stream) => stream.finish_partial(frames, torn.then_some(bytes))?,
        };
        Ok((frames > 0).then_some(Partial { path, frames }))
    }
}

/// Returns the pixels that a target holds.
fn pixel(target: &Target) -> Pixel {
    match target {
        Target::File { format, .. } | Target::Stdout { format } if *format == Format::Y4m => {
            Pixel::YUV420P
        }
        _ => Pixel::RGB24,
    }
}

fn open_filters(
    target: &Target,
    size: Size,
    encoding: &Encoding,
) -> Result<Option<Filters>, VideoError> {
    let filters = Filters::of(encoding, [pixel(target); 2], size);
    let filters = filters.map_err(|reason| VideoError::filters(encoding, reason))?;
    let leaving = filters.as_ref().map(|filters| filters.leaving().size);
    match leaving {
        Some(size) if pixel(target) == Pixel::YUV420P && (size.width | size.height) % 2 > 0 => {
            Err(VideoError::OddSize { size })
        }
        _ => Ok(filters),
    }
}

/// Checks the settings of frames that are not encoded.
///
/// # Errors
/// A flag of an encoder is given, or FFmpeg refuses the filters.
pub(crate) fn check(target: &Target, size: Size, encoding: &Encoding) -> Result<(), VideoError> {
    let format = match target {
        Target::Folder { .. } => Format::Frames,
        Target::File { format, .. } | Target::Stdout { format } => *format,
        Target::Url { .. } => Format::Raw,
    };
    let rate = matches!(encoding.rate, Rate::Bits(_));
    for (flag, given) in [("--vcodec", encoding.codec.is_some()), ("--bitrate", rate)] {
        if given {
            return Err(VideoError::NotEncoded { flag, format });
        }
    }
    open_filters(target, size, encoding).map(drop)
}

/// A frame as it is stored: rows without gaps, plane after plane.
struct Picture {
    size: Size,
    bytes: Vec<u8>,
}

impl Picture {
    fn rgb(rgb: &[u8], size: Size) -> Self {
        Self {
            size,
            bytes: rgb.to_vec(),
        }
    }

    /// Copies the rows of a frame in RGB or 4:2:0.
    fn of(frame: &frame::Video) -> Self {
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        let mut bytes = Vec::new();
        for plane in 0..frame.planes() {
            let row = match (frame.format(), plane) {
                (Pixel::RGB24, _) => 3 * width,
                (_, 0) => width,
                _ => width / 2,
            };
            let rows = frame.data(plane).chunks(frame.stride(plane));
            let rows = rows.take(frame.plane_height(plane) as usize);
            rows.for_each(|padded| bytes.extend(&padded[..row]));
        }
        let size = Size { width, height };
        Self { size, bytes }
    }
}

/// Returns a frame in RGB for the filters.
fn packed(rgb: &[u8], size: Size) -> frame::Video {
    let mut frame = frame::Video::new(Pixel::RGB24, size.width as u32, size.height as u32);
    let stride = frame.stride(0);
    let rows = frame.data_mut(0).chunks_mut(stride);
    for (row, from) in rows.zip(rgb.chunks_exact(3 * size.width)) {
        row[..from.len()].copy_from_slice(from);
    }
    frame
}

impl Sink {
    fn write(&mut self, picture: &Picture, rate: Rational) -> Result<(), VideoError> {
        match self {
            Self::Folder(folder) => folder.write(picture),
            Self::Stream(stream) => stream.write(picture, rate),
        }
    }

    /// Brings everything to the disk and returns the bytes of the file.
    fn flush(&mut self) -> Result<u64, VideoError> {
        match self {
            Self::Folder(folder) => folder.flush().map(|()| 0),
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// Adds the file to an error of the filters.
    fn failed(&self, source: Error) -> VideoError {
        let path = match self {
            Self::Folder(folder) => folder.partial.clone(),
            Self::Stream(stream) => stream.name.clone(),
        };
        VideoError::Write { path, source }
    }
}

/// Numbered PNG files and a WAV file in a folder.
struct Folder {
    out: PathBuf,
    partial: PathBuf,
    written: usize,
    sound: Option<(AudioTrack, WavWriter<BufWriter<File>>, usize)>,
}

impl Folder {
    fn create(out: &Path, partial: PathBuf, audio: Option<AudioTrack>) -> Result<Self, VideoError> {
        std::fs::create_dir_all(&partial).map_err(|source| VideoError::Create {
            path: out.to_owned(),
            source,
        })?;
        let sound = audio.map(|track| {
            let spec = WavSpec {
                channels: track.channels() as u16,
                sample_rate: track.rate(),
                bits_per_sample: 16,
                sample_format: SampleFormat::Int,
            };
            let path = partial.join(SOUND);
            let writer = WavWriter::create(&path, spec).map_err(|e| wav_error(&path, e))?;
            Ok::<_, VideoError>((track, writer, 0))
        });
        let sound = sound.transpose();
        if sound.is_err() {
            drop(std::fs::remove_dir_all(&partial));
        }
        Ok(Self {
            out: out.to_owned(),
            partial,
            written: 0,
            sound: sound?,
        })
    }

    fn write(&mut self, picture: &Picture) -> Result<(), VideoError> {
        let path = self.partial.join(frame_name(self.written + 1));
        let file = File::create(&path).map_err(|e| io_error(&path, e))?;
        let mut file = BufWriter::new(file);
        let Size { width, height } = picture.size;
        let (fast, filter) = (CompressionType::Fast, FilterType::Adaptive);
        let encoder = PngEncoder::new_with_quality(&mut file, fast, filter);
        let colour = ExtendedColorType::Rgb8;
        let encoded = encoder.write_image(&picture.bytes, width as u32, height as u32, colour);
        match encoded {
            Err(image::ImageError::IoError(source)) => return Err(io_error(&path, source)),
            Err(source) => return Err(VideoError::Png { path, source }),
            Ok(()) => {}
        }
        file.flush().map_err(|e| io_error(&path, e))?;
        self.written += 1;
        Ok(())
    }

    /// Writes the sound of the first `frames` of the model.
    fn sound_to(&mut self, frames: usize) -> Result<(), VideoError> {
        let path = self.partial.join(SOUND);
        let Some((track, writer, read)) = &mut self.sound else {
            return Ok(());
        };
        let end = track.samples_of(frames);
        for sample in track.read(end - *read)? {
            let level = (sample * 32_768.0).round().clamp(-32_768.0, 32_767.0);
            let written = writer.write_sample(level as i16);
            written.map_err(|e| wav_error(&path, e))?;
        }
        *read = end;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), VideoError> {
        let path = self.partial.join(SOUND);
        match &mut self.sound {
            Some((_, writer, _)) => writer.flush().map_err(|e| wav_error(&path, e)),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), VideoError> {
        let path = self.partial.join(SOUND);
        if let Some((_, writer, _)) = self.sound.take() {
            writer.finalize().map_err(|e| wav_error(&path, e))?;
        }
        let finish = |source| VideoError::Finish {
            path: self.out.clone(),
            source,
        };
        if self.out.is_dir() {
            may_replace(&self.out)?;
            std::fs::remove_dir_all(&self.out).map_err(finish)?;
        }
        std::fs::rename(&self.partial, &self.out).map_err(finish)
    }

    /// Returns the partial folder, which is removed if it has no frame.
    fn finish_partial(mut self, frames: usize) -> PathBuf {
        // The sound was brought to the disk with the last block.
        drop(self.sound.take());
        if frames == 0 {
            drop(std::fs::remove_dir_all(&self.partial));
        }
        self.partial
    }
}

/// Returns the name of a frame, counted from 1, as FFmpeg's `%06d.png` has it.
fn frame_name(number: usize) -> String {
    format!("{number:06}.png")
}

/// Says whether a folder is new or empty, so that nothing is replaced.
pub(crate) fn is_free(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// Refuses to replace a folder that holds more than the frames of a video.
///
/// # Errors
/// [`VideoError::ForeignFolder`].
pub(crate) fn may_replace(folder: &Path) -> Result<(), VideoError> {
    let foreign = || VideoError::ForeignFolder {
        path: folder.to_owned(),
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.map_err(|_| foreign())?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let number = name.strip_suffix(".png").and_then(|n| n.parse().ok());
        let ours = name == SOUND || number.is_some_and(|n| frame_name(n) == name);
        if !ours || entry.file_type().map_or(true, |kind| !kind.is_file()) {
            return Err(foreign());
        }
    }
    Ok(())
}

fn io_error(path: &Path, source: io::Error) -> VideoError {
    VideoError::Io {
        path: path.to_owned(),
        source,
    }
}

fn wav_error(path: &Path, error: hound::Error) -> VideoError {
    match error {
        hound::Error::IoError(source) => io_error(path, source),
        other => io_error(path, io::Error::other(other)),
    }
}

/// Raw frames in one file or pipe.
struct Stream {
    /// The final name, for a file.
    out: Option<PathBuf>,
    /// What is written now, as users know it.
    name: PathBuf,
    file: BufWriter<File>,
    /// Every frame has a header, and so has the file.
    headers: bool,
    headed: bool,
}

impl Stream {
    fn create(target: &Target) -> Result<Self, VideoError> {
        let create = |source| VideoError::Create {
            path: target.path(),
            source,
        };
        let (out, name, file) = match target.partial() {
            Some(partial) => {
                let folder = partial.parent().unwrap_or(Path::new(""));
                std::fs::create_dir_all(folder).map_err(create)?;
                let file = File::create(&partial).map_err(create)?;
                (Some(target.path()), partial, file)
            }
            None => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(create)?;
                (None, "standard output".into(), File::from(stdout))
            }
        };
        Ok(Self {
            out,
            name,
            file: BufWriter::new(file),
            headers: pixel(target) == Pixel::YUV420P,
            headed: false,
        })
    }

    fn write(&mut self, picture: &Picture, rate: Rational) -> Result<(), VideoError> {
        let failed = |e| io_error(&self.name, e);
        if self.headers {
            if !std::mem::replace(&mut self.headed, true) {
                let header = y4m_header(picture.size, rate);
                self.file.write_all(header.as_bytes()).map_err(failed)?;
            }
            self.file.write_all(b"FRAME\n").map_err(failed)?;
        }
        self.file.write_all(&picture.bytes).map_err(failed)
    }

    fn flush(&mut self) -> Result<u64, VideoError> {
        self.file.flush().map_err(|e| io_error(&self.name, e))?;
        let facts = self.file.get_ref().metadata();
        Ok(facts.map_or(0, |facts| facts.len()))
    }

    fn finish(self) -> Result<(), VideoError> {
        let Some(out) = self.out else {
            return Ok(());
        };
        let synced = self.file.get_ref().sync_all();
        let named = synced.and_then(|()| std::fs::rename(&self.name, &out));
        named.map_err(|source| VideoError::Finish { path: out, source })
    }

    /// Cuts the file to `bytes` where a write failed. A file without a frame is removed.
    fn finish_partial(self, frames: usize, cut: Option<u64>) -> Result<PathBuf, VideoError> {
        let Self {
            out, name, file, ..
        } = self;
        // Bytes that could not be written are not tried again.
        let (file, _) = file.into_parts();
        match (out, cut) {
            (Some(_), _) if frames == 0 => drop(std::fs::remove_file(&name)),
            (Some(_), Some(bytes)) => {
                let cut = file.set_len(bytes);
                cut.map_err(|source| VideoError::Finish {
                    path: name.clone(),
                    source,
                })?;
            }
            _ => {}
        }
        Ok(name)
    }
}

/// Returns the header of YUV4MPEG2. Its chroma sits left, as H.264 has it.
fn y4m_header(size: Size, rate: Rational) -> String {
    let Size { width, height } = size;
    let (frames, seconds) = (rate.numerator(), rate.denominator());
    format!(
        "YUV4MPEG2 W{width} H{height} F{frames}:{seconds} Ip A1:1 C420mpeg2 XYSCSS=420MPEG2 \
         XCOLORRANGE=LIMITED\n"
    )
}
