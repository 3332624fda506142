//! Writes checkpoints of random weights with exactly the published layout.
//!
//! Files, names, types and shapes are those of the published checkpoints; tests, demos and
//! benchmarks need no real weights. The model computes noise, but `synth/fill.rs` keeps its
//! activations near one. The writer holds at most 8 MiB of a tensor. The folder has its name only
//! once it is whole.

mod fill;
mod preset;
mod random;
mod shapes;
mod tokenizer;
pub(crate) mod torch_file;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use engines::error_kind::{ErrorKind, reason};
use serde_json::{Map, Value, json};

pub use engines::components::preset::Preset;
pub use shapes::{Shapes, shapes};

use crate::checkpoint::StoredDType;
use crate::checkpoint::layout::{
    DIT_STEM, LORA_FILE, PosConv, T5_FILE, TOKENIZER_DIR, TensorSpec, VAE_FILE, WAN_DIR,
    WAV2VEC2_DIR,
};
use preset::Sizes;
use random::{Fill, Stream};
use tokenizer::Tokenizer;
use torch_file::{Archive, Record};

/// Bytes of a tensor that are made at once; a multiple of four elements of any type. A request to
/// stop is heard between two of them.
const CHUNK: usize = 8 << 20;
/// Room for headers and the small files.
const SLACK: u64 = 16 << 20;

/// Options of a synthetic checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynthOptions {
    /// Number of layers of the transformer; `None` takes the preset's number.
    pub layers: Option<usize>,
    /// Seed of the random weights.
    pub seed: u64,
}

/// The written checkpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SynthReport {
    /// The base folder, `OUT/Wan2.2-S2V-14B`.
    pub ckpt_dir: PathBuf,
    /// The LoRA file.
    pub lora: PathBuf,
    /// Sizes of every component, the LoRA included.
    pub components: Vec<SynthComponent>,
}

/// One component of a [`SynthReport`].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SynthComponent {
    /// Name of the component.
    pub name: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
}

impl SynthReport {
    /// Returns the number of parameters of all components.
    pub fn parameters(&self) -> u64 {
        self.components.iter().map(|c| c.parameters).sum()
    }

    /// Returns the bytes of all components.
    pub fn bytes(&self) -> u64 {
        self.components.iter().map(|c| c.bytes).sum()
    }
}

/// A checkpoint that cannot be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant names its fields")]
pub enum SynthError {
    #[error("{out}: wanted a new or empty folder, found {found}", out = out.display())]
    Occupied { out: PathBuf, found: &'static str },
    #[error("layers is {got}, wanted 1 to 1000")]
    Layers { got: usize },
    #[error("{path}: {want} bytes are needed, {free} are free", path = path.display())]
    NoSpace { path: PathBuf, want: u64, free: u64 },
    #[error("{path}: cannot write: {}", reason(source), path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("stopped by a signal; nothing is kept")]
    Stopped,
}

impl SynthError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Layers { .. } => ErrorKind::Usage,
            Self::NoSpace { .. } => ErrorKind::Resources,
            Self::Io { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            Self::Occupied { .. } => ErrorKind::Input,
            Self::Stopped => ErrorKind::Interrupted,
        }
    }
}

/// Writes a checkpoint to the new or empty folder `out`. The same options give the same bytes on
/// every machine.
///
/// # Errors
/// A folder that is not empty, a number of layers out of range, a disk that is full.
pub fn synth(
    preset: Preset,
    options: &SynthOptions,
    out: &Path,
) -> Result<SynthReport, SynthError> {
    synth_until(preset, options, out, &AtomicBool::new(false))
}

