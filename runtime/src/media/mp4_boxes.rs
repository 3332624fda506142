//! Boxes of an MP4 file (ISO/IEC 14496-12): read from a file, held in memory, written again. A box
//! keeps every byte that nobody changes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// The type of a box, four letters.
pub(super) type Kind = [u8; 4];

/// Why the boxes of a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BoxError {
    /// The system's reason.
    #[error(transparent)]
    File(#[from] io::Error),
    /// A box is missing, torn, or of an unexpected form.
    #[error("box {}: {problem}", kind.escape_ascii())]
    Form {
        /// The box.
        kind: [u8; 4],
        /// The reason.
        problem: &'static str,
    },
}

impl BoxError {
    pub(super) fn form(kind: Kind, problem: &'static str) -> Self {
        Self::Form { kind, problem }
    }
}

/// The place of a box in a file, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) start: u64,
    /// Start of the content.
    content: u64,
    pub(super) end: u64,
}

impl Place {
    /// Reads the header of the box that starts at `start`; `None` at the end of the file.
    ///
    /// # Errors
    /// The file cannot be read, or the box passes its end.
    pub(super) fn read(file: &File, start: u64) -> Result<Option<Self>, BoxError> {
        let length = file.metadata()?.len();
        if start == length {
            return Ok(None);
        }
        let mut header = [0; 16];
        let short = length.saturating_sub(start) < 16;
        read_at(file, start, &mut header[..if short { 8 } else { 16 }])?;
        let mut fields = Fields::of(*b"    ", &header);
        let (size, kind) = (fields.u32()?, fields.kind()?);
        // A size of 1 announces 64 bits after the type.
        let (size, head) = match size {
            1 => (fields.u64()?, 16),
            size => (size.into(), 8),
        };
        match start.checked_add(size) {
            Some(end) if size >= head && end <= length => Ok(Some(Self {
                kind,
                start,
                content: start + head,
                end,
            })),
            _ => Err(BoxError::form(kind, "it passes the end of the file")),
        }
    }

    /// Reads the whole box.
    ///
    /// # Errors
    /// The file cannot be read, or a box inside is torn.
    pub(super) fn load(&self, file: &File) -> Result<Mp4Box, BoxError> {
        let mut content = vec![0; (self.end - self.content) as usize];
        read_at(file, self.content, &mut content)?;
        Mp4Box::parse(self.kind, &content)
    }
}

fn read_at(mut file: &File, start: u64, into: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(into)
}

/// A box in memory: fields of its own, then boxes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mp4Box {
    pub(super) kind: Kind,
    pub(super) fields: Vec<u8>,
    pub(super) boxes: Vec<Mp4Box>,
}

impl Mp4Box {
    /// Makes a box of version 0 without flags that holds `values`.
    pub(super) fn table(kind: Kind, values: impl IntoIterator<Item = u32>) -> Self {
        let fields = std::iter::once(0).chain(values);
        Self {
            kind,
            fields: fields.flat_map(u32::to_be_bytes).collect(),
            boxes: Vec::new(),
        }
    }

    /// Makes an empty box that takes `bytes` bytes with its header.
    pub(super) fn free(bytes: usize) -> Self {
        Self {
            kind: *b"free",
            fields: vec![0; bytes - 8],
            boxes: Vec::new(),
        }
    }

    fn parse(kind: Kind, content: &[u8]) -> Result<Self, BoxError> {
        let holds_boxes = matches!(
            &kind,
            b"moov" | b"trak" | b"edts" | b"mdia" | b"minf" | b"stbl" | b"mvex" | b"moof" | b"traf"
        );
        if !holds_boxes {
            return Ok(Self {
                kind,
                fields: content.to_vec(),
                boxes: Vec::new(),
            });
        }
        let mut boxes = Vec::new();
        let mut rest = content;
        while !rest.is_empty() {
            let mut header = Fields::of(kind, rest);
            let (size, inner) = (header.u32()? as usize, header.kind()?);
            let content = rest.get(8..size);
            let content = content.ok_or(BoxError::form(inner, "it passes the box around it"))?;
            boxes.push(Self::parse(inner, content)?);
            rest = &rest[size..];
        }
        Ok(Self {
            kind,
            fields: Vec::new(),
            boxes,
        })
    }

