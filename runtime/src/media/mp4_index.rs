//! The index of a finished video. While a video grows, its header knows no length and no sample.
//! [`index_first`] writes the same samples again, behind a header that lists all of them.
//! [`set_durations`] puts the length into the header of a file that keeps its fragments.
//!
//! Both read what FFmpeg's muxer wrote: one `moov`, then pairs of `moof` and `mdat`. All boxes that
//! describe the streams keep their bytes. The index holds 4 bytes for each sample in memory, and
//! samples are copied from file to file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use crate::media::mp4_boxes::{BoxError, Kind, Mp4Box, Place};

/// Bytes at which boxes of version 0 hold their fields. `mvhd` and `mdhd` share two of them.
const TIME_SCALE: usize = 12;
const DURATION: usize = 16;
const TRACK_ID: usize = 12;
const TRACK_DURATION: usize = 20;
const EDIT_COUNT: usize = 4;
const EDIT_DURATION: usize = 8;
const EDIT_START: usize = 12;

/// The path of a track's edits.
const EDITS: [Kind; 2] = [*b"edts", *b"elst"];

/// Writes a file with its index first into the empty file `to`: `ftyp`, `moov` and one `mdat`.
/// Equal input gives equal bytes.
///
/// # Errors
/// A file cannot be read or written, or `from` is not what FFmpeg's muxer writes.
pub(super) fn index_first(mut from: &File, mut to: &File) -> Result<(), BoxError> {
    let fragments = Fragments::read(from)?;
    let bytes: u64 = fragments.chunks.iter().map(Chunk::bytes).sum();
    let (kind, mut head) = (brands(), Vec::new());
    let data = data_header(bytes);
    // The length of the index does not depend on the offsets in it.
    let length = fragments.index(0, bytes)?.len();
    let data_at = kind.len() + length + data.len();
    kind.write(&mut head);
    fragments.index(data_at as u64, bytes)?.write(&mut head);
    head.extend(data);
    to.write_all(&head)?;
    let mut chunks = fragments.chunks.iter().peekable();
    while let Some(first) = chunks.next() {
        let Range { start, mut end } = first.place;
        while let Some(next) = chunks.next_if(|chunk| chunk.place.start == end) {
            end = next.place.end;
        }
        from.seek(SeekFrom::Start(start))?;
        if io::copy(&mut from.take(end - start), &mut to)? != end - start {
            return Err(BoxError::form(*b"mdat", "it passes the end of the file"));
        }
    }
    Ok(())
}

/// Puts the length of the video and of its tracks into the header of the fragmented file `path`, in
/// place. No byte moves: the new `mehd` takes the room of the empty `udta`.
///
/// # Errors
/// The file cannot be read or written, or is not what FFmpeg's muxer writes.
pub(super) fn set_durations(path: &Path) -> Result<(), BoxError> {
    let mut file = File::options().read(true).write(true).open(path)?;
    let Fragments {
        mut moov,
        place,
        tracks,
        ..
    } = Fragments::read(&file)?;
    let length = moov.len();
    let longest = set_lengths(&mut moov, &tracks)?;
    moov.boxes.retain(|b| b.kind != *b"udta");
    let mehd = Mp4Box::table(*b"mehd", [longest]);
    // `mehd` must be the first box of `mvex`.
    moov.at_mut(&[*b"mvex"])?.boxes.insert(0, mehd);
    match length.checked_sub(moov.len()) {
        Some(0) => {}
        Some(room) if room >= 8 => moov.boxes.push(Mp4Box::free(room)),
        _ => return Err(BoxError::form(*b"moov", "it has no room for a length")),
    }
    let mut bytes = Vec::new();
    moov.write(&mut bytes);
    file.seek(SeekFrom::Start(place.start))?;
    file.write_all(&bytes)?;
    Ok(())
}

/// What a fragmented file holds.
struct Fragments {
    moov: Mp4Box,
    place: Place,
    /// In the order of `moov`.
    tracks: Vec<Track>,
    /// In the order of the file.
    chunks: Vec<Chunk>,
}

