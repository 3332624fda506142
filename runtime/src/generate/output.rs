//! The files of one run, written as the run goes on: the video, and on request the contact sheet
//! and the trace. This file also decides which files stay after a failure or an interruption.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use engines::cancel::Cancel;
use engines::manifest::ManifestError;
use engines::procfs;
use engines::tensor::Tensor;
use engines::tensor_file::Tensors;

use crate::chain::call::AnchorInput;
use crate::chain::clock::Begun;
use crate::chain::decoders::{BlockSink, Mode, PictureLatents, VideoBlock};
use crate::chain::error::ChainError;
use crate::chain::events::{Event, Observer, Settings, Summary};
use crate::chain::source::Noise;
use crate::generate::engine::Engine;
use crate::generate::error::{GenerateError, RESUMES, length};
use crate::generate::journal::{self, Found, with_anchor};
use crate::generate::keeping::{STATE, StateOf};
use crate::generate::prepared::Prepared;
use crate::generate::record::{self, Hashes};
use crate::generate::request::OutputFiles;
use crate::generate::trace::Trace;
use crate::inputs::replay::{Distances, noise_key};
use crate::media::audio_file::{AudioError, AudioTrack};
use crate::media::contact_sheet::ContactSheet;
use crate::media::encoding::Encoding;
use crate::media::partial::{self, Partial};
use crate::media::pcm::{Arrivals, Tap};
use crate::media::target::Target;
use crate::media::video_error::VideoError;
use crate::media::video_writer::{Finished, VideoWriter};
use crate::numbers::geometry::Geometry;
use crate::numbers::size::Size;
use crate::numbers::timing::{DROPPED_FRAMES, FPS};

/// Said of a run that has nothing to go on from.
const NO_STATE: &str = "--resume: there is no state of an unfinished run, so the video begins anew";

/// Tiles of a contact sheet.
const SHEET_TILES: usize = 16;

/// What is known of sound that arrives.
pub(crate) struct LiveSound {
    /// Samples a second.
    pub(crate) rate: u32,
    /// Frames of the video, once the sound has ended.
    pub(crate) end: Arc<OnceLock<usize>>,
    /// All of it, for each output that is not open yet.
    pub(crate) taps: Vec<Tap>,
    pub(crate) arrivals: Arc<Arrivals>,
}

/// The files of one run.
pub(crate) struct Output<'a> {
    files: &'a OutputFiles,
    mode: Mode,
    requested: Size,
    /// The video first. All get the same frames.
    writers: Vec<VideoWriter>,
    sheet: Option<ContactSheet>,
    trace: Option<Trace>,
    live: Option<LiveSound>,
    /// Hashes of the frames, for the run file.
    hashes: Option<Hashes>,
    observer: &'a dyn Observer,
    begun: Begun,
    /// When denoising began.
    pub(crate) denoising: Option<Instant>,
    first_frame_seconds: Option<f64>,
    /// Time of the encoder and the disk.
    writing: Duration,
    /// The state that the run began with, and those that it keeps.
    pub(crate) state: StateOf,
    /// Frames that an earlier run made.
    earlier: usize,
    clip_blocks: usize,
    clips: usize,
}

