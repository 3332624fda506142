//! Runs `plan` and `simulate`: takes the machine and the model's sizes from the command line, and
//! prints the planner's answer.

use std::path::Path;

use engines::cancel::Cancel;
use engines::claims::FilePlan;
use engines::components::preset::Preset;
use engines::files;
use engines::manifest::{ModelConfig, Models};
use engines::profile::Profile;

use crate::commands::cli::{PlanArgs, PresetArg, SimulateArgs, Target};
use crate::commands::error::Error;
use crate::commands::outputs;
use crate::commands::print::{json, print};
use crate::generate::Clips;
use crate::numbers::size::SizeMode;
use crate::planner::found::Machine;
use crate::planner::placement::device_name;
use crate::planner::report::Report;
use crate::planner::simulate::svg;
use crate::planner::wishes::Wishes;
use crate::planner::{self, Ask, Planned, PlannerError};

/// Prints what a machine can do.
///
/// # Errors
/// As [`planner::plan`], and what the request itself has wrong.
pub(super) fn plan(args: &PlanArgs) -> Result<(), Error> {
    let (planned, found) = planned(&args.target)?;
    if args.check {
        Machine::look().check(&planned)?;
    }
    if args.json {
        let mut json = planned.to_json();
        if let Some(machine) = found {
            json["machine"] = serde_json::to_value(machine).expect("plain data is JSON");
        }
        return print(&json.to_string());
    }
    if let Some(machine) = found {
        print(&format!("found: {}", machine.describe()))?;
    }
    let report = Report {
        planned: &planned,
        explain: args.explain,
    };
    print(report.to_string().trim_end())
}

/// Prints, and draws, when each device does what.
///
/// # Errors
/// As [`plan`]; a picture that cannot be written.
pub(super) fn simulate(args: &SimulateArgs, cancel: &Cancel) -> Result<(), Error> {
    let mut plan = FilePlan::default();
    plan.reads("--profile", Path::new(&args.target.profile));
    let models = args.target.models.iter();
    models.for_each(|folder| plan.reads("--models", folder));
    args.svg.iter().for_each(|path| plan.writes("--svg", path));
    let _claims = outputs::claim(&plan, args.existing.overwrite, cancel)?;
    let (planned, _) = planned(&args.target)?;
    let timeline = planned.timeline(args.blocks)?;
    let names: Vec<String> = (0..planned.placement.devices())
        .map(|d| device_name(&planned.profile, d))
        .collect();
    let ask = &planned.ask;
    let title = format!(
        "{}, {}, {} steps, {} blocks",
        planned.profile.name,
        ask.size,
        ask.steps / ask.passes,
        args.blocks
    );
    if let Some(path) = &args.svg {
        let drawn = svg::draw(&timeline, &title, &names);
        files::write_whole(path, drawn.as_bytes()).map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?;
    }
    if args.json {
        return print(&json(&timeline));
    }
    print(&summary(&planned, &timeline, &title, &names))
}

fn summary(
    planned: &Planned,
    timeline: &crate::planner::simulate::Timeline,
    title: &str,
    names: &[String],
) -> String {
    let last = timeline.decoded.last().copied().unwrap_or(0.0);
    let first = timeline.decoded.first().copied().unwrap_or(0.0);
    let frames = planned.work.config().dit.block_frames * crate::numbers::timing::FRAMES_PER_LATENT;
    let mut text = format!(
        "{title}\nfirst frame after {first:.2} s, all {} after {last:.2} s; {:.1} frames a second in a long video\n",
        frames * timeline.decoded.len(),
        planned.speed.fps
    );
    for (d, name) in names.iter().enumerate() {
        let busy = timeline.utilisation(d, first, last);
        text += &format!(
            "{name}: arithmetic {:.0} %, host link {:.0} %, peer link {:.0} %\n",
            100.0 * busy.compute,
            100.0 * busy.up.max(busy.down),
            100.0 * busy.peer
        );
    }
    text.trim_end().to_owned()
}

/// The plan, and the machine where it was looked at.
fn planned(target: &Target) -> Result<(Planned, Option<Machine>), Error> {
    let config = config(target)?;
    let ask = ask(target)?;
    if target.profile == "auto" {
        let machine = Machine::look();
        let planned = machine.plan(&config, &ask, &Wishes::default())?;
        return Ok((planned, Some(machine)));
    }
    let profile = Profile::open(&target.profile).map_err(PlannerError::from)?;
    Ok((planner::plan(&profile, &config, &ask)?, None))
}

fn config(target: &Target) -> Result<ModelConfig, Error> {
    match &target.models {
        Some(dir) => Ok(Models::open(dir)?.config().clone()),
        None => Ok(match target.preset {
            PresetArg::Full => Preset::Full,
            PresetArg::Small => Preset::Small,
            PresetArg::Tiny => Preset::Tiny,
        }
        .config()),
    }
}

fn ask(target: &Target) -> Result<Ask, Error> {
    let size = target.size.effective(SizeMode::Exact, target.size)?;
    let passes = target.sample_guide_scale.passes();
    Ok(Ask {
        size,
        steps: target.sample_steps * passes,
        passes,
        infer_frames: target.infer_frames,
        latency: target.latency(),
        clips: match target.num_clip {
            Clips::Auto => None,
            Clips::AtMost(n) => Some(n),
        },
    })
}
