//! Reads JPEG files strictly, in their own colours if asked.
//!
//! The `image` crate fills what a cut or damaged file lacks with grey, in silence. It also turns
//! CMYK into RGB before a profile can be applied. So this file asks `zune-jpeg` itself.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::error::Missing;

/// The facts that stand before the pixels.
pub(super) struct Header {
    /// Columns and rows of pixels.
    pub(super) sides: (u32, u32),
    /// ICC profile.
    pub(super) profile: Option<Vec<u8>>,
    /// Turn that makes the picture upright.
    pub(super) orientation: Orientation,
    colours: ColorSpace,
}

/// Reads the segments before the pixels.
pub(super) fn header(bytes: &[u8]) -> Result<Header, DecodeErrors> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options());
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif));
    Ok(Header {
        // A JPEG header states sides in two bytes.
        sides: (width as u32, height as u32),
        profile: decoder.icc_profile(),
        orientation: orientation.unwrap_or(Orientation::NoTransforms),
        colours: decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr),
    })
}

impl Header {
    /// Returns whether the colours are amounts of ink.
    pub(super) fn is_cmyk(&self) -> bool {
        matches!(self.colours, ColorSpace::CMYK | ColorSpace::YCCK)
    }

    /// Decodes a whole file to grey or RGB.
    pub(super) fn pixels(&self, bytes: &[u8]) -> Result<DynamicImage, DecodeErrors> {
        let grey = self.colours == ColorSpace::Luma;
        let to = if grey {
            ColorSpace::Luma
        } else {
            ColorSpace::RGB
        };
        let pixels = decode(bytes, options().jpeg_set_out_colorspace(to))?;
        let (width, height) = self.sides;
        Ok(if grey {
            GrayImage::from_raw(width, height, pixels).map(DynamicImage::from)
        } else {
            RgbImage::from_raw(width, height, pixels).map(DynamicImage::from)
        }
        .expect("a decoded picture has the bytes of its size"))
    }

    /// Decodes a whole CMYK file to four amounts of ink (0 none, 255 full), as channels of RGBA.
    ///
    /// The file holds inverted amounts, as Adobe's programs write them and as Pillow reads them.
    /// YCCK is YCbCr of the inks, so it needs one step more.
    pub(super) fn inks(&self, bytes: &[u8]) -> Result<DynamicImage, DecodeErrors> {
        let mut pixels = decode(bytes, options().jpeg_set_out_colorspace(self.colours))?;
        for pixel in pixels.as_chunks_mut::<4>().0 {
            let [a, b, c, key] = *pixel;
            let [cyan, magenta, yellow] = if self.colours == ColorSpace::YCCK {
                rgb_of(a, b, c)
            } else {
                [a, b, c].map(|v| 255 - v)
            };
            *pixel = [cyan, magenta, yellow, 255 - key];
        }
        let (width, height) = self.sides;
        Ok(RgbaImage::from_raw(width, height, pixels)
            .expect("a decoded picture has the bytes of its size")
            .into())
    }
}

/// Checks that a file has all its pixels and its end marker.
///
/// In a progressive file only the end marker tells.
pub(super) fn whole(bytes: &[u8]) -> Result<(), Missing> {
    let outline = Outline::of(bytes);
    let data = &bytes[..outline.end.unwrap_or(bytes.len())];
    match outline.interval {
        _ if outline.scans != 1 || outline.progressive => {}
        0 => all_rows(data, outline.block_rows)?,
        _ => outline.rows_by_restarts(data).map_or(Ok(()), Err)?,
    }
    match outline.end {
        Some(_) => Ok(()),
        None if outline.progressive && outline.scans > 0 => Err(Missing::Scan {
            scan: outline.scans,
        }),
        None => Err(Missing::EndMarker { name: "EOI" }),
    }
}

/// Checks that the data of all rows stand before the end marker.
///
/// The decoder takes zeros for bits behind an end marker. Without the marker it tells that the data
/// ends early. The lenient decoder then fills the rows of all later blocks with grey.
fn all_rows(before_end: &[u8], block_rows: usize) -> Result<(), Missing> {
    const FILL: u8 = 128;
    let padded = padded(before_end);
    let Err(DecodeErrors::FormatStatic("Premature end of buffer") | DecodeErrors::ExhaustedData) =
        decode(&padded, options())
    else {
        return Ok(());
    };
    let lenient = options()
        .set_strict_mode(false)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let damaged = |_| Missing::EndMarker { name: "EOI" };
    let (width, height) = header(&padded).map_err(damaged)?.sides;
    let pixels = decode(&padded, lenient).map_err(damaged)?;
    let filled = pixels
        .rchunks_exact(3 * width as usize)
        .take_while(|row| row.iter().all(|&v| v == FILL))
        .count();
    let whole = height as usize;
    // The data ends within the last blocks that are not filled.
    let has = (whole - filled)
        .next_multiple_of(block_rows.max(1))
        .saturating_sub(block_rows);
    Err(Missing::Rows { has, whole })
}

