//! Downloads revisions of repositories into the cache.
//!
//! `hf-hub` fetches one file and continues what it left. It neither checks a hash nor asks for room
//! on the disk, and its own retries lose the place in the file. So this module lists all files
//! first, calls the library once for each attempt, and hashes every file. Only when every file is
//! whole, the branch's name points to the new snapshot.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use engines::error_kind::Shortage;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{cache, cached, folder, variable};
use super::error::HubError;
use super::id::HubId;
use super::listing::{Hash, Listing, RemoteFile};
use crate::checkpoint::sums::SumsProgress;
use crate::export::{self, Event};

/// The hub, where `HF_ENDPOINT` names no other.
const ENDPOINT: &str = "https://huggingface.co";
/// Attempts in a row that bring no byte, before a download is given up.
const ATTEMPTS: u32 = 4;
/// Time before the second attempt. Each further one waits twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes that are hashed at once.
const HASHED_AT_ONCE: usize = 1 << 20;

/// What to download.
#[derive(Clone, Debug)]
pub(crate) struct Download {
    pub(crate) ids: Vec<HubId>,
    /// Every file, in place of those that an export reads.
    pub(crate) all: bool,
    /// Only tell sizes and room.
    pub(crate) dry_run: bool,
}

/// What a download tells.
pub(crate) enum Told<'a> {
    /// A line for standard output.
    Line(String),
    /// Progress, and notices.
    Event(Event<'a>),
}

/// Downloads what is not in the cache yet, and checks the hash of every file.
///
/// # Errors
/// A repository that cannot be read, a lack of room, a connection that stays broken, or a file that
/// is not what the hub states.
pub(crate) fn download(request: &Download, tell: &mut dyn FnMut(Told<'_>)) -> Result<(), HubError> {
    let hub = Hub::open()?;
    let repositories = request
        .ids
        .iter()
        .map(|id| Repository::list(&hub, id, request.all))
        .collect::<Result<Vec<_>, _>>()?;
    for repository in &repositories {
        tell(Told::Line(repository.to_line()));
    }
    let sum = |bytes: fn(&Repository) -> u64| repositories.iter().map(bytes).sum::<u64>();
    let (total, kept) = (sum(Repository::bytes), sum(Repository::kept));
    let room = Room::of(hub.cache.path())?;
    tell(Told::Line(room.to_line(total - kept)));
    room.check(total - kept)?;
    if request.dry_run {
        return Ok(());
    }
    let mut meter = Meter {
        kept,
        total,
        fetched: 0,
        hashed: 0,
        tell,
    };
    for repository in &repositories {
        repository.fetch(&hub, &mut meter)?;
        let place = repository.cached.pointer_path(&repository.listing.commit);
        let line = format!("{} is in {}", repository.id, place.display());
        (meter.tell)(Told::Line(line));
    }
    Ok(())
}

/// The hub and its cache, as the environment names them.
struct Hub {
    api: Api,
    endpoint: String,
    cache: Cache,
}

impl Hub {
    fn open() -> Result<Self, HubError> {
        let cache = cache()?;
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        // The builder takes the token that `hf auth login` left beside the cache.
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_progress(false)
            .with_user_agent("liveavatar-rt", env!("CARGO_PKG_VERSION"));
        if let Some(token) = variable("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        let api = builder.build().map_err(|e| HubError::Network {
            id: "hub".to_owned(),
            endpoint: endpoint.clone(),
            what: "anything".to_owned(),
            reason: e.to_string(),
        })?;
        Ok(Self {
            api,
            endpoint,
            cache,
        })
    }

    /// Returns one revision of a repository on the hub.
    fn remote(&self, id: &HubId, revision: &str) -> ApiRepo {
        let (name, revision) = (id.name().to_owned(), revision.to_owned());
        self.api
            .repo(Repo::with_revision(name, RepoType::Model, revision))
    }
}

/// One revision to download.
struct Repository {
    id: HubId,
    listing: Listing,
    cached: CacheRepo,
}

