//! The command `avatar-export build`: its flags become a request, then it prints a plan or builds
//! the engines.
use super::sizes::Limits;
use super::{
    BuildError, BuildInput, Done, InsideWeights, Item, LayerDetail, Request, Watch, check, items,
    present, run, write_graphs,
};
use crate::graphs;
use crate::synth::Preset;
use crate::usage::available_memory;
use engines::backend::tensorrt::engine_list::{EngineEntry, EngineList};
use engines::backend::tensorrt::{Flavour, TensorRtError};
use engines::console::{OutputError, print_line};
use engines::manifest::Models;
use engines::profile::{Extent, Kind, LanePolicy, Profile};
use engines::progress_bar::{ProgressBar, progress_bar};
use engines::recipe::Recipe;
use std::path::PathBuf;

/// A library that builds engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BackendName {
    /// TensorRT for RTX cards. It builds on any machine
    TensorrtRtx,
    /// TensorRT for data-centre cards. It builds on the GPU that will run the engines
    Tensorrt,
    /// CUDA provider of ONNX Runtime. It needs no engines, so the command only checks the export
    OrtCuda,
}

/// The library that this binary can call.
const DEFAULT_BACKEND: &str = if cfg!(feature = "tensorrt") {
    "tensorrt"
} else {
    "tensorrt-rtx"
};

/// Flags of `avatar-export build`.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Machine to build for: the name of a profile, or the path of a profile file
    #[arg(long)]
    profile: String,
    /// Folder of an export. Without an export, the command builds only the engines whose weights
    /// are inputs, at the published sizes
    #[arg(long)]
    models: Option<PathBuf>,
    /// Library that builds and runs the engines
    #[arg(long, value_enum, default_value = DEFAULT_BACKEND)]
    backend: BackendName,
    /// Folder to write the engines to
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Build nothing: write the prepared graphs, and print the size and the build time of each
    /// engine
    #[arg(long = "dry-run", visible_alias = "dry_run")]
    dry_run: bool,
    /// Picture size in pixels as W*H [default: the usual size of the profile]
    #[arg(long, value_parser = graphs::parse_size)]
    size: Option<(usize, usize)>,
    /// SM version of the card without its dot, for example 89 [default: from the profile]
    #[arg(long)]
    sm: Option<u32>,
    /// Most lanes (denoising steps that run together) in one call [default: from the profile]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    lanes: Option<u8>,
    /// Most speaking persons in a picture
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    actors: u8,
    /// Length of the longest speech, in seconds
    #[arg(
        long = "speech-seconds",
        visible_alias = "speech_seconds",
        default_value_t = 600,
        value_parser = clap::value_parser!(u32).range(1..=36_000)
    )]
    speech_seconds: u32,
    /// Most host memory for one build, in GiB [default: the free memory]
    #[arg(
        long = "memory-limit",
        visible_alias = "memory_limit",
        value_name = "GIB"
    )]
    memory_limit: Option<f64>,
    /// Most device memory for an engine's intermediate results, in MiB [default: from the profile]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    workspace: Option<u32>,
    /// Name of an engine to leave out. Repeat the flag for each further engine
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
    /// Let an engine load its inside weights from host memory while it runs (only --backend
    /// tensorrt)
    #[arg(long = "stream-weights", visible_alias = "stream_weights")]
    stream_weights: bool,
    /// Write the layers of each engine as a JSON file beside it. This needs the GPU
    #[arg(long)]
    inspect: bool,
}

/// Lanes of a full wave: one for each denoising step.
const WAVE: usize = 4;
const GIB: f64 = (1u64 << 30) as f64;

