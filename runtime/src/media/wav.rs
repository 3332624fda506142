//! Reads WAV files without FFmpeg, with the same samples as FFmpeg gives.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use hound::{SampleFormat, WavReader};

/// Samples of one chunk, over all channels.
const CHUNK: usize = 1 << 16;

/// An opened WAV file: PCM of 8 to 32 bits, or 32-bit floats.
pub(crate) struct WavFile {
    reader: WavReader<BufReader<File>>,
    /// Frames a second.
    pub(crate) rate: u32,
    /// Channels of a frame.
    pub(crate) channels: usize,
}

impl WavFile {
    /// Opens a file.
    ///
    /// # Errors
    /// The file is missing, or is not a WAV file with PCM or floats.
    pub(crate) fn open(path: &Path) -> Result<Self, hound::Error> {
        let reader = WavReader::open(path)?;
        let spec = reader.spec();
        // `hound` takes the low bits of a sample that is narrower than its container; the format
        // keeps the sample in the high bits.
        if container_bits(path)?.is_some_and(|bits| bits != spec.bits_per_sample) {
            return Err(hound::Error::Unsupported);
        }
        Ok(Self {
            reader,
            rate: spec.sample_rate,
            channels: spec.channels.into(),
        })
    }

    /// Returns the name of the coding.
    #[cfg(not(feature = "media"))]
    pub(crate) fn codec(&self) -> &'static str {
        match self.reader.spec().sample_format {
            SampleFormat::Float => "pcm_float",
            SampleFormat::Int => "pcm_int",
        }
    }

    /// Returns the next samples, `[n, channels]` interleaved in [-1, 1], or nothing at the end.
    ///
    /// # Errors
    /// The file ends within a sample.
    pub(crate) fn next(&mut self) -> Result<Vec<f32>, hound::Error> {
        let count = CHUNK / self.channels * self.channels;
        let spec = self.reader.spec();
        if spec.sample_format == SampleFormat::Float {
            return self.reader.samples::<f32>().take(count).collect();
        }
        // As FFmpeg scales integers: the most negative value is -1.
        let scale = (1_u64 << (spec.bits_per_sample - 1)) as f32;
        let samples = self.reader.samples::<i32>().take(count);
        samples.map(|s| Ok(s? as f32 / scale)).collect()
    }
}

/// Returns the bits that one sample takes in the file, by the format chunk near its start.
fn container_bits(path: &Path) -> std::io::Result<Option<u16>> {
    let mut start = Vec::new();
    File::open(path)?.take(4096).read_to_end(&mut start)?;
    let at = start.windows(4).position(|w| w == b"fmt ");
    let number = |at: usize| Some(u16::from_le_bytes([*start.get(at)?, *start.get(at + 1)?]));
    // After the chunk's name and length: tag, channels, two rates, bytes of a frame.
    let frame = at.and_then(|at| Some((number(at + 10)?, number(at + 20)?)));
    Ok(frame.and_then(|(channels, bytes)| (8 * bytes).checked_div(channels)))
}

#[cfg(test)]
mod tests {
    use hound::{WavSpec, WavWriter};

    use super::*;

    /// Writes four frames of each kind that people have, and reads them back.
    fn round_trip(channels: u16, bits: u16, format: SampleFormat) -> (WavFile, Vec<f32>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wav");
        let spec = WavSpec {
            channels,
            sample_rate: 16_000,
            bits_per_sample: bits,
            sample_format: format,
        };
        let mut writer = WavWriter::create(&path, spec).unwrap();
        for i in 0..4 * i32::from(channels) {
            let value = f64::from(i - 4) / 8.0;
            match format {
                SampleFormat::Float => writer.write_sample(value as f32).unwrap(),
                SampleFormat::Int => {
                    let scale = f64::from(1_u32 << (bits - 2)) * 2.0;
                    writer.write_sample((value * scale) as i32).unwrap();
                }
            }
        }
        writer.finalize().unwrap();
        let mut file = WavFile::open(&path).unwrap();
        let samples = file.next().unwrap();
        assert!(file.next().unwrap().is_empty());
        (file, samples)
    }

    #[test]
    fn every_width_of_samples_is_read_between_minus_one_and_one() {
        for channels in [1, 2] {
            let count = 4 * i32::from(channels);
            let wanted: Vec<f32> = (0..count).map(|i| (i - 4) as f32 / 8.0).collect();
            for (bits, format) in [
                (8, SampleFormat::Int),
                (16, SampleFormat::Int),
                (24, SampleFormat::Int),
                (32, SampleFormat::Int),
                (32, SampleFormat::Float),
            ] {
                let (file, samples) = round_trip(channels, bits, format);
                assert_eq!((file.rate, file.channels), (16_000, channels.into()));
                assert_eq!(samples, wanted, "{bits} bits, {format:?}");
            }
        }
    }

    #[test]
    fn samples_narrower_than_their_container_are_refused() {
        let mut wav = b"RIFF\x40\0\0\0WAVEfmt \x28\0\0\0\xfe\xff\x01\0".to_vec();
        wav.extend([16_000_u32, 64_000].map(u32::to_le_bytes).concat());
        // Bytes of a frame, bits of the container, length of the extension, valid bits.
        wav.extend([4_u16, 32, 22, 24].map(u16::to_le_bytes).concat());
        wav.extend(b"\0\0\0\0\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71");
        wav.extend(b"data\x04\0\0\0\0\0\0\x40");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.wav");
        std::fs::write(&path, wav).unwrap();
        let refused = WavFile::open(&path).err();
        assert!(
            matches!(refused, Some(hound::Error::Unsupported)),
            "{refused:?}"
        );
    }

    /// Samples of the golden recordings by FFmpeg and by this file are the same bits.
    #[cfg(feature = "media")]
    #[test]
    fn samples_are_those_of_ffmpeg() {
        let set = &crate::fixtures::golden::sets()[0];
        for name in ["speech_16k_mono.wav", "speech_44k1_stereo.wav"] {
            let path = set.input(name);
            let mut theirs = Vec::new();
            let mut file = crate::media::audio_file::AudioFile::open(&path).unwrap();
            while let Some(chunk) = file.next_chunk().unwrap() {
                theirs.extend(chunk.samples);
            }
            let (mut ours, mut wav) = (Vec::new(), WavFile::open(&path).unwrap());
            loop {
                let more = wav.next().unwrap();
                if more.is_empty() {
                    break;
                }
                ours.extend(more);
            }
            assert!(ours == theirs && !ours.is_empty(), "{name}");
        }
    }
}
