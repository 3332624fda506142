//! The KV ring of one layer, in the memory of its device or of the host. [`Geometry`] says which
//! rows a block writes and sees; the graphs say what the rows hold.

use std::ops::Range;
use std::sync::Arc;

use engines::contract::DType;
use engines::memory::{Block, Memory, MemoryError, Rows};
use engines::tensor::{Tensor, ViewMut};

use crate::chain::snapshot::RingRows;
use crate::numbers::geometry::Geometry;

/// Keys and values of one layer for a range of steps, `[steps, N, S, d]` each. A lane is a step.
pub(crate) struct KvRing {
    /// Keys.
    pub keys: Tensor,
    /// Values.
    pub values: Tensor,
}

impl KvRing {
    /// Makes an empty ring of `steps` lanes. `alloc` gives the memory of the keys and of the
    /// values, each for a number of bytes.
    ///
    /// # Errors
    /// The error of `alloc`.
    pub(crate) fn new(
        geometry: &Geometry,
        steps: usize,
        dtype: DType,
        alloc: impl Fn(usize) -> Result<Block, MemoryError>,
    ) -> Result<Self, MemoryError> {
        let shape = [
            steps,
            geometry.heads,
            geometry.ring_tokens(),
            geometry.head_dim,
        ];
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let half = || Ok(Tensor::in_block(Arc::new(alloc(bytes)?), 0, dtype, &shape));
        Ok(Self {
            keys: half()?,
            values: half()?,
        })
    }

    /// Copies `tokens` of every head from a lane of `from` to a lane of this ring. `memory` reaches
    /// both rings.
    ///
    /// # Errors
    /// The device refuses.
    ///
    /// # Panics
    /// If the rings do not have one geometry.
    pub(crate) fn copy_tokens(
        &mut self,
        lane: usize,
        from: (&Self, usize),
        tokens: &Range<usize>,
        memory: &dyn Memory,
    ) -> Result<(), MemoryError> {
        if tokens.is_empty() {
            return Ok(());
        }
        let (ring, from_lane) = from;
        let shape = self.keys.shape();
        let row = shape[3] * self.keys.dtype().size();
        let (heads, pitch) = (shape[1], shape[2] * row);
        assert_eq!(
            shape[1..],
            ring.keys.shape()[1..],
            "rings of two geometries"
        );
        let rows = Rows {
            count: heads,
            bytes: tokens.len() * row,
            from_pitch: pitch,
            to_pitch: pitch,
        };
        let start = tokens.start * row;
        for (to, from) in [
            (&mut self.keys, &ring.keys),
            (&mut self.values, &ring.values),
        ] {
            let from = from.lanes(from_lane..from_lane + 1).span();
            let mut to = to.lanes_mut(lane..lane + 1);
            let len = from.len() - start;
            let (from, to) = (from.part(start, len), to.span_mut().into_part(start, len));
            memory.copy_rows(rows, from, to)?;
        }
        Ok(())
    }

    /// Copies a lane to the host. `memory` reaches the ring.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn lane_to_host(
        &self,
        lane: usize,
        memory: &dyn Memory,
    ) -> Result<RingRows, MemoryError> {
        let half = |ring: &Tensor| {
            let from = ring.lanes(lane..lane + 1);
            let mut to = Tensor::zeros(from.dtype(), from.shape());
            memory.copy(from.span(), to.view_mut().span_mut())?;
            Ok(to)
        };
        Ok(RingRows {
            keys: half(&self.keys)?,
            values: half(&self.values)?,
        })
    }

    /// Fills a lane from the host. `memory` reaches the ring.
    ///
    /// # Errors
    /// The device refuses.
    ///
    /// # Panics
    /// If the rows have another shape.
    pub(crate) fn fill_lane(
        &mut self,
        lane: usize,
        rows: &RingRows,
        memory: &dyn Memory,
    ) -> Result<(), MemoryError> {
        for (to, from) in [
            (&mut self.keys, &rows.keys),
            (&mut self.values, &rows.values),
        ] {
            let mut to = to.lanes_mut(lane..lane + 1);
            assert_eq!(to.shape(), from.shape(), "rings of two geometries");
            memory.copy(from.view().span(), to.span_mut())?;
        }
        Ok(())
    }

    /// Returns the lanes of a contiguous range of steps, which a session writes in place.
    pub(crate) fn lanes_mut(&mut self, lanes: Range<usize>) -> (ViewMut<'_>, ViewMut<'_>) {
        (
            self.keys.lanes_mut(lanes.clone()),
            self.values.lanes_mut(lanes),
        )
    }
}
