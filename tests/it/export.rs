//! Kills, stops, crowds and cuts exports. Checks the parts that a later run keeps or begins anew,
//! and that no byte differs in the end. The system counts the memory of the real binary.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use engines::error_kind::ErrorKind;
use engines::manifest::{LoraEntry, Manifest, Models};
use exporter::synth::{Preset, SynthOptions, synth};
use tempfile::TempDir;
use tests::files::{listing, safetensors, split_safetensors};
use tests::program::{Finished, Program};

/// A random checkpoint, removed with the value.
struct Checkpoint {
    dir: TempDir,
}

impl Checkpoint {
    fn new(layers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SynthOptions {
            layers: Some(layers),
            seed: 5,
        };
        synth(Preset::Tiny, &options, &dir.path().join("ckpt")).unwrap();
        Self { dir }
    }

    fn lora(&self) -> PathBuf {
        self.dir
            .path()
            .join("ckpt/LiveAvatar/liveavatar.safetensors")
    }

    /// Returns the command that exports this checkpoint to `out`.
    fn command(&self, out: &Path, flags: &[&str]) -> Command {
        let ckpt = self.dir.path().join("ckpt");
        let mut command = Program::Export.command();
        command.arg("onnx").arg("--ckpt_dir");
        command.arg(ckpt.join("Wan2.2-S2V-14B")).arg("--lora");
        command.arg(self.lora()).arg("--out").arg(out).args(flags);
        command
    }

    fn export(&self, out: &Path, flags: &[&str]) -> Finished {
        Finished::from(self.command(out, flags).output().unwrap())
    }
}

/// Makes a checkpoint whose largest data file has several blocks. Returns it with the hashes, by
/// name, of an export that nothing interrupted.
fn deep() -> &'static (Checkpoint, BTreeMap<PathBuf, String>) {
    static MADE: OnceLock<(Checkpoint, BTreeMap<PathBuf, String>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let checkpoint = Checkpoint::new(16);
        let out = checkpoint.dir.path().join("whole");
        checkpoint.export(&out, &[]).ok();
        let files = hashes(&out);
        fs::remove_dir_all(out).unwrap();
        (checkpoint, files)
    })
}

fn hashes(folder: &Path) -> BTreeMap<PathBuf, String> {
    let hash = |f: PathBuf| {
        let hash = engines::manifest::hash_file(&folder.join(&f)).unwrap();
        (f, hash)
    };
    listing(folder).into_iter().map(hash).collect()
}

