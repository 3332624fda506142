//! A backend without a model: graphs are small exact sums that depend on everything a real one would see (ring contents, slot, length,
//! anchor, text, audio, tables), so that a wrong order, lane or condition changes the result. Only compiled for tests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engines::backend::{Backend, EngineError, LoadOptions, Outputs, Session, State};
use engines::components::dit::{self, DitConfig};
use engines::components::vae;
use engines::contract::{Contract, DType, Port, StateKind};
use engines::memory::{Class, HostMemory, Memory};
use engines::recipe::Recipe;
use engines::tensor::{Tensor, View};
use engines::weights::{HostWeights, WeightSet};

use crate::ring::Geometry;

/// What a layer does at its n-th run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Fails { layer: usize, run: usize },
    Panics { layer: usize, run: usize },
}

pub(crate) struct Fake {
    pub(crate) config: DitConfig,
    pub(crate) geometry: Geometry,
    pub(crate) fault: Fault,
    /// Components in the order of their runs.
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    runs: Arc<AtomicUsize>,
    /// How long a layer computes.
    pub(crate) pace: Duration,
    memory: Arc<dyn Memory>,
}

/// Elements of a layer's weight.
const WEIGHTS: usize = 64;

impl Fake {
    pub(crate) fn new(config: DitConfig, geometry: Geometry) -> Self {
        Self {
            config,
            geometry,
            fault: Fault::None,
            log: Arc::default(),
            runs: Arc::default(),
            pace: Duration::ZERO,
            memory: HostMemory::unlimited(),
        }
    }

    /// The same model on another device.
    pub(crate) fn on(&self, memory: Arc<dyn Memory>) -> Self {
        Self {
            config: self.config.clone(),
            geometry: self.geometry.clone(),
            fault: self.fault,
            log: self.log.clone(),
            runs: self.runs.clone(),
            pace: self.pace,
            memory,
        }
    }
}

impl Backend for Fake {
    fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    fn recipe(&self) -> Recipe {
        Recipe::Fp32
    }

    /// The layer's number is its only weight: a layer that runs on another's is noticed. Large enough that its copy takes a while.
    fn weights(&self, component: &str) -> Result<HostWeights, EngineError> {
        let (_, layer) = component.split_once('.').unwrap();
        let layer: f32 = layer.parse().unwrap();
        let weight = Tensor::from_slice(&[WEIGHTS], &[layer; WEIGHTS]);
        Ok(HostWeights::from_tensors(&[("layer".to_owned(), weight)])?)
    }

    fn load(
        &self,
        component: &str,
        options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let mut session = self.load_unbound(component, options)?;
        if component.contains('.') {
            session.bind(self.weights(component)?.mapped());
        }
        Ok(session)
    }

    fn load_unbound(
        &self,
        component: &str,
        _options: &LoadOptions,
    ) -> Result<Box<dyn Session>, EngineError> {
        let (kind, layer) = component
            .split_once('.')
            .map_or((component, 0), |(k, n)| (k, n.parse().unwrap()));
        let contract = match kind {
            "dit_layer" if self.config.audio_inject_layers.contains(&layer) => &dit::LAYER_AUDIO,
            "dit_layer" => &dit::LAYER,
            "dit_embed" => &dit::EMBED,
            "dit_head" => &dit::HEAD,
            "dit_sink_embed" => &dit::SINK_EMBED,
            "dit_sink_layer" => &dit::SINK_LAYER,
            "vae_encoder_first" => &vae::ENCODER_FIRST,
            "vae_encoder_next" => &vae::ENCODER_NEXT,
            "vae_decoder_first" => &vae::DECODER_FIRST,
            "vae_decoder_next" => &vae::DECODER_NEXT,
            other => panic!("no fake {other}"),
        };
        Ok(Box::new(FakeSession {
            component: component.to_owned(),
            contract,
            layer: 0,
            weights: WeightSet::default(),
            pace: self.pace,
            memory: Arc::clone(&self.memory),
            dim: self.config.dim,
            geometry: self.geometry.clone(),
            fault: self.fault,
            log: self.log.clone(),
            runs: self.runs.clone(),
        }))
    }
}

