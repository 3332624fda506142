//! Writes a `torch.save` archive of plain tensors, one record after the other, and holds only the
//! header of a record. The archive is a zip of stored records, each aligned to 64 bytes; large
//! numbers use zip64. `torch.load(weights_only=True)` reads it.

use std::io::{self, Seek, SeekFrom, Write};

use crc32fast::Hasher;

use crate::checkpoint::StoredDType;

const ALIGN: u64 = 64;
/// Flags of a record: bit 11 says that names are UTF-8.
const FLAGS: u16 = 1 << 11;
const WIDE: u64 = u32::MAX as u64;

/// A tensor of the archive.
pub(crate) struct Record {
    pub(crate) key: String,
    pub(crate) dtype: StoredDType,
    pub(crate) shape: Vec<usize>,
}

impl Record {
    fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An archive being written.
pub(crate) struct Archive<W> {
    out: W,
    at: u64,
    folder: String,
    entries: Vec<Entry>,
    /// Sizes of the tensor records still to come, in order.
    pending: std::vec::IntoIter<usize>,
    written: usize,
}

struct Entry {
    name: String,
    crc: u32,
    size: u64,
    local: u64,
}

impl<W: Write + Seek> Archive<W> {
    /// Writes everything before the tensor data. `folder` is the archive's top folder; torch uses
    /// the file's stem.
    pub(crate) fn start(out: W, folder: &str, records: &[Record]) -> io::Result<Self> {
        let sizes: Vec<usize> = records.iter().map(|r| r.numel() * r.dtype.size()).collect();
        let mut archive = Self {
            out,
            at: 0,
            folder: folder.to_owned(),
            entries: Vec::new(),
            pending: sizes.into_iter(),
            written: 0,
        };
        archive.small("data.pkl", &pickle(records)?)?;
        archive.small("byteorder", b"little")?;
        Ok(archive)
    }

    /// Writes the next tensor's data, exactly as many bytes as its shape says.
    pub(crate) fn record(
        &mut self,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let size = self
            .pending
            .next()
            .ok_or_else(|| io::Error::other("more records than tensors"))?;
        let name = format!("data/{}", self.written);
        self.written += 1;
        self.entry(&name, size as u64, fill)
    }

