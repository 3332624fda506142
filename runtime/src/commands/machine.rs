//! Places a video: on the devices of a profile, real or virtual, or as flags tell it.

use std::sync::Arc;

use engines::backend::Backend;
use engines::backend::ort::{Ort, Runtime};
use engines::manifest::Models;
use engines::memory::HostMemory;
use engines::profile::{Kind, Profile};

use crate::chain::events::{Event, Observer};
use crate::commands::cli::Generate;
use crate::commands::device_args;
use crate::commands::error::Error;
use crate::generate::{Clips, Prepared};
use crate::placement::devices::Devices;
use crate::placement::plan::{DeviceKind, Plan};
use crate::placement::told::Told;
use crate::planner::found::Machine;
use crate::planner::{self, Ask, Planned, PlannerError};

/// The source of a placement.
enum Placing<'a> {
    /// Flags tell it; the devices are this CPU, or virtual ones on it.
    Told(Told),
    /// A profile is planned for the request.
    Profile(&'a str),
}

/// Opened devices, and the plan for them.
pub(super) struct Placed {
    pub(super) devices: Devices,
    pub(super) plan: Plan,
}

/// Places the video of `prepared` where the flags say.
///
/// # Errors
/// A placement that does not cover the model or does not fit the machine, or a device or a library
/// that is missing.
pub(super) fn place(
    args: &Generate,
    prepared: &Prepared,
    models: &Models,
    observer: &dyn Observer,
) -> Result<Placed, Error> {
    let placing = match &args.profile {
        None => Placing::Told(args.told()),
        Some(profile) => Placing::Profile(profile),
    };
    match placing {
        Placing::Told(told) => told_devices(args, &told, prepared, models),
        Placing::Profile(name) => {
            let planned = planned(name, prepared, models, observer)?;
            profile_devices(args, &planned, prepared, models)
        }
    }
}

fn told_devices(
    args: &Generate,
    told: &Told,
    prepared: &Prepared,
    models: &Models,
) -> Result<Placed, Error> {
    let plan = told.plan(models.config().dit.layers, prepared.request.steps)?;
    let cpu = cpu(args, models)?;
    let devices = match told.virtual_budget() {
        None => Devices::one(Arc::new(cpu)),
        Some(budget) => {
            let last = plan.device_ids().into_iter().max().unwrap_or(0);
            virtual_devices(&cpu, &vec![budget; last + 1])
        }
    };
    Ok(Placed { devices, plan })
}

/// Opens the devices of a profile, after a check that the machine has them.
fn profile_devices(
    args: &Generate,
    planned: &Planned,
    prepared: &Prepared,
    models: &Models,
) -> Result<Placed, Error> {
    let layers = models.config().dit.layers;
    let plan = planned.placement.plan(layers, prepared.request.steps)?;
    let gpu = planned.profile.each_device().any(|d| d.kind == Kind::Gpu);
    let budgets: Vec<u64> = planned.devices.iter().map(|d| d.usable).collect();
    match (gpu, args.virtual_devices) {
        (true, false) => {
            Machine::look().check(planned)?;
            let open = |(i, most): (usize, &u64)| gpu_device(args, models, i as u32, *most);
            let opened = budgets.iter().enumerate().map(open);
            Ok(Placed {
                devices: Devices::each(opened.collect::<Result<_, _>>()?),
                plan: plan.on(DeviceKind::Cuda),
            })
        }
        (true, true) => Ok(Placed {
            devices: virtual_devices(&cpu(args, models)?, &budgets),
            plan,
        }),
        (false, _) => Ok(Placed {
            devices: Devices::one(Arc::new(cpu(args, models)?)),
            plan,
        }),
    }
}

/// Opens a CUDA device with at most `most` bytes: TensorRT where a folder of engines is given,
/// otherwise ONNX Runtime.
fn gpu_device(
    args: &Generate,
    models: &Models,
    ordinal: u32,
    most: u64,
) -> Result<Arc<dyn Backend>, Error> {
    if let Some(folder) = &args.engines {
        let engines = engines::device::tensorrt(models, folder, ordinal, most)?;
        return Ok(Arc::from(engines));
    }
    let threads = device_args::threads(args.threads);
    let runtime = engines::device::cuda_at_most(ordinal, most, threads)?;
    Ok(Arc::new(Ort::with(models.clone(), runtime)))
}

/// Plans the profile for this video and this export's own precision.
fn planned(
    name: &str,
    prepared: &Prepared,
    models: &Models,
    observer: &dyn Observer,
) -> Result<Planned, Error> {
    let request = &prepared.request;
    let ask = Ask {
        size: prepared.framing.size,
        steps: request.steps,
        infer_frames: request.infer_frames,
        clips: match request.clips {
            Clips::Auto => None,
            Clips::AtMost(n) => Some(n),
        },
    };
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

fn cpu(args: &Generate, models: &Models) -> Result<Ort, Error> {
    let runtime = Runtime::cpu(device_args::threads(args.threads))?;
    Ok(Ort::with(models.clone(), runtime))
}

/// Makes a virtual device of its own budget for every number.
fn virtual_devices(cpu: &Ort, budgets: &[u64]) -> Devices {
    let device = |(i, budget): (usize, &u64)| -> Arc<dyn Backend> {
        Arc::new(cpu.on(HostMemory::new(format!("cpu:{i}"), *budget)))
    };
    Devices::each(budgets.iter().enumerate().map(device).collect())
}
