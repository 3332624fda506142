//! Memory of a device: allocations that are counted against a budget, and copies to and from them.
//! Host memory is one such device, so a placement for any machine runs here with its budgets. The
//! runtime's plan decides what memory holds.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod driver;
pub mod gpu;

use memmap2::Mmap;
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// The memory that bytes lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Memory of the host.
    Host,
    /// Memory of a CUDA device, by ordinal.
    Cuda(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// The purpose of an allocation; a ledger counts each purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Weights of graphs.
    Weights,
    /// KV rings.
    Rings,
    /// Keys and values of the sink and of the text.
    Condition,
    /// Inputs, outputs and caches of a call.
    Activations,
    /// Slots that weights and rings stream through.
    Slots,
    /// Memory that an engine takes for its own use.
    Workspace,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 6] = [
        Self::Weights,
        Self::Rings,
        Self::Condition,
        Self::Activations,
        Self::Slots,
        Self::Workspace,
    ];
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Rings => "rings",
            Self::Condition => "condition",
            Self::Activations => "activations",
            Self::Slots => "slots",
            Self::Workspace => "workspace",
        })
    }
}

/// Why memory could not be had or reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum MemoryError {
    #[error(
        "{device}: {class} of {bytes} bytes pass the budget: {used} of {budget} bytes are in use"
    )]
    Budget {
        device: String,
        class: Class,
        bytes: u64,
        used: u64,
        budget: u64,
    },
    #[error("{device}: {class} of {bytes} bytes: {reason}")]
    Device {
        device: String,
        class: Class,
        bytes: u64,
        reason: String,
    },
    #[error("{device}: copy of {bytes} bytes: {reason}")]
    Copy {
        device: String,
        bytes: u64,
        reason: String,
    },
    #[error(
        "{reason}; libcuda.so.1 comes with the NVIDIA driver (Debian: libcuda1 and nvidia-driver; \
         in a container: start it with --gpus all)"
    )]
    NoDriver { reason: String },
    #[error("cuda:{ordinal} does not exist: the driver has {have} devices{}", first(*have))]
    NoDevice { ordinal: u32, have: u32 },
    #[error(
        "{device}: wanted {wanted} bytes, {free} of {total} are free; end what else uses the \
         device (nvidia-smi lists it) or plan for less"
    )]
    Short {
        device: String,
        wanted: u64,
        free: u64,
        total: u64,
    },
    #[error("{device}: {reason}")]
    Driver { device: String, reason: String },
}

/// Returns the message of the system's loader; the error itself only says that it failed.
pub(crate) fn loader_words(error: &libloading::Error) -> String {
    let words = std::error::Error::source(error).map(ToString::to_string);
    words.unwrap_or_else(|| error.to_string())
}

fn first(have: u32) -> &'static str {
    match have {
        0 => "",
        _ => ", the first is cuda:0",
    }
}

/// Counts bytes in use on one device, and their peak, against a budget.
#[derive(Debug)]
pub struct Ledger {
    device: String,
    budget: u64,
    state: Mutex<Counts>,
}

/// Bytes that a ledger has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes in use, by class in the order of [`Class::ALL`].
    pub used: [u64; Class::ALL.len()],
    /// Most bytes that were ever in use.
    pub peak: u64,
}

impl Counts {
    /// Sums the bytes in use.
    pub fn total(&self) -> u64 {
        self.used.iter().sum()
    }

    /// Returns the bytes in use for one purpose.
    pub fn of(&self, class: Class) -> u64 {
        self.used[class as usize]
    }
}

impl Ledger {
    /// Makes a ledger of `budget` bytes; `u64::MAX` is no limit.
    pub fn new(device: impl Into<String>, budget: u64) -> Arc<Self> {
        Arc::new(Self {
            device: device.into(),
            budget,
            state: Mutex::default(),
        })
    }

