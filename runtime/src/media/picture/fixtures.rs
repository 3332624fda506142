//! Small pictures, made by code.

use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

use super::{Picture, Reading};

/// Makes a picture whose neighbours differ.
pub(super) fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([
            (x * 7 % 256) as u8,
            (y * 5 % 256) as u8,
            ((x + y) % 256) as u8,
        ])
    })
}

/// Writes a file that lives as long as the folder.
pub(super) fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("picture");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

pub(super) fn saved(
    image: &DynamicImage,
    name: &str,
    format: ImageFormat,
) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    image.save_with_format(&path, format).unwrap();
    (dir, path)
}

/// Opens a picture by the defaults, and drops the notices.
pub(super) fn opened(path: &Path) -> Picture {
    Picture::open(path, Reading::default()).unwrap().0
}

/// Makes a baseline JPEG of 16 columns, one level for each of its components (one or four).
///
/// Every block costs 8 x 8 pixels of one component. The first block of a component states its
/// level by up to 15 bits and an end of block. Each other block has 5 bits.
pub(super) fn flat_jpeg(levels: &[u8], rows: u16, profile: Option<&[u8]>) -> Vec<u8> {
    let count = levels.len() as u8;
    let mut jpeg = vec![0xff, 0xd8];
    let mut segment = |marker: u8, content: &[u8]| {
        jpeg.extend([0xff, marker]);
        jpeg.extend((content.len() as u16 + 2).to_be_bytes());
        jpeg.extend(content);
    };
    if let Some(profile) = profile {
        segment(0xe2, &[b"ICC_PROFILE\0\x01\x01", profile].concat());
    }
    segment(0xdb, &[[0].as_slice(), &[1; 64]].concat());
    let [high, low] = rows.to_be_bytes();
    let mut frame = vec![8, high, low, 0, 16, count];
    frame.extend((1..=count).flat_map(|id| [id, 0x11, 0]));
    segment(0xc0, &frame);
    // Twelve codes of four bits for the sizes of DC, one code of one bit for the end of a block.
    let lengths = |bits: usize, codes: u8| (1..=16).map(move |n| if n == bits { codes } else { 0 });
    let dc = [0].into_iter().chain(lengths(4, 12)).chain(0..12);
    segment(0xc4, &dc.collect::<Vec<u8>>());
    let ac = [0x10].into_iter().chain(lengths(1, 1)).chain([0]);
    segment(0xc4, &ac.collect::<Vec<u8>>());
    let mut scan = vec![count];
    scan.extend((1..=count).flat_map(|id| [id, 0]));
    scan.extend([0, 63, 0]);
    segment(0xda, &scan);
    let mut bits = String::new();
    for block in 0..2 * usize::from(rows).div_ceil(8) {
        for &level in levels {
            let difference = if block == 0 {
                (i32::from(level) - 128) * 8
            } else {
                0
            };
            let size = 32 - difference.unsigned_abs().leading_zeros();
            bits += &format!("{size:04b}");
            let value = difference + if difference < 0 { (1 << size) - 1 } else { 0 };
            if size > 0 {
                bits += &format!("{value:0width$b}", width = size as usize);
            }
            bits += "0";
        }
    }
    while !bits.len().is_multiple_of(8) {
        bits += "1";
    }
    for byte in bits.as_bytes().chunks(8) {
        let byte = byte.iter().fold(0, |sum, bit| sum << 1 | (bit - b'0'));
        jpeg.push(byte);
        if byte == 0xff {
            jpeg.push(0);
        }
    }
    jpeg.extend([0xff, 0xd9]);
    jpeg
}

/// Makes an ICC profile of four inks: a table of 2 x 2 x 2 x 2 colours in Lab.
pub(super) fn ink_profile() -> Vec<u8> {
    let mut table = b"mft2\0\0\0\0\x04\x03\x02\0".to_vec();
    let one = 1u32 << 16;
    let identity = [one, 0, 0, 0, one, 0, 0, 0, one];
    table.extend(identity.iter().flat_map(|v| v.to_be_bytes()));
    table.extend([0, 2, 0, 2]);
    let straight = [0, 0, 0xff, 0xff];
    table.extend(straight.repeat(4));
    for corner in 0..16u8 {
        let [c, m, y, k] = [8, 4, 2, 1].map(|bit| f64::from(u8::from(corner & bit != 0)));
        let light = (100.0 - 30.0 * c - 40.0 * m - 5.0 * y - 95.0 * k).max(0.0);
        let a = (40.0 * m - 20.0 * c) * (1.0 - k);
        let b = (50.0 * y - 25.0 * c) * (1.0 - k);
        let levels = [light * 652.8, (a + 128.0) * 256.0, (b + 128.0) * 256.0];
        table.extend(levels.iter().flat_map(|v| (v.round() as u16).to_be_bytes()));
    }
    table.extend(straight.repeat(3));
    let d50 = [63_190u32, 65_536, 54_061];
    let white = [
        b"XYZ \0\0\0\0".to_vec(),
        d50.iter().flat_map(|v| v.to_be_bytes()).collect(),
    ]
    .concat();
    let name = [&b"desc\0\0\0\0\0\0\0\x05inks\0"[..], &[0; 78]].concat();
    let mut tags = Vec::new();
    let mut content = Vec::new();
    for (tag, mut value) in [(b"desc", name), (b"wtpt", white), (b"A2B0", table)] {
        let offset = 128 + 4 + 3 * 12 + content.len() as u32;
        tags.extend(tag);
        tags.extend(offset.to_be_bytes());
        tags.extend((value.len() as u32).to_be_bytes());
        value.resize(value.len().next_multiple_of(4), 0);
        content.extend(value);
    }
    let size = 128 + 4 + tags.len() + content.len();
    let mut header = (size as u32).to_be_bytes().to_vec();
    header.extend(b"none\x02\x40\0\0prtrCMYKLab ");
    header.extend([7, 0xea, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    header.extend(b"acsp");
    header.resize(68, 0);
    header.extend(d50.iter().flat_map(|v| v.to_be_bytes()));
    header.resize(128, 0);
    [header, 3u32.to_be_bytes().to_vec(), tags, content].concat()
}
