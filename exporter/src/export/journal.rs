//! The journal of an unfinished export. It names the request, and lists the written blocks of each
//! data file with their hashes.
//!
//! A listed block need not be on the disk: the next run hashes every listed block again. So a line
//! may be lost or torn, and nothing is synchronised before a line is written. The first line is
//! JSON and describes the request; each further line is `FILE BLOCK HASH`. Not here: data files.
use blake3::hazmat::ChainingValue;
use engines::recipe::Recipe;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Name of the journal inside the unfinished folder.
pub(super) const FILE: &str = "export.journal";

/// Version of the journal. It changes when the blocks of an older journal could differ from the
/// blocks of this code.
const FORMAT: u32 = 1;

/// Everything that the bytes of an export depend on. A checkpoint file counts by size and time of
/// change; its folder does not matter.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Identity {
    format: u32,
    exporter: String,
    pub(super) recipe: Recipe,
    /// Number of layers, when the checkpoint is cut.
    pub(super) layers: Option<usize>,
    /// The LoRAs in the order of their merge.
    pub(super) loras: Vec<MergedLora>,
    pub(super) checkpoint: Vec<Stamp>,
    /// Hash of contracts, and of every weight's name, key, transform, types, shapes and place.
    pub(super) graphs: String,
}

/// A LoRA that the export merges.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct MergedLora {
    /// Hash of its files.
    pub(super) blake3: String,
    /// Hash of the factor of each weight.
    pub(super) factors: String,
}

/// A checkpoint file.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Stamp {
    pub(super) file: String,
    pub(super) bytes: u64,
    /// Time of the last change, since 1970.
    pub(super) nanoseconds: u128,
}

impl Identity {
    pub(super) fn new(recipe: Recipe, layers: Option<usize>, graphs: String) -> Self {
        Self {
            format: FORMAT,
            exporter: env!("CARGO_PKG_VERSION").to_owned(),
            recipe,
            layers,
            loras: Vec::new(),
            checkpoint: Vec::new(),
            graphs,
        }
    }

    /// Returns the difference to another request, for a notice.
    fn difference(&self, other: &Self) -> &'static str {
        match () {
            () if (self.format, &self.exporter) != (other.format, &other.exporter) => {
                "another version of the exporter"
            }
            () if self.recipe != other.recipe => "another recipe",
            () if self.layers != other.layers => "another number of layers",
            () if self.loras != other.loras => self.lora_difference(other),
            () if self.checkpoint != other.checkpoint => "other or changed checkpoint files",
            () => "other graphs",
        }
    }

    fn lora_difference(&self, other: &Self) -> &'static str {
        let files = |of: &Self| {
            of.loras
                .iter()
                .map(|l| l.blake3.clone())
                .collect::<Vec<_>>()
        };
        if files(self) == files(other) {
            "another LoRA strength"
        } else {
            "another list of LoRAs"
        }
    }
}

/// Hashes of written blocks, by data file and block.
pub(super) type Known = BTreeMap<(String, u64), ChainingValue>;

/// An open journal of one request.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    known: Known,
}

/// The content of a journal file.
pub(super) enum Found {
    /// Nothing, or no journal at all.
    Nothing,
    /// The journal of this request.
    Same(Known),
    /// The journal of another request, which differs in this.
    Other(&'static str),
}

impl Journal {
    /// Reads `file`, and starts it again unless it is the journal of `identity`. Returns the
    /// journal, and the difference to another request whose journal it was.
    pub(super) fn open(
        mut file: File,
        identity: &Identity,
        anew: bool,
    ) -> io::Result<(Self, Option<&'static str>)> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // A line without its end is ignored.
        let whole = bytes
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let other = match parse(&text, identity) {
            Found::Same(known) if !anew => {
                file.set_len(whole as u64)?;
                file.seek(SeekFrom::End(0))?;
                return Ok((Self { file, known }, None));
            }
            Found::Other(why) if !anew => Some(why),
            _ => None,
        };
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        let mut header = serde_json::to_vec(identity)?;
        header.push(b'\n');
        file.write_all(&header)?;
        let known = Known::new();
        Ok((Self { file, known }, other))
    }