    /// Returns the device's name, as errors show it.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns the budget in bytes; `u64::MAX` is no limit.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Returns the counts of this moment.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// Counts `bytes` until the charge is dropped.
    ///
    /// # Errors
    /// [`MemoryError::Budget`], and then nothing is counted.
    pub fn charge(self: &Arc<Self>, bytes: u64, class: Class) -> Result<Charge, MemoryError> {
        let mut state = self.lock();
        let used = state.total();
        let total = used.saturating_add(bytes);
        if total > self.budget {
            return Err(MemoryError::Budget {
                device: self.device.clone(),
                class,
                bytes,
                used,
                budget: self.budget,
            });
        }
        state.used[class as usize] += bytes;
        state.peak = state.peak.max(total);
        Ok(Charge {
            ledger: Arc::clone(self),
            bytes,
            class,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that are counted in a ledger for as long as this value lives.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: u64,
    class: Class,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.lock().used[self.class as usize] -= self.bytes;
    }
}

/// A piece of one device's memory, freed on drop. A sole owner may write it.
pub struct Block {
    address: NonNull<u8>,
    bytes: usize,
    place: Place,
    /// Frees the memory and the charge when it is dropped.
    _keep: Box<dyn Any + Send + Sync>,
}

// SAFETY: the block owns its memory (through `_keep`), and lends it only by `&self` for reading and
// `&mut self` for writing.
#[expect(unsafe_code, reason = "an owned allocation named by its address")]
unsafe impl Send for Block {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "an owned allocation named by its address")]
unsafe impl Sync for Block {}

impl Block {
    /// Makes a block at `address` that lives as long as `keep`.
    ///
    /// # Safety
    /// `keep` must own `bytes` bytes at `address` in `place`, exclusively and until it is dropped.
    /// Host memory must be initialised.
    #[expect(unsafe_code, reason = "an owned allocation named by its address")]
    pub unsafe fn from_raw(
        address: NonNull<u8>,
        bytes: usize,
        place: Place,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            address,
            bytes,
            place,
            _keep: keep,
        }
    }

    /// Counts the bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Says whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Says which memory the bytes lie in.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Borrows bytes `at..at + len`.
    ///
    /// # Panics
    /// If they pass the end.
    pub fn span(&self, at: usize, len: usize) -> Span<'_> {
        Span::within(self.place, self.address, self.bytes, at, len)
    }

    /// Borrows host bytes `at..at + len` for writing.
    ///
    /// # Panics
    /// If they pass the end, or the block does not lie on the host.
    #[expect(unsafe_code, reason = "host bytes behind an address")]
    pub fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        let span = self.span(at, len);
        assert_eq!(
            self.place,
            Place::Host,
            "bytes of {} written on the host",
            self.place
        );
        // SAFETY: `len` initialised host bytes of this block, borrowed exclusively with it.
        unsafe { std::slice::from_raw_parts_mut(span.address.as_ptr(), len) }
    }

    /// Borrows bytes `at..at + len` for writing.
    ///
    /// # Panics
    /// If they pass the end.
    pub fn span_mut(&mut self, at: usize, len: usize) -> SpanMut<'_> {
        SpanMut(
            Span::within(self.place, self.address, self.bytes, at, len),
            PhantomData,
        )
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes on {}", self.bytes, self.place)
    }
}

/// Borrowed bytes on some device.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    place: Place,
    address: NonNull<u8>,
    len: usize,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: a span is a shared borrow of bytes.
#[expect(unsafe_code, reason = "a shared borrow named by its address")]
unsafe impl Send for Span<'_> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a shared borrow named by its address")]
unsafe impl Sync for Span<'_> {}

impl<'a> Span<'a> {
    /// Borrows host bytes.
    pub fn host(bytes: &'a [u8]) -> Self {
        Self {
            place: Place::Host,
            address: NonNull::new(bytes.as_ptr().cast_mut())
                .expect("a slice pointer is never null"),
            len: bytes.len(),
            life: PhantomData,
        }
    }

