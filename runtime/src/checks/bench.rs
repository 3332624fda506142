//! Times of every component at given sizes, on random tensors: what one call costs, without inputs, order or files. Compare with
//! `scripts/reference/bench_torch.py`, which times the same cuts of the same checkpoint in PyTorch.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use engines::backend::ort::Ort;
use engines::backend::{Backend, EngineError, FeatureCache, LoadOptions, Session, State};
use engines::components::{dit, speech, text, vae};
use engines::contract::{Contract, DType, Port, Sizes, StateKind};
use engines::dim::Bindings;
use engines::recipe::Recipe;
use engines::tensor::{Element, Tensor};
use half::{bf16, f16};

use crate::numbers::size::Size;

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub size: Size,
    /// Lanes of a denoising call.
    pub lanes: usize,
    /// Timed runs after one that is not; the median is told.
    pub runs: usize,
}

/// Time of one component.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Row {
    pub what: String,
    pub calls: usize,
    pub median_ms: f64,
    pub min_ms: f64,
}

/// Times of an export.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    pub size: Size,
    pub lanes: usize,
    pub threads: usize,
    pub rows: Vec<Row>,
}

/// Samples of five seconds of speech.
const SPEECH_SAMPLES: usize = 80_000;
/// Tokens of a long prompt, and of the longest.
const PROMPTS: [i64; 2] = [100, 512];

/// Times every component.
///
/// # Errors
/// A component that does not load or fails.
pub fn run(backend: &Ort, threads: usize, request: &Request) -> Result<Report, EngineError> {
    let bench = Bench::new(backend, request);
    let mut rows = Vec::new();
    for tokens in PROMPTS {
        let sizes = [("t", tokens)];
        rows.push(bench.time(
            format!("text encoder, {tokens} tokens"),
            &[text::ENCODER.name.to_owned()],
            &sizes,
        )?);
    }
    let layers = (0..bench.config.speech.layers).map(|l| bench.config.speech.layer(l).0);
    let speech_encoder = [
        speech::ENCODER_FEATURES.name.to_owned(),
        speech::ENCODER_POSITIONS.name.to_owned(),
    ];
    let speech_encoder: Vec<String> = speech_encoder.into_iter().chain(layers).collect();
    let frames = bench.config.speech.frames(SPEECH_SAMPLES).unwrap_or(1) as i64;
    rows.push(bench.time(
        "speech encoder, 5 s".to_owned(),
        &speech_encoder,
        &[("t", frames), ("r", frames)],
    )?);
    rows.push(bench.time(
        "audio adapter, 1 block".to_owned(),
        &[speech::ADAPTER.name.to_owned()],
        &[],
    )?);
    rows.push(bench.time(
        "VAE encoder, 4 frames".to_owned(),
        &[vae::ENCODER_NEXT.name.to_owned()],
        &[],
    )?);
    let decode = vae::DECODER_NEXT.name.to_owned();
    rows.push(bench.time(
        "VAE decoder, 1 block".to_owned(),
        &vec![decode; bench.config.dit.block_frames],
        &[],
    )?);
    let layers = bench.config.dit.layers;
    let sink = [dit::SINK_EMBED.name.to_owned()]
        .into_iter()
        .chain((0..layers).map(dit::sink_layer_name));
    rows.push(bench.time(
        "DiT sink prefill".to_owned(),
        &sink.collect::<Vec<_>>(),
        &[("B", 1)],
    )?);
    let denoise = [dit::EMBED.name.to_owned()]
        .into_iter()
        .chain((0..layers).map(dit::layer_name))
        .chain([dit::HEAD.name.to_owned()]);
    let what = format!("DiT call, {} lanes, full ring", request.lanes);
    rows.push(bench.time(what, &denoise.collect::<Vec<_>>(), &[])?);
    Ok(Report {
        size: request.size,
        lanes: request.lanes,
        threads,
        rows,
    })
}

struct Bench<'a> {
    backend: &'a Ort,
    config: &'a engines::manifest::ModelConfig,
    sizes: Bindings,
    runs: usize,
}

impl<'a> Bench<'a> {
    fn new(backend: &'a Ort, request: &Request) -> Self {
        let config = backend.models().config();
        let (h, w) = request.size.tokens();
        let (latent_h, latent_w) = request.size.latent();
        let ring = 4 * config.dit.block_frames * h * w;
        let mut sizes = config.dit.bindings();
        for more in [
            config.vae.bindings(),
            config.text.bindings(),
            config.speech.bindings(),
        ] {
            sizes.extend(more);
        }
        let own = [
            ("h", h),
            ("w", w),
            ("H", latent_h),
            ("W", latent_w),
            ("S", ring),
            ("C", config.dit.sink_tokens(h, w)),
            ("B", request.lanes),
            ("G", 1),
            ("A", 1),
        ];
        sizes.extend(own.map(|(k, v)| (k.to_owned(), v as i64)));
        sizes.insert("s".to_owned(), SPEECH_SAMPLES as i64);
        Self {
            backend,
            config,
            sizes,
            runs: request.runs,
        }
    }