impl Repository {
    /// Asks the hub for the files of a revision.
    fn list(hub: &Hub, id: &HubId, all: bool) -> Result<Self, HubError> {
        let network = |reason: String| HubError::Network {
            id: id.to_string(),
            endpoint: hub.endpoint.clone(),
            what: "the list of files".to_owned(),
            reason,
        };
        let request = hub.remote(id, id.revision()).info_request();
        let mut answer = request.query("blobs", "true").call().map_err(|e| match e {
            ureq::Error::StatusCode(code) => HubError::status(id, &hub.endpoint, None, code),
            other => network(other.to_string()),
        })?;
        let text = answer.body_mut().read_to_string();
        let text = text.map_err(|e| network(e.to_string()))?;
        let mut listing = Listing::parse(&text).map_err(|reason| HubError::Listing {
            id: id.to_string(),
            endpoint: hub.endpoint.clone(),
            reason,
        })?;
        let found = listing.names();
        if !all {
            listing.keep_needed();
        }
        if listing.files.is_empty() {
            let id = id.to_string();
            return Err(HubError::Nothing { id, found });
        }
        Ok(Self {
            cached: cached(&hub.cache, id, id.revision()),
            id: id.clone(),
            listing,
        })
    }

    fn bytes(&self) -> u64 {
        self.listing.files.iter().map(|f| f.bytes).sum()
    }

    /// Returns the bytes that are in the cache: whole files, and parts of files.
    fn kept(&self) -> u64 {
        self.listing.files.iter().map(|f| self.kept_of(f)).sum()
    }

    fn kept_of(&self, file: &RemoteFile) -> u64 {
        let blob = self.blob(file);
        let length = |path: &Path| fs::metadata(path).ok().map(|m| m.len());
        let kept = length(&blob).or_else(|| length(&part_of(&blob)));
        kept.unwrap_or(0).min(file.bytes)
    }

    fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.cached.blob_path(file.hash.digits())
    }

    fn to_line(&self) -> String {
        format!(
            "{} at commit {}: {} files, {:.2} GB, of which {:.2} GB are in the cache",
            self.id,
            &self.listing.commit[..8],
            self.listing.files.len(),
            gb(self.bytes()),
            gb(self.kept())
        )
    }

    /// Fetches and checks every file. Then the name of the revision gets its commit.
    fn fetch(&self, hub: &Hub, meter: &mut Meter<'_>) -> Result<(), HubError> {
        let commit = &self.listing.commit;
        let remote = hub.remote(&self.id, commit);
        for file in &self.listing.files {
            self.fetch_file(hub, &remote, file, meter)?;
        }
        if self.id.revision() != commit {
            let refs = folder(&self.cached).join("refs");
            self.cached
                .create_ref(commit)
                .map_err(io_at(&refs.join(self.id.revision())))?;
            // The library names the commit after itself with every file. Nobody reads that name.
            let _ = fs::remove_file(refs.join(commit));
        }
        Ok(())
    }

    fn fetch_file(
        &self,
        hub: &Hub,
        remote: &ApiRepo,
        file: &RemoteFile,
        meter: &mut Meter<'_>,
    ) -> Result<(), HubError> {
        let blob = self.blob(file);
        let snapshot = self.cached.pointer_path(&self.listing.commit);
        let pointer = snapshot.join(&file.name);
        tidy(&blob, &pointer, file.bytes)?;
        if blob.exists() {
            link(&blob, &pointer).map_err(io_at(&pointer))?;
        } else {
            self.attempts(hub, remote, file, meter)?;
        }
        let Some(got) = check(&pointer, file, meter).map_err(io_at(&pointer))? else {
            return Ok(());
        };
        let stored = fs::canonicalize(&pointer).map_err(io_at(&pointer))?;
        for path in [&pointer, &stored] {
            fs::remove_file(path).map_err(io_at(path))?;
        }
        Err(HubError::Damaged {
            file: pointer,
            want: format!("{}, {} bytes", file.hash, file.bytes),
            got,
        })
    }

    /// Calls the library until the file is there. Every attempt continues the part that is there.
    fn attempts(
        &self,
        hub: &Hub,
        remote: &ApiRepo,
        file: &RemoteFile,
        meter: &mut Meter<'_>,
    ) -> Result<(), HubError> {
        let part = part_of(&self.blob(file));
        let length = || fs::metadata(&part).map_or(0, |m| m.len());
        let mut fruitless = 0;
        loop {
            let before = length();
            let calls = Attempt {
                meter: &mut *meter,
                skip: true,
                file: &file.name,
            };
            let failure = match remote.download_with_progress(&file.name, calls) {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            let place = length();
            fruitless = if place > before { 0 } else { fruitless + 1 };
            if !may_pass(&failure) || fruitless == ATTEMPTS {
                return Err(self.failed(hub, file, failure));
            }
            let name = &file.name;
            let bytes = file.bytes;
            let notice = format!(
                "{name}: the connection broke after {place} of {bytes} bytes; trying again"
            );
            (meter.tell)(Told::Event(Event::Notice(&notice)));
            thread::sleep(PAUSE * (1 << fruitless));
        }
    }

    fn failed(&self, hub: &Hub, file: &RemoteFile, failure: ApiError) -> HubError {
        match failure {
            ApiError::RequestError(e) => match *e {
                ureq::Error::StatusCode(code) => {
                    HubError::status(&self.id, &hub.endpoint, Some(&file.name), code)
                }
                other => self.network(hub, file, &other),
            },
            ApiError::LockAcquisition(file) => HubError::Busy { file },
            ApiError::IoError(source) if is_of_disk(&source) => HubError::Io {
                path: self.blob(file),
                source,
            },
            other => self.network(hub, file, &other),
        }
    }

    fn network(&self, hub: &Hub, file: &RemoteFile, reason: &dyn std::error::Error) -> HubError {
        HubError::Network {
            id: self.id.to_string(),
            endpoint: hub.endpoint.clone(),
            what: file.name.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Returns the place where the library gathers the bytes of a file.
fn part_of(blob: &Path) -> PathBuf {
    blob.with_extension("part")
}

/// Puts what an earlier run left into a state that the library continues.
fn tidy(blob: &Path, pointer: &Path, bytes: u64) -> Result<(), HubError> {
    let part = part_of(blob);
    let length = fs::metadata(&part).map_or(0, |m| m.len());
    if length > bytes {
        fs::remove_file(&part).map_err(io_at(&part))?;
    } else if length == bytes && part.exists() && !blob.exists() {
        // The run ended between the last byte and the name.
        fs::rename(&part, blob).map_err(io_at(&part))?;
    }
    if pointer.is_symlink() && !pointer.exists() {
        fs::remove_file(pointer).map_err(io_at(pointer))?;
    }
    Ok(())
}

/// Makes the link of a snapshot to a file of the cache, unless it is there.
fn link(blob: &Path, pointer: &Path) -> io::Result<()> {
    if pointer.exists() {
        return Ok(());
    }
    let folder = pointer.parent().unwrap_or(pointer);
    fs::create_dir_all(folder)?;
    let blobs = blob.parent().and_then(Path::parent).unwrap_or(blob);
    let floors = folder.strip_prefix(blobs).unwrap_or(folder).components();
    let mut target: PathBuf = floors.map(|_| "..").collect();
    target.push(blob.strip_prefix(blobs).unwrap_or(blob));
    std::os::unix::fs::symlink(target, pointer)
}

/// Returns whether an attempt may succeed later.
fn may_pass(failure: &ApiError) -> bool {
    match failure {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(code) => code == 429 || code >= 500,
            _ => true,
        },
        ApiError::IoError(e) => !is_of_disk(e),
        _ => false,
    }
}

/// Returns whether a failure is one of the disk. The library tells those of a connection likewise.
fn is_of_disk(e: &io::Error) -> bool {
    Shortage::of(e).is_some()
        || matches!(
            e.kind(),
            io::ErrorKind::PermissionDenied
                | io::ErrorKind::NotFound
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::NotADirectory
        )
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    |source| HubError::Io { path, source }
}

/// Hashes a file. Returns what it is, unless it is what the hub states.
fn check(path: &Path, want: &RemoteFile, meter: &mut Meter<'_>) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut hashed = |bytes: u64| meter.checked(&want.name, bytes);
    let got = match &want.hash {
        Hash::Sha256(_) => Hash::Sha256(hash(Sha256::new(), &mut file, &mut hashed)?),
        Hash::Git(_) => {
            let header = Sha1::new_with_prefix(format!("blob {bytes}\0"));
            Hash::Git(hash(header, &mut file, &mut hashed)?)
        }
    };
    let same = bytes == want.bytes && got.digits().eq_ignore_ascii_case(want.hash.digits());
    Ok((!same).then(|| format!("{got}, {bytes} bytes")))
}

fn hash<D: Digest>(
    mut hasher: D,
    file: &mut File,
    hashed: &mut impl FnMut(u64),
) -> io::Result<String> {
    let mut bytes = vec![0; HASHED_AT_ONCE];
    loop {
        let read = file.read(&mut bytes)?;
        if read == 0 {
            let digits = hasher.finalize();
            return Ok(digits.iter().map(|b| format!("{b:02x}")).collect());
        }
        hasher.update(&bytes[..read]);
        hashed(read as u64);
    }
}

/// The room on the disk of the cache.
struct Room {
    place: PathBuf,
    free: u64,
}

impl Room {
    /// Asks the disk of the nearest folder that is there.
    fn of(place: &Path) -> Result<Self, HubError> {
        let place = std::path::absolute(place).map_err(io_at(place))?;
        let there = place.ancestors().find(|p| p.exists()).unwrap_or(&place);
        let disk = rustix::fs::statvfs(there).map_err(|e| io_at(there)(e.into()))?;
        Ok(Self {
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            place,
        })
    }

    fn to_line(&self, need: u64) -> String {
        format!(
            "{:.2} GB to fetch; {:.2} GB are free for {}",
            gb(need),
            gb(self.free),
            self.place.display()
        )
    }

    fn check(&self, need: u64) -> Result<(), HubError> {
        if need <= self.free {
            return Ok(());
        }
        Err(HubError::Room {
            place: self.place.clone(),
            need,
            free: self.free,
        })
    }
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Counts the bytes of all files.
struct Meter<'a> {
    /// Bytes that were in the cache at the start.
    kept: u64,
    total: u64,
    fetched: u64,
    hashed: u64,
    tell: &'a mut dyn FnMut(Told<'_>),
}

impl Meter<'_> {
    fn arrived(&mut self, file: &str, bytes: u64) {
        self.fetched += bytes;
        let progress = export::Progress {
            file,
            done: (self.kept + self.fetched).min(self.total.max(self.kept)),
            kept: self.kept,
            total: self.total,
        };
        (self.tell)(Told::Event(Event::Progress(progress)));
    }

    fn checked(&mut self, file: &str, bytes: u64) {
        self.hashed += bytes;
        let progress = SumsProgress {
            file,
            done: self.hashed.min(self.total),
            total: self.total,
        };
        (self.tell)(Told::Event(Event::Checking(progress)));
    }
}