/// Adds zeros. The decoder reads up to 8 bytes ahead, and would call the last rows of a small
/// picture missing.
fn padded(before_end: &[u8]) -> Vec<u8> {
    [before_end, &[0; 16]].concat()
}

fn decode(bytes: &[u8], options: DecoderOptions) -> Result<Vec<u8>, DecodeErrors> {
    JpegDecoder::new_with_options(ZCursor::new(bytes), options).decode()
}

/// Returns the strict options. The sides are checked elsewhere.
fn options() -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
}

/// Turns YCbCr of JFIF into RGB.
fn rgb_of(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
    ]
    .map(|v| v.round().clamp(0.0, 255.0) as u8)
}

/// The places of the markers of a file, and the grid of its blocks.
#[derive(Default)]
struct Outline {
    /// Offset of the end marker, if the file has one.
    end: Option<usize>,
    /// Scans that begin.
    scans: usize,
    progressive: bool,
    /// Columns and rows of the grid. A place in it holds the blocks that are coded together.
    grid: (usize, usize),
    /// Rows of pixels of a place.
    block_rows: usize,
    /// Rows of pixels.
    rows: usize,
    /// Places between two restart markers, 0 for none.
    interval: usize,
    /// Offset of the first scan's segment.
    data: usize,
}

impl Outline {
    /// Walks the segments. A thumbnail lies inside a segment, so its markers do not count.
    fn of(bytes: &[u8]) -> Self {
        const END: u8 = 0xd9;
        const SCAN: u8 = 0xda;
        const RESTART_INTERVAL: u8 = 0xdd;
        let mut outline = Self::default();
        let mut at = 2;
        while let Some(marker) = next_marker(bytes, at) {
            let kind = bytes[marker + 1];
            let Some(length) = two(bytes, marker + 2).filter(|_| kind != END) else {
                outline.end = (kind == END).then_some(marker);
                break;
            };
            at = marker + 2 + length;
            match kind {
                SCAN => {
                    outline.scans += 1;
                    outline.data = at;
                }
                RESTART_INTERVAL => outline.interval = two(bytes, marker + 4).unwrap_or_default(),
                0xc0..=0xc2 => {
                    outline.progressive = kind == 0xc2;
                    outline.frame(bytes.get(marker + 4..at).unwrap_or_default());
                }
                _ => {}
            }
        }
        outline
    }

    /// Reads a frame's segment: depth, sides and count, then components of three bytes.
    fn frame(&mut self, segment: &[u8]) {
        let components = segment.get(6..).unwrap_or_default().chunks_exact(3);
        let sampling = components.clone().map(|c| (c[1] >> 4, c[1] & 15));
        let most = |a: (u8, u8), b: (u8, u8)| (a.0.max(b.0), a.1.max(b.1));
        // One component alone is coded block by block.
        let (across, down) = match components.len() {
            1 => (1, 1),
            _ => sampling.fold((1, 1), most),
        };
        let width = two(segment, 3).unwrap_or_default();
        self.rows = two(segment, 1).unwrap_or_default();
        self.block_rows = 8 * usize::from(down);
        self.grid = (
            width.div_ceil(8 * usize::from(across)),
            self.rows.div_ceil(self.block_rows),
        );
    }

    /// Returns the rows that stand before the last restart marker, if markers are missing.
    fn rows_by_restarts(&self, before_end: &[u8]) -> Option<Missing> {
        let data = before_end.get(self.data..)?.windows(2);
        let restart = |pair: &&[u8]| matches!(pair, [0xff, 0xd0..=0xd7]);
        let restarts = data.filter(restart).count();
        let places = self.grid.0 * self.grid.1;
        let wanted = places.div_ceil(self.interval).saturating_sub(1);
        (restarts < wanted).then(|| Missing::Rows {
            has: restarts * self.interval / self.grid.0 * self.block_rows,
            whole: self.rows,
        })
    }
}

/// Reads a number of two bytes, the first byte first.
fn two(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(usize::from(u16::from_be_bytes(pair)))
}

