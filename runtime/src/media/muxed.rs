//! Writes the output video while it is made: encoded, and in a container of FFmpeg.
//!
//! Each block of frames is a fragment of MP4 or a cluster of Matroska, and reaches the disk before
//! the next one begins. So the file is playable at any moment. It grows under
//! `<stem>.partial.mp4`. The final name appears only when the whole video is written. Standard
//! output and URLs get the same blocks, and keep nothing.
//!
//! Equal frames and sound give equal bytes, so the encoder has a fixed number of threads and
//! bit-exact flags. For the same reason the file has no dates. Every block begins with a key frame.
//! The encoder waits for no later frame, so each block leaves it at once. Colour is BT.709 in
//! limited range, and the file states this.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use engines::files::WholeFile;
use ffmpeg_next::format::context::{Output, StreamIo};
use ffmpeg_next::{Dictionary, Error, Packet, format, media};

use crate::media::audio_file::AudioTrack;
use crate::media::encoding::Encoding;
use crate::media::ffmpeg;
use crate::media::ffmpeg_log::explained;
use crate::media::mp4_boxes::BoxError;
use crate::media::mp4_index;
use crate::media::partial::Partial;
use crate::media::sound_track::Sound;
use crate::media::target::Target;
use crate::media::track;
use crate::media::video_error::VideoError;
use crate::media::video_track::VideoTrack;
use crate::numbers::size::Size;

/// Longest wait for the other end of a URL, in microseconds.
const PATIENCE: &str = "10000000";

/// An encoded video that is being written.
pub(crate) struct Muxed {
    place: Place,
    /// FFmpeg's name of the container.
    container: &'static str,
    muxer: Output,
    size: Size,
    video: VideoTrack,
    audio: Option<Sound>,
    frames: usize,
    header_written: bool,
    /// What is on the disk in whole fragments.
    whole: Whole,
    /// A write failed, so the file may end within a fragment.
    torn: bool,
}

/// Where the bytes go.
pub(super) enum Place {
    /// A file under its partial name.
    File {
        out: PathBuf,
        partial: PathBuf,
        file: File,
    },
    /// A stream, under the name that users know.
    Stream(PathBuf),
}

impl Place {
    /// Returns the name of what is written now.
    pub(super) fn name(&self) -> &Path {
        match self {
            Self::File { partial, .. } => partial,
            Self::Stream(name) => name,
        }
    }
}

/// The beginning of a file that plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Whole {
    frames: usize,
    bytes: u64,
}

impl Muxed {
    /// Creates `<stem>.partial.mp4` beside the target, and the folders that it needs, or opens the
    /// stream. `container` is FFmpeg's name of the container.
    ///
    /// The sound is cut, or filled with silence, to the length of the video.
    ///
    /// # Errors
    /// A path that cannot be written, a URL where nobody listens, or an encoder or filters that
    /// FFmpeg refuses. No file stays behind.
    pub(crate) fn create(
        target: &Target,
        container: &'static str,
        size: Size,
        encoding: &Encoding,
        audio: Option<AudioTrack>,
    ) -> Result<Self, VideoError> {
        let (place, muxer) = open(target, container)?;
        let partial = target.partial();
        let begun = Self::begin(place, (container, muxer), size, encoding, audio);
        if let (Err(_), Some(partial)) = (&begun, partial) {
            remove(&partial);
        }
        begun
    }