/// Runs `command` until `ready`, then kills it as the system would, unless it has ended.
fn killed(mut command: Command, mut ready: impl FnMut() -> bool) -> bool {
    let mut child: Child = command.spawn().unwrap();
    let give_up = Instant::now() + Duration::from_secs(120);
    while child.try_wait().unwrap().is_none() && !ready() {
        assert!(Instant::now() < give_up, "never got there");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

fn journal(out: &Path) -> PathBuf {
    out.with_file_name(".models.partial/export.journal")
}

/// Counts the blocks that the journal of an unfinished export lists.
fn blocks(out: &Path) -> Option<usize> {
    let text = fs::read_to_string(journal(out)).ok()?;
    Some(text.lines().count().saturating_sub(1))
}

#[test]
fn a_killed_export_continues_and_ends_with_the_same_bytes() {
    let (checkpoint, whole) = deep();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("models");
    // A kill comes as soon as anything exists, after one block, after some, after all, and at
    // random.
    let mut kills = 0;
    for wanted in [0, 1, 3, 5] {
        kills += usize::from(killed(checkpoint.command(&out, &[]), || {
            blocks(&out).is_some_and(|n| n >= wanted) || out.exists()
        }));
        assert!(out.exists() || blocks(&out).is_some_and(|n| n >= wanted));
    }
    let seed = u64::from(std::process::id());
    for i in 1..=4 {
        let wait = Duration::from_millis(seed.wrapping_mul(2_654_435_761 * i) % 600);
        let start = Instant::now();
        kills += usize::from(killed(checkpoint.command(&out, &[]), || {
            start.elapsed() >= wait
        }));
    }
    assert!(kills >= 4, "only {kills} runs were killed");
    checkpoint.export(&out, &[]).ok();
    assert_eq!(hashes(&out), *whole);
    assert_eq!(listing(dir.path()).len(), whole.len(), "something is left");
}

#[test]
fn what_an_unfinished_export_left_is_looked_through_not_trusted() {
    let (checkpoint, whole) = deep();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("models");
    killed(checkpoint.command(&out, &[]), || {
        blocks(&out).is_some_and(|n| n >= 3)
    });
    // The damage turns a bit of a listed block and tears a line of the journal.
    let text = fs::read_to_string(journal(&out)).unwrap();
    let mut data = File::options()
        .read(true)
        .write(true)
        .open(
            out.with_file_name(".models.partial")
                .join(first_file(&text)),
        )
        .unwrap();
    let mut byte = [0];
    data.seek(SeekFrom::Start(1000)).unwrap();
    data.read_exact(&mut byte).unwrap();
    data.seek(SeekFrom::Start(1000)).unwrap();
    data.write_all(&[byte[0] ^ 1]).unwrap();
    fs::write(journal(&out), &text[..text.len() - 7]).unwrap();
    let said = checkpoint.export(&out, &[]).ok().stdout;
    assert!(
        said.contains("bytes were kept from an unfinished run"),
        "{said}"
    );
    assert_eq!(hashes(&out), *whole);
}

/// Returns the data file that the first line of a journal names. The line lists its first block.
fn first_file(journal: &str) -> String {
    let line = journal.lines().skip(1).find(|l| l.contains(" 0 "));
    line.and_then(|l| l.split(' ').next()).unwrap().to_owned()
}

#[test]
fn an_unfinished_export_of_another_request_is_thrown_away_with_a_notice() {
    let (checkpoint, whole) = deep();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("models");
    let leave = |flags: &[&str]| {
        killed(checkpoint.command(&out, flags), || {
            blocks(&out).is_some_and(|n| n >= 2)
        })
    };
    assert!(leave(&["--lora-scale", "0.25"]));
    let finished = checkpoint.export(&out, &[]).ok();
    let notice = "an unfinished export of another LoRA strength is thrown away";
    assert!(finished.stderr.contains(notice), "{}", finished.stderr);
    assert!(!finished.stdout.contains("kept"), "{}", finished.stdout);
    assert_eq!(hashes(&out), *whole);
    // Another list of LoRAs is another request, also where the first is the same.
    let lora = checkpoint.lora();
    let twice = format!("{}:0.5", lora.display());
    assert!(leave(&["--lora", &twice]));
    let finished = checkpoint.export(&out, &[]).ok();
    let notice = "an unfinished export of another list of LoRAs is thrown away";
    assert!(finished.stderr.contains(notice), "{}", finished.stderr);
    assert_eq!(hashes(&out), *whole);
    // `--restart` throws an unfinished export of the same strength away.
    assert!(leave(&[]));
    let finished = checkpoint.export(&out, &["--restart"]).ok();
    assert!(!finished.stdout.contains("kept"), "{}", finished.stdout);
    assert_eq!(hashes(&out), *whole);
}

/// Returns the tensors of a safetensors file to which `name` gives a key, as a file.
fn some_tensors(file: &Path, name: impl Fn(&str) -> Option<String>) -> Vec<u8> {
    let file = fs::read(file).unwrap();
    let (header, data) = split_safetensors(&file);
    let (mut entries, mut kept) = (serde_json::Map::new(), Vec::new());
    for (key, entry) in header.as_object().unwrap() {
        if let Some(key) = name(key) {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let (from, mut entry) = (kept.len(), entry.clone());
            kept.extend(&data[at(0)..at(1)]);
            entry["data_offsets"] = serde_json::json!([from, kept.len()]);
            entries.insert(key, entry);
        }
    }
    safetensors(&serde_json::to_string(&entries).unwrap(), &kept)
}

#[test]
fn several_loras_are_told_and_listed_with_their_factors() {
    let checkpoint = Checkpoint::new(2);
    let dir = tempfile::tempdir().unwrap();
    let (out, folder) = (dir.path().join("models"), dir.path().join("peft"));
    fs::create_dir(&folder).unwrap();
    let part = some_tensors(&checkpoint.lora(), |key| {
        let part = key.starts_with("blocks.0.");
        part.then(|| format!("base_model.model.{}", key.replace(".default", "")))
    });
    fs::write(folder.join("adapter_model.safetensors"), &part).unwrap();
    let config = r#"{"peft_type":"LORA","r":4,"lora_alpha":8}"#;
    fs::write(folder.join("adapter_config.json"), config).unwrap();
    let second = format!("{}:0.25", folder.display());
    let finished = checkpoint.export(&out, &["--lora", &second]).ok();
    let modules = 2 * 10 + 4;
    for want in [
        format!(
            "note: LoRA liveavatar.safetensors: PEFT, {modules} of {modules} modules, rank 4, \
             factor 0.5 (no alpha in the file; 64 / 128 as published), strength 1\n"
        ),
        format!(
            "note: LoRA peft: PEFT, 10 of {modules} modules, rank 4, \
             factor 2 (alpha of adapter_config.json), strength 0.25; \
             the other {} modules keep the weights of the checkpoint\n",
            modules - 10
        ),
    ] {
        assert!(finished.stderr.contains(&want), "{}", finished.stderr);
    }
    let merged = format!("LoRA merged into {modules} tensors");
    assert!(finished.stdout.contains(&merged), "{}", finished.stdout);
    let models = Models::open(&out).unwrap();
    let [first, second] = &models.manifest().lora[..] else {
        panic!("{:?}", models.manifest().lora)
    };
    let hash = |file: &Path| engines::manifest::hash_file(file).ok();
    let want = LoraEntry {
        file: "liveavatar.safetensors".to_owned(),
        blake3: hash(&checkpoint.lora()),
        scale: 0.5,
        highest_scale: None,
        strength: 1.0,
        ranks: vec![4],
        targets: modules,
    };
    assert_eq!(*first, want);
    let want = LoraEntry {
        file: "peft".to_owned(),
        blake3: hash(&folder.join("adapter_model.safetensors")),
        scale: 2.0,
        strength: 0.25,
        targets: 10,
        ..want
    };
    assert_eq!(*second, want);
}

#[test]
fn a_run_killed_while_it_published_is_finished_by_the_next() {
    let (checkpoint, whole) = deep();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("models");
    killed(checkpoint.command(&out, &[]), || {
        blocks(&out).is_some_and(|n| n >= 1)
    });
    let kept = fs::read(journal(&out)).unwrap();
    checkpoint.export(&out, &[]).ok();
    // This is the state between taking the name and removing the journal. The replaced export is
    // still there.
    fs::write(out.join("export.journal"), kept).unwrap();
    let old = out.with_file_name(".models.partial");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("manifest.json"), "{}").unwrap();
    checkpoint.export(&out, &[]).ok();
    assert_eq!(hashes(&out), *whole);
    assert_eq!(listing(dir.path()).len(), whole.len(), "something is left");
}

#[test]
fn a_signal_stops_an_export_and_says_how_to_go_on() {
    let (checkpoint, whole) = deep();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("models");
    let child = checkpoint.command(&out, &[]).spawn().unwrap();
    let give_up = Instant::now() + Duration::from_secs(120);
    while blocks(&out).is_none_or(|n| n < 1) && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(1));
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let finished = Finished::from(child.wait_with_output().unwrap());
    let message = finished.error(ErrorKind::Interrupted);
    assert!(
        message.starts_with("stopped by a signal; ")
            && message.ends_with("the same command continues, --restart begins anew"),
        "{message}"
    );
    checkpoint.export(&out, &[]).ok();
    assert_eq!(hashes(&out), *whole);
}

