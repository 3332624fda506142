//! Reads the reference picture, turns it upright, flattens it to RGB and fits it into the video.
//!
//! For opaque 8-bit pictures every level equals the reference's, which is
//! `Image.open(path).convert("RGB")` with torchvision's `Resize` and `CenterCrop`. There are two
//! differences. This file obeys the EXIF orientation. It flattens transparency over black; PIL
//! drops the alpha channel, so the hidden colour shows. As in PIL, 16-bit colours keep their high
//! byte, and colour profiles have no effect. A JPEG differs by 0.3 levels on average and by a few
//! at colour edges, because another decoder reads it.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits, RgbImage};

use crate::numbers::size::{Size, SizeMode};

/// Smallest side of a picture, in pixels. A smaller one cannot show a face.
pub(crate) const MIN_SIDE: usize = 16;
/// Largest side of a picture, in pixels. The header is checked before memory is allocated.
pub(crate) const MAX_SIDE: usize = 16_384;
/// Largest number of pixels of a picture, also checked by the header.
pub(crate) const MAX_PIXELS: usize = 1 << 27;
/// Bytes that a decoder may allocate: 16 per pixel.
const MAX_BYTES: u64 = 16 * MAX_PIXELS as u64;

/// A reason why a picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The system refuses to open the file.
    #[error("{path}: cannot open the picture: {source}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the system.
        source: std::io::Error,
    },
    /// The path names a folder.
    #[error("{path}: wants a picture file, got a folder")]
    Folder {
        /// Path of the folder.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("{path}: wants a picture, the file is empty")]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
    /// The content is of no known format.
    #[error(
        "{path}: wants a picture (png, jpeg, webp, bmp, gif, tiff or pnm), found none of these"
    )]
    Format {
        /// Path of the file.
        path: PathBuf,
    },
    /// The decoder refuses the content.
    #[error("{path}: picture is damaged or not supported: {reason}")]
    Decode {
        /// Path of the file.
        path: PathBuf,
        /// Answer of the decoder.
        reason: String,
    },
    /// A side is too short.
    #[error("{path}: wants a picture of at least {MIN_SIDE} x {MIN_SIDE}, got {width} x {height}")]
    TooSmall {
        /// Path of the file.
        path: PathBuf,
        /// Columns of pixels.
        width: usize,
        /// Rows of pixels.
        height: usize,
    },
    /// A side is too long, or there are too many pixels.
    #[error(
        "{path}: wants a picture of at most {MAX_SIDE} a side and {} megapixels, \
         got {width} x {height}",
        MAX_PIXELS >> 20
    )]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Columns of pixels.
        width: usize,
        /// Rows of pixels.
        height: usize,
    },
}

impl PictureError {
    /// Returns `Input`: the user can name another file.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// The way in which a picture of another aspect ratio fills an exact size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Cut the picture evenly to the aspect ratio of the video, then scale it.
    #[default]
    Crop,
    /// Scale the picture to fit inside, with black bars around it.
    Pad,
}