    /// Opens the encoders on a muxer.
    fn begin(
        place: Place,
        (container, mut muxer): (&'static str, Output),
        size: Size,
        encoding: &Encoding,
        audio: Option<AudioTrack>,
    ) -> Result<Self, VideoError> {
        let mut video = VideoTrack::open(&mut muxer, container, size, encoding)?;
        video.interleave(container != "mp4");
        let audio = audio.map(|source| Sound::new(&mut muxer, container, source));
        let audio = audio.transpose()?;
        if !encoding.comment.is_empty() {
            let mut metadata = Dictionary::new();
            metadata.set("comment", &encoding.comment);
            muxer.set_metadata(metadata);
        }
        let write = |source| VideoError::Write {
            path: place.name().to_owned(),
            source,
        };
        muxer
            .write_header_with(header_options(container))
            .map_err(write)?;
        Ok(Self {
            place,
            container,
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
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Returns the length of the sound so far, in seconds.
    pub(crate) fn sound_seconds(&self) -> f64 {
        self.audio.as_ref().map_or(0.0, Sound::seconds)
    }

    /// Returns the path under which the video grows.
    #[cfg(test)]
    pub(crate) fn partial(&self) -> &Path {
        self.place.name()
    }

    /// Appends one block, `[T, H, W, 3]` 8-bit RGB, with its sound, and puts it on the disk.
    ///
    /// # Errors
    /// A block that is no whole number of frames, a full disk, or sound that cannot be read. The
    /// earlier blocks stay playable.
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
        self.video.begin_block();
        for rgb in frames.chunks_exact(wanted) {
            self.frames += 1;
            let sent = self.video.send(rgb, &mut self.muxer);
            sent.map_err(|e| self.write_error(e))?;
        }
        self.end_block()
    }

    /// Writes the sound of a block behind its pictures, and puts both on the disk.
    fn end_block(&mut self) -> Result<(), VideoError> {
        if let Some(audio) = &mut self.audio {
            audio.read_to(self.frames)?;
            let encoded = audio.encode(&mut self.muxer);
            encoded.map_err(|e| self.write_error(e))?;
        }
        if !self.header_written {
            // `delay_moov` held the header back; this flush writes it and nothing else.
            self.flush()?;
        }
        self.flush()?;
        self.header_written = true;
        let bytes = match &self.place {
            Place::File { file, .. } => file.metadata().map_or(0, |facts| facts.len()),
            Place::Stream(_) => 0,
        };
        self.whole = Whole {
            frames: self.frames,
            bytes,
        };
        Ok(())
    }

    /// Encodes the next frame without what was learnt from earlier ones.
    ///
    /// # Errors
    /// The encoder cannot be opened again.
    pub(crate) fn restart_encoder(&mut self) -> Result<(), VideoError> {
        let restarted = self.video.restart(&mut self.muxer);
        restarted.map_err(|e| self.write_error(e))
    }

    /// Puts everything that was written on the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn sync(&self) -> Result<(), VideoError> {
        let Place::File { file, partial, .. } = &self.place else {
            return Ok(());
        };
        file.sync_all().map_err(|source| VideoError::Finish {
            path: partial.clone(),
            source,
        })
    }

    /// Takes the pictures of the first blocks from an earlier MP4 file of the same settings,
    /// without encoding them again, and their sound from the source. `blocks` are the frames of
    /// each.
    ///
    /// # Errors
    /// The earlier file cannot be read or has fewer frames; as [`Self::write_frames`].
    pub(crate) fn take_blocks(
        &mut self,
        earlier: &Path,
        blocks: &[usize],
    ) -> Result<(), VideoError> {
        let failed = |source| VideoError::Earlier {
            path: earlier.to_owned(),
            source,
        };
        let mut input = format::input(earlier).map_err(failed)?;
        let stream = input.streams().best(media::Type::Video);
        let stream = stream.ok_or(Error::StreamNotFound).map_err(failed)?;
        let (index, time_base) = (stream.index(), stream.time_base());
        for &frames in blocks {
            let mut taken = 0;
            while taken < frames {
                let mut packet = Packet::empty();
                packet.read(&mut input).map_err(failed)?;
                if packet.stream() != index {
                    continue;
                }
                let sent = self.video.take(&packet, time_base, &mut self.muxer);
                sent.map_err(|e| self.write_error(e))?;
                taken += 1;
            }
            self.video.skip(frames);
            self.frames += frames;
            self.end_block()?;
        }
        Ok(())
    }

    /// Ends the fragment at hand.
    fn flush(&mut self) -> Result<(), VideoError> {
        let flushed = track::flush(&mut self.muxer, self.container != "mp4");
        flushed.map_err(|e| self.write_error(e))
    }

    /// Completes the video under its final name. MP4 is written again with its index first, and the
    /// partial file is removed. Where the index cannot be written, for example on a disk without
    /// room for a second copy, the partial file gets the final name, and the reason is returned.
    ///
    /// # Errors
    /// A full disk. The partial file then stays, and the final name does not appear.
    pub(crate) fn finish(mut self) -> Result<Option<BoxError>, VideoError> {
        self.complete()?;
        name(self.place, self.muxer, self.container)
    }

    /// Completes the unfinished video and leaves it under the partial name. After a failed write it
    /// cuts the file to its last whole fragment. Without a whole fragment it removes the file and
    /// returns `None`.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub(crate) fn finish_partial(mut self) -> Result<Option<Partial>, VideoError> {
        let torn = self.torn || self.whole.frames == 0 || self.complete().is_err();
        let Self {
            muxer,
            place,
            whole,
            container,
            ..
        } = self;
        // The muxer writes what it still holds, so it goes before the cut.
        drop(muxer);
        let (partial, file) = match place {
            Place::File { partial, file, .. } => (partial, file),
            Place::Stream(path) => {
                let frames = whole.frames;
                return Ok((frames > 0).then_some(Partial { path, frames }));
            }
        };
        if whole.frames == 0 {
            remove(&partial);
            return Ok(None);
        }
        if torn {
            file.set_len(whole.bytes)
                .map_err(|source| VideoError::Finish {
                    path: partial.clone(),
                    source,
                })?;
        }
        if container == "mp4" {
            set_durations(&partial);
        }
        Ok(Some(Partial {
            path: partial,
            frames: whole.frames,
        }))
    }

    /// Empties both encoders and writes the end of the file.
    fn complete(&mut self) -> Result<(), VideoError> {
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
    fn write_error(&self, source: Error) -> VideoError {
        VideoError::Write {
            path: self.place.name().to_owned(),
            source,
        }
    }
}

/// Opens the file or the stream of a target, and a muxer on it.
pub(super) fn open(
    target: &Target,
    container: &'static str,
) -> Result<(Place, Output), VideoError> {
    let path = target.path();
    let create = |source| VideoError::Create {
        path: path.clone(),
        source,
    };
    let (place, stream) = match target {
        Target::Url { url, .. } => return connect(url, container),
        Target::Stdout { .. } => {
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(create)?;
            let stream = StreamIo::from_write(File::from(stdout));
            (Place::Stream("standard output".into()), stream)
        }
        Target::File { path: out, .. } | Target::Folder { path: out } => {
            let partial = target.partial().unwrap_or_default();
            let folder = partial.parent().unwrap_or(Path::new(""));
            std::fs::create_dir_all(folder).map_err(create)?;
            let file = File::create(&partial).map_err(create)?;
            let copy = file.try_clone().map_err(create)?;
            let out = out.clone();
            (
                Place::File { out, partial, file },
                StreamIo::from_write_seek(copy),
            )
        }
    };
    let muxer = ffmpeg::start()
        .and(stream)
        .and_then(|stream| format::output_to_stream(stream, None, Some(container)));
    let muxer = muxer.map_err(|source| VideoError::Write {
        path: place.name().to_owned(),
        source,
    })?;
    Ok((place, muxer))
}

/// Gives a complete video its final name. Returns why MP4 keeps its fragments, if it does.
///
/// # Errors
/// The partial file cannot be renamed, or a disk is full.
pub(super) fn name(
    place: Place,
    muxer: Output,
    container: &str,
) -> Result<Option<BoxError>, VideoError> {
    let Place::File { out, partial, file } = place else {
        return Ok(None);
    };
    // The muxer writes what it still holds.
    drop(muxer);
    let mut fragmented = None;
    if container == "mp4" {
        match index(&out, &partial) {
            Ok(()) => return Ok(None),
            Err(reason) => fragmented = Some(reason),
        }
        set_durations(&partial);
    }
    let synced = file.sync_all();
    let named = synced.and_then(|()| std::fs::rename(&partial, &out));
    named.map_err(|source| VideoError::Finish {
        path: out.clone(),
        source,
    })?;
    sync_folder(&out);
    Ok(fragmented)
}

/// Connects to a URL.
fn connect(url: &str, container: &'static str) -> Result<(Place, Output), VideoError> {
    let mut options = Dictionary::new();
    options.set("rw_timeout", PATIENCE);
    // SRT drops what is still on its way when it closes. Seconds to wait for it.
    options.set("linger", "5");
    let open = || {
        ffmpeg::start()?;
        format::output_as_with(url, container, options)
    };
    let muxer = explained(open).map_err(|reason| VideoError::Connect {
        url: url.to_owned(),
        reason: reason.to_string(),
    })?;
    Ok((Place::Stream(url.into()), muxer))
}

pub(super) fn header_options(container: &str) -> Dictionary<'static> {
    let mut options = Dictionary::new();
    match container {
        // The header waits for the first fragment. By then the lead-in of the AAC encoder is
        // known, and the header can tell players to skip it.
        "mp4" => options.set(
            "movflags",
            "frag_custom+delay_moov+default_base_moof+skip_trailer",
        ),
        // The end of a live stream is not known at its beginning.
        "flv" => options.set("flvflags", "no_duration_filesize"),
        _ => {}
    }
    options.set("fflags", "bitexact");
    options.set("flush_packets", "1");
    options
}

/// Checks encoder and filters on a muxer whose bytes go nowhere.
///
/// # Errors
/// As [`Muxed::create`], but for the place.
pub(crate) fn check(
    container: &'static str,
    size: Size,
    encoding: &Encoding,
) -> Result<(), VideoError> {
    let open = || {
        ffmpeg::start()?;
        format::output_to_stream(StreamIo::from_write(io::sink())?, None, Some(container))
    };
    let mut muxer = open().map_err(|source| VideoError::Write {
        path: container.into(),
        source,
    })?;
    VideoTrack::open(&mut muxer, container, size, encoding).map(drop)
}

/// Writes the indexed video. The partial file is removed only when the new one is on the disk under
/// its name.
fn index(out: &Path, partial: &Path) -> Result<(), BoxError> {
    let whole = WholeFile::create(out)?;
    mp4_index::index_first(&File::open(partial)?, whole.file())?;
    whole.file().sync_all()?;
    whole.finish()?;
    sync_folder(out);
    remove(partial);
    Ok(())
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

#[cfg(test)]
mod tests {
    use hound::WavWriter;

    use engines::error_kind::ErrorKind;

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

    fn create(out: &Path, audio: Option<AudioTrack>) -> Result<Muxed, VideoError> {
        let target = Target::of(out, None)?;
        Muxed::create(&target, "mp4", SIZE, &Encoding::default(), audio)
    }

    fn write(out: &Path, audio: Option<&Path>, blocks: usize) -> PathBuf {
        let audio = audio.map(|p| AudioTrack::open(p).unwrap());
        let mut writer = create(out, audio).unwrap();
        writer.write_frames(&frames(0..9)).unwrap();
        for block in 1..blocks {
            writer
                .write_frames(&frames(12 * block - 3..12 * block + 9))
                .unwrap();
        }
        let fragmented = writer.finish().unwrap();
        assert!(fragmented.is_none(), "{fragmented:?}");
        out.to_owned()
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
        let mut writer = create(&out, Some(audio)).unwrap();
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
        let mut writer = create(&out, Some(audio)).unwrap();
        for frame in 0..5 {
            writer.write_frames(&frames(frame..frame + 1)).unwrap();
        }
        let p = {
            writer.finish().unwrap();
            probe(&out).unwrap()
        };
        let sound = p.audio.as_ref().unwrap();
        assert!(p.frames == 5 && (sound.seconds - 0.2).abs() < 0.04, "{p}");
        assert!(p.av_offset_ms.abs() < 1.0, "{p}");
    }

    #[test]
    fn an_interrupted_video_stays_under_the_partial_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        let mut writer = create(&out, None).unwrap();
        writer.write_frames(&frames(0..9)).unwrap();
        let partial = writer.finish_partial().unwrap().unwrap();
        assert_eq!(partial.frames, 9);
        let found = probe(&partial.path).unwrap().frames;
        assert_eq!((found, out.exists()), (9, false));
        let writer = create(&out, None).unwrap();
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
            let error = create(&out, None).err().expect(says);
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
        let mut writer = create(&out, None).unwrap();
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
        let mut writer = create(&dir.path().join("v.mp4"), None).unwrap();
        for bytes in [0, 1, 3 * 128 * 64 - 1, 3 * 128 * 64 + 3] {
            assert!(
                matches!(
                    writer.write_frames(&vec![0; bytes]),
                    Err(VideoError::Frames { .. })
                ),
                "{bytes}"
            );
        }
    }

    #[test]
    fn a_writer_can_move_to_its_own_thread() {
        fn movable<T: Send + 'static>() {}
        movable::<Muxed>();
    }
}
