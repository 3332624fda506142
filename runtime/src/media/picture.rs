//! Reads the reference picture, turns it upright, flattens it to RGB and fits it into the video.
//!
//! For opaque 8-bit pictures in sRGB every level equals the reference's, which is
//! `Image.open(path).convert("RGB")` with torchvision's `Resize` and `CenterCrop`. There are three
//! differences. This room obeys the EXIF orientation. It converts the colours of an ICC profile to
//! sRGB ([`Icc`]); PIL ignores profiles. It lays transparent pixels over a colour ([`Background`]);
//! PIL drops the alpha channel, so the hidden colours show. As in PIL, 16-bit colours keep their
//! high byte. A JPEG differs by 0.3 levels on average and by a few at colour edges, because another
//! decoder reads it.
//!
//! A file that is cut is refused. Decoders fill the missing part, and nobody wants such a video.

mod error;
mod fitting;
#[cfg(test)]
mod fixtures;
mod flatten;
mod jpeg;
mod kind;
mod limits;
mod open;
mod profile;
mod resample;
mod tiff;
mod whole;

use std::path::Path;

use image::RgbImage;

use crate::numbers::size::Size;

pub(crate) use error::PictureError;
pub use fitting::Fit;
pub(crate) use fitting::{Coverage, Shown};
pub use flatten::Background;
pub(crate) use open::PictureNotice;
pub use open::{Icc, Reading};

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
    /// Opens a file by its content and not its name, with notices. Turns the picture upright and
    /// flattens it.
    ///
    /// # Errors
    /// A file that is missing, empty, cut, damaged, of another kind, fully transparent, too small,
    /// or too large by its header.
    pub(crate) fn open(
        path: &Path,
        reading: Reading,
    ) -> Result<(Self, Vec<PictureNotice>), PictureError> {
        let (picture, notices) = open::open(path, reading)?;
        Ok((picture.into(), notices))
    }

    /// Returns the width and the height.
    pub fn size(&self) -> Size {
        Size {
            width: self.width,
            height: self.height,
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
}

impl From<RgbImage> for Picture {
    fn from(picture: RgbImage) -> Self {
        Self {
            width: picture.width() as usize,
            height: picture.height() as usize,
            rgb: picture.into_raw(),
        }
    }
}

impl From<Picture> for RgbImage {
    fn from(picture: Picture) -> Self {
        Self::from_raw(picture.width as u32, picture.height as u32, picture.rgb)
            .expect("a picture has the bytes of its size")
    }
}

#[cfg(test)]
mod tests {
    use engines::error_kind::ErrorKind;
    use image::{DynamicImage, ImageFormat};

    use super::fitting::{inside, offsets, short_side};
    use super::fixtures::{gradient, opened, saved};
    use super::*;
    use crate::fixtures::golden;
    use crate::numbers::size::SizeMode;

    fn size(width: usize, height: usize) -> Size {
        Size { width, height }
    }

    #[test]
    fn the_golden_picture_is_pillows_to_the_level() {
        for set in golden::sets() {
            let picture = opened(&set.input("ref.png"));
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
        assert_eq!(opened(&path).rgb, gradient(40, 30).into_raw());
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
            let picture = opened(&path);
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
    fn a_bad_file_is_an_error_that_names_the_file_and_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = Picture::open(&path, Reading::default()).expect_err(name);
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
        assert!(open("truncated.png", &png[..png.len() / 2]).contains("its part IDAT lacks"));
        assert!(open("header.png", &png[..20]).contains("its part IHDR lacks 13 bytes"));
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
            Picture::open(&dir.path().join("none"), Reading::default()),
            Err(PictureError::Open { .. })
        ));
        assert!(matches!(
            Picture::open(dir.path(), Reading::default()),
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
