//! Layers that stream: weights and rings come from host memory into slots on the device, layer after layer, while others compute. One
//! thread fills slots, one writes new ring rows back and frees them, and the caller computes between the two. Which layers stream is the
//! plan's business; what they compute is the stage's.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use engines::backend::EngineError;
use engines::contract::DType;
use engines::memory::{Block, Class, Memory, MemoryError};
use engines::weights::{BoundWeights, HostWeights};

use crate::chain::ring::KvRing;
use crate::numbers::geometry::Geometry;

/// Room for one layer on the device.
pub(crate) struct Slot {
    weights: Arc<Block>,
    /// As many lanes as a call has at most; only where rings stream.
    pub(crate) ring: Option<KvRing>,
}

/// How large the slots of a stage are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotSize {
    /// Bytes of the largest layer that streams.
    pub(crate) weights: usize,
    /// Lanes of the ring, where rings stream.
    pub(crate) lanes: Option<usize>,
    pub(crate) dtype: DType,
}

impl SlotSize {
    pub(crate) fn alloc(
        &self,
        memory: &dyn Memory,
        geometry: &Geometry,
    ) -> Result<Slot, MemoryError> {
        let alloc = |bytes| memory.alloc(bytes, Class::Slots);
        let ring = |lanes| KvRing::new(geometry, lanes, self.dtype, alloc);
        Ok(Slot {
            weights: Arc::new(alloc(self.weights)?),
            ring: self.lanes.map(ring).transpose()?,
        })
    }
}

/// What one layer needs in its slot.
pub(crate) struct Load<'a> {
    pub(crate) weights: Option<&'a HostWeights>,
    /// The layer's ring on the host.
    pub(crate) ring: Option<&'a Mutex<KvRing>>,
}

/// The rows of a ring that one lane of a call deals with, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Lane of the ring.
    pub(crate) step: usize,
    /// Rows that the block writes.
    pub(crate) new: Range<usize>,
    /// Rows that are filled once the block is written.
    pub(crate) filled: usize,
}

impl Window {
    /// Rows that older blocks filled and that this one does not write: what attention reads besides the new ones.
    fn older(&self) -> [Range<usize>; 2] {
        [
            0..self.new.start,
            self.new.end..self.filled.max(self.new.end),
        ]
    }
}

/// A slot that holds a layer.
pub(crate) struct Filled<'a> {
    at: usize,
    slot: Slot,
    whole: Option<&'a HostWeights>,
}

impl Filled<'_> {
    /// The layer's weights in the slot. They must be dropped before the slot is given back.
    pub(crate) fn weights(&self) -> Option<BoundWeights> {
        Some(self.whole?.in_slab(&self.slot.weights))
    }

    /// Weights of another graph that takes some of the layer's; `None` when they are not all there.
    pub(crate) fn weights_of(&self, part: &HostWeights) -> Option<BoundWeights> {
        part.in_slab_of(self.whole?, &self.slot.weights)
    }

    pub(crate) fn ring(&mut self) -> Option<&mut KvRing> {
        self.slot.ring.as_mut()
    }
}

/// Slots as they are filled, in the order of the loads.
pub(crate) struct Stream<'a> {
    ready: Receiver<Result<Filled<'a>, MemoryError>>,
    used: Sender<Filled<'a>>,
}

impl<'a> Stream<'a> {
    /// A stream of no loads.
    pub(crate) fn nothing() -> Self {
        Self {
            ready: channel().1,
            used: channel().0,
        }
    }

    /// The next load in its slot; waits for the upload.
    pub(crate) fn next(&self) -> Result<Filled<'a>, MemoryError> {
        let ended = || MemoryError::Copy {
            device: "slots".to_owned(),
            bytes: 0,
            reason: "no layer is left to stream".to_owned(),
        };
        self.ready.recv().map_err(|_| ended())?
    }

    /// Frees a slot once its new ring rows are back on the host.
    pub(crate) fn give_back(&self, filled: Filled<'a>) {
        // Whoever writes back ends early only with an error of its own, which is shown instead.
        drop(self.used.send(filled));
    }
}

