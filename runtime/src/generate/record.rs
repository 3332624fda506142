//! Writes the run file of a video, and its compact form, which the video itself carries.

use std::io;

use engines::error_kind::reason;
use engines::manifest::Models;
use sha2::{Digest, Sha256};

use crate::chain::events::{Settings, Summary};
use crate::generate::prepared::Prepared;
use crate::generate::run_file::{self, FORMAT, Made, RunFile, UsedModels};
use crate::numbers::geometry::Geometry;
use crate::numbers::timing::{FPS, Timing};

/// Returns what decides the frames of a video, as JSON for the metadata of its file. It names no
/// path and no placement, so that equal frames stay equal files on every machine.
pub(crate) fn tag(prepared: &Prepared, geometry: &Geometry) -> String {
    let request = &prepared.request;
    let mut tag = serde_json::json!({
        "program": run_file::program(),
        "size": geometry.size.to_string(),
        "frames": prepared.length.frames,
        "prompt": prepared.prompt.cleaned,
        "mode": request.mode.name(),
        "steps": request.steps,
        "solver": request.sampling.solver.name(),
        "shift": request.sampling.shift,
        "infer_frames": request.infer_frames,
        "ring_blocks": geometry.ring_blocks,
    });
    if let (Some(_), Some(tag)) = (request.live, tag.as_object_mut()) {
        // The sound decides it, and has not ended.
        tag.remove("frames");
    }
    if request.guidance.scale.is_on() {
        tag["guide_scale"] = request.guidance.scale.get().into();
    }
    if request.timing == Timing::Reference {
        tag["timing"] = "reference".into();
    }
    match request.replay {
        None => tag["seed"] = request.seed.into(),
        Some(_) => tag["noise"] = "recorded".into(),
    }
    tag.to_string()
}

/// Hashes of a video on its way, for its run file.
#[derive(Default)]
pub(crate) struct Hashes(Sha256);

impl Hashes {
    /// Adds frames, `[T, H, W, 3]`.
    pub(crate) fn frames(&mut self, rgb: &[u8]) {
        self.0.update(rgb);
    }
}

/// Writes the run file of a finished video.
///
/// # Errors
/// A file cannot be read or written; the message names the run file.
pub(crate) fn write(
    prepared: &Prepared,
    (settings, models): (&Settings, &Models),
    hashes: Option<Hashes>,
    (summary, sound_seconds): (&Summary, f64),
) -> Result<(), String> {
    let files = &prepared.request.files;
    let (Some(asked), Some(path), Some(video)) = (&files.asked, files.run_file(), &summary.out)
    else {
        return Ok(());
    };
    let written = || -> io::Result<()> {
        let plain = |value: serde_json::Result<serde_json::Value>| value.map_err(io::Error::other);
        let (sha256, bytes) = run_file::sha256_of(video)?;
        let size = summary.effective_size;
        let made = Made {
            video: video.file_name().unwrap_or_default().into(),
            width: size.width,
            height: size.height,
            fps: FPS,
            frames: summary.frames,
            video_seconds: summary.video_seconds,
            sound_seconds,
            frames_sha256: hashes.map(|hashes| run_file::hex(hashes.0)),
            sha256,
            bytes,
            summary: plain(serde_json::to_value(summary))?,
        };
        let run = RunFile {
            liveavatar_run: FORMAT,
            program: run_file::program(),
            folder: std::env::current_dir()?,
            command: asked.command.clone(),
            values: asked.values.clone(),
            settings: plain(serde_json::to_value(settings))?,
            inputs: prepared.inputs.clone(),
            models: UsedModels {
                path: std::path::absolute(models.dir())?,
                manifest_sha256: run_file::manifest_hash(models.dir())?,
            },
            result: made,
        };
        run.write(&path)
    };
    written().map_err(|source| format!("{}: cannot write: {}", path.display(), reason(&source)))
}