/// A picture in 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Colours, `[H, W, 3]` row by row.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Opens a file by its content and not its name. Turns the picture upright and flattens it.
    ///
    /// # Errors
    /// A file that is missing, empty, damaged, too small, or too large by its header.
    pub fn open(path: &Path) -> Result<Self, PictureError> {
        let mut decoder = decoder(path)?;
        let damaged = |e: ImageError| PictureError::Decode {
            path: path.to_owned(),
            reason: e.to_string(),
        };
        check_sides(path, decoder.dimensions())?;
        decoder.set_limits(limits()).map_err(damaged)?;
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        image.apply_orientation(orientation);
        Ok(flatten(image))
    }

    /// Returns the width and the height.
    pub fn size(&self) -> Size {
        Size {
            width: self.width,
            height: self.height,
        }
    }

    /// Fits this picture into a video of `size`.
    ///
    /// Exact mode obeys `fit`. Area mode scales the shorter side, then crops or pads, as upstream
    /// does.
    pub fn fitted(&self, size: Size, mode: SizeMode, fit: Fit) -> Picture {
        match (mode, fit) {
            (SizeMode::Area, _) => self
                .resized(short_side(self.size(), size.width.min(size.height)))
                .centred(size),
            (SizeMode::Exact, Fit::Crop) => self.centred(inside(size, self.size())).resized(size),
            (SizeMode::Exact, Fit::Pad) => self.resized(inside(self.size(), size)).centred(size),
        }
    }

    /// Returns `u8 / 255 * 2 - 1`, `[3, H, W]` in [-1, 1].
    ///
    /// The operations are f32 and in torchvision's order.
    pub fn pixels(&self) -> Vec<f32> {
        let value = |&u: &u8| f32::from(u) / 255.0 * 2.0 - 1.0;
        (0..3)
            .flat_map(|c| self.rgb[c..].iter().step_by(3).map(value))
            .collect()
    }

    /// Scales the picture with Pillow's bilinear filter and antialias, bit for bit.
    ///
    /// Weights have 22 bits. Rows come first, and values are rounded to 8 bits between the passes.
    pub fn resized(&self, to: Size) -> Picture {
        let mut rgb = self.rgb.clone();
        if to.width != self.width {
            let taps = taps(self.width, to.width);
            rgb = resample(
                &rgb,
                Lines {
                    count: self.height,
                    length: self.width,
                    stride: 3,
                    next: 3 * self.width,
                },
                &taps,
                3 * to.width,
                3,
            );
        }
        if to.height != self.height {
            let taps = taps(self.height, to.height);
            let row = 3 * to.width;
            rgb = resample(
                &rgb,
                Lines {
                    count: to.width,
                    length: self.height,
                    stride: row,
                    next: 3,
                },
                &taps,
                3,
                row,
            );
        }
        Picture {
            width: to.width,
            height: to.height,
            rgb,
        }
    }

    /// Crops or pads the picture as torchvision's `CenterCrop` does.
    ///
    /// Half of the black border, rounded down, is left and above. The offset of a cut is rounded
    /// half to even.
    pub fn centred(&self, to: Size) -> Picture {
        let (into_x, from_x) = offsets(self.width, to.width);
        let (into_y, from_y) = offsets(self.height, to.height);
        let (columns, rows) = (self.width.min(to.width), self.height.min(to.height));
        let mut rgb = vec![0; 3 * to.width * to.height];
        for y in 0..rows {
            let from = 3 * ((from_y + y) * self.width + from_x);
            let into = 3 * ((into_y + y) * to.width + into_x);
            rgb[into..into + 3 * columns].copy_from_slice(&self.rgb[from..from + 3 * columns]);
        }
        Picture {
            width: to.width,
            height: to.height,
            rgb,
        }
    }
}

impl From<Picture> for RgbImage {
    fn from(picture: Picture) -> Self {
        Self::from_raw(picture.width as u32, picture.height as u32, picture.rgb)
            .expect("a picture has the bytes of its size")
    }
}

