//! The transformer's components: time embedding, audio adapter, motion packer, sink prefill, blocks over a ring that wraps, inner values by
//! taps, two actors. The reference's own tensors go in, so that each comparison shows one component's error.

use std::sync::Arc;

use engines::backend::{Backend, LoadOptions, Recorder, State};
use engines::components::dit::{self, DitConfig};
use engines::components::speech;
use engines::contract::DType;
use engines::recipe::Recipe;
use engines::tensor::{Tensor, View};
use serde_json::Value;

use super::checkup::{Checkup, Problem, lacks, lane, last, number_in, swapped, widened};
use super::host::tokens;
use super::precision::BF16;
use crate::chain::call::{Anchor, BlockAudio, Call, Lane, Prefill, SinkFlow, Tables};
use crate::chain::encoders::{AudioAdapter, embed_text};
use crate::chain::source::everywhere;
use crate::chain::stage::{Site, Stage, StageState, anchor_of};
use crate::numbers::geometry::Geometry;
use crate::numbers::latents;
use crate::numbers::schedule;
use crate::numbers::size::Size;
use crate::placement::plan::StageSpec;
use crate::placement::wavefront::Item;
use engines::backend::Loading;

/// Tap of the packed motion tokens, before the condition mask.
const PACKER: &str = "frame_packer";
/// Tap of all frames of the global audio token.
const ADAPTER_GLOBAL: &str = "casual_audio_encoder.encoder.global";
/// Files whose tensors come out of one run over several blocks.
const BLOCK_FILES: [&str; 4] = ["dit_blocks", "dit_kv", "dit_layers", BF16];
const WITHOUT_LORA: &str = "block0.noise_pred_without_lora";

pub(super) fn check(checkup: &Checkup<'_>) {
    not_applicable(checkup);
    checkup.part(
        dit::EMBED.name,
        "time",
        |_| true,
        |names| time(checkup, names),
    );
    checkup.part(
        speech::ADAPTER.name,
        "causal_audio",
        |_| true,
        |names| adapter(checkup, names),
    );
    checkup.part(
        dit::SINK_EMBED.name,
        "framepack",
        |_| true,
        |names| packer(checkup, names),
    );
    checkup.part(
        dit::TEXT_EMBED.name,
        "dit_sink",
        |n| n == "text_embedding_head",
        |_| text_head(checkup),
    );
    checkup.part(
        "rotary tables",
        "dit_sink",
        |n| n.starts_with("framepack.rope_"),
        |_| packer_rope(checkup),
    );
    checkup.part(
        dit::SINK_EMBED.name,
        "dit_sink",
        |n| ["framepack.tokens", "block0.input"].contains(&n),
        |_| sink_embed(checkup),
    );
    let sink = |_: &str, n: &str| n.contains(".cond_") || n == "last_block.output";
    checkup.parts(dit::SINK_LAYER.name, &["dit_sink", BF16], sink, |_| {
        sink_layers(checkup)
    });
    let plain = |file: &str, name: &str| {
        if file == BF16 {
            return ["layer0.input", "noise_pred"].contains(&name);
        }
        let inner = file == "dit_layers" && !name.ends_with(".after_injection");
        name.starts_with("block") && name != WITHOUT_LORA && !inner
    };
    checkup.parts(dit::LAYER.name, &BLOCK_FILES, plain, |names| {
        blocks(checkup, names, &[])
    });
    for (file, prefix) in [("dit_layers", "block"), (BF16, "layer")] {
        checkup.part(
            dit::LAYER.name,
            file,
            |n| n.starts_with(prefix),
            |names| inner_values(checkup, file, names),
        );
    }
    checkup.part(
        dit::LAYER.name,
        "dit_two",
        |n| n.starts_with("block") || n == "mask",
        |names| two_actors(checkup, names),
    );
}

