//! A driver of two devices whose memory is the host's, so that everything but the hardware is real:
//! counts, order of calls, addresses.
#![expect(
    unsafe_code,
    reason = "the driver's entry points are C functions over raw memory"
)]
use super::*;
use crate::contract::DType;
use crate::manifest::WeightEntry;
use crate::tensor::Tensor;
use crate::weights::{HostWeights, Streaming};
use std::alloc::Layout;
use std::cell::RefCell;

struct Fake {
    total: usize,
    live: BTreeMap<usize, Layout>,
    streams: usize,
    waits: usize,
    contexts: i32,
    allocs: usize,
    pinned: Vec<(usize, usize, u32)>,
    peers: Vec<(usize, usize)>,
    /// Whether read-only pages can be pinned.
    pins_files: bool,
}

thread_local! {
    static FAKE: RefCell<Fake> = const {
        RefCell::new(Fake {
            total: 4 << 30,
            live: BTreeMap::new(),
            streams: 0,
            waits: 0,
            contexts: 0,
            allocs: 0,
            pinned: Vec::new(),
            peers: Vec::new(),
            pins_files: true,
        })
    };
}

fn fake<T>(run: impl FnOnce(&mut Fake) -> T) -> T {
    FAKE.with_borrow_mut(run)
}

impl Fake {
    fn used(&self) -> usize {
        self.live.values().map(Layout::size).sum()
    }

    fn alloc(&mut self, bytes: usize) -> Option<usize> {
        if self.used() + bytes > self.total {
            return None;
        }
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        // SAFETY: never of no bytes. Filled with rubbish, as a device's is.
        let address = unsafe { std::alloc::alloc(layout) };
        unsafe { address.write_bytes(0xa5, bytes) };
        let address = address.expose_provenance();
        self.live.insert(address, layout);
        self.allocs += 1;
        Some(address)
    }

    fn free(&mut self, address: usize) -> c_int {
        match self.live.remove(&address) {
            // SAFETY: allocated above with this layout.
            Some(layout) => unsafe {
                std::alloc::dealloc(ptr::with_exposed_provenance_mut(address), layout);
                0
            },
            None => 1,
        }
    }
}

fn at(address: Address) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address as usize)
}

