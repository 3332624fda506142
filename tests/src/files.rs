//! Makes files by hand: sound and pictures without a library, damaged tensor files, and a torch
//! archive with any pickle.

use std::fs;
use std::path::{Path, PathBuf};

/// Samples per second of the sound that this file makes.
pub const RATE: u32 = 16_000;

/// Format of the samples in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// 16-bit integers.
    Integer,
    /// 32-bit floats, which may be infinite or NaN.
    Float,
}

/// Makes a mono WAV file at [`RATE`].
pub fn wav(samples: &[f32], kind: Samples) -> Vec<u8> {
    let (format, bytes) = match kind {
        Samples::Integer => (1u16, 2u32),
        Samples::Float => (3, 4),
    };
    let length = samples.len() as u32 * bytes;
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((36 + length).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16u32.to_le_bytes());
    out.extend(format.to_le_bytes());
    out.extend(1u16.to_le_bytes());
    out.extend(RATE.to_le_bytes());
    out.extend((RATE * bytes).to_le_bytes());
    out.extend((bytes as u16).to_le_bytes());
    out.extend((8 * bytes as u16).to_le_bytes());
    out.extend(b"data");
    out.extend(length.to_le_bytes());
    for &s in samples {
        match kind {
            Samples::Integer => out.extend(((s * 32767.0) as i16).to_le_bytes()),
            Samples::Float => out.extend(s.to_le_bytes()),
        }
    }
    out
}

/// Makes `seconds` of a sound like a voice: a buzz whose loudness changes. It is always the same.
pub fn voice(seconds: f32) -> Vec<f32> {
    let sample = |i: usize| {
        let t = i as f32 / RATE as f32;
        let turn = |hz: f32| (std::f32::consts::TAU * hz * t).sin();
        0.3 * (0.5 + 0.5 * turn(3.1)) * (turn(140.0) + 0.5 * turn(280.7) + 0.25 * turn(1130.3))
    };
    (0..(seconds * RATE as f32) as usize).map(sample).collect()
}

/// Makes a binary PPM picture of `pixels` pixels. Its header states `width` and `height`, even if
/// they are wrong.
pub fn ppm(width: usize, height: usize, pixels: usize) -> Vec<u8> {
    let mut out = format!("P6\n{width} {height}\n255\n").into_bytes();
    out.extend((0..3 * pixels).map(|i| (i * 7 % 251) as u8));
    out
}

/// Makes a safetensors file with this header, even if it is wrong.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// Splits a safetensors file into its header and its data.
///
/// # Panics
/// The file is shorter than its header, or the header is not JSON.
pub fn split_safetensors(file: &[u8]) -> (serde_json::Value, &[u8]) {
    let (length, rest) = file
        .split_first_chunk::<8>()
        .expect("eight bytes of length");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).expect("a JSON header"), data)
}

/// Changes the header of a safetensors file in place.
///
/// # Panics
/// The file cannot be read or written.
pub fn edit_header(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let file = fs::read(path).expect("a tensor file");
    let (mut header, data) = split_safetensors(&file);
    edit(&mut header);
    fs::write(path, safetensors(&header.to_string(), data)).expect("a tensor file can be written");
}

/// Makes a torch archive with this pickle.
pub fn torch_archive(pickle: &[u8]) -> Vec<u8> {
    let records: [(&str, &[u8]); 3] = [
        ("archive/data.pkl", pickle),
        ("archive/byteorder", b"little"),
        ("archive/version", b"3\n"),
    ];
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in records {
        let at = out.len() as u32;
        let mut facts = Vec::new();
        for word in [20u16, 0, 0, 0, 0] {
            facts.extend(word.to_le_bytes());
        }
        for word in [crc32(data), data.len() as u32, data.len() as u32] {
            facts.extend(word.to_le_bytes());
        }
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend(0u16.to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&facts);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&facts);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (at, count) = (out.len() as u32, records.len() as u16);
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend(0u16.to_le_bytes());
    out
}

/// Computes the checksum of ZIP files.
fn crc32(data: &[u8]) -> u32 {
    let byte = |crc: u32, b: &u8| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| {
            (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())
        })
    };
    !data.iter().fold(u32::MAX, byte)
}

/// Copies a folder and all its files.
///
/// # Panics
/// A file cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}

/// Lists every file under a folder, sorted, with paths relative to the folder.
pub fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(
                    path.strip_prefix(folder)
                        .expect("it lies under the folder")
                        .to_owned(),
                ),
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_zips() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn an_archive_made_by_hand_is_read_up_to_its_pickle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pth");
        // An empty dictionary.
        fs::write(&path, torch_archive(b"\x80\x02}.")).unwrap();
        assert_eq!(
            exporter::checkpoint::Checkpoint::open_torch(&path)
                .unwrap()
                .names()
                .count(),
            0
        );
    }
}
