//! One video, from files to a file: preprocessing, conditions, the executor, decoding and writing, each a call into its module.

pub(crate) mod output;
pub(crate) mod trace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use engines::backend::Backend;
use engines::components::dit::DitConfig;
use engines::manifest::Models;
use engines::tensor::Tensor;

use crate::chain::call::Tables;
use crate::chain::decoders::{ClipDecoder, DROPPED_FRAMES, Mode, PictureLatents, StreamDecoder};
use crate::chain::encoders::{self, AudioAdapter, ClipSource, Noise};
use crate::chain::events::{Cancel, Event, Observer, Settings, Summary};
use crate::chain::executor::{self, FINISHED_WAITING, Feedback, Finished, Job, Swap};
use crate::numbers::geometry::Geometry;
use crate::chain::vae::{Decoder, Encoder};
use crate::commands::error::Error;
use crate::generate::output::Output;
use crate::inputs::replay::{Distances, Replay};
use crate::inputs::prompt::{Prompt, Prompter};
use crate::inputs::speech::{AudioFeatures, Speech};
use crate::media::mp4::Encoding;
use crate::numbers::timing::FPS;
use crate::media::picture::{Fit, Picture};
use crate::numbers::size::{Size, SizeMode};
use crate::placement::devices::{Devices, MemorySize};
use crate::placement::footprint::{Footprints, Workload};
use crate::placement::plan::{Lanes, Plan, PlanError, Residency, Stages};
use engines::backend::{Loading, plain};

/// How many clips to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clips {
    /// As many as the recording fills, the last one padded with silence.
    #[default]
    Auto,
    /// At most this many, and never more than the recording fills.
    AtMost(usize),
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    pub image: PathBuf,
    pub audio: PathBuf,
    pub prompt: String,
    pub size: Size,
    pub size_mode: SizeMode,
    pub fit: Fit,
    pub clips: Clips,
    pub steps: usize,
    pub infer_frames: usize,
    /// Blocks that attention sees back, this one among them; a clip's without.
    pub ring_blocks: Option<usize>,
    pub seed: u64,
    pub mode: Mode,
    /// A finished placement, from a profile; the fields below do not matter then.
    pub placement: Option<Plan>,
    pub stages: Stages,
    pub lanes: Lanes,
    /// What of every stage stays on its device.
    pub residency: Residency,
    /// Device of the VAE decoder; that of the first stage unless told.
    pub vae_device: Option<usize>,
    /// Budget of each virtual device.
    pub device_memory: Option<MemorySize>,
    /// Recorded noise and distances instead of seeded ones.
    pub replay: Option<PathBuf>,
    /// Where to write what the run computed.
    pub trace: Option<PathBuf>,
    pub contact_sheet: Option<PathBuf>,
    pub encoding: Encoding,
    pub out: PathBuf,
}

impl Request {
    /// The placement that is asked for.
    ///
    /// # Errors
    /// One that does not cover the model.
    pub fn plan(&self, model: &DitConfig) -> Result<Plan, PlanError> {
        if let Some(plan) = &self.placement {
            return Ok(plan.clone());
        }
        let plan = Plan::new(&self.stages, self.lanes, model.layers, self.steps)?;
        let plan = plan.with_residency(self.residency)?;
        let vae = self.vae_device.unwrap_or(plan.vae);
        Ok(plan.with_vae(vae))
    }

    /// Budget of the virtual devices that the placement needs: `None` when the process's own memory will do, which has no budget and to
    /// which nothing streams.
    pub fn virtual_budget(&self) -> Option<u64> {
        let streams = self.residency != Residency::default();
        let unlimited = streams.then_some(u64::MAX);
        self.device_memory.map(|m| m.0).or(unlimited)
    }
}

/// An opened export and what runs it.
#[derive(Clone)]
pub struct Engine<'a> {
    pub models: &'a Models,
    pub devices: Devices<'a>,
    /// Taps and faults per component; [`plain`] for none.
    pub options: Loading<'a>,
}

impl<'a> Engine<'a> {
    /// One backend for everything, without taps or faults.
    pub fn new(models: &'a Models, backend: &'a dyn Backend) -> Self {
        Self::on(models, Devices::one(backend))
    }

    /// Without taps or faults.
    pub fn on(models: &'a Models, devices: Devices<'a>) -> Self {
        Self {
            models,
            devices,
            options: &plain,
        }
    }
}

/// Everything that is known before a model runs.
struct Inputs {
    geometry: Geometry,
    tables: Tables,
    plan: Plan,
    prompt: Prompt,
    /// `[3, H, W]` in [-1, 1].
    picture: Tensor,
    speech: Speech,
    replay: Option<Replay>,
    settings: Settings,
}

/// Generates one video.
///
/// # Errors
/// Anything of the request, the inputs, the model or the output that cannot be used. [`Error::Interrupted`] names the playable part.
pub fn generate(
    engine: &Engine<'_>,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Summary, Error> {
    let begun = Instant::now();
    let inputs = prepare(engine, request, observer)?;
    observer.event(&Event::Started(&inputs.settings));
    let mut output = Output::create(request, &inputs.settings, observer, begun)?;
    match produce(engine, request, &inputs, &mut output, observer, cancel) {
        Ok(()) => output.finish(request, &inputs.geometry),
        Err(error) => Err(output.abandon(error, cancel)),
    }
}