/// One call of the library for one file.
struct Attempt<'a, 'm> {
    meter: &'a mut Meter<'m>,
    /// The next bytes are the place where the attempt begins.
    skip: bool,
    file: &'a str,
}

impl Progress for Attempt<'_, '_> {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.skip = true;
    }

    fn update(&mut self, size: usize) {
        if !std::mem::take(&mut self.skip) {
            self.meter.arrived(self.file, size as u64);
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hashes that `sha256sum` and `git hash-object` print for `abc`.
    #[test]
    fn a_file_has_the_hash_of_its_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "abc").unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let git = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        let mut quiet = |_: Told<'_>| ();
        let mut meter = Meter {
            kept: 0,
            total: 6,
            fetched: 0,
            hashed: 0,
            tell: &mut quiet,
        };
        for hash in [Hash::Sha256(sha256.to_owned()), Hash::Git(git.to_owned())] {
            let mut file = RemoteFile {
                name: "f".to_owned(),
                bytes: 3,
                hash,
            };
            assert_eq!(check(&path, &file, &mut meter).unwrap(), None);
            file.bytes = 4;
            let got = check(&path, &file, &mut meter).unwrap().unwrap();
            assert_eq!(got, format!("{}, 3 bytes", file.hash));
        }
    }

    #[test]
    fn a_link_leads_to_its_file_from_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blobs/abc");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, "abc").unwrap();
        for name in ["snapshots/c/file", "snapshots/c/google/umt5-xxl/file"] {
            let pointer = dir.path().join(name);
            link(&blob, &pointer).unwrap();
            link(&blob, &pointer).unwrap();
            assert_eq!(fs::read_to_string(&pointer).unwrap(), "abc");
            assert!(fs::read_link(&pointer).unwrap().is_relative());
        }
    }

    #[test]
    fn room_is_asked_of_the_nearest_folder_and_compared() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::of(&dir.path().join("not/there")).unwrap();
        assert!(room.check(1).is_ok());
        let error = room.check(u64::MAX).unwrap_err();
        assert!(error.to_string().contains("GB are free"), "{error}");
        assert_eq!(error.kind(), engines::error_kind::ErrorKind::Resources);
    }
}
