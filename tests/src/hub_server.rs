//! A hub on this machine: a thread that speaks the hub's protocol over HTTP/1.1, one request a
//! connection. It can break, lie and refuse, as a test asks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit of every repository.
pub const COMMIT: &str = "92cdccd1a5b3f0f5f6cbb7b7d9d0a8f5e1c2d3b4";
/// Endings of the files that lie in the store for large files.
const LARGE: [&str; 4] = [".safetensors", ".pth", ".bin", ".model"];

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The path, with its query.
    pub path: String,
    /// The value of the header `Range`.
    pub range: Option<String>,
    /// The value of the header `Authorization`.
    pub authorization: Option<String>,
}

/// What the hub does besides serving its files.
#[derive(Debug, Default)]
pub struct Faults {
    /// The token without which it answers 401.
    pub token: Option<String>,
    /// The status of every answer about files, in place of the file. Where connections break, it
    /// counts after the last break.
    pub status: Option<u16>,
    /// A file, the number of its bytes after which a connection breaks, and how many times.
    pub breaks: Option<(String, usize, usize)>,
    /// A file whose first byte is another one than its hash says.
    pub damaged: Option<String>,
    /// A file, and the size that the list of files states.
    pub size: Option<(String, u64)>,
}

#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    faults: Faults,
    asked: Vec<Asked>,
}

/// A hub that serves until its process ends.
#[derive(Clone, Debug)]
pub struct HubServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Default for HubServer {
    fn default() -> Self {
        Self::new()
    }
}

impl HubServer {
    /// Starts a hub without repositories on a free port of this machine.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("this machine has a free port");
        let server = Self {
            address: listener
                .local_addr()
                .expect("a bound socket has an address"),
            state: Arc::default(),
        };
        let serving = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                // A client that goes away is no fault of the test.
                thread::spawn(move || drop(serving.answer(stream)));
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no answer panics")
    }

    /// Returns the value for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves the files of a folder under the name `ORG/NAME`.
    pub fn serve_folder(&self, name: &str, folder: &Path) {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files);
        self.state().repositories.insert(name.to_owned(), files);
    }

    /// Serves these files under the name `ORG/NAME`.
    pub fn serve(&self, name: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec()));
        self.state()
            .repositories
            .insert(name.to_owned(), files.collect());
    }

    /// Changes what the hub does besides serving its files.
    pub fn set(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Returns every request since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let Some((head, asked)) = request(&stream)? else {
            return Ok(());
        };
        let mut state = self.state();
        state.asked.push(asked.clone());
        let mut answer = state.answer(&asked, &self.endpoint());
        drop(state);
        if head {
            answer.body.clear();
            answer.cut = None;
        }
        answer.write(&mut stream)
    }
}

/// Reads a request. Returns whether it asks for headers only.
fn request(stream: &TcpStream) -> io::Result<Option<(bool, Asked)>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut asked = Asked {
        path: path.to_owned(),
        range: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        match line.split_once(':') {
            None => break,
            Some((name, value)) => match name.to_ascii_lowercase().as_str() {
                "range" => asked.range = Some(value.trim().to_owned()),
                "authorization" => asked.authorization = Some(value.trim().to_owned()),
                _ => {}
            },
        }
    }
    Ok(Some((method == "HEAD", asked)))
}