    /// Returns the listed blocks.
    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// Adds a written block.
    pub(super) fn add(&mut self, file: &str, block: u64, hash: &ChainingValue) -> io::Result<()> {
        let hash = blake3::Hash::from_bytes(*hash).to_hex();
        self.file
            .write_all(format!("{file} {block} {hash}\n").as_bytes())
    }
}

/// Reads a journal up to the first line that is malformed.
pub(super) fn parse(text: &str, identity: &Identity) -> Found {
    let mut lines = text.lines();
    let Some(header) = lines
        .next()
        .and_then(|l| serde_json::from_str::<Identity>(l).ok())
    else {
        return Found::Nothing;
    };
    if header != *identity {
        return Found::Other(identity.difference(&header));
    }
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (file, block, hash) = (words.next()?, words.next()?, words.next()?);
        let hash = blake3::Hash::from_hex(hash).ok()?;
        Some((
            (file.to_owned(), block.parse::<u64>().ok()?),
            *hash.as_bytes(),
        ))
    };
    Found::Same(lines.map_while(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn identity(layers: usize) -> Identity {
        let mut identity = Identity::new(Recipe::Fp32, Some(layers), "g".into());
        let lora = |blake3: &str| MergedLora {
            blake3: blake3.into(),
            factors: "f".into(),
        };
        identity.loras = vec![lora("a"), lora("b")];
        identity
    }

    fn open(path: &std::path::Path) -> File {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    }

    #[test]
    fn whole_lines_of_the_same_request_are_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let (mut journal, other) = Journal::open(open(&path), &identity(1), false).unwrap();
        assert_eq!((journal.known().len(), other), (0, None));
        journal.add("a.data", 0, &[1; 32]).unwrap();
        journal.add("a.data", 7, &[2; 32]).unwrap();
        // Cut at every byte of the last line, and written on.
        let bytes = fs::read(&path).unwrap();
        let line = "a.data 7 ".len() + 64 + 1;
        for cut in 0..=line {
            fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
            let (mut journal, _) = Journal::open(open(&path), &identity(1), false).unwrap();
            assert_eq!(journal.known().len(), if cut == 0 { 2 } else { 1 });
            journal.add("b.data", 3, &[3; 32]).unwrap();
            let (journal, _) = Journal::open(open(&path), &identity(1), false).unwrap();
            assert_eq!(journal.known()[&("b.data".to_owned(), 3)], [3; 32]);
        }
    }

    type Change = fn(&mut Identity);

    #[test]
    fn another_request_begins_anew_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let changed = |change: Change| {
            let mut other = identity(1);
            change(&mut other);
            other
        };
        let cases: [(Change, &str); 7] = [
            (
                |i| i.exporter = "0.0.0".into(),
                "another version of the exporter",
            ),
            (|i| i.recipe = Recipe::Bf16, "another recipe"),
            (|i| i.layers = None, "another number of layers"),
            (|i| i.loras[1].factors = "g".into(), "another LoRA strength"),
            (|i| i.loras.truncate(1), "another list of LoRAs"),
            (|i| i.loras.reverse(), "another list of LoRAs"),
            (|i| i.graphs = "h".into(), "other graphs"),
        ];
        for (change, want) in cases {
            let (mut journal, _) = Journal::open(open(&path), &identity(1), true).unwrap();
            journal.add("a.data", 0, &[1; 32]).unwrap();
            let (journal, other) = Journal::open(open(&path), &changed(change), false).unwrap();
            assert_eq!((journal.known().len(), other), (0, Some(want)));
        }
        fs::write(&path, "{}\n").unwrap();
        let (journal, other) = Journal::open(open(&path), &identity(1), false).unwrap();
        assert_eq!((journal.known().len(), other), (0, None));
    }
}