unsafe extern "C" fn init(_: u32) -> c_int {
    0
}
unsafe extern "C" fn device_count(n: *mut c_int) -> c_int {
    unsafe { *n = 2 };
    0
}
unsafe extern "C" fn version(n: *mut c_int) -> c_int {
    unsafe { *n = 13_020 };
    0
}
unsafe extern "C" fn peer_access(can: *mut c_int, from: Device, _: Device) -> c_int {
    unsafe { *can = from };
    0
}
unsafe extern "C" fn device(d: *mut Device, ordinal: c_int) -> c_int {
    unsafe { *d = ordinal };
    0
}
unsafe extern "C" fn device_name(name: *mut c_char, _: c_int, _: Device) -> c_int {
    unsafe { ptr::copy_nonoverlapping(c"Fake GPU".as_ptr(), name, 9) };
    0
}
unsafe extern "C" fn device_attribute(value: *mut c_int, which: c_int, device: Device) -> c_int {
    let found = match which {
        _ if which == CAPABILITY[0] => 9,
        _ if which == READ_ONLY_REGISTER => c_int::from(fake(|f| f.pins_files)),
        // No machine has a PCI domain of this number.
        _ if which == PCI_ADDRESS[0] => 0xfffe,
        _ if which == PCI_ADDRESS[1] => 0x65 + device,
        _ => 0,
    };
    unsafe { *value = found };
    0
}
unsafe extern "C" fn context_retain(context: *mut Handle, device: Device) -> c_int {
    fake(|f| f.contexts += 1);
    unsafe { *context = Handle(ptr::without_provenance_mut(100 + device as usize)) };
    0
}
unsafe extern "C" fn context_release(_: Device) -> c_int {
    fake(|f| f.contexts -= 1);
    0
}
unsafe extern "C" fn context_set(_: Handle) -> c_int {
    0
}
unsafe extern "C" fn memory_info(free: *mut usize, total: *mut usize) -> c_int {
    fake(|f| unsafe {
        *total = f.total;
        *free = f.total - f.used();
    });
    0
}
unsafe extern "C" fn alloc(address: *mut Address, bytes: usize) -> c_int {
    fake(|f| match f.alloc(bytes) {
        Some(found) => {
            unsafe { *address = found as Address };
            0
        }
        None => OUT_OF_MEMORY,
    })
}
unsafe extern "C" fn free(address: Address) -> c_int {
    fake(|f| f.free(address as usize))
}
unsafe extern "C" fn fill(to: Address, value: u8, bytes: usize, _: Handle) -> c_int {
    unsafe { at(to).write_bytes(value, bytes) };
    0
}
unsafe extern "C" fn upload(to: Address, from: *const c_void, n: usize, _: Handle) -> c_int {
    unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), at(to), n) };
    0
}
unsafe extern "C" fn download(to: *mut c_void, from: Address, n: usize, _: Handle) -> c_int {
    unsafe { ptr::copy_nonoverlapping(at(from).cast_const(), to.cast::<u8>(), n) };
    0
}
unsafe extern "C" fn within(to: Address, from: Address, n: usize, _: Handle) -> c_int {
    unsafe { ptr::copy_nonoverlapping(at(from).cast_const(), at(to), n) };
    0
}
unsafe extern "C" fn peer(
    to: Address,
    to_context: Handle,
    from: Address,
    from_context: Handle,
    n: usize,
    stream: Handle,
) -> c_int {
    fake(|f| f.peers.push((from_context.0.addr(), to_context.0.addr())));
    unsafe { within(to, from, n, stream) }
}
unsafe extern "C" fn rows(copy: *const Copy2d, _: Handle) -> c_int {
    let c = unsafe { *copy };
    let side = |kind, host: *mut c_void, device| match kind {
        KIND_HOST => host.cast::<u8>(),
        _ => at(device),
    };
    let from = side(c.src_kind, c.src_host.cast_mut(), c.src_device);
    let to = side(c.dst_kind, c.dst_host, c.dst_device);
    for row in 0..c.height {
        unsafe {
            ptr::copy_nonoverlapping(
                from.add(row * c.src_pitch),
                to.add(row * c.dst_pitch),
                c.width,
            );
        }
    }
    0
}
unsafe extern "C" fn stream_new(stream: *mut Handle, flags: u32) -> c_int {
    assert_eq!(flags, STREAM_NON_BLOCKING);
    fake(|f| f.streams += 1);
    unsafe { *stream = Handle(ptr::without_provenance_mut(1)) };
    0
}
unsafe extern "C" fn stream_wait(_: Handle) -> c_int {
    fake(|f| f.waits += 1);
    0
}
unsafe extern "C" fn stream_free(_: Handle) -> c_int {
    fake(|f| f.streams -= 1);
    0
}
unsafe extern "C" fn host_alloc(address: *mut *mut c_void, bytes: usize, _: u32) -> c_int {
    fake(|f| match f.alloc(bytes) {
        Some(found) => {
            unsafe { *address = at(found as Address).cast() };
            0
        }
        None => OUT_OF_MEMORY,
    })
}
unsafe extern "C" fn host_free(address: *mut c_void) -> c_int {
    fake(|f| f.free(address.addr()))
}
unsafe extern "C" fn host_register(address: *mut c_void, bytes: usize, flags: u32) -> c_int {
    fake(|f| f.pinned.push((address.addr(), bytes, flags)));
    0
}
unsafe extern "C" fn host_unregister(address: *mut c_void) -> c_int {
    fake(|f| f.pinned.retain(|p| p.0 != address.addr()));
    0
}
unsafe extern "C" fn error_name(code: c_int, name: *mut *const c_char) -> c_int {
    if code != OUT_OF_MEMORY {
        return 1;
    }
    unsafe { *name = c"CUDA_ERROR_OUT_OF_MEMORY".as_ptr() };
    0
}
unsafe extern "C" fn error_text(code: c_int, text: *mut *const c_char) -> c_int {
    if code != OUT_OF_MEMORY {
        return 1;
    }
    unsafe { *text = c"out of memory".as_ptr() };
    0
}

