//! ONNX Runtime's CUDA provider on one device: its libraries, options, allocations and placement of
//! nodes. The libraries are checked first. Allocations come from the device's counted memory.

use super::super::{Elsewhere, EngineError};
use super::library::{CUDA_PROVIDER, LIBRARY};
use crate::memory::cuda::{CudaDevice, CudaMemory};
use crate::memory::{Block, Class, Memory, MemoryError, Place, loader_words};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use ort::AsPointer;
use ort::environment::Environment;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// ONNX Runtime's name of the provider.
pub(super) const PROVIDER: &str = "CUDAExecutionProvider";

/// Libraries that the provider links or loads, dependencies first, and the packages that have them.
const LIBRARIES: [(&str, &str); 5] = [
    (
        "libcudart.so.13",
        "nvidia-cuda-runtime (pip) or cuda-cudart-13-0 (NVIDIA's Debian repository)",
    ),
    (
        "libcublasLt.so.13",
        "nvidia-cublas (pip) or libcublas-13-0 (NVIDIA's Debian repository)",
    ),
    (
        "libcublas.so.13",
        "nvidia-cublas (pip) or libcublas-13-0 (NVIDIA's Debian repository)",
    ),
    (
        "libcurand.so.10",
        "nvidia-curand (pip) or libcurand-13-0 (NVIDIA's Debian repository)",
    ),
    (
        "libcudnn.so.9",
        "nvidia-cudnn-cu13 (pip) or libcudnn9-cuda-13 (NVIDIA's Debian repository)",
    ),
];

/// Nodes that only compute shapes may run on the host: the provider itself wants them there, and
/// they touch no tensor's data.
const SHAPE_ARITHMETIC: [&str; 22] = [
    "Shape",
    "Size",
    "Gather",
    "Concat",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Mod",
    "Min",
    "Max",
    "Range",
    "Reshape",
    "Where",
    "Equal",
    "ReduceProd",
    "ConstantOfShape",
    "Identity",
];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One device for the sessions of a backend.
#[derive(Clone, Debug)]
pub(super) struct Cuda {
    memory: Arc<CudaMemory>,
}

impl Cuda {
    /// Checks the libraries, then makes the device's memory the provider's.
    pub(super) fn new(
        environment: &Environment,
        memory: Arc<CudaMemory>,
    ) -> Result<Self, EngineError> {
        let unusable = |reason: String| EngineError::Library {
            reason,
            minor: ort::MINOR_VERSION,
        };
        match ort::ep::CUDA::is_available() {
            Ok(true) => {}
            _ => {
                return Err(unusable(format!(
                    "the {LIBRARY} of this process has no CUDA provider (`scripts/setup --cuda` \
                     fetches one that has)"
                )));
            }
        }
        adopt(environment, &memory).map_err(|e| unusable(e.to_string()))?;
        Ok(Self { memory })
    }

    fn device(&self) -> &Arc<CudaDevice> {
        self.memory.device()
    }

    pub(super) fn ordinal(&self) -> u32 {
        self.device().ordinal()
    }

    /// Describes bound device memory in ONNX Runtime's terms.
    pub(super) fn memory_info(&self) -> Result<MemoryInfo<'static>, ort::Error> {
        MemoryInfo::new(
            AllocationDevice::CUDA,
            self.ordinal() as i32,
            AllocatorType::Device,
            MemoryType::Default,
        )
    }

    /// Makes the provider. f32 stays f32 (no TF32), and norms are computed strictly. It does not
    /// search over convolutions, which would fill the device. All sessions share one stream, so
    /// that one takes the memory that another frees.
    #[expect(unsafe_code, reason = "a stream handed over by its address")]
    pub(super) fn provider(&self) -> Result<ExecutionProviderDispatch, EngineError> {
        let stream = self.device().compute_stream()?;
        let limit = usize::try_from(self.memory.ledger().budget()).unwrap_or(usize::MAX);
        let provider = ort::ep::CUDA::default()
            .with_device_id(self.ordinal() as i32)
            .with_memory_limit(limit)
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
            .with_skip_layer_norm_strict_mode(true)
            .with_tf32(false);
        // SAFETY: the stream lives as long as the device object, which every session of this
        // backend holds.
        let provider = unsafe { provider.with_compute_stream(stream.cast()) };
        Ok(provider.build().error_on_failure())
    }

    /// Runs `make` with the provider's allocations counted as weights.
    pub(super) fn loading<T>(&self, make: impl FnOnce() -> T) -> T {
        let before = PURPOSE.replace(Class::Weights);
        let made = make();
        PURPOSE.set(before);
        made
    }

    /// The refusal behind an allocation that ONNX Runtime reports in words of its own.
    pub(super) fn refusal(&self) -> Option<MemoryError> {
        lock(&REFUSED).remove(&self.ordinal())
    }
}

