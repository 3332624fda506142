//! Shows a run: a bar on a terminal, plain lines elsewhere, or one JSON object per line on standard
//! output.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use engines::console;
use engines::progress_bar::{ProgressBar, ProgressDrawTarget, progress_bar};

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
    /// JSON objects on standard error, beside a video on standard output.
    JsonAside,
}

impl Style {
    fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::JsonAside)
    }

    /// Writes an object as a line. A line that cannot be written is no reason to stop a run: the
    /// file is what counts.
    fn object(self, object: &serde_json::Value) {
        match self {
            Self::JsonAside => console::tell(object),
            _ => drop(console::print_line(object)),
        }
    }
}

/// Shows events as they come.
pub(crate) struct Screen {
    style: Style,
    bar: ProgressBar,
    run: Mutex<Option<Run>>,
    /// When a line on the encoding of the picture was due last.
    told: Mutex<Option<Instant>>,
    item: Option<Item>,
}

/// The video of a batch that the events belong to.
struct Item {
    name: String,
    /// Whether lines begin with the name, because those of several videos mix.
    in_lines: bool,
}

/// Time between lines on the encoding of the picture.
const EVERY: Duration = Duration::from_secs(5);

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
    pace: Pace,
}

/// Times since the first anchor, which tell how long the rest takes.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// When the first block left the denoiser, and the steps that were done by then.
    denoised: Option<(Duration, usize)>,
    /// When the first and the newest block were written, and the blocks between them.
    written: Option<(Duration, Duration, usize)>,
}

impl Pace {
    /// Returns the time that `blocks` blocks and their `steps` steps still take, once a block is
    /// written.
    ///
    /// The interval between blocks tells it. With one block there is none yet: the rest is counted
    /// as steps and decoding one after the other, which is the longest that it can take.
    fn left(&self, done: usize, steps: usize, blocks: usize) -> Option<Duration> {
        let (first, newest, between) = self.written?;
        if between > 0 {
            return Some((newest - first).mul_f64(blocks as f64 / between as f64));
        }
        let (denoised, so_far) = self.denoised?;
        let step = denoised.div_f64(so_far.max(1) as f64);
        let decoding = first.saturating_sub(step.mul_f64(done as f64));
        Some(step.mul_f64(steps as f64) + decoding.mul_f64(blocks as f64))
    }
}

impl Run {
    fn written(&mut self, frames: usize) {
        self.frames = frames;
        let now = self.since.elapsed();
        self.pace.written = Some(match self.pace.written {
            None => (now, now, 0),
            Some((first, _, between)) => (first, now, between + 1),
        });
    }

    /// Returns the time until the last block is written, once the first is.
    fn left(&self) -> Option<Duration> {
        let steps = (self.blocks * self.steps).saturating_sub(self.done);
        let written = self.pace.written.map_or(0, |(_, _, between)| between + 1);
        let left = self
            .pace
            .left(self.done, steps, self.blocks.saturating_sub(written))?;
        // The time since the newest block was waited for already.
        let (_, newest, _) = self.pace.written?;
        Some(left.saturating_sub(self.since.elapsed() - newest))
    }
}

impl Screen {
    pub(crate) fn new(style: Style) -> Self {
        let bar = progress_bar();
        bar.set_draw_target(ProgressDrawTarget::hidden());
        Self {
            style,
            bar,
            run: Mutex::new(None),
            told: Mutex::new(None),
            item: None,
        }
    }

    /// Shows the events of one video of a batch. Each object has its `name`, and so has each line
    /// if videos are made at a time.
    pub(crate) fn of_item(style: Style, name: &str, in_lines: bool) -> Self {
        let name = name.to_owned();
        let style = match style {
            Style::Bar if in_lines => Style::Lines,
            style => style,
        };
        Self {
            item: Some(Item { name, in_lines }),
            ..Self::new(style)
        }
    }

    fn line(&self, text: &str) {
        let named = self.item.as_ref().filter(|item| item.in_lines).map(|item| {
            let lines = text.lines().map(|line| format!("{}: {line}", item.name));
            lines.collect::<Vec<_>>().join("\n")
        });
        let text = named.as_deref().unwrap_or(text);
        match self.style {
            Style::Bar => self.bar.suspend(|| console::tell(text)),
            Style::Lines => console::tell(text),
            Style::Json | Style::JsonAside => {}
        }
    }

