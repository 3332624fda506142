//! Memory of an NVIDIA device: counted, zeroed allocations, copies on streams of their own, and
//! pinned host memory. An upload overlaps what the device computes. Freed activations are kept for
//! the next call. Kernels live in engines.

use super::driver::{
    Address, CAPABILITY, Copy2d, Device, Handle, KIND_DEVICE, KIND_HOST, OUT_OF_MEMORY,
    PCI_ADDRESS, PINNED_PORTABLE, PINNED_READ_ONLY, READ_ONLY_REGISTER, Refusal,
    STREAM_NON_BLOCKING, Table,
};
use super::gpu::{Gpu, link_of};
use super::{
    Block, Charge, Class, Ledger, Locked, Memory, MemoryError, Pages, Place, Rows, Span, SpanMut,
};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Device addresses are multiples of this.
const ALIGNMENT: usize = 256;
/// Left to the driver, the libraries' handles and their own workspaces where no budget is given.
const RESERVE: u64 = 1 << 30;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver and the devices in use.
struct Driver {
    table: Table,
    devices: Mutex<BTreeMap<u32, Weak<CudaDevice>>>,
}

impl Driver {
    fn new(table: Table) -> Arc<Self> {
        Arc::new(Self {
            table,
            devices: Mutex::default(),
        })
    }

    /// The installed one, loaded once.
    fn installed() -> Result<Arc<Self>, MemoryError> {
        static INSTALLED: OnceLock<Result<Arc<Driver>, MemoryError>> = OnceLock::new();
        INSTALLED
            .get_or_init(|| Table::load().map(Self::new))
            .clone()
    }

    /// Counts the devices.
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn count(&self) -> Result<u32, MemoryError> {
        let mut count: c_int = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (self.table.device_count)(&raw mut count) };
        self.table
            .check("cuDeviceGetCount", code)
            .map_err(|e| MemoryError::Driver {
                device: "cuda".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Asks for the newest CUDA that the driver serves, such as (13, 0).
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn version(&self) -> Result<(u32, u32), MemoryError> {
        let mut version: c_int = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (self.table.version)(&raw mut version) };
        self.table
            .check("cuDriverGetVersion", code)
            .map_err(|e| MemoryError::Driver {
                device: "cuda".to_owned(),
                reason: e.to_string(),
            })?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok((version / 1000, version % 1000 / 10))
    }

    /// Lists the pairs of different devices of which the first cannot read the second.
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn strangers(&self) -> Result<Vec<(u32, u32)>, MemoryError> {
        let count = self.count()?;
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        let mut found = Vec::new();
        for (a, b) in pairs.filter(|(a, b)| a != b) {
            let mut can: c_int = 0;
            // SAFETY: writes one integer; both devices exist.
            let code = unsafe { (self.table.peer_access)(&raw mut can, a as Device, b as Device) };
            self.table
                .check("cuDeviceCanAccessPeer", code)
                .map_err(|e| MemoryError::Driver {
                    device: format!("cuda:{a}"),
                    reason: e.to_string(),
                })?;
            if can == 0 {
                found.push((a, b));
            }
        }
        Ok(found)
    }

    /// A device, one object per ordinal for as long as anyone uses it.
    fn device(self: &Arc<Self>, ordinal: u32) -> Result<Arc<CudaDevice>, MemoryError> {
        let mut devices = lock(&self.devices);
        if let Some(device) = devices.get(&ordinal).and_then(Weak::upgrade) {
            return Ok(device);
        }
        let have = self.count()?;
        if ordinal >= have {
            return Err(MemoryError::NoDevice { ordinal, have });
        }
        let device = Arc::new(CudaDevice::retain(Arc::clone(self), ordinal)?);
        devices.insert(ordinal, Arc::downgrade(&device));
        Ok(device)
    }

    /// Describes every device. Each is let go again, unless someone else uses it.
    fn gpus(self: &Arc<Self>) -> Result<Vec<Gpu>, MemoryError> {
        let describe = |n| self.device(n)?.describe();
        (0..self.count()?).map(describe).collect()
    }
}

/// Counts the devices of this machine.
///
/// # Errors
/// [`MemoryError::NoDriver`] where there is no driver.
pub fn device_count() -> Result<u32, MemoryError> {
    Driver::installed()?.count()
}

/// Returns the newest CUDA that the driver serves, see [`crate::device::driver_cuda`].
///
/// # Errors
/// [`MemoryError::NoDriver`] where there is no driver, or the driver refuses.
pub fn driver_version() -> Result<(u32, u32), MemoryError> {
    Driver::installed()?.version()
}

/// Lists devices that cannot reach each other, see [`crate::device::strangers`].
///
/// # Errors
/// [`MemoryError::NoDriver`] where there is no driver, or the driver refuses.
pub fn strangers() -> Result<Vec<(u32, u32)>, MemoryError> {
    Driver::installed()?.strangers()
}

/// Describes every device of this machine, see [`crate::device::gpus`].
///
/// # Errors
/// [`MemoryError::NoDriver`] where there is no driver, or the driver refuses.
pub fn gpus() -> Result<Vec<Gpu>, MemoryError> {
    Driver::installed()?.gpus()
}

/// An NVIDIA device in use: its primary context, idle copy streams, and one stream to compute on.
/// Libraries on top of the CUDA runtime use the same context.
pub struct CudaDevice {
    driver: Arc<Driver>,
    ordinal: u32,
    device: Device,
    context: Handle,
    /// Streams that no copy uses at the moment.
    idle: Mutex<Vec<Handle>>,
    compute: OnceLock<Handle>,
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal)
    }
}

