//! One video, from files to a file: preprocessing, conditions, the executor, decoding and writing,
//! each a call into its room.
//!
//! An [`Engine`] is a model on a placement, and is loaded once. [`Prepared`] holds the inputs of
//! one video. [`Engine::generate`] makes the video. Any number of videos may follow on one engine.

pub(crate) mod engine;
pub(crate) mod error;
pub(crate) mod journal;
pub(crate) mod keeping;
pub(crate) mod monitor;
pub(crate) mod output;
pub(crate) mod prepared;
pub(crate) mod record;
pub(crate) mod request;
pub mod run_file;
pub(crate) mod trace;

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use engines::cancel::Cancel;
use engines::contract::DType;
use engines::tensor::Tensor;

use crate::chain::call::Tables;
use crate::chain::cancellable::Cancellable;
use crate::chain::clock::Begun;
use crate::chain::decoders::{Decoding, PictureLatents, Resumed, VideoDecoder, VideoLength};
use crate::chain::encoders;
use crate::chain::error::ChainError;
use crate::chain::events::{Event, Observer, Phase, PlannedMemory, Settings, Silent, Summary};
use crate::chain::executor;
use crate::chain::hearing::{Ear, Hearing, LiveHearing, SpeechEncoder};
use crate::chain::job::{Guidance, Job};
use crate::chain::source::{ClipSource, Noise, everywhere};
use crate::chain::vae::Encoder;
use crate::inputs::heard::Heard;
use crate::inputs::live::{self, LiveSpeech};
use crate::inputs::replay::{Distances, Replay};
use crate::inputs::speech::{HIDDEN_LAYERS, Speech};
use crate::media::pcm::{self, Arriving};
use crate::numbers::geometry::Geometry;
use crate::numbers::timing::{FPS, Length};
use crate::placement::footprints::{AtATime, Workload};
use crate::placement::queues::FINISHED_WAITING;
use engine::Loaded;
use journal::Found;
use keeping::{Known, StateOf};
use output::{LiveSound, Output};

pub use engine::Engine;
pub use error::GenerateError;
pub use monitor::{Watching, watch};
pub use prepared::Prepared;
pub use request::{ClaimedRequest, Clips, Guiding, Keeping, OutputFiles, Request};

/// Makes one video from a request.
///
/// # Errors
/// As [`Prepared::open`] and [`Engine::generate`].
pub fn generate(
    engine: &Engine,
    request: &Request,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Summary, GenerateError> {
    let begun = engine.clock().begin();
    let prepared = Prepared::open(request.clone(), engine.models(), observer)?;
    engine.generate_since(&prepared, observer, cancel, begun)
}

impl Engine {
    /// Makes one video from prepared inputs.
    ///
    /// # Errors
    /// The placement does not fit the request or the devices, a model cannot run, or an output
    /// cannot be written. [`GenerateError::Interrupted`] names the part of the video that plays.
    pub fn generate(
        &self,
        prepared: &Prepared,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Summary, GenerateError> {
        self.generate_since(prepared, observer, cancel, self.clock().begin())
    }

    /// As [`Self::generate`]; `begun` is when the user began to wait.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn generate_since(
        &self,
        prepared: &Prepared,
        observer: &dyn Observer,
        cancel: &Cancel,
        begun: Begun,
    ) -> Result<Summary, GenerateError> {
        let changed = |source| GenerateError::Suspect {
            source,
            partial: None,
        };
        self.models().unchanged().map_err(changed)?;
        let video = Video::new(self, prepared, observer, cancel)?;
        let planned = video.fits()?;
        observer.event(&Event::Started(&video.settings));
        observer.event(&Event::Planned(&planned));
        let shape = (&video.geometry, &video.settings);
        let kept = StateOf::video(&Known {
            prepared,
            engine: self,
            geometry: shape.0,
            settings: shape.1,
        })?;
        let (sound, arriving) = listen(prepared, cancel)?.unzip();
        let mut output = Output::create(prepared, shape, sound, observer, begun, kept)?;
        match video.produce(arriving, &mut output) {
            Ok(()) => match self.models().unchanged() {
                Ok(()) => output.finish(prepared, shape, self),
                Err(changed) => Err(output.suspect(changed)),
            },
            Err(error) => Err(output.abandon(error, cancel)),
        }
    }
}

/// What the model hears of sound that arrives.
struct Live {
    speech: LiveSpeech,
    end: Arc<OnceLock<usize>>,
}

/// Begins to listen to sound that arrives, if the request has such. Each output gets all of it.
fn listen(
    prepared: &Prepared,
    cancel: &Cancel,
) -> Result<Option<(LiveSound, Live)>, GenerateError> {
    let request = &prepared.request;
    let Some(pcm) = request.live else {
        return Ok(None);
    };
    let outputs = request.files.targets()?.len();
    let Arriving {
        model,
        videos,
        arrivals,
    } = pcm::listen(std::io::stdin(), pcm, outputs, cancel);
    let end = Arc::new(OnceLock::new());
    let sound = LiveSound {
        rate: pcm.rate,
        end: Arc::clone(&end),
        taps: videos,
        arrivals,
    };
    let speech = LiveSpeech::new(model, request.channels);
    Ok(Some((sound, Live { speech, end })))
}

impl Engine {
    /// Counts the videos like `prepared` that this engine can make at a time, if the process may
    /// take `host` bytes of memory.
    ///
    /// # Errors
    /// The placement does not fit the request, or lacks a device.
    pub fn at_a_time(&self, prepared: &Prepared, host: u64) -> Result<AtATime, GenerateError> {
        let cancel = Cancel::default();
        let video = Video::new(self, prepared, &Silent, &cancel)?;
        Ok(self.videos(video.workload(), host)?)
    }
}

/// One video on its way.
struct Video<'a> {
    engine: &'a Engine,
    prepared: &'a Prepared,
    geometry: Geometry,
    tables: Arc<Tables>,
    replay: Option<Replay>,
    settings: Settings,
    observer: &'a dyn Observer,
    cancel: &'a Cancel,
}

