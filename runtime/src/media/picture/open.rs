//! Opens a picture: reads the file, decodes it whole, turns it upright, and makes sRGB of it.

use std::fmt;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::error::ImageError;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage,
};
use zune_jpeg::errors::DecodeErrors;

use super::error::PictureError;
use super::flatten::{Background, split};
use super::limits::{MAX_BYTES, MAX_PIXELS, MAX_SIDE, MIN_SIDE};
use super::profile::{self, Colours, Converted};
use super::{jpeg, kind, whole};

/// The use of a picture's ICC profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Icc {
    /// Convert the colours to sRGB.
    #[default]
    Convert,
    /// Take the numbers for sRGB, as PIL's `Image.open` and so the reference does.
    Ignore,
}

/// How to read a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Use of the ICC profile.
    pub icc: Icc,
    /// Ground under transparent pixels.
    pub background: Background,
}

impl Reading {
    /// The way of the reference, which is PIL's `Image.open(path).convert("RGB")`.
    pub const REFERENCE: Self = Self {
        icc: Icc::Ignore,
        background: Background::Drop,
    };
}

/// A fact about a picture that the user may not expect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PictureNotice {
    /// The file has more pictures, and only the first counts.
    Frames {
        /// Whether the pictures are pages and no animation.
        pages: bool,
    },
    /// The colours were converted to sRGB.
    Converted {
        /// Name of the profile.
        profile: String,
    },
    /// The profile has no effect.
    UnusableProfile {
        /// Reason.
        reason: String,
    },
    /// Pixels are transparent.
    Transparent {
        /// Share of pixels that are not opaque, from 0 to 1.
        share: f64,
        /// Ground under them.
        background: Background,
    },
}

impl fmt::Display for PictureNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames { pages: false } => {
                f.write_str("picture is an animation; its first frame is used")
            }
            Self::Frames { pages: true } => {
                f.write_str("picture has several pages; its first page is used")
            }
            Self::Converted { profile } => write!(
                f,
                "colours of the picture are converted to sRGB from its profile {profile}; \
                 --icc ignore keeps the numbers, as upstream does"
            ),
            Self::UnusableProfile { reason } => {
                write!(f, "colour profile of the picture is ignored: {reason}")
            }
            Self::Transparent {
                share,
                background: Background::Drop,
            } => write!(
                f,
                "{:.0} % of the picture is transparent; its hidden colours show",
                up(*share)
            ),
            Self::Transparent { share, background } => write!(
                f,
                "{:.0} % of the picture is transparent and becomes {background}; --background \
                 names another colour, or drop for the hidden colours, as upstream does",
                up(*share)
            ),
        }
    }
}

/// Returns a share in percent, and no 0 for any that is above.
fn up(share: f64) -> f64 {
    (100.0 * share).max(1.0)
}

/// Opens a picture, with notices.
pub(super) fn open(
    path: &Path,
    reading: Reading,
) -> Result<(RgbImage, Vec<PictureNotice>), PictureError> {
    let file = Source::read(path)?;
    let Decoded {
        mut image,
        orientation,
        profile,
        inks,
        frames,
    } = match file.format {
        ImageFormat::Jpeg => file.decode_jpeg(reading.icc)?,
        _ => file.decode(reading.icc)?,
    };
    let mut notices = Vec::new();
    if frames > 1 {
        let pages = file.format == ImageFormat::Tiff;
        notices.push(PictureNotice::Frames { pages });
    }
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (colours, alpha) = if inks {
        (Colours::Inks(image.into_bytes()), None)
    } else {
        split(image)
    };
    let (mut rgb, notice) = srgb(colours, profile.as_deref());
    notices.extend(notice);
    if let Some(alpha) = alpha {
        let background = reading.background;
        if alpha.hides_all() && background != Background::Drop {
            return Err(PictureError::Transparent {
                path: path.to_owned(),
            });
        }
        rgb = alpha.over(background, rgb);
        let share = alpha.share();
        notices.push(PictureNotice::Transparent { share, background });
    }
    let picture = RgbImage::from_raw(width as u32, height as u32, rgb);
    Ok((picture.expect("three bytes a pixel"), notices))
}