/// Returns the offset of the next marker that has a segment, or that ends the picture.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xff)?;
        match bytes.get(at + 1)? {
            // Data, a fill byte, a restart marker or a start marker: none has a segment.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            0xff => at += 1,
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    use super::super::fixtures::{flat_jpeg, gradient};
    use super::*;

    const END: [u8; 2] = [0xff, 0xd9];

    /// Encodes a picture of 128 columns. Its first rows do not depend on the others.
    fn encoded(rows: u32) -> Vec<u8> {
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 95)
            .write_image(&gradient(128, rows), 128, rows, ExtendedColorType::Rgb8)
            .unwrap();
        jpeg
    }

    #[test]
    fn a_cut_file_tells_its_rows_with_and_without_an_end_marker() {
        let jpeg = encoded(96);
        assert_eq!(whole(&jpeg), Ok(()));
        let cut = &jpeg[..encoded(64).len() - END.len()];
        let missing = Missing::Rows { has: 64, whole: 96 };
        for file in [cut.to_vec(), [cut, &END].concat()] {
            assert_eq!(whole(&file).as_ref(), Err(&missing));
        }
    }

    #[test]
    fn a_file_without_its_end_marker_is_told() {
        for jpeg in [
            flat_jpeg(&[200], 96, None),
            flat_jpeg(&[128], 16, None),
            encoded(96),
        ] {
            assert_eq!(whole(&jpeg), Ok(()));
            let open = &jpeg[..jpeg.len() - END.len()];
            let marker = || Err(Missing::EndMarker { name: "EOI" });
            assert_eq!(whole(open), marker());
            assert_eq!(whole(&jpeg[..20]), marker());
            assert_eq!(whole(&[&jpeg, &b"more"[..]].concat()), Ok(()));
        }
    }

    #[test]
    fn missing_restart_markers_tell_the_rows() {
        // Sixteen rows of two places each, and a marker behind every four of them.
        let mut jpeg = flat_jpeg(&[200], 128, None);
        let frame = jpeg
            .windows(2)
            .position(|pair| pair == [0xff, 0xc0])
            .unwrap();
        jpeg.splice(frame..frame, *b"\xff\xdd\0\x04\0\x04");
        let data = jpeg
            .windows(2)
            .rposition(|pair| pair == [0x3f, 0x00])
            .unwrap()
            + 2;
        jpeg.truncate(data);
        let marked =
            |restarts: usize| [&jpeg[..], &b"d\xff\0\xff\xd0".repeat(restarts), &END].concat();
        assert_eq!(whole(&marked(7)), Ok(()));
        let missing = Missing::Rows {
            has: 48,
            whole: 128,
        };
        assert_eq!(whole(&marked(3)), Err(missing));
    }

    #[test]
    fn a_thumbnail_does_not_count_and_a_progressive_file_names_its_scan() {
        let thumbnail = b"\xff\xe1\0\x06\xff\xd9\xff\xd9";
        let scan = b"\xff\xda\0\x02data\xff\0data";
        let file = [&b"\xff\xd8"[..], thumbnail, b"\xff\xc2\0\x02", scan, scan].concat();
        assert_eq!(whole(&file), Err(Missing::Scan { scan: 2 }));
        assert_eq!(whole(&[&file[..], &END].concat()), Ok(()));
    }

    #[test]
    fn a_damaged_code_is_refused_in_strict_mode() {
        let jpeg = flat_jpeg(&[200], 96, None);
        let header = header(&jpeg).unwrap();
        assert!(header.pixels(&jpeg).is_ok());
        // The four bits 1111 are no code of the table.
        let mut damaged = jpeg.clone();
        let at = damaged.len() - 8;
        damaged[at..at + 2].fill(0xfe);
        assert!(header.pixels(&damaged).is_err());
    }

    #[test]
    fn ycck_inks_agree_with_the_decoders_plain_rgb() {
        // Adobe's segment, transform 2.
        let adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x02";
        let plain = flat_jpeg(&[120, 90, 160, 200], 16, None);
        let jpeg = [&plain[..2], adobe, &plain[2..]].concat();
        let header = header(&jpeg).unwrap();
        assert!(header.is_cmyk());
        let inks = header.inks(&jpeg).unwrap().into_bytes();
        let rgb = header.pixels(&jpeg).unwrap().into_bytes();
        let key = 255 - inks[3];
        for (ink, level) in inks[..3].iter().zip(&rgb[..3]) {
            let light = f32::from(255 - ink) * f32::from(key) / 255.0;
            assert!((light - f32::from(*level)).abs() <= 2.0, "{inks:?} {rgb:?}");
        }
    }
}
