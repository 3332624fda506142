//! One denoising step of the golden set's blocks, on a loaded stage.

use std::sync::Arc;

use engines::backend::{Backend, Loading};
use engines::cancel::Cancel;
use engines::components::dit::DitConfig;
use engines::tensor::Tensor;
use serde_json::Value;

use super::inputs::{sink_inputs, text};
use crate::chain::call::{Anchor, BlockAudio, Call, Lane, Prefill, Tables};
use crate::chain::stage::{Site, Stage, StageState};
use crate::checks::verify::checkup::{Checkup, Problem, lacks};
use crate::checks::verify::host::tokens;
use crate::numbers::geometry::Geometry;
use crate::numbers::schedule;
use crate::numbers::size::Size;
use crate::placement::plan::StageSpec;
use crate::placement::wavefront::Item;

/// One denoising step of the golden set's blocks, with all layers on one stage.
pub(super) struct Scene {
    tables: Tables,
    spec: StageSpec,
    /// Sizes of the transformer.
    pub(super) model: DitConfig,
}

impl Scene {
    /// Reads the sizes and the step of the golden set.
    pub(super) fn new(checkup: &Checkup<'_>) -> Result<Self, Problem> {
        let (h, w) = tokens(checkup)?;
        let size = Size {
            width: 16 * w,
            height: 16 * h,
        };
        let geometry = Geometry::new(checkup.dit(), size, checkup.config("infer_frames")?)?;
        let steps = checkup.config("steps")?;
        let step = step_at(checkup, &schedule::timesteps(steps)?)?;
        let model = checkup.dit().clone();
        Ok(Self {
            tables: Tables::new(geometry, steps)?,
            spec: StageSpec::new(0, 0..model.layers, step..step + 1),
            model,
        })
    }

    /// Returns the sizes of the blocks.
    pub(super) fn geometry(&self) -> &Geometry {
        self.tables.geometry()
    }

    /// Loads the stage and begins a run on it.
    pub(super) fn stage(
        &self,
        backend: Arc<dyn Backend>,
        loading: &Loading,
    ) -> Result<Running, Problem> {
        let site = Site::alone(backend, &self.model, 1, Arc::clone(loading));
        let mut stage = Stage::load(site, &self.spec)?;
        let state = stage.begin(self.geometry(), &Cancel::default())?;
        Ok(Running { stage, state })
    }

    /// Computes the keys and values of the sink.
    pub(super) fn prefill(
        &self,
        checkup: &Checkup<'_>,
        running: &mut Running,
    ) -> Result<Prefill, Problem> {
        let (reference, motion) = sink_inputs(checkup)?;
        let (text, _) = text(checkup)?;
        let mut prefill = self.tables.prefill(0, reference, motion, Arc::new(text));
        let Running { stage, state } = running;
        stage.prefill(state, &mut prefill, &|| false)?;
        Ok(prefill)
    }

    /// Denoises one block.
    pub(super) fn denoise(
        &self,
        running: &mut Running,
        block: &Block<'_>,
        anchor: &Arc<Anchor>,
    ) -> Result<Call, Problem> {
        let item = Item {
            block: block.index,
            step: self.spec.steps.start,
        };
        let &Block {
            relative_dist,
            latents,
            pose_latents,
            audio,
            ..
        } = block;
        let mut call = self.tables.call(
            &[Lane {
                item,
                relative_dist,
                latents,
                pose_latents,
                audio,
            }],
            anchor.clone(),
        );
        let Running { stage, state } = running;
        stage.denoise(state, &mut call, &|| false)?;
        Ok(call)
    }
}

/// A stage with one run on it.
pub(super) struct Running {
    stage: Stage,
    /// The rings of the run.
    pub(super) state: StageState,
}

/// The inputs of one block.
pub(super) struct Block<'a> {
    /// Number of the block in the video.
    pub(super) index: usize,
    /// Distance of the reference token, 4..=30.
    pub(super) relative_dist: u32,
    /// Noisy latents.
    pub(super) latents: &'a Tensor,
    /// Latents of the pose video, where the block has one.
    pub(super) pose_latents: Option<&'a Tensor>,
    /// Audio tokens.
    pub(super) audio: &'a BlockAudio,
}

/// Returns the step at whose timestep the blocks were made. Without a timestep in the golden set,
/// it is the first step.
fn step_at(checkup: &Checkup<'_>, timesteps: &[f32]) -> Result<usize, Problem> {
    let Some(wanted) = checkup
        .golden
        .value("/dit_blocks/timestep")
        .and_then(Value::as_f64)
    else {
        return Ok(0);
    };
    let near = |t: &f32| (f64::from(*t) - wanted).abs() <= 1e-3;
    timesteps
        .iter()
        .position(near)
        .ok_or_else(|| lacks(format!("a step at timestep {wanted}")))
}
