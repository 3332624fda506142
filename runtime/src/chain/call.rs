//! What travels down a chain: a call (lanes with their tables) or a prefill. Everything that a lane needs besides weights and its ring is
//! worked out here from numbers, once per call; stages only bind it.

use std::collections::BTreeMap;
use std::sync::Arc;

use engines::contract::DType;
use engines::tensor::Tensor;
use ndarray::Array2;

use crate::numbers::geometry::Geometry;
use crate::numbers::rope::{Rope, Table, ref_shift};
use crate::numbers::schedule::{self, ScheduleError};
use crate::placement::wavefront::Item;

/// Keys and values of the sink and of the text for one layer: the same for every lane, step and block of an anchor.
pub(crate) struct LayerCondition {
    /// `[1, N, C, d]`, normed, not roped.
    pub sink_k: Tensor,
    pub sink_v: Tensor,
    /// `[1, N, M, d]`.
    pub text_k: Tensor,
    pub text_v: Tensor,
}

/// A layer's condition on one device.
#[derive(Clone)]
pub(crate) struct Placed {
    /// Memory that it lies in, see [`crate::placement::devices::Devices::home`].
    pub home: usize,
    pub condition: Arc<LayerCondition>,
}

/// What a block is conditioned on besides its audio: for each layer, once on every device that runs the layer. Calls share it, and it is
/// freed with the last of them.
pub(crate) struct Anchor {
    /// 0 for the picture's, 1 for the one after the swap.
    pub index: usize,
    pub layers: Vec<Vec<Placed>>,
}

impl Anchor {
    /// A layer's condition in the memory `home`, if it is there.
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
    /// Where each actor is heard, `[1, A, F, h*w]`.
    pub mask: Tensor,
}

/// One lane of a call.
pub(crate) struct Lane<'a> {
    pub item: Item,
    /// Distance of the reference token, 4..=30.
    pub relative_dist: u32,
    /// `[1, Z, F, H/8, W/8]`.
    pub latents: &'a Tensor,
    /// As `latents`; `None` without a pose video.
    pub pose_latents: Option<&'a Tensor>,
    pub audio: &'a BlockAudio,
}

/// Values that only live between two stages.
pub(crate) struct Flow {
    /// Memory that they lie in, see [`crate::placement::devices::Devices::home`].
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
    pub items: Vec<Item>,
    pub anchor: Arc<Anchor>,
    pub latents: Tensor,
    pub pose_latents: Tensor,
    pub sinusoid: Tensor,
    pub sigmas: Tensor,
    pub rope: (Tensor, Tensor),
    pub sink_rope: (Tensor, Tensor),
    pub slot: Tensor,
    pub kv_len: Tensor,
    pub audio: BlockAudio,
    pub flow: Option<Flow>,
    pub output: Option<CallOutput>,
    /// Extra outputs by `component/tap`; only what the load options asked for.
    pub taps: BTreeMap<String, Tensor>,
}

/// What a call gives, `[B, Z, F, H/8, W/8]` each.
pub(crate) struct CallOutput {
    pub noise_pred: Tensor,
    pub next_latents: Tensor,
}

/// As [`Flow`], of a prefill.
pub(crate) struct SinkFlow {
    pub home: usize,
    /// `[1, C, D]`.
    pub hidden: Tensor,
    /// `[1, 1, 6, D]`.
    pub e0: Tensor,
}

/// The sink prefill on its way.
pub(crate) struct Prefill {
    pub index: usize,
    /// `[1, Z, 1, H/8, W/8]`.
    pub ref_latents: Tensor,
    /// `[1, Z, 19, H/8, W/8]`, oldest first.
    pub motion_latents: Tensor,
    /// `[1, M, D]`.
    pub text: Arc<Tensor>,
    /// Unshifted tables, `[1, C, p]`.
    pub rope: (Tensor, Tensor),
    pub flow: Option<SinkFlow>,
    pub layers: Vec<Placed>,
    pub taps: BTreeMap<String, Tensor>,
}

/// Everything that depends on positions and timesteps.
pub(crate) struct Tables {
    geometry: Geometry,
    rope: Rope,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
}

impl Tables {
    /// Tables of a run of `steps` denoising steps.
    ///
    /// # Errors
    /// As [`schedule::sigmas`].
    pub(crate) fn new(geometry: Geometry, steps: usize) -> Result<Self, ScheduleError> {
        let (h, w) = geometry.tokens;
        Ok(Self {
            rope: Rope::new(h, w, geometry.head_dim),
            sigmas: schedule::sigmas(steps)?,
            timesteps: schedule::timesteps(steps)?,
            geometry,
        })
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A call of `lanes`, ascending contiguous steps. Panics without lanes.
    pub(crate) fn call(&self, lanes: &[Lane<'_>], anchor: Arc<Anchor>) -> Call {
        let g = &self.geometry;
        let half = g.head_dim / 2;
        let noisy: Vec<Table> = lanes
            .iter()
            .map(|l| self.rope.noisy(g.first_frame(l.item.block)))
            .collect();
        let shift = |l: &Lane<'_>| ref_shift(g.first_frame(l.item.block), l.relative_dist);
        let sink: Vec<Table> = lanes.iter().map(|l| self.rope.cond(shift(l))).collect();
        let sinusoid =
            |l: &Lane<'_>| schedule::sinusoid(self.timesteps[l.item.step]).repeat(g.block_frames);
        let zeros = Tensor::zeros(DType::F32, &g.latents_shape(g.block_frames));
        Call {
            anchor,
            latents: Tensor::stack(lanes.iter().map(|l| l.latents.view())),
            pose_latents: Tensor::stack(
                lanes
                    .iter()
                    .map(|l| l.pose_latents.unwrap_or(&zeros).view()),
            ),
            sinusoid: rows(lanes, &[g.block_frames, schedule::FREQUENCIES], sinusoid),
            sigmas: rows(lanes, &[2], |l| {
                self.sigmas[l.item.step..l.item.step + 2].to_vec()
            }),
            rope: tables(&noisy, g.block_tokens(), half),
            sink_rope: tables(&sink, g.sink_tokens, half),
            slot: rows(lanes, &[], |l| vec![g.slot(l.item.block) as i64]),
            kv_len: rows(lanes, &[], |l| {
                vec![(g.sink_tokens + g.filled(l.item.block)) as i64]
            }),
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

    /// A prefill of anchor `index`.
    pub(crate) fn prefill(
        &self,
        index: usize,
        ref_latents: Tensor,
        motion_latents: Tensor,
        text: Arc<Tensor>,
    ) -> Prefill {
        let g = &self.geometry;
        let rope = tables(&[self.rope.cond(0)], g.sink_tokens, g.head_dim / 2);
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

fn rows<T: engines::tensor::Element>(
    lanes: &[Lane<'_>],
    shape: &[usize],
    row: impl Fn(&Lane<'_>) -> Vec<T>,
) -> Tensor {
    let data: Vec<T> = lanes.iter().flat_map(row).collect();
    Tensor::from_slice(&[&[lanes.len()], shape].concat(), &data)
}

fn tables(lanes: &[Table], tokens: usize, half: usize) -> (Tensor, Tensor) {
    let shape = [lanes.len(), tokens, half];
    let join = |part: fn(&Table) -> &Array2<f32>| {
        let values: Vec<f32> = lanes.iter().flat_map(|l| part(l).iter().copied()).collect();
        Tensor::from_slice(&shape, &values)
    };
    (join(|t| &t.cos), join(|t| &t.sin))
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