/// Returns RGB levels in sRGB.
fn srgb(colours: Colours, profile: Option<&[u8]>) -> (Vec<u8>, Option<PictureNotice>) {
    let Some(profile) = profile else {
        return (colours.plain(), None);
    };
    match colours.converted(profile) {
        Converted::Same(rgb) => (rgb, None),
        Converted::From(profile, rgb) => (rgb, Some(PictureNotice::Converted { profile })),
        Converted::Unusable(reason, rgb) => (rgb, Some(PictureNotice::UnusableProfile { reason })),
    }
}

/// A picture as its decoder gives it.
struct Decoded {
    image: DynamicImage,
    orientation: Orientation,
    /// Profile to apply.
    profile: Option<Vec<u8>>,
    /// Whether the four channels are inks.
    inks: bool,
    frames: usize,
}

/// A file of a known format.
struct Source<'a> {
    path: &'a Path,
    format: ImageFormat,
    bytes: Vec<u8>,
}

impl<'a> Source<'a> {
    /// Reads a file. One of another kind is refused by its first bytes.
    fn read(path: &'a Path) -> Result<Self, PictureError> {
        /// Bytes that tell most kinds.
        const HEAD: u64 = 4096;
        let open = |source| PictureError::Open {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(open)?;
        if file.metadata().map_err(open)?.is_dir() {
            return Err(PictureError::Folder {
                path: path.to_owned(),
            });
        }
        let mut bytes = Vec::new();
        file.by_ref()
            .take(HEAD)
            .read_to_end(&mut bytes)
            .map_err(open)?;
        if bytes.is_empty() {
            return Err(PictureError::Empty {
                path: path.to_owned(),
            });
        }
        kind::format(path, &bytes)?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(open)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(PictureError::Long {
                path: path.to_owned(),
            });
        }
        // A TIFF file may have its directory at its end.
        let format = kind::format(path, &bytes)?;
        Ok(Self {
            path,
            format,
            bytes,
        })
    }

    /// Decodes a file of any format but JPEG.
    fn decode(&self, icc: Icc) -> Result<Decoded, PictureError> {
        let refused = |error: ImageError| self.refused(&error);
        let mut reader = ImageReader::with_format(Cursor::new(&self.bytes), self.format);
        reader.limits(limits());
        let mut decoder = reader.into_decoder().map_err(refused)?;
        check_sides(self.path, decoder.dimensions())?;
        let frames = self.frames()?;
        decoder.set_limits(limits()).map_err(refused)?;
        let wanted = icc == Icc::Convert;
        let profile = decoder.icc_profile().ok().flatten().filter(|_| wanted);
        let cmyk = matches!(
            decoder.original_color_type(),
            ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16
        );
        if cmyk && profile.as_deref().is_some_and(profile::is_of_inks) {
            return Err(PictureError::Inks {
                path: self.path.to_owned(),
                to_do: kind::converted(self.path),
            });
        }
        Ok(Decoded {
            orientation: decoder.orientation().unwrap_or(Orientation::NoTransforms),
            image: DynamicImage::from_decoder(decoder).map_err(refused)?,
            profile,
            inks: false,
            frames,
        })
    }

    /// Decodes a JPEG file, to inks if its profile describes inks.
    fn decode_jpeg(&self, icc: Icc) -> Result<Decoded, PictureError> {
        let damaged = |error: DecodeErrors| self.damaged(&error.to_string());
        let header = jpeg::header(&self.bytes).map_err(damaged)?;
        check_sides(self.path, header.sides)?;
        let frames = self.frames()?;
        let wanted = icc == Icc::Convert;
        let profile = header.profile.clone().filter(|_| wanted);
        let inks = header.is_cmyk() && profile.as_deref().is_some_and(profile::is_of_inks);
        let image = if inks {
            header.inks(&self.bytes)
        } else {
            header.pixels(&self.bytes)
        };
        Ok(Decoded {
            image: image.map_err(damaged)?,
            orientation: header.orientation,
            profile,
            inks,
            frames,
        })
    }

