//! Checks an export against a golden folder: every tensor that the runtime can produce is produced, by the same code that makes videos, and
//! compared under the folder's own tolerance. Nothing here knows a size; the folder's manifest says what there is. The control run puts one
//! fault into each component and demands that a check notices.

mod chain;
mod checkup;
mod compare;
mod control;
mod dit;
mod host;
mod media;
mod precision;
mod report;
mod set;
mod sheet;
mod vae;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engines::error_kind::ErrorKind;
use engines::manifest::Models;

use crate::chain::error::ChainError;
use crate::chain::events::{Cancel, Event, Observer, Phase};
use crate::checks::error::CheckError;
use engines::backend::{Backend, Loading, plain};
use engines::tensor_file::TensorFileError;

pub use report::Report;
pub use set::Set;
pub(crate) use sheet::Results;

use checkup::Checkup;
use sheet::{Focus, Sheet};

/// Why a set cannot be used, or what it found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{}: wants the manifest of a golden set: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: not a manifest: {source}", path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}: field files: wanted a list of tensors by file, found none", path.display())]
    NoFiles { path: PathBuf },
    #[error("{}: config {field}: golden set has {golden}, models have {models}; they are of different checkpoints", path.display())]
    OtherModel {
        path: PathBuf,
        field: &'static str,
        golden: usize,
        models: usize,
    },
    #[error("{}: file {file:?} is not in the set; it has {have}", path.display())]
    NoSuchFile {
        path: PathBuf,
        file: String,
        have: String,
    },
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    #[error("{}: nothing of the set could be checked", path.display())]
    Nothing { path: PathBuf },
    #[error("{failed} of {rows} checks failed")]
    Failed { failed: usize, rows: usize },
    #[error("{missed} of {faults} faults were not caught: these checks cannot fail")]
    Missed { missed: usize, faults: usize },
    #[error(
        "control run passed: all {faults} planted faults were detected (exit code 7 is expected)"
    )]
    Caught { faults: usize },
}

impl VerifyError {
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

/// What is checked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Files of the set, with or without `.safetensors`; all when empty.
    pub only: Vec<String>,
    pub control: bool,
    pub skip_e2e: bool,
}

/// The export that is checked: opened, on one device.
#[derive(Clone)]
pub struct Subject {
    /// The export.
    pub models: Models,
    /// Loads and runs its components.
    pub backend: Arc<dyn Backend>,
    /// Taps and faults by component.
    loading: Loading,
}

impl Subject {
    /// The export `models`, which `backend` runs.
    pub fn new(models: Models, backend: Arc<dyn Backend>) -> Self {
        Self {
            models,
            backend,
            loading: plain(),
        }
    }
}

/// Writes a report as JSON. The file never holds half a report.
///
/// # Errors
/// The path cannot be written.
pub(crate) fn write_report(path: &Path, report: &Report) -> std::io::Result<()> {
    let json = serde_json::to_vec_pretty(report)?;
    engines::files::write_whole(path, &json)
}

/// Checks everything that `request` wants.
///
/// # Errors
/// A set of another model or without the wanted files; [`ChainError::Cancelled`]. A check that fails is no error, see [`Report::verdict`].
pub fn run(
    subject: &Subject,
    set: &Set,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Report, CheckError> {
    same_model(set, &subject.models)?;
    let only = only(set, &request.only)?;
    let focus = |file: &str, _: &str| only.is_empty() || only.iter().any(|f| f == file);
    let begun = std::time::Instant::now();
    let (results, mut timings) = pass(subject, set, &focus, request.skip_e2e, observer, cancel)?;
    let mut faults = Vec::new();
    if request.control {
        let sound = begun.elapsed().as_secs_f64();
        faults = control::run(subject, set, &results, &focus, observer, cancel)?;
        timings.push(("faults", begun.elapsed().as_secs_f64() - sound));
    }
    let mut report = Report::new(
        set,
        &subject.models,
        results,
        timings,
        faults,
        request.control,
    );
    report.add_unlisted(set, &focus);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Seconds of each group of checks.
type Timings = Vec<(&'static str, f64)>;

/// One pass of all checks over what `focus` wants.
fn pass(
    subject: &Subject,
    set: &Set,
    focus: Focus<'_>,
    skip_e2e: bool,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(Results, Timings), CheckError> {
    type Group = fn(&Checkup<'_>);
    let groups: [(&'static str, &'static str, Group); 5] = [
        ("media", "checking text, audio and picture", media::check),
        (
            "host",
            "checking schedule, random numbers, positions and merged weights",
            host::check,
        ),
        ("vae", "checking the VAE", vae::check),
        ("dit", "checking the transformer", dit::check),
        (
            "chain",
            "checking the whole chain",
            if skip_e2e { chain::skip } else { chain::check },
        ),
    ];
    let checkup = Checkup {
        subject,
        set,
        sheet: Sheet::new(set, focus).of_recipe(subject.models.recipe()),
        cancel,
    };
    let mut timings = Vec::new();
    for (name, phase, group) in groups {
        unless_cancelled(cancel)?;
        observer.event(&Event::Phase(Phase::Checking(phase)));
        let begun = std::time::Instant::now();
        group(&checkup);
        timings.push((name, begun.elapsed().as_secs_f64()));
    }
    unless_cancelled(cancel)?;
    Ok((checkup.sheet.finish(), timings))
}

fn unless_cancelled(cancel: &Cancel) -> Result<(), ChainError> {
    if cancel.is_cancelled() {
        return Err(ChainError::Cancelled);
    }
    Ok(())
}

/// A set of another checkpoint fails everywhere; one line says why.
fn same_model(set: &Set, models: &Models) -> Result<(), VerifyError> {
    let c = models.config();
    for (field, models) in [
        ("heads", c.dit.heads),
        ("head_dim", c.dit.head_dim()),
        ("layers", c.dit.layers),
        ("ffn", c.dit.ffn_dim),
        ("t5_dim", c.text.dim),
        ("t5_layers", c.text.layers),
        ("wav_hidden", c.speech.dim),
        ("wav_layers", c.speech.layers),
        ("vae_dim", c.vae.dim),
    ] {
        match set.config(field) {
            Some(golden) if golden != models => {
                return Err(VerifyError::OtherModel {
                    path: set.root().to_owned(),
                    field,
                    golden,
                    models,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn only(set: &Set, wanted: &[String]) -> Result<Vec<String>, VerifyError> {
    let mut have: Vec<&str> = set.entries().iter().map(|e| e.file.as_str()).collect();
    have.dedup();
    let known = |file: &String| {
        let name = file.strip_suffix(".safetensors").unwrap_or(file).to_owned();
        match have.contains(&name.as_str()) {
            true => Ok(name),
            false => Err(VerifyError::NoSuchFile {
                path: set.root().to_owned(),
                file: file.clone(),
                have: have.join(", "),
            }),
        }
    };
    wanted.iter().map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_picked_by_name_and_unknown_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let set = sheet::tests::set(dir.path(), &[("x", None, serde_json::json!("exact"))]);
        let pick = |names: &[&str]| {
            only(
                &set,
                &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(pick(&["f.safetensors", "f"]).unwrap(), ["f", "f"]);
        assert!(pick(&[]).unwrap().is_empty());
        let error = pick(&["vae"]).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("file \"vae\" is not in the set; it has f")
                && error.kind() == ErrorKind::Usage,
            "{error}"
        );
    }
}
