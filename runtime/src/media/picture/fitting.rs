//! Fits a picture into the size of a video: scales, crops and pads it.

use super::Picture;
use super::resample::{Lines, resample, taps};
use crate::numbers::size::{Size, SizeMode};

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

/// The part of a picture that a video shows, and the part of the video that it fills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Coverage {
    /// Share of the picture's area that is cut off, from 0 to 1.
    pub(crate) cut: f64,
    /// Columns at the left and rows at the top of the video that are black, in pixels.
    pub(crate) bars: (usize, usize),
}

impl Coverage {
    /// Computes the coverage of a picture of size `picture` in a video of size `video`.
    pub(crate) fn new(picture: Size, video: Size, mode: SizeMode, fit: Fit) -> Self {
        let area = |size: Size| (size.width * size.height) as f64;
        let clip = |of: Size| Size {
            width: of.width.min(video.width),
            height: of.height.min(video.height),
        };
        let (shown, whole) = match (mode, fit) {
            (SizeMode::Area, _) => {
                let scaled = short_side(picture, video.width.min(video.height));
                (clip(scaled), scaled)
            }
            (SizeMode::Exact, Fit::Crop) => (inside(video, picture), picture),
            (SizeMode::Exact, Fit::Pad) => (inside(picture, video), inside(picture, video)),
        };
        let bars = match (mode, fit) {
            (SizeMode::Exact, Fit::Crop) => (0, 0),
            _ => (
                offsets(shown.width, video.width).0,
                offsets(shown.height, video.height).0,
            ),
        };
        Self {
            cut: 1.0 - area(shown) / area(whole),
            bars,
        }
    }
}

/// The part of a picture under the frame of a video, in the picture's pixels. Black bars reach
/// beyond the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shown {
    /// Columns left of it; negative for a bar.
    pub(crate) left: f32,
    /// Rows above it; negative for a bar.
    pub(crate) top: f32,
    /// Columns.
    pub(crate) width: f32,
    /// Rows.
    pub(crate) height: f32,
}

impl Shown {
    /// Computes the part of a picture of size `picture` that a video of size `video` shows.
    pub(crate) fn new(picture: Size, video: Size, mode: SizeMode, fit: Fit) -> Self {
        // The size of the whole picture when it has the scale of the video.
        let scaled = match (mode, fit) {
            (SizeMode::Area, _) => short_side(picture, video.width.min(video.height)),
            (SizeMode::Exact, Fit::Pad) => inside(picture, video),
            (SizeMode::Exact, Fit::Crop) => {
                let shown = inside(video, picture);
                let first = |from, to| offsets(from, to).1 as f32;
                return Self {
                    left: first(picture.width, shown.width),
                    top: first(picture.height, shown.height),
                    width: shown.width as f32,
                    height: shown.height as f32,
                };
            }
        };
        let side = |of: usize, scaled: usize, video: usize| {
            let (bar, cut) = offsets(scaled, video);
            let scale = of as f32 / scaled as f32;
            ((cut as f32 - bar as f32) * scale, video as f32 * scale)
        };
        let (left, width) = side(picture.width, scaled.width, video.width);
        let (top, height) = side(picture.height, scaled.height, video.height);
        Self {
            left,
            top,
            width,
            height,
        }
    }
}

impl Picture {
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

/// Returns the size of torchvision's `Resize(short)`.
///
/// The shorter side becomes `short`, the longer one `int(short * longer / shorter)`.
pub(super) fn short_side(of: Size, short: usize) -> Size {
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
pub(super) fn inside(of: Size, target: Size) -> Size {
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
pub(super) fn offsets(from: usize, to: usize) -> (usize, usize) {
    let over = from.saturating_sub(to);
    let half_to_even = over / 2 + usize::from(over % 4 == 3);
    (to.saturating_sub(from) / 2, half_to_even)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_says_how_much_is_cut_and_how_wide_the_bars_are() {
        let size = |width, height| Size { width, height };
        let of = |picture, video, mode, fit| Coverage::new(picture, video, mode, fit);
        let (wide, video) = (size(2000, 100), size(128, 64));
        let crop = of(wide, video, SizeMode::Exact, Fit::Crop);
        // 200 of 2000 columns are seen.
        assert_eq!((crop.cut, crop.bars), (0.9, (0, 0)));
        let pad = of(wide, video, SizeMode::Exact, Fit::Pad);
        // 6 of 64 rows are not black.
        assert_eq!((pad.cut, pad.bars), (0.0, (0, 29)));
        let same = of(size(256, 128), video, SizeMode::Exact, Fit::Crop);
        assert_eq!((same.cut, same.bars), (0.0, (0, 0)));
        // Scaled to 85 rows by 64 columns: 21 columns at each side are black, 21 rows are cut.
        let area = of(size(300, 400), video, SizeMode::Area, Fit::Crop);
        assert_eq!(area.bars, (32, 0));
        assert!((area.cut - 21.0 / 85.0).abs() < 1e-9, "{area:?}");
    }
}
