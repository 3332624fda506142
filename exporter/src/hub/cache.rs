//! The hub's cache on this machine: `models--ORG--NAME/snapshots/COMMIT` holds links to
//! `models--ORG--NAME/blobs/HASH`, and `models--ORG--NAME/refs/REVISION` names the commit of a
//! branch. The folder of a snapshot is a checkpoint folder, and is read in place.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::error::HubError;
use super::id::{HubId, PREFIX};

/// The name of the published LoRA in its repository.
const LORA: &str = "liveavatar.safetensors";
/// The file that makes a folder a PEFT folder.
const PEFT: &str = "adapter_config.json";

/// Returns the value of an environment variable, unless it is empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Returns the cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else `~/.cache/huggingface/hub`, as
/// huggingface_hub's constants.py chooses it.
pub(super) fn cache() -> Result<Cache, HubError> {
    if let Some(folder) = variable("HF_HUB_CACHE") {
        return Ok(Cache::new(folder.into()));
    }
    if let Some(home) = variable("HF_HOME") {
        return Ok(Cache::new(Path::new(&home).join("hub")));
    }
    match std::env::home_dir() {
        Some(_) => Ok(Cache::default()),
        None => Err(HubError::NoHome),
    }
}

/// Returns one revision of a repository in the cache.
pub(super) fn cached(cache: &Cache, id: &HubId, revision: &str) -> CacheRepo {
    let (name, revision) = (id.name().to_owned(), revision.to_owned());
    cache.repo(Repo::with_revision(name, RepoType::Model, revision))
}

/// Returns the folder of a repository in the cache.
pub(super) fn folder(repo: &CacheRepo) -> PathBuf {
    // The library tells the folder of a snapshot only, which lies two floors below.
    let place = repo.pointer_path("-");
    place
        .ancestors()
        .nth(2)
        .expect("a snapshot lies in snapshots/ in the folder")
        .to_owned()
}

/// Returns the folder of the snapshot that `id` names.
fn snapshot(id: &HubId) -> Result<PathBuf, HubError> {
    let repo = cached(&cache()?, id, id.revision());
    let reference = folder(&repo).join("refs").join(id.revision());
    let commit = match fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        // A revision may be the commit itself.
        Err(_) => id.revision().to_owned(),
    };
    let place = repo.pointer_path(&commit);
    if place.is_dir() {
        return Ok(place);
    }
    let reference = if reference.exists() { place } else { reference };
    Err(HubError::NotCached {
        id: id.to_string(),
        place: reference,
    })
}

/// Returns the checkpoint folder that a flag names: a path, or `hf:ORG/NAME[@REVISION]` in the
/// cache. A path that exists has preference.
///
/// # Errors
/// A malformed name, or a repository that is not in the cache.
pub(crate) fn checkpoint_folder(named: &Path) -> Result<PathBuf, HubError> {
    match named.to_str() {
        Some(text) if text.starts_with(PREFIX) && !named.exists() => snapshot(&text.parse()?),
        _ => Ok(named.to_owned()),
    }
}

/// Returns the LoRA of a repository in the cache: its folder if that is a PEFT folder, else its
/// only file of weights.
///
/// # Errors
/// A repository that is not in the cache, or holds no LoRA or several.
pub(crate) fn lora_path(id: &HubId) -> Result<PathBuf, HubError> {
    let dir = snapshot(id)?;
    if dir.join(PEFT).is_file() {
        return Ok(dir);
    }
    let published = dir.join(LORA);
    if published.is_file() {
        return Ok(published);
    }
    let entries = fs::read_dir(&dir).map_err(|source| HubError::Io {
        path: dir.clone(),
        source,
    })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("safetensors")))
        .collect();
    found.sort();
    match &found[..] {
        [one] => Ok(one.clone()),
        _ => Err(HubError::NoLora {
            id: id.to_string(),
            dir,
            found: found.iter().filter_map(|p| name(p)).collect(),
        }),
    }
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}
