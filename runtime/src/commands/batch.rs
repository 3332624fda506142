//! Makes the videos of a batch: models opened once, one engine for all videos of one placement, a
//! journal of what is done. A video that fails does not stop the others.

mod journal;
mod list;
mod report;
pub(crate) mod values;

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use engines::cancel::{Cancel, Watch};
use engines::claims::{Existing, FilePlan};
use engines::console;
use engines::error_kind::ErrorKind;
use engines::manifest::Models;
use sha2::{Digest, Sha256};

use crate::chain::clock::Clock;
use crate::chain::events::{Event, Observer, Phase, Summary};
use crate::commands::batch::journal::{Entry, Journal, State};
use crate::commands::batch::list::Item;
use crate::commands::batch::report::{Outcome, Report};
use crate::commands::batch::values::Jobs;
use crate::commands::cli::{Batch, Cli, Command, Generate, complaint, random_seed};
use crate::commands::error::Error;
use crate::commands::layers::layered;
use crate::commands::machine;
use crate::commands::outputs::{claim_as, unless_stopped};
use crate::commands::progress::{Screen, Style};
use crate::generate::run_file::{self, Asked, InputFile};
use crate::generate::{Engine, Prepared};
use crate::placement::plan::Plan;
use crate::planner::found::{Machine, free_memory};

/// Most videos at a time where nobody says how many: a plan has as many devices at most.
const MOST_AT_A_TIME: usize = 8;
/// Flags that no placement depends on, whoever makes it.
const OF_ONE_VIDEO: [&str; 23] = [
    "audio",
    "audio-channel",
    "background",
    "base-seed",
    "config",
    "contact-sheet",
    "crf",
    "fit",
    "icc",
    "image",
    "json",
    "keep-state",
    "negative-prompt",
    "out",
    "overwrite",
    "preset",
    "prompt",
    "replay",
    "resume",
    "sample-shift",
    "sample-solver",
    "timing",
    "trace",
];
/// Flags that a placement depends on only if a profile or a GPU is there.
const OF_A_PROFILE: [&str; 4] = ["infer-frames", "num-clip", "size", "size-mode"];
/// Flags that say nothing about the frames of a video, or whose files are hashed instead.
const NOT_IN_KEYS: [&str; 10] = [
    "audio",
    "config",
    "image",
    "json",
    "keep-state",
    "models",
    "out",
    "overwrite",
    "replay",
    "resume",
];

/// Makes every video that is not done yet, and prints a table.
///
/// # Errors
/// A list or a journal with a fault, before anything is made. [`Error::Batch`] if a video failed;
/// the others are made.
pub(super) fn run(args: &Batch, style: Style, cancel: &Cancel) -> Result<(), Error> {
    let own = &args.own;
    let (items, notices) = list::read(&own.inputs, &own.out_dir, audio(args))?;
    let journal = own.journal.clone();
    let journal = journal.unwrap_or_else(|| own.out_dir.join("batch.jsonl"));
    let mut plan = FilePlan::with_folders();
    if !own.inputs.is_dir() {
        plan.reads("the list", &own.inputs);
    }
    plan.writes("--journal", &journal);
    // A journal goes on where it ended; the claim keeps a second batch away.
    let _claims = plan.claim(Existing::Replace)?;
    let gpus = !Machine::look().cards.is_empty();
    let mut told: BTreeSet<String> = notices.into_iter().collect();
    let read = |item| Work::read(args, item, gpus, &mut told);
    let works: Vec<Result<Work, Error>> = items.iter().map(read).collect();
    told.iter().for_each(|text| notice(style, text));
    let runner = Runner {
        args,
        style,
        cancel,
        gate: Gate::default(),
        folder: journal.parent().unwrap_or(Path::new("")).join("."),
        clock: Arc::default(),
        journal: Mutex::new(Journal::open(&journal)?),
        models: Mutex::new(None),
        engine: Mutex::new(None),
        // What is free before anything is loaded is what the batch may take.
        host: free_memory().unwrap_or(u64::MAX),
        fatal: Mutex::new(None),
    };
    let report = runner.all(&items, works);
    report.show(style)?;
    if let Some(fatal) = locked(&runner.fatal).take() {
        return Err(fatal);
    }
    if cancel.is_cancelled() {
        return Err(Error::Interrupted);
    }
    report.verdict()
}

/// Returns the sound that the command line gives for all videos, for their names.
fn audio(args: &Batch) -> Option<&Path> {
    let words = args.common.iter().rev().filter_map(|w| w.to_str());
    let mut audio = words.filter_map(|word| word.strip_prefix("--audio="));
    audio.next().map(Path::new)
}