fn driver() -> Arc<Driver> {
    Driver::new(Table {
        init,
        version,
        device_count,
        device,
        device_name,
        device_attribute,
        peer_access,
        context_retain,
        context_release,
        context_set,
        memory_info,
        alloc,
        free,
        fill,
        upload,
        download,
        within,
        peer,
        rows,
        stream_new,
        stream_wait,
        stream_free,
        host_alloc,
        host_free,
        host_register,
        host_unregister,
        error_name,
        error_text,
    })
}

fn memory(budget: u64) -> Arc<CudaMemory> {
    CudaMemory::of(driver().device(0).unwrap(), Some(budget)).unwrap()
}

#[test]
fn a_tensor_goes_to_the_device_and_back_unchanged() {
    let memory = memory(1 << 20);
    let numbers: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let t = Tensor::from_slice(&[10, 100], &numbers);
    let there = t.copied_to(&*memory, Class::Weights).unwrap();
    assert_eq!(there.place(), Place::Cuda(0));
    let again = there.clone().copied_to(&*memory, Class::Rings).unwrap();
    assert_eq!(again.into_host(&*memory).unwrap().bytes(), t.bytes());
    drop(there);
    let fresh = Tensor::zeros_in(&*memory, Class::Condition, DType::F32, &[1000]).unwrap();
    let fresh = fresh.into_host(&*memory).unwrap();
    assert!(fresh.as_slice::<f32>().iter().all(|x| *x == 0.0));
    assert!(fake(|f| f.waits) >= 5, "every copy is waited for");
    assert_eq!(fake(|f| f.streams), 1, "one thread needs one copy stream");
}

#[test]
fn freed_activations_are_kept_counted_zeroed_and_given_up_under_pressure() {
    let memory = memory(4096);
    let mut block = memory.alloc(1000, Class::Activations).unwrap();
    let address = block.span(0, 1).address();
    memory
        .copy(Span::host(&[7; 1000]), block.span_mut(0, 1000))
        .unwrap();
    drop(block);
    assert_eq!(memory.ledger().counts().of(Class::Activations), 1024);
    let block = memory.alloc(990, Class::Activations).unwrap();
    assert_eq!(
        (block.span(0, 1).address(), fake(|f| f.allocs)),
        (address, 1)
    );
    let mut host = [1u8; 990];
    memory
        .copy(block.span(0, 990), SpanMut::host(&mut host))
        .unwrap();
    assert_eq!(host, [0; 990]);
    drop(block);
    // 1024 kept + 3200 asked for pass the budget; without what is kept they fit.
    let rings = memory.alloc(3200, Class::Rings).unwrap();
    let counts = memory.ledger().counts();
    assert_eq!((counts.of(Class::Activations), counts.total()), (0, 3328));
    let error = memory.alloc(1000, Class::Activations).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuda:0: activations of 1024 bytes pass the budget: 3328 of 4096 bytes are in use"
    );
    drop(rings);
    assert_eq!(
        (memory.ledger().counts().total(), fake(|f| f.used())),
        (0, 0)
    );
}

#[test]
fn what_lives_long_is_freed_at_once() {
    let memory = memory(1 << 20);
    for class in [Class::Weights, Class::Rings, Class::Condition, Class::Slots] {
        drop(memory.alloc(100, class).unwrap());
        assert_eq!(
            (memory.ledger().counts().total(), fake(|f| f.used())),
            (0, 0),
            "{class}"
        );
    }
}

#[test]
fn a_device_that_is_full_says_what_is_free() {
    let memory = memory(3 << 30);
    fake(|f| f.total = 1 << 20);
    let kept = memory.alloc(600 << 10, Class::Activations).unwrap();
    drop(kept);
    // The kept block is given up before the device is asked again.
    let weights = memory.alloc(700 << 10, Class::Weights).unwrap();
    let error = memory.alloc(700 << 10, Class::Weights).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuda:0: weights of 716800 bytes: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory; \
         331776 of 1048576 bytes are free"
    );
    assert_eq!(
        memory.ledger().counts().total(),
        700 << 10,
        "a refusal is not counted"
    );
    drop(weights);
}