impl BuildArgs {
    /// Returns the request that the flags state.
    fn request(&self, flavour: Flavour) -> Result<Request, BuildError> {
        let profile = Profile::open(&self.profile)?;
        let input = self.input(&profile)?;
        let builder = &profile.builder;
        Ok(Request {
            limits: self.limits(&profile)?,
            input,
            flavour,
            sm: self.sm(&profile, flavour)?,
            workspace: self.workspace.map_or(builder.scratch_mib as u64, u64::from) << 20,
            level: builder.optimization_level as i32,
            weights: match (self.stream_weights, flavour) {
                (false, _) => InsideWeights::Resident,
                (true, Flavour::Enterprise) => InsideWeights::Streamed,
                (true, Flavour::Rtx) => {
                    return Err(BuildError::Unfit(
                        "--stream-weights: only --backend tensorrt streams weights inside engines"
                            .to_owned(),
                    ));
                }
            },
            detail: match self.inspect {
                true => LayerDetail::Inspected,
                false => LayerDetail::Names,
            },
            memory_limit: match self.memory_limit {
                Some(gib) if gib > 0.0 && gib.is_finite() => (gib * GIB) as u64,
                Some(gib) => {
                    return Err(BuildError::Unfit(format!(
                        "--memory-limit: wanted more than 0 GiB, got {gib}"
                    )));
                }
                None => available_memory().ok_or_else(|| {
                    BuildError::Unfit(
                        "--memory-limit: give a limit, this system does not tell its free memory"
                            .to_owned(),
                    )
                })?,
            },
            skip: self.skip.clone(),
            out: self.out.clone(),
            command: self.command(flavour),
        })
    }

    fn input(&self, profile: &Profile) -> Result<BuildInput, BuildError> {
        if profile.recipe == Recipe::Fp8 {
            return Err(BuildError::Unfit(format!(
                "profile {}: recipe fp8 cannot be exported yet, so it has no engines; \
                 take a copy of the profile with bf16",
                profile.name
            )));
        }
        let Some(dir) = &self.models else {
            return Ok(BuildInput::Preset(Preset::Full, profile.recipe));
        };
        let models = Models::open(dir)?;
        match models.recipe() {
            got if got == profile.recipe => Ok(BuildInput::Models(Box::new(models))),
            got => Err(BuildError::Recipe {
                want: profile.recipe,
                got,
            }),
        }
    }

    fn limits(&self, profile: &Profile) -> Result<Limits, BuildError> {
        let (usual, most) = (profile.sizes.opt, profile.sizes.max);
        let (width, height) = self.size.unwrap_or((usual.width, usual.height));
        let asked = Extent { width, height };
        if asked.area() > most.area() {
            return Err(BuildError::Unfit(format!(
                "--size {asked}: profile {} goes up to {most}",
                profile.name
            )));
        }
        let lanes = match profile.layout.lanes {
            LanePolicy::Wave => WAVE,
            LanePolicy::AtMost(n) => n.min(WAVE),
        };
        Ok(Limits {
            width,
            height,
            lanes: self.lanes.map_or(lanes, usize::from),
            actors: usize::from(self.actors),
            ring_blocks: profile.layout.ring_blocks,
            speech_seconds: self.speech_seconds as usize,
        })
    }

    fn sm(&self, profile: &Profile, flavour: Flavour) -> Result<u32, BuildError> {
        let mut all: Vec<u32> = profile
            .devices
            .iter()
            .filter(|d| d.kind == Kind::Gpu)
            .map(|d| d.sm)
            .collect();
        all.dedup();
        let sm = match (self.sm, &all[..]) {
            (Some(sm), _) => sm,
            (None, [sm]) => *sm,
            (None, []) => {
                return Err(BuildError::Unfit(format!(
                    "profile {} has no GPU, so nothing is built for it; \
                     ONNX Runtime runs the export as it is",
                    profile.name
                )));
            }
            (None, several) => {
                return Err(BuildError::Unfit(format!(
                    "profile {} has GPUs of SM {several:?}: choose one with --sm, \
                     and a folder for each",
                    profile.name
                )));
            }
        };
        let known = flavour.ahead_of_card();
        if known.is_empty() || known.contains(&sm) {
            return Ok(sm);
        }
        let have = known.iter().map(u32::to_string).collect::<Vec<_>>();
        Err(TensorRtError::Sm {
            flavour,
            sm,
            have: have.join(", "),
        }
        .into())
    }