impl<'a> Output<'a> {
    /// Starts the video. A failure leaves nothing behind. `begun` is the start of the command.
    pub(crate) fn create(
        prepared: &'a Prepared,
        (geometry, settings): (&Geometry, &Settings),
        mut live: Option<LiveSound>,
        observer: &'a dyn Observer,
        begun: Begun,
        state: StateOf,
    ) -> Result<Self, GenerateError> {
        let request = &prepared.request;
        let encoding = Encoding {
            comment: record::tag(prepared, geometry),
            ..request.files.encoding.clone()
        };
        let (size, frames, files) = (settings.effective_size, settings.frames, &request.files);
        let targets = files.targets()?;
        let earlier = match state.found() {
            Some(_) => Some(Earlier::of(&files.video)?),
            None => {
                if request.keeping.resume {
                    observer.event(&Event::Notice(NO_STATE.to_owned()));
                }
                move_aside(&targets, observer)?;
                None
            }
        };
        let mut writers: Vec<VideoWriter> = Vec::new();
        for target in targets {
            let track = track(prepared, live.as_mut(), &target)?;
            match VideoWriter::create(&target, size, &encoding, track) {
                Ok(writer) => writers.push(writer),
                Err(error) => {
                    drop(close(writers));
                    return Err(error.into());
                }
            }
        }
        let mut sheet = files
            .contact_sheet
            .as_ref()
            .map(|_| ContactSheet::new(size, frames, SHEET_TILES));
        if let (Some(earlier), Some(found), [writer]) = (earlier, state.found(), &mut writers[..]) {
            earlier.into_writer(writer, found, settings)?;
            if let (Some(sheet), Some(tiles)) = (&mut sheet, found.decoder.get(TILES)) {
                sheet.restore(found.frames(), tiles);
            }
            let text = format!("going on after {}", length(found.frames()));
            observer.event(&Event::Notice(text));
        }
        Ok(Self {
            earlier: writers.first().map_or(0, VideoWriter::frames),
            clip_blocks: settings.clip_blocks,
            clips: settings.clips,
            files,
            mode: request.mode,
            requested: request.size,
            // A run that goes on did not see the first frames.
            hashes: (files.asked.is_some() && state.found().is_none()).then(Hashes::default),
            state,
            writers,
            sheet,
            trace: files.trace.as_ref().map(|_| Trace::default()),
            live,
            observer,
            begun,
            denoising: None,
            first_frame_seconds: None,
            writing: Duration::ZERO,
        })
    }

    /// Counts the frames so far.
    fn frames(&self) -> usize {
        self.writers.first().map_or(0, VideoWriter::frames)
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
        let samples = self.frames() * live.rate as usize / FPS as usize;
        Some(live.arrivals.of(samples)?.elapsed())
    }

    /// Gives every file its name.
    pub(crate) fn finish(
        mut self,
        prepared: &Prepared,
        (geometry, settings): (&Geometry, &Settings),
        engine: &Engine,
    ) -> Result<Summary, GenerateError> {
        let frames = self.frames();
        let (begun, finishing) = (self.begun.at, Instant::now());
        let denoising = self.denoising.unwrap_or(begun).elapsed().as_secs_f64();
        let sound_seconds = self.writers.first().map_or(0.0, VideoWriter::sound_seconds);
        let named = finish(std::mem::take(&mut self.writers), self.observer)?;
        self.writing += finishing.elapsed();
        if let (Some(sheet), Some(path)) = (&self.sheet, &self.files.contact_sheet) {
            sheet.write(path)?;
        }
        if let (Some(trace), Some(path)) = (self.trace, &self.files.trace) {
            trace.write(path, geometry)?;
        }
        if let Some(journal) = &self.state.journal
            && let Err(error) = journal.remove()
        {
            let text = format!("the kept state cannot be removed: {error}");
            self.observer.event(&Event::Notice(text));
        }
        let wall_seconds = begun.elapsed().as_secs_f64();
        let video_seconds = frames as f64 / f64::from(FPS);
        let first_frame_seconds = self.first_frame_seconds.unwrap_or(wall_seconds);
        let times = engine.clock().since(&self.begun);
        let summary = Summary {
            out: named.into_iter().next(),
            frames,
            video_seconds,
            wall_seconds,
            resumed_frames: self.earlier,
            frames_per_second: (frames - self.earlier) as f64 / denoising,
            first_frame_seconds,
            real_time_factor: wall_seconds / video_seconds,
            first_frame_factor: first_frame_seconds / video_seconds,
            opening_seconds: times.opening.as_secs_f64(),
            writing_seconds: self.writing.as_secs_f64(),
            components: times.spent(),
            peak_memory_bytes: procfs::process_memory().map(|m| m.peak),
            requested_size: self.requested,
            effective_size: geometry.size,
        };
        let ran = (settings, engine.models());
        let written = record::write(prepared, ran, self.hashes, (&summary, sound_seconds));
        if let Err(reason) = written {
            // The video is complete, and that is what counts.
            let text = format!("{reason}; the video is complete, and has no run file");
            self.observer.event(&Event::Notice(text));
        }
        self.observer.event(&Event::Finished(&summary));
        Ok(summary)
    }