fn prepare(
    engine: &Engine<'_>,
    request: &Request,
    observer: &dyn Observer,
) -> Result<Inputs, Error> {
    observer.event(&Event::Phase("reading inputs"));
    let config = &engine.models.config().dit;
    writable(request)?;
    let picture = Picture::open(&request.image)?;
    let effective = request.size.effective(request.size_mode, picture.size())?;
    let geometry = Geometry::new(config, effective, request.infer_frames)?;
    let geometry = match request.ring_blocks {
        Some(blocks) => geometry.with_ring(blocks)?,
        None => geometry,
    };
    let tables = Tables::new(geometry.clone(), request.steps)?;
    let plan = request.plan(config)?;
    let prompt = Prompter::open(&engine.models.tokenizer())?.encode(&request.prompt)?;
    let speech = Speech::open(&request.audio)?;
    let in_audio = speech.clips(request.infer_frames);
    let clips = match request.clips {
        Clips::Auto => in_audio,
        Clips::AtMost(n) => n.min(in_audio),
    };
    let replay = request
        .replay
        .as_deref()
        .map(|p| Replay::open(p, &geometry, clips, request.steps))
        .transpose()?;
    fits(engine, request, &plan, &geometry, &speech, clips)?;
    let fitted = picture.fitted(request.size, request.size_mode, request.fit)?;
    let pixels = Tensor::from_slice(&[3, effective.height, effective.width], &fitted.pixels());
    let settings = settings(
        request,
        &geometry,
        &plan,
        &prompt,
        &speech,
        picture.size(),
        clips,
    );
    shorter_ring(&geometry, observer);
    notices(request, &settings, &prompt, &speech, observer);
    Ok(Inputs {
        geometry,
        tables,
        plan,
        prompt,
        picture: pixels,
        speech,
        replay,
        settings,
    })
}

fn shorter_ring(geometry: &Geometry, observer: &dyn Observer) {
    let (ring, clip) = (geometry.ring_blocks, geometry.clip_blocks);
    if ring < clip {
        observer.event(&Event::Notice(format!(
            "ring_blocks {ring}: attention sees {ring} of the model's {clip} blocks back; the video differs from the reference's"
        )));
    }
}

/// Refuses a placement whose devices are too small before anything is loaded.
fn fits(
    engine: &Engine<'_>,
    request: &Request,
    plan: &Plan,
    geometry: &Geometry,
    speech: &Speech,
    clips: usize,
) -> Result<(), Error> {
    let config = engine.models.config();
    for device in plan.device_ids() {
        engine.devices.get(device)?;
    }
    let samples = speech.samples.len();
    let work = Workload {
        config,
        geometry,
        swaps: request.mode != Mode::Single && clips > 1,
        encodes_motion: request.mode != Mode::Tpp,
        speech_frames: config.speech.frames(samples).unwrap_or(0),
    };
    Footprints::new(&engine.devices, plan, work)?.check(&engine.devices)
}

fn settings(
    request: &Request,
    geometry: &Geometry,
    plan: &Plan,
    prompt: &Prompt,
    speech: &Speech,
    picture_size: Size,
    clips: usize,
) -> Settings {
    let frames = clips * geometry.clip_video_frames() - DROPPED_FRAMES;
    Settings {
        requested_size: request.size,
        effective_size: geometry.size,
        size_mode: request.size_mode,
        picture_size,
        mode: request.mode.name(),
        clips,
        clips_in_audio: speech.clips(request.infer_frames),
        blocks: clips * geometry.clip_blocks,
        clip_blocks: geometry.clip_blocks,
        frames,
        video_seconds: frames as f64 / f64::from(FPS),
        audio_seconds: speech.seconds(),
        steps: request.steps,
        infer_frames: request.infer_frames,
        seed: request.seed,
        prompt: prompt.cleaned.clone(),
        prompt_tokens: prompt.ids.len(),
        placement: plan.to_string(),
        out: Some(request.out.clone()),
    }
}

fn notices(
    request: &Request,
    settings: &Settings,
    prompt: &Prompt,
    speech: &Speech,
    observer: &dyn Observer,
) {
    let tell = |text: String| observer.event(&Event::Notice(text));
    if let Clips::AtMost(wanted) = request.clips
        && wanted > settings.clips
    {
        tell(format!(
            "num_clip {wanted} is cut to {}: the recording of {:.2} s fills no more",
            settings.clips, settings.audio_seconds
        ));
    }
    if prompt.truncated {
        tell(format!(
            "prompt is cut to its first {} tokens",
            settings.prompt_tokens
        ));
    }
    if speech.silent {
        tell("recording is silent; the lips will hardly move".to_owned());
    }
    if request.steps != 4 {
        tell(format!(
            "sample_steps {}: the model is distilled for 4",
            request.steps
        ));
    }
}

