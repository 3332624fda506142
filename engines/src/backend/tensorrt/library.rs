//! Finds and loads the TensorRT libraries and the CUDA driver. Each failure names the package that
//! has the library. Only [`driver`] needs a GPU.

use super::{Flavour, TensorRtError};
use crate::memory::cuda::CudaDevice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use trtx::{LogHandler, Logger, Severity};

/// Environment variable with the folder of the two libraries, or one with a `lib` folder that has
/// them.
pub const FOLDER_VARIABLE: &str = "TENSORRT_DIR";

/// This binary's flavour.
const FLAVOUR: Flavour = if cfg!(feature = "tensorrt") {
    Flavour::Enterprise
} else {
    Flavour::Rtx
};

const REMEDY: &str = match FLAVOUR {
    Flavour::Rtx => {
        "`scripts/setup --tensorrt` fetches it (the PyPI wheel onnxruntime-ep-nv-tensorrt-rtx-cu13 \
         0.5.0 has it), or set TENSORRT_DIR to the folder that holds libtensorrt_rtx.so.1.7.1 and \
         libtensorrt_onnxparser_rtx.so.1.7.1"
    }
    Flavour::Enterprise => {
        "install NVIDIA TensorRT 11.4 (Debian packages libnvinfer11 and libnvonnxparsers11 of \
         NVIDIA's repository), or set TENSORRT_DIR to the folder that holds libnvinfer.so.11 and \
         libnvonnxparser.so.11"
    }
};

/// File names of the library and of its ONNX parser.
const NAMES: [&str; 2] = match FLAVOUR {
    Flavour::Rtx => [
        "libtensorrt_rtx.so.1.7.1",
        "libtensorrt_onnxparser_rtx.so.1.7.1",
    ],
    Flavour::Enterprise => ["libnvinfer.so.11", "libnvonnxparser.so.11"],
};

/// Folder in which `scripts/setup` puts the library, below a folder above the program or the
/// working directory.
const FETCHED: &str = ".deps/tensorrt-rtx";

/// The loaded library. It stays loaded for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    version: [i32; 3],
}

impl Library {
    /// Loads TensorRT and its ONNX parser, once per process. No driver and no GPU is needed.
    ///
    /// # Errors
    /// A library that is missing or of another version.
    pub fn load() -> Result<Self, TensorRtError> {
        static LOADED: Mutex<Option<Library>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = *loaded {
            return Ok(library);
        }
        let folder = find(
            std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from),
            &above(),
        )?;
        let [library, parser] = NAMES.map(|name| {
            folder
                .as_deref()
                .map_or_else(|| PathBuf::from(name), |f| f.join(name))
        });
        let missing = |path: &Path, e: &dyn std::fmt::Display| TensorRtError::Library {
            library: path.display().to_string(),
            reason: e.to_string(),
            remedy: REMEDY,
        };
        trtx::dynamically_load_tensorrt(Some(&library)).map_err(|e| missing(&library, &e))?;
        trtx::dynamically_load_tensorrt_onnxparser(Some(&parser))
            .map_err(|e| missing(&parser, &e))?;
        let found = Self {
            version: version_of(&library)?,
        };
        found.check(&library)?;
        Ok(*loaded.insert(found))
    }

    /// Returns the version, such as `1.7.1`.
    pub fn version(&self) -> String {
        self.version.map(|n| n.to_string()).join(".")
    }

    /// Returns the flavour of this binary.
    pub fn flavour(&self) -> Flavour {
        FLAVOUR
    }

    /// Engines and calls fit the headers' major and minor version only.
    #[expect(unsafe_code, reason = "constants of the vendored headers")]
    fn check(&self, library: &Path) -> Result<(), TensorRtError> {
        // SAFETY: the functions return constants.
        let (major, minor) = unsafe {
            (
                trtx::trtx_sys::get_tensorrt_major_version(),
                trtx::trtx_sys::get_tensorrt_minor_version(),
            )
        };
        if self.version[..2] == [major as i32, minor as i32] {
            return Ok(());
        }
        Err(TensorRtError::Version {
            library: library.display().to_string(),
            want: format!("{major}.{minor}"),
            got: self.version(),
            remedy: REMEDY,
        })
    }
}

/// The folder that has both libraries; `None` leaves an enterprise library to the system's loader.
fn find(named: Option<PathBuf>, above: &[PathBuf]) -> Result<Option<PathBuf>, TensorRtError> {
    let has = |d: &PathBuf| NAMES.iter().all(|n| d.join(n).is_file());
    if let Some(named) = named.filter(|p| !p.as_os_str().is_empty()) {
        let both = [named.clone(), named.join("lib")];
        return both
            .into_iter()
            .find(has)
            .map(Some)
            .ok_or_else(|| TensorRtError::Library {
                library: NAMES[0].to_owned(),
                reason: format!("not in {} ({FOLDER_VARIABLE})", named.display()),
                remedy: REMEDY,
            });
    }
    let found = above
        .iter()
        .flat_map(|d| [d.clone(), d.join(FETCHED)])
        .find(has);
    match (found, FLAVOUR) {
        (None, Flavour::Rtx) => Err(TensorRtError::Library {
            library: NAMES[0].to_owned(),
            reason: format!("not beside the program and not in a {FETCHED} folder above it"),
            remedy: REMEDY,
        }),
        (found, _) => Ok(found),
    }
}