impl CudaDevice {
    /// Opens a device of this machine.
    ///
    /// # Errors
    /// [`MemoryError::NoDriver`], [`MemoryError::NoDevice`], or the driver refuses.
    pub fn open(ordinal: u32) -> Result<Arc<Self>, MemoryError> {
        Driver::installed()?.device(ordinal)
    }

    #[expect(unsafe_code, reason = "calls of the driver")]
    fn retain(driver: Arc<Driver>, ordinal: u32) -> Result<Self, MemoryError> {
        let table = driver.table;
        let refused = |e: Refusal| MemoryError::Driver {
            device: format!("cuda:{ordinal}"),
            reason: e.to_string(),
        };
        let mut device: Device = 0;
        // SAFETY: writes one integer; an ordinal that does not exist is refused.
        let code = unsafe { (table.device)(&raw mut device, ordinal as c_int) };
        table.check("cuDeviceGet", code).map_err(refused)?;
        let mut context = Handle::NULL;
        // SAFETY: writes one handle, released in `drop`.
        let code = unsafe { (table.context_retain)(&raw mut context, device) };
        table
            .check("cuDevicePrimaryCtxRetain", code)
            .map_err(refused)?;
        Ok(Self {
            driver,
            ordinal,
            device,
            context,
            idle: Mutex::default(),
            compute: OnceLock::new(),
        })
    }

    /// Returns the device's number.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Returns the device's memory as a place.
    pub fn place(&self) -> Place {
        Place::Cuda(self.ordinal)
    }

    fn table(&self) -> &Table {
        &self.driver.table
    }

    fn refused(&self, reason: Refusal) -> MemoryError {
        MemoryError::Driver {
            device: self.place().to_string(),
            reason: reason.to_string(),
        }
    }

    /// Makes the device's context this thread's; every other call of the driver needs it.
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn enter(&self) -> Result<(), Refusal> {
        // SAFETY: the context is retained until `drop`.
        let code = unsafe { (self.table().context_set)(self.context) };
        self.table().check("cuCtxSetCurrent", code)
    }

    /// Returns the marketing name, such as `NVIDIA H100 80GB HBM3`.
    ///
    /// # Errors
    /// The driver refuses.
    #[expect(unsafe_code, reason = "a call of the driver")]
    pub fn name(&self) -> Result<String, MemoryError> {
        let mut name = [0 as c_char; 256];
        // SAFETY: writes at most the stated bytes, ended by a zero.
        let code = unsafe { (self.table().device_name)(name.as_mut_ptr(), 255, self.device) };
        self.table()
            .check("cuDeviceGetName", code)
            .map_err(|e| self.refused(e))?;
        // SAFETY: the last byte is zero whatever was written before it.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(name.to_string_lossy().into_owned())
    }

