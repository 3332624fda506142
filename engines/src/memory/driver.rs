//! The calls of NVIDIA's driver that device memory needs, looked up in `libcuda.so.1` when a device
//! is first asked for. Nothing of CUDA is needed to build or to start. Names, types and constants
//! are those of the CUDA driver API's reference.
//!
//! The declarations are our own: two dozen calls need no crate (`libloading` comes with `ort`). A
//! missing library or symbol is an error and no panic, and a test fills the table with a device of
//! its own.

use super::{MemoryError, loader_words};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;

/// Success.
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: c_int = 2;
/// `CU_STREAM_NON_BLOCKING`: no order with the legacy default stream.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_MEMHOSTALLOC_PORTABLE` and `CU_MEMHOSTREGISTER_PORTABLE`: pinned for every context.
pub(super) const PINNED_PORTABLE: c_uint = 1;
/// `CU_MEMHOSTREGISTER_READ_ONLY`: the device only reads. Pages mapped without write permission
/// need it.
pub(super) const PINNED_READ_ONLY: c_uint = 8;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
pub(super) const CAPABILITY: [c_int; 2] = [75, 76];
/// `CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID`, `_PCI_BUS_ID` and `_PCI_DEVICE_ID`.
pub(super) const PCI_ADDRESS: [c_int; 3] = [50, 33, 34];
/// `CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED`.
pub(super) const READ_ONLY_REGISTER: c_int = 113;

/// `CUdevice`.
pub(super) type Device = c_int;
/// `CUdeviceptr`.
pub(super) type Address = u64;

/// `CUcontext` or `CUstream`: an opaque pointer that any thread may hand to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Handle(pub(super) *mut c_void);

// SAFETY: the driver API is thread-safe; a handle is only a name.
#[expect(unsafe_code, reason = "an opaque name that the driver resolves")]
unsafe impl Send for Handle {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "an opaque name that the driver resolves")]
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) const NULL: Self = Self(ptr::null_mut());
}

/// `CUDA_MEMCPY2D`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Copy2d {
    pub(super) src_x: usize,
    pub(super) src_y: usize,
    pub(super) src_kind: c_uint,
    pub(super) src_host: *const c_void,
    pub(super) src_device: Address,
    pub(super) src_array: *mut c_void,
    pub(super) src_pitch: usize,
    pub(super) dst_x: usize,
    pub(super) dst_y: usize,
    pub(super) dst_kind: c_uint,
    pub(super) dst_host: *mut c_void,
    pub(super) dst_device: Address,
    pub(super) dst_array: *mut c_void,
    pub(super) dst_pitch: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// `CU_MEMORYTYPE_HOST` and `CU_MEMORYTYPE_DEVICE`.
pub(super) const KIND_HOST: c_uint = 1;
pub(super) const KIND_DEVICE: c_uint = 2;

/// Declares the table and how it is looked up.
macro_rules! table {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal: fn($($arg:ty),*);)*) => {
        /// The driver's entry points.
        #[derive(Clone, Copy)]
        pub(super) struct Table {
            $($(#[$doc])* pub(super) $field: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        impl Table {
            #[expect(unsafe_code, reason = "symbols of a C library")]
            fn of(library: &libloading::Library) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the symbol has this type in every driver since CUDA 11.1; the
                        // library is never unloaded.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($arg),*) -> c_int>($symbol)
                        };
                        *found.map_err(|e| loader_words(&e))?
                    },)*
                })
            }
        }
    };
}

