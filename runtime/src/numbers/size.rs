//! Reads `--size` and computes the size of the video.
//!
//! This file opens no picture. It never rounds a size without an error or a mode that allows it.

use std::fmt;

use engines::error_kind::ErrorKind;

/// Pixels of one latent row or column (the VAE's spatial stride).
pub(crate) const LATENT_STRIDE: usize = 8;
/// Pixels of one token row or column: the VAE's stride times the patch size.
pub(crate) const TOKEN_STRIDE: usize = 16;
/// Smallest side of a video.
pub(crate) const MIN_SIDE: usize = 64;
/// Largest side of a video.
pub(crate) const MAX_SIDE: usize = 8192;
/// Unit of the sides of a video in area mode (reference `get_size_less_than_area`, `divisor`).
const AREA_STRIDE: usize = 64;

/// Sizes of upstream's `SIZE_CONFIGS`, for hints only.
const KNOWN: [(usize, usize); 12] = [
    (384, 256),
    (480, 832),
    (688, 368),
    (704, 384),
    (704, 1024),
    (704, 1280),
    (720, 400),
    (720, 1280),
    (832, 480),
    (1024, 704),
    (1280, 704),
    (1280, 720),
];

/// The meaning of `--size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SizeMode {
    /// The video has exactly this size; the picture is cropped or padded to it.
    #[default]
    Exact,
    /// The size is an area, and the picture gives the aspect ratio, as upstream does.
    Area,
}

/// A width and a height in pixels, written `W*H`.
///
/// ```
/// use runtime::numbers::{Size, SizeMode};
///
/// let size: Size = "704*384".parse()?;
/// assert_eq!("704x384".parse::<Size>()?, size);
/// assert_eq!((size.latent(), size.tokens()), ((48, 88), (24, 44)));
///
/// let picture: Size = "1024*1024".parse()?;
/// assert_eq!(size.effective(SizeMode::Exact, picture)?, size);
/// assert_eq!(size.effective(SizeMode::Area, picture)?.to_string(), "512*512");
/// let error = "704".parse::<Size>().unwrap_err().to_string();
/// assert_eq!(error, "size wants W*H such as 704*384, got `704`; did you mean `704*384`?");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Size {
    /// Columns of pixels.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
}

/// A size that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text is not a size.
    #[error("size wants W*H such as 704*384, got `{got}`; did you mean `{hint}`?")]
    Malformed {
        /// Text that was given.
        got: String,
        /// Nearest known size.
        hint: Size,
    },
    /// A side is too small or too large.
    #[error(
        "size wants both sides within {MIN_SIDE} and {MAX_SIDE}, got {got}; did you mean `{hint}`?"
    )]
    Range {
        /// Size that was given.
        got: String,
        /// Nearest known size.
        hint: Size,
    },
    /// A side is not a whole number of tokens.
    #[error(
        "size mode exact wants multiples of {TOKEN_STRIDE}, got {got}; \
         nearest are {below} and {above}, or use size mode area"
    )]
    Multiple {
        /// Size that was given.
        got: Size,
        /// Nearest smaller size.
        below: Size,
        /// Nearest larger size.
        above: Size,
    },
    /// No size of the picture's aspect ratio has so small an area.
    #[error(
        "size mode area wants an area of at least {} for a picture of {picture}, got {got}: \
         no multiple of {AREA_STRIDE} fits",
        AREA_STRIDE * AREA_STRIDE
    )]
    NoFit {
        /// Size that was given.
        got: Size,
        /// Size of the picture.
        picture: Size,
    },
}

impl SizeError {
    /// Returns `Input` where the picture does not fit, and `Usage` otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoFit { .. } => ErrorKind::Input,
            _ => ErrorKind::Usage,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}*{}", self.width, self.height)
    }
}

impl std::str::FromStr for Size {
    type Err = SizeError;

    /// Reads `W*H`. It also takes `x`, `X` or `×` for `*`, spaces, quotes and full-width forms.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let plain: String = text
            .chars()
            .map(half_width)
            .filter(|c| !c.is_whitespace())
            .collect();
        let plain = plain.trim_matches(['"', '\'', '\u{201c}', '\u{201d}']);
        let malformed = || SizeError::Malformed {
            got: shorten(text),
            hint: hint(plain),
        };
        let (width, height) = plain.split_once('*').ok_or_else(malformed)?;
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(width) || !digits(height) {
            return Err(malformed());
        }
        let range = || SizeError::Range {
            got: shorten(plain),
            hint: hint(plain),
        };
        let size = Size {
            width: width.parse().map_err(|_| range())?,
            height: height.parse().map_err(|_| range())?,
        };
        let allowed = MIN_SIDE..=MAX_SIDE;
        if allowed.contains(&size.width) && allowed.contains(&size.height) {
            Ok(size)
        } else {
            Err(range())
        }
    }
}

