//! Splits a decoded picture into colours and transparency, and lays it over a background.

use std::fmt;
use std::str::FromStr;

use image::DynamicImage;

use super::profile::Colours;

/// The ground under transparent pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// One colour.
    Colour([u8; 3]),
    /// No ground: the hidden colours of transparent pixels show, as PIL's `convert("RGB")` leaves
    /// them.
    Drop,
}

impl Background {
    /// White, as most programs show a transparent picture.
    pub const WHITE: Self = Self::Colour([255; 3]);
    /// Black.
    pub const BLACK: Self = Self::Colour([0; 3]);
}

impl Default for Background {
    fn default() -> Self {
        Self::WHITE
    }
}

impl fmt::Display for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            &Self::WHITE => f.write_str("white"),
            &Self::BLACK => f.write_str("black"),
            Self::Colour([r, g, b]) => write!(f, "#{r:02x}{g:02x}{b:02x}"),
        }
    }
}

/// A text that names no background.
#[derive(Debug, thiserror::Error)]
#[error("wants white, black, drop or a colour such as #20ff80, got `{0}`")]
pub struct BackgroundError(String);

impl FromStr for Background {
    type Err = BackgroundError;

    fn from_str(text: &str) -> Result<Self, BackgroundError> {
        let hex = |text: &str| {
            let digits = text.strip_prefix('#')?;
            let fits = digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let number = u32::from_str_radix(digits, 16).ok().filter(|_| fits)?;
            let [_, rgb @ ..] = number.to_be_bytes();
            Some(Self::Colour(rgb))
        };
        match text {
            "white" => Ok(Self::WHITE),
            "black" => Ok(Self::BLACK),
            "drop" => Ok(Self::Drop),
            _ => hex(text).ok_or_else(|| BackgroundError(text.to_owned())),
        }
    }
}

/// The alpha channel of a picture that has transparent pixels.
pub(super) struct Alpha(Vec<u8>);

impl Alpha {
    /// Returns whether no pixel can be seen.
    pub(super) fn hides_all(&self) -> bool {
        self.0.iter().all(|&a| a == 0)
    }

    /// Returns the share of pixels that are not opaque.
    pub(super) fn share(&self) -> f64 {
        let clear = self.0.iter().filter(|&&a| a < u8::MAX).count();
        clear as f64 / self.0.len() as f64
    }

    /// Lays RGB levels over a background: `round((colour * alpha + ground * (255 - alpha)) / 255)`.
    pub(super) fn over(&self, background: Background, mut rgb: Vec<u8>) -> Vec<u8> {
        if let Background::Colour(ground) = background {
            for (pixel, &alpha) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(&self.0) {
                for (level, ground) in pixel.iter_mut().zip(ground) {
                    let sum = u16::from(*level) * u16::from(alpha)
                        + u16::from(ground) * u16::from(u8::MAX - alpha);
                    *level = ((sum + 127) / 255) as u8;
                }
            }
        }
        rgb
    }
}

/// Splits any kind of pixel into colours of 8 bits and transparency. 16-bit values keep their high
/// byte, as in PIL.
pub(super) fn split(image: DynamicImage) -> (Colours, Option<Alpha>) {
    let high = |v: u16| (v >> 8) as u8;
    match image {
        DynamicImage::ImageRgb8(i) => (Colours::Rgb(i.into_raw()), None),
        DynamicImage::ImageLuma8(i) => (Colours::Grey(i.into_raw()), None),
        DynamicImage::ImageLuma16(i) => {
            let grey = i.into_raw().into_iter().map(high);
            (Colours::Grey(grey.collect()), None)
        }
        DynamicImage::ImageRgb16(i) => {
            let rgb = i.into_raw().into_iter().map(high);
            (Colours::Rgb(rgb.collect()), None)
        }
        DynamicImage::ImageLumaA8(i) => {
            let (grey, alpha) = i.pixels().map(|p| (p[0], p[1])).unzip();
            (Colours::Grey(grey), seen(alpha))
        }
        DynamicImage::ImageLumaA16(i) => {
            let pixels = i.pixels().map(|p| (high(p[0]), high(p[1])));
            let (grey, alpha) = pixels.unzip();
            (Colours::Grey(grey), seen(alpha))
        }
        DynamicImage::ImageRgba16(i) => {
            let rgba: Vec<u8> = i.into_raw().into_iter().map(high).collect();
            coloured(&rgba)
        }
        other => coloured(other.into_rgba8().as_raw()),
    }
}

/// Splits RGBA levels.
fn coloured(rgba: &[u8]) -> (Colours, Option<Alpha>) {
    let pixels = rgba.as_chunks::<4>().0.iter();
    let alpha = pixels.clone().map(|p| p[3]).collect();
    let rgb = pixels.flat_map(|&[r, g, b, _]| [r, g, b]).collect();
    (Colours::Rgb(rgb), seen(alpha))
}

/// Returns an alpha channel that has an effect.
fn seen(alpha: Vec<u8>) -> Option<Alpha> {
    alpha.iter().any(|&a| a < u8::MAX).then_some(Alpha(alpha))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_reads_what_it_prints_and_refuses_the_rest() {
        for text in ["white", "black", "drop", "#20ff80"] {
            assert_eq!(text.parse::<Background>().unwrap().to_string(), text);
        }
        assert_eq!("#FFFFFF".parse::<Background>().unwrap(), Background::WHITE);
        for text in ["", "red", "#fff", "#+12345", "#1234567", "20ff80"] {
            let error = text.parse::<Background>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("got `{text}`")), "{error}");
        }
    }
}
