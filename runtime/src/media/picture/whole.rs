//! Checks that a file holds its whole picture, and counts its frames. Decoders stop silently where
//! some formats are cut, and none tells how much is missing.

use image::ImageFormat;

use super::error::Missing;
use super::{jpeg, tiff};

/// Returns the number of frames, or the part that the file lacks.
///
/// A structure that this check does not know is left to the decoder.
///
/// # Errors
/// The part that is missing.
pub(super) fn frames(format: ImageFormat, bytes: &[u8]) -> Result<usize, Missing> {
    match format {
        ImageFormat::Png => png(bytes),
        ImageFormat::Jpeg => jpeg::whole(bytes).map(|()| 1),
        ImageFormat::WebP => webp(bytes),
        ImageFormat::Gif => gif(bytes),
        ImageFormat::Bmp => bmp(bytes).map(|()| 1),
        ImageFormat::Tiff => tiff::pages(bytes),
        ImageFormat::Pnm => pnm(bytes).map(|()| 1),
        _ => Ok(1),
    }
}

/// Reads a number of four bytes, the last byte first.
fn little(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_le_bytes(four) as usize)
}

/// Reads a number of four bytes, the first byte first.
fn big(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_be_bytes(four) as usize)
}

/// Walks the chunks of a PNG file. A chunk has a length, a name, content and a checksum.
fn png(bytes: &[u8]) -> Result<usize, Missing> {
    let mut frames = 1;
    let mut at = 8;
    while let (Some(length), Some(name)) = (big(bytes, at), bytes.get(at + 4..at + 8)) {
        let end = at + 12 + length;
        if end > bytes.len() {
            return Err(Missing::Part {
                name: String::from_utf8_lossy(name).escape_default().to_string(),
                lacks: (end - bytes.len()) as u64,
            });
        }
        match name {
            b"acTL" => frames = big(bytes, at + 8).unwrap_or(1).max(1),
            b"IEND" => return Ok(frames),
            _ => {}
        }
        at = end;
    }
    Err(Missing::EndMarker { name: "IEND" })
}

/// Compares the length that a RIFF file states, and counts its frames.
fn webp(bytes: &[u8]) -> Result<usize, Missing> {
    let whole = 8 + little(bytes, 4).unwrap_or_default();
    if whole > bytes.len() {
        return Err(Missing::Bytes {
            lacks: (whole - bytes.len()) as u64,
            whole: whole as u64,
        });
    }
    let mut frames = 0;
    let mut at = 12;
    while let Some(length) = little(bytes, at + 4) {
        frames += usize::from(bytes[at..].starts_with(b"ANMF"));
        // A chunk of an odd length has one more byte.
        at = at + 8 + length + length % 2;
    }
    Ok(frames.max(1))
}

/// Walks the blocks of a GIF file.
fn gif(bytes: &[u8]) -> Result<usize, Missing> {
    const EXTENSION: u8 = 0x21;
    const FRAME: u8 = 0x2c;
    /// Bytes of a colour table whose flags are `flags`.
    fn table(flags: u8) -> usize {
        if flags & 0x80 == 0 {
            0
        } else {
            3 << ((flags & 7) + 1)
        }
    }
    /// Returns the offset after a chain of sub-blocks, each with its length before it.
    fn after_chain(bytes: &[u8], mut at: usize) -> Option<usize> {
        loop {
            match *bytes.get(at)? {
                0 => return Some(at + 1),
                length => at += 1 + usize::from(length),
            }
        }
    }
    let mut frames = 0;
    let mut at = 13 + table(bytes.get(10).copied().unwrap_or_default());
    while let Some(&kind) = bytes.get(at) {
        let cut = Missing::Frame { frame: frames + 1 };
        let chain = match kind {
            EXTENSION => at + 2,
            FRAME => match bytes.get(at + 9) {
                Some(&flags) => at + 10 + table(flags) + 1,
                None => return Err(cut),
            },
            _ => break,
        };
        at = after_chain(bytes, chain).ok_or(cut)?;
        frames += usize::from(kind == FRAME);
    }
    if frames == 0 {
        return Err(Missing::Frame { frame: 1 });
    }
    Ok(frames)
}

/// Compares the rows of an uncompressed BMP file with its header.
fn bmp(bytes: &[u8]) -> Result<(), Missing> {
    /// Bytes of the oldest header. Its sides have two bytes.
    const CORE: usize = 12;
    let rows = || {
        let start = little(bytes, 10)?;
        let two = |at| Some(little(bytes, at)? & 0xffff);
        let (width, height, bits, packed) = if little(bytes, 14)? == CORE {
            (two(18)?, two(20)?, two(24)?, 0)
        } else {
            let height = (little(bytes, 22)? as u32).cast_signed();
            let height = height.unsigned_abs() as usize;
            (little(bytes, 18)?, height, two(28)?, little(bytes, 30)?)
        };
        // 0 is plain, 3 and 6 are plain with masks. The others have rows of unknown length.
        if ![0, 3, 6].contains(&packed) || width == 0 {
            return None;
        }
        let bits = width.checked_mul(bits)?;
        let (row, stride) = (bits.div_ceil(8), bits.div_ceil(32) * 4);
        // The last row needs no padding.
        let data = bytes.len().saturating_sub(start) + (stride - row);
        Some((data / stride.max(1), height))
    };
    match rows() {
        Some((has, whole)) if has < whole => Err(Missing::Rows { has, whole }),
        _ => Ok(()),
    }
}

