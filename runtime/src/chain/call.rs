//! Packets that travel down a chain: a call (lanes with their tables) or a prefill. Positions,
//! timesteps and tables of a lane are computed here from numbers, once per call. Stages only bind
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use engines::contract::DType;
use engines::tensor::Tensor;
use ndarray::{Array, Array1, ArrayView2, Axis, stack};

use crate::numbers::geometry::Geometry;
use crate::numbers::rope::{Rope, Table, ref_shift};
use crate::numbers::schedule::{self, ScheduleError};
use crate::numbers::solver::{Path, Sampling};
use crate::placement::wavefront::Item;

/// Keys and values of the sink and of the text for one layer. They are the same for every lane,
/// step and block of an anchor.
pub(crate) struct LayerCondition {
    /// `[1, N, C, d]`, normed, not roped.
    pub sink_k: Tensor,
    /// Values of the sink, of the shape of its keys.
    pub sink_v: Tensor,
    /// `[1, N, M, d]`.
    pub text_k: Tensor,
    /// Values of the text, of the shape of its keys.
    pub text_v: Tensor,
}

/// A layer's condition on one device.
#[derive(Clone)]
pub(crate) struct Placed {
    /// Memory in which it lies, see [`crate::placement::devices::Devices::home`].
    pub home: usize,
    /// Keys and values.
    pub condition: Arc<LayerCondition>,
}

/// The latents that an anchor is made from.
#[derive(Clone, Debug)]
pub(crate) struct AnchorInput {
    /// Latents of the reference picture, `[1, Z, 1, H/8, W/8]`.
    pub ref_latents: Tensor,
    /// Latents of the motion history, oldest first, `[1, Z, 19, H/8, W/8]`.
    pub motion_latents: Tensor,
}

/// Conditions of a block without its audio: those of each layer, once on every device that runs the
/// layer. Calls share them, and the last call frees them.
pub(crate) struct Anchor {
    /// Number of the anchor: 0 for the picture's, 1 for the one after the swap.
    pub index: usize,
    /// Conditions by layer, one for each memory.
    pub layers: Vec<Vec<Placed>>,
}

impl Anchor {
    /// Returns a layer's condition in the memory `home`, or `None` if it does not lie there.
    pub(crate) fn of(&self, layer: usize, home: usize) -> Option<&LayerCondition> {
        let placed = self.layers.get(layer)?.iter().find(|p| p.home == home)?;
        Some(&placed.condition)
    }
}

/// Audio of one block, one row an actor.
#[derive(Clone, Debug)]
pub(crate) struct BlockAudio {
    /// `[1, A, F, D]`.
    pub global: Tensor,
    /// `[1, A, F, K, D]`.
    pub local: Tensor,
    /// Mask of the tokens in which each actor is heard, `[1, A, F, h*w]`.
    pub mask: Tensor,
}

/// One lane of a call.
pub(crate) struct Lane<'a> {
    /// Block and step.
    pub item: Item,
    /// Distance of the reference token, 4..=30.
    pub relative_dist: u32,
    /// `[1, Z, F, H/8, W/8]`.
    pub latents: &'a Tensor,
    /// Latents of the pose, of the shape of `latents`; `None` without a pose video.
    pub pose_latents: Option<&'a Tensor>,
    /// Audio of the block.
    pub audio: &'a BlockAudio,
}

/// Values that only live between two stages.
pub(crate) struct Flow {
    /// Memory in which they lie, see [`crate::placement::devices::Devices::home`].
    pub home: usize,
    /// `[B, F*h*w, D]`.
    pub hidden: Tensor,
    /// `[B, F, D]`.
    pub e: Tensor,
    /// `[B, F, 6, D]`.
    pub e0: Tensor,
}

/// One call of `B` lanes on its way. Shapes as the ports of the same names.
pub(crate) struct Call {
    /// Items of the lanes.
    pub items: Vec<Item>,
    /// Conditions of the layers.
    pub anchor: Arc<Anchor>,
    /// Noisy latents.
    pub latents: Tensor,
    /// Latents of the pose.
    pub pose_latents: Tensor,
    /// Sinusoid of the timestep.
    pub sinusoid: Tensor,
    /// Sigma of the step and of the next one, `[B, 2]`.
    pub sigmas: Tensor,
    /// Cosines and sines for the block.
    pub rope: (Tensor, Tensor),
    /// Cosines and sines for the sink.
    pub sink_rope: (Tensor, Tensor),
    /// First ring row that the block writes, `[B]`.
    pub slot: Tensor,
    /// Filled rows of sink and ring, `[B]`.
    pub kv_len: Tensor,
    /// Audio of the blocks.
    pub audio: BlockAudio,
    /// Hidden states, once the embedding ran.
    pub flow: Option<Flow>,
    /// Results, once the head ran.
    pub output: Option<CallOutput>,
    /// Extra outputs by `component/tap`; only what the load options asked for.
    pub taps: BTreeMap<String, Tensor>,
}

