//! The files of one run, written as the run goes on: the video, and on request the contact sheet
//! and the trace. This file also decides which files stay after a failure or an interruption.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engines::cancel::Cancel;
use engines::manifest::ManifestError;
use engines::tensor::Tensor;
use engines::tensor_file::Tensors;

use crate::chain::clock::{Begun, Clock};
use crate::chain::decoders::{BlockSink, Mode, PictureLatents, VideoBlock};
use crate::chain::error::ChainError;
use crate::chain::events::{Event, Observer, Settings, Summary};
use crate::chain::job::AnchorInput;
use crate::chain::source::Noise;
use crate::generate::align::align_in_place;
use crate::generate::error::{GenerateError, RESUMES, length};
use crate::generate::journal::{self, Found, with_anchor};
use crate::generate::keeping::{StateOf, state_path};
use crate::generate::prepared::Prepared;
use crate::generate::request::OutputFiles;
use crate::generate::trace::Trace;
use crate::inputs::replay::{Distances, noise_key};
use crate::media::contact_sheet::ContactSheet;
use crate::media::mp4::{Finished, Writer};
use crate::media::partial::{self, NameError, Partial, partial_path};
use crate::numbers::geometry::Geometry;
use crate::numbers::lip_sync::{AlignMethod, Alignment};
use crate::numbers::size::Size;
use crate::numbers::timing::{DROPPED_FRAMES, FPS};

/// Tiles of a contact sheet.
const SHEET_TILES: usize = 16;

/// The files of one run.
pub(crate) struct Output<'a> {
    files: &'a OutputFiles,
    mode: Mode,
    align: AlignMethod,
    requested: Size,
    writer: Writer,
    sheet: Option<ContactSheet>,
    trace: Option<Trace>,
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
        settings: &Settings,
        observer: &'a dyn Observer,
        begun: Begun,
        state: StateOf,
    ) -> Result<Self, GenerateError> {
        let (request, mut track) = (&prepared.request, prepared.track()?);
        // The sound starts with the frame that it drove. Upstream starts it at 0, and its lips are
        // 120 ms early.
        track.skip(request.timing.skipped_frames())?;
        let (size, frames, files) = (settings.effective_size, settings.frames, &request.files);
        let earlier = match state.found() {
            Some(_) => Some(Earlier::of(&files.video)?),
            None => {
                move_aside(&files.video, request.keeping.resume, observer)?;
                None
            }
        };
        let mut writer = Writer::create(&files.video, size, &files.encoding, Some(track))?;
        let mut sheet = files
            .contact_sheet
            .as_ref()
            .map(|_| ContactSheet::new(size, frames, SHEET_TILES));
        if let (Some(earlier), Some(found)) = (earlier, state.found()) {
            earlier.into_writer(&mut writer, found, settings)?;
            if let (Some(sheet), Some(tiles)) = (&mut sheet, found.decoder.get(TILES)) {
                sheet.restore(found.frames(), tiles);
            }
            let text = format!("going on after {}", length(found.frames()));
            observer.event(&Event::Notice(text));
        }
        Ok(Self {
            earlier: writer.frames(),
            state,
            clip_blocks: settings.clip_blocks,
            clips: settings.clips,
            files,
            mode: request.mode,
            align: request.align,
            requested: request.size,
            writer,
            sheet,
            trace: files.trace.as_ref().map(|_| Trace::default()),
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
        let alignment = aligned(&out, self.align, self.observer)?;
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
        if let Some(journal) = &self.state.journal
            && let Err(error) = journal.remove()
        {
            let text = format!("the kept state cannot be removed: {error}");
            self.observer.event(&Event::Notice(text));
        }
        let wall_seconds = begun.elapsed().as_secs_f64();
        let video_seconds = frames as f64 / f64::from(FPS);
        let first_frame_seconds = self.first_frame_seconds.unwrap_or(wall_seconds);
        let times = clock.since(&self.begun);
        let summary = Summary {
            out: Some(out),
            alignment,
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
        let (partial, resumes) = (self.writer.finish_partial(), self.state.resumes());
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
        match self.writer.finish_partial() {
            Ok(partial) => GenerateError::Suspect { source, partial },
            Err(error) => error.into(),
        }
    }
}

/// Compares lips and sound of the finished video where that is asked for, and moves the sound.
fn aligned(
    out: &Path,
    method: AlignMethod,
    observer: &dyn Observer,
) -> Result<Option<Alignment>, GenerateError> {
    if method == AlignMethod::None {
        return Ok(None);
    }
    let made = align_in_place(out, method).map_err(|source| GenerateError::Align {
        source,
        out: out.to_owned(),
    })?;
    observer.event(&Event::Notice(format!("audio_align_method {made}")));
    Ok(Some(made))
}

/// Moves what an earlier run left at the partial name aside, and tells where.
fn move_aside(video: &Path, resume: bool, observer: &dyn Observer) -> Result<(), GenerateError> {
    let aside = |path: PathBuf| {
        let moved = partial::move_aside(&path);
        moved.map_err(|source| GenerateError::Aside { path, source })
    };
    let tell = |text: String| observer.event(&Event::Notice(text));
    if resume {
        tell("--resume: no state of an unfinished run is there, so the video begins anew".into());
    }
    for earlier in [earlier_path(video)?, partial_path(video)?] {
        if let Some(moved) = aside(earlier)? {
            let text = format!("an earlier unfinished video is kept: {}", moved.display());
            tell(text);
        }
    }
    let state = state_path(video)?;
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
    Ok(())
}

/// Returns the name of an unfinished video while its frames move into a new file.
fn earlier_path(video: &Path) -> Result<PathBuf, NameError> {
    Ok(partial_path(video)?.with_extension("earlier.mp4"))
}

/// The unfinished video of an earlier run, out of the way of the new one.
struct Earlier(PathBuf);

impl Earlier {
    /// Moves the unfinished video out of the way. A run that was stopped while it took the frames
    /// of this file has left it there, beside a shorter one.
    fn of(video: &Path) -> Result<Self, GenerateError> {
        let (partial, earlier) = (partial_path(video)?, earlier_path(video)?);
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
        writer: &mut Writer,
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
        let rgb = block.frames.rgb;
        let writing = Instant::now();
        self.writer.write_frames(rgb.bytes())?;
        self.writing += writing.elapsed();
        self.first_frame_seconds
            .get_or_insert_with(|| self.begun.at.elapsed().as_secs_f64());
        if let Some(sheet) = &mut self.sheet {
            sheet.push(rgb.bytes());
        }
        if let Some(trace) = &mut self.trace {
            trace.keep_block(block.index, block.latents);
            trace.keep_frames(&rgb);
        }
        self.observer.event(&Event::Written {
            block: block.index,
            frames: self.writer.frames(),
        });
        if (block.index + 1).is_multiple_of(self.clip_blocks) {
            self.writer.restart_encoder()?;
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
        self.writer.sync()?;
        journal.decoder(block, self.writer.frames(), &state);
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

/// The most memory this process ever held, where the system tells.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}
