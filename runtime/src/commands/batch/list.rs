//! The videos of a batch: from a folder of sound files, or from a list in CSV, JSONL or TOML whose
//! columns are flags of `generate`. A list with a fault in its form is refused as a whole, before
//! anything is made. What a value means is checked later, video by video.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use engines::words::line_and_column;
use serde_json::Value;
use toml::de::{DeTable, DeValue};

use crate::commands::error::Error;
use crate::commands::layers::{Flags, Known, plain_value};

/// Endings of the files that a folder is searched for, in small letters.
const SOUND: [&str; 14] = [
    "aac", "ac3", "aif", "aiff", "amr", "caf", "flac", "m4a", "mka", "mp3", "oga", "ogg", "opus",
    "wav",
];
/// Flags that say nothing about one video.
const NO_COLUMNS: [&str; 4] = ["config", "json", "overwrite", "save-dir"];
/// Flags whose values are paths, which begin at the list's folder.
const PATHS: [&str; 7] = [
    "audio",
    "contact-sheet",
    "engines",
    "image",
    "models",
    "replay",
    "trace",
];
/// Name of the tables in a TOML list.
const TABLES: &str = "video";

/// One video of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    /// The file that the item comes from, and its line there; 0 for a sound file of a folder.
    pub(super) place: (PathBuf, usize),
    /// Flags and values; a switch that is on has no value.
    pub(super) fields: Vec<(String, Option<OsString>)>,
    /// The video to write.
    pub(super) video: PathBuf,
}

impl Item {
    fn field(&self, name: &str) -> Option<&OsString> {
        let found = self.fields.iter().rev().find(|(flag, _)| flag == name);
        found.and_then(|(_, value)| value.as_ref())
    }

    /// Returns the place in words: `list.csv:3`, or the sound file.
    pub(super) fn told(&self) -> String {
        match &self.place {
            (file, 0) => file.display().to_string(),
            (file, line) => format!("{}:{line}", file.display()),
        }
    }
}

/// Returns the videos of a folder or a list, and what is left out. `audio` is the sound of those
/// that name none.
///
/// # Errors
/// The list cannot be read, or has a fault; two videos have the same name; there is none.
pub(super) fn read(
    inputs: &Path,
    out_dir: &Path,
    audio: Option<&Path>,
) -> Result<(Vec<Item>, Vec<String>), Error> {
    let (mut items, notices) = match inputs.is_dir() {
        true => folder(inputs)?,
        false => (list(inputs)?, Vec::new()),
    };
    if items.is_empty() {
        let wanted = if inputs.is_dir() {
            "a sound file"
        } else {
            "an entry"
        };
        let text = format!("{}: wants at least {wanted}, has none", inputs.display());
        return Err(Error::Usage(text));
    }
    for item in &mut items {
        item.video = video(item, out_dir, audio)?;
    }
    let mut names: BTreeMap<&Path, &Item> = BTreeMap::new();
    for item in &items {
        if let Some(first) = names.insert(&item.video, item) {
            return Err(Error::Usage(format!(
                "{} and {} would both be written to {}; a list with a column `out` names them apart",
                first.told(),
                item.told(),
                item.video.display()
            )));
        }
    }
    Ok((items, notices))
}

/// Returns the name of an item's video.
fn video(item: &Item, out_dir: &Path, audio: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(out) = item.field("out") {
        return Ok(out_dir.join(out));
    }
    let audio = item.field("audio").map(Path::new).or(audio);
    let stem = audio
        .and_then(Path::file_stem)
        .ok_or_else(|| Error::ListField {
            place: item.told(),
            message: "column audio wants a sound file, got nothing".to_owned(),
        })?;
    let mut name = stem.to_owned();
    name.push("_avatar.mp4");
    Ok(out_dir.join(name))
}

fn cannot_read(file: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::List { file, source }
}

/// Returns the sound files of a folder by name, and a notice on other files.
fn folder(folder: &Path) -> Result<(Vec<Item>, Vec<String>), Error> {
    let (mut items, mut others) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).map_err(cannot_read(folder))? {
        let path = entry.map_err(cannot_read(folder))?.path();
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        match ending.to_str() {
            Some(ending) if SOUND.contains(&ending) && !hidden && !path.is_dir() => {
                items.push(Item {
                    fields: vec![("audio".to_owned(), Some(path.clone().into()))],
                    place: (path, 0),
                    video: PathBuf::new(),
                });
            }
            _ => others += usize::from(!hidden && !path.is_dir()),
        }
    }
    items.sort_by(|a, b| a.place.cmp(&b.place));
    let notice = (others > 0).then(|| {
        let (folder, endings) = (folder.display(), SOUND.join(", "));
        format!("{folder}: {others} files are left out, because a batch takes {endings}")
    });
    Ok((items, notice.into_iter().collect()))
}

