//! ONNX Runtime's library: its place on disk, and the one environment of the process, whose thread
//! pool and scratch every session shares.

use super::super::{EngineError, brief};
use crate::error_kind::Shortage;
use crate::memory::loader_words;
use ort::AsPointer;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Name of the library that `scripts/setup` unpacks, of the CPU's wheel and of the GPU's.
pub(super) const LIBRARY: &str = "libonnxruntime.so.1.31.1";

/// Set for good when ONNX Runtime warns that a ring was copied instead of written in place.
pub(super) static COPIED_STATE: AtomicBool = AtomicBool::new(false);

/// Which build of the library a process needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    /// With the CUDA provider; it runs graphs on the CPU as well.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "one list of libraries for every build")
    )]
    Cuda,
}

impl Kind {
    /// The folder under `.deps`, and what fills it.
    const fn folder(self) -> (&'static str, &'static str) {
        match self {
            Self::Cpu => ("onnxruntime", "scripts/setup"),
            Self::Cuda => ("onnxruntime-gpu", "scripts/setup --cuda"),
        }
    }

    /// Finds the library: `ORT_DYLIB_PATH`, else beside the executable, else in the `.deps` of a
    /// folder above it or above the working directory.
    pub(super) fn locate(self) -> Option<PathBuf> {
        if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
            return Some(PathBuf::from(path));
        }
        let exe = std::env::current_exe().ok()?;
        let here = std::env::current_dir().ok();
        let beside = exe.parent().map(|d| d.join(LIBRARY));
        let above = exe
            .ancestors()
            .chain(here.iter().flat_map(|d| d.ancestors()));
        let folder = format!(".deps/{}", self.folder().0);
        let deps = above.map(|d| d.join(&folder).join(LIBRARY));
        let fits = |p: &PathBuf| {
            p.is_file() && (self == Self::Cpu || p.with_file_name(CUDA_PROVIDER).is_file())
        };
        beside.into_iter().chain(deps).find(fits)
    }
}

/// The provider's own library, beside the main one.
pub(super) const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// A library that was found and loads.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Found {
    /// Version, as the library says it.
    pub version: String,
    /// File, where it is known.
    pub path: Option<PathBuf>,
}

fn unusable(reason: &str) -> EngineError {
    match Shortage::named_in(reason) {
        Some(shortage) => EngineError::LibraryShort { shortage },
        None => EngineError::Library {
            reason: brief(&reason),
            minor: ort::MINOR_VERSION,
        },
    }
}

fn missing(kind: Kind) -> EngineError {
    let (folder, script) = kind.folder();
    unusable(&format!(
        "{LIBRARY} not found beside the program or in .deps/{folder} of a folder above it \
         (`{script}` puts it there)"
    ))
}

/// Finds the library that a process would load, and asks for its version.
///
/// # Errors
/// The library is missing, does not load, or is older than this program wants.
pub(crate) fn found(kind: Kind) -> Result<Found, EngineError> {
    let path = kind.locate().ok_or_else(|| missing(kind))?;
    let refused = |reason: String| unusable(&format!("{}: {reason}", path.display()));
    let version = version_of(&path).map_err(refused)?;
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|n| n.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < ort::MINOR_VERSION) {
        return Err(refused(format!("this is version {version}")));
    }
    Ok(Found {
        version,
        path: Some(path),
    })
}

/// Asks a library for its version. It stays loaded, because a process has only one.
#[expect(unsafe_code, reason = "calls of a C library")]
fn version_of(path: &Path) -> Result<String, String> {
    type Base = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: ONNX Runtime has no requirement on being loaded.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| loader_words(&e))?;
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: the function has this type in every ONNX Runtime, and returns a constant table; the
    // version is a constant string.
    let version = unsafe {
        let base = library.get::<Base>(c"OrtGetApiBase");
        let base = base.map_err(|e| loader_words(&e))?();
        CStr::from_ptr(((*base).GetVersionString)())
    };
    Ok(version.to_string_lossy().into_owned())
}

/// Returns the environment of the process. ONNX Runtime allows one library and one thread pool for
/// a process, so the first call decides.
pub(super) fn environment(threads: usize, kind: Kind) -> Result<Environment, EngineError> {
    static SHARED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = shared.as_ref() {
        return Ok(e.clone());
    }
    let library = |reason: String| unusable(&reason);
    let path = kind.locate().ok_or_else(|| missing(kind))?;
    // Before anything else of the binding: its first call would otherwise look for a library of its
    // own.
    let builder = ort::init_from(&path).map_err(|e| library(format!("{}: {e}", path.display())))?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|p| p.with_spin_control(false))
        .map_err(|e| library(e.to_string()))?;
    let environment = builder
        .with_name("liveavatar")
        .with_global_thread_pool(pool)
        .with_logger(Arc::new(|_, _: &str, _: &str, _: &str, message: &str| {
            if message.contains("TensorScatter") {
                COPIED_STATE.store(true, Ordering::Relaxed);
            }
        }))
        .build()
        .map_err(|e| library(e.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Warning);
    share_arena(&environment).map_err(|e| library(e.to_string()))?;
    Ok(shared.insert(environment).clone())
}

/// One arena for all sessions of the process: a layer's scratch is the next layer's. With an arena
/// each, forty layers would keep forty times the scratch of one. It grows by what is asked for, not
/// by powers of two.
#[expect(unsafe_code, reason = "the binding has no call for it")]
fn share_arena(environment: &Environment) -> Result<(), ort::Error> {
    const SAME_AS_REQUESTED: i32 = 1;
    const DEFAULT: i32 = -1;
    let memory = MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Arena,
        MemoryType::Default,
    )?;
    let api = ort::api();
    let mut config = ptr::null_mut();
    // SAFETY: all pointers are live for the calls; the library copies the configuration, which is
    // released here.
    unsafe {
        ort::Error::result_from_status((api.CreateArenaCfg)(
            0,
            SAME_AS_REQUESTED,
            DEFAULT,
            DEFAULT,
            &mut config,
        ))?;
        let status =
            (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), config);
        (api.ReleaseArenaCfg)(config);
        ort::Error::result_from_status(status)
    }
}