/// Writes a checkpoint as [`synth`] does, until `stop` is set.
///
/// # Errors
/// [`SynthError::Stopped`]; the errors of [`synth`]. Nothing is left behind.
pub fn synth_until(
    preset: Preset,
    options: &SynthOptions,
    out: &Path,
    stop: &AtomicBool,
) -> Result<SynthReport, SynthError> {
    if let Some(got) = options.layers.filter(|n| !(1..=1000).contains(n)) {
        return Err(SynthError::Layers { got });
    }
    let sizes = Sizes::new(preset, options.layers);
    let tokenizer = Tokenizer::new(sizes.extra_ids);
    let plan = Plan::new(sizes, options.seed, stop);
    let report = plan.report(out);
    let part = Part::create(out)?;
    room(&part.path, report.bytes() + SLACK)?;
    let io = |source| match stop.load(Ordering::Relaxed) {
        true => SynthError::Stopped,
        false => SynthError::Io {
            path: out.to_owned(),
            source,
        },
    };
    plan.write(&tokenizer, &part.path).map_err(io)?;
    part.publish(out).map_err(io)?;
    Ok(report)
}

/// A folder with a hidden name, which is removed unless it is published.
struct Part {
    path: PathBuf,
}

impl Part {
    fn create(out: &Path) -> Result<Self, SynthError> {
        let occupied = |found| {
            Err(SynthError::Occupied {
                out: out.to_owned(),
                found,
            })
        };
        match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return occupied("files in it"),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return occupied("a file"),
            _ => {}
        }
        let Some(name) = out.file_name().and_then(|n| n.to_str()) else {
            return occupied("no name to give it");
        };
        let path = out.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        fs::create_dir_all(&path).map_err(|source| SynthError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }

    fn publish(self, out: &Path) -> io::Result<()> {
        fs::rename(&self.path, out)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After publishing, the hidden name is free. A folder that cannot be removed stays visible
        // to the user.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn room(path: &Path, want: u64) -> Result<(), SynthError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| SynthError::Io {
        path: path.to_owned(),
        source: e.into(),
    })?;
    match stat.f_bavail.saturating_mul(stat.f_frsize) {
        free if free < want => Err(SynthError::NoSpace {
            path: path.to_owned(),
            want,
            free,
        }),
        _ => Ok(()),
    }
}

/// One component's tensors.
struct Component {
    name: &'static str,
    dtype: StoredDType,
    tensors: Vec<(TensorSpec, Fill)>,
}

impl Component {
    fn new(
        name: &'static str,
        dtype: StoredDType,
        specs: Vec<TensorSpec>,
        fill: impl Fn(&TensorSpec) -> Fill,
    ) -> Self {
        Self {
            name,
            dtype,
            tensors: specs
                .into_iter()
                .map(|t| (fill(&t), t))
                .map(|(f, t)| (t, f))
                .collect(),
        }
    }

    /// Returns the component with its tensors in the order of safetensors files.
    fn sorted(mut self) -> Self {
        self.tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        self
    }

    fn bytes(&self, t: &TensorSpec) -> usize {
        t.numel() * self.dtype.size()
    }

    fn report(&self) -> SynthComponent {
        let parameters = self.tensors.iter().map(|(t, _)| t.numel() as u64).sum();
        SynthComponent {
            name: self.name,
            tensors: self.tensors.len(),
            parameters,
            bytes: parameters * self.dtype.size() as u64,
        }
    }

    fn stream(
        &self,
        seed: u64,
        (spec, fill): &(TensorSpec, Fill),
        w: &mut dyn Write,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let stream = Stream::new(seed, self.name, &spec.name, *fill);
        let (total, mut done) = (self.bytes(spec), 0);
        let mut chunk = vec![0; total.min(CHUNK)];
        while done < total {
            if stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("stopped"));
            }
            let part = &mut chunk[..(total - done).min(CHUNK)];
            stream.write(done / self.dtype.size(), self.dtype, part);
            w.write_all(part)?;
            done += part.len();
        }
        Ok(())
    }
}

/// The content of a checkpoint to write.
struct Plan<'a> {
    /// Ends the writing when it is set.
    stop: &'a AtomicBool,
    sizes: Sizes,
    seed: u64,
    dit: Component,
    t5: Component,
    vae: Component,
    wav: Component,
    lora: Component,
}