table! {
    init = c"cuInit": fn(c_uint);
    version = c"cuDriverGetVersion": fn(*mut c_int);
    device_count = c"cuDeviceGetCount": fn(*mut c_int);
    device = c"cuDeviceGet": fn(*mut Device, c_int);
    device_name = c"cuDeviceGetName": fn(*mut c_char, c_int, Device);
    device_attribute = c"cuDeviceGetAttribute": fn(*mut c_int, c_int, Device);
    /// Whether the first device reads the second one's memory.
    peer_access = c"cuDeviceCanAccessPeer": fn(*mut c_int, Device, Device);
    context_retain = c"cuDevicePrimaryCtxRetain": fn(*mut Handle, Device);
    context_release = c"cuDevicePrimaryCtxRelease_v2": fn(Device);
    context_set = c"cuCtxSetCurrent": fn(Handle);
    memory_info = c"cuMemGetInfo_v2": fn(*mut usize, *mut usize);
    alloc = c"cuMemAlloc_v2": fn(*mut Address, usize);
    free = c"cuMemFree_v2": fn(Address);
    /// Device, value, bytes, stream.
    fill = c"cuMemsetD8Async": fn(Address, u8, usize, Handle);
    /// To, from, bytes, stream.
    upload = c"cuMemcpyHtoDAsync_v2": fn(Address, *const c_void, usize, Handle);
    download = c"cuMemcpyDtoHAsync_v2": fn(*mut c_void, Address, usize, Handle);
    within = c"cuMemcpyDtoDAsync_v2": fn(Address, Address, usize, Handle);
    /// To, its context, from, its context, bytes, stream.
    peer = c"cuMemcpyPeerAsync": fn(Address, Handle, Address, Handle, usize, Handle);
    rows = c"cuMemcpy2DAsync_v2": fn(*const Copy2d, Handle);
    stream_new = c"cuStreamCreate": fn(*mut Handle, c_uint);
    stream_wait = c"cuStreamSynchronize": fn(Handle);
    stream_free = c"cuStreamDestroy_v2": fn(Handle);
    host_alloc = c"cuMemHostAlloc": fn(*mut *mut c_void, usize, c_uint);
    host_free = c"cuMemFreeHost": fn(*mut c_void);
    host_register = c"cuMemHostRegister_v2": fn(*mut c_void, usize, c_uint);
    host_unregister = c"cuMemHostUnregister": fn(*mut c_void);
    error_name = c"cuGetErrorName": fn(c_int, *mut *const c_char);
    error_text = c"cuGetErrorString": fn(c_int, *mut *const c_char);
}

/// A call that the driver refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    pub(super) call: &'static str,
    pub(super) code: c_int,
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            call,
            code,
            name,
            text,
        } = self;
        write!(f, "{call}: {name} ({code}): {text}")
    }
}

impl Table {
    /// The installed driver, initialised.
    ///
    /// # Errors
    /// [`MemoryError::NoDriver`].
    #[expect(unsafe_code, reason = "a C library is loaded")]
    pub(super) fn load() -> Result<Self, MemoryError> {
        let missing = |reason: String| MemoryError::NoDriver { reason };
        // SAFETY: NVIDIA's driver library has no requirement on being loaded.
        let library = unsafe { libloading::Library::new("libcuda.so.1") };
        let library = library.map_err(|e| missing(loader_words(&e)))?;
        let table = Self::of(&library).map_err(missing)?;
        // The table's pointers stay good for the life of the process.
        std::mem::forget(library);
        // SAFETY: takes flags only, which must be 0.
        let code = unsafe { (table.init)(0) };
        table
            .check("cuInit", code)
            .map_err(|e| missing(e.to_string()))?;
        Ok(table)
    }

    /// The result of one call, a refusal explained.
    pub(super) fn check(&self, call: &'static str, code: c_int) -> Result<(), Refusal> {
        match code {
            SUCCESS => Ok(()),
            code => Err(Refusal {
                call,
                code,
                name: self.word(self.error_name, code),
                text: self.word(self.error_text, code),
            }),
        }
    }

    #[expect(unsafe_code, reason = "a C string of the driver")]
    fn word(
        &self,
        ask: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
        code: c_int,
    ) -> &'static str {
        let mut word = ptr::null();
        // SAFETY: writes the address of a constant string, or null for an unknown code.
        let known = unsafe { ask(code, &raw mut word) } == SUCCESS && !word.is_null();
        match known {
            // SAFETY: a constant string of the driver, which is never unloaded.
            true => unsafe { CStr::from_ptr(word) }
                .to_str()
                .unwrap_or("unknown"),
            false => "unknown",
        }
    }
}
