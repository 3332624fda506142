//! Adds a LoRA to weights as they are read: `W' = round(W + factor * (B @ A))`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::ops::Range;
use std::path::Path;
use std::thread;

use super::report::LoraReport;
use crate::checkpoint::dtype::StoredDType;
use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::product::product;
use crate::checkpoint::stored::StoredTensors;

/// Rows of B in one product: their sums fit a core's cache.
const ROWS: usize = 64;
/// Fewest multiply-adds for which threads save more time than they cost.
const PARALLEL_FROM: usize = 1 << 24;

/// A LoRA that is bound to a checkpoint: the keys of A and B for each base key.
#[derive(Debug)]
pub(crate) struct Merge {
    pub(super) tensors: StoredTensors,
    pub(super) pairs: BTreeMap<String, Pair>,
    pub(super) report: LoraReport,
}

/// The two matrices of one weight.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    /// Key of A, `[rank, in]`.
    pub(super) a: String,
    /// Key of B, `[out, rank]`.
    pub(super) b: String,
    pub(super) rank: usize,
    /// Factor of `B @ A`, with the strength of the file.
    pub(super) factor: f32,
}

impl Merge {
    pub(crate) fn report(&self) -> &LoraReport {
        &self.report
    }

    pub(crate) fn targets(&self, key: &str) -> bool {
        self.pairs.contains_key(key)
    }

    /// Returns the keys of the base tensors that the LoRA changes, with the rank of each change.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = (&str, usize)> {
        self.pairs.iter().map(|(key, p)| (key.as_str(), p.rank))
    }

    /// Returns every file that holds one of the LoRA's tensors.
    pub(crate) fn files(&self) -> BTreeSet<&Path> {
        self.tensors.files()
    }

    /// Adds `factor * (B @ A)` to `w` `[out, in]` on all cores and rounds to `dtype`.
    pub(crate) fn apply(
        &self,
        key: &str,
        w: &mut [f32],
        dtype: StoredDType,
    ) -> Result<(), CheckpointError> {
        if let Some(pair) = self.pairs.get(key) {
            let delta = Delta {
                a: &self.tensors.read_f32(&pair.a)?,
                b: &self.tensors.read_f32(&pair.b)?,
                rank: pair.rank,
                factor: pair.factor,
            };
            delta.add(w, dtype);
        }
        Ok(())
    }

    /// Adds `factor * (B @ A)` to some rows and columns, `w` `[rows, columns]`, on the caller's
    /// thread. Each value has the same bits as in [`Merge::apply`].
    pub(crate) fn apply_tile(
        &self,
        key: &str,
        (rows, columns): (Range<usize>, Range<usize>),
        w: &mut [f32],
        dtype: StoredDType,
    ) -> Result<(), CheckpointError> {
        let Some(pair) = self.pairs.get(key) else {
            return Ok(());
        };
        let (rank, width, mut part) = (pair.rank, columns.len(), Vec::new());
        let b = self
            .tensors
            .read_f32_range(&pair.b, rows.start * rank..rows.end * rank)?;
        self.tensors
            .read_f32_tile(&pair.a, 0..rank, &columns, &mut part)?;
        let delta = Delta {
            a: &part,
            b: &b,
            rank,
            factor: pair.factor,
        };
        delta.add_rows(w, width, dtype);
        Ok(())
    }
}

/// `factor * (b @ a)`, `a` `[rank, in]`, `b` `[out, rank]`.
struct Delta<'a> {
    a: &'a [f32],
    b: &'a [f32],
    rank: usize,
    factor: f32,
}

impl Delta<'_> {
    fn add(&self, w: &mut [f32], dtype: StoredDType) {
        let (columns, rows) = (self.a.len() / self.rank, self.b.len() / self.rank);
        if columns == 0 || rows == 0 {
            return;
        }
        let threads = if w.len().saturating_mul(self.rank) < PARALLEL_FROM {
            1
        } else {
            thread::available_parallelism().map_or(1, NonZero::get)
        };
        let share = rows.div_ceil(threads);
        thread::scope(|scope| {
            for (w, b) in w
                .chunks_mut(share * columns)
                .zip(self.b.chunks(share * self.rank))
            {
                let part = Delta { b, ..*self };
                scope.spawn(move || part.add_rows(w, columns, dtype));
            }
        });
    }

    /// Adds [`ROWS`] rows at a time, so that their sums stay in a core's cache.
    fn add_rows(&self, w: &mut [f32], columns: usize, dtype: StoredDType) {
        let mut sums = vec![0f32; ROWS.min(w.len() / columns.max(1)) * columns];
        for (w, b) in w
            .chunks_mut(ROWS * columns)
            .zip(self.b.chunks(ROWS * self.rank))
        {
            let sums = &mut sums[..w.len()];
            product(self.a, b, self.rank, columns, sums);
            for (w, &mut sum) in w.iter_mut().zip(sums) {
                *w += self.factor * sum;
            }
            dtype.round_all(w);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(i: usize) -> f32 {
        (i as f32 * 0.37).sin()
    }

    #[test]
    fn threads_and_blocks_do_not_change_the_sum() {
        let (rows, columns, rank) = (2 * ROWS + 37, 525, 5);
        let a: Vec<f32> = (0..rank * columns).map(wave).collect();
        let b: Vec<f32> = (0..rows * rank).map(|i| wave(i + 3)).collect();
        let delta = Delta {
            a: &a,
            b: &b,
            rank,
            factor: 0.25,
        };
        let mut w = vec![1.0; rows * columns];
        delta.add(&mut w, StoredDType::F32);
        let mut parts = vec![1.0; rows * columns];
        for (w, b) in parts.chunks_mut(10 * columns).zip(b.chunks(10 * rank)) {
            Delta { b, ..delta }.add_rows(w, columns, StoredDType::F32);
        }
        assert_eq!(w, parts);
        let dot: f32 = (0..rank)
            .map(|r| b[20 * rank + r] * a[r * columns + 520])
            .sum();
        assert!((w[20 * columns + 520] - (1.0 + 0.25 * dot)).abs() < 1e-6);
    }
}