/// The samples of one track.
#[derive(Default)]
struct Track {
    id: u32,
    sizes: Vec<u32>,
    /// Counts of samples, and how long each of them lasts in the time scale of the track.
    times: Vec<(u32, u32)>,
    /// Numbers of the key frames, from 1.
    keys: Vec<u32>,
    /// Sum of all `times`.
    duration: u64,
}

/// Samples of one track that lie one behind the other.
struct Chunk {
    track: usize,
    samples: u32,
    /// Bytes of the file.
    place: Range<u64>,
}

impl Chunk {
    fn bytes(&self) -> u64 {
        self.place.end - self.place.start
    }
}

/// Values of samples that a fragment does not state one by one.
struct Defaults {
    duration: u32,
    size: u32,
    flags: u32,
}

impl Fragments {
    fn read(file: &File) -> Result<Self, BoxError> {
        let (mut found, mut at): (Option<Self>, u64) = (None, 0);
        while let Some(place) = Place::read(file, at)? {
            match (&place.kind, &mut found) {
                (b"moov", None) => found = Some(Self::of(place.load(file)?, place)?),
                (b"moof", Some(fragments)) => fragments.add(&place.load(file)?, place.start)?,
                _ => {}
            }
            at = place.end;
        }
        found.ok_or(BoxError::form(*b"moov", "it is missing"))
    }

    fn of(moov: Mp4Box, place: Place) -> Result<Self, BoxError> {
        let mut tracks = Vec::new();
        for trak in moov.each(*b"trak") {
            tracks.push(Track {
                id: trak.at(&[*b"tkhd"])?.u32(TRACK_ID)?,
                ..Track::default()
            });
        }
        Ok(Self {
            moov,
            place,
            tracks,
            chunks: Vec::new(),
        })
    }

    /// Adds the samples of one fragment, which starts at byte `start`.
    fn add(&mut self, moof: &Mp4Box, start: u64) -> Result<(), BoxError> {
        for traf in moof.each(*b"traf") {
            let (id, defaults) = self.defaults(traf.at(&[*b"tfhd"])?)?;
            let track = self.tracks.iter().position(|t| t.id == id);
            let track = track.ok_or(BoxError::form(*b"tfhd", "its track is unknown"))?;
            for trun in traf.each(*b"trun") {
                let (samples, place) = self.tracks[track].add(trun, &defaults, start)?;
                self.chunks.push(Chunk {
                    track,
                    samples,
                    place,
                });
            }
        }
        Ok(())
    }

    /// Returns the track of a `tfhd`, and the defaults of its samples.
    fn defaults(&self, tfhd: &Mp4Box) -> Result<(u32, Defaults), BoxError> {
        const BASE: u32 = 0x1;
        const DESCRIPTION: u32 = 0x2;
        const EACH: u32 = 0x8;
        const SIZE: u32 = 0x10;
        const FLAGS: u32 = 0x20;
        const BASE_IS_MOOF: u32 = 0x2_0000;
        let mut fields = tfhd.fields();
        let (flags, id) = (fields.u32()?, fields.u32()?);
        if flags & (BASE | BASE_IS_MOOF) != BASE_IS_MOOF {
            return Err(BoxError::form(*b"tfhd", "its offsets start elsewhere"));
        }
        let mvex = self.moov.at(&[*b"mvex"])?;
        let mut trex = mvex
            .each(*b"trex")
            .filter(|b| b.u32(4).is_ok_and(|t| t == id));
        let trex = trex
            .next()
            .ok_or(BoxError::form(*b"trex", "it is missing"))?;
        if flags & DESCRIPTION != 0 {
            fields.u32()?;
        }
        let mut field = |flag, otherwise| match flags & flag {
            0 => trex.u32(otherwise),
            _ => fields.u32(),
        };
        let defaults = Defaults {
            duration: field(EACH, 12)?,
            size: field(SIZE, 16)?,
            flags: field(FLAGS, 20)?,
        };
        Ok((id, defaults))
    }

