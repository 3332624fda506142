//! The files of one run, written as the run goes on: the video, and on request the contact sheet
//! and the trace. This file also decides which files stay after a failure or an interruption.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use engines::cancel::Cancel;
use engines::manifest::ManifestError;
use engines::tensor::Tensor;

use crate::chain::clock::{Begun, Clock};
use crate::chain::decoders::{BlockSink, Mode, PictureLatents, VideoBlock};
use crate::chain::error::ChainError;
use crate::chain::events::{Event, Observer, Settings, Summary};
use crate::chain::job::AnchorInput;
use crate::chain::source::Noise;
use crate::generate::error::{GenerateError, length};
use crate::generate::request::{OutputFiles, Request};
use crate::generate::trace::Trace;
use crate::inputs::replay::{Distances, noise_key};
use crate::media::audio_file::AudioTrack;
use crate::media::contact_sheet::ContactSheet;
use crate::media::mp4::{Finished, Writer};
use crate::media::partial::{self, Partial, partial_path};
use crate::media::pcm::Arrivals;
use crate::numbers::geometry::Geometry;
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// Tiles of a contact sheet.
const SHEET_TILES: usize = 16;

/// The sound of a video.
pub(crate) struct VideoSound {
    pub(crate) track: AudioTrack,
    /// Where it arrives while the video is made.
    pub(crate) live: Option<LiveSound>,
}

/// What is known of sound that arrives.
pub(crate) struct LiveSound {
    /// Samples a second.
    pub(crate) rate: u32,
    /// Frames of the video, once the sound has ended.
    pub(crate) end: Arc<OnceLock<usize>>,
    pub(crate) arrivals: Arc<Arrivals>,
}

/// The files of one run.
pub(crate) struct Output<'a> {
    files: &'a OutputFiles,
    mode: Mode,
    requested: Size,
    writer: Writer,
    sheet: Option<ContactSheet>,
    trace: Option<Trace>,
    live: Option<LiveSound>,
    observer: &'a dyn Observer,
    begun: Begun,
    /// When denoising began.
    pub(crate) denoising: Option<Instant>,
    first_frame_seconds: Option<f64>,
    /// Time of the encoder and the disk.
    writing: Duration,
}

impl<'a> Output<'a> {
    /// Starts the video. A failure leaves nothing behind. `begun` is the start of the command.
    pub(crate) fn create(
        request: &'a Request,
        sound: VideoSound,
        settings: &Settings,
        observer: &'a dyn Observer,
        begun: Begun,
    ) -> Result<Self, GenerateError> {
        let (size, frames, files) = (settings.effective_size, settings.frames, &request.files);
        move_aside(&files.video, observer)?;
        Ok(Self {
            files,
            mode: request.mode,
            requested: request.size,
            writer: Writer::create(&files.video, size, &files.encoding, Some(sound.track))?,
            sheet: files
                .contact_sheet
                .as_ref()
                .map(|_| ContactSheet::new(size, frames, SHEET_TILES)),
            trace: files.trace.as_ref().map(|_| Trace::default()),
            live: sound.live,
            observer,
            begun,
            denoising: None,
            first_frame_seconds: None,
            writing: Duration::ZERO,
        })
    }

    /// Keeps what was computed before denoising, if a trace is asked for.
    pub(crate) fn keep_conditions(
        &mut self,
        context: &Tensor,
        latents: &PictureLatents,
        distances: &Distances<'_>,
        settings: &Settings,
    ) {
        let Some(trace) = &mut self.trace else { return };
        trace.keep("context", context.clone());
        trace.keep("ref_latents.clip0", latents.ref_latents.clone());
        trace.keep_distances(distances, settings.blocks, settings.steps);
        if let Some(key) = self.mode.motion_key(0) {
            trace.keep(key, latents.anchor().motion_latents);
        }
    }

    /// Keeps the noise of every clip, if a trace is asked for, so that the trace can be replayed.
    pub(crate) fn keep_noise(&mut self, noise: &Noise<'_>, geometry: &Geometry, clips: usize) {
        let Some(trace) = &mut self.trace else { return };
        for clip in 0..clips {
            let noise = noise.of_clip(clip, geometry);
            let shape = noise.shape()[1..].to_vec();
            trace.keep(noise_key(clip), noise.reshaped(&shape));
        }
    }

    /// Returns the time since the sound of the newest frame arrived.
    fn latency(&self) -> Option<Duration> {
        let live = self.live.as_ref()?;
        let samples = self.writer.frames() * live.rate as usize / FPS as usize;
        Some(live.arrivals.of(samples)?.elapsed())
    }

