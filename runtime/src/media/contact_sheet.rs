//! Writes a contact sheet: evenly spaced frames of a video in one PNG, gathered during the video.

use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use image::codecs::png::PngEncoder;
use image::{RgbImage, imageops};

use crate::media::picture::Picture;
use crate::numbers::size::Size;

/// Largest width of a tile, in pixels.
const TILE_WIDTH: usize = 320;
/// Most tiles of a row.
const COLUMNS: usize = 4;
/// Width of the black lines between tiles, in pixels.
const GAP: usize = 4;

/// A reason why a sheet cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ContactSheetError {
    /// The system refuses to write the file.
    #[error("{path}: cannot write the contact sheet: {source}")]
    Write {
        /// Path of the sheet.
        path: PathBuf,
        /// Answer of the system.
        source: std::io::Error,
    },
    /// The picture cannot become a PNG.
    #[error("{path}: cannot encode the contact sheet: {source}")]
    Encode {
        /// Path of the sheet.
        path: PathBuf,
        /// Answer of the encoder.
        source: image::ImageError,
    },
}

impl ContactSheetError {
    /// Returns `Input` where the user can name another path, and `Resources` for a full disk.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Write { source, .. } if source.kind() != std::io::ErrorKind::StorageFull => {
                ErrorKind::Input
            }
            _ => ErrorKind::Resources,
        }
    }
}

/// A sheet that is being gathered. It holds the tiles and no other frame.
pub(crate) struct ContactSheet {
    size: Size,
    tile: Size,
    picks: Vec<usize>,
    seen: usize,
    tiles: Vec<RgbImage>,
}

impl ContactSheet {
    /// Plans a sheet of at most `most` frames of a video of `total` frames.
    ///
    /// The first and the last frame are always among them.
    pub(crate) fn new(size: Size, total: usize, most: usize) -> Self {
        let width = size.width.min(TILE_WIDTH);
        let tile = Size {
            width,
            height: (size.height * width / size.width.max(1)).max(1),
        };
        Self {
            size,
            tile,
            picks: spread(total, most),
            seen: 0,
            tiles: Vec::new(),
        }
    }

    /// Takes the next frames, `[T, H, W, 3]`.
    pub(crate) fn push(&mut self, frames: &[u8]) {
        for rgb in frames.chunks_exact(3 * self.size.width * self.size.height) {
            if self.picks.contains(&self.seen) {
                let frame = Picture {
                    width: self.size.width,
                    height: self.size.height,
                    rgb: rgb.to_vec(),
                };
                self.tiles.push(frame.resized(self.tile).into());
            }
            self.seen += 1;
        }
    }

    /// Writes the grid of the gathered tiles. Without a tile it writes nothing.
    ///
    /// The name appears only when the file is whole.
    ///
    /// # Errors
    /// A path that cannot be written, a full disk.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ContactSheetError> {
        if self.tiles.is_empty() {
            return Ok(());
        }
        let mut png = Vec::new();
        let encoded = self.grid().write_with_encoder(PngEncoder::new(&mut png));
        encoded.map_err(|source| ContactSheetError::Encode {
            path: path.to_owned(),
            source,
        })?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let written = std::fs::write(&partial, png).and_then(|()| std::fs::rename(&partial, path));
        written.map_err(|source| {
            drop(std::fs::remove_file(&partial));
            ContactSheetError::Write {
                path: path.to_owned(),
                source,
            }
        })
    }

    /// Lays the tiles out row by row, with black lines between them.
    fn grid(&self) -> RgbImage {
        let columns = COLUMNS.min(self.tiles.len());
        let rows = self.tiles.len().div_ceil(columns);
        let (step_x, step_y) = (self.tile.width + GAP, self.tile.height + GAP);
        let (width, height) = (columns * step_x - GAP, rows * step_y - GAP);
        let mut grid = RgbImage::new(width as u32, height as u32);
        for (i, tile) in self.tiles.iter().enumerate() {
            let (x, y) = (i % columns * step_x, i / columns * step_y);
            imageops::replace(&mut grid, tile, x as i64, y as i64);
        }
        grid
    }
}

/// Returns `most` numbers of `0..total`, evenly spaced, with both ends.
fn spread(total: usize, most: usize) -> Vec<usize> {
    let count = most.min(total);
    let gaps = count.saturating_sub(1).max(1);
    (0..count)
        .map(|i| (2 * i * (total - 1) + gaps) / (2 * gaps))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_spread_from_the_first_frame_to_the_last() {
        assert_eq!(
            spread(93, 12),
            [0, 8, 17, 25, 33, 42, 50, 59, 67, 75, 84, 92]
        );
        assert_eq!(spread(3, 12), [0, 1, 2]);
        assert_eq!(spread(9, 1), [0]);
        assert_eq!(spread(0, 12), [0usize; 0]);
    }

    #[test]
    fn the_sheet_shows_its_frames_in_order() {
        let size = Size {
            width: 64,
            height: 64,
        };
        let mut sheet = ContactSheet::new(size, 45, 5);
        for block in 0..5u8 {
            sheet.push(
                &(0..9)
                    .flat_map(|f| vec![block * 9 + f; 3 * 64 * 64])
                    .collect::<Vec<u8>>(),
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sheet.png");
        sheet.write(&path).unwrap();
        let image = image::open(&path).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (4 * 68 - 4, 2 * 68 - 4));
        let shown: Vec<u8> = [(0, 0), (68, 0), (136, 0), (204, 0), (0, 68)]
            .map(|(x, y)| image.get_pixel(x, y)[0])
            .to_vec();
        assert_eq!(shown, [0, 11, 22, 33, 44]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sheet_that_cannot_be_written_leaves_nothing() {
        let mut sheet = ContactSheet::new(
            Size {
                width: 64,
                height: 64,
            },
            1,
            1,
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/sheet.png");
        sheet.write(&path).unwrap();
        sheet.push(&[0; 3 * 64 * 64]);
        assert_eq!(sheet.write(&path).unwrap_err().kind(), ErrorKind::Input);
        assert!(!path.exists());
    }
}