    /// Returns the compute capability, such as (9, 0).
    ///
    /// # Errors
    /// The driver refuses.
    pub fn capability(&self) -> Result<(u32, u32), MemoryError> {
        let [major, minor] = CAPABILITY.map(|a| self.attribute(a));
        Ok((major? as u32, minor? as u32))
    }

    #[expect(unsafe_code, reason = "a call of the driver")]
    fn attribute(&self, attribute: c_int) -> Result<c_int, MemoryError> {
        let mut value = 0;
        // SAFETY: writes one integer.
        let code =
            unsafe { (self.table().device_attribute)(&raw mut value, attribute, self.device) };
        self.table()
            .check("cuDeviceGetAttribute", code)
            .map_err(|e| self.refused(e))?;
        Ok(value)
    }

    /// Returns the address on the PCI bus, such as `0000:65:00.0`.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn pci_address(&self) -> Result<String, MemoryError> {
        let [domain, bus, device] = PCI_ADDRESS.map(|a| self.attribute(a));
        Ok(format!("{:04x}:{:02x}:{:02x}.0", domain?, bus?, device?))
    }

    /// Describes the device for a plan or a report.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn describe(&self) -> Result<Gpu, MemoryError> {
        let (free, total) = self.free_and_total()?;
        Ok(Gpu {
            ordinal: self.ordinal,
            name: self.name()?,
            capability: self.capability()?,
            free,
            total,
            link: link_of(Path::new("/sys/bus/pci/devices"), &self.pci_address()?),
        })
    }

    /// Returns the free bytes and all bytes of the device, whoever uses them.
    ///
    /// # Errors
    /// The driver refuses.
    #[expect(unsafe_code, reason = "a call of the driver")]
    pub fn free_and_total(&self) -> Result<(u64, u64), MemoryError> {
        self.enter().map_err(|e| self.refused(e))?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: writes two sizes.
        let code = unsafe { (self.table().memory_info)(&raw mut free, &raw mut total) };
        self.table()
            .check("cuMemGetInfo", code)
            .map_err(|e| self.refused(e))?;
        Ok((free as u64, total as u64))
    }

    #[expect(unsafe_code, reason = "a call of the driver")]
    fn new_stream(&self) -> Result<Handle, Refusal> {
        self.enter()?;
        let mut stream = Handle::NULL;
        // SAFETY: writes one handle, destroyed in `drop`.
        let code = unsafe { (self.table().stream_new)(&raw mut stream, STREAM_NON_BLOCKING) };
        self.table().check("cuStreamCreate", code)?;
        Ok(stream)
    }

    /// Returns the stream that engines of this device compute on: a `CUstream` that lives as long
    /// as the device object.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn compute_stream(&self) -> Result<*mut c_void, MemoryError> {
        if let Some(stream) = self.compute.get() {
            return Ok(stream.0);
        }
        let stream = self.new_stream().map_err(|e| self.refused(e))?;
        if self.compute.set(stream).is_err() {
            lock(&self.idle).push(stream);
        }
        Ok(self.compute.get().map_or(ptr::null_mut(), |s| s.0))
    }

    /// Lets `queue` put work on the compute stream, and waits until the work is done. The device's
    /// context is this thread's meanwhile.
    ///
    /// # Errors
    /// The error of `queue`; the driver refuses.
    #[expect(unsafe_code, reason = "a call of the driver")]
    pub fn compute<E: From<MemoryError>>(
        &self,
        queue: impl FnOnce(*mut c_void) -> Result<(), E>,
    ) -> Result<(), E> {
        let stream = self.compute_stream()?;
        self.enter().map_err(|e| self.refused(e))?;
        let queued = queue(stream);
        // Waited for whatever was queued: the caller's memory is in use until then.
        // SAFETY: a stream of this device.
        let code = unsafe { (self.table().stream_wait)(Handle(stream)) };
        queued?;
        self.table()
            .check("cuStreamSynchronize", code)
            .map_err(|e| self.refused(e))?;
        Ok(())
    }

    /// Runs `queue` on a copy stream of its own and waits for it.
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn on_a_stream(
        &self,
        queue: impl FnOnce(&Table, Handle) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let idle = lock(&self.idle).pop();
        let stream = match idle {
            Some(stream) => stream,
            None => self.new_stream()?,
        };
        let done = self
            .enter()
            .and_then(|()| queue(self.table(), stream))
            .and_then(|()| {
                // SAFETY: a stream of this device.
                let code = unsafe { (self.table().stream_wait)(stream) };
                self.table().check("cuStreamSynchronize", code)
            });
        lock(&self.idle).push(stream);
        done
    }

    #[expect(unsafe_code, reason = "a call of the driver")]
    fn alloc(&self, bytes: usize) -> Result<Address, Refusal> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: writes one address, freed by its owner.
        let code = unsafe { (self.table().alloc)(&raw mut address, bytes) };
        self.table().check("cuMemAlloc", code)?;
        Ok(address)
    }

    #[expect(unsafe_code, reason = "a call of the driver")]
    fn zero(&self, address: Address, bytes: usize) -> Result<(), Refusal> {
        self.on_a_stream(|table, stream| {
            // SAFETY: the caller owns `bytes` bytes at `address`; the stream is waited for.
            let code = unsafe { (table.fill)(address, 0, bytes, stream) };
            table.check("cuMemsetD8Async", code)
        })
    }

    /// Pins pages of the host for as long as the guard lives. Copies from them run at the link's
    /// rate and beside everything else. Pages of a mapped file are pinned for reading, which not
    /// every machine can.
    ///
    /// # Errors
    /// The driver refuses: pages that cannot be pinned, or more than the system lets a process
    /// lock.
    #[expect(unsafe_code, reason = "calls of the driver")]
    pub fn pin<T: AsRef<[u8]> + Send + Sync + 'static>(
        self: &Arc<Self>,
        bytes: Arc<T>,
    ) -> Result<Pinned, MemoryError> {
        let slice = (*bytes).as_ref();
        if self.attribute(READ_ONLY_REGISTER)? == 0 {
            return Err(MemoryError::Driver {
                device: self.place().to_string(),
                reason: "this machine cannot pin pages that are mapped for reading".to_owned(),
            });
        }
        self.enter().map_err(|e| self.refused(e))?;
        let address = slice.as_ptr().cast_mut().cast::<c_void>();
        let flags = PINNED_PORTABLE | PINNED_READ_ONLY;
        // SAFETY: the pages stay mapped until the guard, which holds them, has unpinned them; the
        // device only reads.
        let code = unsafe { (self.table().host_register)(address, slice.len(), flags) };
        self.table()
            .check("cuMemHostRegister", code)
            .map_err(|e| self.refused(e))?;
        Ok(Pinned {
            address: Handle(address),
            len: slice.len(),
            device: Arc::clone(self),
            _bytes: bytes,
        })
    }
}