    /// Returns the command line that asks for the same engines.
    fn command(&self, flavour: Flavour) -> String {
        let mut words = vec![format!("avatar-export build --profile {}", self.profile)];
        if let Some(models) = &self.models {
            words.push(format!("--models {}", models.display()));
        }
        words.push(format!("--backend {flavour} --out {}", self.out.display()));
        let optional = [
            ("--size", self.size.map(|(w, h)| format!("'{w}*{h}'"))),
            ("--sm", self.sm.map(|n| n.to_string())),
            ("--lanes", self.lanes.map(|n| n.to_string())),
            ("--workspace", self.workspace.map(|n| n.to_string())),
            ("--actors", Some(self.actors.to_string())),
            ("--speech-seconds", Some(self.speech_seconds.to_string())),
        ];
        words.extend(
            optional
                .into_iter()
                .filter_map(|(k, v)| Some(format!("{k} {}", v?))),
        );
        words.extend(self.skip.iter().map(|s| format!("--skip {s}")));
        for (on, flag) in [
            (self.stream_weights, "--stream-weights"),
            (self.inspect, "--inspect"),
        ] {
            if on {
                words.push(flag.to_owned());
            }
        }
        words.join(" ")
    }
}

/// Runs the command.
///
/// # Errors
/// Flags that do not fit together, inputs that cannot be read, an engine that cannot be built.
pub fn build(a: &BuildArgs) -> Result<(), BuildError> {
    let flavour = match a.backend {
        BackendName::TensorrtRtx => Flavour::Rtx,
        BackendName::Tensorrt => Flavour::Enterprise,
        BackendName::OrtCuda => return ort_cuda(a),
    };
    let request = a.request(flavour)?;
    if !a.dry_run {
        flavour.require()?;
    }
    let version = match a.dry_run {
        true => flavour.version().to_owned(),
        false => installed(&request)?,
    };
    let items = items(&request, &version)?;
    if a.dry_run {
        print_plan(&request, &items)?;
        let lines = write_graphs(&request, &items)?;
        return Ok(print_line(format_args!("wrote {}", lines.display()))?);
    }
    check(&request, &items)?;
    let lines = write_graphs(&request, &items)?;
    let bars = Bars::new();
    let set = built(&request, &version, &items, &bars)?;
    let bytes: u64 = set.engines.iter().map(|e| e.file.bytes).sum();
    Ok(print_line(format_args!(
        "wrote {}: {} engines, {bytes} bytes, {} {} for SM {}; the same by NVIDIA's own tool: {}",
        request.out.display(),
        set.engines.len(),
        set.flavour,
        set.version,
        set.sm,
        lines.display()
    ))?)
}

/// Loads the library and returns its version. Loads the driver too, where the request needs a GPU.
#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
fn installed(request: &Request) -> Result<String, BuildError> {
    use engines::backend::tensorrt::library::{self, Library};
    let library = Library::load()?;
    if request.detail == LayerDetail::Inspected || request.flavour == Flavour::Enterprise {
        // A missing driver must be reported before an hour of building.
        library::driver(0)?;
    }
    Ok(library.version())
}

#[cfg(not(any(feature = "tensorrt-rtx", feature = "tensorrt")))]
fn installed(request: &Request) -> Result<String, BuildError> {
    request.flavour.require()?;
    Ok(request.flavour.version().to_owned())
}

#[cfg(any(feature = "tensorrt-rtx", feature = "tensorrt"))]
fn built(
    request: &Request,
    version: &str,
    items: &[Item],
    bars: &Bars,
) -> Result<EngineList, BuildError> {
    let library = engines::backend::tensorrt::library::Library::load()?;
    run(request, version, items, bars, &|item, graph| {
        let bar = bars.0.clone();
        let progress = move |phase: &str, done, all| {
            bar.set_length(u64::try_from(all).unwrap_or(0));
            bar.set_position(u64::try_from(done).unwrap_or(0));
            bar.set_message(phase.to_owned());
        };
        super::library::make(library, request, item, graph, Box::new(progress))
    })
}

