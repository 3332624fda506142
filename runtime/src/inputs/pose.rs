//! The video that says how the person moves, clip by clip.
//!
//! Source: `load_pose_cond`, `liveavatar/models/wan/causal_s2v_pipeline_tpp.py` @ 9c2c38d. A frame
//! of the video that is made shows the pose of the same time. The reference takes every n-th frame,
//! n being the rate over 25, rounded; that is the same for 25, 50 and 75 frames a second. After the
//! end the pose is black, as there.

use std::path::Path;

use engines::tensor::Tensor;

use crate::media::picture::{Fit, Picture};
use crate::media::pictures::{Colours, Frame, Pictures, PicturesError};
use crate::numbers::size::{Size, SizeMode};
use crate::numbers::timing::FPS;

/// Part of a frame by which a timestamp may be early.
const SLACK: f64 = 0.05;

/// How a pose is laid over the video that is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoseShape {
    /// Size of the video that is made.
    pub(crate) size: Size,
    /// Meaning of that size.
    pub(crate) mode: SizeMode,
    /// How another shape fills it.
    pub(crate) fit: Fit,
    /// Computed frames before the first one that is seen. They show the first pose.
    pub(crate) lead: usize,
    /// Frames of a clip.
    pub(crate) clip: usize,
}

/// A pose video, read while the video is made.
pub(crate) struct PoseVideo {
    frames: Pictures,
    shape: PoseShape,
    /// The pose at hand, fitted.
    now: Tensor,
    /// The frame after it.
    next: Option<Frame>,
    /// Time at which the pose at hand ends, if no frame follows.
    end: f64,
}

impl PoseVideo {
    /// Opens a video and decodes its first two frames.
    ///
    /// # Errors
    /// The file has no pictures, or cannot be read.
    pub(crate) fn open(path: &Path, shape: PoseShape) -> Result<Self, PicturesError> {
        let mut pose = Self {
            frames: Pictures::open(path, Colours::Rgb)?,
            now: black(shape.size),
            next: None,
            end: 0.0,
            shape,
        };
        pose.next = pose.frames.next_frame()?;
        pose.advance()?;
        Ok(pose)
    }

    /// Returns the frames a second of the file, where they are sampled.
    pub(crate) fn sampled_rate(&self) -> Option<f64> {
        let rate = self.frames.rate();
        let times = rate / f64::from(FPS);
        ((times - times.round()).abs() > 0.01 || times < 0.5).then_some(rate)
    }

    /// Returns frame `at` of the clip `clip`, `[3, H, W]` in [-1, 1]. Frames are asked for in
    /// ascending order.
    ///
    /// # Errors
    /// The rest of the file cannot be read.
    pub(crate) fn frame(&mut self, clip: usize, at: usize) -> Result<Tensor, PicturesError> {
        let shown = (clip * self.shape.clip + at).saturating_sub(self.shape.lead);
        let seconds = shown as f64 / f64::from(FPS);
        let slack = SLACK / f64::from(FPS);
        while self
            .next
            .as_ref()
            .is_some_and(|f| f.seconds <= seconds + slack)
        {
            self.advance()?;
        }
        if self.next.is_none() && seconds + slack >= self.end {
            return Ok(black(self.shape.size));
        }
        Ok(self.now.clone())
    }

    /// Takes the next frame as the pose at hand.
    fn advance(&mut self) -> Result<(), PicturesError> {
        let Some(frame) = self.next.take() else {
            return Ok(());
        };
        self.end = frame.seconds + 1.0 / self.frames.rate();
        let PoseShape {
            size, mode, fit, ..
        } = self.shape;
        let picture = Picture {
            width: frame.size.width,
            height: frame.size.height,
            rgb: frame.pixels,
        };
        let pixels = picture.fitted(size, mode, fit).pixels();
        self.now = Tensor::from_slice(&[3, size.height, size.width], &pixels);
        self.next = self.frames.next_frame()?;
        Ok(())
    }
}

fn black(size: Size) -> Tensor {
    let pixels = vec![-1f32; 3 * size.width * size.height];
    Tensor::from_slice(&[3, size.height, size.width], &pixels)
}
