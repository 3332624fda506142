//! Checks everything of a machine that a video needs, and says what to do about each fault. It
//! needs no GPU and no models.

mod artefacts;
mod devices;
mod host;
mod libraries;
mod report;

use std::path::PathBuf;

use engines::cancel::Cancel;

use crate::planner::found::Machine;

pub(crate) use report::{Ill, Report};

/// What to look at besides the machine.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Folder of an export.
    pub models: Option<PathBuf>,
    /// Folder of TensorRT engines for the export.
    pub engines: Option<PathBuf>,
    /// Folder that videos are to be written to.
    pub save_dir: PathBuf,
}

/// Checks this machine. Hashing models ends early when `cancel` asks to stop.
pub(crate) fn run(request: &Request, cancel: &Cancel) -> Report {
    let machine = Machine::look();
    let mut lines = devices::lines(&machine);
    lines.extend(libraries::lines(!machine.cards.is_empty()));
    lines.extend(host::lines(&request.save_dir));
    let engines = request.engines.as_deref();
    let artefacts = |models: &PathBuf| artefacts::lines(models, engines, &machine, cancel);
    lines.extend(request.models.iter().flat_map(artefacts));
    Report::of(lines)
}