#[cfg(not(any(feature = "tensorrt-rtx", feature = "tensorrt")))]
fn built(
    request: &Request,
    version: &str,
    items: &[Item],
    bars: &Bars,
) -> Result<EngineList, BuildError> {
    run(request, version, items, bars, &|_, _| {
        Err(TensorRtError::NotBuilt {
            wanted: request.flavour,
            built: "neither",
        })
    })
}

/// Checks the export. ONNX Runtime compiles graphs when it loads them, so nothing is built.
fn ort_cuda(a: &BuildArgs) -> Result<(), BuildError> {
    let profile = Profile::open(&a.profile)?;
    let BuildInput::Models(models) = a.input(&profile)? else {
        return Err(BuildError::Unfit(
            "--backend ort-cuda builds nothing: it checks an export, give it with --models"
                .to_owned(),
        ));
    };
    Ok(print_line(format_args!(
        "{}: {} components checked against their hashes and contracts; ONNX Runtime takes them \
         as they are and chooses its kernels when it loads them, so nothing is built",
        models.dir().display(),
        models.manifest().components.len()
    ))?)
}

fn print_plan(request: &Request, items: &[Item]) -> Result<(), OutputError> {
    print_line(format_args!(
        "{:<28} {:>14} {:>14} {:>14} {:>8}  state",
        "engine", "weights inside", "engine", "build memory", "seconds"
    ))?;
    let there = present(request, items);
    for i in items {
        let state = match (i.buildable(), i.predicted.memory > request.memory_limit) {
            (false, _) => "needs --models",
            (true, _) if there.contains(&i.name) => "there, built from the same",
            (true, true) => "over the memory limit",
            (true, false) => "to build",
        };
        print_line(format_args!(
            "{:<28} {:>14} {:>14} {:>14} {:>8.1}  {state}",
            i.name, i.weights, i.predicted.bytes, i.predicted.memory, i.predicted.seconds
        ))?;
    }
    let sum = |of: fn(&Item) -> f64| items.iter().map(of).sum::<f64>();
    print_line(format_args!(
        "{} engines for {} SM {}, {}*{}, up to {} lanes: about {:.1} GB on disk, \
         {:.1} GB of host memory at the most, {:.0} s; predicted, limit {:.1} GB",
        items.len(),
        request.flavour,
        request.sm,
        request.limits.width,
        request.limits.height,
        request.limits.lanes,
        sum(|i| i.predicted.bytes as f64) / 1e9,
        items.iter().map(|i| i.predicted.memory).max().unwrap_or(0) as f64 / 1e9,
        sum(|i| i.predicted.seconds),
        request.memory_limit as f64 / 1e9
    ))
}

/// Progress on the terminal: one bar for the current engine, one line for each finished engine.
struct Bars(ProgressBar);

impl Bars {
    fn new() -> Self {
        Self(progress_bar())
    }
}

impl Watch for Bars {
    fn begin(&self, item: &Item, at: usize, all: usize) {
        let place = format!("{}/{all} {}", at + 1, item.name);
        self.0.set_prefix(format!("{place:<32} "));
    }

    fn done(&self, item: &Item, done: Done, entry: Option<&EngineEntry>) {
        let line = match (done, entry) {
            (Done::NoWeights, _) | (_, None) => format!(
                "{:<28} left out: its weights are inside, give them with --models",
                item.name
            ),
            (Done::Kept, Some(e)) => format!(
                "{:<28} {:>12} bytes, kept: built from the same",
                item.name, e.file.bytes
            ),
            (Done::Built, Some(e)) => format!(
                "{:<28} {:>12} bytes, {:.2} s, {:.0} MB of host memory",
                item.name,
                e.file.bytes,
                e.build_seconds,
                e.build_memory as f64 / 1e6
            ),
        };
        // The engines count, not the lines: a build goes on after a line that cannot be written.
        self.0.suspend(|| drop(print_line(&line)));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
