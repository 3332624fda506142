//! Fits the picture into the size of the video. Only this file decides size, mode and fit.

use engines::tensor::Tensor;

use crate::media::picture::{Fit, Picture, Shown};
use crate::numbers::size::{Size, SizeError, SizeMode};

/// The size of a video, with the picture in that size.
#[derive(Clone, Debug)]
pub struct Framing {
    /// Size that the user asked for.
    pub requested: Size,
    /// Meaning of the requested size.
    pub mode: SizeMode,
    /// Size of the picture, in pixels.
    pub picture: Size,
    /// Part of the picture that the video shows.
    pub(crate) shown: Shown,
    /// Size of the video, in pixels.
    pub size: Size,
    /// The picture in the video's size, `[3, H, W]` in [-1, 1].
    pub pixels: Tensor,
}

impl Framing {
    /// Computes the size of the video from `requested` and `mode`, and fits `picture` into it.
    ///
    /// # Errors
    /// [`SizeError::Multiple`] in exact mode, [`SizeError::NoFit`] in area mode.
    pub fn new(
        requested: Size,
        mode: SizeMode,
        fit: Fit,
        picture: &Picture,
    ) -> Result<Self, SizeError> {
        let size = requested.effective(mode, picture.size())?;
        let pixels = picture.fitted(size, mode, fit).pixels();
        Ok(Self {
            requested,
            mode,
            picture: picture.size(),
            shown: Shown::new(picture.size(), size, mode, fit),
            size,
            pixels: Tensor::from_slice(&[3, size.height, size.width], &pixels),
        })
    }
}