    /// Closes the unfinished video and keeps it as `NAME.partial.mp4`, which plays. Returns the
    /// error to report: the cause of a failure, or, after an interruption, the path of the partial
    /// file.
    pub(crate) fn abandon(self, error: GenerateError, cancel: &Cancel) -> GenerateError {
        let (partial, resumes) = (close(self.writers), self.state.resumes());
        let interrupted = match &error {
            GenerateError::Chain(ChainError::Cancelled) => true,
            GenerateError::Chain(ChainError::Stopped) => cancel.is_cancelled(),
            _ => false,
        };
        match (interrupted, partial) {
            (true, Ok(partial)) => GenerateError::Interrupted { partial, resumes },
            (true, Err(error)) => error.into(),
            (false, Ok(Some(Partial { path, frames }))) => {
                self.observer.event(&Event::Notice(format!(
                    "the first {} are kept and play: {}{}",
                    length(frames),
                    path.display(),
                    if resumes { RESUMES } else { "" }
                )));
                error
            }
            (false, _) => error,
        }
    }

    /// Keeps a video that was made with a model that changed, under its partial name.
    pub(crate) fn suspect(self, source: ManifestError) -> GenerateError {
        match close(self.writers) {
            Ok(partial) => GenerateError::Suspect { source, partial },
            Err(error) => error.into(),
        }
    }
}

/// Opens the sound of an output.
fn track(
    prepared: &Prepared,
    live: Option<&mut LiveSound>,
    target: &Target,
) -> Result<Option<AudioTrack>, AudioError> {
    let (request, rate) = (&prepared.request, target.sound_rate());
    if let Some(tap) = live.and_then(|live| live.taps.pop()) {
        return AudioTrack::arriving(tap, request.channels.only(), rate).map(Some);
    }
    let Some(speech) = &prepared.speech else {
        return Ok(None);
    };
    // The sound starts with the frame that it drove. Upstream starts it at 0, and its lips are
    // 120 ms early.
    let mut track = speech.track(rate)?;
    track.skip(request.timing.skipped_frames())?;
    Ok(Some(track))
}

/// Gives every output its name. Where one fails, those after it stay under their partial names.
fn finish(
    writers: Vec<VideoWriter>,
    observer: &dyn Observer,
) -> Result<Vec<PathBuf>, GenerateError> {
    let mut named: Vec<PathBuf> = Vec::new();
    let mut writers = writers.into_iter();
    while let Some(writer) = writers.next() {
        let Finished { path, fragmented } = match writer.finish() {
            Ok(finished) => finished,
            Err(error) => {
                drop(close(writers.collect()));
                return Err(error.into());
            }
        };
        if let Some(reason) = fragmented {
            observer.event(&Event::Notice(format!(
                "{}: the complete video keeps its fragments, a copy without them cannot be written: {reason}",
                path.display()
            )));
        }
        if !named.is_empty() {
            let text = format!("the same video is also here: {}", path.display());
            observer.event(&Event::Notice(text));
        }
        named.push(path);
    }
    Ok(named)
}

/// Closes unfinished outputs. Returns the first one that kept something.
fn close(writers: Vec<VideoWriter>) -> Result<Option<Partial>, VideoError> {
    let mut first = Ok(None);
    for writer in writers {
        let closed = writer.finish_partial();
        if matches!(first, Ok(None)) {
            first = closed;
        }
    }
    first
}

/// Moves what an earlier run left at the partial name aside, and tells where.
fn move_aside(targets: &[Target], observer: &dyn Observer) -> Result<(), GenerateError> {
    let aside = |path: PathBuf| {
        let moved = partial::move_aside(&path);
        moved.map_err(|source| GenerateError::Aside { path, source })
    };
    let tell = |text: String| observer.event(&Event::Notice(text));
    for partial in targets.iter().filter_map(Target::partial) {
        for unfinished in [earlier_path(&partial), partial.clone()] {
            if let Some(moved) = aside(unfinished)? {
                let text = format!("an earlier unfinished video is kept: {}", moved.display());
                tell(text);
            }
        }
        let state = partial.with_extension(STATE);
        if journal::is_of_no_use(&state) {
            // What cannot be removed takes room and does no harm.
            drop(std::fs::remove_dir_all(&state));
        }
        if let Some(moved) = aside(state)? {
            let text = format!(
                "its state is kept: {}; --resume would have gone on",
                moved.display()
            );
            tell(text);
        }
    }
    Ok(())
}

/// Returns the name of an unfinished video while its frames move into a new file.
fn earlier_path(partial: &Path) -> PathBuf {
    partial.with_extension("earlier.mp4")
}

/// The unfinished video of an earlier run, out of the way of the new one.
struct Earlier(PathBuf);

