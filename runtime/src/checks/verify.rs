//! Checks an export against a golden set: the reference's own tensors, one manifest with a
//! tolerance for each. The checks make every tensor that the runtime can make, by the code that
//! makes videos. Sizes come from the manifest and from the export. A control run plants one fault
//! in each component and demands that a check notices it.

mod chain;
mod checkup;
mod compare;
mod control;
mod dit;
pub(crate) mod error;
mod figures;
mod golden;
mod host;
mod media;
mod pass;
mod precision;
mod report;
mod subject;
mod table;
mod targets;
mod tolerance;
mod vae;

use std::path::Path;
use std::time::Instant;

use engines::cancel::Cancel;
use engines::manifest::Models;

use crate::chain::events::Observer;
use crate::checks::error::CheckError;

pub(crate) use error::VerifyError;
pub use golden::Golden;
pub use report::Report;
pub use subject::Subject;

use pass::pass;

/// The files and the kinds of checks that a verification runs.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Names of files of the golden set, with or without `.safetensors`. Empty means all files.
    pub only: Vec<String>,
    /// Whether to plant faults after the checks, see [`Report::faults`].
    pub control: bool,
    /// Whether to leave out the checks that make whole videos.
    pub skip_e2e: bool,
}

/// Writes a report as JSON. The file never holds half a report.
///
/// # Errors
/// The path cannot be written.
pub(crate) fn write_report(path: &Path, report: &Report) -> std::io::Result<()> {
    let json = serde_json::to_vec_pretty(report)?;
    engines::files::write_whole(path, &json)
}

/// Checks an export against the parts of a golden set that `request` selects.
///
/// A check that fails is not an error: [`Report::verdict`] judges the rows.
///
/// # Errors
/// The golden set is of another model or lacks a selected file;
/// [`Cancelled`](crate::chain::ChainError::Cancelled).
///
/// # Examples
/// ```no_run
/// # use std::{path::Path, sync::Arc};
/// use engines::{backend::ort::Ort, manifest::Models};
/// use runtime::chain::{Cancel, Silent};
/// use runtime::checks::{Golden, Request, Subject, run};
///
/// let models = Models::open(Path::new("models"))?;
/// let backend = Ort::new(models.clone(), 2)?;
/// let golden = Golden::open(Path::new("tests/golden"))?;
/// let request = Request { only: vec!["vae".to_owned()], ..Request::default() };
/// let subject = Subject::new(models, Arc::new(backend));
/// let report = run(&subject, &golden, &request, &Silent, &Cancel::default())?;
/// println!("{report}");
/// report.verdict()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run(
    subject: &Subject,
    golden: &Golden,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Report, CheckError> {
    same_model(golden, &subject.models)?;
    let only = only(golden, &request.only)?;
    let focus = |file: &str, _: &str| only.is_empty() || only.iter().any(|f| f == file);
    let begun = Instant::now();
    let (results, mut timings) = pass(subject, golden, &focus, request.skip_e2e, observer, cancel)?;
    let mut faults = Vec::new();
    if request.control {
        let sound = begun.elapsed().as_secs_f64();
        faults = control::run(subject, golden, &results, &focus, observer, cancel)?;
        timings.push(("faults", begun.elapsed().as_secs_f64() - sound));
    }
    let mut report = Report::new(
        golden,
        &subject.models,
        results,
        timings,
        faults,
        request.control,
    );
    report.add_unlisted(golden, &focus);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Refuses a golden set of another checkpoint: every check would fail, and none would say why.
fn same_model(golden: &Golden, models: &Models) -> Result<(), VerifyError> {
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
        match golden.config(field) {
            Some(size) if size != models => {
                return Err(VerifyError::OtherModel {
                    path: golden.root().to_owned(),
                    field,
                    golden: size,
                    models,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Resolves the names of files that the user wants, without their extension.
fn only(golden: &Golden, wanted: &[String]) -> Result<Vec<String>, VerifyError> {
    let mut have: Vec<&str> = golden.entries().iter().map(|e| e.file.as_str()).collect();
    have.dedup();
    let known = |file: &String| {
        let name = file.strip_suffix(".safetensors").unwrap_or(file).to_owned();
        match have.contains(&name.as_str()) {
            true => Ok(name),
            false => Err(VerifyError::NoSuchFile {
                path: golden.root().to_owned(),
                file: file.clone(),
                have: have.join(", "),
            }),
        }
    };
    wanted.iter().map(known).collect()
}

#[cfg(test)]
mod tests {
    use engines::error_kind::ErrorKind;

    use super::golden::tests::golden_of;
    use super::*;

    #[test]
    fn files_are_picked_by_name_and_unknown_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let golden = golden_of(dir.path(), &[("x", None, serde_json::json!("exact"))]);
        let pick = |names: &[&str]| {
            only(
                &golden,
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