/// Compares the rows of a binary PNM file with its header.
fn pnm(bytes: &[u8]) -> Result<(), Missing> {
    let rows = || {
        let samples = match bytes.get(..2)? {
            b"P5" => 1,
            b"P6" => 3,
            _ => return None,
        };
        let mut at = 2;
        let [width, height, largest] = [number(bytes, &mut at)?, number(bytes, &mut at)?, {
            number(bytes, &mut at)?
        }];
        let row = width.checked_mul(samples * if largest > 255 { 2 } else { 1 })?;
        // One blank stands between the header and the rows.
        let data = bytes.len().saturating_sub(at + 1);
        Some((data.checked_div(row)?, height))
    };
    match rows() {
        Some((has, whole)) if has < whole => Err(Missing::Rows { has, whole }),
        _ => Ok(()),
    }
}

/// Reads a decimal number of a PNM header, after blanks and comments.
fn number(bytes: &[u8], at: &mut usize) -> Option<usize> {
    loop {
        match bytes.get(*at)? {
            b'#' => *at += bytes[*at..].iter().position(|&b| b == b'\n')?,
            blank if blank.is_ascii_whitespace() => *at += 1,
            _ => break,
        }
    }
    let digits = bytes[*at..].iter().take_while(|b| b.is_ascii_digit());
    let text: String = digits.map(|&b| char::from(b)).collect();
    *at += text.len();
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::DynamicImage;

    use super::super::fixtures::gradient;
    use super::*;

    fn encoded(format: ImageFormat) -> Vec<u8> {
        if format == ImageFormat::Pnm {
            return [&b"P6 # sides\n32 24\n255\n"[..], &gradient(32, 24)].concat();
        }
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(gradient(32, 24))
            .write_to(&mut bytes, format)
            .unwrap();
        bytes.into_inner()
    }

    #[test]
    fn every_format_tells_what_a_cut_file_lacks() {
        for (format, keep, want) in [
            (ImageFormat::Png, 100, "its part IDAT lacks"),
            (ImageFormat::WebP, 100, "it lacks"),
            (ImageFormat::Gif, 900, "it ends in frame 1"),
            // 54 bytes of header and 10 rows of 96 bytes, and nearly one more.
            (
                ImageFormat::Bmp,
                54 + 10 * 96 + 95,
                "it ends after 10 of 24 rows",
            ),
            (
                ImageFormat::Pnm,
                21 + 10 * 96 + 95,
                "it ends after 10 of 24 rows",
            ),
        ] {
            let whole = encoded(format);
            assert_eq!(frames(format, &whole), Ok(1), "{format:?}");
            assert!(keep < whole.len(), "{format:?}: {}", whole.len());
            let missing = frames(format, &whole[..keep]).expect_err(want);
            assert!(
                missing.to_string().starts_with(want),
                "{format:?}: {missing}"
            );
        }
    }

    #[test]
    fn no_format_takes_a_cut_file_in_silence() {
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::Pnm,
        ] {
            let whole = encoded(format);
            assert_eq!(frames(format, &whole), Ok(1), "{format:?}");
            for keep in [whole.len() / 2, whole.len() * 9 / 10, whole.len() - 3] {
                let missing = frames(format, &whole[..keep]);
                assert!(missing.is_err(), "{format:?}: {keep} of {}", whole.len());
            }
            let longer = [&whole[..], b"trailing bytes"].concat();
            assert_eq!(frames(format, &longer), Ok(1), "{format:?}");
        }
    }

    #[test]
    fn frames_of_animations_are_counted() {
        let png = encoded(ImageFormat::Png);
        // Length, name, frames, repeats and checksum, behind the header of 33 bytes.
        let control = b"\0\0\0\x08acTL\0\0\0\x03\0\0\0\0\0\0\0\0";
        let animated = [&png[..33], control, &png[33..]].concat();
        assert_eq!(frames(ImageFormat::Png, &animated), Ok(3));
        let frame = b"ANMF\x03\0\0\0abc\0";
        let webp = [&b"RIFF\x1c\0\0\0WEBP"[..], frame, frame].concat();
        assert_eq!(frames(ImageFormat::WebP, &webp), Ok(2));
    }
}