/// Loads every library that the provider needs, so that what is missing is named before anything
/// else is loaded.
pub(super) fn preload(library: &Path) -> Result<(), EngineError> {
    let folder = library.parent().unwrap_or(Path::new("."));
    for name in ["libonnxruntime_providers_shared.so", CUDA_PROVIDER] {
        if !folder.join(name).is_file() {
            return Err(EngineError::CudaLibrary {
                library: name,
                reason: format!("{name} is not in {}", folder.display()),
                package: "onnxruntime-gpu (`scripts/setup --cuda` unpacks it)",
            });
        }
    }
    let folders = library_folders(folder);
    let mut first = None;
    for (name, package) in LIBRARIES {
        let library = open(name, &folders).map_err(|reason| EngineError::CudaLibrary {
            library: name,
            reason,
            package,
        })?;
        first.get_or_insert(library);
    }
    // A driver too old for the libraries is an error here; inside ONNX Runtime it ends the process.
    first.map_or(Ok(()), |runtime| works(&runtime))
}

/// Asks the CUDA runtime for its devices.
#[expect(unsafe_code, reason = "calls of a C library")]
fn works(runtime: &Library) -> Result<(), EngineError> {
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Words = unsafe extern "C" fn(c_int) -> *const c_char;
    let broken = |reason: String| EngineError::CudaLibrary {
        library: LIBRARIES[0].0,
        reason,
        package: LIBRARIES[0].1,
    };
    // SAFETY: both functions have these types in every CUDA runtime.
    let (count, words) = unsafe {
        let count = runtime.get::<Count>(c"cudaGetDeviceCount");
        let words = runtime.get::<Words>(c"cudaGetErrorString");
        let missing = |e: libloading::Error| broken(loader_words(&e));
        (*count.map_err(missing)?, *words.map_err(missing)?)
    };
    let mut devices = 0;
    // SAFETY: writes one integer.
    let code = unsafe { count(&raw mut devices) };
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a constant string, for any code.
    let words = unsafe { CStr::from_ptr(words(code)) }.to_string_lossy();
    Err(broken(format!(
        "the driver refuses the CUDA 13 runtime: {words} ({code}); CUDA 13 wants the NVIDIA driver \
         580 or later"
    )))
}

/// Folders in which pip, a CUDA installation and this project put such libraries; the system's
/// search comes first.
fn library_folders(beside: &Path) -> Vec<PathBuf> {
    let mut folders = vec![beside.to_owned()];
    if let Some(environment) = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from) {
        let versions = children(&environment.join("lib"));
        let packages = versions.iter().map(|v| v.join("site-packages/nvidia"));
        folders.extend(packages.flat_map(|p| children(&p)).map(|p| p.join("lib")));
    }
    let installations = ["CUDA_HOME", "CUDA_PATH"].map(|v| std::env::var_os(v).map(PathBuf::from));
    let installations = installations.into_iter().flatten();
    let installations = installations.chain([PathBuf::from("/usr/local/cuda")]);
    folders.extend(installations.map(|d| d.join("lib64")));
    folders.retain(|f| f.is_dir());
    folders
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    found.sort();
    found
}

