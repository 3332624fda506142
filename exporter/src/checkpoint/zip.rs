//! Reads the directory of a torch archive: a zip (also zip64) whose records are stored without
//! compression. The module finds the bytes of records; it copies and decompresses nothing.
//!
//! The layout is APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (central directory) and
//! 4.3.14-16 (end records). Every position in the file is checked before it is used.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::TorchFault as Fault;

const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const END64_LOCATOR: [u8; 4] = *b"PK\x06\x07";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";
/// Length of an end record with the longest comment.
const END_REACH: usize = 22 + 0xFFFF;
const ZIP64_EXTRA: u16 = 1;
const ENCRYPTED: u16 = 1;

/// The place of each record's bytes in the file, by record name.
pub(super) struct Directory<'a> {
    records: BTreeMap<&'a str, Range<usize>>,
}

impl<'a> Directory<'a> {
    /// Reads the directory of a whole archive, given as `bytes`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let central = central(bytes)?;
        let mut records = BTreeMap::new();
        let mut rest = Cursor {
            bytes: &bytes[central.clone()],
            at: 0,
        };
        while !rest.done() {
            let entry = Entry::read(&mut rest).ok_or(zip("central directory is damaged"))?;
            let name =
                std::str::from_utf8(entry.name).map_err(|_| zip("a record's name is not UTF-8"))?;
            let fault = |reason| Fault::ZipRecord {
                name: name.to_owned(),
                reason,
            };
            if entry.flags & ENCRYPTED != 0 {
                return Err(fault("is encrypted"));
            }
            if entry.method != 0 || entry.packed != entry.size {
                return Err(fault("is compressed; torch stores its records"));
            }
            let range = data_range(&bytes[..central.start], &entry)
                .ok_or(fault("lies outside the archive"))?;
            if records.insert(name, range).is_some() {
                return Err(fault("is there twice"));
            }
        }
        disjoint(&records)?;
        Ok(Self { records })
    }

    pub(super) fn get(&self, name: &str) -> Option<Range<usize>> {
        self.records.get(name).cloned()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.records.keys().copied()
    }
}

/// Checks that no byte belongs to two records. torch shares storages inside the pickle, never here.
fn disjoint(records: &BTreeMap<&str, Range<usize>>) -> Result<(), Fault> {
    let mut places: Vec<_> = records.iter().filter(|(_, r)| !r.is_empty()).collect();
    places.sort_by_key(|(_, range)| range.start);
    match places.windows(2).find(|w| w[0].1.end > w[1].1.start) {
        None => Ok(()),
        Some(pair) => Err(Fault::ZipRecord {
            name: (*pair[1].0).to_owned(),
            reason: "overlaps another record",
        }),
    }
}

fn zip(reason: &'static str) -> Fault {
    Fault::Zip { reason }
}

/// Returns the byte range of the central directory.
fn central(bytes: &[u8]) -> Result<Range<usize>, Fault> {
    let tail = bytes.len().saturating_sub(END_REACH);
    let end = bytes[tail..]
        .windows(4)
        .rposition(|w| w == END)
        .map(|i| tail + i);
    let end = end.ok_or(zip("no end record; the file is truncated"))?;
    let (start, len) = match end64(bytes, end)? {
        Some(place) => place,
        None => {
            let mut c = Cursor {
                bytes,
                at: end + 12,
            };
            let (len, start) = c
                .u32()
                .zip(c.u32())
                .ok_or(zip("the end record is truncated"))?;
            (u64::from(start), u64::from(len))
        }
    };
    let start = usize::try_from(start).ok();
    let stop = start.and_then(|s| s.checked_add(usize::try_from(len).ok()?));
    match start.zip(stop) {
        Some((start, stop)) if stop <= end => Ok(start..stop),
        _ => Err(zip("the central directory lies outside the file")),
    }
}

/// Returns the start and the length of the central directory from the zip64 end record, when one
/// stands before the end record at `end`.
fn end64(bytes: &[u8], end: usize) -> Result<Option<(u64, u64)>, Fault> {
    let Some(locator) = end
        .checked_sub(20)
        .filter(|&l| bytes[l..].starts_with(&END64_LOCATOR))
    else {
        return Ok(None);
    };
    let at = Cursor {
        bytes,
        at: locator + 8,
    }
    .u64()
    .and_then(|at| usize::try_from(at).ok());
    let record = at.filter(|&at| bytes.get(at..).is_some_and(|b| b.starts_with(&END64)));
    let mut c = Cursor {
        bytes,
        at: record.ok_or(zip("the zip64 end record is missing"))? + 40,
    };
    let (len, start) = c
        .u64()
        .zip(c.u64())
        .ok_or(zip("the zip64 end record is truncated"))?;
    Ok(Some((start, len)))
}

/// One entry of the central directory.
struct Entry<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    packed: u64,
    size: u64,
    local: u64,
}

