//! One prepared ONNX file to one serialised engine. For RTX cards this needs neither the card nor a
//! driver; the enterprise library builds on the GPU that will run the engine. Builds run one after
//! the other: TensorRT uses every core by itself, and its peak of host memory is then that of one
//! build.
use super::library::{self, Library};
use super::{Flavour, TensorRtError};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use trtx::interfaces::MonitorProgress;
use trtx::trtx_sys::Dims64;
use trtx::{
    Builder, BuilderConfig, BuilderFlag, MemoryPoolType, OnnxParser, OptProfileSelector,
    ProfilingVerbosity,
};

/// Sizes that a graph input may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRange {
    /// Name of the input.
    pub name: String,
    /// Shape of the smallest call.
    pub min: Vec<i64>,
    /// Shape that the engine is tuned for.
    pub opt: Vec<i64>,
    /// Shape of the largest call.
    pub max: Vec<i64>,
}

/// Settings of one build.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Streaming multiprocessor version without its dot, e.g. 89.
    pub sm: u32,
    /// Most scratch memory on the device in bytes; `None` is TensorRT's own limit, the whole
    /// device.
    pub workspace: Option<u64>,
    /// Optimisation level, 0 to 5.
    pub level: i32,
    /// Memory for the weights inside the engine.
    pub weights: WeightMemory,
    /// Inputs with sizes that vary; all others are fixed in the file.
    pub ranges: &'a [InputRange],
    /// Facts about its layers that the engine keeps.
    pub detail: Detail,
}

/// Memory for the weights inside an engine when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightMemory {
    /// On the device.
    Resident,
    /// On the host, streamed within a budget that is set when the engine is loaded.
    Streamed,
}

/// Facts about its layers that an engine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Their names.
    Names,
    /// All facts, for an inspector.
    All,
}

/// Receives the phase, the step done and the steps in all, as a build proceeds.
pub type Progress = Box<dyn Fn(&str, i32, i32) + Send + Sync>;

/// One build at a time.
static BUILDING: Mutex<()> = Mutex::new(());

/// Parses the file, without building anything.
///
/// # Errors
/// [`TensorRtError::Build`] with the parser's message.
pub fn parse(_library: Library, onnx: &Path) -> Result<(), TensorRtError> {
    let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = Builder::new(library::logger()?).map_err(|e| failed(onnx, &e))?;
    parsed(&mut builder, onnx).map(drop)
}

/// Builds an engine from the file at `onnx`. Weights inside are read from beside it.
///
/// # Errors
/// TensorRT refuses the graph, with its message; the library does not build for this kind of GPU;
/// or the build needs a driver that is missing.
pub fn build(
    library: Library,
    onnx: &Path,
    options: &Options<'_>,
    progress: Progress,
) -> Result<Vec<u8>, TensorRtError> {
    let fail = |e: trtx::Error| failed(onnx, &e);
    let flavour = library.flavour();
    if flavour == Flavour::Enterprise {
        library::driver(0)?;
    }
    let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = Builder::new(library::logger()?).map_err(fail)?;
    let mut config = builder.create_config().map_err(fail)?;
    target(&mut config, flavour, options.sm, onnx)?;
    if let Some(bytes) = options.workspace {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        config.set_memory_pool_limit(MemoryPoolType::kWORKSPACE, bytes);
    }
    config.set_builder_optimization_level(options.level);
    if options.weights == WeightMemory::Streamed {
        config.set_flag(BuilderFlag::kWEIGHT_STREAMING);
    }
    config.set_profiling_verbosity(match options.detail {
        Detail::Names => ProfilingVerbosity::kLAYER_NAMES_ONLY,
        Detail::All => ProfilingVerbosity::kDETAILED,
    });
    config
        .set_progress_monitor(Box::new(Monitor {
            steps: Mutex::new(Vec::new()),
            progress,
        }))
        .map_err(fail)?;
    add_ranges(&mut builder, &mut config, options.ranges, onnx)?;
    let mut parser = parsed(&mut builder, onnx)?;
    let plan = serialise(&mut builder, &mut parser, &mut config);
    plan.map_err(|e| short_of_scratch(failed(onnx, &e), options.workspace))
}

/// A limit that is too low reads as a lack of memory; says which limit.
fn short_of_scratch(error: TensorRtError, workspace: Option<u64>) -> TensorRtError {
    match (error, workspace) {
        (TensorRtError::Build { path, reason }, Some(bytes)) if reason.contains("OutOfMemory") => {
            let reason = format!(
                "{reason}; its scratch was limited to {} MiB: raise --workspace, or \
                 builder.scratch_mib of the profile",
                bytes >> 20
            );
            TensorRtError::Build { path, reason }
        }
        (error, _) => error,
    }
}