/// Loads a library for good, by its name and then in each folder. The error is the system's for the
/// name.
#[expect(unsafe_code, reason = "C libraries are loaded")]
fn open(name: &str, folders: &[PathBuf]) -> Result<ManuallyDrop<Library>, String> {
    let load = |path: &Path| {
        // SAFETY: NVIDIA's libraries have no requirement on being loaded.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        library.map(ManuallyDrop::new).map_err(|e| loader_words(&e))
    };
    let first = match load(Path::new(name)) {
        Ok(library) => return Ok(library),
        Err(e) => e,
    };
    let found = folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
    match found {
        Some(path) => load(&path),
        None => Err(first),
    }
}

thread_local! {
    /// Purpose of the provider's allocations at the moment, on this thread.
    static PURPOSE: Cell<Class> = const { Cell::new(Class::Workspace) };
}

/// The memory behind each ordinal's provider.
static ADOPTED: Mutex<BTreeMap<u32, Weak<CudaMemory>>> = Mutex::new(BTreeMap::new());
/// Allocations that the provider holds, by address.
static HELD: Mutex<BTreeMap<usize, Block>> = Mutex::new(BTreeMap::new());
/// The newest refusal, by ordinal.
static REFUSED: Mutex<BTreeMap<u32, MemoryError>> = Mutex::new(BTreeMap::new());

/// The provider's `malloc` for device `N`: null when the budget or the device refuses.
extern "C" fn take<const N: u32>(bytes: usize) -> *mut c_void {
    let memory = lock(&ADOPTED).get(&N).and_then(Weak::upgrade);
    let Some(memory) = memory else {
        return ptr::null_mut();
    };
    match memory.alloc_unset(bytes, PURPOSE.get()) {
        Ok(block) => {
            let address = block.span(0, 0).address();
            lock(&HELD).insert(address.as_ptr().expose_provenance(), block);
            address.as_ptr().cast()
        }
        Err(error) => {
            lock(&REFUSED).insert(N, error);
            ptr::null_mut()
        }
    }
}

/// The provider's `free`, for every device.
extern "C" fn give(address: *mut c_void) {
    let block = lock(&HELD).remove(&address.addr());
    drop(block);
}

/// Nothing is kept that could be emptied here.
extern "C" fn empty() {}

type Take = extern "C" fn(usize) -> *mut c_void;
/// The interface knows no device, so each has a function.
const TAKE: [Take; 8] = [
    take::<0>, take::<1>, take::<2>, take::<3>, take::<4>, take::<5>, take::<6>, take::<7>,
];

/// Makes `memory` what the sessions of its device allocate from. The environment takes one
/// allocator per device, for good; a later memory of the same device takes the former's place
/// behind it.
#[expect(unsafe_code, reason = "the binding has no call for it")]
fn adopt(environment: &Environment, memory: &Arc<CudaMemory>) -> Result<(), ort::Error> {
    let ordinal = memory.device().ordinal();
    let take = TAKE.get(ordinal as usize).ok_or_else(|| {
        ort::Error::new(format!(
            "cuda:{ordinal}: at most {} devices a process",
            TAKE.len()
        ))
    })?;
    let mut adopted = lock(&ADOPTED);
    if adopted.insert(ordinal, Arc::downgrade(memory)).is_some() {
        return Ok(());
    }
    let options = [
        ("device_id", ordinal.to_string()),
        ("gpu_external_alloc", (*take as usize).to_string()),
        (
            "gpu_external_free",
            (give as *const () as usize).to_string(),
        ),
        (
            "gpu_external_empty_cache",
            (empty as *const () as usize).to_string(),
        ),
    ];
    let words = |text: &str| CString::new(text).expect("no zero byte");
    let keys = options.each_ref().map(|(k, _)| words(k));
    let values = options.each_ref().map(|(_, v)| words(v));
    let keys = keys.each_ref().map(|k| k.as_ptr());
    let values = values.each_ref().map(|v| v.as_ptr());
    let info = MemoryInfo::new(
        AllocationDevice::CUDA,
        ordinal as i32,
        AllocatorType::Device,
        MemoryType::Default,
    )?;
    let (api, provider) = (ort::api(), words(PROVIDER));
    let mut arena = ptr::null_mut();
    // SAFETY: every pointer is live for the calls, which copy what they keep; the functions live as
    // long as the program. The arena's configuration must be there and means nothing: allocations
    // go to the functions.
    let registered = unsafe {
        let status = (api.CreateArenaCfg)(0, -1, -1, -1, &raw mut arena);
        ort::Error::result_from_status(status).and_then(|()| {
            let status = (api.CreateAndRegisterAllocatorV2)(
                environment.ptr().cast_mut(),
                provider.as_ptr(),
                info.ptr(),
                arena,
                keys.as_ptr(),
                values.as_ptr(),
                keys.len(),
            );
            (api.ReleaseArenaCfg)(arena);
            ort::Error::result_from_status(status)
        })
    };
    if registered.is_err() {
        adopted.remove(&ordinal);
    }
    registered
}