/// Runs `work` while `loads` pass through the slots of `pool`; returns when everything is written back. A pool that a failed or stopped
/// `work` left behind may lack slots.
pub(crate) fn streamed<'l, T>(
    memory: &dyn Memory,
    pool: &mut Vec<Slot>,
    loads: &[Load<'l>],
    windows: &[Window],
    work: impl FnOnce(&Stream<'l>) -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    let (freed, free) = channel();
    let (filled, ready) = channel();
    let (used, to_write) = channel();
    for slot in pool.drain(..) {
        drop(freed.send(slot));
    }
    thread::scope(|scope| {
        let uploads = scope.spawn(move || {
            upload(memory, loads, windows, &free, &filled);
            free
        });
        let writes = scope.spawn(move || write_back(memory, loads, windows, &to_write, &freed));
        let result = {
            let stream = Stream { ready, used };
            work(&stream)
        };
        let written = writes
            .join()
            .unwrap_or_else(|p| std::panic::resume_unwind(p));
        let free = uploads
            .join()
            .unwrap_or_else(|p| std::panic::resume_unwind(p));
        pool.extend(free.try_iter());
        written?;
        result
    })
}

fn upload<'l>(
    memory: &dyn Memory,
    loads: &[Load<'l>],
    windows: &[Window],
    free: &Receiver<Slot>,
    filled: &Sender<Result<Filled<'l>, MemoryError>>,
) {
    for (at, load) in loads.iter().enumerate() {
        let Ok(slot) = free.recv() else { return };
        let result = fill(memory, load, windows, at, slot);
        let failed = result.is_err();
        if filled.send(result).is_err() || failed {
            return;
        }
    }
}

fn fill<'l>(
    memory: &dyn Memory,
    load: &Load<'l>,
    windows: &[Window],
    at: usize,
    mut slot: Slot,
) -> Result<Filled<'l>, MemoryError> {
    if let Some(weights) = load.weights {
        let slab = Arc::get_mut(&mut slot.weights);
        weights.upload(
            memory,
            slab.expect("a slot is given back without its weights"),
        )?;
    }
    if let (Some(ring), Some(to)) = (load.ring, &mut slot.ring) {
        let ring = locked(ring);
        for (lane, window) in windows.iter().enumerate() {
            for tokens in window.older() {
                to.copy_tokens(lane, (&ring, window.step), &tokens, memory)?;
            }
        }
    }
    Ok(Filled {
        at,
        slot,
        whole: load.weights,
    })
}

