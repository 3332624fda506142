//! Shows a run: a bar on a terminal, plain lines elsewhere, or one JSON object per line on standard
//! output.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use engines::console;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::chain::events::{Event, Observer, Phase, Settings, Summary};

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A bar on standard error.
    Bar,
    /// Lines on standard error.
    Lines,
    /// JSON objects on standard output.
    Json,
}

/// Shows events as they come.
pub(crate) struct Screen {
    style: Style,
    bar: ProgressBar,
    run: Mutex<Option<Run>>,
}

/// What is needed to say how far a run is.
#[derive(Clone, Copy)]
struct Run {
    blocks: usize,
    clip_blocks: usize,
    clips: usize,
    steps: usize,
    done: usize,
    frames: usize,
    since: Instant,
}

impl Screen {
    pub(crate) fn new(style: Style) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let template = "{bar:30} {percent:>3}% {msg}, ETA {eta}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self {
            style,
            bar,
            run: Mutex::new(None),
        }
    }

    fn line(&self, text: &str) {
        match self.style {
            Style::Bar => self.bar.suspend(|| console::tell(text)),
            Style::Lines => console::tell(text),
            Style::Json => {}
        }
    }

    fn with_run(&self, change: impl FnOnce(&mut Run)) -> Option<Run> {
        let mut run = self
            .run
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let run = run.as_mut()?;
        change(run);
        Some(*run)
    }

    fn show(&self, event: &Event<'_>) {
        match event {
            Event::Started(settings) => self.started(settings),
            Event::Phase(phase) => {
                self.line(phase.name());
                if *phase == Phase::Denoising {
                    self.with_run(|r| r.since = Instant::now());
                    self.start_bar();
                }
            }
            Event::Notice(text) => self.line(&format!("note: {text}")),
            Event::Anchored { .. } | Event::Denoised { .. } | Event::Decoded { .. } => {}
            Event::Stepped { item, .. } => {
                let Some(run) = self.with_run(|r| r.done += 1) else {
                    return;
                };
                self.bar
                    .set_message(position(&run, item.block, Some(item.step)));
                self.bar.set_position(run.done as u64);
            }
            Event::Written { block, frames } => {
                let Some(run) = self.with_run(|r| r.frames = *frames) else {
                    return;
                };
                if self.style == Style::Lines {
                    self.line(&format!("{}, {}", position(&run, *block, None), eta(&run)));
                }
            }
            Event::Finished(summary) => {
                self.bar.finish_and_clear();
                self.line(&summary_text(summary));
            }
        }
    }

    /// There is nothing to show a bar for before the first step.
    fn start_bar(&self) {
        if self.style == Style::Bar {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.set_message("waiting for the first step");
            self.bar.reset_eta();
            self.bar.enable_steady_tick(Duration::from_millis(500));
        }
    }

    fn started(&self, s: &Settings) {
        let run = Run {
            blocks: s.blocks,
            clip_blocks: s.clip_blocks,
            clips: s.clips,
            steps: s.steps,
            done: 0,
            frames: 0,
            since: Instant::now(),
        };
        *self
            .run
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(run);
        self.bar.set_length((s.blocks * s.steps) as u64);
        self.line(&settings_text(s));
    }
}

impl Observer for Screen {
    fn event(&self, event: &Event<'_>) {
        if self.style == Style::Json {
            if let Some(object) = json(event) {
                to_stdout(&object.to_string());
            }
        } else {
            self.show(event);
        }
    }
}

/// Shows the failure of a command, which ends the process with `code`: one line for people, one
/// object for programs.
pub fn failed(style: Style, error: &crate::commands::error::Error, code: u8) {
    if style == Style::Json {
        let object = serde_json::json!({
            "event": "error",
            "message": error.to_string(),
            "exit": code,
        });
        to_stdout(&object.to_string());
    }
    console::tell(format_args!("error: {error}"));
}

/// Writes a line to standard output. A line that cannot be written is no reason to stop a run: the
/// file is what counts.
fn to_stdout(text: &str) {
    drop(console::print_line(text));
}