impl Size {
    /// Returns the size of the video for a picture, when `self` is the size asked for.
    ///
    /// # Errors
    /// In exact mode a side is not a multiple of 16. In area mode no size fits the picture.
    pub fn effective(self, mode: SizeMode, picture: Size) -> Result<Size, SizeError> {
        match mode {
            SizeMode::Exact => self.exact(),
            SizeMode::Area => self.within_area(picture),
        }
    }

    /// Returns this size, if both sides are multiples of 16.
    fn exact(self) -> Result<Size, SizeError> {
        if self.width.is_multiple_of(TOKEN_STRIDE) && self.height.is_multiple_of(TOKEN_STRIDE) {
            return Ok(self);
        }
        let each = |f: fn(usize) -> usize| Size {
            width: f(self.width),
            height: f(self.height),
        };
        let below = each(|n| n / TOKEN_STRIDE * TOKEN_STRIDE);
        let above = each(|n| n.div_ceil(TOKEN_STRIDE) * TOKEN_STRIDE);
        Err(SizeError::Multiple {
            got: self,
            below,
            above,
        })
    }

    /// Returns the reference's size for a picture, with this size as the area.
    fn within_area(self, picture: Size) -> Result<Size, SizeError> {
        let none = SizeError::NoFit { got: self, picture };
        match less_than_area(picture, self.width * self.height) {
            Some(size) if size.width > 0 && size.height > 0 => Ok(size),
            _ => Err(none),
        }
    }

    /// Returns the rows and columns of latents, `(H/8, W/8)`.
    pub fn latent(self) -> (usize, usize) {
        (self.height / LATENT_STRIDE, self.width / LATENT_STRIDE)
    }

    /// Returns the rows and columns of tokens, `(h, w) = (H/16, W/16)`.
    pub fn tokens(self) -> (usize, usize) {
        (self.height / TOKEN_STRIDE, self.width / TOKEN_STRIDE)
    }
}

/// Returns the largest of 100 scaled sizes that keeps within `area`, in pixels.
///
/// The sides are rounded up to multiples of 64 before the comparison. A side may be 0. The result
/// is `None` where the reference takes the root of a negative number. Source: reference
/// `WanS2V.get_size_less_than_area`, with its `2ac` under the root.
pub(crate) fn less_than_area(picture: Size, area: usize) -> Option<Size> {
    let (h, w) = (picture.height, picture.width);
    let (low, high) = if h * w <= area {
        (0.1, 1.0)
    } else {
        scale_bounds(h, w, area)?
    };
    let up =
        |side: usize, scale: f64| ((side as f64 * scale) as usize).next_multiple_of(AREA_STRIDE);
    (0..100)
        .map(|i| high - (high - low) * f64::from(i) / 100.0)
        .map(|scale| Size {
            width: up(w, scale),
            height: up(h, scale),
        })
        .find(|s| s.width * s.height <= area)
        .or_else(|| Some(by_aspect(h, w, area)))
}

/// Returns the smallest and the largest scale that the reference tries for a large picture.
fn scale_bounds(h: usize, w: usize, area: usize) -> Option<(f64, f64)> {
    let d = AREA_STRIDE as i128 - 1;
    let (a, b, c) = ((h * w) as i128, d * (h + w) as i128, d * d - area as i128);
    let under = b * b - 2 * a * c;
    let low = (under >= 0).then(|| (-(b as f64) + (under as f64).sqrt()) / (2 * a) as f64)?;
    Some((low, (area as f64 / a as f64).sqrt()))
}

/// Returns the reference's fallback: sides of the aspect ratio, rounded down to multiples of 64.
fn by_aspect(h: usize, w: usize, area: usize) -> Size {
    let aspect = w as f64 / h as f64;
    let floor = |x: f64| (x / AREA_STRIDE as f64).floor() as usize * AREA_STRIDE;
    let size = Size {
        width: floor((area as f64 * aspect).sqrt()),
        height: floor((area as f64 / aspect).sqrt()),
    };
    if size.width >= w || size.height >= h {
        return Size {
            width: w / AREA_STRIDE * AREA_STRIDE,
            height: h / AREA_STRIDE * AREA_STRIDE,
        };
    }
    size
}

/// Turns full-width forms into ASCII, and every multiplication sign into `*`.
fn half_width(c: char) -> char {
    let ascii = match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{3000}' => ' ',
        c => c,
    };
    if matches!(ascii, 'x' | 'X' | '×' | '✕' | '∗' | '﹡') {
        '*'
    } else {
        ascii
    }
}