/// Tensors of computations that an export does not hold.
fn not_applicable(checkup: &Checkup<'_>) {
    let manifest = checkup.models().manifest();
    let merged = "without the LoRA: the export holds the merged weights only";
    checkup
        .sheet
        .not_checked("dit_blocks", WITHOUT_LORA, merged);
    for name in checkup
        .sheet
        .open(BF16)
        .iter()
        .filter(|_| manifest.recipe == Recipe::Fp32)
    {
        checkup.sheet.not_checked(
            BF16,
            name,
            "the reference's own bf16 casts, which an export of recipe fp32 does not make",
        );
    }
    for name in checkup
        .sheet
        .open("rope")
        .iter()
        .filter(|n| n.ends_with("_f16"))
    {
        let reason = "the reference's half-precision table; ours are f32, computed in f64, and checked by the tensors without _f16";
        checkup.sheet.not_checked("rope", name, reason);
    }
}

// ---- one component at a time

fn time(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let mut tags: Vec<&str> = names
        .iter()
        .filter_map(|n| Some(n.split_once('.')?.0))
        .collect();
    tags.dedup();
    let steps = schedule::timesteps(checkup.config("steps")?)?;
    for tag in tags {
        let name = |what: &str| format!("{tag}.{what}");
        if let Some(t) = number_in(tag, "t", "").and_then(|i| steps.get(i)) {
            checkup.sheet.check(
                "schedule",
                "time",
                &name("timestep"),
                &Tensor::from_slice(&[1], &[*t]),
            );
        }
        let given = checkup.floats("time", &name("timestep"), 1)?;
        let sinusoid = schedule::sinusoid(given.as_slice::<f32>()[0]);
        checkup.sheet.check(
            "schedule",
            "time",
            &name("sinusoid"),
            &Tensor::from_slice(&[1, sinusoid.len()], &sinusoid),
        );
        if checkup.sheet.is_open("time", &name("e")) || checkup.sheet.is_open("time", &name("e0")) {
            embedded_time(checkup, tag, &sinusoid)?;
        }
    }
    Ok(())
}

/// The sink's timestep is 0 whatever the step: its graph takes none.
fn embedded_time(checkup: &Checkup<'_>, tag: &str, sinusoid: &[f32]) -> Result<(), Problem> {
    let (c, frames) = (checkup.dit(), checkup.dit().block_frames);
    let zeros = |frames: usize, side: usize| {
        Tensor::zeros(DType::F32, &[1, c.latent_channels, frames, side, side])
    };
    let first = |t: Tensor| {
        let shape = t.shape()[2..].to_vec();
        let data = t.as_slice::<f32>()[..shape.iter().product()].to_vec();
        lane(Tensor::from_slice(&shape, &data))
    };
    let latents = zeros(frames, 2);
    let rows = sinusoid.repeat(frames);
    let inputs = [
        (&dit::LATENTS, latents.view()),
        (&dit::POSE_LATENTS, latents.view()),
        (
            &dit::SINUSOID,
            View::from_slice(&[1, frames, sinusoid.len()], &rows),
        ),
    ];
    let mut embed = checkup
        .backend()
        .load(dit::EMBED.name, &(checkup.loading())(dit::EMBED.name))?;
    let mut out = embed.run(&inputs, State::None)?;
    checkup.sheet.check(
        dit::EMBED.name,
        "time",
        &format!("{tag}.e"),
        &first(out.take(&dit::E_OUT)),
    );
    checkup.sheet.check(
        dit::EMBED.name,
        "time",
        &format!("{tag}.e0"),
        &first(out.take(&dit::E0_OUT)),
    );
    if tag == "tzero" {
        let (reference, motion) = (zeros(1, 8), zeros(dit::MOTION_FRAMES, 8));
        let mut sink = checkup.backend().load(
            dit::SINK_EMBED.name,
            &(checkup.loading())(dit::SINK_EMBED.name),
        )?;
        let inputs = [
            (&dit::REF_LATENTS, reference.view()),
            (&dit::MOTION_LATENTS, motion.view()),
        ];
        let e0 = first(sink.run(&inputs, State::None)?.take(&dit::SINK_E0));
        checkup.sheet.check_noted(
            dit::SINK_EMBED.name,
            "time",
            "tzero.e0",
            &e0,
            "the sink's own modulation",
        );
    }
    Ok(())
}

