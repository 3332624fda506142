//! Checks the whole chain, from input files to frames. The function [`generate`] makes the video
//! from the recorded noise and distances. Every tensor that the reference recorded is compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engines::claims::Existing;
use engines::tensor::Tensor;
use serde_json::Value;

use super::checkup::{Checkup, Problem, lacks, number_in};
use super::media::{PICTURE, area_of};
use super::subject::Subject;
use crate::chain::decoders::Mode;
use crate::chain::events::{Event, Observer};
use crate::checks::error::CheckError;
use crate::generate::{Clips, Engine, Guiding, Keeping, OutputFiles, Request, generate};
use crate::inputs::speech::Channels;
use crate::media::encoding::Encoding;
use crate::media::picture::{Fit, Reading};
use crate::numbers::latents;
use crate::numbers::size::SizeMode;
use crate::numbers::solver::Sampling;
use crate::numbers::timing::Timing;
use crate::placement::devices::Devices;
use crate::placement::plan::{Lanes, Plan, Stages};
use crate::placement::wavefront::Item;
use engines::tensor_file::{self, Tensors};

/// File of the recorded noise and distances, which every pipeline uses.
const REPLAY: &str = "e2e_tpp";
/// File of the recorded steps of the pipeline [`REPLAY`].
const STEPS: &str = "e2e_tpp_steps";
/// The reference's runs: the file of tensors, the pipeline, and the name for reports.
const RUNS: [(&str, Mode, &str); 3] = [
    (REPLAY, Mode::Tpp, "chain, tpp"),
    ("e2e_single", Mode::Single, "chain, single"),
    (
        "e2e_single_online",
        Mode::SingleOnline,
        "chain, single online",
    ),
];

/// Makes a video by each pipeline and compares its tensors.
pub(super) fn check(checkup: &Checkup<'_>) {
    for (file, mode, component) in RUNS {
        let files: &[&'static str] = if file == REPLAY {
            &[REPLAY, STEPS]
        } else {
            &[file]
        };
        let fed = |file: &str, name: &str| {
            file == REPLAY && (name.ends_with(".noise") || name == "relative_dist")
        };
        checkup.parts(
            component,
            files,
            |f, n| !fed(f, n),
            |names| run(checkup, file, mode, component, names),
        );
    }
}

/// Notes that the user leaves these checks out.
pub(super) fn skip(checkup: &Checkup<'_>) {
    for file in RUNS.map(|(file, ..)| file).into_iter().chain([STEPS]) {
        for name in checkup.table.open(file) {
            checkup
                .table
                .not_checked(file, &name, "the flag --skip-e2e leaves it out");
        }
    }
}