/// Nodes of a session that run elsewhere than on its device, as (provider, operator) with their
/// number.
#[expect(unsafe_code, reason = "the binding has no call for it")]
pub(super) fn elsewhere(session: &ort::session::Session) -> Result<Vec<Elsewhere>, ort::Error> {
    let api = ort::api();
    let text = |ask: &dyn Fn(*mut *const c_char) -> ort::sys::OrtStatusPtr| {
        let mut text = ptr::null();
        // SAFETY: the call writes the address of a string that lives as long as the session.
        unsafe {
            ort::Error::result_from_status(ask(&raw mut text))?;
            Ok::<_, ort::Error>(CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
    // SAFETY: the session is live, and so are the arrays that it hands out.
    unsafe {
        let (mut graphs, mut count) = (ptr::null(), 0);
        let status =
            (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut graphs, &raw mut count);
        ort::Error::result_from_status(status)?;
        for &graph in slice(graphs, count) {
            let provider = text(&|out| (api.EpAssignedSubgraph_GetEpName)(graph, out))?;
            if provider == PROVIDER {
                continue;
            }
            let (mut nodes, mut count) = (ptr::null(), 0);
            let status = (api.EpAssignedSubgraph_GetNodes)(graph, &raw mut nodes, &raw mut count);
            ort::Error::result_from_status(status)?;
            for &node in slice(nodes, count) {
                let operator = text(&|out| (api.EpAssignedNode_GetOperatorType)(node, out))?;
                *found.entry((provider.clone(), operator)).or_default() += 1;
            }
        }
    }
    let found = found.into_iter();
    Ok(found
        .map(|((provider, operator), nodes)| Elsewhere {
            shapes_only: SHAPE_ARITHMETIC.contains(&operator.as_str()),
            provider,
            operator,
            nodes,
        })
        .collect())
}

#[expect(unsafe_code, reason = "an array of the library")]
unsafe fn slice<'a, T>(at: *const T, count: usize) -> &'a [T] {
    match count {
        0 => &[],
        // SAFETY: the caller has `count` elements there.
        _ => unsafe { std::slice::from_raw_parts(at, count) },
    }
}

/// Inputs that the session reads on the host even on a device: sizes and positions that its kernels
/// want before they start.
#[expect(unsafe_code, reason = "the binding has no call for it")]
pub(super) fn host_inputs(session: &ort::session::Session) -> Result<BTreeSet<String>, ort::Error> {
    use ort::sys::OrtMemoryInfoDeviceType as Kind;
    let api = ort::api();
    let mut infos = vec![ptr::null(); session.inputs().len()];
    // SAFETY: room for one pointer an input; the infos live as long as the session.
    unsafe {
        let status =
            (api.SessionGetMemoryInfoForInputs)(session.ptr(), infos.as_mut_ptr(), infos.len());
        ort::Error::result_from_status(status)?;
    }
    let named = session.inputs().iter().zip(infos);
    let on_host = named.filter(|(_, info)| {
        let mut kind = Kind::OrtMemoryInfoDeviceType_GPU;
        // SAFETY: an info of the session, and room for one value.
        unsafe { (api.MemoryInfoGetDeviceType)(*info, &raw mut kind) };
        kind == Kind::OrtMemoryInfoDeviceType_CPU
    });
    Ok(on_host.map(|(input, _)| input.name().to_owned()).collect())
}

/// Returns the place of a device's tensors.
pub(super) fn place(cuda: &Cuda) -> Place {
    cuda.memory.place()
}
