//! The devices that a video is made on, opened: those of a profile, real or virtual, or what flags ask for.

use engines::backend::Backend;
use engines::backend::ort::{Ort, Runtime};
use engines::manifest::Models;
use engines::memory::HostMemory;
use engines::profile::{Kind, Profile};

use crate::chain::events::{Event, Observer};
use crate::commands::cli::Generate;
use crate::commands::device_args;
use crate::commands::error::Error;
use crate::generate::{Clips, Request};
use crate::media::picture::Picture;
use crate::placement::plan::Plan;
use crate::planner::found::Machine;
use crate::planner::{self, Ask, Planned, PlannerError};

/// An export, a backend for each device number, at least one, and the placement where a profile gave it.
pub(super) struct Placed {
    pub(super) models: Models,
    pub(super) backends: Vec<Box<dyn Backend>>,
    pub(super) plan: Option<Plan>,
    /// Blocks of the KV rings, from the profile or as told.
    pub(super) ring_blocks: Option<usize>,
}

/// One CPU, or virtual devices with a budget.
///
/// # Errors
/// A folder that cannot be used, a placement that does not cover the model.
pub(super) fn as_told(
    args: &Generate,
    request: &Request,
    observer: &dyn Observer,
) -> Result<Placed, Error> {
    observer.event(&Event::Phase("opening the models"));
    let backend = super::open(&args.models, args.threads)?;
    let models = backend.models().clone();
    let Some(budget) = request.virtual_budget() else {
        return Ok(Placed {
            models,
            backends: vec![Box::new(backend)],
            plan: None,
            ring_blocks: request.ring_blocks,
        });
    };
    let plan = request.plan(&backend.models().config().dit)?;
    let last = plan.device_ids().into_iter().max().unwrap_or(0);
    let budgets = vec![budget; last + 1];
    Ok(Placed {
        models,
        backends: virtual_devices(&backend, &budgets),
        plan: None,
        ring_blocks: request.ring_blocks,
    })
}

/// The devices of a profile, after a check that the video fits them.
///
/// # Errors
/// As [`planner::plan`]; devices or free memory that the machine lacks.
pub(super) fn placed(
    args: &Generate,
    request: &Request,
    observer: &dyn Observer,
) -> Result<Placed, Error> {
    observer.event(&Event::Phase("opening the models"));
    let models = Models::open(&args.models)?;
    let planned = planned(args, request, &models, observer)?;
    let dit = &models.config().dit;
    let mut plan = planned.placement.plan(dit.layers, request.steps)?;
    let gpu = planned.profile.each_device().any(|d| d.kind == Kind::Gpu);
    let cpu = || {
        Ok::<_, Error>(Ort::with(
            models.clone(),
            Runtime::cpu(device_args::threads(args.threads))?,
        ))
    };
    let backends: Vec<Box<dyn Backend>> = match (gpu, args.virtual_devices) {
        (true, false) => {
            Machine::look().check(&planned)?;
            plan.kind = "cuda";
            let budgets = planned.devices.iter().map(|d| d.usable).enumerate();
            budgets
                .map(|(i, most)| real_device(args, &models, i as u32, most))
                .collect::<Result<_, _>>()?
        }
        (true, true) => {
            let budgets: Vec<u64> = planned.devices.iter().map(|d| d.usable).collect();
            virtual_devices(&cpu()?, &budgets)
        }
        (false, _) => vec![Box::new(cpu()?)],
    };
    Ok(Placed {
        models,
        backends,
        plan: Some(plan),
        ring_blocks: Some(planned.placement.ring_blocks),
    })
}

/// A CUDA device with at most `most` bytes: TensorRT where a folder of engines is given, otherwise ONNX Runtime.
fn real_device(
    args: &Generate,
    models: &Models,
    ordinal: u32,
    most: u64,
) -> Result<Box<dyn Backend>, Error> {
    if let Some(engines) = &args.engines {
        return Ok(::engines::device::tensorrt(models, engines, ordinal, most)?);
    }
    let runtime = engines::device::cuda_at_most(ordinal, most, device_args::threads(args.threads))?;
    Ok(Box::new(Ort::with(models.clone(), runtime)))
}

/// The plan of the profile for this export's own precision.
fn planned(
    args: &Generate,
    request: &Request,
    models: &Models,
    observer: &dyn Observer,
) -> Result<Planned, Error> {
    let picture = Picture::open(&request.image)?;
    let ask = Ask {
        size: request.size.effective(request.size_mode, picture.size())?,
        steps: request.steps,
        infer_frames: request.infer_frames,
        clips: match request.clips {
            Clips::Auto => None,
            Clips::AtMost(n) => Some(n),
        },
    };
    let name = args.profile.as_deref().unwrap_or("auto");
    let mut profile = match name {
        "auto" => Machine::look().plan(models.config(), &ask)?.profile,
        _ => Profile::open(name).map_err(PlannerError::from)?,
    };
    if profile.recipe != models.recipe() {
        let text = format!(
            "profile {} plans recipe {}, these models are {}; planning for {}",
            profile.name,
            profile.recipe,
            models.recipe(),
            models.recipe()
        );
        observer.event(&Event::Notice(text));
        profile = profile
            .with_recipe(models.recipe())
            .map_err(PlannerError::from)?;
    }
    Ok(planner::plan(&profile, models.config(), &ask)?)
}

/// A device of its own budget for every number.
fn virtual_devices(backend: &Ort, budgets: &[u64]) -> Vec<Box<dyn Backend>> {
    let device = |(i, budget): (usize, &u64)| -> Box<dyn Backend> {
        Box::new(backend.on(HostMemory::new(format!("cpu:{i}"), *budget)))
    };
    budgets.iter().enumerate().map(device).collect()
}
