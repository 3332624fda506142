//! Downloads checkpoints from a hub on this machine: whole, broken, damaged, refused. No test needs
//! a network.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use engines::error_kind::ErrorKind;
use tempfile::TempDir;
use tests::golden::Golden;
use tests::hub_server::{COMMIT, Faults, HubServer, sha256};
use tests::program::{Finished, Program};

const BASE: &str = "Wan-AI/Wan2.2-S2V-14B";
const LORA: &str = "Quark-Vision/Live-Avatar";
const VAE: &str = "Wan2.1_VAE.pth";

/// A hub with the golden checkpoint, and an empty cache.
struct Hub {
    server: HubServer,
    dir: TempDir,
}

impl Hub {
    /// A hub with the golden checkpoint and files that no export reads.
    fn golden() -> Self {
        let hub = Self::empty();
        let ckpt = Golden::carried().ckpt();
        let dir = hub.path("served");
        tests::files::copy_folder(&ckpt.join("Wan2.2-S2V-14B"), &dir);
        fs::write(dir.join("README.md"), "# words").unwrap();
        hub.server.serve_folder(BASE, &dir);
        hub.server.serve_folder(LORA, &ckpt.join("LiveAvatar"));
        hub
    }

    fn empty() -> Self {
        Self {
            server: HubServer::new(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Program::Export.command();
        command.args(flags).env("HF_HOME", self.path("hf"));
        command.env("HF_ENDPOINT", self.server.endpoint());
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, flags: &[&str]) -> Finished {
        Finished::from(self.command(flags).output().unwrap())
    }

    /// The folder of a repository in the cache.
    fn cached(&self, name: &str) -> PathBuf {
        let folder = format!("models--{}", name.replace('/', "--"));
        self.path("hf/hub").join(folder)
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.cached(name).join("snapshots").join(COMMIT)
    }

    /// Ranges that were asked of the store for large files, besides the question for a length.
    fn ranges(&self) -> Vec<String> {
        let asked = self.server.asked();
        let stored = asked.into_iter().filter(|a| a.path.starts_with("/store"));
        let ranges = stored.filter_map(|a| a.range);
        ranges.filter(|r| r != "bytes=0-0").collect()
    }
}

/// Returns the endings of the files in `blobs` that are no whole files.
fn unfinished(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("blobs")).unwrap().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.ends_with(".part")).collect()
}

#[test]
fn a_download_is_read_in_place() {
    let hub = Hub::golden();
    let run = hub.run(&["download"]).ok();
    assert!(run.stdout.contains("GB are free for"), "{}", run.stdout);
    let vae = hub.snapshot(BASE).join(VAE);
    assert!(vae.is_symlink() && fs::read_link(&vae).unwrap().is_relative());
    let tokenizer = hub.snapshot(BASE).join("google/umt5-xxl/tokenizer.json");
    assert!(tokenizer.is_symlink() && tokenizer.is_file());
    assert!(!hub.snapshot(BASE).join("README.md").exists());
    let refs = hub.cached(BASE).join("refs");
    assert_eq!(fs::read_to_string(refs.join("main")).unwrap(), COMMIT);
    assert_eq!(fs::read_dir(refs).unwrap().count(), 1);

    // Everything that follows is read from the cache.
    hub.server.set(Faults {
        status: Some(500),
        ..Faults::default()
    });
    let base = format!("hf:{BASE}");
    let at = format!("hf:{BASE}@{COMMIT}");
    for name in [&base, &at] {
        let run = hub.run(&["inspect", name, "--lora", LORA]).ok();
        assert!(
            run.stdout.contains("liveavatar.safetensors"),
            "{}",
            run.stdout
        );
    }
    let out = hub.path("models").display().to_string();
    let flags = ["--ckpt_dir", &base, "--lora_path_dmd", LORA, "--out", &out];
    let run = hub.run(&[&["onnx"], &flags[..]].concat()).ok();
    assert!(run.stdout.contains("LoRA merged into"), "{}", run.stdout);
    assert!(Path::new(&out).join("manifest.json").is_file());
}

