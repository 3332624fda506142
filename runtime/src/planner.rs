//! Plans what a machine can do before anything is loaded: a profile, a model's sizes and a request
//! give a placement, the memory of every device, and times. Only `found` looks at a machine; the
//! rest are pure functions.

pub(crate) mod advice;
pub(crate) mod ask;
pub(crate) mod draft;
pub(crate) mod error;
pub(crate) mod found;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod placement;
pub(crate) mod report;
pub(crate) mod simulate;
pub(crate) mod time;
pub(crate) mod wishes;
pub(crate) mod work;

use engines::manifest::ModelConfig;
use engines::profile::Profile;

use crate::numbers::geometry::Geometry;
use crate::numbers::schedule;
use draft::Draft;

pub use ask::Ask;
pub use draft::Planned;
pub use error::{PlannerError, Refusal};

/// Plans `ask` on `profile` for a model of `config`'s sizes.
///
/// # Errors
/// [`PlannerError::DoesNotFit`] with the nearest settings that do; a profile that does not suit the
/// model or the run.
pub fn plan(profile: &Profile, config: &ModelConfig, ask: &Ask) -> Result<Planned, PlannerError> {
    Geometry::new(&config.dit, ask.size, ask.infer_frames)?;
    schedule::sigmas(ask.steps)?;
    let draft = Draft::new(profile, config, ask)?;
    match draft.shortage() {
        None => draft.timed(),
        Some(shortage) => Err(PlannerError::DoesNotFit(Box::new(Refusal {
            profile: profile.name.clone(),
            ask: ask.clone(),
            shortage,
            nearest: advice::nearest(profile, config, ask),
        }))),
    }
}

#[cfg(test)]
mod tests;