    /// Returns the number of bytes with the header.
    pub(super) fn len(&self) -> usize {
        8 + self.fields.len() + self.boxes.iter().map(Self::len).sum::<usize>()
    }

    /// Appends the bytes of the box.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.len() as u32).to_be_bytes());
        out.extend(self.kind);
        out.extend(&self.fields);
        for inner in &self.boxes {
            inner.write(out);
        }
    }

    /// Returns the first box at a path of types below this one.
    ///
    /// # Errors
    /// A box of the path is missing.
    pub(super) fn at(&self, path: &[Kind]) -> Result<&Self, BoxError> {
        path.iter().try_fold(self, |outer, kind| {
            let found = outer.boxes.iter().find(|b| b.kind == *kind);
            found.ok_or(BoxError::form(*kind, "it is missing"))
        })
    }

    /// Returns the first box at a path of types below this one, to change it.
    ///
    /// # Errors
    /// A box of the path is missing.
    pub(super) fn at_mut(&mut self, path: &[Kind]) -> Result<&mut Self, BoxError> {
        path.iter().try_fold(self, |outer, kind| {
            let found = outer.boxes.iter_mut().find(|b| b.kind == *kind);
            found.ok_or(BoxError::form(*kind, "it is missing"))
        })
    }

    /// Returns the boxes of one type directly below this one.
    pub(super) fn each(&self, kind: Kind) -> impl Iterator<Item = &Self> {
        self.boxes.iter().filter(move |b| b.kind == kind)
    }

    /// Returns the fields, to be read in order.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::of(self.kind, &self.fields)
    }

    /// Returns the 32-bit field at byte `at` of a box of version 0.
    ///
    /// # Errors
    /// The box is shorter, or has another version.
    pub(super) fn u32(&self, at: usize) -> Result<u32, BoxError> {
        if self.fields.first() != Some(&0) {
            return Err(BoxError::form(self.kind, "its version is not 0"));
        }
        self.fields().skip(at)?.u32()
    }

    /// Sets the 32-bit field at byte `at` of a box of version 0.
    ///
    /// # Errors
    /// The box is shorter, or has another version.
    pub(super) fn set_u32(&mut self, at: usize, value: u32) -> Result<(), BoxError> {
        self.u32(at)?;
        self.fields[at..at + 4].copy_from_slice(&value.to_be_bytes());
        Ok(())
    }
}

/// The fields of a box that are not read yet.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(kind: Kind, rest: &'a [u8]) -> Self {
        Self { kind, rest }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BoxError> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(BoxError::form(self.kind, "it is too short"))?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn kind(&mut self) -> Result<Kind, BoxError> {
        self.take()
    }

    /// Reads a 32-bit field.
    ///
    /// # Errors
    /// The box ends before.
    pub(super) fn u32(&mut self) -> Result<u32, BoxError> {
        self.take().map(u32::from_be_bytes)
    }

    /// Reads a 64-bit field.
    ///
    /// # Errors
    /// The box ends before.
    pub(super) fn u64(&mut self) -> Result<u64, BoxError> {
        self.take().map(u64::from_be_bytes)
    }

    /// Passes over `bytes` bytes.
    ///
    /// # Errors
    /// The box ends before.
    pub(super) fn skip(self, bytes: usize) -> Result<Self, BoxError> {
        match self.rest.get(bytes..) {
            Some(rest) => Ok(Self { rest, ..self }),
            None => Err(BoxError::form(self.kind, "it is too short")),
        }
    }
}
