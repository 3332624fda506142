//! TensorRT: engines that are built ahead for one kind of GPU. An engine is found again by the
//! hashes of its sources, and runs on device memory that the caller owns.
//!
//! The list of engines and its checks are always here. Loading the library, building and running
//! are behind the features `tensorrt-rtx` (RTX cards) and `tensorrt` (data-centre cards). The two
//! link different headers, so a binary has one of them. The exporter prepares the ONNX graphs.

pub mod engine_list;

#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
pub mod build;
#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
pub mod library;
#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
pub mod session;
#[cfg(feature = "tensorrt")]
mod streaming;

#[cfg(all(feature = "tensorrt-rtx", feature = "tensorrt"))]
compile_error!(
    "features `tensorrt-rtx` and `tensorrt` link different TensorRT headers: build each binary \
     with one of them"
);

use crate::error_kind::ErrorKind;
use crate::memory::MemoryError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// One of the two libraries named TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Flavour {
    /// TensorRT for RTX: builds for any RTX card on any machine, and finishes kernels when an
    /// engine is loaded.
    #[serde(rename = "tensorrt-rtx")]
    Rtx,
    /// TensorRT: builds on the kind of GPU that will run the engine.
    #[serde(rename = "tensorrt")]
    Enterprise,
}

impl Flavour {
    /// The library that this binary was built with.
    pub const BUILT: Option<Self> = if cfg!(feature = "tensorrt-rtx") {
        Some(Self::Rtx)
    } else if cfg!(feature = "tensorrt") {
        Some(Self::Enterprise)
    } else {
        None
    };

    /// Returns the name as command lines, Cargo features and lists of engines spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rtx => "tensorrt-rtx",
            Self::Enterprise => "tensorrt",
        }
    }

    /// Returns the version that this program is made for. Engines are planned with it where the
    /// library is not at hand.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Rtx => "1.7.1",
            Self::Enterprise => "11.4.0",
        }
    }

    /// Lists the streaming multiprocessor versions that engines can be built for without such a
    /// card. An empty list means: only on the card itself.
    pub const fn ahead_of_card(self) -> &'static [u32] {
        match self {
            Self::Rtx => &[75, 80, 86, 89, 120, 121],
            Self::Enterprise => &[],
        }
    }

    /// Checks that this binary can use the library.
    ///
    /// # Errors
    /// [`TensorRtError::NotBuilt`].
    pub fn require(self) -> Result<(), TensorRtError> {
        if Self::BUILT == Some(self) {
            return Ok(());
        }
        Err(TensorRtError::NotBuilt {
            wanted: self,
            built: Self::BUILT.map_or("neither", Self::name),
        })
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Flavour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Rtx, Self::Enterprise]
            .into_iter()
            .find(|f| f.name() == text)
            .ok_or_else(|| format!("wanted tensorrt-rtx or tensorrt, got `{text}`"))
    }
}

/// Why TensorRT cannot be had, an engine cannot be built, or one may not be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum TensorRtError {
    #[error(
        "{wanted} is not in this binary (it has {built}); build it with `cargo build --release \
         --features {wanted}`"
    )]
    NotBuilt {
        wanted: Flavour,
        built: &'static str,
    },
    #[error("{library}: {reason}; {remedy}")]
    Library {
        library: String,
        reason: String,
        remedy: &'static str,
    },
    #[error("{library}: wanted version {want}, got {got}; {remedy}")]
    Version {
        library: String,
        want: String,
        got: String,
        remedy: &'static str,
    },
    /// No driver, no such device, or too little memory on it.
    #[error(transparent)]
    Driver(#[from] MemoryError),
    #[error("component {component}: {what}, which an engine does not have; run it on ONNX Runtime")]
    Unsupported { component: String, what: String },
    #[error("{flavour} does not build for SM {sm}; it builds for {have}")]
    Sm {
        flavour: Flavour,
        sm: u32,
        have: String,
    },
    #[error("{}: {reason}", path.display())]
    Build { path: PathBuf, reason: String },
    #[error("{}: cannot be read: {source}; `{rebuild}` makes it", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
        rebuild: String,
    },
    #[error("{}: not a set of engines: {reason}; rebuild with `{rebuild}`", path.display())]
    Malformed {
        path: PathBuf,
        reason: String,
        rebuild: String,
    },
    #[error(
        "{}: {what}: wanted {want}, engine has {got}; rebuild with `{rebuild}`",
        path.display()
    )]
    Foreign {
        path: PathBuf,
        what: String,
        want: String,
        got: String,
        rebuild: String,
    },
    #[error("{}: no engine of {engine}, it has {have}; rebuild with `{rebuild}`", path.display())]
    Missing {
        path: PathBuf,
        engine: String,
        have: String,
        rebuild: String,
    },
    #[error("component {component}: {reason}")]
    Run { component: String, reason: String },
}

impl TensorRtError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Library { .. } | Self::Version { .. } | Self::Driver(_) => ErrorKind::Resources,
            Self::NotBuilt { .. } | Self::Sm { .. } | Self::Unsupported { .. } => ErrorKind::Usage,
            _ => ErrorKind::Model,
        }
    }
}
