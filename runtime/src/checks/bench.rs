//! Times every component at given sizes, on made-up tensors. The program
//! `scripts/reference/bench_torch.py` times the same parts of the same checkpoint in PyTorch.

use std::fmt;
use std::time::Instant;

use engines::backend::ort::Ort;
use engines::backend::{Backend, EngineError, LoadOptions, NamedCall, Session};
use engines::components::{dit, speech, symbols, text, vae};
use engines::contract::Port;
use engines::dim::Bindings;

use crate::checks::made_up;
use crate::numbers::geometry::Geometry;
use crate::numbers::size::Size;

/// The sizes and the runs that are timed.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Sizes of the run that is timed, with its ring.
    pub geometry: Geometry,
    /// Lanes of a denoising call.
    pub lanes: usize,
    /// Number of timed runs. One run before them warms up.
    pub runs: usize,
}

/// Time of one part of the model.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Row {
    /// The part of the model, with its size.
    pub what: String,
    /// Calls of components that the part makes.
    pub calls: usize,
    /// Median of the timed runs, in milliseconds.
    pub median_ms: f64,
    /// Shortest timed run, in milliseconds.
    pub min_ms: f64,
}

/// Times of an export.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Report {
    /// Size of the video.
    pub size: Size,
    /// Lanes of a denoising call.
    pub lanes: usize,
    /// Threads of the CPU.
    pub threads: usize,
    /// The parts, in the order of a run.
    pub rows: Vec<Row>,
}

/// Samples of five seconds of speech.
const SPEECH_SAMPLES: usize = 80_000;
/// Tokens of a long prompt, and of the longest prompt.
const PROMPTS: [i64; 2] = [100, 512];

/// Times every component.
///
/// # Errors
/// A component does not load or does not run.
pub(crate) fn run(backend: &Ort, threads: usize, request: &Request) -> Result<Report, EngineError> {
    let bench = Bench::new(backend, request);
    let mut rows = Vec::new();
    for tokens in PROMPTS {
        let sizes = [(symbols::SEQUENCE, tokens)];
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
        &[
            (symbols::SEQUENCE, frames),
            (symbols::SEQUENCE_ROWS, frames),
        ],
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
        &[(symbols::LANES, 1)],
    )?);
    let denoise = [dit::EMBED.name.to_owned()]
        .into_iter()
        .chain((0..layers).map(dit::layer_name))
        .chain([dit::HEAD.name.to_owned()]);
    let what = format!("DiT call, {} lanes, full ring", request.lanes);
    rows.push(bench.time(what, &denoise.collect::<Vec<_>>(), &[])?);
    Ok(Report {
        size: request.geometry.size,
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
        let mut sizes = request.geometry.bindings(config, request.lanes);
        sizes.extend(symbols::bindings([(symbols::SAMPLES, SPEECH_SAMPLES)]));
        Self {
            backend,
            config,
            sizes,
            runs: request.runs,
        }
    }

    /// Times the components, which run one after the other, as one part.
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
            let session = self.backend.load(name, &LoadOptions::default())?;
            parts.push(Part::new(self.backend, session, &all)?);
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

/// One loaded component, and a call of the wanted sizes.
struct Part {
    session: Box<dyn Session>,
    call: NamedCall,
}

impl Part {
    fn new(
        backend: &Ort,
        session: Box<dyn Session>,
        sizes: &Bindings,
    ) -> Result<Self, EngineError> {
        let keys = sizes[symbols::SINK_TOKENS] + sizes[symbols::RING_TOKENS];
        let (contract, recipe) = (session.contract(), session.recipe());
        let ports = contract.graph_inputs();
        let made = |p: &Port| {
            (
                p.name.to_owned(),
                made_up::for_port(p, recipe, sizes, keys, 1),
            )
        };
        let call = NamedCall::new(&*session, ports.map(made).collect())?;
        let call = call.with_state_in(&**backend.memory())?;
        Ok(Self { session, call })
    }

    /// Runs once and returns the milliseconds.
    fn run(&mut self) -> Result<f64, EngineError> {
        // State goes on from call to call, as in a video.
        let start = Instant::now();
        self.call.run(&mut *self.session)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
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