impl Earlier {
    /// Moves the unfinished video out of the way. A run that was stopped while it took the frames
    /// of this file has left it there, beside a shorter one.
    fn of(video: &Path) -> Result<Self, GenerateError> {
        let partial = partial::name(video);
        let earlier = earlier_path(&partial);
        let moved = match earlier.exists() {
            true => Ok(()),
            false => std::fs::rename(&partial, &earlier),
        };
        moved.map_err(|source| GenerateError::Aside {
            path: partial,
            source,
        })?;
        Ok(Self(earlier))
    }

    /// Takes the frames that the kept state follows, and removes the file.
    fn into_writer(
        self,
        writer: &mut VideoWriter,
        found: &Found,
        settings: &Settings,
    ) -> Result<(), GenerateError> {
        let block = settings.infer_frames / settings.clip_blocks;
        let blocks: Vec<usize> = (0..found.block())
            .map(|i| block - if i == 0 { DROPPED_FRAMES } else { 0 })
            .collect();
        debug_assert_eq!(blocks.iter().sum::<usize>(), found.frames());
        writer.take_blocks(&self.0, &blocks)?;
        writer.restart_encoder()?;
        writer.sync()?;
        std::fs::remove_file(&self.0).map_err(|source| GenerateError::Aside {
            path: self.0.clone(),
            source,
        })
    }
}

/// Name of the contact sheet's tiles in a kept state.
const TILES: &str = "contact_sheet.tiles";

impl BlockSink for Output<'_> {
    type Error = GenerateError;

    fn block(&mut self, block: VideoBlock<'_>) -> Result<(), GenerateError> {
        self.observer.event(&Event::Decoded {
            block: block.index,
            frames: &block.frames,
        });
        let (before, index) = (self.frames(), block.index);
        let end = self.live.as_ref().and_then(|live| live.end.get());
        let rgb = match end {
            // The last block of sound that arrived is cut where the sound ended.
            Some(end) => block.frames.take(end.saturating_sub(before)).rgb,
            None => block.frames.rgb,
        };
        let writing = Instant::now();
        for writer in &mut self.writers {
            writer.write_frames(rgb.bytes())?;
        }
        self.writing += writing.elapsed();
        self.first_frame_seconds
            .get_or_insert_with(|| self.begun.at.elapsed().as_secs_f64());
        if let Some(hashes) = &mut self.hashes {
            hashes.frames(rgb.bytes());
        }
        if let Some(sheet) = &mut self.sheet {
            sheet.push(rgb.bytes());
        }
        if let Some(trace) = &mut self.trace {
            trace.keep_block(index, block.latents);
            trace.keep_frames(&rgb);
        }
        self.observer.event(&Event::Written {
            block: index,
            frames: self.frames(),
            latency: self.latency(),
        });
        if (index + 1).is_multiple_of(self.clip_blocks) {
            let restart = VideoWriter::restart_encoder;
            self.writers.iter_mut().try_for_each(restart)?;
        }
        if let Some(failure) = self.state.journal.as_ref().and_then(|j| j.failure()) {
            self.observer.event(&Event::Notice(failure));
        }
        Ok(())
    }

    fn keeps_states(&self) -> bool {
        self.state.journal.is_some()
    }

    fn keeps(&self, block: usize) -> bool {
        self.state.journal.as_ref().is_some_and(|j| j.keeps(block))
    }

    fn state(&mut self, block: usize, mut state: Tensors) -> Result<(), GenerateError> {
        let Some(journal) = self.state.journal.clone() else {
            return Ok(());
        };
        if let Some(anchor) = self.state.second_anchor() {
            with_anchor(&mut state, anchor);
        }
        if let Some(sheet) = &self.sheet {
            state.insert(TILES.to_owned(), sheet.kept());
        }
        self.writers.iter().try_for_each(VideoWriter::sync)?;
        journal.decoder(block, self.frames(), &state);
        Ok(())
    }

    fn anchor(&mut self, clip: usize, input: &AnchorInput) {
        self.state.anchor(input);
        let Some(trace) = self.trace.as_mut().filter(|_| self.clips > 1) else {
            return;
        };
        trace.keep(format!("ref_latents.clip{clip}"), input.ref_latents.clone());
        if let Some(key) = self.mode.motion_key(clip) {
            trace.keep(key, input.motion_latents.clone());
        }
    }
}