/// The conditions of a video: everything that the encoders make.
struct Conditions<'a> {
    /// Embedded prompt, `[1, M, D]`.
    text: Arc<Tensor>,
    /// Embedded negative prompt, with guidance.
    negative: Option<Arc<Tensor>>,
    hearing: Ear<'a>,
    latents: PictureLatents,
}

impl<'a> Video<'a> {
    fn new(
        engine: &'a Engine,
        prepared: &'a Prepared,
        observer: &'a dyn Observer,
        cancel: &'a Cancel,
    ) -> Result<Self, GenerateError> {
        let (request, plan) = (&prepared.request, engine.plan());
        if plan.steps() != request.calls() {
            return Err(GenerateError::Steps {
                placed: plan.steps(),
                wanted: request.calls(),
            });
        }
        let size = prepared.framing.size;
        let mut geometry =
            Geometry::new(&engine.models().config().dit, size, request.infer_frames)?;
        if let Some(blocks) = plan.ring_blocks {
            geometry = geometry.with_ring(blocks)?;
        }
        let open = |path| Replay::open(path, &geometry, prepared.length.clips, request.steps);
        let replay = request.replay.as_deref().map(open).transpose()?;
        let tables = Tables::sampled(geometry.clone(), request.steps, request.sampling)?;
        let tables = Arc::new(tables.with_passes(request.passes()));
        shorter_ring(&geometry, observer);
        Ok(Self {
            settings: settings(prepared, &geometry, plan.to_string()),
            engine,
            prepared,
            geometry,
            tables,
            replay,
            observer,
            cancel,
        })
    }