impl Drop for CudaDevice {
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn drop(&mut self) {
        let table = self.driver.table;
        if self.enter().is_ok() {
            for stream in lock(&self.idle).drain(..).chain(self.compute.take()) {
                // SAFETY: a stream of this device that nothing uses any more: its users hold the
                // device.
                unsafe { (table.stream_free)(stream) };
            }
        }
        // SAFETY: undoes `retain`; the addresses of this device hold it, so there are none left.
        unsafe { (table.context_release)(self.device) };
    }
}

/// Host pages that are pinned.
pub struct Pinned {
    address: Handle,
    len: usize,
    device: Arc<CudaDevice>,
    _bytes: Arc<dyn Send + Sync>,
}

impl Pinned {
    /// Counts the pinned bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Pinned {
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: undoes the registration of these pages, which are still mapped.
            unsafe { (self.device.table().host_unregister)(self.address.0) };
        }
    }
}

/// One allocation on a device, freed on drop, and its charge.
struct Allocation {
    address: Address,
    bytes: usize,
    class: Class,
    device: Arc<CudaDevice>,
    _charge: Charge,
}

impl Drop for Allocation {
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated by `CudaDevice::alloc`, owned here alone.
            unsafe { (self.device.table().free)(self.address) };
        }
    }
}

/// Freed allocations by purpose and size; they stay allocated and counted.
type Shelf = Mutex<BTreeMap<(Class, usize), Vec<Allocation>>>;

/// An allocation that goes back to the shelf.
struct Shelved {
    allocation: ManuallyDrop<Allocation>,
    shelf: Weak<Shelf>,
}

