//! The weights of one component: mapped on the host, and as the tensors that a graph with bound
//! weights takes, wherever they lie.

use crate::manifest::{self, ManifestError, Models, WeightEntry};
use crate::memory::{
    Block, Charge, Class, HostMemory, Ledger, Locked, Memory, MemoryError, Pages, Span,
};
use crate::tensor::Tensor;
use memmap2::Mmap;
use std::ops::Range;
use std::sync::Arc;

/// Offsets in a slab are multiples of this, as in the data files.
const ALIGNMENT: usize = 256;

/// One component's weights in a mapped data file, or in host memory that stands for one.
#[derive(Clone)]
pub struct HostWeights {
    source: Option<Source>,
    /// Name in the graph, and the entry; in file order.
    named: Vec<(String, WeightEntry)>,
    /// Stretches of the file that hold them, and where each begins in a slab.
    runs: Vec<Run>,
}

/// Memory that holds the bytes.
#[derive(Clone)]
enum Source {
    File(Arc<Mmap>),
    /// The file's bytes from `start` on.
    Block {
        block: Arc<Block>,
        start: usize,
    },
}

impl Source {
    fn span(&self, run: Run) -> Span<'_> {
        match self {
            Self::File(map) => Span::host(map).part(run.file, run.len),
            Self::Block { block, start } => block.span(run.file - start, run.len),
        }
    }

    fn tensor(&self, w: &WeightEntry) -> Tensor {
        let at = size(w.offset);
        match self {
            Self::File(map) => Tensor::mapped(Arc::clone(map), at, w.dtype, &w.shape),
            Self::Block { block, start } => {
                Tensor::in_block(Arc::clone(block), at - start, w.dtype, &w.shape)
            }
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

    /// Copies weights that no file holds, such as those of a test, to host memory.
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
        let source = Source::Block {
            block: Arc::new(block),
            start: 0,
        };
        Ok(Self::at(Some(source), named))
    }

    /// Copies the weights to host memory that streams to `memory` at the link's rate, counted in
    /// `host`.
    ///
    /// # Errors
    /// The budget of `host` or the system refuses.
    pub fn locked_for(&self, memory: &dyn Memory, host: &Arc<Ledger>) -> Result<Self, MemoryError> {
        let Some(source) = &self.source else {
            return Ok(self.clone());
        };
        // A stretch may hold gaps that are nobody's, up to the size of the file; weights of a
        // component lie together.
        let start = self.runs.first().map_or(0, |r| r.file);
        let end = self.runs.last().map_or(0, |r| r.file + r.len);
        let mut block = memory.host_alloc(host, end - start, Class::Weights)?;
        for r in &self.runs {
            memory.copy(source.span(*r), block.span_mut(r.file - start, r.len))?;
        }
        let block = Arc::new(block);
        Ok(Self {
            source: Some(Source::Block { block, start }),
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

    /// Counts the bytes of a slab that holds them.
    pub fn slab_bytes(&self) -> usize {
        slab_end(&self.runs)
    }

    /// Views the mapped file: nothing is copied, and the tensors lie on the host.
    pub fn mapped(&self) -> BoundWeights {
        let source = || self.source.as_ref().expect("a weight has a file");
        let named = self.named.iter();
        named
            .map(|(n, w)| (n.clone(), source().tensor(w)))
            .collect()
    }

    /// Copies the weights into a device's memory, at the start of `slab`.
    ///
    /// # Errors
    /// The device refuses.
    ///
    /// # Panics
    /// If `slab` is smaller than [`Self::slab_bytes`].
    pub fn upload(&self, memory: &dyn Memory, slab: &mut Block) -> Result<(), MemoryError> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        for r in &self.runs {
            memory.copy(source.span(*r), slab.span_mut(r.slab, r.len))?;
        }
        Ok(())
    }

    /// Returns the tensors in a slab that the weights were uploaded to.
    pub fn in_slab(&self, slab: &Arc<Block>) -> BoundWeights {
        self.in_slab_of(self, slab)
            .expect("every weight lies in a run")
    }

    /// Returns the tensors in a slab that the weights of `whole` were uploaded to, another
    /// component of the same file. A graph that takes some of another's weights needs no copy of
    /// its own. Returns `None` if one of them is not among those of `whole`.
    pub fn in_slab_of(&self, whole: &Self, slab: &Arc<Block>) -> Option<BoundWeights> {
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
            .collect::<Option<BoundWeights>>()
    }

    /// Copies the weights to a device's memory, counted as weights.
    ///
    /// # Errors
    /// The device or its budget refuses.
    pub fn resident(&self, memory: &dyn Memory) -> Result<BoundWeights, MemoryError> {
        let mut slab = memory.alloc(self.slab_bytes(), Class::Weights)?;
        self.upload(memory, &mut slab)?;
        Ok(self.in_slab(&Arc::new(slab)))
    }
}

/// Weights that stream, made ready once for all stages that stream them.
pub struct Streaming {
    /// The weights in the order in which they were given.
    pub weights: Vec<HostWeights>,
    /// The reason why copies from them are as slow as from any memory, if they are.
    pub refused: Option<MemoryError>,
    _guards: Vec<(Locked, Charge)>,
}

impl Streaming {
    /// Locks the pages of the files that hold `weights`, each page once. Where the system refuses,
    /// it copies them to locked memory; where it refuses that too, it leaves them. Locked bytes are
    /// counted in `host`. Nothing happens where `memory` gains nothing by it.
    pub fn new(weights: Vec<HostWeights>, memory: &dyn Memory, host: &Arc<Ledger>) -> Self {
        let (weights, refused, guards) = match lock_files(&weights, memory, host) {
            Ok(guards) => (weights, None, guards),
            Err(_) => {
                let copies = weights.iter().map(|w| w.locked_for(memory, host));
                match copies.collect::<Result<Vec<_>, _>>() {
                    Ok(copies) => (copies, None, Vec::new()),
                    Err(refused) => (weights, Some(refused), Vec::new()),
                }
            }
        };
        Self {
            weights,
            refused,
            _guards: guards,
        }
    }
}

fn lock_files(
    weights: &[HostWeights],
    memory: &dyn Memory,
    host: &Arc<Ledger>,
) -> Result<Vec<(Locked, Charge)>, MemoryError> {
    let mut guards = Vec::new();
    for (map, range) in pages(weights) {
        let bytes = range.len() as u64;
        if let Some(guard) = memory.lock_pages(Arc::new(Pages::new(map, range)))? {
            guards.push((guard, host.charge(bytes, Class::Weights)?));
        }
    }
    Ok(guards)
}

/// The largest page of the hosts that CUDA runs on. A page must not be locked twice, so stretches
/// that share a page are merged.
const PAGE: usize = 1 << 16;

/// Lists the stretches of files that hold `weights`, in whole pages that no two stretches share.
fn pages(weights: &[HostWeights]) -> Vec<(Arc<Mmap>, Range<usize>)> {
    let mut all: Vec<(&Arc<Mmap>, Range<usize>)> = Vec::new();
    for w in weights {
        let Some(Source::File(map)) = &w.source else {
            continue;
        };
        let stretch = |r: &Run| {
            let end = (r.file + r.len).next_multiple_of(PAGE).min(map.len());
            (map, r.file / PAGE * PAGE..end)
        };
        all.extend(w.runs.iter().map(stretch));
    }
    all.sort_by_key(|(map, range)| (map.as_ptr().addr(), range.start));
    let mut merged: Vec<(Arc<Mmap>, Range<usize>)> = Vec::new();
    for (map, range) in all {
        match merged.last_mut() {
            Some((last, held)) if Arc::ptr_eq(last, map) && range.start <= held.end => {
                held.end = held.end.max(range.end);
            }
            _ => merged.push((Arc::clone(map), range)),
        }
    }
    merged
}

fn slab_end(runs: &[Run]) -> usize {
    runs.last()
        .map_or(0, |r| (r.slab + r.len).next_multiple_of(ALIGNMENT))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a mapped file fits the address space")
}

impl Models {
    /// Maps the weights of one component, by their names in its graph. Nothing is copied.
    ///
    /// # Errors
    /// The component, or a weight that it names, does not exist.
    pub fn weights(&self, component: &str) -> Result<HostWeights, ManifestError> {
        let (entry, _) = self.component(component)?;
        let at = self
            .manifest
            .data
            .iter()
            .position(|d| d.file.file == entry.data);
        let named = entry.weights.iter().map(|(input, name)| {
            let weight = at.and_then(|at| {
                self.manifest.data[at]
                    .weights
                    .iter()
                    .find(|w| w.name == *name)
            });
            weight
                .map(|w| (input.clone(), w.clone()))
                .ok_or_else(|| ManifestError::Weight {
                    path: self.dir.join(manifest::FILE),
                    component: component.to_owned(),
                    weight: name.clone(),
                })
        });
        let named = named.collect::<Result<Vec<_>, _>>()?;
        Ok(HostWeights::new(
            at.map(|at| Arc::clone(&self.maps[at])),
            named,
        ))
    }
}

/// Weights of one component, by their names in its graph, ready to be bound.
#[derive(Clone, Debug, Default)]
pub struct BoundWeights {
    tensors: Vec<(String, Tensor)>,
}

impl BoundWeights {
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

impl FromIterator<(String, Tensor)> for BoundWeights {
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

    fn values(set: &BoundWeights) -> Vec<f32> {
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
    fn weights_in_one_file_are_locked_as_one_stretch_and_far_ones_apart() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(10 * PAGE as u64 + 100).unwrap();
        let map = Arc::new(map(file.path()));
        let at = |offset: usize, length: usize| {
            let entry = WeightEntry {
                name: "w".to_owned(),
                key: "w".to_owned(),
                dtype: crate::contract::DType::F32,
                shape: vec![length / 4],
                offset: offset as u64,
                length: length as u64,
                transposed: false,
            };
            HostWeights::new(Some(Arc::clone(&map)), vec![("w".to_owned(), entry)])
        };
        // Two that share a page, one of them given twice; a gap; the last page, which the file does
        // not fill.
        let near = [at(0, PAGE + 4), at(PAGE + 256, PAGE), at(0, PAGE + 4)];
        let far = [at(9 * PAGE, 400), at(10 * PAGE, 100)];
        let all = [&near[..], &far[..]].concat();
        let ranges: Vec<_> = pages(&all).into_iter().map(|(_, r)| r).collect();
        assert_eq!(ranges, [0..3 * PAGE, 9 * PAGE..10 * PAGE + 100]);
        let memory = HostMemory::new("cpu:1", 0);
        let host = Ledger::new("host", u64::MAX);
        let same = Streaming::new(all, &*memory, &host);
        assert!(same.refused.is_none() && host.counts().total() == 0);
        assert!(
            same.weights
                .iter()
                .all(|w| matches!(w.source, Some(Source::File(_))))
        );
    }

    #[expect(unsafe_code, reason = "a mapped file")]
    fn map(path: &std::path::Path) -> Mmap {
        let file = std::fs::File::open(path).unwrap();
        // SAFETY: a file of this test's own.
        unsafe { Mmap::map(&file) }.unwrap()
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
