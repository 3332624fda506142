//! Writes a contact sheet: evenly spaced frames of a video in one picture, gathered during the
//! video. The ending of its name says the format.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use engines::files;
use engines::tensor::Tensor;
use image::{ImageFormat, RgbImage, imageops};

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
    /// The name says no format that a sheet can have.
    #[error("{path}: contact sheet wants a name that ends in {}", endings())]
    Name {
        /// Path of the sheet.
        path: PathBuf,
    },
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
            Self::Name { .. } => ErrorKind::Usage,
            Self::Write { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Encode { .. } => ErrorKind::Resources,
        }
    }
}

/// Formats that hold a sheet of any size in full colour, without loss to speak of.
const FORMATS: [ImageFormat; 5] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Tiff,
];

fn endings() -> String {
    let all = FORMATS.iter().flat_map(|f| f.extensions_str());
    let all: Vec<String> = all.map(|ending| format!(".{ending}")).collect();
    all.join(", ")
}

/// Returns the format that the ending of a name says.
///
/// # Errors
/// [`ContactSheetError::Name`] for a name without an ending, or with another one.
pub(crate) fn format(path: &Path) -> Result<ImageFormat, ContactSheetError> {
    let format = ImageFormat::from_path(path).ok();
    let format = format.filter(|f| FORMATS.contains(f) && f.writing_enabled());
    format.ok_or_else(|| ContactSheetError::Name {
        path: path.to_owned(),
    })
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

    /// Returns the gathered tiles, `[n, H, W, 3]`.
    pub(crate) fn kept(&self) -> Tensor {
        let shape = [self.tiles.len(), self.tile.height, self.tile.width, 3];
        let bytes = self.tiles.iter().flat_map(|tile| tile.as_raw());
        Tensor::from_slice(&shape, &bytes.copied().collect::<Vec<u8>>())
    }

    /// Goes on after `seen` frames with tiles that [`Self::kept`] gave. Tiles of another size are
    /// left out.
    pub(crate) fn restore(&mut self, seen: usize, kept: &Tensor) {
        let (width, height) = (self.tile.width as u32, self.tile.height as u32);
        self.seen = seen;
        if kept.shape()[1..] == [self.tile.height, self.tile.width, 3] {
            let tiles = kept
                .bytes()
                .chunks_exact(3 * self.tile.width * self.tile.height);
            let tile = |rgb: &[u8]| RgbImage::from_raw(width, height, rgb.to_vec());
            self.tiles = tiles.filter_map(tile).collect();
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
        let mut bytes = Cursor::new(Vec::new());
        let encoded = self.grid().write_to(&mut bytes, format(path)?);
        encoded.map_err(|source| ContactSheetError::Encode {
            path: path.to_owned(),
            source,
        })?;
        let written = files::write_whole(path, bytes.get_ref());
        written.map_err(|source| ContactSheetError::Write {
            path: path.to_owned(),
            source,
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
    fn the_name_says_the_format() {
        let size = Size {
            width: 64,
            height: 64,
        };
        let mut sheet = ContactSheet::new(size, 1, 1);
        sheet.push(&[90; 3 * 64 * 64]);
        let dir = tempfile::tempdir().unwrap();
        for (name, begin) in [
            ("a.png", &b"\x89PNG"[..]),
            ("a.PNG", b"\x89PNG"),
            ("a.jpg", b"\xff\xd8\xff"),
            ("a.jpeg", b"\xff\xd8\xff"),
            ("a.bmp", b"BM"),
            ("a.webp", b"RIFF"),
            ("a.tiff", b"II*"),
        ] {
            let path = dir.path().join(name);
            sheet.write(&path).unwrap();
            assert!(std::fs::read(&path).unwrap().starts_with(begin), "{name}");
        }
        for name in ["a.gif", "a", "a.mp4", ".png"] {
            let error = sheet.write(&dir.path().join(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name}: {error}");
            assert!(error.to_string().contains(".png, "), "{error}");
        }
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