#[test]
fn a_device_with_less_free_than_the_plan_is_refused() {
    let driver = driver();
    fake(|f| f.total = 3 << 30);
    let error = CudaMemory::of(driver.device(1).unwrap(), Some(22_000_000_000)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuda:1: wanted 22000000000 bytes, 3221225472 of 3221225472 are free; end what else uses \
         the device (nvidia-smi lists it) or plan for less"
    );
    let all = CudaMemory::of(driver.device(1).unwrap(), None).unwrap();
    assert_eq!(all.ledger().budget(), (3 << 30) - RESERVE);
    let error = driver.device(2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuda:2 does not exist: the driver has 2 devices, the first is cuda:0"
    );
}

#[test]
fn copies_between_devices_name_both_contexts() {
    let driver = driver();
    let open = |n| CudaMemory::of(driver.device(n).unwrap(), Some(1 << 20)).unwrap();
    let (a, b) = (open(0), open(1));
    let t = Tensor::from_slice(&[4], &[1i64, 2, 3, 4]);
    let on_a = t.copied_to(&*a, Class::Weights).unwrap();
    let on_b = on_a.copied_to(&*b, Class::Weights).unwrap();
    assert_eq!(on_b.place(), Place::Cuda(1));
    assert_eq!(fake(|f| f.peers.clone()), [(100, 101)]);
    assert_eq!(on_b.into_host(&*b).unwrap().as_slice::<i64>(), [1, 2, 3, 4]);
    let error = on_a.into_host(&*b).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuda:1: copy of 32 bytes: neither cuda:0 nor host is this device"
    );
}

#[test]
fn the_driver_says_its_cuda_and_which_devices_cannot_reach_each_other() {
    let driver = driver();
    assert_eq!(driver.version().unwrap(), (13, 2));
    assert_eq!(driver.strangers().unwrap(), [(0, 1)]);
}

#[test]
fn rows_are_copied_with_a_pitch_on_either_side() {
    let memory = memory(1 << 20);
    let from: Vec<u8> = (0..40).collect();
    let mut block = memory.alloc(24, Class::Rings).unwrap();
    let rows = |count| Rows {
        count,
        bytes: 4,
        from_pitch: 10,
        to_pitch: 6,
    };
    memory
        .copy_rows(rows(4), Span::host(&from), block.span_mut(0, 24))
        .unwrap();
    let mut back = [0u8; 24];
    memory
        .copy(block.span(0, 24), SpanMut::host(&mut back))
        .unwrap();
    let want = [
        0, 1, 2, 3, 0, 0, 10, 11, 12, 13, 0, 0, 20, 21, 22, 23, 0, 0, 30, 31, 32, 33, 0, 0,
    ];
    assert_eq!(back, want);
    let past = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        memory.copy_rows(rows(5), Span::host(&from), block.span_mut(0, 24))
    }));
    assert!(
        past.is_err(),
        "a row past the end is a placement broken in code"
    );
}

#[test]
fn pinned_memory_is_counted_and_pinned_pages_are_let_go() {
    let memory = memory(10);
    let device = Arc::clone(memory.device());
    let host = Ledger::new("host", 1000);
    let block = memory.host_alloc(&host, 900, Class::Rings).unwrap();
    assert_eq!(block.place(), Place::Host);
    assert!(block.span(0, 900).bytes().iter().all(|b| *b == 0));
    assert!(memory.host_alloc(&host, 200, Class::Rings).is_err());
    let beside = Tensor::from_slice(&[2], &[1f32, 2.]);
    assert_eq!(
        beside.clone().into_host(&*memory).unwrap().bytes(),
        beside.bytes()
    );
    drop(block);
    assert_eq!((host.counts().total(), fake(|f| f.used())), (0, 0));
    let pages = Arc::new(vec![1u8; 4096]);
    let guard = device.pin(Arc::clone(&pages)).unwrap();
    assert_eq!(
        fake(|f| f.pinned.clone()),
        [(
            pages.as_ptr().addr(),
            4096,
            PINNED_PORTABLE | PINNED_READ_ONLY
        )]
    );
    drop(guard);
    assert!(fake(|f| f.pinned.is_empty()));
}

