//! Measures how the lips of a finished video follow its sound, and moves the sound.
//!
//! The frames stay as they are. Only the start of the sound is moved, and only by an offset that is
//! certain enough. The first minutes are measured, as the offset of a video is one number.

use std::path::Path;

use engines::error_kind::ErrorKind;

use crate::media::audio_file::{AudioError, AudioFile};
use crate::media::pictures::{Colours, Pictures, PicturesError};
use crate::media::remux::{self, RemuxError};
use crate::media::sound_file::SoundFile;
use crate::numbers::lip_sync::{self, AlignMethod, Alignment, Offset};
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// Rows and columns of cells.
const CELLS: usize = 16;
/// Most frames that are measured: four minutes. Their cells take 6 MB.
const MOST_FRAMES: usize = 6000;
/// Smallest offset that is corrected, in frames: half of one cannot be seen.
const LEAST: f64 = 0.5;

/// A reason why lips and sound cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum AlignError {
    /// The pictures cannot be read.
    #[error(transparent)]
    Video(#[from] PicturesError),
    /// The sound cannot be read.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The video cannot be written.
    #[error(transparent)]
    Remux(#[from] RemuxError),
}

impl AlignError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Video(error) => error.kind(),
            Self::Audio(error) => error.kind(),
            Self::Remux(error) => error.kind(),
        }
    }
}

/// Measures a video. With `out`, writes it there with its sound moved, even if by nothing.
///
/// # Errors
/// The video has no picture or no sound, or cannot be read or written.
pub fn align(
    video: &Path,
    method: AlignMethod,
    out: Option<&Path>,
) -> Result<Alignment, AlignError> {
    let cells = cells(video)?;
    let loudness = loudness(video, cells.len())?;
    let offset = lip_sync::measure(&cells, &loudness, method);
    let moved = correction(&offset);
    if let Some(out) = out {
        remux::move_sound(video, out, moved)?;
    }
    Ok(Alignment {
        method: method.name(),
        offset,
        measured_frames: cells.len(),
        moved_ms: if out.is_some() { 1000.0 * moved } else { 0.0 },
    })
}

/// Returns the seconds by which the sound is to be moved later.
fn correction(offset: &Offset) -> f64 {
    let wanted = offset.is_trusted() && offset.frames.abs() >= LEAST;
    let frames = if wanted { offset.frames } else { 0.0 };
    frames / f64::from(FPS)
}

/// Measures a video, and moves its sound in place where that is called for.
///
/// # Errors
/// As [`align`].
pub(crate) fn align_in_place(video: &Path, method: AlignMethod) -> Result<Alignment, AlignError> {
    let measured = align(video, method, None)?;
    let made = Alignment {
        moved_ms: 1000.0 * correction(&measured.offset),
        ..measured
    };
    move_sound(video, &made)?;
    Ok(made)
}

/// Moves the sound of a video in place as that of another one was moved.
///
/// # Errors
/// The video cannot be read or written.
pub(crate) fn move_sound(video: &Path, made: &Alignment) -> Result<(), AlignError> {
    if made.moved_ms != 0.0 {
        remux::move_sound(video, video, made.moved_ms / 1000.0)?;
    }
    Ok(())
}

/// Returns the brightness of every cell for each frame, at 25 frames a second.
fn cells(video: &Path) -> Result<Vec<Vec<f32>>, PicturesError> {
    let grid = Size {
        width: CELLS,
        height: CELLS,
    };
    let mut frames = Pictures::open(video, Colours::Grey(grid))?;
    let mut cells: Vec<Vec<f32>> = Vec::new();
    while cells.len() < MOST_FRAMES
        && let Some(frame) = frames.next_frame()?
    {
        let bright: Vec<f32> = frame.pixels.iter().map(|&v| f32::from(v)).collect();
        let at = (frame.seconds * f64::from(FPS)).round().max(0.0) as usize;
        let at = at.min(MOST_FRAMES - 1);
        // A video of fewer frames a second holds each of them; one of more keeps the last.
        let held = cells.last().unwrap_or(&bright).clone();
        if cells.len() <= at {
            cells.resize(at, held);
            cells.push(bright);
        } else {
            cells[at] = bright;
        }
    }
    Ok(cells)
}

/// Returns the root mean square of the sound in each of `frames` video frames.
fn loudness(video: &Path, frames: usize) -> Result<Vec<f32>, AudioError> {
    let mut sound = AudioFile::of(&SoundFile::open(video)?)?;
    let (mut squares, mut counts) = (vec![0f64; frames], vec![0usize; frames]);
    let mut seconds = 0.0;
    while seconds * f64::from(FPS) < frames as f64
        && let Some(chunk) = sound.next_chunk()?
    {
        for sample in chunk.samples.chunks_exact(chunk.channels) {
            let at = (seconds * f64::from(FPS)) as usize;
            if at < frames {
                let mono = sample.iter().map(|&v| f64::from(v)).sum::<f64>();
                squares[at] += (mono / chunk.channels as f64).powi(2);
                counts[at] += 1;
            }
            seconds += 1.0 / f64::from(chunk.rate);
        }
    }
    let pairs = squares.iter().zip(&counts);
    Ok(pairs
        .map(|(s, &n)| (s / n.max(1) as f64).sqrt() as f32)
        .collect())
}