    /// Returns the header of the indexed file, whose `bytes` bytes of samples start at `data_at`.
    fn index(&self, data_at: u64, bytes: u64) -> Result<Mp4Box, BoxError> {
        let mut moov = self.moov.clone();
        set_lengths(&mut moov, &self.tracks)?;
        moov.boxes.retain(|b| b.kind != *b"mvex");
        // Half of what 32 bits reach: the other half is room for the header.
        let wide = bytes > u64::from(u32::MAX / 2);
        let traks = moov.boxes.iter_mut().filter(|b| b.kind == *b"trak");
        for (i, (trak, track)) in traks.zip(&self.tracks).enumerate() {
            let length = trak.at(&[*b"tkhd"])?.u32(TRACK_DURATION)?;
            trak.at_mut(&EDITS)?.set_u32(EDIT_DURATION, length)?;
            if track.duration > u64::from(u32::MAX) {
                widen(trak.at_mut(&[*b"mdia", *b"mdhd"])?, track.duration)?;
            }
            let stbl = trak.at_mut(&[*b"mdia", *b"minf", *b"stbl"])?;
            stbl.boxes.retain(|b| b.kind == *b"stsd");
            stbl.boxes.extend(track.tables());
            stbl.boxes.extend(self.chunk_tables(i, data_at, wide));
        }
        Ok(moov)
    }

    /// Returns how many samples each chunk of a track has, and where it lies.
    fn chunk_tables(&self, track: usize, data_at: u64, wide: bool) -> [Mp4Box; 2] {
        let (mut runs, mut offsets, mut at): (Vec<[u32; 3]>, Vec<u64>, u64) =
            (Vec::new(), Vec::new(), data_at);
        for chunk in &self.chunks {
            if chunk.track == track {
                offsets.push(at);
                if runs.last().is_none_or(|run| run[1] != chunk.samples) {
                    // Number of the first chunk, samples, number of the sample description.
                    runs.push([offsets.len() as u32, chunk.samples, 1]);
                }
            }
            at += chunk.bytes();
        }
        let runs = counted(runs.len(), runs.into_iter().flatten());
        let count = offsets.len();
        let halves = |at: u64| [(at >> 32) as u32, at as u32];
        let offsets = match wide {
            true => Mp4Box::table(
                *b"co64",
                counted(count, offsets.into_iter().flat_map(halves)),
            ),
            false => Mp4Box::table(
                *b"stco",
                counted(count, offsets.into_iter().map(|at| at as u32)),
            ),
        };
        [Mp4Box::table(*b"stsc", runs), offsets]
    }
}

impl Track {
    /// Adds the samples of a `trun` whose fragment starts at byte `moof`. Returns their number, and
    /// the bytes of the file that hold them.
    fn add(
        &mut self,
        trun: &Mp4Box,
        defaults: &Defaults,
        moof: u64,
    ) -> Result<(u32, Range<u64>), BoxError> {
        const OFFSET: u32 = 0x1;
        const FIRST_FLAGS: u32 = 0x4;
        const EACH: u32 = 0x100;
        const SIZE: u32 = 0x200;
        const FLAGS: u32 = 0x400;
        const COMPOSITION: u32 = 0x800;
        const NOT_KEY: u32 = 0x1_0000;
        let mut fields = trun.fields();
        let (has, samples) = (fields.u32()? & 0x00FF_FFFF, fields.u32()?);
        if has & OFFSET == 0 || has & COMPOSITION != 0 {
            return Err(BoxError::form(*b"trun", "its form is unexpected"));
        }
        // Offsets are signed, and ours point behind the fragment's header.
        let start = moof + u64::from(fields.u32()?);
        let mut first = match has & FIRST_FLAGS {
            0 => None,
            _ => Some(fields.u32()?),
        };
        let mut end = start;
        for _ in 0..samples {
            let mut field = |flag, otherwise| match has & flag {
                0 => Ok(otherwise),
                _ => fields.u32(),
            };
            let duration = field(EACH, defaults.duration)?;
            let size = field(SIZE, defaults.size)?;
            let flags = field(FLAGS, first.take().unwrap_or(defaults.flags))?;
            self.push(duration, size, flags & NOT_KEY == 0);
            end += u64::from(size);
        }
        Ok((samples, start..end))
    }

