//! Reads the few tags of a TIFF file that tell what its decoder does not: parts that are missing,
//! more pages, and kinds that only look like pictures.

use super::error::Missing;

const SUBFILE_TYPE: u16 = 254;
const HEIGHT: u16 = 257;
const STRIP_OFFSETS: u16 = 273;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_BYTES: u16 = 279;
const TILE_OFFSETS: u16 = 324;
const TILE_BYTES: u16 = 325;
const SUB_DIRECTORIES: u16 = 330;
const SAMPLE_FORMAT: u16 = 339;
const DNG_VERSION: u16 = 50706;

/// Sample format of floating-point numbers.
const FLOAT: u64 = 3;
/// Bit of the subfile type that marks a thumbnail.
const REDUCED: u64 = 1;

/// Returns whether the file is a camera's raw file: DNG, or a thumbnail before the picture.
pub(super) fn is_raw(bytes: &[u8]) -> bool {
    Directory::first(bytes).is_some_and(|d| {
        d.values(DNG_VERSION).is_some()
            || d.values(SUB_DIRECTORIES).is_some()
                && d.number(SUBFILE_TYPE).is_some_and(|t| t & REDUCED != 0)
    })
}

/// Returns whether the samples are floating-point numbers.
pub(super) fn is_float(bytes: &[u8]) -> bool {
    Directory::first(bytes).is_some_and(|d| d.number(SAMPLE_FORMAT) == Some(FLOAT))
}

/// Returns the number of pages, 2 for any number above 1, or the part that the file lacks.
pub(super) fn pages(bytes: &[u8]) -> Result<usize, Missing> {
    let Some(order) = Order::of(bytes) else {
        return Ok(1);
    };
    let cut = || Missing::Part {
        name: "directory".to_owned(),
        lacks: order
            .directory(bytes)
            .saturating_sub(bytes.len() as u64)
            .max(1),
    };
    let directory = Directory::first(bytes).ok_or_else(cut)?;
    directory.whole()?;
    Ok(if directory.next == 0 { 1 } else { 2 })
}

/// The byte order of a classic TIFF file.
#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes.get(..4)? {
            b"II*\0" => Some(Self::Little),
            b"MM\0*" => Some(Self::Big),
            _ => None,
        }
    }

    /// Reads a number of `size` bytes.
    fn read(self, bytes: &[u8], at: usize, size: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(size)?)?.iter();
        let join = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
        Some(match self {
            Self::Little => bytes.rev().fold(0, join),
            Self::Big => bytes.fold(0, join),
        })
    }

    /// Returns the offset of the first directory.
    fn directory(self, bytes: &[u8]) -> u64 {
        self.read(bytes, 4, 4).unwrap_or_default()
    }
}

/// The first directory of a file.
struct Directory<'a> {
    bytes: &'a [u8],
    order: Order,
    /// Offset of the first entry. An entry has 12 bytes.
    entries: usize,
    count: usize,
    /// Offset of the next directory, 0 if there is none.
    next: u64,
}

impl<'a> Directory<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let order = Order::of(bytes)?;
        let at = usize::try_from(order.directory(bytes)).ok()?;
        let count = order.read(bytes, at, 2)? as usize;
        let entries = at + 2;
        let next = order.read(bytes, entries + 12 * count, 4)?;
        Some(Self {
            bytes,
            order,
            entries,
            count,
            next,
        })
    }

    /// Returns the values of a tag as whole numbers.
    fn values(&self, tag: u16) -> Option<Vec<u64>> {
        let read = |at, size| self.order.read(self.bytes, at, size);
        let entry = (0..self.count)
            .map(|i| self.entries + 12 * i)
            .find(|&at| read(at, 2) == Some(u64::from(tag)))?;
        let size = match read(entry + 2, 2)? {
            1 => 1,
            3 => 2,
            4 => 4,
            _ => return None,
        };
        let count = usize::try_from(read(entry + 4, 4)?).ok()?;
        let at = if count * size <= 4 {
            entry + 8
        } else {
            usize::try_from(read(entry + 8, 4)?).ok()?
        };
        // A count that lies would otherwise ask for memory.
        let fits = self.bytes.len().checked_sub(at)? >= count * size;
        fits.then(|| {
            (0..count)
                .filter_map(|i| read(at + i * size, size))
                .collect()
        })
    }

    fn number(&self, tag: u16) -> Option<u64> {
        self.values(tag)?.first().copied()
    }

    /// Checks that every strip and tile lies inside the file.
    fn whole(&self) -> Result<(), Missing> {
        let beyond = |offsets: u16, sizes: u16| -> Option<(usize, u64)> {
            let ends = self.values(offsets)?.into_iter().zip(self.values(sizes)?);
            let length = self.bytes.len() as u64;
            ends.enumerate()
                .find_map(|(i, (at, size))| (at + size > length).then(|| (i, at + size - length)))
        };
        if let Some((strip, lacks)) = beyond(STRIP_OFFSETS, STRIP_BYTES) {
            let whole = self.number(HEIGHT).unwrap_or_default() as usize;
            let rows = self.number(ROWS_PER_STRIP).unwrap_or_default() as usize;
            return Err(match strip.saturating_mul(rows) {
                0 => Missing::Part {
                    name: "strip 1".to_owned(),
                    lacks,
                },
                has => Missing::Rows { has, whole },
            });
        }
        match beyond(TILE_OFFSETS, TILE_BYTES) {
            Some((tile, lacks)) => Err(Missing::Part {
                name: format!("tile {}", tile + 1),
                lacks,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a grey picture of 16 x 16 in two strips of 8 rows, without most of its tags.
    fn two_strips(order: Order, next: u32) -> Vec<u8> {
        let long = |v: u32| match order {
            Order::Little => v.to_le_bytes(),
            Order::Big => v.to_be_bytes(),
        };
        let short = |v: u16| match order {
            Order::Little => v.to_le_bytes(),
            Order::Big => v.to_be_bytes(),
        };
        let mut file = match order {
            Order::Little => b"II*\0".to_vec(),
            Order::Big => b"MM\0*".to_vec(),
        };
        file.extend(long(8));
        let entries = [
            (HEIGHT, 1, 16),
            (STRIP_OFFSETS, 2, 62),
            (ROWS_PER_STRIP, 1, 8),
            { (STRIP_BYTES, 2, 70) },
        ];
        file.extend(short(entries.len() as u16));
        for (tag, count, value) in entries {
            file.extend([short(tag), short(4)].concat());
            file.extend([long(count), long(value)].concat());
        }
        file.extend(long(next));
        assert_eq!(file.len(), 62);
        file.extend([78, 78 + 128, 128, 128].map(long).concat());
        file.resize(78 + 256, 7);
        file
    }

    #[test]
    fn strips_tell_the_rows_and_directories_the_pages() {
        for order in [Order::Little, Order::Big] {
            let file = two_strips(order, 0);
            assert_eq!(pages(&file), Ok(1));
            assert_eq!(pages(&two_strips(order, 8)), Ok(2));
            let missing = Missing::Rows { has: 8, whole: 16 };
            assert_eq!(pages(&file[..file.len() - 1]), Err(missing));
            let lacks = 50;
            let name = "strip 1".to_owned();
            assert_eq!(pages(&file[..78 + 78]), Err(Missing::Part { name, lacks }));
            let name = "directory".to_owned();
            assert_eq!(pages(&file[..8]), Err(Missing::Part { name, lacks: 1 }));
        }
    }
}