impl Drop for Shelved {
    #[expect(unsafe_code, reason = "a field is moved out in drop")]
    fn drop(&mut self) {
        // SAFETY: taken once, here, and the field is not touched again.
        let allocation = unsafe { ManuallyDrop::take(&mut self.allocation) };
        if let Some(shelf) = self.shelf.upgrade() {
            let key = (allocation.class, allocation.bytes);
            lock(&shelf).entry(key).or_default().push(allocation);
        }
    }
}

/// Memory of one NVIDIA device under a budget.
///
/// Freed [`Class::Activations`] and [`Class::Workspace`] are kept by size for the next call,
/// because asking the driver stops the device. Kept bytes stay counted, and are given up before an
/// allocation is refused. The two purposes never share: an engine frees its workspace in the order
/// of its stream, which may be before the device is done with it.
pub struct CudaMemory {
    device: Arc<CudaDevice>,
    ledger: Arc<Ledger>,
    shelf: Arc<Shelf>,
}

impl fmt::Debug for CudaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} bytes", self.device, self.ledger.budget())
    }
}

impl CudaMemory {
    /// Opens memory of device `ordinal`, limited to `budget` bytes. Without a budget it takes the
    /// free bytes except for a reserve.
    ///
    /// # Errors
    /// There is no driver or no such device, or fewer bytes are free than the budget
    /// ([`MemoryError::Short`]).
    pub fn open(ordinal: u32, budget: Option<u64>) -> Result<Arc<Self>, MemoryError> {
        Self::of(CudaDevice::open(ordinal)?, budget)
    }