    fn push(&mut self, duration: u32, size: u32, key: bool) {
        self.sizes.push(size);
        self.duration += u64::from(duration);
        match self.times.last_mut() {
            Some((count, each)) if *each == duration => *count += 1,
            _ => self.times.push((1, duration)),
        }
        if key {
            self.keys.push(self.sizes.len() as u32);
        }
    }

    /// Returns the time, size and kind of every sample.
    fn tables(&self) -> Vec<Mp4Box> {
        let times = self.times.iter().flat_map(|&(count, each)| [count, each]);
        let times = Mp4Box::table(*b"stts", counted(self.times.len(), times));
        let sizes = counted(self.sizes.len(), self.sizes.iter().copied());
        // A leading 0 says that sizes differ.
        let sizes = Mp4Box::table(*b"stsz", std::iter::once(0).chain(sizes));
        let keys = counted(self.keys.len(), self.keys.iter().copied());
        let keys = Mp4Box::table(*b"stss", keys);
        // Without `stss` every sample is a key.
        match self.keys.len() == self.sizes.len() {
            true => vec![times, sizes],
            false => vec![times, keys, sizes],
        }
    }
}

/// Sets the length of the video and of its tracks. Returns the longest track, in the time scale of
/// the video.
fn set_lengths(moov: &mut Mp4Box, tracks: &[Track]) -> Result<u32, BoxError> {
    let scale = moov.at(&[*b"mvhd"])?.u32(TIME_SCALE)?;
    let mut longest = 0;
    let traks = moov.boxes.iter_mut().filter(|b| b.kind == *b"trak");
    for (trak, track) in traks.zip(tracks) {
        let edits = trak.at(&EDITS)?;
        if edits.u32(EDIT_COUNT)? != 1 {
            return Err(BoxError::form(*b"elst", "it has several edits"));
        }
        let lead_in = u64::from(edits.u32(EDIT_START)?);
        let media = trak.at_mut(&[*b"mdia", *b"mdhd"])?;
        media.set_u32(DURATION, known(track.duration))?;
        let unit = u64::from(media.u32(TIME_SCALE)?.max(1));
        let heard = track.duration.saturating_sub(lead_in) * u64::from(scale);
        let length = known((heard + unit / 2) / unit);
        trak.at_mut(&[*b"tkhd"])?.set_u32(TRACK_DURATION, length)?;
        longest = longest.max(length);
    }
    moov.at_mut(&[*b"mvhd"])?.set_u32(DURATION, longest)?;
    Ok(longest)
}

/// Turns an `mdhd` of version 0 into version 1, whose times and duration have 64 bits.
fn widen(mdhd: &mut Mp4Box, duration: u64) -> Result<(), BoxError> {
    let [created, changed, scale] = [4, 8, TIME_SCALE].map(|at| mdhd.u32(at));
    let [created, changed] = [created?, changed?].map(|at| u64::from(at).to_be_bytes());
    let language = mdhd.fields.get(DURATION + 4..).unwrap_or_default().to_vec();
    let (scale, duration) = (scale?.to_be_bytes(), duration.to_be_bytes());
    let fields: [&[u8]; 6] = [
        &[1, 0, 0, 0],
        &created,
        &changed,
        &scale,
        &duration,
        &language,
    ];
    mdhd.fields = fields.concat();
    Ok(())
}

/// A duration of 32 bits: all ones, which means "unknown", where more are needed. Sound of 48 kHz
/// reaches 24 hours; an index then has 64 bits. Movies count milliseconds and reach 49 days.
fn known(duration: u64) -> u32 {
    u32::try_from(duration).unwrap_or(u32::MAX)
}

/// The number of entries, then the values of a table.
fn counted(entries: usize, values: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
    std::iter::once(entries as u32).chain(values)
}

/// The `ftyp` of a file without fragments.
fn brands() -> Mp4Box {
    Mp4Box {
        kind: *b"ftyp",
        fields: b"isom\0\0\x02\0isomiso2avc1mp41".to_vec(),
        boxes: Vec::new(),
    }
}