/// Results of a call, `[B, Z, F, H/8, W/8]` each.
pub(crate) struct CallOutput {
    /// The predicted noise.
    pub noise_pred: Tensor,
    /// Latents of the next step.
    pub next_latents: Tensor,
}

/// Values of a prefill that only live between two stages.
pub(crate) struct SinkFlow {
    /// Memory in which they lie.
    pub home: usize,
    /// `[1, C, D]`.
    pub hidden: Tensor,
    /// `[1, 1, 6, D]`.
    pub e0: Tensor,
}

/// The sink prefill on its way.
pub(crate) struct Prefill {
    /// Number of the anchor: 0 for the picture's, 1 for the one after the swap.
    pub index: usize,
    /// `[1, Z, 1, H/8, W/8]`.
    pub ref_latents: Tensor,
    /// `[1, Z, 19, H/8, W/8]`, oldest first.
    pub motion_latents: Tensor,
    /// `[1, M, D]`.
    pub text: Arc<Tensor>,
    /// Unshifted tables, `[1, C, p]`.
    pub rope: (Tensor, Tensor),
    /// Hidden states, once the embedding ran.
    pub flow: Option<SinkFlow>,
    /// Conditions of the layers that ran.
    pub layers: Vec<Placed>,
    /// Extra outputs by `component/tap`.
    pub taps: BTreeMap<String, Tensor>,
}

/// Tables of positions and timesteps.
pub(crate) struct Tables {
    geometry: Geometry,
    rope: Rope,
    path: Path,
    /// Passes of a step.
    passes: usize,
}

impl Tables {
    /// Computes the tables of a run of `steps` denoising steps.
    ///
    /// # Errors
    /// There is no schedule of so many steps.
    pub(crate) fn new(geometry: Geometry, steps: usize) -> Result<Self, ScheduleError> {
        Self::sampled(geometry, steps, Sampling::default())
    }

    /// As [`Self::new`], with another solver or shift.
    ///
    /// # Errors
    /// There is no schedule of so many steps, or with such a shift.
    pub(crate) fn sampled(
        geometry: Geometry,
        steps: usize,
        sampling: Sampling,
    ) -> Result<Self, ScheduleError> {
        let (h, w) = geometry.tokens;
        Ok(Self {
            rope: Rope::new(h, w, geometry.head_dim),
            path: Path::new(sampling, steps)?,
            passes: 1,
            geometry,
        })
    }

    /// The same tables, for steps of several passes.
    #[must_use]
    pub(crate) fn with_passes(self, passes: usize) -> Self {
        Self { passes, ..self }
    }

    /// Returns the denoising step of an item, and its pass.
    pub(crate) fn step_and_pass(&self, item: &Item) -> (usize, usize) {
        (item.step / self.passes, item.step % self.passes)
    }

    /// Returns the passes of a step.
    pub(crate) fn passes(&self) -> usize {
        self.passes
    }

