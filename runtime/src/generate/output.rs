//! Everything that a run writes, as it is made: the video, and where asked for the contact sheet and the trace. What stays behind when a
//! run fails or is interrupted is decided here.

use std::time::Instant;

use engines::tensor::Tensor;

use crate::chain::decoders::{BlockSink, DROPPED_FRAMES, Mode, PictureLatents, VideoBlock};
use crate::chain::events::{Cancel, Event, Observer, Settings, Summary};
use crate::chain::executor::AnchorInput;
use crate::numbers::geometry::Geometry;
use crate::commands::error::Error;
use crate::generate::Request;
use crate::inputs::replay::Distances;
use crate::generate::trace::Trace;
use crate::media::audio_file::AudioTrack;
use crate::media::contact_sheet::ContactSheet;
use crate::media::mp4::Writer;
use crate::numbers::timing::FPS;

/// Tiles of a contact sheet.
const SHEET_TILES: usize = 16;

/// The files of one run.
pub(crate) struct Output<'a> {
    writer: Writer,
    sheet: Option<ContactSheet>,
    trace: Option<Trace>,
    observer: &'a dyn Observer,
    begun: Instant,
    /// When denoising began.
    pub(crate) denoising: Option<Instant>,
    first_frame_seconds: Option<f64>,
}

impl<'a> Output<'a> {
    /// Starts the video; nothing is left behind when that fails. `begun` is when the command started.
    pub(crate) fn create(
        request: &Request,
        settings: &Settings,
        observer: &'a dyn Observer,
        begun: Instant,
    ) -> Result<Self, Error> {
        // The first frames are dropped, so the first one that is shown was driven by sound that much later. (Upstream starts the sound at 0:
        // its lips are 120 ms early.)
        let mut track = AudioTrack::open(&request.audio)?;
        track.skip(DROPPED_FRAMES)?;
        let (size, frames) = (settings.effective_size, settings.frames);
        Ok(Self {
            writer: Writer::create(&request.out, size, &request.encoding, Some(track))?,
            sheet: request
                .contact_sheet
                .as_ref()
                .map(|_| ContactSheet::new(size, frames, SHEET_TILES)),
            trace: request.trace.as_ref().map(|_| Trace::default()),
            observer,
            begun,
            denoising: None,
            first_frame_seconds: None,
        })
    }

    /// Keeps what was computed before denoising, if a trace is asked for.
    pub(crate) fn keep_conditions(
        &mut self,
        mode: Mode,
        context: &Tensor,
        latents: &PictureLatents,
        distances: &Distances<'_>,
        settings: &Settings,
    ) {
        let Some(trace) = &mut self.trace else { return };
        trace.keep("context", context.clone());
        trace.keep("ref_latents.clip0", latents.ref_latents.clone());
        trace.keep_distances(distances, settings.blocks, settings.steps);
        let motion = latents.anchor().motion_latents;
        trace.keep(
            if mode == Mode::Tpp {
                "motion_latents"
            } else {
                "motion_latents_last19"
            },
            motion,
        );
        trace.single = mode != Mode::Tpp;
    }

    /// Gives every file its name.
    pub(crate) fn finish(self, request: &Request, geometry: &Geometry) -> Result<Summary, Error> {
        let frames = self.writer.frames();
        let begun = self.begun;
        let denoising = self.denoising.unwrap_or(begun).elapsed().as_secs_f64();
        let out = self.writer.finish()?;
        if let (Some(sheet), Some(path)) = (&self.sheet, &request.contact_sheet) {
            sheet.write(path)?;
        }
        if let (Some(trace), Some(path)) = (self.trace, &request.trace) {
            trace.write(path, geometry)?;
        }
        let wall_seconds = begun.elapsed().as_secs_f64();
        let summary = Summary {
            out: Some(out),
            frames,
            video_seconds: frames as f64 / f64::from(FPS),
            wall_seconds,
            frames_per_second: frames as f64 / denoising,
            first_frame_seconds: self.first_frame_seconds.unwrap_or(wall_seconds),
            peak_memory_bytes: peak_memory_bytes(),
            requested_size: request.size,
            effective_size: geometry.size,
        };
        self.observer.event(&Event::Finished(&summary));
        Ok(summary)
    }

    /// What is there stays playable under the partial name; a failed run says why it failed, an interrupted one where the part is.
    pub(crate) fn abandon(self, error: Error, cancel: &Cancel) -> Error {
        let frames = self.writer.frames();
        let partial = self.writer.finish_partial();
        match (error, partial) {
            (Error::Interrupted { .. }, Ok(partial)) => Error::Interrupted { frames, partial },
            (Error::Stopped, Ok(partial)) if cancel.is_cancelled() => {
                Error::Interrupted { frames, partial }
            }
            (Error::Interrupted { .. }, Err(error)) => error.into(),
            (error, Ok(Some(path))) => {
                self.observer.event(&Event::Notice(format!(
                    "the first {frames} frames are kept: {}",
                    path.display()
                )));
                error
            }
            (error, _) => error,
        }
    }
}

impl BlockSink for Output<'_> {
    fn block(&mut self, block: VideoBlock<'_>) -> Result<(), Error> {
        self.observer.event(&Event::Decoded {
            block: block.index,
            frames: &block.frames,
        });
        let rgb = block.frames.rgb;
        self.writer.write_frames(rgb.bytes())?;
        self.first_frame_seconds
            .get_or_insert_with(|| self.begun.elapsed().as_secs_f64());
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
        Ok(())
    }

    fn anchor(&mut self, clip: usize, input: &AnchorInput) {
        let Some(trace) = &mut self.trace else { return };
        trace.keep(format!("ref_latents.clip{clip}"), input.ref_latents.clone());
        if trace.single {
            trace.keep(
                format!("motion_latents.clip{clip}_last19"),
                input.motion_latents.clone(),
            );
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
