//! The weights of one component: mapped on the host, and as a set of tensors that a graph with bound weights takes, wherever they lie.
use crate::manifest::WeightEntry;
use crate::memory::{Block, Class, Memory, MemoryError, Span};
use crate::tensor::Tensor;
use memmap2::Mmap;
use std::sync::Arc;

/// Offsets in a slab are multiples of this, as in the data files.
const ALIGNMENT: usize = 256;

/// One component's weights in a mapped data file.
#[derive(Clone)]
pub struct HostWeights {
    map: Option<Arc<Mmap>>,
    /// Name in the graph, and the entry; in file order.
    named: Vec<(String, WeightEntry)>,
    /// The stretches of the file that hold them, and where each begins in a slab.
    runs: Vec<Run>,
}

/// Neighbouring weights, copied as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    file: usize,
    slab: usize,
    len: usize,
}

/// Gaps up to this many bytes are copied along rather than starting another copy.
const GAP: usize = 4096;

impl HostWeights {
    pub(crate) fn new(map: Option<Arc<Mmap>>, mut named: Vec<(String, WeightEntry)>) -> Self {
        named.sort_by_key(|(_, w)| w.offset);
        let mut runs: Vec<Run> = Vec::new();
        let mut slab = 0;
        for (_, w) in &named {
            let (at, len) = (size(w.offset), size(w.length));
            match runs.last_mut() {
                Some(r) if at <= r.file + r.len + GAP => r.len = (at + len - r.file).max(r.len),
                _ => {
                    let slab_at = slab_end(&runs);
                    runs.push(Run {
                        file: at,
                        slab: slab_at,
                        len,
                    });
                }
            }
            slab = slab_end(&runs);
        }
        debug_assert!(slab.is_multiple_of(ALIGNMENT));
        Self { map, named, runs }
    }

    /// Bytes that a slab of them takes.
    pub fn slab_bytes(&self) -> usize {
        slab_end(&self.runs)
    }

    /// Views of the mapped file: no copy, host memory.
    pub fn mapped(&self) -> WeightSet {
        let tensor = |w: &WeightEntry| {
            let map = self.map.as_ref().expect("a weight has a file");
            Tensor::mapped(Arc::clone(map), size(w.offset), w.dtype, &w.shape)
        };
        WeightSet {
            tensors: self
                .named
                .iter()
                .map(|(n, w)| (n.clone(), tensor(w)))
                .collect(),
        }
    }

    /// Copies them into a device's memory, at the start of `slab`.
    ///
    /// # Errors
    /// The device refuses. Panics when `slab` is smaller than [`Self::slab_bytes`].
    pub fn upload(&self, memory: &dyn Memory, slab: &mut Block) -> Result<(), MemoryError> {
        let Some(map) = &self.map else { return Ok(()) };
        for r in &self.runs {
            memory.copy(
                Span::host(map).part(r.file, r.len),
                slab.span_mut(r.slab, r.len),
            )?;
        }
        Ok(())
    }

    /// The set of tensors in a slab that they were uploaded to.
    pub fn in_slab(&self, slab: &Arc<Block>) -> WeightSet {
        let tensor = |w: &WeightEntry| {
            let file = size(w.offset);
            let run = self
                .runs
                .iter()
                .find(|r| r.file <= file && file < r.file + r.len.max(1))
                .expect("every weight lies in a run");
            Tensor::in_block(
                Arc::clone(slab),
                run.slab + file - run.file,
                w.dtype,
                &w.shape,
            )
        };
        WeightSet {
            tensors: self
                .named
                .iter()
                .map(|(n, w)| (n.clone(), tensor(w)))
                .collect(),
        }
    }

    /// A copy in a device's memory, counted as weights.
    ///
    /// # Errors
    /// The device's budget or the device refuses.
    pub fn resident(&self, memory: &dyn Memory) -> Result<WeightSet, MemoryError> {
        let mut slab = memory.alloc(self.slab_bytes(), Class::Weights)?;
        self.upload(memory, &mut slab)?;
        Ok(self.in_slab(&Arc::new(slab)))
    }
}

fn slab_end(runs: &[Run]) -> usize {
    runs.last()
        .map_or(0, |r| (r.slab + r.len).next_multiple_of(ALIGNMENT))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a mapped file fits the address space")
}

/// Weights of one component, by their names in its graph, ready to be bound.
#[derive(Clone, Debug, Default)]
pub struct WeightSet {
    tensors: Vec<(String, Tensor)>,
}

impl WeightSet {
    /// Every weight.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// Puts another tensor of the same type and shape in a weight's place.
    pub fn replace(&mut self, name: &str, tensor: Tensor) {
        if let Some((_, t)) = self.tensors.iter_mut().find(|(n, _)| n == name) {
            *t = tensor;
        }
    }
}

impl FromIterator<(String, Tensor)> for WeightSet {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self {
            tensors: tensors.into_iter().collect(),
        }
    }
}