#[test]
fn a_second_download_fetches_nothing_and_checks_again() {
    let hub = Hub::golden();
    hub.run(&["download", LORA]).ok();
    hub.server.asked();
    let run = hub.run(&["download", LORA]).ok();
    assert!(run.stdout.contains("0.00 GB to fetch"), "{}", run.stdout);
    assert_eq!(hub.ranges(), [""; 0]);

    let file = hub.snapshot(LORA).join("liveavatar.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let whole = bytes.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, &bytes).unwrap();
    let refused = hub.run(&["download", LORA]);
    refused.error(ErrorKind::Model);
    assert!(!file.exists() && !file.is_symlink());
    hub.run(&["download", LORA]).ok();
    assert_eq!(fs::read(&file).unwrap(), whole);
}

#[test]
fn a_broken_connection_resumes_where_it_stopped() {
    let hub = Hub::golden();
    let broken = |times| Faults {
        breaks: Some((VAE.to_owned(), 100_000, times)),
        ..Faults::default()
    };
    hub.server.set(broken(2));
    let run = hub.run(&["download", BASE]).ok();
    assert!(
        run.stderr.contains("the connection broke after 100000 of"),
        "{}",
        run.stderr
    );
    let ranges = hub.ranges();
    for range in ["bytes=100000-", "bytes=200000-"] {
        assert!(ranges.iter().any(|r| r == range), "{ranges:?}");
    }
    let got = fs::read(hub.snapshot(BASE).join(VAE)).unwrap();
    assert_eq!(got, fs::read(hub.path("served").join(VAE)).unwrap());
}

#[test]
fn a_connection_that_stays_broken_is_an_error_and_the_next_run_continues() {
    let hub = Hub::empty();
    let bytes = vec![7; 5000];
    hub.server.serve("a/b", &[("l.safetensors", &bytes)]);
    // The first connection brings 1000 bytes, and the others none.
    hub.server.set(Faults {
        breaks: Some(("l.safetensors".to_owned(), 1000, 1)),
        status: Some(503),
        ..Faults::default()
    });
    let run = hub.run(&["download", "a/b"]);
    run.error(ErrorKind::Resources);
    assert!(
        run.stderr.contains("the same command continues"),
        "{}",
        run.stderr
    );
    assert_eq!(unfinished(&hub.cached("a/b")).len(), 1);
    assert!(!hub.cached("a/b").join("refs/main").exists());

    hub.server.set(Faults::default());
    hub.server.asked();
    hub.run(&["download", "a/b"]).ok();
    assert_eq!(hub.ranges(), ["bytes=1000-"]);
    let file = hub.snapshot("a/b").join("l.safetensors");
    assert_eq!(fs::read(file).unwrap(), bytes);
    assert!(unfinished(&hub.cached("a/b")).is_empty());
}

#[test]
fn a_download_that_ended_before_its_name_is_not_fetched_again() {
    let hub = Hub::empty();
    let bytes = vec![7; 5000];
    hub.server.serve("a/b", &[("l.safetensors", &bytes)]);
    let blobs = hub.cached("a/b").join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(sha256(&bytes)).with_extension("part"), &bytes).unwrap();
    hub.run(&["download", "a/b"]).ok();
    assert_eq!(hub.ranges(), [""; 0]);
    let file = hub.snapshot("a/b").join("l.safetensors");
    assert_eq!(fs::read(file).unwrap(), bytes);
}

#[test]
fn a_file_with_another_hash_is_refused_and_removed() {
    let hub = Hub::golden();
    for (file, kind) in [(VAE, "sha256"), ("config.json", "git hash")] {
        hub.server.set(Faults {
            damaged: Some(file.to_owned()),
            ..Faults::default()
        });
        let run = hub.run(&["download", BASE]);
        run.error(ErrorKind::Model);
        for word in [file, "wanted ", "got ", kind] {
            assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        }
        assert!(!hub.snapshot(BASE).join(file).is_symlink());
        assert!(!hub.cached(BASE).join("refs/main").exists());
    }
    hub.server.set(Faults::default());
    hub.run(&["download", BASE]).ok();
}

