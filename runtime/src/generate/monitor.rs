//! Watches a run from beside it: the memory of every device against the plan and a red line, the
//! time of every component, and the part that limits the speed. It writes a file of metrics on
//! request. The run does not wait for it.

mod bottleneck;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engines::device::Device;
use engines::memory::Ledger;
use engines::nvml::{DeviceMemory, Nvml};
use engines::procfs;

use crate::chain::clock::{Begun, Clock};
use crate::chain::events::{Event, Observer, Phase, PlannedMemory, Summary};
use crate::generate::error::GenerateError;
use crate::placement::devices::Devices;
use metrics::{DeviceSample, File, Sample, Start};

/// Time between two looks at a run.
const EVERY: Duration = Duration::from_secs(1);

/// What to do with what is seen.
#[derive(Clone, Debug, Default)]
pub struct Watching {
    /// File for one JSON object a second and a block.
    pub metrics: Option<PathBuf>,
    /// Bytes of one device above which a warning is due.
    pub red_line: Option<u64>,
}

/// Runs `make` under watch. It hands the observer of the run to `make`.
///
/// # Errors
/// The file of metrics cannot be created.
pub fn watch<T>(
    watching: &Watching,
    clock: &Arc<Clock>,
    devices: &Devices,
    observer: &dyn Observer,
    make: impl FnOnce(&dyn Observer) -> T,
) -> Result<T, GenerateError> {
    let monitor = Monitor::new(watching, clock, devices, observer)?;
    let (alive, ended) = channel::<()>();
    let made = thread::scope(|scope| {
        let watcher = &monitor;
        scope.spawn(move || watcher.look_until(&ended));
        // The thread ends when this end of the channel is gone, also after a panic.
        let _alive = alive;
        make(&monitor)
    });
    monitor.sample("end");
    Ok(made)
}

/// One device of the run.
struct Watched {
    ledger: Arc<Ledger>,
    /// Number of the NVIDIA device, for one that is real.
    ordinal: Option<u32>,
    /// Whether the device has memory besides the process's own.
    separate: bool,
}

/// How far the run is.
#[derive(Default)]
struct Progress {
    phase: Option<&'static str>,
    /// Since the first anchor is there: everything is loaded.
    denoising: Option<Begun>,
    blocks: usize,
    frames: usize,
    /// When the newest block was written, and how long it took since the one before.
    newest: Option<(Instant, f64)>,
    planned: BTreeMap<String, PlannedMemory>,
    warned: BTreeSet<String>,
}