fn adapter(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let mut tags: Vec<&str> = names
        .iter()
        .filter_map(|n| Some(n.split_once('.')?.0))
        .collect();
    tags.dedup();
    let (mut options, component) = (
        (checkup.loading())(speech::ADAPTER.name),
        speech::ADAPTER.name,
    );
    options
        .taps
        .extend(has_tap(checkup, component, ADAPTER_GLOBAL).then(|| ADAPTER_GLOBAL.to_owned()));
    let mut session = checkup.backend().load(component, &options)?;
    for tag in tags {
        let audio = checkup.floats("causal_audio", &format!("{tag}.audio_input"), 4)?;
        let mut out = session.run(&[(&speech::AUDIO, audio.view())], State::None)?;
        let (global, local) = (
            out.take(&speech::AUDIO_GLOBAL_OUT),
            out.take(&speech::AUDIO_LOCAL_OUT),
        );
        checkup
            .sheet
            .check(component, "causal_audio", &format!("{tag}.global"), &global);
        checkup
            .sheet
            .check(component, "causal_audio", &format!("{tag}.local"), &local);
        for name in names
            .iter()
            .filter(|n| n.starts_with(&format!("{tag}.global_all")))
        {
            match options.taps.is_empty() {
                false => checkup.sheet.check(
                    component,
                    "causal_audio",
                    name,
                    &out.take_named(ADAPTER_GLOBAL),
                ),
                true => checkup.sheet.not_checked(
                    "causal_audio",
                    name,
                    format!("the export has no tap {ADAPTER_GLOBAL}"),
                ),
            }
        }
    }
    Ok(())
}

fn has_tap(checkup: &Checkup<'_>, component: &str, tap: &str) -> bool {
    checkup
        .models()
        .component(component)
        .is_ok_and(|(entry, _)| entry.taps.contains_key(tap))
}

/// Outputs of the sink's embedding: tokens, and packed motion tokens where the export has the tap.
fn embed_sink(
    checkup: &Checkup<'_>,
    reference: &Tensor,
    motion: &Tensor,
) -> Result<(Tensor, Option<Tensor>), Problem> {
    let component = dit::SINK_EMBED.name;
    let tapped = has_tap(checkup, component, PACKER);
    let mut options = (checkup.loading())(component);
    options.taps.extend(tapped.then(|| PACKER.to_owned()));
    let mut session = checkup.backend().load(component, &options)?;
    let inputs = [
        (&dit::REF_LATENTS, reference.view()),
        (&dit::MOTION_LATENTS, motion.view()),
    ];
    let mut out = session.run(&inputs, State::None)?;
    Ok((
        out.take(&dit::SINK_TOKENS),
        tapped.then(|| out.take_named(PACKER)),
    ))
}

fn no_packer_tap() -> Problem {
    Problem::Lacks(format!("the export has no tap {PACKER}"))
}

fn packer(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    for name in names.iter().filter(|n| n.ends_with(".tokens")) {
        let motion = checkup.floats("framepack", &name.replace(".tokens", ".latents"), 5)?;
        let motion = newest(&motion);
        let mut shape = motion.shape().to_vec();
        shape[2] = 1;
        let (_, packed) = embed_sink(checkup, &Tensor::zeros(DType::F32, &shape), &motion)?;
        checkup.sheet.check(
            dit::SINK_EMBED.name,
            "framepack",
            name,
            &packed.ok_or_else(no_packer_tap)?,
        );
    }
    Ok(())
}

/// The newest 19 motion latents, zeros in front where there are fewer.
fn newest(motion: &Tensor) -> Tensor {
    let total = motion.shape()[2];
    let kept = latents::frames(motion, total.saturating_sub(dit::MOTION_FRAMES)..total);
    let missing = dit::MOTION_FRAMES - kept.shape()[2];
    if missing == 0 {
        return kept;
    }
    let mut shape = kept.shape().to_vec();
    shape[2] = missing;
    latents::join(&[Tensor::zeros(DType::F32, &shape), kept])
}

// ---- the sink

fn text(checkup: &Checkup<'_>) -> Result<(Tensor, usize), Problem> {
    let context = checkup.floats("dit_sink", "context", 2)?;
    Ok((
        embed_text(
            &**checkup.backend(),
            checkup.loading(),
            checkup.dit(),
            &context,
        )?,
        context.shape()[0],
    ))
}

