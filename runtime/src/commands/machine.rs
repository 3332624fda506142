//! Places a video: on the devices of a profile, real or virtual, or as flags tell it.

use std::path::Path;
use std::sync::Arc;

use engines::backend::ort::{Ort, Runtime};
use engines::backend::tensorrt::engine_list::EngineList;
use engines::backend::{Backend, EngineError};
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
use crate::planner::found::{Machine, fastest};
use crate::planner::wishes::Wishes;
use crate::planner::{self, Ask, Planned, PlannerError};

/// The source of a placement.
#[derive(Debug, PartialEq)]
enum Placing<'a> {
    /// Flags tell it; the devices are this CPU, or virtual ones on it.
    Told(Told),
    /// A profile is planned for the request, and changed by the wishes.
    Profile(&'a str, Wishes),
    /// As `auto`, because there are GPUs. The CPU stands in where their library is missing.
    Found(Wishes),
}

/// Opened devices, and the plan for them.
pub(super) struct Placed {
    pub(super) devices: Devices,
    pub(super) plan: Plan,
}

/// Places the video of `prepared` where the flags say. Without a profile it takes the GPUs of the
/// machine, and says so where it does not.
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
    let machine = Machine::look();
    tracing::info!(machine = machine.describe(), "machine looked at");
    let (placing, notice) = placing(args, &machine);
    tracing::debug!(?placing, "placement chosen");
    let tell = |text: String| observer.event(&Event::Notice(text));
    notice.into_iter().for_each(tell);
    let profile = |name, wishes| {
        let planned = planned(
            args,
            (name, &wishes),
            &machine,
            (prepared, models),
            observer,
        )?;
        profile_devices(args, &planned, &machine, (prepared, models), observer)
    };
    match placing {
        Placing::Told(told) => told_devices(args, &told, prepared, models),
        Placing::Profile(name, wishes) => profile(name, wishes),
        Placing::Found(wishes) => match profile("auto", wishes) {
            Err(Error::Engine(error)) if lacks_a_library(&error) => {
                tell(format!(
                    "the CPU computes, because {} cannot be used: {error}",
                    machine.describe()
                ));
                told_devices(args, &args.told(), prepared, models)
            }
            placed => placed,
        },
    }
}

/// Decides who places the video, and returns the notice on a processor that a user might not
/// expect.
fn placing<'a>(args: &'a Generate, machine: &Machine) -> (Placing<'a>, Option<String>) {
    let wishes = args.wishes();
    let gpus = !machine.cards.is_empty();
    if let Some(name) = &args.profile {
        let unheard = !wishes.is_empty() && !gpus && name == "auto";
        let notice =
            unheard.then(|| format!("{wishes} chooses among GPUs; {}", machine.describe()));
        return (Placing::Profile(name, wishes), notice);
    }
    match (gpus, args.places_by_hand()) {
        (true, None) => (Placing::Found(wishes), None),
        (true, Some(flag)) => {
            let notice = format!(
                "the CPU computes: {flag} places the work on virtual devices of the CPU; \
                 --profile auto uses what is here: {}",
                machine.describe()
            );
            (Placing::Told(args.told()), Some(notice))
        }
        (false, _) => {
            let notice = (!wishes.is_empty()).then(|| {
                format!(
                    "the CPU computes, and its threads stand in for the devices of {wishes}: {}",
                    machine.describe()
                )
            });
            (Placing::Told(args.told()), notice)
        }
    }
}

/// Returns whether this program or machine lacks the library of a GPU.
fn lacks_a_library(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::CudaLibrary { .. } | EngineError::NotBuilt { .. }
    )
}