    fn workload(&self) -> Workload<'_> {
        let (config, request) = (self.engine.models().config(), &self.prepared.request);
        let heard = self.heard();
        Workload {
            config,
            geometry: &self.geometry,
            swaps: request.mode.swaps() && self.prepared.length.clips > 1,
            passes: request.passes(),
            encodes_motion: request.mode.encodes_motion(),
            speech_frames: heard.as_ref().map_or(live::MOST_FRAMES, Heard::most_frames),
            speech_in_windows: heard.as_ref().is_none_or(Heard::has_more_windows),
        }
    }

    /// Returns the sound of the recording that the speech encoder hears, if there is one.
    fn heard(&self) -> Option<Heard<'a>> {
        self.prepared.heard(self.geometry.block_video_frames())
    }

    /// Refuses a placement whose devices are too small, before anything is loaded.
    fn fits(&self) -> Result<Vec<PlannedMemory>, GenerateError> {
        self.engine.fits(self.workload())
    }

    fn begin(&self, phase: Phase) -> Result<(), ChainError> {
        self.observer.event(&Event::Phase(phase));
        if self.cancel.is_cancelled() {
            return Err(ChainError::Cancelled);
        }
        Ok(())
    }

    /// Makes the conditions first; then denoises, decodes and writes at once.
    fn produce(
        &self,
        arriving: Option<Live>,
        output: &mut Output<'_>,
    ) -> Result<(), GenerateError> {
        let request = &self.prepared.request;
        let distances = Distances {
            seed: request.seed,
            replay: self.replay.as_ref(),
        };
        let conditions = self.conditions(&distances, arriving, output)?;
        self.begin(Phase::Denoising)?;
        let loaded = self.engine.load(self.observer, self.cancel)?;
        let guidance = conditions.negative.map(|text| self.guidance(&loaded, text));
        let guidance = guidance.transpose()?;
        let job = Job {
            tables: Arc::clone(&self.tables),
            steps: request.steps,
            blocks: self.prepared.length.blocks,
            start: output.state.start(),
            keeper: output.state.keeper(),
            swap: request.mode.swap(),
            distances: &distances,
            text: conditions.text,
            guidance,
            anchor: conditions.latents.anchor(),
            cancel: self.cancel,
            observer: self.observer,
        };
        let (hearing, latents) = (conditions.hearing, conditions.latents);
        self.denoise_and_decode(&loaded, hearing, latents, &job, output)
    }

    /// Runs the encoders, one at a time. Of speech in windows only the first is encoded.
    fn conditions(
        &self,
        distances: &Distances<'_>,
        arriving: Option<Live>,
        output: &mut Output<'_>,
    ) -> Result<Conditions<'a>, GenerateError> {
        let (loading, config) = (self.engine.loading(), self.engine.models().config());
        let (request, inner) = (
            &self.prepared.request,
            self.engine.encoders(self.workload())?,
        );
        let backend = &Cancellable::new(inner, self.cancel);
        self.begin(Phase::EncodingPrompt)?;
        let context = encoders::encode_text(backend, loading, &self.prepared.prompt.ids)?;
        let text = encoders::embed_text(backend, loading, &config.dit, &context)?;
        let negative = self.prepared.negative.as_ref().map(|negative| {
            let context = encoders::encode_text(backend, loading, &negative.ids)?;
            let text = encoders::embed_text(backend, loading, &config.dit, &context)?;
            Ok::<_, ChainError>(Arc::new(text))
        });
        let negative = negative.transpose()?;
        self.begin(Phase::EncodingSpeech)?;
        let encoder = SpeechEncoder {
            backend: Box::new(Cancellable::new(inner, self.cancel)),
            loading,
            config: &config.speech,
        };
        let hearing = match (self.heard(), arriving) {
            (Some(heard), _) => {
                let block = output.state.found().map_or(0, Found::block);
                let first = block * self.geometry.block_video_frames();
                Ear::Recording(Box::new(Hearing::begin(encoder, heard, first)?))
            }
            (None, Some(Live { speech, end })) => {
                Ear::Live(Box::new(LiveHearing::new(encoder, speech, end)))
            }
            (None, None) => return Err(ChainError::Stopped.into()),
        };
        self.begin(Phase::EncodingPicture)?;
        let mut encoder = Encoder::load(backend, loading, &config.vae)?;
        let picture = &self.prepared.framing.pixels;
        let progress = |done, of| self.observer.event(&Event::Encoding { done, of });
        let latents = PictureLatents::encode(&mut encoder, picture, request.mode, progress)?;
        output.keep_conditions(&context, &latents, distances, &self.settings);
        Ok(Conditions {
            text: Arc::new(text),
            negative,
            hearing,
            latents,
        })
    }

    /// Makes what a guided video is led away from: the negative prompt, and no sound.
    fn guidance(&self, loaded: &Loaded, text: Arc<Tensor>) -> Result<Guidance, ChainError> {
        let (g, width) = (&self.geometry, self.engine.models().config().speech.dim);
        let shape = [1, HIDDEN_LAYERS, width, g.block_video_frames()];
        let silence = Tensor::zeros(DType::F32, &shape);
        let adapter = loaded.adapter(self.cancel);
        Ok(Guidance {
            scale: self.prepared.request.guidance.scale.get(),
            text,
            audio: adapter.tokens(&silence, everywhere(g))?,
        })
    }

    /// Denoises on this thread and the engine's, and decodes and writes on another.
    fn denoise_and_decode(
        &self,
        loaded: &Loaded,
        hearing: Ear<'a>,
        latents: PictureLatents,
        job: &Job<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), GenerateError> {
        output.denoising = Some(Instant::now());
        let seed = Noise::Seed(self.prepared.request.seed);
        let noise = self.replay.as_ref().map_or(seed, Noise::Replay);
        output.keep_noise(&noise, &self.geometry, self.prepared.length.clips);
        let mut source =
            ClipSource::new(&self.geometry, noise, hearing, loaded.adapter(self.cancel));
        let resumed = output.state.resumed();
        let decoder = self.decoder(loaded, latents, resumed)?;
        let (feedback, inbox) = executor::inbox(self.engine.plan(), job.steps);
        let (sender, finished) = sync_channel(FINISHED_WAITING);
        let (denoised, decoded) = thread::scope(|scope| {
            // The thread owns the feedback, so that the denoiser learns when it ends.
            let decoding =
                scope.spawn(move || decoder.run(&finished, &feedback, output, self.cancel));
            let denoised = loaded.chains.run(job, &mut source, sender, inbox);
            let decoded = decoding
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (denoised, decoded)
        });
        let decoded = decoded.map_err(|error| match error {
            Decoding::Chain(error) => error.into(),
            Decoding::Sink(error) => error,
        });
        // If one side only stopped because its channel closed, the other side's error is the cause.
        match (denoised, decoded) {
            (Err(ChainError::Stopped), Err(error)) => Err(error),
            (Err(error), _) => Err(error.into()),
            (Ok(()), decoded) => decoded,
        }
    }

    fn decoder(
        &self,
        loaded: &Loaded,
        latents: PictureLatents,
        resumed: Option<Resumed>,
    ) -> Result<VideoDecoder, ChainError> {
        let mode = self.prepared.request.mode;
        let encoder = mode.encodes_motion();
        let encoder = encoder.then(|| self.engine.motion_encoder(loaded, self.cancel));
        let length = VideoLength {
            clip_blocks: self.geometry.clip_blocks,
            clips: self.prepared.length.clips,
            frames: self.prepared.length.frames,
        };
        let picture = &self.prepared.framing.pixels;
        let encoder = encoder.transpose()?;
        Ok(VideoDecoder::new(
            mode,
            loaded.decoder(self.cancel),
            encoder,
            picture,
            latents,
            length,
            resumed,
        ))
    }
}

