//! Reads the header of WAV files (RIFF and RF64) for what decoders do not tell or get wrong.
//!
//! FFmpeg takes integers of 24 bits in 32 for a float format of its own, and `hound` reads their
//! low bits. Neither tells how much sound the header announces.

use std::io::{self, Read, Seek, SeekFrom};

/// Form tag of a header with an extension.
const EXTENSIBLE: u16 = 0xfffe;
/// First two bytes of the identifier of integer samples in an extension.
const PCM: u16 = 1;
/// Lengths from here on say that the writer did not know the length (FFmpeg, SoX).
const UNKNOWN: u64 = 0x7fff_0000;

/// Bytes that stand in place of those of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Place of the first byte.
    pub(crate) at: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

/// Facts of a WAV file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WavHeader {
    format: Format,
    /// Bytes of sound by the header, or `None` where it does not tell.
    announced: Option<u64>,
    /// Bytes of sound in the file that are read.
    stored: u64,
    /// Bytes after the announced ones that are no chunk.
    surplus: u64,
    /// Corrections of the header, which let any decoder read the sound.
    pub(crate) patches: Vec<Patch>,
}

/// Sizes of the sound of a WAV file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    /// Bytes of one sample of all channels.
    frame_bytes: u64,
    /// Bits that a sample takes in the file.
    #[cfg(any(test, not(feature = "media")))]
    container_bits: u16,
}

/// A header of a chunk.
struct Chunk {
    name: [u8; 4],
    /// Place of its data.
    begin: u64,
    length: u64,
}

impl WavHeader {
    /// Reads the chunks of a file of `length` bytes. Returns `None` if it is no WAV file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(file: &mut (impl Read + Seek), length: u64) -> io::Result<Option<Self>> {
        let mut form = [0; 12];
        let riff = file.read_exact(&mut form).is_ok()
            && matches!(&form[..4], b"RIFF" | b"RF64")
            && &form[8..] == b"WAVE";
        if !riff {
            return Ok(None);
        }
        let (mut format, mut long_length, mut patches) = (None, None, Vec::new());
        let mut at = form.len() as u64;
        while let Some(chunk) = chunk(file, at)? {
            match &chunk.name {
                b"ds64" => {
                    let mut lengths = [0; 16];
                    file.read_exact(&mut lengths)?;
                    long_length = lengths.last_chunk::<8>().map(|b| u64::from_le_bytes(*b));
                }
                b"fmt " => {
                    let (sizes, patch) = read_format(file, &chunk)?;
                    format = Some(sizes);
                    patches.extend(patch);
                }
                b"data" => {
                    let Some(format) = format.filter(|f| f.frame_bytes > 0) else {
                        return Ok(None);
                    };
                    let header = Self {
                        format,
                        announced: None,
                        stored: length.saturating_sub(chunk.begin),
                        surplus: 0,
                        patches,
                    };
                    return header.with_data(file, &chunk, long_length).map(Some);
                }
                _ => {}
            }
            at = padded(chunk.begin + chunk.length);
        }
        Ok(None)
    }

    /// Adds the facts of the data chunk.
    fn with_data(
        mut self,
        file: &mut (impl Read + Seek),
        data: &Chunk,
        long_length: Option<u64>,
    ) -> io::Result<Self> {
        let length = match (data.length, long_length) {
            (0xffff_ffff, Some(length)) => length,
            (length, _) => length,
        };
        let known = length > 0 && (length < UNKNOWN || long_length.is_some());
        self.announced = known.then_some(length);
        if known && length < self.stored {
            let end = data.begin + length;
            // Files with an odd chunk and without its padding exist.
            let places = [padded(end), end];
            if !places.iter().any(|&at| is_chunk(file, at).unwrap_or(false)) {
                self.surplus = self.stored - length;
            }
            self.stored = length;
        } else if let (Ok(stored), None) = (u32::try_from(self.stored), long_length) {
            let stored = stored - stored % self.format.frame_bytes as u32;
            self.patches.push(Patch {
                at: data.begin - 4,
                bytes: stored.to_le_bytes().to_vec(),
            });
        }
        Ok(self)
    }

    /// Returns the bits that a sample takes in the file.
    #[cfg(any(test, not(feature = "media")))]
    pub(crate) fn container_bits(&self) -> u16 {
        self.format.container_bits
    }

    /// Returns the announced length as a part of the stored one, where the header tells it.
    pub(crate) fn announced_part(&self) -> Option<f64> {
        self.announced.map(|bytes| self.part(bytes))
    }

    /// Returns the length of the sound after the announced one as a part of the stored one.
    pub(crate) fn surplus_part(&self) -> f64 {
        self.part(self.surplus)
    }

    fn part(&self, bytes: u64) -> f64 {
        bytes as f64 / self.stored.max(1) as f64
    }
}