fn notice(style: Style, text: &str) {
    Screen::new(style).event(&Event::Notice(text.to_owned()));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One video whose flags are understood.
struct Work {
    args: Generate,
    asked: Asked,
    /// Equal for videos that one engine can make.
    group: String,
}

impl Work {
    /// Reads the flags of an item: its own over those of the command line, and these over the
    /// environment, a configuration file and a preset.
    fn read(
        batch: &Batch,
        item: &Item,
        gpus: bool,
        told: &mut BTreeSet<String>,
    ) -> Result<Self, Error> {
        let mut words: Vec<OsString> = ["avatar-run", "generate"].map(OsString::from).into();
        words.extend(batch.common.iter().cloned());
        for (flag, value) in item.fields.iter().filter(|(flag, _)| flag != "out") {
            let mut word = OsString::from(format!("--{flag}"));
            if let Some(value) = value {
                word.push("=");
                word.push(value);
            }
            words.push(word);
        }
        let mut out = OsString::from("--out=");
        out.push(&item.video);
        words.push(out);
        let mut layered = layered(words, std::env::vars_os())?;
        for (flag, _) in &item.fields {
            layered.given_in(flag, &item.place.0, item.place.1);
        }
        let cli = Cli::read(layered.args.iter().cloned()).map_err(|error| {
            let text = complaint(&error).unwrap_or_else(|| error.to_string());
            Error::Usage(layered.with_origin(text))
        })?;
        let Command::Generate(args) = cli.command else {
            return Err(Error::Usage(format!("{}: no video is meant", item.told())));
        };
        if args.audio == Path::new("-") {
            let item = item.told();
            let text = format!("{item}: batch wants recordings, got --audio -");
            return Err(Error::Usage(text));
        }
        told.extend(layered.notices.iter().cloned());
        let asked = layered.asked()?;
        Ok(Self {
            group: group(&asked, gpus),
            args: *args,
            asked,
        })
    }

    /// Returns the hash of everything that decides the video, and whether all of it can be hashed.
    /// A pipe cannot, and what cannot be read is refused later.
    fn key(&self) -> (String, bool) {
        let mut hash = Sha256::new();
        let mut sure = true;
        for (flag, value) in &self.asked.values {
            if !NOT_IN_KEYS.contains(&flag.as_str()) {
                hash.update(format!("{flag}={}\n", value.value));
            }
        }
        for path in [&self.args.image, &self.args.audio] {
            let sha256 = InputFile::of(path).ok().and_then(|file| file.sha256);
            sure &= sha256.is_some();
            hash.update(format!("{sha256:?}\n"));
        }
        let manifest = run_file::manifest_hash(&self.args.models).ok();
        hash.update(format!("{manifest:?} {}\n", run_file::program()));
        (run_file::hex(hash), sure)
    }
}

/// Returns the flags that decide a placement, as one text. A plan on this CPU depends on fewer
/// flags than one that is made for a profile.
fn group(asked: &Asked, gpus: bool) -> String {
    let profile = gpus || asked.values.contains_key("profile");
    let value = |name: &str| asked.values.get(name).map(|v| v.value.to_string());
    let decides = |name: &str| {
        let area = name == "image" && value("size-mode").is_some_and(|v| v.contains("area"));
        let planned = OF_A_PROFILE.contains(&name) || area;
        match planned {
            true => profile,
            false => !OF_ONE_VIDEO.contains(&name),
        }
    };
    let flags = asked.values.iter().filter(|(name, _)| decides(name));
    let told = flags.map(|(name, v)| match (name.as_str(), v.value.as_str()) {
        // A plan asks only whether a second clip follows.
        ("num-clip", Some(clips)) if clips != "1" => "num-clip=more\n".to_owned(),
        _ => format!("{name}={}\n", v.value),
    });
    told.collect()
}

/// A number of videos that run now.
#[derive(Default)]
struct Gate {
    running: Mutex<usize>,
    left: Condvar,
}

/// A place among the videos that run now.
struct Slot<'a>(&'a Gate);

impl Gate {
    /// Waits until fewer than `most` videos run.
    fn enter(&self, most: usize) -> Slot<'_> {
        let running = locked(&self.running);
        let free = self.left.wait_while(running, |running| *running >= most);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Slot(self)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *locked(&self.0.running) -= 1;
        self.0.left.notify_all();
    }
}