fn write_back(
    memory: &dyn Memory,
    loads: &[Load<'_>],
    windows: &[Window],
    used: &Receiver<Filled<'_>>,
    freed: &Sender<Slot>,
) -> Result<(), MemoryError> {
    while let Ok(Filled { at, slot, .. }) = used.recv() {
        if let (Some(ring), Some(from)) = (loads[at].ring, &slot.ring) {
            let mut ring = locked(ring);
            for (lane, window) in windows.iter().enumerate() {
                ring.copy_tokens(window.step, (from, lane), &window.new, memory)?;
            }
        }
        // Nobody waits for a slot any more when every load has had one.
        drop(freed.send(slot));
    }
    Ok(())
}

/// A ring whose holder panicked is read by nobody: the panic goes on.
pub(crate) fn locked(ring: &Mutex<KvRing>) -> MutexGuard<'_, KvRing> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use engines::memory::{HostMemory, Ledger, Place, Rows, Span, SpanMut};
    use engines::tensor::Tensor;

    use super::*;
    use crate::fixtures::sizes::small_geometry;

    /// Host memory whose copies take a while: so long for a byte.
    #[derive(Debug)]
    struct Slow {
        inner: Arc<HostMemory>,
        nanos_per_byte: u64,
        /// What each copy took, in milliseconds.
        took: Mutex<Vec<f64>>,
    }

    /// Sleeps, and says for how many milliseconds it really did.
    fn asleep(wanted: Duration) -> f64 {
        let begun = Instant::now();
        thread::sleep(wanted);
        begun.elapsed().as_secs_f64() * 1e3
    }

    /// When the last of all layers is computed, given what each copy and each computation takes, in two slots: a copy waits for the one
    /// before it and for its slot, a computation for its copy and for the one before it.
    fn two_slots(copies: &[f64], computed: &[f64]) -> f64 {
        let (mut copied, mut done) = (0.0_f64, vec![0.0_f64; 2]);
        for (copy, compute) in copies.iter().zip(computed) {
            copied = copied.max(done[done.len() - 2]) + copy;
            done.push(copied.max(done[done.len() - 1]) + compute);
        }
        done[done.len() - 1]
    }

    impl Memory for Slow {
        fn place(&self) -> Place {
            self.inner.place()
        }

        fn ledger(&self) -> &Arc<Ledger> {
            self.inner.ledger()
        }

        fn alloc(&self, bytes: usize, class: Class) -> Result<Block, MemoryError> {
            self.inner.alloc(bytes, class)
        }

        fn copy(&self, from: Span<'_>, to: SpanMut<'_>) -> Result<(), MemoryError> {
            let took = asleep(Duration::from_nanos(
                from.len() as u64 * self.nanos_per_byte,
            ));
            self.took.lock().unwrap().push(took);
            self.inner.copy(from, to)
        }

        fn copy_rows(
            &self,
            rows: Rows,
            from: Span<'_>,
            to: SpanMut<'_>,
        ) -> Result<(), MemoryError> {
            let bytes = (rows.count * rows.bytes) as u64;
            thread::sleep(Duration::from_nanos(bytes * self.nanos_per_byte));
            self.inner.copy_rows(rows, from, to)
        }
    }

    const LAYERS: usize = 8;

    fn weights(layer: usize, elements: usize) -> HostWeights {
        let values = Tensor::from_slice(&[elements], &vec![layer as f32; elements]);
        HostWeights::from_tensors(&[("w".to_owned(), values)]).unwrap()
    }

    #[test]
    fn a_streamed_pass_takes_the_longer_of_copies_and_compute_and_one_layer_more() {
        let bytes = 40_000;
        let all: Vec<HostWeights> = (0..LAYERS).map(|l| weights(l, bytes / 4)).collect();
        let geometry = small_geometry(12);
        // Milliseconds of one layer: copied, computed.
        for (copy, compute) in [(20, 20), (30, 10), (10, 30)] {
            let memory = Slow {
                inner: HostMemory::new("cpu:0", u64::MAX),
                nanos_per_byte: copy * 1_000_000 / bytes as u64,
                took: Mutex::default(),
            };
            let size = SlotSize {
                weights: all[0].slab_bytes(),
                lanes: None,
                dtype: DType::F32,
            };
            let slot = || size.alloc(&memory, &geometry).unwrap();
            let mut pool = vec![slot(), slot()];
            let loads: Vec<Load<'_>> = all
                .iter()
                .map(|w| Load {
                    weights: Some(w),
                    ring: None,
                })
                .collect();
            let mut pass = || {
                let mut computed = Vec::new();
                let begun = Instant::now();
                streamed(&memory, &mut pool, &loads, &[], |stream| {
                    for layer in 0..LAYERS {
                        let filled = stream.next()?;
                        let set = filled.weights().unwrap();
                        computed.push(asleep(Duration::from_millis(compute)));
                        let (_, w) = set.iter().next().unwrap();
                        assert!(w.as_slice::<f32>().iter().all(|&v| v == layer as f32));
                        drop(set);
                        stream.give_back(filled);
                    }
                    Ok(())
                })
                .unwrap();
                let took = begun.elapsed().as_secs_f64() * 1e3;
                let copies = std::mem::take(&mut *memory.took.lock().unwrap());
                (took, copies, computed)
            };
            // A machine that is busy wakes sleepers late, and by how much differs from sleep to sleep: so a pass is compared with what its own
            // sleeps took. In turn they take their sum, always; beside one another the least that two slots allow, and what is lost between
            // them. That loss is no sleep and a busy machine adds to it, so a pass may be repeated.
            let overlapped = (0..8).any(|_| {
                let (took, copies, computed) = pass();
                let best = two_slots(&copies, &computed);
                let sum = copies.iter().chain(&computed).sum::<f64>();
                println!("{copy} ms copy, {compute} ms compute: {took:.1} ms, at best {best:.1}, in turn {sum:.1}");
                assert!(took >= best, "nothing is used before it is there");
                took < best.midpoint(sum)
            });
            assert!(overlapped, "copies and computation take turns");
            assert_eq!(pool.len(), 2, "every slot comes back");
        }
    }

    #[test]
    fn a_ring_streams_in_what_older_blocks_wrote_and_out_what_this_one_did() {
        let g = small_geometry(48);
        let device = HostMemory::new("cpu:0", u64::MAX);
        let ring = || {
            KvRing::new(&g, 4, DType::F32, |bytes| {
                device.host_alloc(&Ledger::new("host", u64::MAX), bytes, Class::Rings)
            })
        };
        let size = SlotSize {
            weights: 0,
            lanes: Some(2),
            dtype: DType::F32,
        };
        // Two lanes of steps 1 and 2; blocks that wrap and that do not.
        for blocks in [[1, 0], [3, 2], [4, 3], [6, 5]] {
            let mut host = ring().unwrap();
            for half in [&mut host.keys, &mut host.values] {
                half.as_mut_slice::<f32>().fill(1.0);
            }
            let host = Mutex::new(host);
            let windows: Vec<Window> = blocks
                .iter()
                .zip(1..)
                .map(|(&block, step)| Window {
                    step,
                    new: g.slot(block)..g.slot(block) + g.block_tokens(),
                    filled: g.filled(block),
                })
                .collect();
            let mut pool = vec![size.alloc(&*device, &g).unwrap()];
            let loads = [Load {
                weights: None,
                ring: Some(&host),
            }];
            streamed(&*device, &mut pool, &loads, &windows, |stream| {
                let mut filled = stream.next()?;
                let ring = filled.ring().unwrap();
                for (lane, window) in windows.iter().enumerate() {
                    for half in [&mut ring.keys, &mut ring.values] {
                        let row = g.head_dim;
                        let mut view = half.lanes_mut(lane..lane + 1);
                        for head in view.as_mut_slice::<f32>().chunks_mut(g.ring_tokens() * row) {
                            for (t, token) in head.chunks_mut(row).enumerate() {
                                let older = t < window.filled && !window.new.contains(&t);
                                assert_eq!(token[0] == 1.0, older, "token {t} of {window:?}");
                                token.fill(2.0);
                            }
                        }
                    }
                }
                stream.give_back(filled);
                Ok(())
            })
            .unwrap();
            let host = host.into_inner().unwrap();
            for half in [&host.keys, &host.values] {
                for step in 0..4 {
                    let lane = half.lanes(step..step + 1);
                    let new = step.checked_sub(1).and_then(|lane| windows.get(lane));
                    for head in lane.as_slice::<f32>().chunks(g.ring_tokens() * g.head_dim) {
                        for (t, token) in head.chunks(g.head_dim).enumerate() {
                            let written = new.is_some_and(|w| w.new.contains(&t));
                            assert!(token.iter().all(|&v| v == if written { 2.0 } else { 1.0 }));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_layer_that_fails_ends_the_stream() {
        let all: Vec<HostWeights> = (0..LAYERS).map(|l| weights(l, 10)).collect();
        let memory = HostMemory::new("cpu:0", u64::MAX);
        let size = SlotSize {
            weights: all[0].slab_bytes(),
            lanes: None,
            dtype: DType::F32,
        };
        let mut pool = vec![size.alloc(&*memory, &small_geometry(12)).unwrap()];
        let loads = all.iter().map(|w| Load {
            weights: Some(w),
            ring: None,
        });
        let error = streamed(
            &*memory,
            &mut pool,
            &loads.collect::<Vec<_>>(),
            &[],
            |stream| {
                stream.give_back(stream.next()?);
                drop(stream.next()?);
                Err::<(), _>(EngineError::Memory {
                    component: "dit_layer.01".to_owned(),
                    reason: "as planned".to_owned(),
                })
            },
        );
        assert!(matches!(error, Err(EngineError::Memory { .. })));
    }
}
