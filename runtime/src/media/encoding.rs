//! How a video is encoded and filtered, as flags ask for it. Nothing here knows FFmpeg.

use std::fmt;
use std::str::FromStr;

/// The settings of the video encoder, and the filters before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// FFmpeg's name of the encoder, by default the one of the container.
    pub codec: Option<String>,
    /// Quality, or bits per second.
    pub rate: Rate,
    /// Preset of the encoder. x264 and x265 have `fast` by default, others their own.
    pub preset: Option<String>,
    /// Slices that are encoded at once.
    ///
    /// The number changes the bytes of the file, so it does not depend on the machine.
    pub threads: u32,
    /// FFmpeg's filters on the frames, as its `-vf` has them.
    pub filters: Option<String>,
    /// Frames per second after FFmpeg's `fps` filter, by default those of the model.
    pub fps: Option<u32>,
    /// Text that the file carries in its metadata.
    pub comment: String,
}

impl Default for Encoding {
    fn default() -> Self {
        Self {
            codec: None,
            rate: Rate::Quality(17),
            preset: None,
            threads: 4,
            filters: None,
            fps: None,
            comment: String::new(),
        }
    }
}

/// How many bits the encoder spends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Constant rate factor: 0 is lossless in x264, 17 looks lossless, 23 gives small files.
    Quality(u8),
    /// Bits per second.
    Bits(BitRate),
}

/// Bits per second, written as FFmpeg's `-b:v` has them: `2500k`, `4M` or `800000`.
///
/// ```
/// use runtime::media::BitRate;
///
/// assert_eq!("2.5M".parse::<BitRate>()?, BitRate(2_500_000));
/// assert_eq!("800k".parse::<BitRate>()?.to_string(), "800000");
/// let error = "4 MB".parse::<BitRate>().unwrap_err().to_string();
/// assert_eq!(error, "bitrate wants bits per second such as 2500k or 4M, got `4 MB`");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRate(pub u64);

/// A text that is no bit rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitRateError {
    /// The text is no number with a unit.
    #[error("bitrate wants bits per second such as 2500k or 4M, got `{got}`")]
    Malformed {
        /// The text.
        got: String,
    },
    /// No encoder takes the number.
    #[error("bitrate wants 1k to 1000M, got `{got}`")]
    Range {
        /// The text.
        got: String,
    },
}

impl FromStr for BitRate {
    type Err = BitRateError;

    fn from_str(text: &str) -> Result<Self, BitRateError> {
        let got = || text.to_owned();
        let (number, unit) = match text.as_bytes() {
            [.., b'k' | b'K'] => (&text[..text.len() - 1], 1e3),
            [.., b'm' | b'M'] => (&text[..text.len() - 1], 1e6),
            _ => (text, 1.0),
        };
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let number: Option<f64> = number.parse().ok().filter(|_| plain);
        let number = number.ok_or_else(|| BitRateError::Malformed { got: got() })?;
        let bits = (number * unit).round();
        if !(1e3..=1e9).contains(&bits) {
            return Err(BitRateError::Range { got: got() });
        }
        Ok(Self(bits as u64))
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_rates_have_ffmpegs_units_and_bounds() {
        for (text, bits) in [
            ("1000", 1000),
            ("2500K", 2_500_000),
            ("1000M", 1_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(BitRate(bits)), "{text}");
        }
        for text in ["", "k", "-4M", "4Mb", "1e6", "4,5M", "inf", "NaN"] {
            let error = text.parse::<BitRate>().unwrap_err();
            assert!(
                matches!(error, BitRateError::Malformed { .. }),
                "{text}: {error}"
            );
        }
        for text in ["999", "0", "2000M"] {
            let error = text.parse::<BitRate>().unwrap_err();
            assert!(
                matches!(error, BitRateError::Range { .. }),
                "{text}: {error}"
            );
        }
    }
}