impl<'a> Entry<'a> {
    fn read(c: &mut Cursor<'a>) -> Option<Self> {
        if c.take(4)? != CENTRAL {
            return None;
        }
        c.take(4)?;
        let (flags, method) = (c.u16()?, c.u16()?);
        c.take(8)?;
        let (packed, size) = (c.u32()?, c.u32()?);
        let (name, extra, comment) = (c.u16()?, c.u16()?, c.u16()?);
        c.take(8)?;
        let local = c.u32()?;
        let name = c.take(name.into())?;
        let mut wide = zip64(c.take(extra.into())?);
        c.take(comment.into())?;
        // The wide field holds only the numbers whose short form is all ones, in this order.
        let mut widen = |short: u32| {
            if short == u32::MAX {
                wide.u64()
            } else {
                Some(short.into())
            }
        };
        let (size, packed, local) = (widen(size)?, widen(packed)?, widen(local)?);
        Some(Self {
            name,
            flags,
            method,
            packed,
            size,
            local,
        })
    }
}

/// Returns the zip64 field of the extra fields, or an empty cursor.
fn zip64(extra: &[u8]) -> Cursor<'_> {
    let mut c = Cursor {
        bytes: extra,
        at: 0,
    };
    while let Some((id, len)) = c.u16().zip(c.u16()) {
        match c.take(len.into()) {
            Some(field) if id == ZIP64_EXTRA => {
                return Cursor {
                    bytes: field,
                    at: 0,
                };
            }
            Some(_) => {}
            None => break,
        }
    }
    Cursor { bytes: &[], at: 0 }
}

/// Returns the range of a record's bytes, found through its local header. `bytes` ends where the
/// central directory starts.
fn data_range(bytes: &[u8], entry: &Entry<'_>) -> Option<Range<usize>> {
    let mut c = Cursor {
        bytes,
        at: usize::try_from(entry.local).ok()?,
    };
    if c.take(4)? != LOCAL {
        return None;
    }
    c.take(22)?;
    let (name, extra) = (c.u16()?, c.u16()?);
    c.take(usize::from(name) + usize::from(extra))?;
    let start = c.at;
    c.take(usize::try_from(entry.size).ok()?)?;
    Some(start..c.at)
}

/// A little-endian reader. It returns `None` at the end of the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let stop = self.at.checked_add(n)?;
        let part = self.bytes.get(self.at..stop)?;
        self.at = stop;
        Some(part)
    }

    fn done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(name: &str, data: &[u8]) -> Vec<u8> {
        let size = (data.len() as u32).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        [
            &LOCAL[..],
            &[0; 14],
            &size,
            &size,
            &name_len,
            &[0; 2],
            name.as_bytes(),
            data,
        ]
        .concat()
    }

    /// An entry for a record of `size` bytes at 0, its numbers in the zip64 field.
    fn wide_entry(name: &str, size: u64) -> Vec<u8> {
        let name_len = (name.len() as u16).to_le_bytes();
        let field = [
            &[1, 0, 24, 0][..],
            &size.to_le_bytes(),
            &size.to_le_bytes(),
            &[0; 8],
        ]
        .concat();
        let field_len = (field.len() as u16).to_le_bytes();
        let lens = [&name_len[..], &field_len, &[0; 10]].concat();
        [
            &CENTRAL[..],
            &[0; 16],
            &[0xFF; 8],
            &lens,
            &[0xFF; 4],
            name.as_bytes(),
            &field,
        ]
        .concat()
    }

    /// Directory `central` at `start`, with both end records; the short one holds nothing.
    fn wide_end(start: usize, len: usize) -> Vec<u8> {
        let at = (start + len) as u64;
        let place = [(len as u64).to_le_bytes(), (start as u64).to_le_bytes()].concat();
        let end64 = [&END64[..], &[0; 36], &place].concat();
        let locator = [&END64_LOCATOR[..], &[0; 4], &at.to_le_bytes(), &[0; 4]].concat();
        [&end64[..], &locator, &END, &[0xFF; 16], &[0; 2]].concat()
    }

    fn wide(size: u64) -> Vec<u8> {
        let mut bytes = local("a/b", b"hello");
        let (start, entry) = (bytes.len(), wide_entry("a/b", size));
        bytes.extend(&entry);
        bytes.extend(wide_end(start, entry.len()));
        bytes
    }

    #[test]
    fn zip64_numbers_are_read() {
        let bytes = wide(5);
        let range = Directory::read(&bytes).unwrap().get("a/b").unwrap();
        assert_eq!(&bytes[range], b"hello");
    }

    #[test]
    fn two_records_of_one_name_or_of_the_same_bytes_are_refused() {
        for (second, want) in [
            ("a/b", "zip: record a/b: is there twice"),
            ("a/c", "zip: record a/c: overlaps another record"),
        ] {
            let mut bytes = local("a/b", b"hello");
            let start = bytes.len();
            bytes.extend(wide_entry("a/b", 5));
            bytes.extend(wide_entry(second, 5));
            let len = bytes.len() - start;
            bytes.extend(wide_end(start, len));
            let fault = Directory::read(&bytes).err().unwrap();
            assert_eq!(fault.to_string(), want);
        }
    }

    #[test]
    fn a_record_beyond_the_file_is_refused() {
        for size in [1000, u64::MAX, 1 << 40] {
            let fault = Directory::read(&wide(size)).err().unwrap().to_string();
            assert_eq!(fault, "zip: record a/b: lies outside the archive");
        }
    }

    #[test]
    fn a_wide_number_without_its_field_is_refused() {
        let mut bytes = wide(5);
        let field = bytes.windows(4).position(|w| w == [1, 0, 24, 0]).unwrap();
        bytes[field] = 9;
        assert_eq!(
            Directory::read(&bytes).err().unwrap().to_string(),
            "zip: central directory is damaged"
        );
    }
}