/// Two layers in one mapped file.
fn mapped_layers(path: &std::path::Path) -> Vec<HostWeights> {
    let values: Vec<u8> = (0..200u32).flat_map(|v| (v as f32).to_le_bytes()).collect();
    std::fs::write(path, values).unwrap();
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: a file of this test's own.
    let map = Arc::new(unsafe { memmap2::Mmap::map(&file) }.unwrap());
    let layer = |offset: u64| {
        let entry = WeightEntry {
            name: "w".to_owned(),
            key: "w".to_owned(),
            dtype: DType::F32,
            shape: vec![10],
            offset,
            length: 40,
            transposed: false,
        };
        HostWeights::new(Some(Arc::clone(&map)), vec![("w".to_owned(), entry)])
    };
    vec![layer(0), layer(256)]
}

#[test]
fn layers_that_stream_are_pinned_once_or_copied_or_left_and_the_same_in_any_case() {
    let dir = tempfile::tempdir().unwrap();
    let memory = memory(1 << 20);
    let layers = mapped_layers(&dir.path().join("data"));
    let starts = |weights: &[HostWeights]| -> Vec<f32> {
        let first = |w: &HostWeights| {
            let set = w.resident(&*memory).unwrap();
            let (_, t) = set.iter().next().unwrap();
            t.clone().into_host(&*memory).unwrap().as_slice::<f32>()[0]
        };
        weights.iter().map(first).collect()
    };
    // Bytes of the host's budget; whether files can be pinned; registrations, bytes counted, and
    // whether there is a refusal.
    for (budget, pins_files, want) in [
        (10_000, true, (1, 800, false)),
        (10_000, false, (0, 80, false)),
        (79, false, (0, 0, true)),
        (200, true, (0, 80, false)),
    ] {
        fake(|f| f.pins_files = pins_files);
        let host = Ledger::new("host", budget);
        let made = Streaming::new(layers.clone(), &*memory, &host);
        let counted = host.counts().total();
        assert_eq!(
            (fake(|f| f.pinned.len()), counted, made.refused.is_some()),
            want,
            "{budget} {pins_files}"
        );
        assert_eq!(starts(&made.weights), [0.0, 64.0]);
        drop(made);
        assert_eq!((fake(|f| f.pinned.len()), host.counts().total()), (0, 0));
    }
}

#[test]
fn a_device_nobody_uses_is_given_back() {
    let driver = driver();
    let memory = CudaMemory::of(driver.device(0).unwrap(), Some(1 << 20)).unwrap();
    let device = Arc::clone(memory.device());
    assert!(Arc::ptr_eq(&device, &driver.device(0).unwrap()));
    assert_eq!(
        device.compute_stream().unwrap(),
        device.compute_stream().unwrap()
    );
    assert_eq!(
        (
            device.name().unwrap().as_str(),
            device.capability().unwrap()
        ),
        ("Fake GPU", (9, 0))
    );
    let block = memory.alloc(10, Class::Activations).unwrap();
    drop((memory, device));
    assert_eq!(fake(|f| f.contexts), 1, "a block holds its device");
    drop(block);
    assert_eq!(fake(|f| (f.contexts, f.streams, f.used())), (0, 0, 0));
}

#[test]
fn devices_are_described_and_let_go() {
    let driver = driver();
    let memory = CudaMemory::of(driver.device(1).unwrap(), Some(1 << 30)).unwrap();
    let block = memory.alloc(1 << 20, Class::Weights).unwrap();
    let found = driver.gpus().unwrap();
    let gpu = |ordinal| Gpu {
        ordinal,
        name: "Fake GPU".to_owned(),
        capability: (9, 0),
        free: (4 << 30) - (1 << 20),
        total: 4 << 30,
        link: None,
    };
    assert_eq!(found, [gpu(0), gpu(1)]);
    assert_eq!((found[1].sm(), found[1].used()), (90, 1 << 20));
    let address = driver.device(1).unwrap().pci_address().unwrap();
    assert_eq!(address, "fffe:66:00.0");
    assert_eq!(fake(|f| f.contexts), 1, "only the device in use is held");
    drop((block, memory));
    assert_eq!(fake(|f| f.contexts), 0);
}

#[test]
fn a_machine_without_a_driver_is_told_which_package_has_it() {
    match Driver::installed() {
        Ok(_) => {}
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("libcuda.so.1")
                    && text.contains("Debian: libcuda1")
                    && !text.contains('\n'),
                "{text}"
            );
        }
    }
}