impl State {
    fn answer(&mut self, asked: &Asked, endpoint: &str) -> Answer {
        let wanted = self.faults.token.as_ref().map(|t| format!("Bearer {t}"));
        if wanted.is_some() && asked.authorization != wanted {
            return Answer::status(401);
        }
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let name = rest.split_once("/revision/").map_or(rest, |(name, _)| name);
            return match self.repositories.get(name) {
                Some(files) => self.list(files, query),
                None => Answer::status(404),
            };
        }
        let stored = path.starts_with("/store");
        let place = path.strip_prefix("/store").unwrap_or(path);
        let Some((name, rest)) = place.trim_start_matches('/').split_once("/resolve/") else {
            return Answer::status(404);
        };
        let breaks = self.faults.breaks.as_ref().is_some_and(|b| b.2 > 0);
        if let Some(status) = self.faults.status.filter(|_| !breaks) {
            return Answer::status(status);
        }
        let file = rest.split_once('/').map_or(rest, |(_, file)| file);
        let Some(bytes) = self.repositories.get(name).and_then(|r| r.get(file)) else {
            return Answer::status(404);
        };
        let mut answer = match is_large(file) && !stored {
            true => Answer::moved(&format!("{endpoint}/store{path}")),
            false => Answer::file(bytes, asked.range.as_deref()),
        };
        answer.describe(file, bytes);
        if !is_large(file) || stored {
            self.spoil(file, &mut answer);
        }
        answer
    }

    fn list(&self, files: &BTreeMap<String, Vec<u8>>, query: &str) -> Answer {
        let entry = |(name, bytes): (&String, &Vec<u8>)| -> Value {
            if query != "blobs=true" {
                return json!({"rfilename": name});
            }
            let told = self.faults.size.as_ref().filter(|(n, _)| n == name);
            let size = told.map_or(bytes.len() as u64, |(_, size)| *size);
            let mut entry = json!({"rfilename": name, "size": size, "blobId": git_hash(bytes)});
            if is_large(name) {
                entry["lfs"] = json!({"sha256": sha256(bytes), "size": size, "pointerSize": 134});
            }
            entry
        };
        let siblings: Vec<Value> = files.iter().map(entry).collect();
        let body = json!({"id": "a/b", "sha": COMMIT, "siblings": siblings});
        Answer {
            body: body.to_string().into_bytes(),
            ..Answer::status(200)
        }
    }

    /// Damages the answer, and breaks its connection, as the test asked.
    fn spoil(&mut self, file: &str, answer: &mut Answer) {
        let whole = answer.body.len() > 1;
        if let Some((name, after, times)) = &mut self.faults.breaks
            && name == file
            && *times > 0
            && whole
        {
            *times -= 1;
            answer.cut = Some((*after).min(answer.body.len() - 1));
        }
        if self.faults.damaged.as_deref() == Some(file) && whole {
            answer.body[0] ^= 1;
        }
    }
}

/// An answer. Its headers state the length of the body.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection breaks after this many bytes of the body.
    cut: Option<usize>,
}

impl Answer {
    fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut: None,
        }
    }

    fn moved(place: &str) -> Self {
        let mut answer = Self::status(302);
        answer.headers.push(("Location", place.to_owned()));
        answer
    }

    /// Returns the bytes that `Range: bytes=FIRST-[LAST]` asks for.
    fn file(bytes: &[u8], range: Option<&str>) -> Self {
        let all = bytes.len();
        let Some((first, last)) = range
            .and_then(|r| r.strip_prefix("bytes="))
            .and_then(|r| r.split_once('-'))
        else {
            return Self {
                body: bytes.to_vec(),
                ..Self::status(200)
            };
        };
        let first: usize = first.parse().unwrap_or(0);
        let end = last.parse().map_or(all, |last: usize| all.min(last + 1));
        if first >= end {
            return Self::status(416);
        }
        let mut answer = Self::status(206);
        answer.body = bytes[first..end].to_vec();
        let range = format!("bytes {first}-{}/{all}", end - 1);
        answer.headers.push(("Content-Range", range));
        answer
    }

    /// Adds the headers by which the hub describes a file.
    fn describe(&mut self, file: &str, bytes: &[u8]) {
        self.headers.push(("X-Repo-Commit", COMMIT.to_owned()));
        self.headers
            .push(("ETag", format!("\"{}\"", git_hash(bytes))));
        if is_large(file) {
            self.headers
                .push(("X-Linked-ETag", format!("\"{}\"", sha256(bytes))));
            self.headers
                .push(("X-Linked-Size", bytes.len().to_string()));
        }
    }

    fn write(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Answer\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!(
            "Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())])?;
        stream.flush()
    }
}

fn is_large(name: &str) -> bool {
    LARGE.iter().any(|ending| name.ends_with(ending))
}

/// Returns the SHA-256 of `bytes` in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    digits(&Sha256::digest(bytes))
}

fn git_hash(bytes: &[u8]) -> String {
    let header = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    digits(&header.chain_update(bytes).finalize())
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Adds the files under `folder`, with their paths in it.
fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).expect("a file"));
        }
    }
}