#[test]
fn one_process_at_a_time_writes_an_export() {
    let (checkpoint, _) = deep();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("models");
    fs::create_dir(journal(&out).parent().unwrap()).unwrap();
    let held = File::create(journal(&out)).unwrap();
    held.lock().unwrap();
    let message = checkpoint.export(&out, &[]).error(ErrorKind::Resources);
    assert!(
        message.contains("another export is writing here"),
        "{message}"
    );
    assert_eq!(fs::read(journal(&out)).unwrap(), b"");
    // A folder of that name that holds no export belongs to somebody else.
    drop(held);
    fs::remove_file(journal(&out)).unwrap();
    fs::write(journal(&out).with_file_name("thesis.txt"), "years of work").unwrap();
    let message = checkpoint.export(&out, &[]).error(ErrorKind::Usage);
    assert!(message.contains(".models.partial"), "{message}");
    assert_eq!(
        listing(dir.path()),
        [PathBuf::from(".models.partial/thesis.txt")]
    );
}

/// Reads the peak memory in MB that a run printed, without file pages.
fn peak(said: &str) -> u64 {
    let (_, rest) = said.split_once("peak memory ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_the_model() {
    let (deep, flat) = (Checkpoint::new(64), Checkpoint::new(2));
    let dir = tempfile::tempdir().unwrap();
    let run = |checkpoint: &Checkpoint, name: &str| {
        let out = dir.path().join(name);
        let peak = peak(&checkpoint.export(&out, &[]).ok().stdout);
        let bytes: u64 = Models::open(&out)
            .unwrap()
            .manifest()
            .data
            .iter()
            .map(|d| d.file.bytes / 1_000_000)
            .sum();
        (peak, bytes)
    };
    let (less, few) = run(&flat, "flat");
    let (more, many) = run(&deep, "deep");
    // Graphs and the blocks of 16 MiB that workers hold may differ. The weights of the added layers
    // must not count.
    let room = 64;
    assert!(many >= few + 2 * room, "{few} {many}");
    assert!(more < 2_000 && more <= less + room, "{less} {more}");
}

#[test]
fn an_export_can_be_cut_to_its_first_layers() {
    let (checkpoint, _) = deep();
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    checkpoint.export(&whole, &[]).ok();
    let whole = Models::open(&whole).unwrap();
    let all = whole.manifest();
    // The cut removes the last layer with sound.
    let inject = |m: &Manifest| m.config.dit.audio_inject_layers.clone();
    let layers = *inject(all).last().unwrap();
    checkpoint
        .export(&cut, &["--layers", &layers.to_string()])
        .ok();
    let cut = Models::open(&cut).unwrap();
    let few = cut.manifest();
    assert_eq!((all.layers_of, few.layers_of), (None, Some(16)));
    assert_eq!(few.config.dit.layers, layers);
    assert_eq!(inject(few), inject(all)[..inject(all).len() - 1]);
    let targets = |m: &Manifest| m.lora[0].targets;
    assert!(targets(few) < targets(all));
    // Each kept component has the bytes that it has in the whole.
    for component in &few.components {
        let (mine, other) = (
            cut.weights(&component.name).unwrap(),
            whole.weights(&component.name).unwrap(),
        );
        assert_eq!(mine.slab_bytes(), other.slab_bytes(), "{}", component.name);
    }
    let bytes = |m: &Models, name: &str| {
        let (file, w) = m
            .manifest()
            .data
            .iter()
            .find_map(|d| Some((&d.file.file, d.weights.iter().find(|w| w.name == name)?)))
            .unwrap();
        let data = fs::read(m.dir().join(file)).unwrap();
        data[w.offset as usize..(w.offset + w.length) as usize].to_vec()
    };
    let last = format!("blocks.{}.ffn.2.weight", layers - 1);
    for key in [last.as_str(), "blocks.0.self_attn.q.weight"] {
        let data = few.data.iter().flat_map(|d| &d.weights);
        let name = &data.clone().find(|w| w.key == key).unwrap().name;
        assert_eq!(bytes(&cut, name), bytes(&whole, name), "{key}");
    }
    for layers in ["0", "17"] {
        let out = dir.path().join("none");
        let message = checkpoint
            .export(&out, &["--layers", layers])
            .error(ErrorKind::Usage);
        assert!(
            message.ends_with("wanted 1 to 16, which the checkpoint has"),
            "{message}"
        );
        assert!(!out.exists());
    }
}