    /// Returns the solver's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the sizes of the video.
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Makes a call of `lanes`, whose steps are contiguous and ascending.
    ///
    /// # Panics
    /// If there are no lanes.
    pub(crate) fn call(&self, lanes: &[Lane<'_>], anchor: Arc<Anchor>) -> Call {
        let g = &self.geometry;
        let step = |l: &Lane<'_>| self.step_and_pass(&l.item).0;
        let first_frame = |l: &Lane<'_>| g.first_frame(l.item.block);
        let shift = |l: &Lane<'_>| ref_shift(first_frame(l), l.relative_dist);
        let noisy = |l: &Lane<'_>| self.rope.noisy(first_frame(l));
        let sink = |l: &Lane<'_>| self.rope.cond(shift(l));
        let time = |l: &Lane<'_>| schedule::sinusoid(self.path.timesteps()[step(l)]);
        let time: Vec<_> = lanes.iter().map(time).collect();
        let time_shape = (lanes.len(), g.block_frames, schedule::FREQUENCIES);
        let zeros = Tensor::zeros(DType::F32, &g.latents_shape(g.block_frames));
        Call {
            anchor,
            latents: Tensor::stack(lanes.iter().map(|l| l.latents.view())),
            pose_latents: Tensor::stack(
                lanes
                    .iter()
                    .map(|l| l.pose_latents.unwrap_or(&zeros).view()),
            ),
            sinusoid: Array::from_shape_fn(time_shape, |(lane, _, at)| time[lane][at]).into(),
            sigmas: Array::from_shape_fn((lanes.len(), 2), |(lane, end)| {
                self.path.sigmas()[step(&lanes[lane]) + end]
            })
            .into(),
            rope: tables(&lanes.iter().map(noisy).collect::<Vec<_>>()),
            sink_rope: tables(&lanes.iter().map(sink).collect::<Vec<_>>()),
            slot: per_lane(lanes, |l| g.slot(l.item.block)),
            kv_len: per_lane(lanes, |l| g.sink_tokens + g.filled(l.item.block)),
            audio: BlockAudio {
                global: Tensor::stack(lanes.iter().map(|l| l.audio.global.view())),
                local: Tensor::stack(lanes.iter().map(|l| l.audio.local.view())),
                mask: Tensor::stack(lanes.iter().map(|l| l.audio.mask.view())),
            },
            flow: None,
            output: None,
            taps: BTreeMap::new(),
            items: lanes.iter().map(|l| l.item).collect(),
        }
    }

    /// Makes the prefill of anchor `index`.
    pub(crate) fn prefill(
        &self,
        index: usize,
        ref_latents: Tensor,
        motion_latents: Tensor,
        text: Arc<Tensor>,
    ) -> Prefill {
        let rope = tables(&[self.rope.cond(0)]);
        let (flow, layers, taps) = (None, Vec::new(), BTreeMap::new());
        Prefill {
            index,
            ref_latents,
            motion_latents,
            text,
            rope,
            flow,
            layers,
            taps,
        }
    }
}

/// Returns one number for each lane, `[B]`.
fn per_lane(lanes: &[Lane<'_>], number: impl Fn(&Lane<'_>) -> usize) -> Tensor {
    lanes
        .iter()
        .map(|l| number(l) as i64)
        .collect::<Array1<i64>>()
        .into()
}

/// Joins the rotary tables of the lanes: cosines and sines, `[B, tokens, head_dim/2]` each.
fn tables(lanes: &[Table]) -> (Tensor, Tensor) {
    let join = |part: fn(&Table) -> ArrayView2<'_, f32>| {
        let parts: Vec<_> = lanes.iter().map(part).collect();
        stack(Axis(0), &parts).expect("tables of one shape").into()
    };
    (join(|t| t.cos.view()), join(|t| t.sin.view()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sizes::geometry;

    #[test]
    fn every_lane_has_its_own_step_slot_length_and_tables() {
        let g = geometry(48);
        let tables = Tables::new(g.clone(), 4).unwrap();
        let latents = Tensor::zeros(DType::F32, &g.latents_shape(3));
        let token = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        let audio = BlockAudio {
            global: token(&[1, 1, 3, 8]),
            local: token(&[1, 1, 3, 5, 8]),
            mask: token(&[1, 1, 3, 16]),
        };
        let lane = |block, step| Lane {
            item: Item { block, step },
            relative_dist: 30,
            latents: &latents,
            pose_latents: None,
            audio: &audio,
        };
        let anchor = Arc::new(Anchor {
            index: 0,
            layers: Vec::new(),
        });
        let call = tables.call(&[lane(5, 1), lane(4, 2)], anchor);
        assert_eq!(call.slot.as_slice::<i64>(), [48, 0]);
        assert_eq!(call.kv_len.as_slice::<i64>(), [40 + 192, 40 + 192]);
        assert_eq!(call.sigmas.shape(), [2, 2]);
        assert_eq!(
            call.sigmas.as_slice::<f32>()[1],
            call.sigmas.as_slice::<f32>()[2],
            "one lane ends where the next begins"
        );
        assert_eq!(call.rope.0.shape(), [2, 48, 2]);
        assert_eq!(call.sink_rope.1.shape(), [2, 40, 2]);
        assert_ne!(
            call.rope.0.lanes(0..1).bytes(),
            call.rope.0.lanes(1..2).bytes()
        );
        assert_eq!(call.sinusoid.shape(), [2, 3, 256]);
        assert_eq!(
            (call.slot.shape(), call.latents.shape()),
            (&[2usize][..], &[2, 16, 3, 8, 8][..])
        );
    }
}
