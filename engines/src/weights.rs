//! The weights of one component: mapped on the host, and as a set of tensors that a graph with bound weights takes, wherever they lie.
use crate::manifest::WeightEntry;
use crate::memory::{Block, Class, HostMemory, Ledger, Memory, MemoryError, Span};
use crate::tensor::Tensor;
use memmap2::Mmap;
use std::sync::Arc;

/// Offsets in a slab are multiples of this, as in the data files.
const ALIGNMENT: usize = 256;

/// One component's weights in a mapped data file, or in host memory that stands for one.
#[derive(Clone)]
pub struct HostWeights {
    source: Option<Source>,
    /// Name in the graph, and the entry; in file order.
    named: Vec<(String, WeightEntry)>,
    /// The stretches of the file that hold them, and where each begins in a slab.
    runs: Vec<Run>,
}

/// Where the bytes are.
#[derive(Clone)]
enum Source {
    File(Arc<Mmap>),
    Block(Arc<Block>),
}

impl Source {
    fn span(&self) -> Span<'_> {
        match self {
            Self::File(map) => Span::host(map),
            Self::Block(block) => block.span(0, block.len()),
        }
    }

    fn tensor(&self, w: &WeightEntry) -> Tensor {
        let at = size(w.offset);
        match self {
            Self::File(map) => Tensor::mapped(Arc::clone(map), at, w.dtype, &w.shape),
            Self::Block(block) => Tensor::in_block(Arc::clone(block), at, w.dtype, &w.shape),
        }
    }
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
    pub(crate) fn new(map: Option<Arc<Mmap>>, named: Vec<(String, WeightEntry)>) -> Self {
        Self::at(map.map(Source::File), named)
    }

    /// Weights that no file holds, such as those of a test: copied to host memory once.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn from_tensors(tensors: &[(String, Tensor)]) -> Result<Self, MemoryError> {
        let mut named = Vec::new();
        let mut end = 0;
        for (name, t) in tensors {
            let length = t.view().span().len();
            named.push((
                name.clone(),
                WeightEntry {
                    name: name.clone(),
                    key: name.clone(),
                    dtype: t.dtype(),
                    shape: t.shape().to_vec(),
                    offset: end as u64,
                    length: length as u64,
                    transposed: false,
                },
            ));
            end = (end + length).next_multiple_of(ALIGNMENT);
        }
        let memory = HostMemory::unlimited();
        let mut block = memory.alloc(end, Class::Weights)?;
        for ((_, t), (_, w)) in tensors.iter().zip(&named) {
            let to = block.span_mut(size(w.offset), size(w.length));
            memory.copy(t.view().span(), to)?;
        }
        Ok(Self::at(Some(Source::Block(Arc::new(block))), named))
    }

    /// The same weights in host memory that streams to `memory` at the link's rate, counted in `host`.
    ///
    /// # Errors
    /// The budget of `host`, or the system refuses.
    pub fn locked_for(&self, memory: &dyn Memory, host: &Arc<Ledger>) -> Result<Self, MemoryError> {
        let Some(source) = &self.source else {
            return Ok(self.clone());
        };
        let end = self.named.iter().map(|(_, w)| size(w.offset + w.length));
        let mut block = memory.host_alloc(host, end.max().unwrap_or(0), Class::Weights)?;
        for r in &self.runs {
            let from = source.span().part(r.file, r.len);
            memory.copy(from, block.span_mut(r.file, r.len))?;
        }
        Ok(Self {
            source: Some(Source::Block(Arc::new(block))),
            ..self.clone()
        })
    }

    fn at(source: Option<Source>, mut named: Vec<(String, WeightEntry)>) -> Self {
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
        Self {
            source,
            named,
            runs,
        }
    }

    /// Bytes that a slab of them takes.
    pub fn slab_bytes(&self) -> usize {
        slab_end(&self.runs)
    }

    /// Views of the mapped file: no copy, host memory.
    pub fn mapped(&self) -> WeightSet {
        let source = || self.source.as_ref().expect("a weight has a file");
        let named = self.named.iter();
        named
            .map(|(n, w)| (n.clone(), source().tensor(w)))
            .collect()
    }

    /// Copies them into a device's memory, at the start of `slab`.
    ///
    /// # Errors
    /// The device refuses. Panics when `slab` is smaller than [`Self::slab_bytes`].
    pub fn upload(&self, memory: &dyn Memory, slab: &mut Block) -> Result<(), MemoryError> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        for r in &self.runs {
            let from = source.span().part(r.file, r.len);
            memory.copy(from, slab.span_mut(r.slab, r.len))?;
        }
        Ok(())
    }

    /// The set of tensors in a slab that they were uploaded to.
    pub fn in_slab(&self, slab: &Arc<Block>) -> WeightSet {
        self.in_slab_of(self, slab)
            .expect("every weight lies in a run")
    }

    /// The set of tensors in a slab that the weights of `whole`, another component of the same file, were uploaded to: a graph that takes
    /// some of another's weights needs no copy of its own. `None` when one of them is not among those of `whole`.
    pub fn in_slab_of(&self, whole: &Self, slab: &Arc<Block>) -> Option<WeightSet> {
        let tensor = |w: &WeightEntry| {
            let (file, len) = (size(w.offset), size(w.length));
            let holds = |r: &&Run| r.file <= file && file + len <= r.file + r.len;
            let run = whole.runs.iter().find(holds)?;
            let at = run.slab + file - run.file;
            Some(Tensor::in_block(Arc::clone(slab), at, w.dtype, &w.shape))
        };
        let named = self.named.iter();
        named
            .map(|(n, w)| Some((n.clone(), tensor(w)?)))
            .collect::<Option<WeightSet>>()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(values: &[f32]) -> Vec<(String, Tensor)> {
        let one = |(i, v): (usize, &f32)| (format!("w{i}"), Tensor::from_slice(&[1, 1], &[*v]));
        values.iter().enumerate().map(one).collect()
    }

    fn values(set: &WeightSet) -> Vec<f32> {
        set.iter().map(|(_, t)| t.as_slice::<f32>()[0]).collect()
    }

    #[test]
    fn mapped_and_uploaded_weights_are_the_same() {
        let host = HostWeights::from_tensors(&weights(&[1.0, 2.0, 3.0])).unwrap();
        let memory = HostMemory::new("cpu:1", 2048);
        let set = host.resident(&*memory).unwrap();
        assert_eq!(values(&set), values(&host.mapped()));
        assert_eq!(
            memory.ledger().counts().of(Class::Weights),
            host.slab_bytes() as u64
        );
    }

    #[test]
    fn a_part_of_a_slab_serves_a_graph_that_takes_fewer_weights() {
        let whole = HostWeights::from_tensors(&weights(&[1.0, 2.0, 3.0])).unwrap();
        let part = HostWeights::at(whole.source.clone(), whole.named[1..2].to_vec());
        let memory = HostMemory::new("cpu:1", 4096);
        let mut slab = memory.alloc(whole.slab_bytes(), Class::Slots).unwrap();
        whole.upload(&*memory, &mut slab).unwrap();
        let slab = Arc::new(slab);
        assert_eq!(values(&part.in_slab_of(&whole, &slab).unwrap()), [2.0]);
        let slab = Arc::new(memory.alloc(part.slab_bytes(), Class::Slots).unwrap());
        assert!(whole.in_slab_of(&part, &slab).is_none());
    }
}