    #[expect(unsafe_code, reason = "an offset inside an allocation")]
    fn within(place: Place, address: NonNull<u8>, have: usize, at: usize, len: usize) -> Self {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= have),
            "{len} bytes at {at} of {have}"
        );
        Self {
            place,
            // SAFETY: `at` lies inside the allocation at `address`, as asserted.
            address: unsafe { address.add(at) },
            len,
            life: PhantomData,
        }
    }

    /// Says which memory the bytes lie in.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Returns the address, in the address space of the place.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Counts the bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Borrows bytes `at..at + len` of these.
    ///
    /// # Panics
    /// If they pass the end.
    pub fn part(&self, at: usize, len: usize) -> Self {
        Self::within(self.place, self.address, self.len, at, len)
    }

    /// Borrows the bytes as a slice.
    ///
    /// # Panics
    /// If they do not lie on the host: that is a placement broken in code.
    #[expect(unsafe_code, reason = "host bytes behind an address")]
    pub fn bytes(&self) -> &'a [u8] {
        assert_eq!(
            self.place,
            Place::Host,
            "bytes of {} read on the host",
            self.place
        );
        // SAFETY: the span borrows `len` initialised host bytes at `address` for `'a`, see its
        // constructors.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

/// Borrowed bytes on some device, for writing.
#[derive(Debug)]
pub struct SpanMut<'a>(Span<'a>, PhantomData<&'a mut [u8]>);

impl<'a> SpanMut<'a> {
    /// Borrows host bytes for writing.
    pub fn host(bytes: &'a mut [u8]) -> Self {
        let address = NonNull::new(bytes.as_mut_ptr()).expect("a slice pointer is never null");
        Self(
            Span {
                place: Place::Host,
                address,
                len: bytes.len(),
                life: PhantomData,
            },
            PhantomData,
        )
    }

    /// Borrows the same bytes for reading.
    pub fn as_span(&self) -> Span<'_> {
        self.0
    }

    /// Says which memory the bytes lie in.
    pub fn place(&self) -> Place {
        self.0.place
    }

    /// Returns the address, in the address space of the place.
    pub fn address(&self) -> NonNull<u8> {
        self.0.address
    }

    /// Counts the bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Says whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Borrows bytes `at..at + len` of these for a shorter time.
    ///
    /// # Panics
    /// If they pass the end.
    pub fn part(&mut self, at: usize, len: usize) -> SpanMut<'_> {
        SpanMut(self.0.part(at, len), PhantomData)
    }

    /// Turns these into bytes `at..at + len` of them.
    ///
    /// # Panics
    /// If they pass the end.
    #[must_use]
    pub fn into_part(self, at: usize, len: usize) -> Self {
        Self(self.0.part(at, len), PhantomData)
    }

    /// Borrows the bytes as a slice for writing.
    ///
    /// # Panics
    /// If they do not lie on the host: that is a placement broken in code.
    #[expect(unsafe_code, reason = "host bytes behind an address")]
    pub fn bytes(&mut self) -> &mut [u8] {
        assert_eq!(
            self.place(),
            Place::Host,
            "bytes of {} written on the host",
            self.place()
        );
        // SAFETY: the span borrows `len` initialised host bytes at `address` for `'a` exclusively,
        // see its constructors.
        unsafe { std::slice::from_raw_parts_mut(self.0.address.as_ptr(), self.0.len) }
    }
}

/// Rows of equal length that lie a fixed distance apart, on either side of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub count: usize,
    /// Bytes of one row.
    pub bytes: usize,
    /// Bytes from the start of a source row to the start of the next.
    pub from_pitch: usize,
    /// Bytes from the start of a target row to the start of the next.
    pub to_pitch: usize,
}

/// One device's memory.
pub trait Memory: Send + Sync + fmt::Debug {
    /// Says which memory it is.
    fn place(&self) -> Place;

    /// Returns the ledger that counts its allocations.
    fn ledger(&self) -> &Arc<Ledger>;

