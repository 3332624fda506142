//! The strength of guidance.

use std::fmt;
use std::str::FromStr;

/// How far a step goes away from what the model predicts without prompt and speech. 1 or less is no
/// guidance.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, serde::Serialize)]
pub struct GuideScale(f32);

/// The largest scale. Pictures are broken long before.
const MOST: f32 = 30.0;

impl GuideScale {
    /// Returns the scale.
    pub fn get(self) -> f32 {
        self.0
    }

    /// Returns whether there is guidance.
    pub fn is_on(self) -> bool {
        self.0 > 1.0
    }

    /// Returns the passes of a denoising step.
    pub fn passes(self) -> usize {
        if self.is_on() { 2 } else { 1 }
    }
}

impl fmt::Display for GuideScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for GuideScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(scale) if (0.0..=MOST).contains(&scale) => Ok(Self(scale)),
            _ => Err(format!("a number from 0 to {MOST} is wanted, got `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_of_one_or_less_is_no_guidance_and_nonsense_is_refused() {
        let passes = |text: &str| text.parse::<GuideScale>().map(GuideScale::passes);
        assert_eq!(
            ["0", "0.5", "1", "1.5", "7"].map(passes),
            [1, 1, 1, 2, 2].map(Ok)
        );
        for text in ["-1", "31", "nan", "much", ""] {
            assert!(passes(text).is_err(), "{text}");
        }
    }
}