/// A request to stop one video, which also the whole batch and the clock can make.
struct Limit {
    cancel: Cancel,
    late: Arc<AtomicBool>,
    _watch: Watch,
    /// Ends the clock's thread when it is dropped.
    _clock: Option<Sender<()>>,
}

impl Limit {
    fn new(batch: &Cancel, timeout: Option<Duration>) -> Self {
        let (cancel, late) = (Cancel::default(), Arc::<AtomicBool>::default());
        let stop = cancel.clone();
        let watch = batch.watch(move || {
            stop.cancel();
        });
        let clock = timeout.map(|timeout| {
            let (sender, ended) = channel();
            let (stop, late) = (cancel.clone(), Arc::clone(&late));
            thread::spawn(move || {
                if ended.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                    late.store(true, Ordering::SeqCst);
                    stop.cancel();
                }
            });
            sender
        });
        Self {
            cancel,
            late,
            _watch: watch,
            _clock: clock,
        }
    }
}

/// What the videos of a batch share.
struct Runner<'a> {
    args: &'a Batch,
    style: Style,
    cancel: &'a Cancel,
    gate: Gate,
    /// Folder of the journal.
    folder: PathBuf,
    clock: Arc<Clock>,
    journal: Mutex<Journal>,
    /// The export that was opened last, by its folder.
    models: Mutex<Option<(PathBuf, Models)>>,
    /// The engine that was opened last, by its group.
    engine: Mutex<Option<(String, Arc<Engine>)>>,
    /// Memory that the process may take.
    host: u64,
    /// What ends the whole batch.
    fatal: Mutex<Option<Error>>,
}

