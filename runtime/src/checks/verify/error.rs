//! Why a golden set cannot be used, and the failures that a verification reports.

use std::path::PathBuf;

use engines::error_kind::ErrorKind;
use engines::tensor_file::TensorFileError;

/// Why a golden set cannot be used, or the failure that its verification found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The manifest cannot be read.
    #[error("{}: wants the manifest of a golden set: {source}", path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The manifest is not JSON.
    #[error("{}: not a manifest: {source}", path.display())]
    Parse {
        /// The manifest.
        path: PathBuf,
        /// Place and kind of the fault.
        source: serde_json::Error,
    },
    /// The manifest lists no files.
    #[error("{}: field files: wanted a list of tensors by file, found none", path.display())]
    NoFiles {
        /// The manifest.
        path: PathBuf,
    },
    /// The golden set was made from another checkpoint.
    #[error(
        "{}: config {field}: golden set has {golden}, models have {models}; \
         they are of different checkpoints",
        path.display()
    )]
    OtherModel {
        /// The golden folder.
        path: PathBuf,
        /// The size that differs.
        field: &'static str,
        /// The golden set's size.
        golden: usize,
        /// The export's size.
        models: usize,
    },
    /// The user names a file that the golden set does not have.
    #[error("{}: file {file:?} is not in the set; it has {have}", path.display())]
    NoSuchFile {
        /// The golden folder.
        path: PathBuf,
        /// The name that the user gave.
        file: String,
        /// The names of the set's files.
        have: String,
    },
    /// A file of tensors cannot be read.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// No tensor of the golden set could be checked.
    #[error("{}: nothing of the set could be checked", path.display())]
    Nothing {
        /// The golden folder.
        path: PathBuf,
    },
    /// Checks failed.
    #[error("{failed} of {rows} checks failed")]
    Failed {
        /// The failed checks.
        failed: usize,
        /// All checks.
        rows: usize,
    },
    /// No check noticed some planted faults.
    #[error("{missed} of {faults} faults were not caught: these checks cannot fail")]
    Missed {
        /// The faults that no check noticed.
        missed: usize,
        /// All faults.
        faults: usize,
    },
    /// A control run noticed every planted fault.
    #[error(
        "control run passed: all {faults} planted faults were detected (exit code 7 is expected)"
    )]
    Caught {
        /// All faults.
        faults: usize,
    },
}

impl VerifyError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherModel { .. } => ErrorKind::Model,
            Self::NoSuchFile { .. } => ErrorKind::Usage,
            Self::Failed { .. } | Self::Caught { .. } => ErrorKind::Verification,
            Self::Missed { .. } => ErrorKind::Unproven,
            Self::Tensors(e) => e.kind(),
            Self::Read { .. }
            | Self::Parse { .. }
            | Self::NoFiles { .. }
            | Self::Nothing { .. } => ErrorKind::Input,
        }
    }
}
