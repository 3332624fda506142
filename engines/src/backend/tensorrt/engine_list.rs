//! `engines.json`: a folder of engines for one kind of GPU and one size of video, and the sources
//! of each. A loader checks them against the models, the library and the GPU before it loads
//! anything. An engine that differs is refused, with the command that rebuilds it.

use super::{Flavour, TensorRtError};
use crate::components;
use crate::contract::{Contract, Weights};
use crate::manifest::{ComponentEntry, DataEntry, FileEntry, Models, hash_file};
use crate::recipe::Recipe;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Layout of the folder; a reader refuses any other.
pub const FORMAT: &str = "liveavatar-engines/1";
/// Name of the list inside the folder.
pub const FILE: &str = "engines.json";

/// Smallest, usual and largest value of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Smallest value.
    pub min: i64,
    /// Value that the engine is tuned for.
    pub opt: i64,
    /// Largest value.
    pub max: i64,
}

impl Range {
    /// Makes the range of a size that never varies.
    pub const fn fixed(n: i64) -> Self {
        Self {
            min: n,
            opt: n,
            max: n,
        }
    }

    /// Says whether the range is one number.
    pub const fn is_fixed(self) -> bool {
        self.min == self.max
    }
}

/// One engine.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineEntry {
    /// Name of the graph that it was built from, such as `dit_layer`: all layers share it.
    pub name: String,
    /// Name of the contract.
    pub contract: String,
    /// Fingerprint of the contract.
    pub fingerprint: String,
    /// BLAKE3 of the graph's file.
    pub graph: String,
    /// BLAKE3 of the data file whose weights are inside; `None` when they are bound for each call.
    pub data: Option<String>,
    /// Hash of everything the engine depends on; part of its file name.
    pub key: String,
    /// File of the engine.
    pub file: FileEntry,
    /// Values of the symbols it takes.
    pub sizes: BTreeMap<String, Range>,
    /// Seconds that the build took.
    pub build_seconds: f64,
    /// Peak of anonymous host memory while it was built, in bytes.
    pub build_memory: u64,
}

/// The whole folder.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineList {
    /// Layout of the folder, [`FORMAT`].
    pub format: String,
    /// Library that built the engines.
    pub flavour: Flavour,
    /// Version of the library, e.g. `1.7.1`.
    pub version: String,
    /// Streaming multiprocessor version, e.g. 89.
    pub sm: u32,
    /// Precision of the export.
    pub recipe: Recipe,
    /// The command that made it.
    pub command: String,
    /// Engines.
    pub engines: Vec<EngineEntry>,
}

impl EngineList {
    /// Reads the list of a folder. Returns `None` where there is none that can be read; opening the
    /// folder says why.
    pub fn of_folder(dir: &Path) -> Option<Self> {
        parse(&std::fs::read_to_string(dir.join(FILE)).ok()?).ok()
    }

    /// Tells the components that the list has engines of from those that it lacks.
    pub fn covers(&self, models: &Models) -> (BTreeSet<String>, BTreeSet<String>) {
        let has = |c: &&ComponentEntry| self.engines.iter().any(|e| e.name == engine_name(c));
        let (has, lacks): (Vec<_>, Vec<_>) = models.manifest().components.iter().partition(has);
        let names = |all: Vec<&ComponentEntry>| all.iter().map(|c| c.name.clone()).collect();
        (names(has), names(lacks))
    }
}

/// The library and the GPU of a loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// Library that this binary was built with.
    pub flavour: Flavour,
    /// Version of the library.
    pub version: String,
    /// Streaming multiprocessor version of the GPU.
    pub sm: u32,
}

/// An opened folder whose every engine fits the models, the library and the GPU.
#[derive(Clone, Debug)]
pub struct Engines {
    dir: PathBuf,
    list: EngineList,
}