    fn of(device: Arc<CudaDevice>, budget: Option<u64>) -> Result<Arc<Self>, MemoryError> {
        let (free, total) = device.free_and_total()?;
        let wanted = budget.unwrap_or(free.saturating_sub(RESERVE));
        if wanted > free || wanted == 0 {
            return Err(MemoryError::Short {
                device: device.place().to_string(),
                wanted: wanted.max(RESERVE),
                free,
                total,
            });
        }
        Ok(Arc::new(Self {
            ledger: Ledger::new(device.place().to_string(), wanted),
            device,
            shelf: Arc::default(),
        }))
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// Frees every allocation that is kept for later, and counts their bytes.
    pub fn purge(&self) -> u64 {
        let kept = std::mem::take(&mut *lock(&self.shelf));
        kept.into_values().flatten().map(|a| a.bytes as u64).sum()
    }

    /// A copy is this device's business when one side lies here, or when none leaves the host.
    fn reaches(&self, from: Place, to: Place, bytes: usize) -> Result<(), MemoryError> {
        let here = self.place();
        if from == here || to == here || from == to && from == Place::Host {
            return Ok(());
        }
        Err(self.copy_error(bytes, &format!("neither {from} nor {to} is this device")))
    }

    fn copy_error(&self, bytes: usize, reason: &str) -> MemoryError {
        MemoryError::Copy {
            device: self.device.place().to_string(),
            bytes: bytes as u64,
            reason: reason.to_owned(),
        }
    }

    /// A new allocation of `bytes`, uninitialised; what is kept for later is given up first where
    /// that makes room.
    fn allocate(&self, bytes: usize, class: Class) -> Result<Allocation, MemoryError> {
        let charge = match self.ledger.charge(bytes as u64, class) {
            Err(_) if self.purge() > 0 => self.ledger.charge(bytes as u64, class),
            charge => charge,
        }?;
        let address = match self.device.alloc(bytes) {
            Err(e) if e.code == OUT_OF_MEMORY && self.purge() > 0 => self.device.alloc(bytes),
            address => address,
        };
        let address = address.map_err(|e| self.refusal(bytes, class, &e))?;
        Ok(Allocation {
            address,
            bytes,
            class,
            device: Arc::clone(&self.device),
            _charge: charge,
        })
    }

    /// Allocates as [`Memory::alloc`] does, but leaves the bytes as they are.
    ///
    /// # Errors
    /// The errors of [`Memory::alloc`].
    #[expect(unsafe_code, reason = "an owned allocation named by its address")]
    pub fn alloc_unset(&self, bytes: usize, class: Class) -> Result<Block, MemoryError> {
        let room = bytes.max(1).next_multiple_of(ALIGNMENT);
        let allocation = match self.kept(room, class) {
            Some(kept) => kept,
            None => self.allocate(room, class)?,
        };
        let address = ptr::with_exposed_provenance_mut::<u8>(allocation.address as usize);
        let address = NonNull::new(address).expect("the driver allocates no null");
        let keep: Box<dyn std::any::Any + Send + Sync> = match class {
            Class::Activations | Class::Workspace => Box::new(Shelved {
                allocation: ManuallyDrop::new(allocation),
                shelf: Arc::downgrade(&self.shelf),
            }),
            _ => Box::new(allocation),
        };
        // SAFETY: the allocation owns at least `bytes` bytes at the address, and nobody else holds
        // it.
        Ok(unsafe { Block::from_raw(address, bytes, self.place(), keep) })
    }

    /// A freed allocation of the same purpose, a quarter larger at most.
    fn kept(&self, room: usize, class: Class) -> Option<Allocation> {
        let mut shelf = lock(&self.shelf);
        let fits = (class, room)..=(class, room + room / 4);
        let (&key, found) = shelf.range_mut(fits).next()?;
        let allocation = found.pop();
        if found.is_empty() {
            shelf.remove(&key);
        }
        allocation
    }

    fn refusal(&self, bytes: usize, class: Class, refusal: &Refusal) -> MemoryError {
        let room = match self.device.free_and_total() {
            Ok((free, total)) => format!("; {free} of {total} bytes are free"),
            Err(_) => String::new(),
        };
        MemoryError::Device {
            device: self.device.place().to_string(),
            class,
            bytes: bytes as u64,
            reason: format!("{refusal}{room}"),
        }
    }
}

/// A span's address as the driver spells it.
fn address_of(span: Span<'_>) -> Address {
    span.address().as_ptr().expose_provenance() as Address
}

impl Memory for CudaMemory {
    fn place(&self) -> Place {
        self.device.place()
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn alloc(&self, bytes: usize, class: Class) -> Result<Block, MemoryError> {
        let block = self.alloc_unset(bytes, class)?;
        let all = block.span(0, bytes);
        if bytes > 0 {
            self.device
                .zero(address_of(all), bytes)
                .map_err(|e| self.refusal(bytes, class, &e))?;
        }
        Ok(block)
    }

    #[expect(unsafe_code, reason = "calls of the driver")]
    fn copy(&self, from: Span<'_>, to: SpanMut<'_>) -> Result<(), MemoryError> {
        assert_eq!(from.len(), to.len(), "copy of unequal lengths");
        let len = from.len();
        if len == 0 {
            return Ok(());
        }
        self.reaches(from.place(), to.place(), len)?;
        let failed = |e: Refusal| self.copy_error(len, &e.to_string());
        let (source, target) = (address_of(from), address_of(to.as_span()));
        let on_host = |span: Span<'_>| span.address().as_ptr().cast::<c_void>();
        let host_target = on_host(to.as_span());
        let host_source = on_host(from).cast_const();
        let context = |ordinal: u32| -> Result<Arc<CudaDevice>, MemoryError> {
            self.device.driver.device(ordinal)
        };
        // SAFETY, for every call below: both spans are borrowed, hold `len` bytes where their place
        // says, and the stream is waited for before this returns.
        let done = match (from.place(), to.place()) {
            (Place::Host, Place::Cuda(_)) => self.device.on_a_stream(|t, stream| {
                // SAFETY: as above.
                t.check("cuMemcpyHtoDAsync", unsafe {
                    (t.upload)(target, host_source, len, stream)
                })
            }),
            (Place::Cuda(_), Place::Host) => self.device.on_a_stream(|t, stream| {
                // SAFETY: as above.
                t.check("cuMemcpyDtoHAsync", unsafe {
                    (t.download)(host_target, source, len, stream)
                })
            }),
            (Place::Cuda(a), Place::Cuda(b)) if a == b => self.device.on_a_stream(|t, stream| {
                // SAFETY: as above.
                t.check("cuMemcpyDtoDAsync", unsafe {
                    (t.within)(target, source, len, stream)
                })
            }),
            (Place::Cuda(a), Place::Cuda(b)) => {
                let (a, b) = (context(a)?, context(b)?);
                self.device.on_a_stream(|t, stream| {
                    // SAFETY: as above; both contexts are held.
                    t.check("cuMemcpyPeerAsync", unsafe {
                        (t.peer)(target, b.context, source, a.context, len, stream)
                    })
                })
            }
            (Place::Host, Place::Host) => {
                let mut to = to;
                to.bytes().copy_from_slice(from.bytes());
                Ok(())
            }
        };
        done.map_err(failed)
    }

    #[expect(unsafe_code, reason = "a call of the driver")]
    fn copy_rows(&self, rows: Rows, from: Span<'_>, to: SpanMut<'_>) -> Result<(), MemoryError> {
        let Rows {
            count,
            bytes,
            from_pitch,
            to_pitch,
        } = rows;
        if count == 0 || bytes == 0 {
            return Ok(());
        }
        for (len, pitch) in [(from.len(), from_pitch), (to.len(), to_pitch)] {
            assert!(
                (count == 1 || bytes <= pitch) && (count - 1) * pitch + bytes <= len,
                "{count} rows of {bytes} bytes, {pitch} apart, in {len}"
            );
        }
        self.reaches(from.place(), to.place(), count * bytes)?;
        let kind = |place| match place {
            Place::Host => KIND_HOST,
            Place::Cuda(_) => KIND_DEVICE,
        };
        let copy = Copy2d {
            src_x: 0,
            src_y: 0,
            src_kind: kind(from.place()),
            src_host: from.address().as_ptr().cast(),
            src_device: address_of(from),
            src_array: ptr::null_mut(),
            src_pitch: from_pitch.max(bytes),
            dst_x: 0,
            dst_y: 0,
            dst_kind: kind(to.place()),
            dst_host: to.address().as_ptr().cast(),
            dst_device: address_of(to.as_span()),
            dst_array: ptr::null_mut(),
            dst_pitch: to_pitch.max(bytes),
            width: bytes,
            height: count,
        };
        self.device
            .on_a_stream(|table, stream| {
                // SAFETY: both sides hold the rows, as asserted, and are borrowed until the stream
                // has been waited for.
                let code = unsafe { (table.rows)(&raw const copy, stream) };
                table.check("cuMemcpy2DAsync", code)
            })
            .map_err(|e| self.copy_error(count * bytes, &e.to_string()))
    }

    fn lock_pages(&self, pages: Arc<Pages>) -> Result<Option<Locked>, MemoryError> {
        let guard = self.device.pin(pages)?;
        Ok(Some(Box::new(guard)))
    }

    /// Page-locked, so that copies run at the link's rate and beside everything else.
    #[expect(unsafe_code, reason = "calls of the driver")]
    fn host_alloc(
        &self,
        host: &Arc<Ledger>,
        bytes: usize,
        class: Class,
    ) -> Result<Block, MemoryError> {
        let charge = host.charge(bytes as u64, class)?;
        let refused = |e: Refusal| MemoryError::Device {
            device: format!("{} (page-locked for {})", host.device(), self.place()),
            class,
            bytes: bytes as u64,
            reason: e.to_string(),
        };
        let (device, table) = (&self.device, self.device.table());
        device.enter().map_err(refused)?;
        let mut address = ptr::null_mut();
        // SAFETY: writes one address, freed by `PinnedAllocation`.
        let code = unsafe { (table.host_alloc)(&raw mut address, bytes.max(1), PINNED_PORTABLE) };
        table.check("cuMemHostAlloc", code).map_err(refused)?;
        let keep = PinnedAllocation {
            address: Handle(address),
            device: Arc::clone(device),
            _charge: charge,
        };
        // SAFETY: `bytes` writable host bytes.
        unsafe { ptr::write_bytes(address.cast::<u8>(), 0, bytes) };
        let address = NonNull::new(address.cast()).expect("the driver allocates no null");
        // SAFETY: `keep` owns `bytes` zeroed bytes at the address, and nobody else holds it.
        Ok(unsafe { Block::from_raw(address, bytes, Place::Host, Box::new(keep)) })
    }
}

/// One pinned allocation, freed on drop.
struct PinnedAllocation {
    address: Handle,
    device: Arc<CudaDevice>,
    _charge: Charge,
}

impl Drop for PinnedAllocation {
    #[expect(unsafe_code, reason = "a call of the driver")]
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated by `cuMemHostAlloc`, owned here alone.
            unsafe { (self.device.table().host_free)(self.address.0) };
        }
    }
}

#[cfg(test)]
mod tests;