    /// Gives every file its name.
    pub(crate) fn finish(
        mut self,
        geometry: &Geometry,
        clock: &Clock,
    ) -> Result<Summary, GenerateError> {
        let frames = self.writer.frames();
        let (begun, finishing) = (self.begun.at, Instant::now());
        let denoising = self.denoising.unwrap_or(begun).elapsed().as_secs_f64();
        let Finished {
            path: out,
            fragmented,
        } = self.writer.finish()?;
        self.writing += finishing.elapsed();
        if let Some(reason) = fragmented {
            self.observer.event(&Event::Notice(format!(
                "{}: the complete video keeps its fragments, a copy without them cannot be written: {reason}",
                out.display()
            )));
        }
        if let (Some(sheet), Some(path)) = (&self.sheet, &self.files.contact_sheet) {
            sheet.write(path)?;
        }
        if let (Some(trace), Some(path)) = (self.trace, &self.files.trace) {
            trace.write(path, geometry)?;
        }
        let wall_seconds = begun.elapsed().as_secs_f64();
        let video_seconds = frames as f64 / f64::from(FPS);
        let first_frame_seconds = self.first_frame_seconds.unwrap_or(wall_seconds);
        let times = clock.since(&self.begun);
        let summary = Summary {
            out: Some(out),
            frames,
            video_seconds,
            wall_seconds,
            frames_per_second: frames as f64 / denoising,
            first_frame_seconds,
            real_time_factor: wall_seconds / video_seconds,
            first_frame_factor: first_frame_seconds / video_seconds,
            opening_seconds: times.opening.as_secs_f64(),
            writing_seconds: self.writing.as_secs_f64(),
            components: times.spent(),
            peak_memory_bytes: peak_memory_bytes(),
            requested_size: self.requested,
            effective_size: geometry.size,
        };
        self.observer.event(&Event::Finished(&summary));
        Ok(summary)
    }

    /// Closes the unfinished video and keeps it as `NAME.partial.mp4`, which plays. Returns the
    /// error to report: the cause of a failure, or, after an interruption, the path of the partial
    /// file.
    pub(crate) fn abandon(self, error: GenerateError, cancel: &Cancel) -> GenerateError {
        let partial = self.writer.finish_partial();
        let interrupted = match &error {
            GenerateError::Chain(ChainError::Cancelled) => true,
            GenerateError::Chain(ChainError::Stopped) => cancel.is_cancelled(),
            _ => false,
        };
        match (interrupted, partial) {
            (true, Ok(partial)) => GenerateError::Interrupted { partial },
            (true, Err(error)) => error.into(),
            (false, Ok(Some(Partial { path, frames }))) => {
                self.observer.event(&Event::Notice(format!(
                    "the first {} are kept and play: {}",
                    length(frames),
                    path.display()
                )));
                error
            }
            (false, _) => error,
        }
    }

    /// Keeps a video that was made with a model that changed, under its partial name.
    pub(crate) fn suspect(self, source: ManifestError) -> GenerateError {
        match self.writer.finish_partial() {
            Ok(partial) => GenerateError::Suspect { source, partial },
            Err(error) => error.into(),
        }
    }
}

/// Moves what an earlier run left at the partial name aside, and tells where.
fn move_aside(video: &Path, observer: &dyn Observer) -> Result<(), GenerateError> {
    let partial = partial_path(video)?;
    let moved = partial::move_aside(&partial).map_err(|source| GenerateError::Aside {
        path: partial.clone(),
        source,
    })?;
    if let Some(moved) = moved {
        let text = format!("an earlier unfinished video is kept: {}", moved.display());
        observer.event(&Event::Notice(text));
    }
    Ok(())
}

impl BlockSink for Output<'_> {
    type Error = GenerateError;

    fn block(&mut self, block: VideoBlock<'_>) -> Result<(), GenerateError> {
        self.observer.event(&Event::Decoded {
            block: block.index,
            frames: &block.frames,
        });
        let (before, index) = (self.writer.frames(), block.index);
        let end = self.live.as_ref().and_then(|live| live.end.get());
        let rgb = match end {
            // The last block of sound that arrived is cut where the sound ended.
            Some(end) => block.frames.take(end.saturating_sub(before)).rgb,
            None => block.frames.rgb,
        };
        let writing = Instant::now();
        self.writer.write_frames(rgb.bytes())?;
        self.writing += writing.elapsed();
        self.first_frame_seconds
            .get_or_insert_with(|| self.begun.at.elapsed().as_secs_f64());
        if let Some(sheet) = &mut self.sheet {
            sheet.push(rgb.bytes());
        }
        if let Some(trace) = &mut self.trace {
            trace.keep_block(index, block.latents);
            trace.keep_frames(&rgb);
        }
        self.observer.event(&Event::Written {
            block: index,
            frames: self.writer.frames(),
            latency: self.latency(),
        });
        Ok(())
    }

    fn anchor(&mut self, clip: usize, input: &AnchorInput) {
        let Some(trace) = &mut self.trace else { return };
        trace.keep(format!("ref_latents.clip{clip}"), input.ref_latents.clone());
        if let Some(key) = self.mode.motion_key(clip) {
            trace.keep(key, input.motion_latents.clone());
        }
    }
}

/// The most memory this process ever held, where the system tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}