    /// Times the components one after the other as one thing.
    fn time(
        &self,
        what: String,
        components: &[String],
        sizes: &[(&str, i64)],
    ) -> Result<Row, EngineError> {
        let mut all = self.sizes.clone();
        all.extend(sizes.iter().map(|&(k, v)| (k.to_owned(), v)));
        let mut parts = Vec::new();
        for name in components {
            parts.push(Part::new(
                self.backend.load(name, &LoadOptions::default())?,
                &all,
            ));
        }
        let mut times = Vec::new();
        for _ in 0..=self.runs {
            let mut total = 0.0;
            for part in &mut parts {
                total += part.run()?;
            }
            times.push(total);
        }
        let mut timed = times.split_off(1);
        timed.sort_by(f64::total_cmp);
        Ok(Row {
            what,
            calls: components.len(),
            median_ms: timed[timed.len() / 2],
            min_ms: timed[0],
        })
    }
}

/// One loaded component and tensors of the wanted sizes.
struct Part {
    session: Box<dyn Session>,
    inputs: Vec<(&'static Port, Tensor)>,
    state: BTreeMap<&'static str, Tensor>,
}

impl Part {
    fn new(session: Box<dyn Session>, sizes: &Bindings) -> Self {
        let contract: &'static Contract = session.contract();
        let recipe = session.recipe();
        let state = if contract.state_kind == StateKind::Produce {
            &[][..]
        } else {
            contract.state
        };
        Self {
            inputs: contract
                .inputs
                .iter()
                .map(|p| (p, filled(p, recipe, sizes)))
                .collect(),
            state: state
                .iter()
                .map(|p| (p.name, filled(p, recipe, sizes)))
                .collect(),
            session,
        }
    }

    /// Milliseconds of one run.
    fn run(&mut self) -> Result<f64, EngineError> {
        let inputs: Vec<_> = self.inputs.iter().map(|(p, t)| (*p, t.view())).collect();
        let mut cache = FeatureCache::new();
        let state = match self.session.contract().state_kind {
            StateKind::InPlace => State::InPlace(
                self.state
                    .iter_mut()
                    .map(|(n, t)| (*n, t.view_mut()))
                    .collect(),
            ),
            StateKind::Replace if !self.state.is_empty() => {
                cache.extend(self.state.iter().map(|(n, t)| (*n, t.clone())));
                State::Replace(&mut cache)
            }
            _ => State::None,
        };
        let start = Instant::now();
        self.session.run(&inputs, state)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// A tensor of the port's shape: floats of about unit variance from a fixed sequence, whole numbers that mean a full ring.
fn filled(port: &Port, recipe: Recipe, sizes: &Bindings) -> Tensor {
    let shape: Vec<usize> = port
        .dims()
        .iter()
        .map(|d| {
            d.eval(sizes)
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(1)
        })
        .collect();
    let mut t = Tensor::zeros(port.dtype(recipe), &shape);
    match port.dtype(recipe) {
        DType::F32 => fill(&mut t, noise()),
        DType::BF16 => fill(&mut t, noise().map(bf16::from_f32)),
        DType::F16 => fill(&mut t, noise().map(f16::from_f32)),
        DType::I64 => {
            let value = match port.name {
                n if n == dit::KV_LEN.name => sizes["C"] + sizes["S"],
                n if n == dit::SLOT.name => 0,
                _ => 3,
            };
            fill(&mut t, std::iter::repeat(value));
        }
        DType::U8 | DType::Bool => {}
    }
    t
}

fn fill<E: Element>(t: &mut Tensor, values: impl Iterator<Item = E>) {
    let all = t.as_mut_slice::<E>().iter_mut().zip(values);
    all.for_each(|(x, v)| *x = v);
}

/// Uniform with variance 1, always the same.
fn noise() -> impl Iterator<Item = f32> {
    let next = |state: &u64| {
        let state = state.wrapping_mul(6_364_136_223_846_793_005);
        Some(state.wrapping_add(1_442_695_040_888_963_407))
    };
    let states = std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), next).skip(1);
    states.map(|s| ((s >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<32} {:>6} {:>12} {:>12}",
            format!("{}, {} threads", self.size, self.threads),
            "calls",
            "median ms",
            "min ms"
        )?;
        for r in &self.rows {
            writeln!(
                f,
                "{:<32} {:>6} {:>12.1} {:>12.1}",
                r.what, r.calls, r.median_ms, r.min_ms
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_every_recipe_are_filled_with_the_same_noise() {
        let sizes: Bindings = [
            ("B", 2),
            ("h", 4),
            ("w", 4),
            ("F", 3),
            ("D", 8),
            ("C", 40),
            ("S", 96),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let made = |recipe| filled(&dit::HIDDEN, recipe, &sizes);
        let (single, half) = (made(Recipe::Fp32), made(Recipe::Bf16));
        assert_eq!((single.dtype(), half.dtype()), (DType::F32, DType::BF16));
        assert_eq!(single.shape(), half.shape());
        let values = single.as_slice::<f32>();
        let power = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((power - 1.0).abs() < 0.2, "{power} of {}", values.len());
        let rounded = values.iter().map(|&v| bf16::from_f32(v));
        assert!(rounded.eq(half.as_slice::<bf16>().iter().copied()));
        let keys = filled(&dit::KV_LEN, Recipe::Bf16, &sizes);
        assert_eq!(keys.as_slice::<i64>(), [136, 136]);
    }
}