fn told_devices(
    args: &Generate,
    told: &Told,
    prepared: &Prepared,
    models: &Models,
) -> Result<Placed, Error> {
    let steps = prepared.request.calls();
    if let Some(n) = args.wishes().dit_devices.filter(|n| *n > steps) {
        return Err(Error::Usage(format!(
            "--num_gpus_dit {n}: wants at most {steps} on a CPU, one for each denoising step"
        )));
    }
    let plan = told.plan(models.config().dit.layers, steps)?;
    let plan = plan.with_latency(args.latency());
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
    machine: &Machine,
    (prepared, models): (&Prepared, &Models),
    observer: &dyn Observer,
) -> Result<Placed, Error> {
    let layers = models.config().dit.layers;
    let plan = planned.placement.plan(layers, prepared.request.calls())?;
    let plan = plan.with_latency(args.latency());
    let gpu = planned.profile.each_device().any(|d| d.kind == Kind::Gpu);
    let budgets: Vec<u64> = planned.devices.iter().map(|d| d.usable).collect();
    match (gpu, args.virtual_devices) {
        (true, false) => {
            machine.check(planned)?;
            let open = |(i, most): (usize, &u64)| gpu_device(args, models, i as u32, *most);
            let opened = budgets.iter().enumerate().map(open);
            if let Some(text) = args
                .engines
                .as_deref()
                .and_then(|f| without_engine(f, models))
            {
                observer.event(&Event::Notice(text));
            }
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
    let threads = device_args::threads(args.threads);
    if let Some(folder) = &args.engines {
        return Ok(engines::device::tensorrt(
            models, folder, ordinal, most, threads,
        )?);
    }
    let runtime = engines::device::cuda_at_most(ordinal, most, threads)?;
    Ok(Arc::new(Ort::with(models.clone(), runtime)))
}

/// Says which components ONNX Runtime runs because a folder of engines lacks them.
fn without_engine(folder: &Path, models: &Models) -> Option<String> {
    let (has, lacks) = EngineList::of_folder(folder)?.covers(models);
    (!has.is_empty() && !lacks.is_empty()).then(|| {
        let names: Vec<&str> = lacks.iter().map(String::as_str).collect();
        format!(
            "{}: engines of {} of {} components; ONNX Runtime runs {}",
            folder.display(),
            has.len(),
            has.len() + lacks.len(),
            names.join(", ")
        )
    })
}

/// Plans the profile for this video and this export's own precision.
fn planned(
    args: &Generate,
    (name, wishes): (&str, &Wishes),
    machine: &Machine,
    (prepared, models): (&Prepared, &Models),
    observer: &dyn Observer,
) -> Result<Planned, Error> {
    let request = &prepared.request;
    let ask = Ask {
        size: prepared.framing.size,
        steps: request.calls(),
        passes: request.passes(),
        infer_frames: request.infer_frames,
        latency: args.latency(),
        clips: match request.clips {
            Clips::Auto => None,
            Clips::AtMost(n) => Some(n),
        },
    };
    let mut profile = match name {
        "auto" => machine.plan(models.config(), &ask, wishes)?.profile,
        _ => bent(name, wishes, models, &ask, observer)?,
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

/// Opens a profile by its name and changes it by the wishes, on the devices that it has.
fn bent(
    name: &str,
    wishes: &Wishes,
    models: &Models,
    ask: &Ask,
    observer: &dyn Observer,
) -> Result<Profile, PlannerError> {
    let profile = Profile::open(name)?;
    if wishes.is_empty() {
        return Ok(profile);
    }
    if profile.each_device().all(|d| d.kind == Kind::Cpu) {
        observer.event(&Event::Notice(format!(
            "{wishes} chooses among GPUs; profile {name} has none"
        )));
        return Ok(profile);
    }
    let count = profile.device_count();
    let layouts = wishes.variants(&profile, count, ask.steps);
    let planned = fastest(layouts, models.config(), ask)?;
    planned
        .map(|p| p.profile)
        .ok_or_else(|| PlannerError::Flags {
            flags: wishes.to_string(),
            wanted: wishes.devices(),
            found: format!("{count} in profile {name}"),
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::cli::{Cli, Command};
    use crate::planner::found::Card;

    fn args(more: &str) -> Generate {
        let line = "avatar-run generate --models m --image i --audio a --prompt p --out o.mp4";
        let words = line.split(' ').chain(more.split_whitespace());
        match Cli::read(words.map(Into::into)).unwrap().command {
            Command::Generate(generate) => *generate,
            other => panic!("{other:?}"),
        }
    }

    fn machine(cards: usize) -> Machine {
        let card = Card {
            name: "NVIDIA L4".to_owned(),
            memory_gib: 24.0,
            free_gib: 23.5,
            sm: 89,
            host_link_gbs: 24.0,
        };
        Machine {
            cards: vec![card; cards],
            cores: 2,
            memory_gib: 8.0,
            no_cards: (cards == 0).then(|| "the driver lists none".to_owned()),
        }
    }

    #[test]
    fn gpus_are_taken_and_a_cpu_is_never_taken_in_silence() {
        let none = Wishes::default();
        let two = Wishes {
            dit_devices: Some(2),
            offload: Some(true),
            ..none
        };
        let flags = "--num_gpus_dit 2 --offload_model True";
        let told = |more: &str| Placing::Told(args(more).told());
        let stages = "--stages 2x1";
        let cases = [
            (2, "", Placing::Found(none), ""),
            (2, flags, Placing::Found(two), ""),
            (2, "--profile cpu", Placing::Profile("cpu", none), ""),
            (
                2,
                stages,
                told(stages),
                "--stages places the work on virtual devices",
            ),
            (0, "", told(""), ""),
            (
                0,
                flags,
                told(flags),
                "the CPU computes, and its threads stand in for",
            ),
        ];
        for (cards, more, want, notice) in cases {
            let args = args(more);
            let (placing, told) = placing(&args, &machine(cards));
            assert_eq!(placing, want, "{more}");
            let told = told.unwrap_or_default();
            assert_eq!(told.is_empty(), notice.is_empty(), "{more}: {told}");
            assert!(told.contains(notice), "{told}");
        }
        let auto = args(&format!("--profile auto {flags}"));
        let (placed, told) = placing(&auto, &machine(0));
        assert_eq!(placed, Placing::Profile("auto", two));
        assert!(
            told.unwrap()
                .contains("no NVIDIA device (the driver lists none)")
        );
        assert_eq!(
            placing(&auto, &machine(2)),
            (Placing::Profile("auto", two), None)
        );
    }
}