impl<'a> Plan<'a> {
    fn new(sizes: Sizes, seed: u64, stop: &'a AtomicBool) -> Self {
        let Sizes {
            dit, t5, vae, wav, ..
        } = &sizes;
        let lora = dit
            .lora_targets()
            .into_iter()
            .flat_map(|(module, out, inp)| {
                [
                    ("A", vec![sizes.lora_rank, inp]),
                    ("B", vec![out, sizes.lora_rank]),
                ]
                .map(|(side, shape)| TensorSpec {
                    name: format!("{module}.lora_{side}.default.weight"),
                    shape,
                })
            });
        let mut wav_tensors = wav.tensors(PosConv::Hook);
        wav_tensors.extend(wav.idle());
        let head_dim = t5.attn_dim / t5.heads;
        Self {
            dit: Component::new("dit", StoredDType::BF16, dit.tensors(), |t| {
                fill::dit(t, dit.layers)
            })
            .sorted(),
            t5: Component::new("text_encoder", StoredDType::BF16, t5.tensors(), |t| {
                fill::t5(t, head_dim)
            }),
            vae: Component::new("vae", StoredDType::F32, vae.tensors(), fill::vae),
            wav: Component::new("audio_encoder", StoredDType::F32, wav_tensors, |t| {
                fill::wav(t, wav.hidden)
            })
            .sorted(),
            lora: Component::new("lora", StoredDType::BF16, lora.collect(), fill::lora).sorted(),
            seed,
            sizes,
            stop,
        }
    }

    fn report(&self, out: &Path) -> SynthReport {
        let components = [&self.dit, &self.t5, &self.vae, &self.wav, &self.lora]
            .map(Component::report)
            .to_vec();
        SynthReport {
            ckpt_dir: out.join(WAN_DIR),
            lora: out.join(LORA_FILE),
            components,
        }
    }

    fn write(&self, tokenizer: &Tokenizer, out: &Path) -> io::Result<()> {
        let wan = out.join(WAN_DIR);
        let wav = wan.join(WAV2VEC2_DIR);
        let lora = out.join(LORA_FILE);
        fs::create_dir_all(&wav)?;
        fs::create_dir_all(lora.with_file_name(""))?;
        tokenizer.write(&wan.join(TOKENIZER_DIR))?;
        write_json(&wan.join("config.json"), &self.sizes.dit_config())?;
        for (name, value) in self.sizes.wav_files() {
            write_json(&wav.join(name), &value)?;
        }
        self.safetensors(&lora, &self.lora, 0..self.lora.tensors.len())?;
        self.safetensors(
            &wav.join("model.safetensors"),
            &self.wav,
            0..self.wav.tensors.len(),
        )?;
        self.torch(&wan.join(VAE_FILE), &self.vae)?;
        self.torch(&wan.join(T5_FILE), &self.t5)?;
        self.shards(&wan)
    }