struct FakeSession {
    component: String,
    contract: &'static Contract,
    /// Of the weights that are bound.
    layer: usize,
    weights: WeightSet,
    pace: Duration,
    memory: Arc<dyn Memory>,
    dim: usize,
    geometry: Geometry,
    fault: Fault,
    log: Arc<Mutex<Vec<String>>>,
    runs: Arc<AtomicUsize>,
}

struct Bound<'a>(BTreeMap<&'static str, View<'a>>);

impl Bound<'_> {
    fn lane(&self, port: &Port, lane: usize) -> &[f32] {
        let view = &self.0[port.name];
        let lanes = view.shape()[0];
        let all = view.as_slice::<f32>();
        let size = all.len() / lanes;
        let lane = if lanes == 1 { 0 } else { lane };
        &all[lane * size..(lane + 1) * size]
    }
}

/// Keeps values small and every bit significant.
fn mix(values: &[f32]) -> f32 {
    values
        .iter()
        .enumerate()
        .fold(0.0, |sum, (i, v)| sum * 0.75 + v * (1.0 + i as f32 / 64.0))
        .sin()
}

fn filled(shape: &[usize], values: impl Fn(usize) -> f32) -> Tensor {
    let lane: usize = shape[1..].iter().product();
    Tensor::from_slice(
        shape,
        &(0..shape[0] * lane)
            .map(|i| values(i / lane))
            .collect::<Vec<_>>(),
    )
}