    /// Counts the frames of a whole file.
    fn frames(&self) -> Result<usize, PictureError> {
        whole::frames(self.format, &self.bytes).map_err(|missing| PictureError::Cut {
            path: self.path.to_owned(),
            missing,
        })
    }

    /// Turns the decoder's refusal into ours. A form that it does not know can be converted.
    fn refused(&self, error: &ImageError) -> PictureError {
        match error {
            ImageError::Unsupported(form) => PictureError::Form {
                path: self.path.to_owned(),
                reason: form.to_string(),
                to_do: kind::converted(self.path),
            },
            other => self.damaged(&other.to_string()),
        }
    }

    /// Returns the missing part if the file is cut, else the decoder's reason.
    fn damaged(&self, reason: &str) -> PictureError {
        self.frames().err().unwrap_or_else(|| PictureError::Decode {
            path: self.path.to_owned(),
            reason: one_line(reason),
        })
    }
}

/// Returns a decoder's reason in one line. `zune-jpeg` puts it in quotation marks.
fn one_line(reason: &str) -> String {
    let words: Vec<&str> = reason.trim_matches('"').split_whitespace().collect();
    words.join(" ")
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

#[cfg(test)]
mod tests {
    use image::codecs::gif::GifEncoder;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::codecs::webp::WebPEncoder;
    use image::{
        Frame, GrayImage, ImageEncoder, LumaA, Rgb, RgbImage, Rgba, RgbaImage,
        buffer::ConvertBuffer,
    };
    use moxcms::ColorProfile;

    use super::super::Picture;
    use super::super::fixtures::{flat_jpeg, ink_profile, written};
    use super::*;

    const REFERENCE: Reading = Reading::REFERENCE;

    fn read(bytes: &[u8], reading: Reading) -> Result<(Picture, Vec<String>), String> {
        let (_dir, path) = written(bytes);
        let (picture, notices) = open(&path, reading).map_err(|e| e.to_string())?;
        Ok((
            picture.into(),
            notices.iter().map(ToString::to_string).collect(),
        ))
    }

    fn on(background: Background) -> Reading {
        Reading {
            background,
            ..Reading::default()
        }
    }

    fn png(image: &DynamicImage, profile: Option<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        if let Some(profile) = profile {
            encoder.set_icc_profile(profile).unwrap();
        }
        let (width, height) = (image.width(), image.height());
        let colour = image.color().into();
        encoder
            .write_image(image.as_bytes(), width, height, colour)
            .unwrap();
        bytes
    }

    fn flat(colour: [u8; 3]) -> DynamicImage {
        RgbImage::from_pixel(16, 16, Rgb(colour)).into()
    }

    /// Checks the first pixel, give or take one level.
    #[track_caller]
    fn near(picture: &Picture, want: [u8; 3]) {
        let got = &picture.rgb[..3];
        let worst = got.iter().zip(want).map(|(a, b)| a.abs_diff(b)).max();
        assert!(worst <= Some(1), "got {got:?}, want {want:?}");
    }

    #[test]
    fn a_wide_gamut_becomes_srgb_and_the_references_way_keeps_the_numbers() {
        // The right values come from the primaries and curves of the standards, in Python.
        for (profile, colour, want) in [
            (
                ColorProfile::new_display_p3(),
                [200, 100, 50],
                [215, 93, 31],
            ),
            (ColorProfile::new_display_p3(), [60, 180, 90], [0, 183, 78]),
            (ColorProfile::new_display_p3(), [90, 90, 160], [90, 90, 165]),
            (
                ColorProfile::new_adobe_rgb(),
                [200, 100, 50],
                [227, 100, 42],
            ),
            (ColorProfile::new_adobe_rgb(), [90, 90, 160], [90, 90, 164]),
        ] {
            let bytes = png(&flat(colour), Some(profile.encode().unwrap()));
            let (picture, notices) = read(&bytes, Reading::default()).unwrap();
            near(&picture, want);
            assert!(notices[0].contains("converted to sRGB"), "{notices:?}");
            let (picture, notices) = read(&bytes, REFERENCE).unwrap();
            assert_eq!((&picture.rgb[..3], notices.len()), (&colour[..], 0));
        }
    }

    #[test]
    fn an_srgb_profile_changes_no_level() {
        let image = super::super::fixtures::gradient(64, 64);
        let profile = ColorProfile::new_srgb().encode().unwrap();
        let (picture, notices) = read(
            &png(&image.clone().into(), Some(profile)),
            Reading::default(),
        )
        .unwrap();
        assert!(picture.rgb == image.into_raw() && notices.is_empty());
    }

    #[test]
    fn a_grey_profile_is_applied_to_grey_and_ignored_with_colours() {
        let profile = || Some(ColorProfile::new_gray_with_gamma(1.8).encode().unwrap());
        for (level, want) in [(30, 40), (100, 119), (200, 210)] {
            let grey = GrayImage::from_pixel(16, 16, image::Luma([level]));
            let (picture, _) = read(&png(&grey.into(), profile()), Reading::default()).unwrap();
            near(&picture, [want; 3]);
        }
        let (picture, notices) =
            read(&png(&flat([9, 8, 7]), profile()), Reading::default()).unwrap();
        assert_eq!(picture.rgb[..3], [9, 8, 7]);
        assert!(
            notices[0].contains("ignored: it describes Gray colours"),
            "{notices:?}"
        );
    }

    #[test]
    fn a_profile_that_cannot_be_read_is_ignored_with_a_notice() {
        let bytes = png(&flat([9, 8, 7]), Some(vec![7; 200]));
        let (picture, notices) = read(&bytes, Reading::default()).unwrap();
        assert_eq!(picture.rgb[..3], [9, 8, 7]);
        assert!(
            notices[0].contains("profile of the picture is ignored"),
            "{notices:?}"
        );
    }

    #[test]
    fn inks_become_srgb_by_their_profile() {
        // The right values are those of the profile's table: Lab to sRGB in Python, and littlecms.
        for (inks, want) in [
            ([0, 0, 0, 0], [255, 255, 255]),
            ([255, 0, 0, 0], [97, 183, 216]),
            ([0, 255, 0, 0], [208, 115, 146]),
            ([0, 255, 255, 0], [205, 100, 44]),
            ([0, 0, 0, 255], [17, 17, 17]),
        ] {
            let stored: [u8; 4] = inks.map(|ink: u8| 255 - ink);
            let bytes = flat_jpeg(&stored, 16, Some(&ink_profile()));
            let (picture, notices) = read(&bytes, Reading::default()).unwrap();
            near(&picture, want);
            assert!(notices[0].contains("profile \"inks\""), "{notices:?}");
        }
        let bytes = flat_jpeg(&[0, 255, 255, 255], 16, Some(&ink_profile()));
        assert_eq!(read(&bytes, REFERENCE).unwrap().0.rgb[..3], [0, 255, 255]);
    }

    #[test]
    fn transparent_pixels_show_the_background() {
        let image = RgbaImage::from_fn(20, 20, |x, _| {
            Rgba([200, 100, 50, if x < 10 { 255 } else { 128 }])
        });
        for (background, want) in [
            (Background::WHITE, [227, 177, 152]),
            (Background::BLACK, [100, 50, 25]),
            (Background::Colour([0, 255, 0]), [100, 177, 25]),
            (Background::Drop, [200, 100, 50]),
        ] {
            let (picture, notices) =
                read(&png(&image.clone().into(), None), on(background)).unwrap();
            assert_eq!(picture.rgb[..3], [200, 100, 50]);
            assert_eq!(picture.rgb[3 * 15..3 * 16], want, "{background}");
            assert!(
                notices[0].starts_with("50 % of the picture is transparent"),
                "{notices:?}"
            );
        }
        assert_eq!(Reading::default().background, Background::WHITE);
        let opaque: RgbaImage = RgbImage::from_pixel(16, 16, Rgb([1, 2, 3])).convert();
        assert!(
            read(&png(&opaque.into(), None), Reading::default())
                .unwrap()
                .1
                .is_empty()
        );
    }

    #[test]
    fn a_picture_that_is_all_transparent_is_refused_unless_hidden_colours_are_asked_for() {
        let image = image::ImageBuffer::from_pixel(16, 16, LumaA([77u8, 0]));
        let bytes = png(&image.into(), None);
        let error = read(&bytes, Reading::default()).unwrap_err();
        assert!(
            error.contains("every pixel is transparent; `--background drop`"),
            "{error}"
        );
        assert_eq!(
            read(&bytes, on(Background::Drop)).unwrap().0.rgb[..3],
            [77; 3]
        );
    }

    #[test]
    fn every_exif_orientation_is_obeyed() {
        // One bright block at the left top of 32 x 16; the place where Pillow's exif_transpose
        // puts it, as (right, bottom), and whether the sides swap.
        let image = RgbImage::from_fn(
            32,
            16,
            |x, y| Rgb([if x < 8 && y < 8 { 255 } else { 0 }; 3]),
        );
        for (orientation, right, bottom, swap) in [
            (1, false, false, false),
            (2, true, false, false),
            (3, true, true, false),
            (4, false, true, false),
            (5, false, false, true),
            (6, true, false, true),
            (7, true, true, true),
            (8, false, true, true),
        ] {
            // One entry: orientation (0x0112), one short.
            let exif = [
                &b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..],
                &[orientation],
                &[0; 6],
            ]
            .concat();
            let rgb = ExtendedColorType::Rgb8;
            let mut files = [Vec::new(), Vec::new(), Vec::new()];
            let [jpeg, png, webp] = &mut files;
            let mut encoder = JpegEncoder::new_with_quality(jpeg, 95);
            encoder.set_exif_metadata(exif.clone()).unwrap();
            encoder.write_image(&image, 32, 16, rgb).unwrap();
            let mut encoder = PngEncoder::new(png);
            encoder.set_exif_metadata(exif.clone()).unwrap();
            encoder.write_image(&image, 32, 16, rgb).unwrap();
            let mut encoder = WebPEncoder::new_lossless(webp);
            encoder.set_exif_metadata(exif).unwrap();
            encoder.write_image(&image, 32, 16, rgb).unwrap();
            for (file, name) in files.iter().zip(["jpeg", "png", "webp"]) {
                let (picture, _) = read(file, Reading::default()).unwrap();
                let sides = if swap { (16, 32) } else { (32, 16) };
                assert_eq!(
                    (picture.width, picture.height),
                    sides,
                    "{name} {orientation}"
                );
                let x = if right { picture.width - 4 } else { 3 };
                let y = if bottom { picture.height - 4 } else { 3 };
                let bright = picture.rgb[3 * (y * picture.width + x)];
                assert!(bright > 200, "{name} {orientation}: {bright}");
            }
        }
    }

    #[test]
    fn the_first_frame_of_an_animation_is_used_with_a_notice() {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for level in [255, 0] {
            let frame = RgbaImage::from_pixel(16, 16, Rgba([level, level, level, 255]));
            encoder.encode_frame(Frame::new(frame)).unwrap();
        }
        drop(encoder);
        let (picture, notices) = read(&bytes, Reading::default()).unwrap();
        assert_eq!(picture.rgb[..3], [255; 3]);
        assert_eq!(
            notices,
            ["picture is an animation; its first frame is used"]
        );
    }
}