/// Reads the header of the chunk at a place, or `None` where the file ends.
fn chunk(file: &mut (impl Read + Seek), at: u64) -> io::Result<Option<Chunk>> {
    file.seek(SeekFrom::Start(at))?;
    let mut header = [0; 8];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [a, b, c, d, length @ ..] = header;
    Ok(Some(Chunk {
        name: [a, b, c, d],
        begin: at + header.len() as u64,
        length: u64::from(u32::from_le_bytes(length)),
    }))
}

/// Returns whether a place holds the end of the file or the header of a chunk.
fn is_chunk(file: &mut (impl Read + Seek), at: u64) -> io::Result<bool> {
    let found = chunk(file, at)?;
    let printable = |c: &u8| c.is_ascii_graphic() || *c == b' ';
    Ok(found.is_none_or(|chunk| chunk.name.iter().all(printable)))
}

/// Chunks begin at even places.
fn padded(at: u64) -> u64 {
    at + at % 2
}

/// Reads the format: its sizes, and a correction where samples are narrower than their
/// container.
fn read_format(
    file: &mut (impl Read + Seek),
    chunk: &Chunk,
) -> io::Result<(Format, Option<Patch>)> {
    let mut bytes = [0; 26];
    let length = bytes.len().min(chunk.length as usize);
    file.read_exact(&mut bytes[..length])?;
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (channels, frame, bits, valid, kind) =
        (number(2), number(12), number(14), number(18), number(24));
    let container = frame.checked_div(channels).map_or(0, |n| 8 * n);
    let narrow = number(0) == EXTENSIBLE && kind == PCM && valid > 0 && valid < container;
    // The format keeps the sample in the high bits, so the container is a sample as well.
    let patch = narrow.then(|| Patch {
        at: chunk.begin + 14,
        bytes: [container, number(16), container]
            .map(u16::to_le_bytes)
            .concat(),
    });
    let format = Format {
        frame_bytes: u64::from(frame),
        #[cfg(any(test, not(feature = "media")))]
        container_bits: container,
    };
    Ok((format, patch.filter(|_| bits <= container)))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Makes a file of 16-bit mono at 16 kHz whose header announces `announced` bytes.
    fn wav(announced: u32, stored: usize, after: &[u8]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
        file.extend([16_000_u32, 32_000].map(u32::to_le_bytes).concat());
        file.extend([2_u16, 16].map(u16::to_le_bytes).concat());
        file.extend(b"LIST\x05\0\0\0INFOx\0data");
        file.extend(announced.to_le_bytes());
        file.extend(std::iter::repeat_n(0x80, stored));
        file.extend(after);
        file
    }

    /// Returns the announced part, the surplus part, and the number of corrections.
    fn facts(bytes: &[u8]) -> (Option<f64>, f64, usize) {
        let header = WavHeader::read(&mut Cursor::new(bytes), bytes.len() as u64);
        let header = header.unwrap().unwrap();
        let (announced, surplus) = (header.announced_part(), header.surplus_part());
        (announced, surplus, header.patches.len())
    }

    #[test]
    fn the_header_is_held_against_the_file() {
        assert_eq!(facts(&wav(32_000, 32_000, b"")), (Some(1.0), 0.0, 1));
        assert_eq!(facts(&wav(64_000, 32_000, b"")), (Some(2.0), 0.0, 1));
        assert_eq!(facts(&wav(8_000, 32_000, b"")), (Some(1.0), 3.0, 0));
        let list = wav(32_000, 32_000, b"LIST\x04\0\0\0abcd");
        assert_eq!(facts(&list), (Some(1.0), 0.0, 0));
        for unknown in [0, u32::MAX, 0x7fff_ffff] {
            assert_eq!(facts(&wav(unknown, 32_000, b"")), (None, 0.0, 1));
        }
        let none = WavHeader::read(&mut Cursor::new(b"OggS1234WAVE5678"), 16);
        assert_eq!(none.unwrap(), None);
    }
}