/// Folders above the program and the working directory.
fn above() -> Vec<PathBuf> {
    let places = [std::env::current_exe(), std::env::current_dir()];
    places
        .iter()
        .flatten()
        .flat_map(|p| p.ancestors())
        .map(Path::to_owned)
        .collect()
}

/// Asks the library for its version.
#[expect(unsafe_code, reason = "a C function of the library")]
fn version_of(path: &Path) -> Result<[i32; 3], TensorRtError> {
    let missing = |e: libloading::Error| TensorRtError::Library {
        library: path.display().to_string(),
        reason: e.to_string(),
        remedy: REMEDY,
    };
    // SAFETY: the library is loaded already, so nothing of it runs now; the three functions take
    // nothing and return an int32_t.
    unsafe {
        let library = libloading::Library::new(path).map_err(missing)?;
        let number = |name: &[u8]| {
            let get: libloading::Symbol<'_, unsafe extern "C" fn() -> i32> =
                library.get(name).map_err(missing)?;
            Ok::<i32, TensorRtError>(get())
        };
        Ok([
            number(b"getInferLibMajorVersion")?,
            number(b"getInferLibMinorVersion")?,
            number(b"getInferLibPatchVersion")?,
        ])
    }
}

/// Asks the CUDA driver for a device, before anything of TensorRT's that would end the process
/// without one.
///
/// # Errors
/// [`TensorRtError::Driver`], which names the driver's package.
pub fn driver(ordinal: u32) -> Result<Arc<CudaDevice>, TensorRtError> {
    Ok(CudaDevice::open(ordinal)?)
}

/// Errors that TensorRT has logged since they were last taken.
static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// More are of no use to a reader.
const MOST_ERRORS: usize = 16;

struct Keep;

impl LogHandler for Keep {
    fn log(&self, severity: Severity, message: &str) {
        if matches!(severity, Severity::Error | Severity::InternalError) {
            let mut errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
            if errors.len() < MOST_ERRORS {
                errors.push(message.trim().to_owned());
            }
        }
    }
}

/// The process's one logger.
pub(super) fn logger() -> Result<&'static Logger, TensorRtError> {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    if let Some(logger) = LOGGER.get() {
        return Ok(logger);
    }
    let made = Logger::new(Keep).map_err(|e| TensorRtError::Library {
        library: NAMES[0].to_owned(),
        reason: e.to_string(),
        remedy: REMEDY,
    })?;
    Ok(LOGGER.get_or_init(|| made))
}

/// Returns TensorRT's messages since the last call, or `fallback` without any.
pub(super) fn said(fallback: &dyn std::fmt::Display) -> String {
    let mut errors = ERRORS.lock().unwrap_or_else(PoisonError::into_inner);
    let said = std::mem::take(&mut *errors);
    if said.is_empty() {
        fallback.to_string()
    } else {
        said.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_kind::ErrorKind;

    #[test]
    fn a_missing_library_is_named_with_the_package_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let named = find(Some(folder.path().to_owned()), &[]).unwrap_err();
        let text = named.to_string();
        assert_eq!(named.kind(), ErrorKind::Resources);
        for want in [
            NAMES[0],
            "TENSORRT_DIR",
            &folder.path().display().to_string(),
        ] {
            assert!(text.contains(want), "{text}: {want}");
        }
        let package = if FLAVOUR == Flavour::Rtx {
            "onnxruntime-ep-nv-tensorrt-rtx-cu13"
        } else {
            "libnvinfer11"
        };
        assert!(text.contains(package), "{text}");
    }

    #[test]
    fn the_folder_needs_both_libraries_and_may_have_them_in_lib() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("lib");
        std::fs::create_dir(&lib).unwrap();
        std::fs::write(lib.join(NAMES[0]), "").unwrap();
        assert!(find(Some(folder.path().to_owned()), &[]).is_err());
        std::fs::write(lib.join(NAMES[1]), "").unwrap();
        assert_eq!(
            find(Some(folder.path().to_owned()), &[]).unwrap(),
            Some(lib)
        );
    }

    #[test]
    fn a_missing_driver_is_an_error_and_never_the_end_of_the_process() {
        // Where there is a driver, there is nothing to refuse.
        let Err(error) = driver(0) else { return };
        assert_eq!(error.kind(), ErrorKind::Resources);
        assert!(error.to_string().contains("NVIDIA driver"), "{error}");
    }
}