    /// Says whether everything that a session of this device takes must be copied here first. Only
    /// the process's own memory is not separate: its sessions read and write wherever the process
    /// does.
    fn is_separate(&self) -> bool {
        true
    }

    /// Allocates zeroed bytes, aligned to 256.
    ///
    /// # Errors
    /// [`MemoryError::Budget`] before the device is asked; [`MemoryError::Device`] when it refuses.
    fn alloc(&self, bytes: usize, class: Class) -> Result<Block, MemoryError>;

    /// Copies between any two places; the copy is complete on return. Several threads may copy at
    /// once.
    ///
    /// # Errors
    /// [`MemoryError::Copy`].
    ///
    /// # Panics
    /// If the lengths differ.
    fn copy(&self, from: Span<'_>, to: SpanMut<'_>) -> Result<(), MemoryError>;

    /// Copies rows, as [`Self::copy`] does. A device that copies in two dimensions does it at once.
    ///
    /// # Errors
    /// [`MemoryError::Copy`].
    ///
    /// # Panics
    /// If a row passes the end of either side.
    fn copy_rows(
        &self,
        rows: Rows,
        from: Span<'_>,
        mut to: SpanMut<'_>,
    ) -> Result<(), MemoryError> {
        for row in 0..rows.count {
            let part = from.part(row * rows.from_pitch, rows.bytes);
            self.copy(part, to.part(row * rows.to_pitch, rows.bytes))?;
        }
        Ok(())
    }

    /// Allocates zeroed host memory that streams to and from this device at full speed, counted in
    /// `host`. It is page-locked where that matters.
    ///
    /// # Errors
    /// The budget of `host` or the system refuses.
    fn host_alloc(
        &self,
        host: &Arc<Ledger>,
        bytes: usize,
        class: Class,
    ) -> Result<Block, MemoryError> {
        HostMemory::counted_in(host).alloc(bytes, class)
    }

    /// Locks pages of a mapped file for as long as the guard lives. Copies from them to any device
    /// of this kind then run at the link's rate. Returns `None` where copies gain nothing by it.
    ///
    /// # Errors
    /// The system refuses: not every machine can lock pages of a file. Copies then work as before,
    /// only slower.
    fn lock_pages(&self, _pages: Arc<Pages>) -> Result<Option<Locked>, MemoryError> {
        Ok(None)
    }
}

/// A guard that keeps pages locked.
pub type Locked = Box<dyn Any + Send + Sync>;

/// A stretch of a mapped file.
#[derive(Clone, Debug)]
pub struct Pages {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Pages {
    /// Takes a range of a mapped file.
    ///
    /// # Panics
    /// If it passes the end of the map.
    pub fn new(map: Arc<Mmap>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= map.len(),
            "{range:?} of {} mapped bytes",
            map.len()
        );
        Self { map, range }
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// The unit of host allocations.
#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Chunk([u8; 256]);

/// The host's memory as a device of its own.
#[derive(Debug)]
pub struct HostMemory {
    ledger: Arc<Ledger>,
    apart: bool,
}

impl HostMemory {
    /// Makes a virtual device of `budget` bytes. Everything that its sessions take is copied to it,
    /// as to any other device.
    pub fn new(device: impl Into<String>, budget: u64) -> Arc<Self> {
        Arc::new(Self {
            ledger: Ledger::new(device, budget),
            apart: true,
        })
    }

    /// Makes the process's own memory, without limit.
    pub fn unlimited() -> Arc<Self> {
        Self::counted_in(&Ledger::new("cpu:0", u64::MAX))
    }

