//! One stage: a range of layers for a range of steps, loaded, with their rings. It owns state and runs graphs; it knows no order, no thread
//! and no other stage.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use engines::components::dit;
use engines::contract::Port;
use engines::tensor::{Tensor, View};

use crate::call::{Anchor, Call, CallOutput, Flow, LayerCondition, Prefill};
use crate::plan::StageSpec;
use crate::ring::{Geometry, KvRing};

/// What to load a component with: taps and faults.
pub type Options<'a> = &'a (dyn Fn(&str) -> LoadOptions + Sync);

/// No taps, no faults.
pub fn plain(_component: &str) -> LoadOptions {
    LoadOptions::default()
}

struct Loaded {
    name: String,
    session: Box<dyn Session>,
}

impl Loaded {
    fn new(backend: &dyn Backend, name: &str, options: Options<'_>) -> Result<Self, EngineError> {
        Ok(Self {
            name: name.to_owned(),
            session: backend.load(name, &options(name))?,
        })
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        self.session.run(inputs, state)
    }
}

struct Layer {
    index: usize,
    loaded: Loaded,
    ring: KvRing,
}

/// A loaded stage.
pub struct Stage<'a> {
    backend: &'a dyn Backend,
    options: Options<'a>,
    spec: StageSpec,
    embed: Option<Loaded>,
    layers: Vec<Layer>,
    head: Option<Loaded>,
}

impl<'a> Stage<'a> {
    /// Loads the layers of `spec`, the embedding with layer 0 and the head with the last of `layer_count` layers. Rings start empty.
    ///
    /// # Errors
    /// A component that is missing or does not load.
    pub fn load(
        backend: &'a dyn Backend,
        spec: &StageSpec,
        layer_count: usize,
        geometry: &Geometry,
        options: Options<'a>,
    ) -> Result<Self, EngineError> {
        let optional = |name: &str, wanted: bool| {
            wanted
                .then(|| Loaded::new(backend, name, options))
                .transpose()
        };
        let layer = |index: usize| {
            let loaded = Loaded::new(backend, &dit::layer_name(index), options)?;
            Ok(Layer {
                index,
                loaded,
                ring: KvRing::new(geometry, spec.steps.len(), backend.recipe()),
            })
        };
        Ok(Self {
            embed: optional(dit::EMBED.name, spec.layers.start == 0)?,
            layers: spec
                .layers
                .clone()
                .map(layer)
                .collect::<Result<_, EngineError>>()?,
            head: optional(dit::HEAD.name, spec.layers.end == layer_count)?,
            backend,
            options,
            spec: spec.clone(),
        })
    }

    pub fn spec(&self) -> &StageSpec {
        &self.spec
    }

    /// The ring of one of this stage's layers; its lanes are the stage's steps.
    pub fn ring(&self, layer: usize) -> Option<&KvRing> {
        let at = layer.checked_sub(self.spec.layers.start)?;
        self.layers.get(at).map(|l| &l.ring)
    }

    /// Runs a call through this stage's layers. `stop` is asked before each; a call that was stopped comes back without output.
    ///
    /// # Errors
    /// A graph that fails. Panics when an earlier stage left its part undone: that is an order broken in code.
    pub fn denoise(&mut self, call: &mut Call, stop: &dyn Fn() -> bool) -> Result<(), EngineError> {
        if let Some(embed) = &mut self.embed {
            embed_lanes(embed, call)?;
        }
        let lanes = lanes_of(call, &self.spec.steps);
        for layer in &mut self.layers {
            if stop() {
                return Ok(());
            }
            run_layer(layer, call, lanes.clone())?;
        }
        match &mut self.head {
            Some(head) if !stop() => run_head(head, call),
            _ => Ok(()),
        }
    }

    /// Runs the sink prefill through this stage's layers. Its graphs are loaded here and dropped after: they run twice a video. `stop` is
    /// asked before each layer; a prefill that was stopped lacks layers.
    ///
    /// # Errors
    /// A component that does not load or fails.
    pub fn prefill(
        &self,
        prefill: &mut Prefill,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        if self.spec.layers.start == 0 {
            let mut embed = Loaded::new(self.backend, dit::SINK_EMBED.name, self.options)?;
            let inputs = [
                (&dit::REF_LATENTS, prefill.ref_latents.view()),
                (&dit::MOTION_LATENTS, prefill.motion_latents.view()),
            ];
            let mut outputs = embed.run(&inputs, State::None)?;
            prefill.flow = Some((outputs.take(&dit::SINK_TOKENS), outputs.take(&dit::SINK_E0)));
            keep_taps(&mut prefill.taps, &embed.name, outputs);
        }
        for layer in self.spec.layers.clone() {
            if stop() {
                return Ok(());
            }
            let mut sink = Loaded::new(self.backend, &dit::sink_layer_name(layer), self.options)?;
            run_sink_layer(&mut sink, prefill)?;
        }
        Ok(())
    }
}