    fn with_run(&self, change: impl FnOnce(&mut Run)) -> Option<Run> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
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
            Event::Encoding { done, of } => self.encoding(*done, *of),
            // Loading is over: it happens once, and says nothing of the rest.
            Event::Anchored { index: 0 } => {
                self.with_run(|r| r.since = Instant::now());
            }
            Event::Planned(_) | Event::Anchored { .. } | Event::Decoded { .. } => {}
            Event::Denoised { .. } => {
                self.with_run(|r| {
                    let now = (r.since.elapsed(), r.done);
                    r.pace.denoised.get_or_insert(now);
                });
            }
            Event::Stepped { item, .. } => {
                let Some(run) = self.with_run(|r| r.done += 1) else {
                    return;
                };
                let at = position(&run, item.block, Some(item.step));
                self.bar.set_message(format!("{at}, {}", eta(&run)));
                self.bar.set_position(run.done as u64);
            }
            Event::Written { block, frames, .. } => {
                let Some(run) = self.with_run(|r| r.written(*frames)) else {
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

    /// Shows how far the picture is: in the bar, or as a line from time to time.
    fn encoding(&self, done: usize, of: usize) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.style == Style::Bar {
            if done == 0 {
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
                self.bar.set_length(of as u64);
            }
            self.bar.set_position(done as u64);
            self.bar.set_message("encoding the picture");
        }
        if done == 0 {
            *told = Some(Instant::now());
        } else if told.is_some_and(|at| at.elapsed() >= EVERY) {
            *told = Some(Instant::now());
            if self.style == Style::Lines {
                let share = 100 * done / of.max(1);
                self.line(&format!("encoding the picture: {share} %"));
            }
        }
    }

    /// Shows the bar of the steps, from its beginning.
    fn start_bar(&self) {
        if self.style == Style::Bar {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.set_position(0);
            if let Some(run) = self.with_run(|_| ()) {
                self.bar.set_length((run.blocks * run.steps) as u64);
            }
            self.bar.set_message("waiting for the first step");
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
            pace: Pace::default(),
        };
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run);
        self.line(&settings_text(s));
    }
}

impl Observer for Screen {
    fn event(&self, event: &Event<'_>) {
        if self.style.is_json() {
            if let Some(mut object) = json(event) {
                if let (Some(item), Some(map)) = (&self.item, object.as_object_mut()) {
                    map.shift_insert(1, "item".to_owned(), item.name.as_str().into());
                }
                self.style.object(&object);
            }
        } else {
            self.show(event);
        }
    }
}

/// Shows the failure of a command, which ends the process with `code`: one line for people, one
/// object for programs.
pub fn failed(style: Style, message: &str, code: u8) {
    if style.is_json() {
        let object = serde_json::json!({
            "event": "error",
            "message": message,
            "exit": code,
        });
        style.object(&object);
    }
    console::complain(format_args!("error: {message}"));
}

/// Writes a line to standard output. A line that cannot be written is no reason to stop a run: the
/// file is what counts.
pub(super) fn to_stdout(text: &str) {
    drop(console::print_line(text));
}

fn position(run: &Run, block: usize, step: Option<usize>) -> String {
    let clip = block / run.clip_blocks + 1;
    let step = step.map_or_else(String::new, |s| format!(" step {}/{}", s + 1, run.steps));
    let fps = run.frames as f64 / run.since.elapsed().as_secs_f64().max(1e-3);
    if run.blocks == 0 {
        return format!(
            "block {}{step}, {} frames, {fps:.2} FPS",
            block + 1,
            run.frames
        );
    }
    format!(
        "clip {clip}/{} block {}/{}{step}, {} frames, {fps:.2} FPS",
        run.clips,
        block + 1,
        run.blocks,
        run.frames
    )
}

fn eta(run: &Run) -> String {
    if run.blocks == 0 {
        return "until the sound ends".to_owned();
    }
    run.left().map_or_else(
        || "ETA after the first block".to_owned(),
        |left| format!("ETA {:.0} s", left.as_secs_f64()),
    )
}