/// Side files are written at the end of a long run, so their folders are made before it.
fn writable(request: &Request) -> Result<(), Error> {
    for path in [&request.trace, &request.contact_sheet]
        .into_iter()
        .flatten()
    {
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Conditions first, one encoder at a time; then denoising, decoding and writing at once.
fn produce(
    engine: &Engine<'_>,
    request: &Request,
    inputs: &Inputs,
    output: &mut Output<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (options, config) = (engine.options, engine.models.config());
    let backend = engine.devices.get(inputs.plan.encoders)?;
    let checked = |phase| {
        observer.event(&Event::Phase(phase));
        if cancel.is_cancelled() {
            Err(Error::Interrupted {
                frames: 0,
                partial: None,
            })
        } else {
            Ok(())
        }
    };
    checked("encoding the prompt")?;
    let context = encoders::encode_text(backend, options, &inputs.prompt.ids)?;
    let text = Arc::new(encoders::embed_text(
        backend,
        options,
        &config.dit,
        &context,
    )?);
    checked("encoding the speech")?;
    let features = encoders::audio_features(&encoders::encode_speech(
        backend,
        options,
        &config.speech,
        &inputs.speech.input_values(),
        encoders::SpeechChunk::default(),
    )?)?;
    checked("encoding the picture")?;
    let latents = PictureLatents::encode(
        &mut Encoder::load(backend, options, &config.vae)?,
        &inputs.picture,
        request.mode,
    )?;
    let distances = Distances {
        seed: request.seed,
        replay: inputs.replay.as_ref(),
    };
    output.keep_conditions(
        request.mode,
        &context,
        &latents,
        &distances,
        &inputs.settings,
    );
    checked("denoising")?;
    let swap = match request.mode {
        Mode::Tpp => Swap::FirstLatent,
        Mode::Single => Swap::Never,
        Mode::SingleOnline => Swap::Fed,
    };
    let job = Job {
        devices: &engine.devices,
        options,
        plan: &inputs.plan,
        tables: &inputs.tables,
        model: &config.dit,
        steps: request.steps,
        blocks: inputs.settings.blocks,
        swap,
        distances: &distances,
        text,
        anchor: latents.anchor(),
        cancel,
        observer,
    };
    denoise_and_decode(engine, request, inputs, &features, latents, &job, output)
}

/// The denoiser on this thread and its own, the decoder with the writer on another.
fn denoise_and_decode(
    engine: &Engine<'_>,
    request: &Request,
    inputs: &Inputs,
    features: &AudioFeatures,
    latents: PictureLatents,
    job: &Job<'_>,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    output.denoising = Some(Instant::now());
    let noise = inputs
        .replay
        .as_ref()
        .map_or(Noise::Seed(request.seed), Noise::Replay);
    let backend = engine.devices.get(inputs.plan.encoders)?;
    let adapter = AudioAdapter::load(backend, engine.options)?;
    let mut source = ClipSource::new(&inputs.geometry, noise, features, adapter);
    let (feedback, inbox) = executor::inbox(&inputs.plan, request.steps);
    let (sender, finished) = sync_channel(FINISHED_WAITING);
    let (denoised, decoded) = thread::scope(|scope| {
        // The thread owns the feedback, so that the denoiser learns when it ends.
        let decoding = scope.spawn(move || {
            decode(
                engine,
                request.mode,
                inputs,
                latents,
                job.cancel,
                &finished,
                &feedback,
                output,
            )
        });
        let denoised = executor::run(job, &mut source, sender, inbox);
        let decoded = decoding
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (denoised, decoded)
    });
    // Whoever stopped only because the other did has nothing to say.
    match (denoised, decoded) {
        (Err(Error::Stopped), Err(error)) | (Err(error), _) | (Ok(()), Err(error)) => Err(error),
        (Ok(()), Ok(())) => Ok(()),
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the decoder's thread: everything it owns or borrows"
)]
fn decode(
    engine: &Engine<'_>,
    mode: Mode,
    inputs: &Inputs,
    latents: PictureLatents,
    cancel: &Cancel,
    finished: &std::sync::mpsc::Receiver<Finished>,
    feedback: &Feedback,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let (options, vae) = (engine.options, &engine.models.config().vae);
    let backend = engine.devices.get(inputs.plan.vae)?;
    let decoder = Decoder::load(backend, options, vae)?;
    let (clip_blocks, blocks, clips) = (
        inputs.geometry.clip_blocks,
        inputs.settings.blocks,
        inputs.settings.clips,
    );
    let motion_latents = latents.motion_latents;
    if mode == Mode::Tpp {
        let stage = StreamDecoder {
            decoder,
            motion_latents: &motion_latents,
            clip_blocks,
            blocks,
        };
        return stage.run(finished, output, cancel);
    }
    let encoder = Encoder::load(backend, options, vae)?;
    let (picture, online) = (&inputs.picture, mode == Mode::SingleOnline);
    let stage = ClipDecoder {
        decoder,
        encoder,
        picture,
        motion_latents,
        clip_blocks,
        clips,
        online,
    };
    stage.run(finished, feedback, output, cancel)
}