impl Runner<'_> {
    /// Makes the videos, those of one group after those of another, so that each engine is opened
    /// once.
    fn all(&self, items: &[Item], works: Vec<Result<Work, Error>>) -> Report {
        let mut report = Report::of(items);
        let mut groups: Vec<(String, Vec<(usize, Work)>)> = Vec::new();
        for (at, work) in works.into_iter().enumerate() {
            match work {
                Err(error) => self.ended(&mut report, at, Outcome::Failed(error)),
                Ok(work) => match groups.iter_mut().find(|(group, _)| *group == work.group) {
                    Some((_, works)) => works.push((at, work)),
                    None => groups.push((work.group.clone(), vec![(at, work)])),
                },
            }
        }
        for (_, works) in groups {
            // The engine of the group before goes before another one comes.
            *locked(&self.engine) = None;
            self.group(items, works, &mut report);
        }
        report
    }

    /// Makes the videos of one group, several at a time if asked for.
    fn group(&self, items: &[Item], works: Vec<(usize, Work)>, report: &mut Report) {
        let threads = match self.args.own.jobs {
            Jobs::Exactly(n) => n.min(works.len()),
            Jobs::Auto => works.len().min(MOST_AT_A_TIME),
        };
        let waiting = Mutex::new(VecDeque::from(works));
        let report = Mutex::new(report);
        let work = || {
            while !self.cancel.is_cancelled() && locked(&self.fatal).is_none() {
                let Some((at, work)) = locked(&waiting).pop_front() else {
                    return;
                };
                let outcome = self.one(&items[at], &work);
                self.ended(&mut locked(&report), at, outcome);
            }
        };
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
    }

    fn ended(&self, report: &mut Report, at: usize, outcome: Outcome) {
        report.end(at, outcome);
        report.tell(at, self.style);
    }

    /// Makes one video, unless it is done, with as many attempts as allowed.
    fn one(&self, item: &Item, work: &Work) -> Outcome {
        let (key, sure) = work.key();
        let name = self.name(&item.video);
        if sure && self.is_done(&item.video, &name, &key) {
            return Outcome::Skipped;
        }
        let most = self.args.own.retries + 1;
        for attempt in 1..=most {
            let entry = |state| Entry {
                video: name.clone(),
                state,
                key: key.clone(),
                attempt,
                bytes: None,
                error: None,
                exit: None,
            };
            if !self.note(entry(State::Begun)) {
                return Outcome::Waiting;
            }
            match self.attempt(item, work) {
                Ok(summary) => {
                    let length = std::fs::metadata(&item.video).ok().map(|facts| facts.len());
                    self.note(Entry {
                        bytes: length,
                        ..entry(State::Done)
                    });
                    return Outcome::Done(Box::new(summary));
                }
                Err(error) => {
                    let stopped = error.kind() == ErrorKind::Interrupted;
                    let state = if stopped {
                        State::Interrupted
                    } else {
                        State::Failed
                    };
                    self.note(Entry {
                        error: Some(error.to_string()),
                        exit: Some(error.kind().code()),
                        ..entry(state)
                    });
                    if attempt == most || !may_pass(&error) {
                        return self.failed(error);
                    }
                    let text = format!("{}: {error}; trying again", item.video.display());
                    notice(self.style, &text);
                }
            }
        }
        Outcome::Waiting
    }

    /// A lack of room for so many videos at a time is a fault of the line, not of the video.
    fn failed(&self, error: Error) -> Outcome {
        if !matches!(error, Error::Jobs { .. }) {
            return Outcome::Failed(error);
        }
        locked(&self.fatal).get_or_insert(error);
        Outcome::Waiting
    }

    /// Writes a line of the journal. A batch without a journal ends.
    fn note(&self, entry: Entry) -> bool {
        let noted = locked(&self.journal).note(entry);
        let fine = noted.is_ok();
        if let Err(error) = noted {
            locked(&self.fatal).get_or_insert(error);
        }
        fine
    }

    /// Returns the name of a video in the journal: from the journal's folder, so that both may
    /// move.
    fn name(&self, video: &Path) -> PathBuf {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let video = absolute(video);
        let inside = video.strip_prefix(absolute(&self.folder));
        inside.map_or_else(|_| video.clone(), Path::to_owned)
    }

    fn is_done(&self, video: &Path, name: &Path, key: &str) -> bool {
        let length = std::fs::metadata(video).ok().map(|facts| facts.len());
        let journal = locked(&self.journal);
        journal.newest(name).is_some_and(|entry| {
            let same = entry.key == key && entry.bytes == length;
            entry.state == State::Done && length.is_some() && same
        })
    }

    /// Makes one video.
    fn attempt(&self, item: &Item, work: &Work) -> Result<Summary, Error> {
        let own = &self.args.own;
        let limit = Limit::new(self.cancel, own.timeout);
        let made = self.make(item, work, &limit.cancel);
        made.map_err(|error| match own.timeout {
            Some(after) if limit.late.load(Ordering::SeqCst) => Error::Timeout {
                after,
                stopped: Box::new(error),
            },
            _ => error,
        })
    }

    fn make(&self, item: &Item, work: &Work, cancel: &Cancel) -> Result<Summary, Error> {
        let (own, begun) = (&self.args.own, self.clock.begin());
        let (name, many) = (
            item.video.display().to_string(),
            own.jobs != Jobs::Exactly(1),
        );
        let screen = Arc::new(Screen::of_item(self.style, &name, many));
        if self.style != Style::Json && !many {
            console::tell(format_args!("\n{name}, from {}", item.told()));
        }
        let (mut request, notices) = work.args.request(random_seed)?;
        for notice in notices {
            screen.event(&Event::Notice(notice));
        }
        request.files.asked = Some(work.asked.clone());
        let existing = match own.overwrite {
            true => Existing::Replace,
            false => Existing::Keep,
        };
        let claimed = claim_as(&work.args, &request, &item.video, existing)?;
        screen.event(&Event::Phase(Phase::OpeningModels));
        let models = self.models(&work.args.models, cancel)?;
        let claims = claimed.clone();
        let (export, shown) = (models.clone(), Arc::clone(&screen));
        let prepared = unless_stopped(cancel, move || {
            Prepared::open_claimed(claimed, &export, &*shown)
        });
        let Some(prepared) = prepared else {
            claims.release();
            return Err(Error::Interrupted);
        };
        let prepared = prepared?;
        let engine = self.engine(work, &prepared, &models, &*screen)?;
        let _slot = self.slot(&engine, &prepared)?;
        Ok(engine.generate_since(&prepared, &*screen, cancel, begun)?)
    }

    /// Returns the export, opened once.
    fn models(&self, folder: &Path, cancel: &Cancel) -> Result<Models, Error> {
        let mut opened = locked(&self.models);
        match &*opened {
            Some((of, models)) if of == folder => Ok(models.clone()),
            _ => {
                let open = || Models::open_until(folder, cancel);
                let models = self.clock.opening(open)?;
                *opened = Some((folder.to_owned(), models.clone()));
                Ok(models)
            }
        }
    }

    /// Returns the engine of a group, placed by its first video. Its encoders stay loaded if there
    /// is room, so that later videos open nothing.
    fn engine(
        &self,
        work: &Work,
        prepared: &Prepared,
        models: &Models,
        observer: &dyn Observer,
    ) -> Result<Arc<Engine>, Error> {
        let mut opened = locked(&self.engine);
        match &*opened {
            Some((group, engine)) if *group == work.group => return Ok(Arc::clone(engine)),
            _ => *opened = None,
        }
        let place = || machine::place(&work.args, prepared, models, observer);
        let placed = self.clock.opening(place)?;
        let engine = |plan| {
            let (models, devices) = (models.clone(), placed.devices.clone());
            Engine::timed(models, devices, plan, Arc::clone(&self.clock))
        };
        let staying = engine(Plan {
            encoders_stay: true,
            ..placed.plan.clone()
        });
        let wanted = match self.args.own.jobs {
            Jobs::Exactly(n) => n,
            Jobs::Auto => 1,
        };
        let fits = staying.at_a_time(prepared, self.host)?.videos() >= wanted;
        let engine = Arc::new(if fits {
            staying
        } else {
            engine(placed.plan.clone())
        });
        *opened = Some((work.group.clone(), Arc::clone(&engine)));
        Ok(engine)
    }

    /// Waits until this video fits beside those that run now.
    fn slot(&self, engine: &Engine, prepared: &Prepared) -> Result<Slot<'_>, Error> {
        let most = match self.args.own.jobs {
            Jobs::Exactly(1) => 1,
            Jobs::Exactly(wanted) => {
                let room = engine.at_a_time(prepared, self.host)?;
                let fit = room.videos();
                if fit < wanted {
                    return Err(Error::Jobs { wanted, fit, room });
                }
                wanted
            }
            Jobs::Auto => {
                let fit = engine.at_a_time(prepared, self.host)?.videos();
                fit.clamp(1, engine.plan().device_ids().len().max(1))
            }
        };
        Ok(self.gate.enter(most))
    }
}