    /// Writes the directory.
    ///
    /// # Errors
    /// The data of a tensor is missing, or the file cannot be written.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.pending.len() > 0 {
            return Err(io::Error::other("fewer records than tensors"));
        }
        self.small("version", b"3\n")?;
        let start = self.at;
        for e in std::mem::take(&mut self.entries) {
            self.put(&central(&e))?;
        }
        let (count, len) = (self.written as u64 + 3, self.at - start);
        if start >= WIDE || count >= 0xFFFF || len >= WIDE {
            let end64 = self.at;
            self.put(&join([
                b"PK\x06\x06",
                &44u64.to_le_bytes(),
                &45u16.to_le_bytes(),
                &45u16.to_le_bytes(),
                &[0; 8],
            ]))?;
            self.put(&join(
                [count, count, len, start]
                    .each_ref()
                    .map(|n| n.to_le_bytes())
                    .each_ref()
                    .map(|b| &b[..]),
            ))?;
            self.put(&join([
                &b"PK\x06\x07"[..],
                &[0; 4],
                &end64.to_le_bytes(),
                &1u32.to_le_bytes(),
            ]))?;
        }
        let count = (count.min(0xFFFF) as u16).to_le_bytes();
        self.put(&join([
            b"PK\x05\x06",
            &[0; 4],
            &count,
            &count,
            &narrow(len),
            &narrow(start),
            &[0; 2],
        ]))?;
        self.out.flush()
    }

    fn small(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, bytes.len() as u64, |w| w.write_all(bytes))
    }

    /// Writes one record: its header, its data, then the checksum into the header.
    fn entry(
        &mut self,
        name: &str,
        size: u64,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let (name, local) = (format!("{}/{name}", self.folder), self.at);
        self.put(&local_header(&name, size, local))?;
        let mut data = Counting {
            out: &mut self.out,
            crc: Hasher::new(),
            count: 0,
        };
        fill(&mut data)?;
        let (crc, count) = (data.crc.finalize(), data.count);
        if count != size {
            return Err(io::Error::other(format!(
                "{name}: {count} bytes written, {size} announced"
            )));
        }
        self.at += count;
        self.out.seek(SeekFrom::Start(local + 14))?;
        self.out.write_all(&crc.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(self.at))?;
        self.entries.push(Entry {
            name,
            crc,
            size,
            local,
        });
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Computes the checksum and the number of the bytes that pass through.
struct Counting<'a, W> {
    out: &'a mut W,
    crc: Hasher,
    count: u64,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.crc.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn join<const N: usize>(parts: [&[u8]; N]) -> Vec<u8> {
    parts.concat()
}

/// Returns the 32-bit form of a number; all ones when only the wide form holds it.
fn narrow(n: u64) -> [u8; 4] {
    (n.min(WIDE) as u32).to_le_bytes()
}

fn wide(numbers: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = numbers
        .iter()
        .filter(|&&n| n >= WIDE)
        .flat_map(|n| n.to_le_bytes())
        .collect();
    if body.is_empty() {
        body
    } else {
        join([
            &1u16.to_le_bytes(),
            &(body.len() as u16).to_le_bytes(),
            &body,
        ])
    }
}

/// Returns version, flags, method, time and date of a record.
fn stamp(any_wide: bool) -> Vec<u8> {
    let version: u16 = if any_wide { 45 } else { 20 };
    join([
        &version.to_le_bytes(),
        &FLAGS.to_le_bytes(),
        &[0; 2],
        &[0; 4],
    ])
}

fn local_header(name: &str, size: u64, at: u64) -> Vec<u8> {
    // A local zip64 field holds both sizes, or neither.
    let mut extra = if size >= WIDE {
        wide(&[size, size])
    } else {
        Vec::new()
    };
    // An `FB` field moves the data to a multiple of ALIGN; its own header takes 4 bytes.
    let unpadded = at + 30 + name.len() as u64 + extra.len() as u64 + 4;
    let padding = (unpadded.next_multiple_of(ALIGN) - unpadded) as u16;
    extra.extend(join([
        b"FB",
        &padding.to_le_bytes(),
        &b"Z".repeat(padding.into()),
    ]));
    let lens = join([
        &(name.len() as u16).to_le_bytes(),
        &(extra.len() as u16).to_le_bytes(),
    ]);
    join([
        b"PK\x03\x04",
        &stamp(size >= WIDE),
        &[0; 4],
        &narrow(size),
        &narrow(size),
        &lens,
        name.as_bytes(),
        &extra,
    ])
}

fn central(e: &Entry) -> Vec<u8> {
    let extra = wide(&[e.size, e.size, e.local]);
    let lens = join([
        &(e.name.len() as u16).to_le_bytes(),
        &(extra.len() as u16).to_le_bytes(),
    ]);
    let sizes = join([&e.crc.to_le_bytes(), &narrow(e.size), &narrow(e.size)]);
    let head = join([
        b"PK\x01\x02",
        &[0; 2],
        &stamp(!extra.is_empty()),
        &sizes,
        &lens,
    ]);
    join([&head, &[0; 10], &narrow(e.local), e.name.as_bytes(), &extra])
}

/// Returns the pickle of `{key: tensor, ...}`, in protocol 2 as torch/serialization.py writes it,
/// but without a memo.
fn pickle(records: &[Record]) -> io::Result<Vec<u8>> {
    let mut p = b"\x80\x02}(".to_vec();
    for (i, r) in records.iter().enumerate() {
        text(&mut p, &r.key);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend(format!("ctorch\n{}\n", storage_class(r.dtype)?).bytes());
        text(&mut p, &i.to_string());
        text(&mut p, "cpu");
        int(&mut p, r.numel());
        p.extend(b"tQ");
        int(&mut p, 0);
        tuple(&mut p, &r.shape);
        tuple(&mut p, &strides(&r.shape));
        p.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend(b"u.");
    Ok(p)
}

fn storage_class(dtype: StoredDType) -> io::Result<&'static str> {
    match dtype {
        StoredDType::BF16 => Ok("BFloat16Storage"),
        StoredDType::F32 => Ok("FloatStorage"),
        other => Err(io::Error::other(format!(
            "no torch storage is written for {other}, only for BF16 and F32"
        ))),
    }
}

fn text(p: &mut Vec<u8>, s: &str) {
    p.push(b'X');
    p.extend((s.len() as u32).to_le_bytes());
    p.extend(s.as_bytes());
}

fn int(p: &mut Vec<u8>, n: usize) {
    match (u8::try_from(n), u16::try_from(n), i32::try_from(n)) {
        (Ok(n), ..) => p.extend([b'K', n]),
        (_, Ok(n), _) => p.extend(join([b"M", &n.to_le_bytes()])),
        (.., Ok(n)) => p.extend(join([b"J", &n.to_le_bytes()])),
        _ => p.extend(join([b"\x8a\x08", &(n as u64).to_le_bytes()])),
    }
}

fn tuple(p: &mut Vec<u8>, items: &[usize]) {
    if !(1..=3).contains(&items.len()) {
        p.push(b'(');
    }
    items.iter().for_each(|&n| int(p, n));
    match items.len() {
        n @ 1..=3 => p.push(0x84 + n as u8),
        _ => p.push(b't'),
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides: Vec<usize> = shape
        .iter()
        .rev()
        .scan(1, |step, &n| Some(std::mem::replace(step, *step * n)))
        .collect();
    strides.reverse();
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_short_record_is_an_error() {
        let records = [Record {
            key: "w".into(),
            dtype: StoredDType::F32,
            shape: vec![2],
        }];
        let start = || Archive::start(io::Cursor::new(Vec::new()), "a", &records).unwrap();
        assert!(start().finish().is_err());
        assert!(start().record(|w| w.write_all(&[0; 7])).is_err());
    }

    #[test]
    fn strides_are_row_major() {
        assert_eq!(strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(strides(&[]), [0usize; 0]);
    }

    #[test]
    fn records_beyond_four_gigabytes_carry_wide_offsets() {
        let e = Entry {
            name: "a".into(),
            crc: 1,
            size: 5,
            local: WIDE + 7,
        };
        let bytes = central(&e);
        assert_eq!(bytes[42..46], [0xFF; 4]);
        assert_eq!(
            bytes[47..],
            join([&[1, 0, 8, 0], &(WIDE + 7).to_le_bytes()])
        );
    }
}