/// The header of an `mdat` with `bytes` bytes of samples.
fn data_header(bytes: u64) -> Vec<u8> {
    match u32::try_from(bytes + 8) {
        Ok(size) => [&size.to_be_bytes()[..], b"mdat"].concat(),
        Err(_) => [&[0, 0, 0, 1], &b"mdat"[..], &(bytes + 16).to_be_bytes()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ffmpeg_next::{Packet, format};

    use super::*;
    use crate::fixtures::sound::{floats, tone, wav};
    use crate::media::audio_file::AudioTrack;
    use crate::media::encoding::Encoding;
    use crate::media::ffmpeg;
    use crate::media::target::Target;
    use crate::media::video_facts::probe;
    use crate::media::video_writer::{Finished, VideoWriter};
    use crate::numbers::size::Size;

    const SIZE: Size = Size {
        width: 64,
        height: 48,
    };

    /// Begins a video whose frames all differ, with 9 frames and then 12 in every further block.
    fn begin(out: &Path, rate: Option<u32>, blocks: usize) -> VideoWriter {
        let open = |rate| AudioTrack::open(&wav(floats(rate, 1), tone(rate, 4.0)).1);
        let audio = rate.map(|rate| open(rate).unwrap());
        let target = Target::of(out, None).unwrap();
        let encoding = Encoding::default();
        let mut writer = VideoWriter::create(&target, SIZE, &encoding, audio).unwrap();
        for block in 0..blocks {
            let frames = if block == 0 { 9 } else { 12 };
            let value = |i: usize| (i * (i / 4096 + 7 * block) / 64) as u8;
            let bytes: Vec<u8> = (0..frames * 3 * 64 * 48).map(value).collect();
            writer.write_frames(&bytes).unwrap();
        }
        writer
    }

    fn finished(writer: VideoWriter) -> PathBuf {
        let Finished { path, fragmented } = writer.finish().unwrap();
        assert!(fragmented.is_none(), "{fragmented:?}");
        path
    }

    /// The types and contents of the boxes in `bytes`.
    fn boxes(mut bytes: &[u8]) -> Vec<(&str, &[u8])> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let size = number(bytes, 0) as usize;
            found.push((str::from_utf8(&bytes[4..8]).unwrap(), &bytes[8..size]));
            bytes = &bytes[size..];
        }
        found
    }

    /// The contents of all boxes at a path.
    fn all<'a>(bytes: &'a [u8], path: &str) -> Vec<&'a [u8]> {
        path.split('/').fold(vec![bytes], |outer, kind| {
            let inner = outer.into_iter().flat_map(boxes);
            inner.filter(|b| b.0 == kind).map(|b| b.1).collect()
        })
    }

    fn number(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(*bytes[at..].first_chunk().unwrap())
    }

    /// The lengths that a file states: of the movie in milliseconds, of each track in milliseconds
    /// and in its own unit.
    fn lengths(file: &[u8]) -> (u32, Vec<[u32; 3]>) {
        let mvhd = all(file, "moov/mvhd")[0];
        assert_eq!(number(mvhd, 12), 1000);
        let tkhd = all(file, "moov/trak/tkhd").into_iter();
        let mdhd = all(file, "moov/trak/mdia/mdhd").into_iter();
        let track = |(t, m): (&[u8], &[u8])| [number(t, 20), number(m, 16), number(m, 12)];
        (number(mvhd, 16), tkhd.zip(mdhd).map(track).collect())
    }

    #[test]
    fn the_index_comes_first_and_states_every_length() {
        let dir = tempfile::tempdir().unwrap();
        for (rate, track_rate) in [
            (Some(16_000), 48_000),
            (Some(44_100), 44_100),
            (None, 48_000),
        ] {
            let out = dir.path().join("v.mp4");
            let file = std::fs::read(finished(begin(&out, rate, 4))).unwrap();
            let kinds: Vec<&str> = boxes(&file).iter().map(|b| b.0).collect();
            assert_eq!(kinds, ["ftyp", "moov", "mdat"]);
            assert_eq!(all(&file, "moov/mvex"), [[0; 0]; 0]);
            // 45 frames last 1.8 s. Sound has the encoder's lead-in before them.
            let (lead_in, heard) = (1024, track_rate * 9 / 5);
            let edits = all(&file, "moov/trak/edts/elst");
            let edits = edits.iter().map(|e| [number(e, 8), number(e, 12)]);
            let (movie, tracks) = lengths(&file);
            let mut wanted = vec![[1800, 45 * 512, 12_800]];
            let mut wanted_edits = vec![[1800, 0]];
            if rate.is_some() {
                wanted.push([1800, lead_in + heard, track_rate]);
                wanted_edits.push([1800, lead_in]);
            }
            assert_eq!((movie, tracks), (1800, wanted), "{rate:?}");
            assert_eq!(edits.collect::<Vec<_>>(), wanted_edits, "{rate:?}");
        }
    }

    /// Stream, time, key and bytes of every packet, in the order of the file.
    fn packets(path: &Path) -> Vec<(usize, Option<i64>, bool, Vec<u8>)> {
        let mut input = ffmpeg::open(path).unwrap();
        let mut packets = Vec::new();
        let mut packet = Packet::empty();
        while packet.read(&mut input).is_ok() {
            packets.push((
                packet.stream(),
                packet.pts(),
                packet.is_key(),
                packet.data().unwrap().to_vec(),
            ));
        }
        packets
    }

    #[test]
    fn the_index_lists_the_packets_that_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let part = begin(&path("a.mp4"), Some(44_100), 4).finish_partial();
        let mut part = packets(&part.unwrap().unwrap().path);
        let mut whole = packets(&finished(begin(&path("b.mp4"), Some(44_100), 4)));
        let count = |stream| whole.iter().filter(|p| p.0 == stream).count();
        assert_eq!((count(0), count(1)), (45, 79));
        // The demuxer merges the streams of the two forms in different orders.
        part.sort_by_key(|p| (p.0, p.1));
        whole.sort_by_key(|p| (p.0, p.1));
        assert_eq!((whole[0].1, whole[45].1), (Some(0), Some(-1024)));
        assert!(whole == part);
    }

    #[test]
    fn a_kept_part_states_its_length_and_moves_no_byte() {
        let dir = tempfile::tempdir().unwrap();
        let writer = begin(&dir.path().join("v.mp4"), Some(16_000), 3);
        let before = std::fs::read(dir.path().join("v.partial.mp4")).unwrap();
        assert_eq!(lengths(&before).0, 0);
        let after = std::fs::read(writer.finish_partial().unwrap().unwrap().path).unwrap();
        let (movie, tracks) = lengths(&after);
        assert_eq!(movie, 1320);
        assert_eq!(tracks[0], [1320, 33 * 512, 12_800]);
        assert_eq!(tracks[1][0], 1320);
        assert_eq!(number(all(&after, "moov/mvex/mehd")[0], 4), 1320);
        let fragment = |file: &[u8]| file.windows(4).position(|w| w == b"moof");
        assert_eq!(fragment(&after), fragment(&before));
        // An edit that is open at its end covers the fragments.
        let edits = all(&after, "moov/trak/edts/elst");
        assert!(edits.iter().all(|e| number(e, 8) == 0));
    }

    #[test]
    fn joined_videos_have_even_frame_times() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list.ffconcat");
        for name in ["a.mp4", "b.mp4", "c.mp4"] {
            finished(begin(&dir.path().join(name), Some(16_000), 3));
        }
        let text = "ffconcat version 1.0\nfile a.mp4\nfile b.mp4\nfile c.mp4\n";
        std::fs::write(&list, text).unwrap();
        let mut input = format::input(&list).unwrap();
        let unit = f64::from(input.stream(0).unwrap().time_base());
        let (mut packet, mut times) = (Packet::empty(), Vec::new());
        while packet.read(&mut input).is_ok() {
            if packet.stream() == 0 {
                let seconds = packet.pts().unwrap() as f64 * unit;
                times.push((seconds * 1e6).round() as u64);
            }
        }
        assert_eq!(times, (0..99).map(|i| 40_000 * i).collect::<Vec<_>>());
    }

    #[test]
    fn a_video_that_cannot_be_written_twice_keeps_its_fragments() {
        let dir = tempfile::tempdir().unwrap();
        // The longest name of a file has 255 bytes. The temporary name is longer than the partial.
        let out = dir.path().join(format!("{}.mp4", "v".repeat(240)));
        let Finished { path, fragmented } = begin(&out, None, 3).finish().unwrap();
        let reason = fragmented.unwrap().to_string();
        assert!(reason.contains("File name too long"), "{reason}");
        assert_eq!((&path, probe(&path).unwrap().frames), (&out, 33));
        assert_eq!(lengths(&std::fs::read(&path).unwrap()).0, 1320);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_and_a_torn_file_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = begin(&dir.path().join("v.mp4"), Some(16_000), 3).finish_partial();
        let path = path.unwrap().unwrap().path;
        let part = File::options().read(true).write(true).open(&path).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = index_first(&part, &full).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        let bytes = std::fs::read(&path).unwrap();
        let last_samples = bytes.windows(4).rposition(|w| w == b"mdat").unwrap() - 4;
        let to = tempfile::tempfile().unwrap();
        for length in [bytes.len() - 1, last_samples, 3000, 1000, 40, 7, 0] {
            part.set_len(length as u64).unwrap();
            assert!(index_first(&part, &to).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_video_of_a_million_seconds_states_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("v.mp4");
        let part = begin(&out, Some(48_000), 3).finish_partial().unwrap();
        let path = part.unwrap().path;
        let mut fragments = Fragments::read(&File::open(&path).unwrap()).unwrap();
        let [short_video, short_sound] = [0, 1].map(|t| fragments.tracks[t].duration);
        for (track, scale) in fragments.tracks.iter_mut().zip([12_800, 48_000]) {
            track.duration = 1_000_000 * scale;
            track.times = vec![(1, 1)];
        }
        let mut file = Vec::new();
        fragments.index(100, 1000).unwrap().write(&mut file);
        let mdhd = all(&file, "moov/trak/mdia/mdhd");
        for (mdhd, scale) in mdhd.iter().zip([12_800_u32, 48_000]) {
            assert_eq!((mdhd[0], number(mdhd, 20)), (1, scale));
            let duration = u64::from_be_bytes(*mdhd[24..].first_chunk().unwrap());
            assert_eq!(duration, 1_000_000 * u64::from(scale));
            assert_eq!((number(mdhd, 32), mdhd.len()), (0x55C4_0000, 36));
        }
        assert_eq!(number(all(&file, "moov/mvhd")[0], 16), 1_000_000_000);
        assert!(short_video < 1 << 32 && short_sound < 1 << 32);
    }

    #[test]
    fn offsets_and_sizes_beyond_32_bits_are_wide() {
        assert_eq!(data_header(0xFFFF_FFF7), b"\xFF\xFF\xFF\xFFmdat");
        assert_eq!(
            data_header(0xFFFF_FFF8),
            b"\0\0\0\x01mdat\0\0\0\x01\0\0\0\x08"
        );
        let dir = tempfile::tempdir().unwrap();
        let part = begin(&dir.path().join("v.mp4"), None, 3).finish_partial();
        let mut fragments =
            Fragments::read(&File::open(part.unwrap().unwrap().path).unwrap()).unwrap();
        // The first block was larger than 2 GiB.
        fragments.chunks[0].place.start = 0;
        fragments.chunks[0].place.end = 0x1_0000_0000;
        let mut file = Vec::new();
        let bytes = fragments.chunks.iter().map(Chunk::bytes).sum();
        fragments.index(100, bytes).unwrap().write(&mut file);
        let table = all(&file, "moov/trak/mdia/minf/stbl/co64")[0];
        let second = 0x1_0000_0064_u64.to_be_bytes();
        assert_eq!((number(table, 4), &table[16..24]), (3, &second[..]));
    }
}