/// Opens a file and picks the decoder of its content.
fn decoder(path: &Path) -> Result<impl ImageDecoder, PictureError> {
    let open = |source| PictureError::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(open)?;
    let facts = file.metadata().map_err(open)?;
    if facts.is_dir() {
        return Err(PictureError::Folder {
            path: path.to_owned(),
        });
    }
    if facts.is_file() && facts.len() == 0 {
        return Err(PictureError::Empty {
            path: path.to_owned(),
        });
    }
    let mut reader = ImageReader::new(BufReader::new(file))
        .with_guessed_format()
        .map_err(open)?;
    reader.limits(limits());
    if reader.format().is_none() {
        return Err(PictureError::Format {
            path: path.to_owned(),
        });
    }
    reader.into_decoder().map_err(|e| PictureError::Decode {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// Returns the limit of a decoder's memory.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

/// Refuses a picture whose header states a side or an area out of range.
fn check_sides(path: &Path, (width, height): (u32, u32)) -> Result<(), PictureError> {
    let (path, width, height) = (path.to_owned(), width as usize, height as usize);
    if width.max(height) > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(PictureError::TooLarge {
            path,
            width,
            height,
        });
    }
    if width.min(height) < MIN_SIDE {
        return Err(PictureError::TooSmall {
            path,
            width,
            height,
        });
    }
    Ok(())
}

/// Turns any kind of pixel into RGB. 16-bit values keep their high byte.
fn flatten(image: DynamicImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let high = |v: u16| (v >> 8) as u8;
    let rgb = match image {
        DynamicImage::ImageRgb8(i) => i.into_raw(),
        DynamicImage::ImageLuma8(i) => i.into_raw().into_iter().flat_map(|l| [l; 3]).collect(),
        DynamicImage::ImageLuma16(i) => i
            .into_raw()
            .into_iter()
            .flat_map(|l| [high(l); 3])
            .collect(),
        DynamicImage::ImageRgb16(i) => i.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageRgba16(i) => over_black(i.into_raw().into_iter().map(high)),
        DynamicImage::ImageLumaA16(i) => {
            over_black(i.pixels().flat_map(|p| [p[0], p[0], p[0], p[1]]).map(high))
        }
        other => over_black(other.into_rgba8().into_raw().into_iter()),
    };
    Picture { width, height, rgb }
}

/// Turns RGBA bytes into RGB: `round(colour * alpha / 255)`.
fn over_black(mut rgba: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut rgb = Vec::new();
    while let (Some(r), Some(g), Some(b), Some(a)) =
        (rgba.next(), rgba.next(), rgba.next(), rgba.next())
    {
        rgb.extend([r, g, b].map(|c| ((u16::from(c) * u16::from(a) + 127) / 255) as u8));
    }
    rgb
}

/// Returns the size of torchvision's `Resize(short)`.
///
/// The shorter side becomes `short`, the longer one `int(short * longer / shorter)`.
fn short_side(of: Size, short: usize) -> Size {
    if of.width <= of.height {
        Size {
            width: short,
            height: short * of.height / of.width,
        }
    } else {
        Size {
            width: short * of.width / of.height,
            height: short,
        }
    }
}

/// Returns the largest size of the aspect ratio of `of` inside `target`.
fn inside(of: Size, target: Size) -> Size {
    let side = |long: usize, short: usize, to: usize| (to * long / short).max(1);
    if target.width * of.height >= target.height * of.width {
        Size {
            width: side(of.width, of.height, target.height),
            height: target.height,
        }
    } else {
        Size {
            width: target.width,
            height: side(of.height, of.width, target.width),
        }
    }
}

/// Returns the offsets (in the target, in the source) of a side of `from` in a side of `to`.
fn offsets(from: usize, to: usize) -> (usize, usize) {
    let over = from.saturating_sub(to);
    let half_to_even = over / 2 + usize::from(over % 4 == 3);
    (to.saturating_sub(from) / 2, half_to_even)
}

/// Bits of a weight's fraction, as in Pillow: 8 of 32 hold the value, 2 the carry and the sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// The source positions and fixed-point weights of one target sample.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Computes Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` for the triangle filter.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight =
            |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| (0.5 + w / sum * f64::from(1 << PRECISION_BITS)) as i32;
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(tap).collect()
}

/// Lines of pixels in a buffer: `count` lines, `next` bytes apart, of `length` pixels, `stride`
/// bytes apart.
#[derive(Clone, Copy)]
struct Lines {
    count: usize,
    length: usize,
    stride: usize,
    next: usize,
}

/// Applies `taps` along every line.
///
/// The lines of the result are `next` bytes apart, and its pixels `stride` bytes.
fn resample(from: &[u8], lines: Lines, taps: &[Taps], next: usize, stride: usize) -> Vec<u8> {
    debug_assert!(
        taps.iter()
            .all(|t| t.first + t.weights.len() <= lines.length)
    );
    let mut out = vec![0; 3 * lines.count * taps.len()];
    for line in 0..lines.count {
        for (i, tap) in taps.iter().enumerate() {
            let mut sums = [1 << (PRECISION_BITS - 1); 3];
            for (k, weight) in tap.weights.iter().enumerate() {
                let at = line * lines.next + (tap.first + k) * lines.stride;
                for (sum, &value) in sums.iter_mut().zip(&from[at..at + 3]) {
                    *sum += i32::from(value) * weight;
                }
            }
            let into = line * next + i * stride;
            for (value, sum) in out[into..into + 3].iter_mut().zip(sums) {
                *value = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder, ImageFormat, Rgb, Rgba, RgbaImage};

    use super::*;
    use crate::fixtures::golden;

    fn size(width: usize, height: usize) -> Size {
        Size { width, height }
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([
                (x * 7 % 256) as u8,
                (y * 5 % 256) as u8,
                ((x + y) % 256) as u8,
            ])
        })
    }

    fn saved(
        image: &DynamicImage,
        name: &str,
        format: ImageFormat,
    ) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        image.save_with_format(&path, format).unwrap();
        (dir, path)
    }

    #[test]
    fn the_golden_picture_is_pillows_to_the_level() {
        for set in golden::sets() {
            let picture = Picture::open(&set.input("ref.png")).unwrap();
            for (tag, area) in [
                ("area8192", size(128, 64)),
                ("area4096", size(64, 64)),
                ("area24576", size(192, 128)),
            ] {
                let size = area.effective(SizeMode::Area, picture.size()).unwrap();
                let fitted = picture.fitted(size, SizeMode::Area, Fit::Crop);
                let resized =
                    picture.resized(short_side(picture.size(), fitted.width.min(fitted.height)));
                for (got, name) in [(&resized, "resized_u8"), (&fitted, "cropped_u8")] {
                    if let Some(want) = set.try_u8s("image", &format!("{tag}.{name}")) {
                        assert!(got.rgb == want, "{tag}.{name}");
                    }
                }
                if let Some(want) = set.try_f32s("image", &format!("{tag}.pixels")) {
                    assert!(fitted.pixels() == want, "{tag}.pixels");
                }
            }
        }
    }

    #[test]
    fn resizing_is_pillows_on_a_small_gradient() {
        let picture = Picture {
            width: 5,
            height: 1,
            rgb: [0u8, 60, 120, 180, 255]
                .into_iter()
                .flat_map(|v| [v; 3])
                .collect(),
        };
        let row = |width| {
            picture
                .resized(size(width, 1))
                .rgb
                .into_iter()
                .step_by(3)
                .collect::<Vec<_>>()
        };
        assert_eq!(row(2), [60, 185]);
        assert_eq!(row(3), [26, 120, 223]);
        assert_eq!(row(8), [0, 26, 64, 101, 139, 176, 222, 255]);
    }

    #[test]
    fn a_crop_offset_is_rounded_half_to_even() {
        for (over, want) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 2),
            (6, 3),
            (7, 4),
        ] {
            assert_eq!(offsets(100 + over, 100), (0, want), "{over} over");
        }
        assert_eq!(offsets(85, 128), (21, 0));
    }

    #[test]
    fn exact_mode_covers_by_default_and_pads_on_demand() {
        let picture = Picture {
            width: 100,
            height: 100,
            rgb: vec![200; 30_000],
        };
        let crop = picture.fitted(size(128, 64), SizeMode::Exact, Fit::Crop);
        assert!(crop.rgb.iter().all(|&v| v == 200) && crop.rgb.len() == 3 * 128 * 64);
        let pad = picture.fitted(size(128, 64), SizeMode::Exact, Fit::Pad);
        assert_eq!(pad.rgb.iter().filter(|&&v| v == 200).count(), 3 * 64 * 64);
        assert_eq!(pad.rgb[..3 * 32], [0; 96]);
    }

    #[test]
    fn any_aspect_fits_inside_any_other_and_touches_two_sides() {
        for (w, h) in [
            (16, 16),
            (17, 4000),
            (4000, 17),
            (517, 389),
            (704, 384),
            (701, 385),
        ] {
            for target in [size(704, 384), size(64, 64), size(64, 720)] {
                let i = inside(size(w, h), target);
                assert!(
                    (1..=target.width).contains(&i.width)
                        && (1..=target.height).contains(&i.height),
                    "{w}x{h} inside {target}: {i}"
                );
                assert!(i.width == target.width || i.height == target.height);
            }
        }
    }

    #[test]
    fn content_decides_not_the_extension() {
        let (_dir, path) = saved(&gradient(40, 30).into(), "picture.txt", ImageFormat::Png);
        assert_eq!(
            Picture::open(&path).unwrap().rgb,
            gradient(40, 30).into_raw()
        );
    }

    #[test]
    fn transparency_is_flattened_over_black_and_opaque_pixels_are_kept() {
        let image = RgbaImage::from_fn(20, 20, |x, _| {
            Rgba([200, 100, 50, if x < 10 { 255 } else { 128 }])
        });
        let (_dir, path) = saved(&image.into(), "a.png", ImageFormat::Png);
        let picture = Picture::open(&path).unwrap();
        assert_eq!(picture.rgb[..3], [200, 100, 50]);
        assert_eq!(picture.rgb[3 * 15..3 * 16], [100, 50, 25]);
    }

    #[test]
    fn every_depth_and_format_comes_out_as_rgb() {
        let rgb = DynamicImage::from(gradient(32, 24));
        for (image, format) in [
            (DynamicImage::from(rgb.to_luma8()), ImageFormat::Png),
            (DynamicImage::from(rgb.to_luma16()), ImageFormat::Png),
            (DynamicImage::from(rgb.to_rgb16()), ImageFormat::Png),
            (DynamicImage::from(rgb.to_rgba16()), ImageFormat::Png),
            (DynamicImage::from(rgb.to_luma_alpha8()), ImageFormat::Png),
            (rgb.clone(), ImageFormat::Bmp),
            (rgb.clone(), ImageFormat::Tiff),
            (rgb.clone(), ImageFormat::WebP),
            (rgb.clone(), ImageFormat::Pnm),
            (rgb.clone(), ImageFormat::Jpeg),
        ] {
            let (_dir, path) = saved(&image, "p", format);
            let picture = Picture::open(&path).unwrap();
            assert_eq!(
                (picture.width, picture.height, picture.rgb.len()),
                (32, 24, 3 * 32 * 24),
                "{format:?}"
            );
            let want = image.to_rgb8().into_raw();
            let worst = picture
                .rgb
                .iter()
                .zip(&want)
                .map(|(a, b)| a.abs_diff(*b))
                .max()
                .unwrap();
            assert!(
                worst <= if format == ImageFormat::Jpeg { 40 } else { 1 },
                "{format:?}: {worst}"
            );
        }
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        let mut jpeg = Vec::new();
        let image = gradient(40, 20);
        JpegEncoder::new_with_quality(&mut jpeg, 95)
            .write_image(&image, 40, 20, ExtendedColorType::Rgb8)
            .unwrap();
        // APP1 with one IFD entry: orientation (0x0112) = 6, turn clockwise.
        let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\
            \0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let turned: Vec<u8> = [&jpeg[..2], exif, &jpeg[2..]].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turned.jpg");
        std::fs::write(&path, turned).unwrap();
        assert_eq!(Picture::open(&path).unwrap().size(), size(20, 40));
    }

    #[test]
    fn a_bad_file_is_an_error_that_names_the_file_and_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().write_all(bytes).unwrap();
            let error = Picture::open(&path).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Input);
            let text = error.to_string();
            assert!(
                text.starts_with(path.to_str().unwrap()) && !text.contains('\n'),
                "{text}"
            );
            text
        };
        let mut png = std::io::Cursor::new(Vec::new());
        gradient(64, 64)
            .write_to(&mut png, ImageFormat::Png)
            .unwrap();
        let png = png.into_inner();
        let pnm = |w: u32, h: u32| format!("P6\n{w} {h}\n255\n");
        assert!(open("empty.png", b"").ends_with("the file is empty"));
        assert!(open("text.png", b"hello world, not a picture").contains("found none of these"));
        assert!(open("truncated.png", &png[..png.len() / 2]).contains("damaged"));
        assert!(open("header.png", &png[..20]).contains("damaged"));
        assert!(open("zero.ppm", pnm(0, 10).as_bytes()).contains(": "));
        assert!(
            open("dot.ppm", (pnm(1, 1) + "abc").as_bytes()).contains("at least 16 x 16, got 1 x 1")
        );
        assert!(
            open("wide.ppm", pnm(20_000, 20).as_bytes())
                .contains("at most 16384 a side and 128 megapixels, got 20000 x 20")
        );
        assert!(open("bomb.ppm", pnm(16_000, 16_000).as_bytes()).contains("got 16000 x 16000"));
        assert!(matches!(
            Picture::open(&dir.path().join("none")),
            Err(PictureError::Open { .. })
        ));
        assert!(matches!(
            Picture::open(dir.path()),
            Err(PictureError::Folder { .. })
        ));
    }

    #[test]
    fn pixels_are_planar_and_span_minus_one_to_one() {
        let picture = Picture {
            width: 2,
            height: 1,
            rgb: vec![0, 128, 255, 255, 0, 1],
        };
        assert_eq!(
            picture.pixels(),
            [
                -1.0,
                1.0,
                128.0 / 255.0 * 2.0 - 1.0,
                -1.0,
                1.0,
                1.0 / 255.0 * 2.0 - 1.0
            ]
        );
    }
}