/// Returns the known size nearest to the numbers in `text`.
fn hint(text: &str) -> Size {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse::<usize>().ok().filter(|&n| n > 0));
    let (width, height) = (numbers.next(), numbers.next());
    let far = |side: usize, wanted: Option<usize>| wanted.map_or(0, |n| n.abs_diff(side));
    let distance = |&(w, h): &(usize, usize)| far(w, width).saturating_add(far(h, height));
    let default = (704, 384);
    let (width, height) = match width {
        None => default,
        Some(_) => KNOWN.into_iter().min_by_key(distance).unwrap_or(default),
    };
    Size { width, height }
}

/// Returns the beginning of a long text, for an error.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: usize, height: usize) -> Size {
        Size { width, height }
    }

    #[test]
    fn every_way_to_write_a_size_means_the_same() {
        for text in [
            "704*384",
            "704x384",
            "704X384",
            "704×384",
            " 704 * 384 ",
            "７０４＊３８４",
            "７０４×３８４",
            "“704*384”",
            "704　ｘ　384",
        ] {
            assert_eq!(text.parse(), Ok(size(704, 384)), "{text}");
        }
    }

    #[test]
    fn a_bad_size_says_what_was_wanted_and_got() {
        for (text, message) in [
            (
                "704",
                "size wants W*H such as 704*384, got `704`; did you mean `704*384`?",
            ),
            (
                "704*",
                "size wants W*H such as 704*384, got `704*`; did you mean `704*384`?",
            ),
            (
                "-1*384",
                "size wants W*H such as 704*384, got `-1*384`; did you mean `384*256`?",
            ),
            (
                "",
                "size wants W*H such as 704*384, got ``; did you mean `704*384`?",
            ),
            (
                "688x36o",
                "size wants W*H such as 704*384, got `688x36o`; did you mean `688*368`?",
            ),
            (
                "0*0",
                "size wants both sides within 64 and 8192, got 0*0; did you mean `704*384`?",
            ),
            (
                "704*384*3",
                "size wants W*H such as 704*384, got `704*384*3`; did you mean `704*384`?",
            ),
            (
                "99999999999999999999*64",
                "size wants both sides within 64 and 8192, got 99999999999999999999*64; \
                 did you mean `384*256`?",
            ),
        ] {
            let error = text.parse::<Size>().expect_err(text);
            assert_eq!(error.to_string(), message);
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn exact_mode_wants_multiples_of_16_and_names_the_nearest() {
        assert_eq!(
            size(688, 368).effective(SizeMode::Exact, size(1, 1)),
            Ok(size(688, 368))
        );
        let error = size(700, 384)
            .effective(SizeMode::Exact, size(9, 9))
            .unwrap_err();
        assert_eq!(
            error,
            SizeError::Multiple {
                got: size(700, 384),
                below: size(688, 384),
                above: size(704, 384)
            }
        );
    }

    #[test]
    fn area_mode_follows_upstreams_rule() {
        for ((h, w), area, want) in [
            ((389, 517), size(128, 64), size(128, 64)),
            ((389, 517), size(64, 64), size(64, 64)),
            ((389, 517), size(192, 128), size(192, 128)),
            ((720, 1280), size(688, 368), size(640, 384)),
            ((720, 1280), size(704, 384), size(704, 384)),
            ((1024, 1024), size(688, 368), size(448, 448)),
        ] {
            assert_eq!(
                area.effective(SizeMode::Area, size(w, h)),
                Ok(want),
                "{h}x{w} in {area}"
            );
        }
    }

    #[test]
    fn a_picture_that_fits_no_multiple_of_64_is_an_error() {
        let error = size(64, 64)
            .effective(SizeMode::Area, size(3000, 10))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
    }

    #[test]
    fn the_size_table_of_the_reference_is_met() {
        let tables = crate::fixtures::golden::sets()
            .into_iter()
            .map(|set| set.i64s("image", "size_table"));
        for row in tables.flat_map(|table| table.chunks(5).map(<[i64]>::to_vec).collect::<Vec<_>>())
        {
            let [h, w, area, out_h, out_w] = [0, 1, 2, 3, 4].map(|i| row[i] as usize);
            assert_eq!(
                less_than_area(size(w, h), area),
                Some(size(out_w, out_h)),
                "{h}x{w} in {area}"
            );
        }
    }

    #[test]
    fn latents_are_an_eighth_and_tokens_a_sixteenth() {
        assert_eq!(size(704, 384).latent(), (48, 88));
        assert_eq!(size(704, 384).tokens(), (24, 44));
    }
}