    /// Makes the process's own memory, against the budget of `ledger`.
    pub fn counted_in(ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self {
            ledger: Arc::clone(ledger),
            apart: false,
        })
    }
}

impl Memory for HostMemory {
    fn place(&self) -> Place {
        Place::Host
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn is_separate(&self) -> bool {
        self.apart
    }

    #[expect(unsafe_code, reason = "an owned allocation named by its address")]
    fn alloc(&self, bytes: usize, class: Class) -> Result<Block, MemoryError> {
        let charge = self.ledger.charge(bytes as u64, class)?;
        let mut chunks = vec![Chunk([0; 256]); bytes.div_ceil(256)].into_boxed_slice();
        let address =
            NonNull::new(chunks.as_mut_ptr().cast::<u8>()).expect("a slice pointer is never null");
        // SAFETY: the boxed chunks own at least `bytes` zeroed bytes at a fixed address, and nobody
        // else holds them.
        Ok(unsafe { Block::from_raw(address, bytes, Place::Host, Box::new((chunks, charge))) })
    }

    fn copy(&self, from: Span<'_>, mut to: SpanMut<'_>) -> Result<(), MemoryError> {
        if let Some(place) = [from.place(), to.place()]
            .into_iter()
            .find(|p| *p != Place::Host)
        {
            return Err(MemoryError::Copy {
                device: self.ledger.device.clone(),
                bytes: from.len() as u64,
                reason: format!("{place} is out of reach of host memory"),
            });
        }
        to.bytes().copy_from_slice(from.bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_passed_and_what_is_freed_counts_no_more() {
        let memory = HostMemory::new("cpu:3", 1000);
        let a = memory.alloc(600, Class::Weights).unwrap();
        let error = memory.alloc(401, Class::Rings).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cpu:3: rings of 401 bytes pass the budget: 600 of 1000 bytes are in use"
        );
        let b = memory.alloc(400, Class::Rings).unwrap();
        let counts = memory.ledger().counts();
        assert_eq!(
            (
                counts.of(Class::Weights),
                counts.of(Class::Rings),
                counts.peak
            ),
            (600, 400, 1000)
        );
        drop((a, b));
        let counts = memory.ledger().counts();
        assert_eq!((counts.total(), counts.peak), (0, 1000));
    }

    #[test]
    fn blocks_are_aligned_zeroed_and_written_where_told() {
        let memory = HostMemory::unlimited();
        let mut block = memory.alloc(700, Class::Slots).unwrap();
        assert_eq!(block.span(0, 700).address().as_ptr() as usize % 256, 0);
        memory
            .copy(Span::host(&[7; 3]), block.span_mut(512, 3))
            .unwrap();
        let sum: u32 = block
            .span(0, 700)
            .bytes()
            .iter()
            .map(|&b| u32::from(b))
            .sum();
        assert_eq!((sum, block.span(513, 2).bytes()), (21, &[7, 7][..]));
    }

    #[test]
    fn rows_are_copied_between_different_pitches() {
        let memory = HostMemory::unlimited();
        let mut block = memory.alloc(16, Class::Slots).unwrap();
        let rows = Rows {
            count: 3,
            bytes: 2,
            from_pitch: 3,
            to_pitch: 5,
        };
        let from: Vec<u8> = (1..9).collect();
        memory
            .copy_rows(rows, Span::host(&from), block.span_mut(1, 15))
            .unwrap();
        assert_eq!(
            block.span(0, 16).bytes(),
            [0, 1, 2, 0, 0, 0, 4, 5, 0, 0, 0, 7, 8, 0, 0, 0]
        );
    }

    #[test]
    fn host_memory_for_a_device_counts_with_the_host() {
        let (device, host) = (HostMemory::new("cpu:1", 10), Ledger::new("host", 100));
        let block = device.host_alloc(&host, 60, Class::Rings).unwrap();
        let error = device.host_alloc(&host, 60, Class::Rings).unwrap_err();
        assert!(matches!(error, MemoryError::Budget { device, .. } if device == "host"));
        assert_eq!((block.len(), host.counts().peak), (60, 60));
        assert_eq!(device.ledger().counts().peak, 0);
    }

    #[test]
    #[should_panic(expected = "4 bytes at 8 of 10")]
    fn a_span_past_the_end_is_a_bug() {
        HostMemory::unlimited()
            .alloc(10, Class::Slots)
            .unwrap()
            .span(8, 4);
    }
}