fn list(file: &Path) -> Result<Vec<Item>, Error> {
    let ending = file.extension().unwrap_or_default().to_ascii_lowercase();
    let parse = match ending.to_str() {
        Some("csv") => csv,
        Some("jsonl" | "ndjson") => jsonl,
        Some("toml") => toml,
        _ if !file.exists() => {
            return Err(cannot_read(file)(std::io::ErrorKind::NotFound.into()));
        }
        _ => {
            return Err(Error::Usage(format!(
                "{}: batch wants a folder of sound files, or a list that ends in .csv, .jsonl or \
                 .toml",
                file.display()
            )));
        }
    };
    let bytes = fs::read(file).map_err(cannot_read(file))?;
    let text = std::str::from_utf8(&bytes).map_err(|fault| {
        let before = String::from_utf8_lossy(&bytes[..fault.valid_up_to()]);
        let (line, column) = line_and_column(&before, before.len());
        Error::ListField {
            place: format!("{}:{line}:{column}", file.display()),
            message: "wants UTF-8 text".to_owned(),
        }
    })?;
    let list = List {
        file,
        flags: Flags::new(),
        // A spreadsheet may begin its text with a byte-order mark.
        text: text.strip_prefix('\u{feff}').unwrap_or(text),
    };
    parse(&list)
}

/// A list that is being read.
struct List<'a> {
    file: &'a Path,
    flags: Flags,
    text: &'a str,
}

impl List<'_> {
    fn fault(&self, (line, column): (usize, usize), message: impl Into<String>) -> Error {
        let file = self.file.display();
        let place = match column {
            0 => format!("{file}:{line}"),
            _ => format!("{file}:{line}:{column}"),
        };
        Error::ListField {
            place,
            message: message.into(),
        }
    }

    /// Returns the flag of a column, by any spelling of its name.
    fn flag(&self, column: &str) -> Result<&Known, String> {
        let name = column.trim().to_ascii_lowercase().replace('_', "-");
        let known = self.flags.get(&name);
        let known = known.filter(|known| !NO_COLUMNS.contains(&known.name.as_str()));
        known.ok_or_else(|| {
            let near = self.flags.nearest(&name);
            let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            format!("column {column} is no flag of generate for one video{hint}")
        })
    }

    /// Returns a value as a flag of a command line.
    fn value(&self, known: &Known, text: &str) -> OsString {
        if !PATHS.contains(&known.name.as_str()) {
            return text.into();
        }
        let folder = self.file.parent().unwrap_or(Path::new(""));
        folder.join(text).into()
    }

    /// Returns a field of CSV. An empty one says nothing.
    fn cell(&self, known: &Known, text: &str) -> Result<Option<Option<OsString>>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if known.takes_value {
            return Ok(Some(Some(self.value(known, text))));
        }
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Ok(Some(None)),
            "0" | "false" | "no" | "off" => Ok(None),
            got => Err(format!(
                "column {} wants true or false, got `{got}`",
                known.name
            )),
        }
    }

    fn item(&self, line: usize, fields: Vec<(String, Option<OsString>)>) -> Item {
        Item {
            place: (self.file.to_owned(), line),
            fields,
            video: PathBuf::new(),
        }
    }
}

fn csv(list: &List<'_>) -> Result<Vec<Item>, Error> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(list.text.as_bytes());
    let broken = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line) as usize;
        let message = match error.kind() {
            csv::ErrorKind::UnequalLengths {
                expected_len, len, ..
            } => format!("wants {expected_len} columns as the first line has, got {len}"),
            _ => error.to_string(),
        };
        list.fault((line, 0), message)
    };
    let header = reader.headers().map_err(broken)?.clone();
    let mut columns = Vec::new();
    for (at, name) in header.iter().enumerate() {
        let known = list.flag(name);
        let known = known.map_err(|e| list.fault((1, 0), format!("field {}: {e}", at + 1)))?;
        if columns.iter().any(|c: &&Known| c.name == known.name) {
            return Err(list.fault(
                (1, 0),
                format!("field {}: column {name} is there twice", at + 1),
            ));
        }
        columns.push(known);
    }
    let mut items = Vec::new();
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line) as usize;
        let mut fields = Vec::new();
        for (known, text) in columns.iter().zip(&record) {
            let cell = list
                .cell(known, text)
                .map_err(|e| list.fault((line, 0), e))?;
            fields.extend(cell.map(|value| (known.name.clone(), value)));
        }
        items.push(list.item(line, fields));
    }
    Ok(items)
}