    /// Writes the transformer in shards of about equal size, with their index.
    fn shards(&self, dir: &Path) -> io::Result<()> {
        let total: usize = self
            .dit
            .tensors
            .iter()
            .map(|(t, _)| self.dit.bytes(t))
            .sum();
        let mut weight_map = Map::new();
        let (mut next, mut before) = (0, 0);
        for shard in 1..=self.sizes.shards {
            let first = next;
            while next < self.dit.tensors.len() && before < total * shard / self.sizes.shards {
                before += self.dit.bytes(&self.dit.tensors[next].0);
                next += 1;
            }
            let name = format!(
                "{DIT_STEM}-{shard:05}-of-{:05}.safetensors",
                self.sizes.shards
            );
            self.safetensors(&dir.join(&name), &self.dit, first..next)?;
            weight_map.extend(
                self.dit.tensors[first..next]
                    .iter()
                    .map(|(t, _)| (t.name.clone(), Value::from(name.as_str()))),
            );
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_json(
            &dir.join(format!("{DIT_STEM}.safetensors.index.json")),
            &index,
        )
    }

    fn safetensors(
        &self,
        path: &Path,
        c: &Component,
        range: std::ops::Range<usize>,
    ) -> io::Result<()> {
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
        let mut at = 0;
        for (t, _) in &c.tensors[range.clone()] {
            let end = at + c.bytes(t);
            header.insert(
                t.name.clone(),
                json!({"dtype": c.dtype.name(), "shape": t.shape, "data_offsets": [at, end]}),
            );
            at = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut w = BufWriter::new(File::create(path)?);
        w.write_all(&(header.len() as u64).to_le_bytes())?;
        w.write_all(&header)?;
        for t in &c.tensors[range] {
            c.stream(self.seed, t, &mut w, self.stop)?;
        }
        w.flush()
    }

    fn torch(&self, path: &Path, c: &Component) -> io::Result<()> {
        let record = |(t, _): &(TensorSpec, Fill)| Record {
            key: t.name.clone(),
            dtype: c.dtype,
            shape: t.shape.clone(),
        };
        let records: Vec<Record> = c.tensors.iter().map(record).collect();
        let folder = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or("archive");
        let mut archive = Archive::start(BufWriter::new(File::create(path)?), folder, &records)?;
        for t in &c.tensors {
            archive.record(|w| c.stream(self.seed, t, w, self.stop))?;
        }
        archive.finish()
    }
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::tempdir;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::checkpoint::sums::SumsWatch;
    use crate::config;
    use crate::inspect::inspect;

    /// Every file below `dir` with its bytes' hash.
    fn tree(dir: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
        let mut found = BTreeMap::new();
        let mut todo = vec![dir.to_owned()];
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    todo.push(path);
                } else {
                    found.insert(
                        path.strip_prefix(dir).unwrap().to_owned(),
                        blake3::hash(&fs::read(&path).unwrap()),
                    );
                }
            }
        }
        found
    }

    #[test]
    fn tiny_is_whole_and_the_same_each_time() {
        let dir = tempdir().unwrap();
        let options = SynthOptions {
            layers: Some(2),
            seed: 3,
        };
        let report = synth(Preset::Tiny, &options, &dir.path().join("a")).unwrap();
        let inspection = inspect(&dir.path().join("a"), None, &mut SumsWatch::idle()).unwrap();
        assert!(inspection.sound, "{inspection}");
        assert_eq!(inspection.parameters(), report.parameters());
        fs::create_dir(dir.path().join("b")).unwrap();
        synth(Preset::Tiny, &options, &dir.path().join("b")).unwrap();
        assert_eq!(tree(&dir.path().join("a")), tree(&dir.path().join("b")));
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn no_parameter_is_zero() {
        let dir = tempdir().unwrap();
        let report = synth(
            Preset::Tiny,
            &SynthOptions {
                layers: Some(1),
                seed: 0,
            },
            &dir.path().join("a"),
        )
        .unwrap();
        for path in [
            report.ckpt_dir.clone(),
            report.ckpt_dir.join(T5_FILE),
            report.ckpt_dir.join(VAE_FILE),
            report.ckpt_dir.join(WAV2VEC2_DIR),
            report.lora,
        ] {
            let c = Checkpoint::open(&path).unwrap();
            for name in c.names() {
                let bytes = c.bytes(name).unwrap();
                assert!(
                    c.read_f32(name)
                        .unwrap()
                        .iter()
                        .all(|x| *x != 0.0 && x.is_finite()),
                    "{name}"
                );
                assert!(!bytes.is_empty());
            }
        }
    }

    /// The shared set is not part of the repository: without it this test has nothing to say.
    #[test]
    fn files_are_those_of_the_reference() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/ckpt");
        if !shared.is_dir() {
            return;
        }
        let dir = tempdir().unwrap();
        synth(
            Preset::Tiny,
            &SynthOptions::default(),
            &dir.path().join("a"),
        )
        .unwrap();
        let ours = tree(&dir.path().join("a"));
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            tree(&shared).keys().collect::<Vec<_>>()
        );
        for file in ours.keys().filter(|f| {
            f.extension().is_some_and(|e| e == "json") && !f.to_string_lossy().contains("index")
        }) {
            let keys = |root: &Path| {
                serde_json::from_slice::<Value>(&fs::read(root.join(file)).unwrap())
                    .unwrap()
                    .as_object()
                    .unwrap()
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                keys(&dir.path().join("a")),
                keys(&shared),
                "{}",
                file.display()
            );
        }
    }

    #[test]
    fn every_token_has_a_row_of_the_embedding() {
        for preset in Preset::ALL {
            let sizes = Sizes::new(preset, None);
            let tokens = Tokenizer::new(sizes.extra_ids).len();
            assert!(tokens <= sizes.t5.vocab, "{preset:?}: {tokens} tokens");
        }
    }

    /// The sizes are read back from the written tensors and from the written `config.json`.
    #[test]
    fn a_checkpoint_has_the_sizes_of_its_preset() {
        let dir = tempdir().unwrap();
        let out = dir.path().join("a");
        let dir = synth(Preset::Tiny, &SynthOptions::default(), &out)
            .unwrap()
            .ckpt_dir;
        let speech = dir.join(WAV2VEC2_DIR);
        let torch = |file| Checkpoint::open_torch(&dir.join(file)).unwrap();
        let read = engines::manifest::ModelConfig {
            dit: config::dit(&Checkpoint::open_safetensors(&dir).unwrap(), &dir).unwrap(),
            vae: config::vae(&torch(VAE_FILE)).unwrap(),
            text: config::text(&torch(T5_FILE)).unwrap(),
            speech: config::speech(
                &Checkpoint::open(&speech)
                    .and_then(Checkpoint::with_weight_norm)
                    .unwrap(),
                &speech,
            )
            .unwrap(),
        };
        assert_eq!(read, Preset::Tiny.config());
    }

    #[test]
    fn real_sizes_are_those_of_the_published_model() {
        let never = AtomicBool::new(false);
        let plan = Plan::new(Sizes::new(Preset::Full, None), 0, &never);
        let report = plan.report(Path::new("x"));
        let of = |name| {
            report
                .components
                .iter()
                .find(|c| c.name == name)
                .unwrap()
                .parameters
        };
        assert_eq!(of("text_encoder"), 5_680_910_336);
        assert_eq!(of("vae"), 126_892_531);
        assert!(
            (16.0e9..16.6e9).contains(&(of("dit") as f64)),
            "{}",
            of("dit")
        );
        let small = Plan::new(Sizes::new(Preset::Small, None), 0, &never)
            .report(Path::new("x"))
            .parameters();
        assert!((140_000_000..175_000_000).contains(&small), "{small}");
    }

    #[test]
    fn an_occupied_folder_or_no_layers_are_refused() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let one = SynthOptions {
            layers: Some(1),
            seed: 0,
        };
        let none = SynthOptions {
            layers: Some(0),
            seed: 0,
        };
        for (options, out, want, exit) in [
            (
                &one,
                dir.path(),
                "wanted a new or empty folder, found files in it",
                ErrorKind::Input,
            ),
            (
                &one,
                file.as_path(),
                "wanted a new or empty folder, found a file",
                ErrorKind::Input,
            ),
            (
                &none,
                Path::new("x"),
                "layers is 0, wanted 1 to 1000",
                ErrorKind::Usage,
            ),
        ] {
            let error = synth(Preset::Tiny, options, out).unwrap_err();
            assert!(error.to_string().ends_with(want), "{error}");
            assert_eq!(error.kind(), exit);
        }
        let error = room(dir.path(), u64::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Resources);
    }
}