fn shorter_ring(geometry: &Geometry, observer: &dyn Observer) {
    let (ring, clip) = (geometry.ring_blocks, geometry.clip_blocks);
    if ring < clip {
        observer.event(&Event::Notice(format!(
            "ring_blocks {ring}: attention sees {ring} of the model's {clip} blocks back; the video differs from the reference's"
        )));
    }
}

fn settings(prepared: &Prepared, geometry: &Geometry, placement: String) -> Settings {
    let (request, framing) = (&prepared.request, &prepared.framing);
    let Length {
        clips,
        blocks,
        frames,
    } = match (request.live, request.clips) {
        (Some(_), Clips::Auto) => Length::default(),
        _ => prepared.length,
    };
    Settings {
        requested_size: framing.requested,
        effective_size: framing.size,
        size_mode: framing.mode,
        picture_size: framing.picture,
        mode: request.mode.name(),
        clips,
        clips_in_audio: prepared.clips_in_audio,
        blocks,
        clip_blocks: geometry.clip_blocks,
        frames,
        video_seconds: frames as f64 / f64::from(FPS),
        audio_seconds: prepared.speech.as_ref().map_or(0.0, Speech::seconds),
        look_ahead_seconds: request.live.map(|_| live::LOOK_AHEAD_SECONDS),
        steps: request.steps,
        solver: request.sampling.solver.name(),
        shift: request.sampling.shift,
        guide_scale: request.guidance.scale.get(),
        infer_frames: request.infer_frames,
        seed: request.seed,
        prompt: prepared.prompt.cleaned.clone(),
        prompt_tokens: prepared.prompt.ids.len(),
        placement,
        out: Some(request.files.video.clone()),
    }
}