fn jsonl(list: &List<'_>) -> Result<Vec<Item>, Error> {
    let mut items = Vec::new();
    for (at, text) in list.text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        let line = at + 1;
        let object: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            let reason = e.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            list.fault(
                (line, e.column()),
                format!("wants a JSON object on each line: {reason}"),
            )
        })?;
        let mut fields = Vec::new();
        for (column, value) in &object {
            let known = list.flag(column).map_err(|e| list.fault((line, 0), e))?;
            let value = match (value, known.takes_value) {
                (Value::Null, _) | (Value::Bool(false), false) => continue,
                (Value::Bool(true), false) => None,
                (Value::String(text), true) => Some(list.value(known, text)),
                (Value::Bool(_) | Value::Number(_), true) => Some(value.to_string().into()),
                (_, takes_value) => {
                    let want = wanted(takes_value);
                    let message = format!("column {column} wants {want}, got {value}");
                    return Err(list.fault((line, 0), message));
                }
            };
            fields.push((known.name.clone(), value));
        }
        items.push(list.item(line, fields));
    }
    Ok(items)
}

fn wanted(takes_value: bool) -> &'static str {
    match takes_value {
        true => "a string, a number or a boolean",
        false => "true or false",
    }
}

fn toml(list: &List<'_>) -> Result<Vec<Item>, Error> {
    let at = |byte: usize| line_and_column(list.text, byte);
    let parsed = DeTable::parse(list.text).map_err(|e| {
        let message = e.message().replace('\n', "; ");
        list.fault(at(e.span().map_or(0, |span| span.start)), message)
    })?;
    let mut items = Vec::new();
    for (key, value) in parsed.get_ref() {
        let tables = value.get_ref().as_array();
        let tables = tables.filter(|_| key.get_ref() == TABLES).ok_or_else(|| {
            let message = format!("wants [[{TABLES}]] tables, got {}", key.get_ref());
            list.fault(at(key.span().start), message)
        })?;
        for table in tables.iter() {
            let start = at(table.span().start);
            let DeValue::Table(fields) = table.get_ref() else {
                return Err(list.fault(start, format!("wants [[{TABLES}]] tables")));
            };
            let mut given = Vec::new();
            for (key, value) in fields {
                let column = key.get_ref().as_ref();
                let known = list.flag(column);
                let known = known.map_err(|e| list.fault(at(key.span().start), e))?;
                let value_at = at(value.span().start);
                let value = plain_value(column, known, value.get_ref());
                let value = value.map_err(|e| list.fault(value_at, e))?;
                let Some(value) = value else { continue };
                let value = value.map(|v| match v.to_str() {
                    Some(text) => list.value(known, text),
                    None => v,
                });
                given.push((known.name.clone(), value));
            }
            items.push(list.item(start.0, given));
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Result<Vec<Item>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        let place = format!("{}/", dir.path().display());
        let read = read(&file, Path::new("o"), None);
        let read = read.map_err(|e| e.to_string().replace(&place, ""))?;
        let mut items = read.0;
        for item in &mut items {
            item.place.0 = item.place.0.file_name().unwrap().into();
            for (_, value) in &mut item.fields {
                let text = value
                    .as_ref()
                    .map(|v| v.to_str().unwrap().replace(&place, ""));
                *value = text.map(Into::into);
            }
        }
        Ok(items)
    }

    fn told(items: &[Item]) -> Vec<String> {
        let fields = |item: &Item| {
            let field = |(flag, value): &(String, Option<OsString>)| match value {
                Some(value) => format!("{flag}={}", value.to_str().unwrap()),
                None => flag.clone(),
            };
            item.fields.iter().map(field).collect::<Vec<_>>().join(" ")
        };
        let one = |i: &Item| format!("{} {} -> {}", i.told(), fields(i), i.video.display());
        items.iter().map(one).collect()
    }

    #[test]
    fn the_three_kinds_of_list_say_the_same() {
        let csv =
            "audio, Base_Seed,prompt,host_rings\na.wav,7,\"a man, he speaks\",yes\n\nb.wav,,,no\n";
        let want = |lines: [usize; 2], name: &str| {
            vec![
                format!(
                    "{name}:{} audio=a.wav base-seed=7 prompt=a man, he speaks host-rings -> \
                     o/a_avatar.mp4",
                    lines[0]
                ),
                format!("{name}:{} audio=b.wav -> o/b_avatar.mp4", lines[1]),
            ]
        };
        assert_eq!(told(&of("l.csv", csv).unwrap()), want([2, 4], "l.csv"));
        let marked = format!("\u{feff}{csv}");
        assert_eq!(told(&of("l.csv", &marked).unwrap()), want([2, 4], "l.csv"));
        let jsonl = "{\"audio\":\"a.wav\",\"base_seed\":7,\"prompt\":\"a man, he speaks\",\
                     \"host_rings\":true}\n\n{\"audio\":\"b.wav\",\"prompt\":null}";
        assert_eq!(
            told(&of("l.jsonl", jsonl).unwrap()),
            want([1, 3], "l.jsonl")
        );
        let toml = "[[video]]\naudio = 'a.wav'\nbase_seed = 7\nprompt = 'a man, he speaks'\n\
                    host_rings = true\n[[video]]\naudio = 'b.wav'\nhost_rings = false\n";
        let mut got = of("l.toml", toml).unwrap();
        got.iter_mut().for_each(|item| item.fields.sort());
        let mut want = want([1, 6], "l.toml");
        want[0] = want[0].replace(
            "prompt=a man, he speaks host-rings",
            "host-rings prompt=a man, he speaks",
        );
        assert_eq!(told(&got), want);
    }

    #[test]
    fn a_fault_names_file_line_and_column() {
        for (name, text, want) in [
            (
                "l.csv",
                "audio,sed\n",
                "l.csv:1: field 2: column sed is no flag of generate for one video; did you mean `seed`?",
            ),
            (
                "l.csv",
                "audio,json\n",
                "l.csv:1: field 2: column json is no flag",
            ),
            (
                "l.csv",
                "audio,seed,base_seed\n",
                "l.csv:1: field 3: column base_seed is there twice",
            ),
            (
                "l.csv",
                "audio,seed\na.wav\n",
                "l.csv:2: wants 2 columns as the first line has, got 1",
            ),
            (
                "l.csv",
                "audio,virtual\na.wav,perhaps\n",
                "l.csv:2: column virtual wants true or false",
            ),
            (
                "l.csv",
                "seed\n\n4\n",
                "l.csv:3: column audio wants a sound file, got nothing",
            ),
            (
                "l.csv",
                "audio\n",
                "l.csv: wants at least an entry, has none",
            ),
            (
                "l.csv",
                "audio\na.wav\nd/a.mp3\n",
                "l.csv:2 and l.csv:3 would both be written to o/a_avatar.mp4",
            ),
            (
                "l.jsonl",
                "{\"audio\":\"a\"}\n{\"audio\":}",
                "l.jsonl:2:10: wants a JSON object on each line: ",
            ),
            (
                "l.jsonl",
                "{\"audio\":[1]}",
                "l.jsonl:1: column audio wants a string, a number or a boolean, got [1]",
            ),
            ("l.toml", "[[video]]\naudio = ", "l.toml:2:9: "),
            (
                "l.toml",
                "[[video]]\nsed = 1",
                "l.toml:2:1: column sed is no flag",
            ),
            (
                "l.toml",
                "[[video]]\naudio = [1]",
                "l.toml:2:9: key audio wants a string",
            ),
            (
                "l.toml",
                "audio = 'a'",
                "l.toml:1:1: wants [[video]] tables, got audio",
            ),
            (
                "l.txt",
                "a.wav",
                "l.txt: batch wants a folder of sound files, or a list",
            ),
        ] {
            let error = of(name, text).unwrap_err();
            assert!(error.starts_with(want), "{text:?}: {error}");
        }
        let missing = read(Path::new("no.csv"), Path::new("o"), None).unwrap_err();
        assert!(
            missing.to_string().starts_with("no.csv: cannot read: "),
            "{missing}"
        );
    }

    #[test]
    fn a_folder_gives_its_sound_files_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.WAV", "a.mp3", "notes.txt", ".hidden.wav"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join("folder.wav")).unwrap();
        let (items, notices) = read(dir.path(), Path::new("o"), None).unwrap();
        let videos: Vec<_> = items.iter().map(|i| i.video.to_str().unwrap()).collect();
        assert_eq!(videos, ["o/a_avatar.mp4", "o/b_avatar.mp4"]);
        assert!(notices[0].contains(": 1 files are left out"), "{notices:?}");
    }
}