#[test]
fn a_disk_without_room_refuses_before_anything_is_fetched() {
    let hub = Hub::golden();
    hub.server.set(Faults {
        size: Some((VAE.to_owned(), 1 << 60)),
        ..Faults::default()
    });
    let run = hub.run(&["download", BASE]);
    run.error(ErrorKind::Resources);
    assert!(run.stderr.contains("GB are free"), "{}", run.stderr);
    assert!(!hub.path("hf").exists());
    assert!(
        hub.server
            .asked()
            .iter()
            .all(|a| a.path.starts_with("/api/"))
    );
}

#[test]
fn a_dry_run_tells_the_size_and_writes_nothing() {
    let hub = Hub::golden();
    let run = hub.run(&["download", "--dry-run"]).ok();
    for word in [BASE, LORA, "1 files", "GB to fetch", "GB are free"] {
        assert!(run.stdout.contains(word), "{word}: {}", run.stdout);
    }
    assert!(!hub.path("hf").exists());
    let all = hub.run(&["download", "--dry-run", "--all", BASE]).ok();
    assert_ne!(
        all.stdout,
        hub.run(&["download", "--dry-run", BASE]).ok().stdout
    );
}

#[test]
fn a_hub_that_refuses_is_told_from_one_that_has_nothing() {
    let hub = Hub::golden();
    hub.server.set(Faults {
        token: Some("hf_secret".to_owned()),
        ..Faults::default()
    });
    let run = hub.run(&["download", LORA]);
    run.error(ErrorKind::Model);
    assert!(
        run.stderr.contains("401") && run.stderr.contains("HF_TOKEN"),
        "{}",
        run.stderr
    );
    let with_token = hub
        .command(&["download", LORA])
        .env("HF_TOKEN", "hf_secret")
        .output();
    Finished::from(with_token.unwrap()).ok();
    // The token that a login left lies beside the cache.
    fs::write(hub.path("hf/token"), "hf_secret\n").unwrap();
    hub.run(&["download", LORA]).ok();

    hub.server.set(Faults::default());
    for (flags, kind, word) in [
        (&["download", "a/nothing"][..], ErrorKind::Model, "404"),
        (&["download", "nothing"], ErrorKind::Usage, "ORG/NAME"),
        (&["download", "a/b@../c"], ErrorKind::Usage, "ORG/NAME"),
        (
            &["inspect", "hf:a/b"],
            ErrorKind::Model,
            "avatar-export download a/b",
        ),
        (&["inspect", "hf:nothing"], ErrorKind::Usage, "ORG/NAME"),
        (
            &["inspect", ".", "--lora", "a/b"],
            ErrorKind::Model,
            "avatar-export download a/b",
        ),
    ] {
        let run = hub.run(flags);
        run.error(kind);
        assert!(run.stderr.contains(word), "{flags:?}: {}", run.stderr);
    }
    hub.server.serve("a/words", &[("README.md", b"words")]);
    let run = hub.run(&["download", "a/words"]);
    run.error(ErrorKind::Model);
    assert!(
        run.stderr.contains("found README.md; --all"),
        "{}",
        run.stderr
    );
    hub.server.set(Faults {
        status: Some(403),
        ..Faults::default()
    });
    let run = hub.run(&["download", BASE]);
    run.error(ErrorKind::Model);
    assert!(run.stderr.contains("403"), "{}", run.stderr);
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let hub = Hub::empty();
    // A port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut command = hub.command(&["download", LORA]);
    command.env("HF_ENDPOINT", format!("http://{closed}/"));
    let run = Finished::from(command.output().unwrap());
    run.error(ErrorKind::Resources);
    assert!(run.stderr.contains(&closed.to_string()), "{}", run.stderr);
    let run = Finished::from(
        hub.command(&["inspect", "hf:a/b"])
            .env_remove("HF_HOME")
            .env("HF_HUB_CACHE", hub.path("inner"))
            .output()
            .unwrap(),
    );
    assert!(run.stderr.contains("inner/models--a--b"), "{}", run.stderr);
}