fn position(run: &Run, block: usize, step: Option<usize>) -> String {
    let clip = block / run.clip_blocks + 1;
    let step = step.map_or_else(String::new, |s| format!(" step {}/{}", s + 1, run.steps));
    let fps = run.frames as f64 / run.since.elapsed().as_secs_f64().max(1e-3);
    format!(
        "clip {clip}/{} block {}/{}{step}, {} frames, {fps:.2} FPS",
        run.clips,
        block + 1,
        run.blocks,
        run.frames
    )
}

fn eta(run: &Run) -> String {
    let left = (run.blocks * run.steps).saturating_sub(run.done);
    let each = run.since.elapsed().as_secs_f64() / run.done.max(1) as f64;
    format!("ETA {:.0} s", left as f64 * each)
}

fn settings_text(s: &Settings) -> String {
    format!(
        "size {} ({} mode) -> {}, picture {}\n\
         {} clip{} of {} frames, {} frames = {:.2} s; speech {:.2} s fills {}\n\
         mode {}, {} steps, seed {}, {} prompt tokens\n\
         {}",
        s.requested_size,
        format!("{:?}", s.size_mode).to_lowercase(),
        s.effective_size,
        s.picture_size,
        s.clips,
        if s.clips == 1 { "" } else { "s" },
        s.infer_frames,
        s.frames,
        s.video_seconds,
        s.audio_seconds,
        s.clips_in_audio,
        s.mode,
        s.steps,
        s.seed,
        s.prompt_tokens,
        s.placement,
    )
}

fn summary_text(s: &Summary) -> String {
    let memory = s.peak_memory_bytes.map_or_else(
        || "unknown".to_owned(),
        |b| format!("{:.2} GB", b as f64 / 1e9),
    );
    let out = s
        .out
        .as_ref()
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    format!(
        "{} frames ({:.2} s) of {} (asked for {}) in {:.1} s: {:.2} FPS, first frames after {:.1} s, peak memory {memory}\n{out}",
        s.frames,
        s.video_seconds,
        s.effective_size,
        s.requested_size,
        s.wall_seconds,
        s.frames_per_second,
        s.first_frame_seconds,
    )
}

fn json(event: &Event<'_>) -> Option<serde_json::Value> {
    let tagged = |name: &str, value: serde_json::Result<serde_json::Value>| {
        let mut object = value.unwrap_or_default();
        if let Some(map) = object.as_object_mut() {
            map.shift_insert(0, "event".to_owned(), name.into());
        }
        object
    };
    Some(match event {
        Event::Started(s) => tagged("started", serde_json::to_value(s)),
        Event::Phase(phase) => serde_json::json!({"event": "phase", "name": phase.name()}),
        Event::Notice(text) => serde_json::json!({"event": "notice", "text": text}),
        Event::Anchored { index } => serde_json::json!({"event": "anchor", "index": index}),
        Event::Stepped { item, .. } => {
            serde_json::json!({"event": "step", "block": item.block, "step": item.step})
        }
        Event::Denoised { .. } | Event::Decoded { .. } => return None,
        Event::Written { block, frames } => {
            serde_json::json!({"event": "block", "block": block, "frames": frames})
        }
        Event::Finished(s) => tagged("finished", serde_json::to_value(s)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::wavefront::Item;

    #[test]
    fn json_events_are_flat_objects_with_their_name_first() {
        let view = engines::tensor::View::from_slice(&[0], &[] as &[f32]);
        for (event, want) in [
            (
                Event::Phase(Phase::Denoising),
                r#"{"event":"phase","name":"denoising"}"#,
            ),
            (
                Event::Written {
                    block: 1,
                    frames: 21,
                },
                r#"{"event":"block","block":1,"frames":21}"#,
            ),
            (
                Event::Stepped {
                    item: Item { block: 2, step: 3 },
                    latents: view.clone(),
                    noise_pred: view.clone(),
                },
                r#"{"event":"step","block":2,"step":3}"#,
            ),
        ] {
            assert_eq!(json(&event).map(|v| v.to_string()), Some(want.to_owned()));
        }
    }

    #[test]
    fn a_position_counts_from_one() {
        let run = Run {
            blocks: 8,
            clip_blocks: 4,
            clips: 2,
            steps: 4,
            done: 0,
            frames: 0,
            since: Instant::now(),
        };
        assert!(position(&run, 4, Some(0)).starts_with("clip 2/2 block 5/8 step 1/4"));
        assert!(position(&run, 3, None).starts_with("clip 1/2 block 4/8,"));
    }
}