fn failed(onnx: &Path, error: &trtx::Error) -> TensorRtError {
    TensorRtError::Build {
        path: onnx.to_owned(),
        reason: library::said(error),
    }
}

fn parsed(
    builder: &mut Builder<'static>,
    onnx: &Path,
) -> Result<OnnxParser<'static>, TensorRtError> {
    let fail = |e: trtx::Error| failed(onnx, &e);
    let path = onnx.to_str().ok_or_else(|| TensorRtError::Build {
        path: onnx.to_owned(),
        reason: "TensorRT wants a path in UTF-8".to_owned(),
    })?;
    // Types come from the graph (strongly typed is the only mode since TensorRT 11).
    let network = builder.create_network(0).map_err(fail)?;
    let mut parser = OnnxParser::new(network, library::logger()?).map_err(fail)?;
    parser.parse_from_file(path, 1).map_err(fail)?;
    Ok(parser)
}

/// Sets the kind of GPU.
#[cfg(feature = "tensorrt-rtx")]
fn target(
    config: &mut BuilderConfig<'_>,
    flavour: Flavour,
    sm: u32,
    onnx: &Path,
) -> Result<(), TensorRtError> {
    use trtx::ComputeCapability as Cc;
    let kind = match sm {
        75 => Cc::kSM75,
        80 => Cc::kSM80,
        86 => Cc::kSM86,
        89 => Cc::kSM89,
        120 => Cc::kSM120,
        121 => Cc::kSM121,
        _ => {
            let have = flavour.ahead_of_card().iter().map(u32::to_string);
            return Err(TensorRtError::Sm {
                flavour,
                sm,
                have: have.collect::<Vec<_>>().join(", "),
            });
        }
    };
    config
        .set_nb_compute_capabilities(1)
        .and_then(|()| config.set_compute_capability(kind, 0))
        .map_err(|e| failed(onnx, &e))
}

/// The enterprise library builds for the GPU at hand.
#[cfg(not(feature = "tensorrt-rtx"))]
fn target(
    _config: &mut BuilderConfig<'_>,
    _flavour: Flavour,
    _sm: u32,
    _onnx: &Path,
) -> Result<(), TensorRtError> {
    Ok(())
}

fn add_ranges(
    builder: &mut Builder<'static>,
    config: &mut BuilderConfig<'_>,
    ranges: &[InputRange],
    onnx: &Path,
) -> Result<(), TensorRtError> {
    if ranges.is_empty() {
        return Ok(());
    }
    let fail = |e: trtx::Error| failed(onnx, &e);
    let mut profile = builder.creata_optimization_profile().map_err(fail)?;
    for r in ranges {
        for (select, dims) in [
            (OptProfileSelector::kMIN, &r.min),
            (OptProfileSelector::kOPT, &r.opt),
            (OptProfileSelector::kMAX, &r.max),
        ] {
            profile
                .set_dimensions(&r.name, select, &Dims64::from_slice(dims))
                .map_err(fail)?;
        }
    }
    config
        .add_optimization_profile(&mut profile)
        .map_err(fail)?;
    // The builder owns what its profiles point to; the binding's destructor would free it a second
    // time.
    std::mem::forget(profile);
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "the parser must outlive the build of its network"
)]
fn serialise(
    builder: &mut Builder<'static>,
    parser: &mut OnnxParser<'static>,
    config: &mut BuilderConfig<'_>,
) -> Result<Vec<u8>, trtx::Error> {
    let parser: *mut OnnxParser<'static> = parser;
    // SAFETY: `parser` is borrowed exclusively by this function and outlives the build; the
    // binding's `network_mut` ties the borrow of the network to the parser's own lifetime
    // parameter, which no caller can name twice.
    let network = unsafe { (*parser).network_mut() };
    let plan = builder.build_serialized_network(network, config)?;
    Ok(plan.to_vec())
}

/// Steps of the phases that are running, by name.
struct Monitor {
    steps: Mutex<Vec<(String, i32)>>,
    progress: Progress,
}

impl MonitorProgress for Monitor {
    fn phase_start(&self, phase_name: &str, _parent: Option<&str>, num_steps: i32) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push((phase_name.to_owned(), num_steps));
    }

    fn step_complete(&self, phase_name: &str, step: i32) -> ControlFlow<()> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let all = steps.iter().rev().find(|(n, _)| n == phase_name);
        (self.progress)(phase_name, step + 1, all.map_or(0, |(_, n)| *n));
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, phase_name: &str) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = steps.iter().rposition(|(n, _)| n == phase_name) {
            steps.remove(at);
        }
    }
}