struct Monitor<'a> {
    began: Instant,
    clock: &'a Clock,
    begun: Begun,
    observer: &'a dyn Observer,
    devices: Vec<Watched>,
    red_line: Option<u64>,
    nvml: Option<Nvml>,
    file: Mutex<Option<File>>,
    progress: Mutex<Progress>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Monitor<'a> {
    fn new(
        watching: &Watching,
        clock: &'a Clock,
        devices: &Devices,
        observer: &'a dyn Observer,
    ) -> Result<Self, GenerateError> {
        let watched = |(ledger, separate): (Arc<Ledger>, bool)| Watched {
            ordinal: match ledger.device().parse() {
                Ok(Device::Cuda(ordinal)) => Some(ordinal),
                _ => None,
            },
            separate,
            ledger,
        };
        let devices: Vec<Watched> = devices.ledgers().into_iter().map(watched).collect();
        let wanted = watching.metrics.is_some() || watching.red_line.is_some();
        let gpus = wanted && devices.iter().any(|d| d.ordinal.is_some());
        let (nvml, told) = management(gpus);
        if gpus && nvml.is_none() {
            let text = format!("memory of other programs is not counted: {told}");
            observer.event(&Event::Notice(text));
        }
        let start = Start::new(told, watching.red_line);
        let open = |path: &Path| {
            File::create(path, &start).map_err(|source| GenerateError::Metrics {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            began: Instant::now(),
            begun: clock.begin(),
            clock,
            observer,
            devices,
            red_line: watching.red_line,
            nvml,
            file: Mutex::new(watching.metrics.as_deref().map(open).transpose()?),
            progress: Mutex::default(),
        })
    }

    /// Looks at the run every second until `ended` is closed.
    fn look_until(&self, ended: &Receiver<()>) {
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            self.sample("second");
            self.warn();
        }
    }

    /// Writes one object into the file of metrics. If that fails, the video goes on without it.
    fn sample(&self, at: &'static str) {
        let mut file = lock(&self.file);
        let Some(open) = file.as_mut() else { return };
        let written = open.write(&self.observe(at));
        let Err(error) = written else { return };
        let text = format!(
            "{}: no more metrics, they cannot be written: {error}",
            open.path().display()
        );
        *file = None;
        drop(file);
        self.observer.event(&Event::Notice(text));
    }

    fn observe(&self, at: &'static str) -> Sample {
        let process = procfs::process_memory();
        let components = self.clock.since(&self.begun).busy();
        let devices = self.devices.iter().map(|d| self.look_at(d));
        let devices = devices.collect();
        let progress = lock(&self.progress);
        let since = progress
            .denoising
            .as_ref()
            .map(|b| b.at.elapsed().as_secs_f64());
        Sample {
            at,
            seconds: self.began.elapsed().as_secs_f64(),
            phase: progress.phase,
            blocks: progress.blocks,
            frames: progress.frames,
            fps: since.map(|s| progress.frames as f64 / s.max(f64::MIN_POSITIVE)),
            block_seconds: progress.newest.map(|(_, seconds)| seconds),
            rss_bytes: process.map(|m| m.resident),
            peak_rss_bytes: process.map(|m| m.peak),
            devices,
            components,
        }
    }

    fn look_at(&self, device: &Watched) -> DeviceSample {
        let (counts, name) = (device.ledger.counts(), device.ledger.device());
        let seen = self.seen(device);
        DeviceSample {
            device: name.to_owned(),
            counted_bytes: counts.total(),
            peak_bytes: counts.peak,
            planned_bytes: lock(&self.progress).planned.get(name).map(|p| p.bytes),
            in_use_bytes: seen.map(|m| m.used),
            total_bytes: seen.map(|m| m.total),
        }
    }

    /// Asks NVML for the memory of a device.
    fn seen(&self, device: &Watched) -> Option<DeviceMemory> {
        self.nvml.as_ref()?.memory(device.ordinal?).ok()
    }

    /// Warns once of each device that is above the red line. A device in the process's own memory
    /// has the memory of the process.
    fn warn(&self) {
        let Some(red_line) = self.red_line else {
            return;
        };
        for device in &self.devices {
            let name = device.ledger.device();
            let process = || procfs::process_memory().map(|m| m.peak);
            let counted = || device.ledger.counts().peak;
            let used = match (self.seen(device), device.separate) {
                (Some(seen), _) => Some(seen.used),
                (None, true) => Some(counted()),
                (None, false) => process(),
            };
            let above = used.filter(|&used| used > red_line);
            let Some(used) = above else { continue };
            let planned = {
                let mut progress = lock(&self.progress);
                if !progress.warned.insert(name.to_owned()) {
                    continue;
                }
                progress.planned.get(name).map(|p| p.bytes)
            };
            self.observer.event(&Event::Notice(above_red_line(
                name, used, red_line, planned,
            )));
        }
    }

    fn written(&self, block: usize, frames: usize) {
        let mut progress = lock(&self.progress);
        let now = Instant::now();
        let before = match (progress.newest, &progress.denoising) {
            (Some((newest, _)), _) => newest,
            (None, Some(begun)) => begun.at,
            (None, None) => self.began,
        };
        progress.newest = Some((now, (now - before).as_secs_f64()));
        (progress.blocks, progress.frames) = (block + 1, frames);
    }

    /// Says at the end what the devices held, and which part limited the speed.
    fn finished(&self, summary: &Summary) {
        self.warn();
        let memory = self
            .devices
            .iter()
            .filter(|d| d.separate)
            .filter_map(|device| {
                let name = device.ledger.device();
                let planned = lock(&self.progress).planned.get(name)?.bytes;
                let peak = gb(device.ledger.counts().peak);
                Some(format!("{name} {peak:.2} of {:.2} GB planned", gb(planned)))
            });
        let memory: Vec<String> = memory.collect();
        if !memory.is_empty() {
            let text = format!("most memory: {}", memory.join(", "));
            self.observer.event(&Event::Notice(text));
        }
        let denoising = lock(&self.progress).denoising.clone();
        let Some(begun) = denoising else { return };
        let window = begun.at.elapsed().as_secs_f64();
        let busy = self.clock.since(&begun).busy();
        if let Some(text) = bottleneck::words(window, &busy, summary.writing_seconds) {
            self.observer.event(&Event::Notice(text));
        }
    }
}