/// Turns a prefill that has passed every layer into its anchor.
pub fn anchor_of(prefill: Prefill) -> Arc<Anchor> {
    Arc::new(Anchor {
        index: prefill.index,
        layers: prefill.layers,
    })
}

fn lanes_of(call: &Call, steps: &Range<usize>) -> Range<usize> {
    let first = call.items[0].step - steps.start;
    first..first + call.items.len()
}

fn embed_lanes(embed: &mut Loaded, call: &mut Call) -> Result<(), EngineError> {
    let inputs = [
        (&dit::LATENTS, call.latents.view()),
        (&dit::POSE_LATENTS, call.pose_latents.view()),
        (&dit::SINUSOID, call.sinusoid.view()),
    ];
    let mut out = embed.run(&inputs, State::None)?;
    call.flow = Some(Flow {
        hidden: out.take(&dit::HIDDEN_OUT),
        e: out.take(&dit::E_OUT),
        e0: out.take(&dit::E0_OUT),
    });
    keep_taps(&mut call.taps, &embed.name, out);
    Ok(())
}

fn run_layer(layer: &mut Layer, call: &mut Call, lanes: Range<usize>) -> Result<(), EngineError> {
    let flow = call.flow.as_mut().expect("the first stage embeds");
    let condition = &call.anchor.layers[layer.index];
    let mut inputs = vec![
        (&dit::HIDDEN, flow.hidden.view()),
        (&dit::E0, flow.e0.view()),
        (&dit::ROPE_COS, call.rope.0.view()),
        (&dit::ROPE_SIN, call.rope.1.view()),
        (&dit::SINK_ROPE_COS, call.sink_rope.0.view()),
        (&dit::SINK_ROPE_SIN, call.sink_rope.1.view()),
        (&dit::SINK_K, condition.sink_k.view()),
        (&dit::SINK_V, condition.sink_v.view()),
        (&dit::TEXT_K, condition.text_k.view()),
        (&dit::TEXT_V, condition.text_v.view()),
        (&dit::SLOT, call.slot.view()),
        (&dit::KV_LEN, call.kv_len.view()),
    ];
    if layer.loaded.session.contract().name == dit::LAYER_AUDIO.name {
        inputs.extend([
            (&dit::AUDIO_GLOBAL, call.audio.global.view()),
            (&dit::AUDIO_LOCAL, call.audio.local.view()),
            (&dit::ACTOR_MASK, call.audio.mask.view()),
        ]);
    }
    let (keys, values) = layer.ring.lanes_mut(lanes);
    let state = State::InPlace(vec![(dit::KEYS.name, keys), (dit::VALUES.name, values)]);
    let mut out = layer.loaded.run(&inputs, state)?;
    drop(inputs);
    flow.hidden = out.take(&dit::HIDDEN_OUT);
    keep_taps(&mut call.taps, &layer.loaded.name, out);
    Ok(())
}

fn run_head(head: &mut Loaded, call: &mut Call) -> Result<(), EngineError> {
    let flow = call.flow.take().expect("the first stage embeds");
    let inputs = [
        (&dit::HIDDEN, flow.hidden.view()),
        (&dit::E, flow.e.view()),
        (&dit::LATENTS, call.latents.view()),
        (&dit::SIGMAS, call.sigmas.view()),
    ];
    let mut out = head.run(&inputs, State::None)?;
    call.output = Some(CallOutput {
        noise_pred: out.take(&dit::NOISE_PRED),
        next_latents: out.take(&dit::NEXT_LATENTS),
    });
    keep_taps(&mut call.taps, &head.name, out);
    Ok(())
}

fn run_sink_layer(sink: &mut Loaded, prefill: &mut Prefill) -> Result<(), EngineError> {
    let (hidden, e0) = prefill.flow.as_mut().expect("the first stage embeds");
    let inputs = [
        (&dit::SINK_HIDDEN, hidden.view()),
        (&dit::SINK_E0, e0.view()),
        (&dit::TEXT, prefill.text.view()),
        (&dit::SINK_ROPE_COS, prefill.rope.0.view()),
        (&dit::SINK_ROPE_SIN, prefill.rope.1.view()),
    ];
    let mut out = sink.run(&inputs, State::None)?;
    *hidden = out.take(&dit::SINK_HIDDEN_OUT);
    prefill.layers.push(LayerCondition {
        sink_k: out.take(&dit::SINK_K_OUT),
        sink_v: out.take(&dit::SINK_V_OUT),
        text_k: out.take(&dit::TEXT_K_OUT),
        text_v: out.take(&dit::TEXT_V_OUT),
    });
    keep_taps(&mut prefill.taps, &sink.name, out);
    Ok(())
}

fn keep_taps(taps: &mut BTreeMap<String, Tensor>, component: &str, left: Outputs) {
    taps.extend(
        left.into_inner()
            .into_iter()
            .map(|(name, t)| (format!("{component}/{name}"), t)),
    );
}