impl Engines {
    /// Opens a folder and checks it: library, GPU, then the engine of every wanted component, its
    /// bytes included.
    ///
    /// # Errors
    /// Something does not fit; the error names the command that rebuilds it.
    pub fn open(
        dir: &Path,
        models: &Models,
        here: &Here,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Self, TensorRtError> {
        let path = dir.join(FILE);
        let list = read(&path, models, here)?;
        let engines = Self {
            dir: dir.to_owned(),
            list,
        };
        engines.check_machine(&path, models, here)?;
        let mut checked = BTreeSet::new();
        for c in models
            .manifest()
            .components
            .iter()
            .filter(|c| wanted(&c.name))
        {
            // Layers share an engine, and it is read once.
            if checked.insert(engine_name(c)) {
                engines.check(c, models, here)?;
            }
        }
        Ok(engines)
    }

    /// Finds the engine of a component and its file.
    pub fn of(&self, component: &ComponentEntry) -> Option<(&EngineEntry, PathBuf)> {
        let name = engine_name(component);
        let entry = self.list.engines.iter().find(|e| e.name == name)?;
        Some((entry, self.dir.join(&entry.file.file)))
    }

    /// Returns the list.
    pub fn list(&self) -> &EngineList {
        &self.list
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn check_machine(
        &self,
        path: &Path,
        models: &Models,
        here: &Here,
    ) -> Result<(), TensorRtError> {
        let s = &self.list;
        let facts = [
            ("TensorRT", here.flavour.to_string(), s.flavour.to_string()),
            (
                "version of TensorRT",
                here.version.clone(),
                s.version.clone(),
            ),
            (
                "SM version of the GPU",
                here.sm.to_string(),
                s.sm.to_string(),
            ),
            ("recipe", models.recipe().to_string(), s.recipe.to_string()),
        ];
        match facts.into_iter().find(|(_, want, got)| want != got) {
            None => Ok(()),
            Some((what, want, got)) => Err(TensorRtError::Foreign {
                path: path.to_owned(),
                what: what.to_owned(),
                want,
                got,
                rebuild: rebuild(&self.dir, models, here),
            }),
        }
    }

    fn check(
        &self,
        component: &ComponentEntry,
        models: &Models,
        here: &Here,
    ) -> Result<(), TensorRtError> {
        let rebuild = rebuild(&self.dir, models, here);
        let Some((entry, path)) = self.of(component) else {
            return Err(TensorRtError::Missing {
                path: self.dir.join(FILE),
                engine: engine_name(component).to_owned(),
                have: match &self.list.engines[..] {
                    [] => "none".to_owned(),
                    some => some
                        .iter()
                        .map(|e| e.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                },
                rebuild,
            });
        };
        let none = || "none".to_owned();
        let data = data_of(component, &models.manifest().data);
        let mut facts = vec![
            (
                format!("fingerprint of contract {}", component.contract),
                component.fingerprint.clone(),
                entry.fingerprint.clone(),
            ),
            (
                "hash of the graph".to_owned(),
                component.graph.blake3.clone(),
                entry.graph.clone(),
            ),
            (
                "hash of the weights".to_owned(),
                data.map_or_else(none, |d| d.file.blake3.clone()),
                entry.data.clone().unwrap_or_else(none),
            ),
        ];
        let foreign = |(what, want, got)| TensorRtError::Foreign {
            path: path.clone(),
            what,
            want,
            got,
            rebuild: rebuild.clone(),
        };
        if let Some(at) = facts.iter().position(|(_, want, got)| want != got) {
            return Err(foreign(facts.swap_remove(at)));
        }
        if Path::new(&entry.file.file).components().count() != 1 {
            let want = "inside its folder".to_owned();
            let got = entry.file.file.clone();
            return Err(foreign(("name of the file".to_owned(), want, got)));
        }
        let read = |source| TensorRtError::Read {
            path: path.clone(),
            source,
            rebuild: rebuild.clone(),
        };
        let bytes = std::fs::metadata(&path).map_err(read)?.len();
        if bytes != entry.file.bytes {
            let want = format!("{} bytes", entry.file.bytes);
            return Err(foreign(("size".to_owned(), want, format!("{bytes} bytes"))));
        }
        let hash = hash_file(&path).map_err(read)?;
        if hash != entry.file.blake3 {
            let want = entry.file.blake3.clone();
            return Err(foreign(("hash of the engine".to_owned(), want, hash)));
        }
        Ok(())
    }
}

/// Names the engine that runs a component: that of its graph's file.
pub fn engine_name(component: &ComponentEntry) -> &str {
    let file = &component.graph.file;
    file.strip_suffix(".onnx").unwrap_or(file)
}

/// Finds the data file whose weights are inside a component's engine; `None` when they are bound.
pub fn data_of<'d>(component: &ComponentEntry, data: &'d [DataEntry]) -> Option<&'d DataEntry> {
    let contract: Option<&Contract> = components::ALL
        .iter()
        .find(|c| c.name == component.contract);
    match contract.map(|c| c.weights) {
        Some(Weights::Bound) => None,
        _ => data.iter().find(|d| d.file.file == component.data),
    }
}

fn read(path: &Path, models: &Models, here: &Here) -> Result<EngineList, TensorRtError> {
    let dir = path.parent().unwrap_or(path);
    let rebuild = || rebuild(dir, models, here);
    let text = std::fs::read_to_string(path).map_err(|source| TensorRtError::Read {
        path: path.to_owned(),
        source,
        rebuild: rebuild(),
    })?;
    parse(&text).map_err(|reason| TensorRtError::Malformed {
        path: path.to_owned(),
        reason,
        rebuild: rebuild(),
    })
}

/// Reads a list of engines.
///
/// # Errors
/// The reason why it is none.
pub fn parse(text: &str) -> Result<EngineList, String> {
    let probe: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    match probe.get("format").and_then(|f| f.as_str()) {
        Some(FORMAT) => serde_json::from_value(probe).map_err(|e| e.to_string()),
        found => Err(format!(
            "field format: wanted {FORMAT:?}, found {:?}",
            found.unwrap_or("nothing")
        )),
    }
}

/// Writes the command that builds a folder for the library and GPU at hand. Its sizes are those of
/// the profile that the folder was built for, which only its user knows.
fn rebuild(dir: &Path, models: &Models, here: &Here) -> String {
    let command = |at: &str| at.parse::<EngineList>().ok().map(|s| s.command);
    let known = std::fs::read_to_string(dir.join(FILE))
        .ok()
        .and_then(|t| command(&t));
    known.map(|c| retarget(&c, here)).unwrap_or_else(|| {
        format!(
            "avatar-export build --models {} --out {} --backend {} --sm {}",
            models.dir().display(),
            dir.display(),
            here.flavour,
            here.sm
        )
    })
}

impl std::str::FromStr for EngineList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
    }
}

/// The command that made a folder, for the GPU and the library at hand.
fn retarget(command: &str, here: &Here) -> String {
    let mut words: Vec<&str> = command.split(' ').collect();
    let (sm, flavour) = (here.sm.to_string(), here.flavour.name());
    for at in 1..words.len() {
        match words[at - 1] {
            "--sm" => words[at] = &sm,
            "--backend" => words[at] = flavour,
            _ => {}
        }
    }
    words.join(" ")
}
