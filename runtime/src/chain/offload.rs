//! Brings weights and rings of layers from host memory into slots on the device, layer after layer,
//! while other layers compute. One thread fills slots. Another one writes new ring rows back and
//! frees the slots. The caller computes between the two. The plan decides which layers go through
//! slots, and the stage runs their graphs.

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
    /// Room for the weights.
    weights: Arc<Block>,
    /// Room for the ring, with a lane for each lane of the largest call; `None` where rings stay on
    /// the device.
    pub(crate) ring: Option<KvRing>,
}

/// The size of the slots of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotSize {
    /// Bytes of the largest layer that streams.
    pub(crate) weights: usize,
    /// Lanes of the ring, where rings stream.
    pub(crate) lanes: Option<usize>,
    /// Element type of the rings.
    pub(crate) dtype: DType,
}

impl SlotSize {
    /// Allocates one slot.
    ///
    /// # Errors
    /// The device or its budget refuses.
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

/// The weights and the ring that one layer needs in its slot.
pub(crate) struct Load<'a> {
    /// The layer's weights, or `None` where they stay on the device.
    pub(crate) weights: Option<&'a HostWeights>,
    /// The layer's ring on the host, or `None` where it stays on the device.
    pub(crate) ring: Option<&'a Mutex<KvRing>>,
}

/// The rows of a ring that one lane of a call reads and writes, in tokens.
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
    /// Returns the rows that older blocks filled and that this block does not write. Attention
    /// reads them beside the new rows.
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
    /// Returns the layer's weights in the slot. The caller drops them before it gives the slot
    /// back.
    pub(crate) fn weights(&self) -> Option<BoundWeights> {
        Some(self.whole?.in_slab(&self.slot.weights))
    }

    /// Returns the weights of another graph that uses some of the layer's weights, or `None` if the
    /// layer does not have all of them.
    pub(crate) fn weights_of(&self, part: &HostWeights) -> Option<BoundWeights> {
        part.in_slab_of(self.whole?, &self.slot.weights)
    }

    /// Returns the layer's ring in the slot, or `None` where the ring stays on the device.
    pub(crate) fn ring(&mut self) -> Option<&mut KvRing> {
        self.slot.ring.as_mut()
    }
}

/// The filled slots, in the order of the loads.
pub(crate) struct SlotFeed<'a> {
    ready: Receiver<Result<Filled<'a>, MemoryError>>,
    used: Sender<Filled<'a>>,
}

impl<'a> SlotFeed<'a> {
    /// Makes a feed without loads.
    pub(crate) fn empty() -> Self {
        Self {
            ready: channel().1,
            used: channel().0,
        }
    }

    /// Waits for the next load and returns its slot.
    ///
    /// # Errors
    /// The upload failed, or no load is left.
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
        // The writing thread ends early only with an error of its own, which is reported instead.
        drop(self.used.send(filled));
    }
}

/// Runs `work` while `loads` pass through the slots of `pool`, and returns when every new ring row
/// is written back. `work` takes each load from the feed and gives its slot back. After a `work`
/// that failed or stopped, the pool may have fewer slots.
///
/// # Errors
/// The error of `work`; a copy that the device refuses.
pub(crate) fn through_slots<'l, T>(
    memory: &dyn Memory,
    pool: &mut Vec<Slot>,
    loads: &[Load<'l>],
    windows: &[Window],
    work: impl FnOnce(&SlotFeed<'l>) -> Result<T, EngineError>,
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
            let feed = SlotFeed { ready, used };
            work(&feed)
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
        // No thread waits for a slot once every load has had one.
        drop(freed.send(slot));
    }
    Ok(())
}

/// Locks a ring. A ring whose holder panicked is locked all the same: the panic ends the run, and
/// no one reads the rows.
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

    /// Host memory whose copies take `nanos_per_byte` for each byte.
    #[derive(Debug)]
    struct Slow {
        inner: Arc<HostMemory>,
        nanos_per_byte: u64,
        /// Durations of the copies, in milliseconds.
        took: Mutex<Vec<f64>>,
    }

    /// Sleeps, and returns the milliseconds that the sleep really took.
    fn asleep(wanted: Duration) -> f64 {
        let begun = Instant::now();
        thread::sleep(wanted);
        begun.elapsed().as_secs_f64() * 1e3
    }

    /// Returns the time at which the last layer is computed, with two slots. A copy waits for the
    /// copy before it and for its slot. A computation waits for its copy and for the computation
    /// before.
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
                through_slots(&memory, &mut pool, &loads, &[], |feed| {
                    for layer in 0..LAYERS {
                        let filled = feed.next()?;
                        let set = filled.weights().unwrap();
                        computed.push(asleep(Duration::from_millis(compute)));
                        let (_, w) = set.iter().next().unwrap();
                        assert!(w.as_slice::<f32>().iter().all(|&v| v == layer as f32));
                        drop(set);
                        feed.give_back(filled);
                    }
                    Ok(())
                })
                .unwrap();
                let took = begun.elapsed().as_secs_f64() * 1e3;
                let copies = std::mem::take(&mut *memory.took.lock().unwrap());
                (took, copies, computed)
            };
            // A busy machine wakes sleepers late, and the delay differs from sleep to sleep. So a
            // pass is compared with the durations of its own sleeps. If the sleeps took turns, the
            // pass would take their sum. If they overlap, it takes the least time that two slots
            // allow, and some time that is lost between sleeps. A busy machine loses more, so a
            // pass may be repeated.
            let overlapped = (0..8).any(|_| {
                let (took, copies, computed) = pass();
                let best = two_slots(&copies, &computed);
                let sum = copies.iter().chain(&computed).sum::<f64>();
                println!(
                    "{copy} ms copy, {compute} ms compute: \
                     {took:.1} ms, at best {best:.1}, in turn {sum:.1}"
                );
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
            through_slots(&*device, &mut pool, &loads, &windows, |feed| {
                let mut filled = feed.next()?;
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
                feed.give_back(filled);
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
    fn a_layer_that_fails_ends_the_feed() {
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
        let error = through_slots(
            &*memory,
            &mut pool,
            &loads.collect::<Vec<_>>(),
            &[],
            |feed| {
                feed.give_back(feed.next()?);
                drop(feed.next()?);
                Err::<(), _>(EngineError::Memory {
                    component: "dit_layer.01".to_owned(),
                    reason: "as planned".to_owned(),
                })
            },
        );
        assert!(matches!(error, Err(EngineError::Memory { .. })));
    }
}