/// Loads NVML where there are NVIDIA devices, and says in words whether it is there.
fn management(gpus: bool) -> (Option<Nvml>, String) {
    if !gpus {
        return (None, "not asked".to_owned());
    }
    match Nvml::load() {
        Ok(nvml) => (Some(nvml), "loaded".to_owned()),
        Err(error) => (None, error.to_string()),
    }
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn above_red_line(device: &str, used: u64, red_line: u64, planned: Option<u64>) -> String {
    let planned = planned.map_or_else(String::new, |p| format!(", planned are {:.2} GB", gb(p)));
    format!(
        "memory of {device} is {:.2} GB, above the red line of {:.2} GB{planned}; a smaller --size \
         or fewer --ring-blocks need less",
        gb(used),
        gb(red_line)
    )
}

impl Observer for Monitor<'_> {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Planned(devices) => {
                let named = devices.iter().map(|d| (d.device.clone(), d.clone()));
                lock(&self.progress).planned = named.collect();
            }
            Event::Phase(phase) => lock(&self.progress).phase = Some(Phase::name(*phase)),
            Event::Anchored { index: 0 } => {
                lock(&self.progress).denoising = Some(self.clock.begin());
            }
            Event::Written { block, frames, .. } => {
                self.written(*block, *frames);
                self.sample("block");
            }
            Event::Finished(summary) => self.finished(summary),
            _ => {}
        }
        self.observer.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::fake::Fake;
    use crate::fixtures::sizes::{config, small_geometry};
    use engines::backend::Backend;
    use engines::memory::{Class, HostMemory};
    use serde_json::Value;

    /// Keeps every notice.
    #[derive(Default)]
    struct Notices(Mutex<Vec<String>>);

    impl Observer for Notices {
        fn event(&self, event: &Event<'_>) {
            if let Event::Notice(text) = event {
                lock(&self.0).push(text.clone());
            }
        }
    }

    /// Two virtual devices.
    fn devices() -> Devices {
        let fake = Fake::new(config(1), small_geometry(12));
        let on = |n: usize| -> Arc<dyn Backend> {
            Arc::new(fake.on(HostMemory::new(format!("cpu:{n}"), 1000)))
        };
        Devices::each(vec![on(0), on(1)])
    }

    #[test]
    fn metrics_have_a_line_for_each_block_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let watching = Watching {
            metrics: Some(dir.path().join("m.jsonl")),
            red_line: None,
        };
        let (clock, seen) = (Arc::<Clock>::default(), Notices::default());
        let made = watch(&watching, &clock, &devices(), &seen, |observer| {
            observer.event(&Event::Phase(Phase::Denoising));
            observer.event(&Event::Anchored { index: 0 });
            for (block, frames) in [(0, 9), (1, 21)] {
                observer.event(&Event::Written {
                    block,
                    frames,
                    latency: None,
                });
            }
            7
        });
        assert_eq!(made.unwrap(), 7);
        let text = std::fs::read_to_string(dir.path().join("m.jsonl")).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let at: Vec<&str> = lines.iter().filter_map(|l| l["at"].as_str()).collect();
        assert_eq!(at, ["start", "block", "block", "end"]);
        assert_eq!(
            (&lines[2]["blocks"], &lines[2]["frames"]),
            (&2.into(), &21.into())
        );
        assert_eq!(lines[2]["phase"], "denoising");
        assert!(lines[2]["fps"].as_f64().unwrap() > 0.0, "{text}");
        assert!(lines[2]["block_seconds"].as_f64().is_some(), "{text}");
        assert!(lines[2]["rss_bytes"].as_u64().unwrap() > 0, "{text}");
    }

    #[test]
    fn a_device_above_the_red_line_is_told_once_and_others_are_not() {
        let (clock, seen, devices) = (Arc::<Clock>::default(), Notices::default(), devices());
        let watching = Watching {
            metrics: None,
            red_line: Some(500),
        };
        let monitor = Monitor::new(&watching, &clock, &devices, &seen).unwrap();
        monitor.event(&Event::Planned(&[PlannedMemory {
            device: "cpu:1".to_owned(),
            bytes: 550,
        }]));
        let ledger = |n| devices.get(n).unwrap().memory().ledger();
        let least = ledger(0).charge(500, Class::Weights).unwrap();
        monitor.warn();
        assert_eq!(lock(&seen.0).len(), 0);
        // The peak counts: memory that is free again was in use.
        drop((ledger(1).charge(600, Class::Weights).unwrap(), least));
        monitor.warn();
        monitor.warn();
        let told = lock(&seen.0).clone();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].starts_with("memory of cpu:1 is 0.00 GB, above"),
            "{told:?}"
        );
        assert!(told[0].contains("planned are"), "{told:?}");
    }

    #[test]
    fn metrics_that_cannot_be_written_are_refused_or_given_up() {
        let (clock, seen) = (Arc::<Clock>::default(), Notices::default());
        let to = |path: &str| Watching {
            metrics: Some(path.into()),
            red_line: None,
        };
        let nowhere = to("/nowhere/at/all.jsonl");
        let error = watch(&nowhere, &clock, &devices(), &seen, |_| ()).unwrap_err();
        assert!(
            error.to_string().starts_with("/nowhere/at/all.jsonl: "),
            "{error}"
        );
        assert_eq!(lock(&seen.0).len(), 0);
    }
}