impl Session for FakeSession {
    fn contract(&self) -> &'static Contract {
        self.contract
    }

    fn recipe(&self) -> Recipe {
        Recipe::Fp32
    }

    fn bind(&mut self, weights: WeightSet) {
        self.weights = weights;
    }

    fn run(
        &mut self,
        inputs: &[(&Port, View<'_>)],
        state: State<'_>,
    ) -> Result<Outputs, EngineError> {
        if let Some((_, weight)) = self.weights.iter().next() {
            let layer = weight.as_slice::<f32>();
            self.layer = layer[0] as usize;
            assert!(
                layer.iter().all(|l| *l == layer[0]),
                "weights of two layers"
            );
            self.component = format!("{}.{:02}", self.kind(), self.layer);
        } else {
            assert!(
                !self.component.contains('.'),
                "{} without weights",
                self.component
            );
        }
        self.log.lock().unwrap().push(self.component.clone());
        let wanted: Vec<&str> = self.contract.inputs.iter().map(|p| p.name).collect();
        let got: Vec<&str> = inputs.iter().map(|(p, _)| p.name).collect();
        assert_eq!(got, wanted, "{}", self.component);
        let name_of = |name: &str| {
            self.contract
                .inputs
                .iter()
                .find(|p| p.name == name)
                .unwrap()
                .name
        };
        let bound = Bound(
            inputs
                .iter()
                .map(|(p, v)| (name_of(p.name), v.clone()))
                .collect(),
        );
        let lanes = inputs[0].1.shape()[0];
        let outputs: Vec<(&Port, Tensor)> = match self.contract.name {
            "dit_embed" => self.embed(&bound, lanes),
            "dit_head" => self.head(&bound, lanes),
            "dit_sink_embed" => self.sink_embed(&bound),
            "dit_sink_layer" => self.sink_layer(&bound),
            name if name.starts_with("vae") => self.code(&bound, state),
            _ => self.attend(&bound, lanes, state)?,
        };
        let here = |t: Tensor| t.copied_to(&*self.memory, Class::Activations);
        let outputs = outputs
            .into_iter()
            .map(|(p, t)| Ok((p.name.to_owned(), here(t)?)));
        Ok(outputs
            .collect::<Result<BTreeMap<_, _>, EngineError>>()?
            .into())
    }
}

impl FakeSession {
    /// The component's name without a layer.
    fn kind(&self) -> &str {
        self.component.split('.').next().unwrap()
    }

    fn embed(&self, bound: &Bound<'_>, lanes: usize) -> Vec<(&'static Port, Tensor)> {
        let g = &self.geometry;
        let hidden = |l| mix(bound.lane(&dit::LATENTS, l)) + mix(bound.lane(&dit::POSE_LATENTS, l));
        let time = |l| mix(bound.lane(&dit::SINUSOID, l));
        vec![
            (
                &dit::HIDDEN_OUT,
                filled(&[lanes, g.block_tokens(), self.dim], hidden),
            ),
            (
                &dit::E_OUT,
                filled(&[lanes, g.block_frames, self.dim], time),
            ),
            (
                &dit::E0_OUT,
                filled(&[lanes, g.block_frames, 6, self.dim], |l| 0.5 * time(l)),
            ),
        ]
    }

    fn attend(
        &self,
        bound: &Bound<'_>,
        lanes: usize,
        state: State<'_>,
    ) -> Result<Vec<(&'static Port, Tensor)>, EngineError> {
        let g = &self.geometry;
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::Fails { layer, run: at } if layer == self.layer && run >= at => {
                return Err(EngineError::Memory {
                    component: self.component.clone(),
                    reason: "as planned".to_owned(),
                });
            }
            Fault::Panics { layer, run: at } if layer == self.layer && run >= at => {
                panic!("as planned")
            }
            _ => {}
        }
        std::thread::sleep(self.pace);
        let State::InPlace(mut rings) = state else {
            panic!("a layer has rings")
        };
        let (slots, lengths) = (
            bound.0[dit::SLOT.name].as_slice::<i64>(),
            bound.0[dit::KV_LEN.name].as_slice::<i64>(),
        );
        let mut hidden = Vec::new();
        for lane in 0..lanes {
            let x = bound.lane(&dit::HIDDEN, lane)[0] + self.layer as f32;
            let (slot, filled) = (slots[lane] as usize, lengths[lane] as usize - g.sink_tokens);
            let mut seen = 0.0;
            for (_, ring) in &mut rings {
                assert_eq!(ring.shape(), [lanes, g.heads, g.ring_tokens(), g.head_dim]);
                let size = g.heads * g.ring_tokens() * g.head_dim;
                let ring = &mut ring.as_mut_slice::<f32>()[lane * size..(lane + 1) * size];
                ring[slot * g.head_dim..(slot + g.block_tokens()) * g.head_dim].fill(x);
                seen += mix(&ring[..filled * g.head_dim]);
            }
            let audio = if self.contract.name == dit::LAYER_AUDIO.name {
                mix(bound.lane(&dit::AUDIO_GLOBAL, lane))
                    + mix(bound.lane(&dit::AUDIO_LOCAL, lane))
                        * bound.lane(&dit::ACTOR_MASK, lane)[0]
            } else {
                0.0
            };
            let shared = [&dit::SINK_K, &dit::SINK_V, &dit::TEXT_K, &dit::TEXT_V]
                .map(|p| mix(bound.lane(p, lane)));
            let own = [
                &dit::E0,
                &dit::ROPE_COS,
                &dit::ROPE_SIN,
                &dit::SINK_ROPE_COS,
                &dit::SINK_ROPE_SIN,
            ]
            .map(|p| mix(bound.lane(p, lane)));
            hidden.push((x + seen + audio + mix(&shared) + mix(&own)).sin());
        }
        let out = filled(&[lanes, g.block_tokens(), self.dim], |l| hidden[l]);
        Ok(vec![(&dit::HIDDEN_OUT, out)])
    }

    fn head(&self, bound: &Bound<'_>, lanes: usize) -> Vec<(&'static Port, Tensor)> {
        let shape = bound.0[dit::LATENTS.name].shape();
        let v = |l| bound.lane(&dit::HIDDEN, l)[0] + bound.lane(&dit::E, l)[0];
        let pred = filled(shape, v);
        let mut next = Tensor::zeros(DType::F32, shape);
        let size = next.as_slice::<f32>().len() / lanes;
        for (i, out) in next.as_mut_slice::<f32>().iter_mut().enumerate() {
            let sigmas = bound.lane(&dit::SIGMAS, i / size);
            *out = bound.lane(&dit::LATENTS, i / size)[i % size]
                + (sigmas[1] - sigmas[0]) * v(i / size);
        }
        vec![(&dit::NOISE_PRED, pred), (&dit::NEXT_LATENTS, next)]
    }

    /// A VAE whose frames are the mean of their latent, and the other way round. Caches count calls, so that a stream that starts or goes
    /// on wrongly is noticed.
    fn code(&self, bound: &Bound<'_>, state: State<'_>) -> Vec<(&'static Port, Tensor)> {
        let State::Replace(cache) = state else {
            panic!("a VAE has caches")
        };
        let first = self.contract.state_kind == StateKind::Produce;
        assert_eq!(cache.is_empty(), first, "{}", self.component);
        for port in self.contract.state {
            let known = first || cache.contains_key(port.name);
            assert!(known, "{}: {}", self.component, port.name);
            cache.insert(port.name, Tensor::zeros(DType::F32, &[1]));
        }
        let view = &bound.0[self.contract.inputs[0].name];
        let values = view.as_slice::<f32>();
        let mean = (values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64) as f32;
        let (h, w) = (view.shape()[3], view.shape()[4]);
        let frames = if first { 1 } else { vae::TEMPORAL_STRIDE };
        if self.contract.name.starts_with("vae_encoder") {
            assert_eq!(view.shape(), [1, 3, frames, h, w]);
            return vec![(
                &vae::LATENTS_OUT,
                filled(&[1, 16, 1, h / 8, w / 8], |_| mean),
            )];
        }
        assert_eq!(view.shape(), [1, 16, 1, h, w]);
        let level = (mean.clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0;
        let rgb = Tensor::from_slice(
            &[frames, 8 * h, 8 * w, 3],
            &vec![level as u8; frames * 64 * h * w * 3],
        );
        vec![
            (
                &vae::FRAMES_NEXT,
                filled(&[1, 3, frames, 8 * h, 8 * w], |_| mean),
            ),
            (&vae::FRAMES_U8_NEXT, rgb),
        ]
    }

    fn sink_embed(&self, bound: &Bound<'_>) -> Vec<(&'static Port, Tensor)> {
        let x = mix(bound.lane(&dit::REF_LATENTS, 0)) + mix(bound.lane(&dit::MOTION_LATENTS, 0));
        vec![
            (
                &dit::SINK_TOKENS,
                filled(&[1, self.geometry.sink_tokens, self.dim], |_| x),
            ),
            (&dit::SINK_E0, filled(&[1, 1, 6, self.dim], |_| 0.25)),
        ]
    }

    fn sink_layer(&self, bound: &Bound<'_>) -> Vec<(&'static Port, Tensor)> {
        let g = &self.geometry;
        let x = (bound.lane(&dit::SINK_HIDDEN, 0)[0]
            + mix(bound.lane(&dit::TEXT, 0))
            + self.layer as f32)
            .sin();
        let kv = |v: f32| filled(&[1, g.heads, g.sink_tokens, g.head_dim], |_| v);
        vec![
            (
                &dit::SINK_HIDDEN_OUT,
                filled(&[1, g.sink_tokens, self.dim], |_| x),
            ),
            (&dit::SINK_K_OUT, kv(x)),
            (&dit::SINK_V_OUT, kv(x + 1.0)),
            (&dit::TEXT_K_OUT, kv(x * 0.5)),
            (&dit::TEXT_V_OUT, kv(x * 0.25)),
        ]
    }
}
