//! Golden folders, and the exports of the golden set that the repository carries.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use engines::backend::ort::Ort;
use engines::manifest::Models;
use engines::recipe::Recipe;
use exporter::checkpoint::{LoraFile, LoraScale};
use exporter::export::{Request, export};

/// Strength of every golden set's LoRA: alpha over rank. The published LoRA has the same.
pub const LORA_SCALE: f64 = 0.5;

/// Returns the root of the repository.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie in the workspace")
}

/// A golden folder, with its checkpoint: `ckpt/`, `inputs/`, `golden/`.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The folder.
    pub root: PathBuf,
}

impl Golden {
    /// Returns the golden set that the repository carries.
    pub fn carried() -> Self {
        Self {
            root: workspace().join("tests/golden"),
        }
    }

    /// Returns the larger golden set beside the repository, where it exists.
    pub fn shared() -> Option<Self> {
        let root = workspace().parent()?.join("shared/golden");
        root.join("golden/manifest.json")
            .is_file()
            .then_some(Self { root })
    }

    /// Opens the reader of the golden set.
    ///
    /// # Panics
    /// The manifest cannot be read.
    pub fn open(&self) -> runtime::checks::Golden {
        runtime::checks::Golden::open(&self.root).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Returns the path of an input file.
    pub fn input(&self, name: &str) -> PathBuf {
        self.root.join("inputs").join(name)
    }

    /// Returns the folder of both checkpoints.
    pub fn ckpt(&self) -> PathBuf {
        self.root.join("ckpt")
    }

    /// Returns the folder of the base checkpoint.
    pub fn base(&self) -> PathBuf {
        self.ckpt().join("Wan2.2-S2V-14B")
    }

    /// Returns the path of the LoRA.
    pub fn lora(&self) -> PathBuf {
        self.ckpt().join("LiveAvatar/liveavatar.safetensors")
    }

    /// Exports the checkpoint to `out`, in f32, with its LoRA at `scale`.
    pub fn export(&self, scale: f64, out: &Path) {
        self.export_in(Recipe::Fp32, scale, out);
    }

    /// Exports the checkpoint to `out`, in a recipe, with its LoRA at `scale`.
    pub fn export_in(&self, recipe: Recipe, scale: f64, out: &Path) {
        export_checkpoint(&self.ckpt(), recipe, LoraScale::Scale(scale), out);
    }
}

/// Exports a folder of both checkpoints to `out`.
fn export_checkpoint(ckpt: &Path, recipe: Recipe, scale: LoraScale, out: &Path) {
    let lora = LoraFile {
        path: ckpt.join("LiveAvatar/liveavatar.safetensors"),
        scale,
        strength: 1.0,
    };
    let request = Request {
        ckpt_dir: ckpt.join("Wan2.2-S2V-14B"),
        loras: vec![lora],
        recipe,
        layers: None,
        out: out.to_owned(),
    };
    export(&request, &mut |_, _, _| {}).unwrap_or_else(|e| panic!("{}: {e}", ckpt.display()));
}

/// Returns the folder of the demo's checkpoints.
pub fn demo_ckpt() -> PathBuf {
    workspace().join("assets/demo/ckpt")
}

/// Exports the demo's checkpoint once, in f32, as [`models`] does the golden one.
pub fn demo_models() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        cached("demo-models", |out| {
            export_checkpoint(&demo_ckpt(), Recipe::Fp32, LoraScale::default(), out);
        })
    })
}

/// Exports the carried golden set once, and returns the folder. The folder lies in the target
/// directory. Its name identifies the test binary, so that all processes of a test run share it.
pub fn models() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        cached("golden-models", |out| {
            Golden::carried().export(LORA_SCALE, out);
        })
    })
}

/// Exports the carried golden set in bf16, as [`models`] does in f32.
pub fn bf16_models() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        cached("bf16-golden-models", |out| {
            Golden::carried().export_in(Recipe::Bf16, LORA_SCALE, out);
        })
    })
}

/// Returns a folder that `make` fills if it does not exist. Removes older folders of this name.
/// All processes of a test run share it.
pub fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = crate::program::profile().join("it");
    fs::create_dir_all(&folder).expect("a folder in the target directory");
    let lock = fs::File::create(folder.join(format!("{name}.lock"))).expect("a lock file");
    lock.lock().expect("file locks work");
    let exe = std::env::current_exe()
        .and_then(fs::metadata)
        .expect("a test can look at itself");
    let made = exe
        .modified()
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let out = folder.join(format!("{name}-{}-{}", exe.len(), made.as_nanos()));
    if !out.exists() {
        let older = fs::read_dir(&folder)
            .expect("the folder was just made")
            .flatten();
        for entry in older.filter(|e| {
            e.file_name()
                .to_string_lossy()
                .starts_with(&format!("{name}-"))
        }) {
            fs::remove_dir_all(entry.path()).expect("an older folder can be removed");
        }
        make(&out);
    }
    out
}

/// Opens an export on two threads.
///
/// # Panics
/// The export cannot be opened.
pub fn open(models: &Path) -> Ort {
    let models = Models::open(models).unwrap_or_else(|e| panic!("{e}"));
    Ort::new(models, 2).unwrap_or_else(|e| panic!("{e}"))
}