/// Says whether a failure may pass with time.
fn may_pass(error: &Error) -> bool {
    error.kind() == ErrorKind::Resources && !matches!(error, Error::Jobs { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::generate::run_file::Value;

    fn asked(values: &[(&str, &str)]) -> Asked {
        let value = |(name, value): &(&str, &str)| {
            let value = Value {
                value: (*value).into(),
                from: "default".to_owned(),
            };
            ((*name).to_owned(), value)
        };
        Asked {
            command: Vec::new(),
            values: values.iter().map(value).collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn videos_of_one_placement_share_an_engine() {
        let line =
            |more: &[(&str, &str)]| asked(&[&[("models", "m"), ("size", "a")], more].concat());
        let same = |a: &[(&str, &str)], b: &[(&str, &str)], gpus| {
            group(&line(a), gpus) == group(&line(b), gpus)
        };
        assert!(same(
            &[("audio", "a"), ("prompt", "p")],
            &[("audio", "b")],
            true
        ));
        assert!(!same(
            &[("sample-steps", "3")],
            &[("sample-steps", "4")],
            false
        ));
        for (gpus, name) in [(false, "size"), (false, "num-clip"), (true, "size")] {
            let equal = same(&[(name, "1")], &[(name, "2")], gpus);
            assert_eq!(equal, !gpus, "{name} {gpus}");
        }
        assert!(same(&[("num-clip", "2")], &[("num-clip", "auto")], true));
        assert!(!same(&[("num-clip", "2")], &[("num-clip", "1")], true));
        let area = ("size-mode", "area");
        assert!(!same(
            &[area, ("image", "a")],
            &[area, ("image", "b")],
            true
        ));
    }

    #[test]
    fn a_gate_lets_so_many_in() {
        let gate = Gate::default();
        let first = gate.enter(2);
        let _second = gate.enter(2);
        let waited = AtomicBool::new(false);
        thread::scope(|scope| {
            let (gate, waited) = (&gate, &waited);
            scope.spawn(move || {
                let _third = gate.enter(2);
                assert!(waited.load(Ordering::SeqCst));
            });
            thread::sleep(Duration::from_millis(50));
            waited.store(true, Ordering::SeqCst);
            drop(first);
        });
    }

    #[test]
    fn a_limit_stops_its_video_and_a_batch_stops_all() {
        let batch = Cancel::default();
        let late = Limit::new(&batch, Some(Duration::from_millis(5)));
        let (told, heard) = channel();
        let _watch = late.cancel.watch(move || told.send(()).unwrap());
        heard.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(late.late.load(Ordering::SeqCst) && !batch.is_cancelled());
        let other = Limit::new(&batch, Some(Duration::from_secs(3600)));
        assert!(!other.cancel.is_cancelled());
        batch.cancel();
        assert!(other.cancel.is_cancelled() && !other.late.load(Ordering::SeqCst));
    }
}
