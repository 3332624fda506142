//! The files of a revision as the hub lists them, with their lengths and hashes, and the choice of
//! those that an export reads.

use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::checkpoint::layout::{DIT_STEM, T5_FILE, TOKENIZER_DIR, VAE_FILE, WAV2VEC2_DIR};

/// The files of one revision.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Listing {
    /// The commit of the revision.
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// A file on the hub.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RemoteFile {
    /// Its path in the repository.
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) hash: Hash,
}

/// The hash by which the hub and its cache know a file, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    /// SHA-256 of a file in the store for large files.
    Sha256(String),
    /// SHA-1 that git gives a file.
    Git(String),
}

impl Hash {
    /// Returns the digits, which are the name of the file in the cache.
    pub(super) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Git(digits) => digits,
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digits) => write!(f, "sha256 {digits}"),
            Self::Git(digits) => write!(f, "git hash {digits}"),
        }
    }
}

/// The answer to `/api/models/ORG/NAME/revision/REV?blobs=true`, as far as it is read.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Listing {
    /// Reads the answer of a hub. A name that leaves its folder is refused: it becomes a path in
    /// the cache.
    ///
    /// # Errors
    /// What is missing or malformed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let answer: Answer = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if !is_hash(&answer.sha, 40) {
            return Err(format!("sha is {:?}, wanted 40 hex digits", answer.sha));
        }
        let files = answer.siblings.into_iter().map(RemoteFile::new);
        Ok(Self {
            commit: answer.sha,
            files: files.collect::<Result<_, _>>()?,
        })
    }

    /// Returns the names of all files.
    pub(super) fn names(&self) -> Vec<String> {
        self.files.iter().map(|f| f.name.clone()).collect()
    }

    /// Keeps the files that an export reads: those of the published layout, and those of a LoRA.
    pub(super) fn keep_needed(&mut self) {
        let names = self.names();
        let has = |name: &str| names.iter().any(|n| n == name);
        let speech = format!("{WAV2VEC2_DIR}/model.safetensors");
        let whole = has(VAE_FILE) || has(T5_FILE);
        // Both files of the speech encoder hold the same weights.
        let second = format!("{WAV2VEC2_DIR}/pytorch_model.bin");
        self.files.retain(|file| match whole {
            true => is_of_checkpoint(&file.name) && !(file.name == second && has(&speech)),
            false => is_of_lora(&file.name),
        });
    }
}

impl RemoteFile {
    fn new(sibling: Sibling) -> Result<Self, String> {
        let name = sibling.rfilename;
        let plain = |part| matches!(part, Component::Normal(_));
        if name.is_empty() || !Path::new(&name).components().all(plain) {
            return Err(format!("file name {name:?} leaves its folder"));
        }
        let bytes = sibling
            .size
            .ok_or_else(|| format!("{name} has no size, wanted `blobs=true` to be honoured"))?;
        let (hash, digits) = match (sibling.lfs, sibling.blob_id) {
            (Some(lfs), _) => (Hash::Sha256(lfs.sha256), 64),
            (None, Some(id)) => (Hash::Git(id), 40),
            (None, None) => return Err(format!("{name} has no hash, wanted blobId or lfs.sha256")),
        };
        if !is_hash(hash.digits(), digits) {
            return Err(format!("{name} has {hash}, wanted {digits} hex digits"));
        }
        Ok(Self { name, bytes, hash })
    }
}

fn is_hash(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Returns whether the layout of the base checkpoint has this file.
fn is_of_checkpoint(name: &str) -> bool {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    match folder {
        "" => {
            matches!(file, "config.json" | T5_FILE | VAE_FILE)
                || (file.starts_with(DIT_STEM)
                    && (file.ends_with(".safetensors") || file.ends_with(".index.json")))
        }
        TOKENIZER_DIR => true,
        WAV2VEC2_DIR => {
            file.ends_with(".json") || matches!(file, "model.safetensors" | "pytorch_model.bin")
        }
        _ => false,
    }
}

/// Returns whether a LoRA may consist of this file.
fn is_of_lora(name: &str) -> bool {
    !name.contains('/') && (name.ends_with(".safetensors") || name == "adapter_config.json")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| RemoteFile {
            name: (*name).to_owned(),
            bytes: 1,
            hash: Hash::Git(COMMIT.to_owned()),
        };
        Listing {
            commit: COMMIT.to_owned(),
            files: names.iter().map(file).collect(),
        }
    }

    #[test]
    fn a_large_file_has_its_sha256_and_a_small_one_its_git_hash() {
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let answer = json!({"sha": COMMIT, "private": false, "siblings": [
            {"rfilename": "a/b.json", "size": 7, "blobId": COMMIT},
            {"rfilename": "c.pth", "size": 9, "blobId": COMMIT,
             "lfs": {"sha256": sum, "size": 9, "pointerSize": 130}},
        ]});
        let listing = Listing::parse(&answer.to_string()).unwrap();
        assert_eq!(listing.commit, COMMIT);
        let hashes: Vec<_> = listing.files.iter().map(|f| f.hash.clone()).collect();
        let want = [Hash::Git(COMMIT.to_owned()), Hash::Sha256(sum.to_owned())];
        assert_eq!(hashes, want);
        assert_eq!(listing.files[1].bytes, 9);
    }

    #[test]
    fn an_answer_that_cannot_be_used_is_refused_with_the_reason() {
        let one = |file| json!({"sha": COMMIT, "siblings": [file]}).to_string();
        for (answer, word) in [
            ("<html>".to_owned(), "expected value"),
            (
                json!({"sha": "main", "siblings": []}).to_string(),
                "40 hex digits",
            ),
            (
                one(json!({"rfilename": "../a", "size": 1, "blobId": COMMIT})),
                "leaves",
            ),
            (
                one(json!({"rfilename": "/a", "size": 1, "blobId": COMMIT})),
                "leaves",
            ),
            (one(json!({"rfilename": "a", "blobId": COMMIT})), "no size"),
            (one(json!({"rfilename": "a", "size": 1})), "no hash"),
            (
                one(json!({"rfilename": "a", "size": 1, "blobId": "../x"})),
                "hex digits",
            ),
        ] {
            let reason = Listing::parse(&answer).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn an_export_needs_the_layout_and_one_file_of_the_speech_encoder() {
        let mut base = listing(&[
            ".gitattributes",
            "README.md",
            "assets/logo.png",
            "config.json",
            "diffusion_pytorch_model-00001-of-00004.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "models_t5_umt5-xxl-enc-bf16.pth",
            "Wan2.1_VAE.pth",
            "google/umt5-xxl/tokenizer.json",
            "wav2vec2-large-xlsr-53-english/config.json",
            "wav2vec2-large-xlsr-53-english/model.safetensors",
            "wav2vec2-large-xlsr-53-english/pytorch_model.bin",
            "wav2vec2-large-xlsr-53-english/flax_model.msgpack",
            "wav2vec2-large-xlsr-53-english/language_model/lm.binary",
        ]);
        base.keep_needed();
        let want = [
            "config.json",
            "diffusion_pytorch_model-00001-of-00004.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "models_t5_umt5-xxl-enc-bf16.pth",
            "Wan2.1_VAE.pth",
            "google/umt5-xxl/tokenizer.json",
            "wav2vec2-large-xlsr-53-english/config.json",
            "wav2vec2-large-xlsr-53-english/model.safetensors",
        ];
        assert_eq!(base.names(), want);
        let mut lora = listing(&["README.md", "liveavatar.safetensors", "a/b.safetensors"]);
        lora.keep_needed();
        assert_eq!(lora.names(), ["liveavatar.safetensors"]);
    }
}
