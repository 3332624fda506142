//! A contact sheet: evenly spaced frames of a video in one picture, gathered while the video is
//! made. The ending of its name says the format.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use engines::files;
use image::{ImageFormat, RgbImage};

use crate::media::picture::Picture;
use crate::numbers::size::Size;

/// Widest a tile gets.
const TILE_WIDTH: usize = 320;
const COLUMNS: usize = 4;
/// Black between the tiles.
const GAP: usize = 4;

/// Why a sheet cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ContactSheetError {
    #[error("{path}: contact sheet wants a name that ends in {}", endings())]
    Name { path: PathBuf },
    #[error("{path}: cannot write the contact sheet: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: cannot encode the contact sheet: {source}")]
    Encode {
        path: PathBuf,
        source: image::ImageError,
    },
}

impl ContactSheetError {
    /// The path's fault where a person can choose another, a full disk otherwise.
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

/// Gathers tiles; holds those and no other frame.
pub(crate) struct ContactSheet {
    size: Size,
    tile: Size,
    picks: Vec<usize>,
    seen: usize,
    tiles: Vec<Picture>,
}

impl ContactSheet {
    /// For a video of `total` frames: at most `most` of them, the first and the last included.
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
                self.tiles.push(frame.resized(self.tile));
            }
            self.seen += 1;
        }
    }

    /// Writes the grid of what was gathered; the name appears only when the file is whole. Without
    /// a tile nothing is written.
    ///
    /// # Errors
    /// A path that cannot be written, a full disk.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ContactSheetError> {
        if self.tiles.is_empty() {
            return Ok(());
        }
        let grid = self.grid();
        let picture = RgbImage::from_raw(grid.width as u32, grid.height as u32, grid.rgb);
        let picture = picture.expect("a grid has three bytes a pixel");
        let mut bytes = Cursor::new(Vec::new());
        let encoded = picture.write_to(&mut bytes, format(path)?);
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

    fn grid(&self) -> Picture {
        let columns = COLUMNS.min(self.tiles.len());
        let rows = self.tiles.len().div_ceil(columns);
        let (step_x, step_y) = (self.tile.width + GAP, self.tile.height + GAP);
        let (width, height) = (columns * step_x - GAP, rows * step_y - GAP);
        let mut rgb = vec![0; 3 * width * height];
        for (i, tile) in self.tiles.iter().enumerate() {
            for (y, row) in tile.rgb.chunks_exact(3 * self.tile.width).enumerate() {
                let at = 3 * ((i / columns * step_y + y) * width + i % columns * step_x);
                rgb[at..at + row.len()].copy_from_slice(row);
            }
        }
        Picture { width, height, rgb }
    }
}

/// `most` numbers of `0..total`, evenly spaced, both ends included.
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
