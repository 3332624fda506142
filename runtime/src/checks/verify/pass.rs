//! One pass of all checks over a golden set. The groups of checks run in a fixed order, because
//! early groups explain the failures of later groups.

use super::checkup::Checkup;
use super::golden::Golden;
use super::subject::Subject;
use super::table::{Focus, Results, Table};
use super::{chain, dit, host, media, vae};
use engines::cancel::Cancel;

use crate::chain::error::ChainError;
use crate::chain::events::{Event, Observer, Phase};
use crate::checks::error::CheckError;

/// Seconds of each group of checks, in the order of the run.
pub(super) type Timings = Vec<(&'static str, f64)>;

/// Runs every check of the tensors that `focus` selects.
///
/// # Errors
/// [`ChainError::Cancelled`]. A check that fails is a row, not an error.
pub(super) fn pass(
    subject: &Subject,
    golden: &Golden,
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
        golden,
        table: Table::new(golden, focus).of_recipe(subject.models.recipe()),
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
    Ok((checkup.table.finish(), timings))
}

fn unless_cancelled(cancel: &Cancel) -> Result<(), ChainError> {
    if cancel.is_cancelled() {
        return Err(ChainError::Cancelled);
    }
    Ok(())
}
