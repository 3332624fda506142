//! Exports checkpoints that carry a list of sums. `sha256sum` itself writes the lists.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use engines::error_kind::ErrorKind;
use serde_json::Value;
use tempfile::TempDir;
use tests::files::{copy_folder, listing};
use tests::golden::Golden;
use tests::program::{Finished, Program};

use crate::signals::signal;

const SUMS: &str = "SHA256SUMS";
const SHARD: &str = "diffusion_pytorch_model-00002-of-00003.safetensors";
const LORA: &str = "LiveAvatar/liveavatar.safetensors";

/// A copy of the golden checkpoint, and a folder for exports.
struct Copied {
    dir: TempDir,
}

impl Copied {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(&Golden::carried().ckpt(), &dir.path().join("ckpt"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wan(&self) -> PathBuf {
        self.path("ckpt/Wan2.2-S2V-14B")
    }

    fn lora(&self) -> PathBuf {
        self.path("ckpt").join(LORA)
    }

    fn command(&self) -> Command {
        let mut command = Program::Export.command();
        command.arg("onnx").arg("--ckpt_dir").arg(self.wan());
        command.arg("--lora").arg(self.lora());
        command.arg("--out").arg(self.path("models"));
        command
    }

    fn export(&self) -> Finished {
        Finished::from(self.command().output().unwrap())
    }

    fn inspect(&self, more: &[&str]) -> Finished {
        let ckpt = self.path("ckpt");
        Program::Export.run([&["inspect", ckpt.to_str().unwrap()], more].concat())
    }

    /// Returns the message of `onnx`, without this machine's path. Asserts that `inspect` says the
    /// same, and that nothing was written.
    #[track_caller]
    fn refusal(&self) -> String {
        let message = self.export().error(ErrorKind::Model);
        assert_eq!(self.inspect(&[]).error(ErrorKind::Model), message);
        assert!(!self.path("models").exists() && !self.path(".models.partial").exists());
        message.replace(&self.dir.path().join("ckpt").display().to_string(), "CKPT")
    }
}

/// Writes the list of all files of a folder, as a user would.
fn sum_up(folder: &Path, flags: &[&str]) {
    let files = listing(folder);
    let mut command = Command::new("sha256sum");
    command.args(flags).args(&files).current_dir(folder);
    let output = command.output().unwrap();
    assert!(output.status.success() && !files.is_empty());
    fs::write(folder.join(SUMS), output.stdout).unwrap();
}

/// Returns the sum that `sha256sum` has for a file.
fn sum(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

/// Changes the lowest bit of one byte in the middle of a file.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_checkpoint_that_agrees_with_its_lists_is_exported() {
    let copy = Copied::new();
    let without = copy.export().ok();
    assert!(!without.stderr.contains(SUMS), "{}", without.stderr);
    assert!(!copy.inspect(&[]).ok().stdout.contains("sums: "));
    let json = copy.inspect(&["--json"]).ok().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(json.get("sums").is_none());

    sum_up(&copy.wan(), &[]);
    sum_up(copy.lora().parent().unwrap(), &["--binary"]);
    // A second list names the first one too, with the sum that it had.
    sum_up(&copy.wan(), &[]);
    let exported = copy.export().ok();
    assert!(
        exported
            .stderr
            .contains("note: 18 files are as SHA256SUMS says")
    );
    let found = copy.inspect(&[]).ok().stdout;
    assert!(
        found.contains("\nsums: 18 files are as SHA256SUMS says\n"),
        "{found}"
    );
    let json = copy.inspect(&["--json"]).ok().stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["sums"]["sound"], 18);
}

#[test]
fn one_changed_bit_of_a_weight_is_found() {
    let copy = Copied::new();
    sum_up(&copy.wan(), &[]);
    sum_up(copy.lora().parent().unwrap(), &[]);
    let (shard, lora) = (copy.wan().join(SHARD), copy.lora());
    let sums = || [&shard, &lora].map(|file| sum(file));
    let wanted = sums();
    flip(&shard);
    flip(&lora);
    let names = [format!("Wan2.2-S2V-14B/{SHARD}"), LORA.to_owned()];
    let lines = names.iter().zip(wanted).zip(sums());
    let lines = lines.map(|((file, want), got)| {
        format!(
            "CKPT/{file}: sha256 is {got}, SHA256SUMS wants {want}; fetch or copy the file again, \
             or renew or remove SHA256SUMS if it was changed on purpose"
        )
    });
    assert_eq!(copy.refusal(), lines.collect::<Vec<_>>().join("\n"));
    let found = copy.inspect(&[]).stdout;
    let counted = "\nsums: 16 of 18 files are as SHA256SUMS says\n  ! ";
    assert!(found.contains(counted), "{found}");
    // Without the lists, nobody sees the difference.
    fs::remove_file(copy.wan().join(SUMS)).unwrap();
    fs::remove_file(lora.with_file_name(SUMS)).unwrap();
    copy.export().ok();
}

#[test]
fn faults_of_a_list_and_of_files_are_told_together() {
    let copy = Copied::new();
    sum_up(&copy.wan(), &[]);
    let list = copy.wan().join(SUMS);
    let vocab = copy.wan().join("wav2vec2-large-xlsr-53-english/vocab.json");
    let want = sum(&vocab);
    fs::remove_file(&vocab).unwrap();
    let mut text = File::options().append(true).open(&list).unwrap();
    writeln!(
        text,
        "not a sum\n{want}  ../LiveAvatar/liveavatar.safetensors"
    )
    .unwrap();
    let again = "fetch or copy the file again, or renew or remove SHA256SUMS";
    assert_eq!(
        copy.refusal(),
        format!(
            "CKPT/Wan2.2-S2V-14B/SHA256SUMS: \
             line 18 is \"not a sum\", wanted `<64 hex digits>  <path>`; \
             line 19: path ../LiveAvatar/liveavatar.safetensors leaves the folder, \
             wanted a path inside; renew the list, or remove it to export without it\n\
             CKPT/Wan2.2-S2V-14B/wav2vec2-large-xlsr-53-english/vocab.json: missing, \
             SHA256SUMS wants it with sha256 {want}; {again} if it was removed on purpose"
        )
    );
}

/// A file of 8 GB without blocks on the disk takes seconds to hash, so the signal comes meanwhile.
#[test]
fn a_signal_ends_the_check_within_a_second() {
    let copy = Copied::new();
    let large = copy.wan().join("large");
    File::create(&large).unwrap().set_len(8 << 30).unwrap();
    fs::write(
        copy.wan().join(SUMS),
        format!("{}  large\n", "0".repeat(64)),
    )
    .unwrap();
    for inspects in [true, false] {
        let mut command = copy.command();
        if inspects {
            command = Program::Export.command();
            command.arg("inspect").arg(copy.path("ckpt"));
        }
        let child = command.spawn().unwrap();
        thread::sleep(Duration::from_millis(700));
        let since = Instant::now();
        signal(child.id(), "INT");
        let finished = Finished::from(child.wait_with_output().unwrap());
        assert!(
            since.elapsed() < Duration::from_secs(1),
            "{:?}",
            since.elapsed()
        );
        let want = if inspects {
            "interrupted"
        } else {
            "stopped by a signal"
        };
        assert_eq!(finished.error(ErrorKind::Interrupted), want);
        assert!(!copy.path("models").exists());
    }
}