fn settings_text(s: &Settings) -> String {
    let length = if s.look_ahead_seconds.is_some() {
        "as long as sound arrives on standard input".to_owned()
    } else {
        length_text(s)
    };
    format!(
        "size {} ({} mode) -> {}, picture {}\n\
         {length}\n\
         mode {}, {} steps of {}, seed {}, {} prompt tokens\n\
         {}",
        s.requested_size,
        format!("{:?}", s.size_mode).to_lowercase(),
        s.effective_size,
        s.picture_size,
        s.mode,
        s.steps,
        s.solver,
        s.seed,
        s.prompt_tokens,
        s.placement,
    )
}

fn length_text(s: &Settings) -> String {
    format!(
        "{} clip{} of {} frames, {} frames = {:.2} s; speech {:.2} s fills {}",
        s.clips,
        if s.clips == 1 { "" } else { "s" },
        s.infer_frames,
        s.frames,
        s.video_seconds,
        s.audio_seconds,
        s.clips_in_audio,
    )
}

fn summary_text(s: &Summary) -> String {
    let memory = s.peak_memory_bytes.map_or_else(
        || "unknown".to_owned(),
        |b| format!("{:.2} GB", b as f64 / 1e9),
    );
    let each = s
        .components
        .iter()
        .map(|c| format!("{} {:.1} s in {}, ", c.component, c.seconds, c.calls));
    let out = s
        .out
        .as_ref()
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    format!(
        "{} frames ({:.2} s) of {} (asked for {}) in {:.1} s, {:.2} times its length: {:.2} FPS; \
         first frames after {:.1} s, {:.2} times its length; peak memory {memory}\n\
         opening the models {:.1} s; after that, some at once: {}writing {:.1} s\n{out}",
        s.frames,
        s.video_seconds,
        s.effective_size,
        s.requested_size,
        s.wall_seconds,
        s.real_time_factor,
        s.frames_per_second,
        s.first_frame_seconds,
        s.first_frame_factor,
        s.opening_seconds,
        each.collect::<String>(),
        s.writing_seconds,
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
        Event::Encoding { done, of } => {
            serde_json::json!({"event": "encoding", "done": done, "of": of})
        }
        Event::Anchored { index } => serde_json::json!({"event": "anchor", "index": index}),
        Event::Stepped { item, .. } => {
            serde_json::json!({"event": "step", "block": item.block, "step": item.step})
        }
        Event::Planned(_) | Event::Denoised { .. } | Event::Decoded { .. } => return None,
        Event::Written {
            block,
            frames,
            latency,
        } => {
            let mut object =
                serde_json::json!({"event": "block", "block": block, "frames": frames});
            if let Some(latency) = latency {
                object["latency_ms"] = (latency.as_millis() as u64).into();
            }
            object
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
                Event::Encoding { done: 5, of: 73 },
                r#"{"event":"encoding","done":5,"of":73}"#,
            ),
            (
                Event::Written {
                    block: 1,
                    frames: 21,
                    latency: None,
                },
                r#"{"event":"block","block":1,"frames":21}"#,
            ),
            (
                Event::Written {
                    block: 1,
                    frames: 21,
                    latency: Some(Duration::from_millis(1234)),
                },
                r#"{"event":"block","block":1,"frames":21,"latency_ms":1234}"#,
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
    fn the_rest_is_told_from_the_first_block_on() {
        let seconds = Duration::from_secs;
        // Four steps of 2 s; then another step beside 3 s of decoding.
        let first = Pace {
            denoised: Some((seconds(8), 4)),
            written: None,
        };
        assert_eq!(first.left(5, 27, 8), None);
        let first = Pace {
            written: Some((seconds(13), seconds(13), 0)),
            ..first
        };
        assert_eq!(first.left(5, 27, 7), Some(seconds(2 * 27 + 3 * 7)));
        let third = Pace {
            written: Some((seconds(13), seconds(35), 2)),
            ..first
        };
        assert_eq!(third.left(14, 18, 5), Some(seconds(55)));
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
            pace: Pace::default(),
        };
        assert!(position(&run, 4, Some(0)).starts_with("clip 2/2 block 5/8 step 1/4"));
        assert!(position(&run, 3, None).starts_with("clip 1/2 block 4/8,"));
    }
}