fn text_head(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let (text, rows) = text(checkup)?;
    let (total, width) = (text.shape()[1], text.shape()[2]);
    let kept = (rows + 1).min(total);
    let text = widened(&text);
    let head = Tensor::from_slice(&[1, kept, width], &text.as_slice::<f32>()[..kept * width]);
    checkup.sheet.check(
        dit::TEXT_EMBED.name,
        "dit_sink",
        "text_embedding_head",
        &head,
    );
    Ok(())
}

fn sink_inputs(checkup: &Checkup<'_>) -> Result<(Tensor, Tensor), Problem> {
    Ok((
        checkup.floats("dit_sink", "ref_latents", 5)?,
        newest(&checkup.floats("dit_sink", "motion_latents", 5)?),
    ))
}

fn packer_rope(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let (h, w) = tokens(checkup)?;
    let table = crate::numbers::rope::Rope::new(h, w, checkup.dit().head_dim()).cond(0);
    for (part, values) in [("cos", &table.cos), ("sin", &table.sin)] {
        let motion = values.slice(ndarray::s![h * w.., ..]);
        let name = format!("framepack.rope_{part}");
        checkup
            .sheet
            .check("rotary tables", "dit_sink", &name, &Tensor::from(motion));
    }
    Ok(())
}

fn sink_embed(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let (reference, motion) = sink_inputs(checkup)?;
    let (tokens, packed) = embed_sink(checkup, &reference, &motion)?;
    checkup
        .sheet
        .check(dit::SINK_EMBED.name, "dit_sink", "block0.input", &tokens);
    if let Some(packed) = &packed {
        checkup
            .sheet
            .check(dit::SINK_EMBED.name, "dit_sink", "framepack.tokens", packed);
    }
    packed.map(drop).ok_or_else(no_packer_tap)
}

fn sink_layers(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let scene = Scene::new(checkup)?;
    let mut running = scene.stage(Arc::clone(checkup.backend()), checkup.loading())?;
    let prefill = scene.prefill(checkup, &mut running)?;
    if let Some(SinkFlow { hidden, .. }) = &prefill.flow {
        checkup.sheet.check(
            dit::SINK_LAYER.name,
            "dit_sink",
            "last_block.output",
            hidden,
        );
    }
    for (i, layer) in prefill.layers.iter().enumerate() {
        let layer = &layer.condition;
        for (what, values) in [("k", &layer.sink_k), ("v", &layer.sink_v)] {
            let (name, values) = (format!("layer{i}.cond_{what}"), swapped(values));
            for file in ["dit_sink", BF16] {
                check_open(checkup, dit::SINK_LAYER.name, file, &name, &values);
            }
        }
    }
    Ok(())
}

// ---- blocks

/// One denoising step of the set's blocks, all layers on one stage.
struct Scene {
    tables: Tables,
    spec: StageSpec,
    model: DitConfig,
}