fn run(
    checkup: &Checkup<'_>,
    file: &'static str,
    mode: Mode,
    component: &str,
    names: &[(&'static str, String)],
) -> Result<(), Problem> {
    let folder = Folder::new(file)?;
    let request = request(checkup, file, mode, &folder.0)?;
    let watch = Watch::new(names);
    let Subject {
        models,
        backend,
        loading,
    } = checkup.subject;
    let layers = models.config().dit.layers;
    let plan = Plan::new(&Stages::default(), Lanes::default(), layers, request.steps)?;
    let engine = Engine::new(models.clone(), Devices::one(Arc::clone(backend)), plan);
    let engine = engine.with_loading(Arc::clone(loading));
    generate(&engine, &request, &watch, checkup.cancel)?;
    let kept = watch
        .kept
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    for (item, (x, noise_pred)) in kept.steps {
        let name = |what: &str| format!("block{}.step{}.{what}", item.block, item.step);
        checkup.table.check(component, STEPS, &name("x"), &x);
        checkup
            .table
            .check(component, STEPS, &name("noise_pred"), &noise_pred);
    }
    for (index, frame) in &kept.frames {
        checkup
            .table
            .check(component, file, &format!("frame{index:03}"), frame);
    }
    if let Some(frame) = &kept.last {
        checkup.table.check(component, file, "frame_last", frame);
    }
    let trace = tensor_file::read(&folder.trace())?;
    traced(checkup, file, component, &trace, names);
    Ok(())
}

/// Compares the tensors of a trace.
fn traced(
    checkup: &Checkup<'_>,
    file: &'static str,
    component: &str,
    trace: &Tensors,
    names: &[(&'static str, String)],
) {
    for (name, value) in trace {
        checkup.table.check(component, file, name, value);
    }
    let Some(frames) = trace.get("frames_u8") else {
        return;
    };
    for (_, name) in names {
        if let Some(stride) = number_in(name, "frames_u8_every", "").filter(|n| *n > 0) {
            let every = (0..frames.shape()[0])
                .step_by(stride)
                .map(|i| frames.lanes(i..i + 1));
            checkup
                .table
                .check(component, file, name, &Tensor::stack(every));
        }
    }
}

/// Makes the request of the reference's run: its first prompt and recording, its picture and area.
fn request(
    checkup: &Checkup<'_>,
    file: &str,
    mode: Mode,
    folder: &Path,
) -> Result<Request, Problem> {
    let first = |pointer: &str, field: &str| {
        let all = checkup.golden.value(pointer).and_then(Value::as_object);
        let found = all
            .and_then(|a| a.values().next())
            .and_then(|v| v.get(field))
            .and_then(Value::as_str);
        found
            .map(str::to_owned)
            .ok_or_else(|| lacks(format!("values{}.*.{field}", pointer.replace('/', "."))))
    };
    let clips = checkup.number(&format!("/{file}/clips"))?;
    recorded(checkup, clips)?;
    Ok(Request {
        image: checkup.golden.input(PICTURE),
        reading: Reading::REFERENCE,
        audio: checkup.golden.input(&first("/audio", "file")?),
        live: None,
        channels: Channels::Mix,
        prompt: first("/prompts", "text")?,
        size: area_of(checkup.config("max_area")?),
        size_mode: SizeMode::Area,
        fit: Fit::default(),
        clips: Clips::AtMost(clips),
        timing: Timing::Reference,
        steps: checkup.config("steps")?,
        sampling: Sampling::default(),
        guidance: Guiding::default(),
        infer_frames: checkup.config("infer_frames")?,
        seed: 0,
        mode,
        replay: Some(checkup.golden.file(REPLAY)),
        files: OutputFiles {
            existing: Existing::Keep,
            asked: None,
            video: folder.join("video.mp4"),
            copies: Vec::new(),
            format: None,
            encoding: Encoding::default(),
            contact_sheet: None,
            metrics: None,
            trace: Some(folder.join(TRACE)),
        },
        keeping: Keeping::default(),
    })
}

/// Notes the recorded noise and distances as inputs. Without them no run can be compared.
fn recorded(checkup: &Checkup<'_>, clips: usize) -> Result<(), Problem> {
    (0..clips)
        .map(|clip| format!("clip{clip}.noise"))
        .chain(["relative_dist".to_owned()])
        .try_for_each(|name| checkup.input(REPLAY, &name).map(drop))
}

/// Name of the trace in a run's folder.
const TRACE: &str = "trace.safetensors";

/// A folder for the files of one run. Dropping it removes the folder.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self, Problem> {
        // Two verifications may run in one process.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("liveavatar-verify-{}-{count}-{name}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).map_err(|source| CheckError::Write {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    fn trace(&self) -> PathBuf {
        self.0.join(TRACE)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Keeps the values of a run that the golden set has tensors for.
struct Watch {
    steps: Vec<Item>,
    frames: Vec<usize>,
    kept: Mutex<Kept>,
}

/// The kept values of a run.
#[derive(Default)]
struct Kept {
    /// `x` and `noise_pred`, by block and step.
    steps: BTreeMap<Item, (Tensor, Tensor)>,
    /// `[3, H, W]` by number in the video.
    frames: BTreeMap<usize, Tensor>,
    /// `[3, H, W]` of the newest frame.
    last: Option<Tensor>,
    /// Number of decoded frames.
    count: usize,
}

impl Watch {
    fn new(names: &[(&'static str, String)]) -> Self {
        let step = |name: &str| {
            let (block, rest) = name.strip_prefix("block")?.split_once(".step")?;
            Some(Item {
                block: block.parse().ok()?,
                step: rest.split('.').next()?.parse().ok()?,
            })
        };
        Self {
            steps: names.iter().filter_map(|(_, n)| step(n)).collect(),
            frames: names
                .iter()
                .filter_map(|(_, n)| number_in(n, "frame", ""))
                .collect(),
            kept: Mutex::default(),
        }
    }
}

impl Observer for Watch {
    fn event(&self, event: &Event<'_>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Stepped {
                item,
                latents,
                noise_pred,
            } if self.steps.contains(item) => {
                kept.steps
                    .insert(*item, (latents.to_tensor(), noise_pred.to_tensor()));
            }
            Event::Decoded { frames, .. } => {
                let [_, channels, count, height, width] = *frames.pixels.shape() else {
                    return;
                };
                let frame = |i: usize| {
                    latents::frames(&frames.pixels, i..i + 1).reshaped(&[channels, height, width])
                };
                for i in (0..count)
                    .filter(|i| self.frames.contains(&(kept.count + i)))
                    .collect::<Vec<_>>()
                {
                    let at = kept.count + i;
                    kept.frames.insert(at, frame(i));
                }
                kept.last = count.checked_sub(1).map(frame);
                kept.count += count;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::vae::Frames;
    use engines::contract::DType;

    #[test]
    fn frames_are_counted_over_the_whole_video() {
        let names = [
            "frame008",
            "frame012",
            "frame_last",
            "block1.step2.x",
            "block1.latents",
        ]
        .map(|n| ("e2e_tpp", n.to_owned()));
        let watch = Watch::new(&names);
        for (block, count) in [(0, 9), (1, 12)] {
            let pixels: Vec<f32> = (0..3 * count).map(|i| (100 * block + i) as f32).collect();
            let frames = Frames {
                pixels: Tensor::from_slice(&[1, 3, count, 1, 1], &pixels),
                rgb: Tensor::zeros(DType::U8, &[count, 1, 1, 3]),
            };
            watch.event(&Event::Decoded {
                block,
                frames: &frames,
            });
        }
        let tensor = Tensor::from_slice(&[1, 1], &[5f32]);
        for step in [1, 2] {
            let item = Item { block: 1, step };
            watch.event(&Event::Stepped {
                item,
                latents: tensor.view(),
                noise_pred: tensor.view(),
            });
        }
        let kept = watch.kept.into_inner().unwrap();
        let frame = |i: usize| kept.frames[&i].as_slice::<f32>().to_vec();
        assert_eq!(kept.frames.keys().copied().collect::<Vec<_>>(), [8, 12]);
        assert_eq!(
            (frame(8), frame(12)),
            (vec![8., 17., 26.], vec![103., 115., 127.])
        );
        assert_eq!(kept.last.unwrap().as_slice::<f32>(), [111., 123., 135.]);
        assert_eq!(
            kept.steps.keys().copied().collect::<Vec<_>>(),
            [Item { block: 1, step: 2 }]
        );
    }
}