impl Scene {
    fn new(checkup: &Checkup<'_>) -> Result<Self, Problem> {
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

    fn geometry(&self) -> &Geometry {
        self.tables.geometry()
    }

    /// Loads the stage and begins a run on it.
    fn stage(&self, backend: Arc<dyn Backend>, loading: &Loading) -> Result<Running, Problem> {
        let site = Site::alone(backend, &self.model, 1, Arc::clone(loading));
        let mut stage = Stage::load(site, &self.spec)?;
        let state = stage.begin(self.geometry())?;
        Ok(Running { stage, state })
    }

    fn prefill(&self, checkup: &Checkup<'_>, running: &mut Running) -> Result<Prefill, Problem> {
        let (reference, motion) = sink_inputs(checkup)?;
        let (text, _) = text(checkup)?;
        let mut prefill = self.tables.prefill(0, reference, motion, Arc::new(text));
        let Running { stage, state } = running;
        stage.prefill(state, &mut prefill, &|| false)?;
        Ok(prefill)
    }

    fn denoise(
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
struct Running {
    stage: Stage,
    state: StageState,
}

struct Block<'a> {
    index: usize,
    relative_dist: u32,
    latents: &'a Tensor,
    pose_latents: Option<&'a Tensor>,
    audio: &'a BlockAudio,
}

/// The step whose timestep the blocks were made at; the first where the set names none.
fn step_at(checkup: &Checkup<'_>, timesteps: &[f32]) -> Result<usize, Problem> {
    let Some(wanted) = checkup
        .set
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

/// An inner value of a layer: the tensor that it is compared with, and where it is tapped.
struct Tapped {
    file: &'static str,
    name: String,
    block: usize,
    component: String,
    tap: String,
}

/// Runs blocks in order, up to the last one that a name speaks of. With taps, only they are compared.
fn blocks(
    checkup: &Checkup<'_>,
    names: &[(&'static str, String)],
    taps: &[Tapped],
) -> Result<(), Problem> {
    let of_block = |name: &str| {
        name.strip_prefix("block")?
            .split('.')
            .next()?
            .parse::<usize>()
            .ok()
    };
    let blocks = names
        .iter()
        .filter_map(|(file, n)| if *file == BF16 { Some(0) } else { of_block(n) })
        .max()
        .map_or(0, |b| b + 1);
    let scene = Scene::new(checkup)?;
    let recorder = Recorder::new(Arc::clone(checkup.backend()));
    let base = Arc::clone(checkup.loading());
    let wanted: Vec<(String, String)> = taps
        .iter()
        .map(|t| (t.component.clone(), t.tap.clone()))
        .collect();
    let loading: Loading = Arc::new(move |component: &str| {
        let mut options: LoadOptions = base(component);
        // The recorder knows sessions by their components.
        options.alone = true;
        let own = wanted.iter().filter(|(c, _)| c == component);
        options.taps.extend(own.map(|(_, tap)| tap.clone()));
        options
    });
    let mut running = scene.stage(Arc::new(recorder.clone()), &loading)?;
    let anchor = Arc::new(anchor_of(scene.prefill(checkup, &mut running)?));
    let adapter = AudioAdapter::load(&**checkup.backend(), checkup.loading())?;
    for index in 0..blocks {
        let latents = lane(checkup.floats("dit_blocks", &format!("block{index}.x"), 4)?);
        let pose_name = format!("block{index}.cond_states");
        let pose = checkup
            .set
            .entry("dit_blocks", &pose_name)
            .map(|_| checkup.floats("dit_blocks", &pose_name, 5))
            .transpose()?;
        let distance = checkup.number(&format!("/dit_blocks/relative_dist/{index}"))?;
        let audio = adapter.tokens(
            &bucket(checkup, scene.geometry(), index)?,
            everywhere(scene.geometry()),
        )?;
        let relative_dist = u32::try_from(distance).unwrap_or_default();
        let block = Block {
            index,
            relative_dist,
            latents: &latents,
            pose_latents: pose.as_ref(),
            audio: &audio,
        };
        let call = scene.denoise(&mut running, &block, &anchor)?;
        match taps.is_empty() {
            true => plain_values(checkup, &scene, &running, &recorder, index, &call),
            false => tapped_values(checkup, taps, index, &call),
        }
    }
    Ok(())
}

/// Hidden states of one block out of the reference's bucket.
fn bucket(checkup: &Checkup<'_>, geometry: &Geometry, block: usize) -> Result<Tensor, Problem> {
    let (name, frames) = ("a16k.bucket", geometry.block_video_frames());
    let bucket = checkup
        .set
        .tensor("audio", name)?
        .ok_or_else(|| lacks(format!("audio.{name}")))?;
    let range = block * frames..(block + 1) * frames;
    match (bucket.dtype(), bucket.shape()) {
        (DType::F32, &[1, _, _, total]) if total >= range.end => Ok(last(&bucket, range)),
        _ => Err(lacks(format!("frames {range:?} of audio.{name}"))),
    }
}

fn plain_values(
    checkup: &Checkup<'_>,
    scene: &Scene,
    running: &Running,
    recorder: &Recorder,
    index: usize,
    call: &Call,
) {
    let name = |what: &str| format!("block{index}.{what}");
    if let Some(output) = &call.output {
        checkup.sheet.check(
            dit::HEAD.name,
            "dit_blocks",
            &name("noise_pred"),
            &output.noise_pred,
        );
    }
    let hidden = |component: &str| recorder.get(component, dit::HIDDEN_OUT.name);
    if let Some(tokens) = hidden(dit::EMBED.name) {
        checkup
            .sheet
            .check(dit::EMBED.name, "dit_blocks", &name("tokens_in"), &tokens);
        if index == 0 {
            check_open(checkup, dit::EMBED.name, BF16, "layer0.input", &tokens);
        }
    }
    if let (Some(output), 0) = (&call.output, index) {
        let prediction = &output.noise_pred;
        check_open(checkup, dit::HEAD.name, BF16, "noise_pred", prediction);
    }
    if let Some(head) = hidden(&dit::layer_name(scene.model.layers - 1)) {
        checkup
            .sheet
            .check(dit::LAYER.name, "dit_blocks", &name("head_in"), &head);
    }
    let g = scene.geometry();
    let written = g.slot(index)..g.slot(index) + g.block_tokens();
    for layer in 0..scene.model.layers {
        if let Some(after) = hidden(&dit::layer_name(layer)) {
            let name = name(&format!("layer{layer}.after_injection"));
            checkup
                .sheet
                .check(dit::LAYER_AUDIO.name, "dit_layers", &name, &after);
        }
        let Some(ring) = running.state.ring(layer) else {
            continue;
        };
        for (what, values) in [("k", &ring.keys), ("v", &ring.values)] {
            let name = name(&format!("layer{layer}.{what}"));
            if checkup.sheet.is_open("dit_kv", &name) {
                checkup.sheet.check(
                    dit::LAYER.name,
                    "dit_kv",
                    &name,
                    &swapped(&latents::frames(values, written.clone())),
                );
            }
        }
    }
}

fn tapped_values(checkup: &Checkup<'_>, taps: &[Tapped], index: usize, call: &Call) {
    for tapped in taps.iter().filter(|t| t.block == index) {
        if let Some(value) = call
            .taps
            .get(&format!("{}/{}", tapped.component, tapped.tap))
        {
            let value = as_golden(checkup, tapped.file, &tapped.name, value.clone());
            checkup
                .sheet
                .check(dit::LAYER.name, tapped.file, &tapped.name, &value);
        }
    }
}

/// Compares a value with a tensor that may not concern this export.
fn check_open(checkup: &Checkup<'_>, component: &str, file: &str, name: &str, value: &Tensor) {
    if checkup.sheet.is_open(file, name) {
        checkup.sheet.check(component, file, name, value);
    }
}

/// The value under the reference tensor's shape, where only the split of tokens into frames differs.
fn as_golden(checkup: &Checkup<'_>, file: &str, name: &str, value: Tensor) -> Tensor {
    match checkup.set.tensor(file, name) {
        Ok(Some(want))
            if want.shape().last() == value.shape().last()
                && elements(&want) == elements(&value) =>
        {
            value.reshaped(want.shape())
        }
        _ => value,
    }
}

fn elements(t: &Tensor) -> usize {
    t.shape().iter().product()
}

fn inner_values(
    checkup: &Checkup<'_>,
    file: &'static str,
    names: &[String],
) -> Result<(), Problem> {
    let (mut taps, mut wanted) = (Vec::new(), Vec::new());
    for name in names {
        let Some(tapped) = tap_of(checkup, file, name) else {
            continue;
        };
        if has_tap(checkup, &tapped.component, &tapped.tap) {
            wanted.push((file, name.clone()));
            taps.push(tapped);
        } else {
            checkup.sheet.not_checked(
                file,
                name,
                format!(
                    "{} of the export has no tap {}",
                    tapped.component, tapped.tap
                ),
            );
        }
    }
    if taps.is_empty() {
        Ok(())
    } else {
        blocks(checkup, &wanted, &taps)
    }
}

/// `block5.layer0.sa` and the like: a layer, or an injector by its own count. In the bf16 file, block 0's by longer words.
fn tap_of(checkup: &Checkup<'_>, file: &'static str, name: &str) -> Option<Tapped> {
    let (block, rest) = match file {
        BF16 => ("0", name),
        _ => name.strip_prefix("block")?.split_once('.')?,
    };
    let injector = |at: usize, path: &str| {
        Some((
            *checkup.dit().audio_inject_layers.get(at)?,
            format!("audio_injector.{path}.{at}"),
        ))
    };
    let (layer, tap) = if let Some(at) = number_in(rest, "adain", "") {
        injector(at, "injector_adain_layers")?
    } else if let Some(at) = number_in(rest, "inject", "") {
        injector(at, "injector")?
    } else {
        let (layer, what) = rest.strip_prefix("layer")?.split_once('.')?;
        let layer: usize = layer.parse().ok()?;
        let module = match what {
            "out" | "output" => "",
            "sa" | "self_attn" => ".self_attn",
            "ca" | "cross_attn" => ".cross_attn",
            "ffn" => ".ffn",
            _ => return None,
        };
        (layer, format!("blocks.{layer}{module}"))
    };
    Some(Tapped {
        file,
        name: name.to_owned(),
        block: block.parse().ok()?,
        component: dit::layer_name(layer),
        tap,
    })
}

fn two_actors(checkup: &Checkup<'_>, names: &[String]) -> Result<(), Problem> {
    let blocks = names
        .iter()
        .filter_map(|n| number_in(n, "block", ".noise_pred"))
        .max()
        .map_or(0, |b| b + 1);
    let scene = Scene::new(checkup)?;
    let g = scene.geometry();
    let mask = checkup.floats("dit_two", "mask", 5)?;
    let (actors, tokens) = (mask.shape()[0], g.tokens.0 * g.tokens.1);
    if mask.shape()[2] * mask.shape()[3] != tokens || mask.shape()[1] < g.block_frames {
        return Err(Problem::Lacks(format!(
            "dit_two.mask: wanted {} frames of {tokens} tokens, found {mask:?}",
            g.block_frames
        )));
    }
    // The reference uses the first frames of the mask for every block.
    let row = mask.shape()[1] * tokens;
    let kept = mask
        .as_slice::<f32>()
        .chunks_exact(row)
        .flat_map(|actor| &actor[..g.block_frames * tokens]);
    let mask = Tensor::from_slice(
        &[1, actors, g.block_frames, tokens],
        &kept.copied().collect::<Vec<f32>>(),
    );
    let mut running = scene.stage(Arc::clone(checkup.backend()), checkup.loading())?;
    let anchor = Arc::new(anchor_of(scene.prefill(checkup, &mut running)?));
    let adapter = AudioAdapter::load(&**checkup.backend(), checkup.loading())?;
    for index in 0..blocks {
        let latents = lane(checkup.floats("dit_two", &format!("block{index}.x"), 4)?);
        let features = checkup.floats("dit_two", &format!("block{index}.audio_input"), 4)?;
        let name = format!("block{index}.noise_pred");
        let relative_dist = recorded_distance(checkup, &name)?;
        let audio = adapter.tokens(&features, mask.clone())?;
        let block = Block {
            index,
            relative_dist,
            latents: &latents,
            pose_latents: None,
            audio: &audio,
        };
        if let Some(output) = scene.denoise(&mut running, &block, &anchor)?.output {
            checkup
                .sheet
                .check(dit::HEAD.name, "dit_two", &name, &output.noise_pred);
        }
    }
    Ok(())
}

/// The set says this distance only in words: "relative_dist 11, ...".
fn recorded_distance(checkup: &Checkup<'_>, name: &str) -> Result<u32, Problem> {
    let meaning = checkup
        .set
        .entry("dit_two", name)
        .map_or("", |e| e.meaning.as_str());
    let word = meaning
        .split("relative_dist ")
        .nth(1)
        .and_then(|t| t.split(|c: char| !c.is_ascii_digit()).next());
    word.and_then(|w| w.parse().ok())
        .ok_or_else(|| lacks(format!("relative_dist in the meaning of dit_two.{name}")))
}
