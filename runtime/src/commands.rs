//! The commands of `avatar-run`. Each opens the files that its flags name, calls the library and
//! shows the result.

mod batch;
pub(crate) mod cli;
pub(crate) mod compat;
pub(crate) mod device_args;
pub(crate) mod error;
mod foresee;
mod layers;
mod log_args;
mod machine;
mod outputs;
mod presets;
mod print;
pub(crate) mod progress;
mod replay;
mod translate;

pub use cli::{Cli, as_typed, complaint};
pub use error::Error;
pub use layers::{Layered, Origin, layered};
pub use progress::{Style, failed};

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use engines::backend::Backend;
use engines::backend::ort::Runtime;
use engines::cancel::Cancel;
use engines::claims::{FilePlan, real};
use engines::error_kind::ErrorKind;
use engines::manifest::Models;

use crate::chain::cancellable::Cancellable;
use crate::chain::clock::{Begun, Clock};
use crate::chain::events::{Event, Observer, Phase};
use crate::checks::error::CheckError;
use crate::checks::{bench, diff, doctor, exec, film, parity, synthetic, verify};
use crate::commands::cli::{
    Bench, Command, Diff, Doctor, Exec, Generate, Merge, Parity, Probe, Verify, VerifyVideo,
    random_seed,
};
use crate::commands::outputs::unless_stopped;
use crate::commands::print::{print, show};
use crate::commands::progress::Screen;
use crate::generate::error::GenerateError;
use crate::generate::run_file::Asked;
use crate::generate::{ClaimedRequest, Engine, Prepared, watch};
use crate::media::merge::merge;
use crate::media::target::Target;
use crate::media::video_facts::probe;
use crate::numbers::size::SizeMode;

/// How this command shows what it does.
pub fn style(cli: &Cli) -> Style {
    match &cli.command {
        Command::Generate(g) if g.json && g.fills_stdout() => Style::JsonAside,
        Command::Generate(g) if g.json => Style::Json,
        Command::Replay(r) if r.json => Style::Json,
        Command::Batch(b) if b.json() => Style::Json,
        Command::Probe(p) if p.json => Style::Json,
        Command::Merge(m) if m.json => Style::Json,
        _ if std::io::stderr().is_terminal() && cli.log.leaves_a_bar() => Style::Bar,
        _ => Style::Lines,
    }
}

/// Time that a command which keeps nothing gets to end by itself after a signal.
const GRACE: Duration = Duration::from_millis(700);

/// Returns after how long a signal ends the process, or `None` for a command that has a video to
/// close and hears a signal everywhere.
pub fn grace(cli: &Cli) -> Option<Duration> {
    match &cli.command {
        Command::Generate(_) | Command::Batch(_) | Command::Replay(_) | Command::Merge(_) => None,
        _ => Some(GRACE),
    }
}

/// Runs the command. `layered` is the command line that `cli` was read from.
///
/// # Errors
/// As the library's.
pub fn run(cli: &Cli, layered: &Layered, style: Style, cancel: &Cancel) -> Result<(), Error> {
    match &cli.command {
        Command::Generate(g) => run_generate(g, layered.asked()?, style, cancel),
        Command::Batch(b) => batch::run(b, style, cancel),
        Command::Replay(r) => {
            replay::run(r, |args, asked| run_generate(args, asked, style, cancel))
        }
        Command::Diff(d) => run_diff(d),
        Command::Presets => print(presets::table().trim_end()),
        Command::Compat { line } => print(&translate::translate(line)?),
        Command::Exec(e) => run_exec(e, cancel),
        Command::Verify(v) => run_verify(v, style, cancel),
        Command::Bench(b) => run_bench(b),
        Command::Parity(p) => run_parity(p),
        Command::Probe(p) => run_probe(p),
        Command::Merge(m) => run_merge(m, cancel),
        Command::VerifyVideo(v) => run_verify_video(v),
        Command::Doctor(d) => run_doctor(d, cancel),
        Command::Plan(p) => foresee::plan(p),
        Command::Simulate(s) => foresee::simulate(s, cancel),
        Command::Completions { shell } => print(completions(*shell).trim_end()),
        Command::Man { command } => print(manual(command.as_deref())?.trim_end()),
    }
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "avatar-run", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn manual(name: Option<&str>) -> Result<String, Error> {
    let mut cli = Cli::command();
    cli.build();
    let page = match name {
        None => cli,
        Some(name) => {
            let found = cli.get_subcommands().find(|c| c.get_name() == name);
            let Some(found) = found.cloned() else {
                let known = cli.get_subcommands().map(clap::Command::get_name);
                let known: Vec<&str> = known.filter(|&n| n != "help").collect();
                let known = known.join(", ");
                return Err(Error::Usage(format!("man {name}: wanted one of {known}")));
            };
            found
        }
    };
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.expect("memory takes every write");
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn run_generate(args: &Generate, asked: Asked, style: Style, cancel: &Cancel) -> Result<(), Error> {
    let clock = Arc::<Clock>::default();
    let begun = clock.begin();
    let (mut request, notices) = args.request(random_seed)?;
    request.files.asked = Some(asked);
    let screen = Arc::new(Screen::new(style));
    for notice in notices {
        screen.event(&Event::Notice(notice));
    }
    let claimed = outputs::claim_video(args, &request, cancel)?;
    let made = make_video(args, claimed, &screen, cancel, begun, &clock);
    made.map_err(|error| match &error {
        Error::Generate(_) => error,
        _ if error.kind() == ErrorKind::Interrupted => GenerateError::Interrupted {
            partial: None,
            resumes: false,
        }
        .into(),
        _ => error,
    })
}

fn make_video(
    args: &Generate,
    claimed: ClaimedRequest,
    screen: &Arc<Screen>,
    cancel: &Cancel,
    begun: Begun,
    clock: &Arc<Clock>,
) -> Result<(), Error> {
    screen.event(&Event::Phase(Phase::OpeningModels));
    let models = clock.opening(|| Models::open_until(&args.models, cancel))?;
    tracing::info!(
        folder = %models.dir().display(),
        recipe = %models.recipe(),
        components = models.manifest().components.len(),
        "models opened"
    );
    let claims = claimed.clone();
    let (export, shown) = (models.clone(), Arc::clone(screen));
    // Nothing in the readers of files hears a request to stop.
    let prepared = unless_stopped(cancel, move || {
        Prepared::open_claimed(claimed, &export, &*shown)
    });
    let Some(prepared) = prepared else {
        claims.release();
        return Err(Error::Interrupted);
    };
    let prepared = prepared?;
    let placed = clock.opening(|| machine::place(args, &prepared, &models, &**screen))?;
    tracing::info!(placement = %placed.plan, "video placed");
    let (watching, devices) = (args.watching(), placed.devices.clone());
    let engine = Engine::timed(models, placed.devices, placed.plan, Arc::clone(clock));
    watch(&watching, clock, &devices, &**screen, |observer| {
        engine.generate_since(&prepared, observer, cancel, begun)
    })??;
    Ok(())
}

fn run_exec(args: &Exec, cancel: &Cancel) -> Result<(), Error> {
    let mut plan = FilePlan::default();
    plan.reads("--models", &args.models);
    plan.reads("--inputs", &args.inputs);
    plan.writes("--outputs", &args.outputs);
    let _claims = outputs::claim(&plan, args.existing.overwrite, cancel)?;
    let backend = args.on.open(&args.models)?;
    let request = exec::Request {
        component: args.component.clone(),
        inputs: args.inputs.clone(),
        outputs: args.outputs.clone(),
        taps: args.taps.clone(),
    };
    for (name, fact) in exec::exec(&backend, &request)? {
        print(&format!("{name}: {fact}"))?;
    }
    Ok(backend.models().unchanged()?)
}

/// Checks an export against a golden folder, prints the table and writes the JSON file. A control
/// run always ends in an error: [`verify::VerifyError::Caught`] when every fault was noticed.
fn run_verify(args: &Verify, style: Style, cancel: &Cancel) -> Result<(), Error> {
    let screen = Screen::new(style);
    let mut plan = FilePlan::default();
    plan.reads("--models", &args.models);
    plan.reads("--golden", &args.golden);
    args.json
        .iter()
        .for_each(|path| plan.writes("--json", path));
    let _claims = outputs::claim(&plan, args.existing.overwrite, cancel)?;
    let golden = verify::Golden::open(&args.golden).map_err(CheckError::from)?;
    screen.event(&Event::Phase(Phase::OpeningModels));
    let backend = args.on.open(&args.models)?;
    let models = backend.models().clone();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let backend = Cancellable::new(backend, cancel);
    let subject = verify::Subject::new(models.clone(), Arc::new(backend));
    let request = verify::Request {
        only: args.only.clone(),
        control: args.control,
        skip_e2e: args.skip_e2e,
    };
    let report = verify::run(&subject, &golden, &request, &screen, cancel)?;
    models.unchanged()?;
    print(report.to_string().trim_end())?;
    if let Some(path) = &args.json {
        verify::write_report(path, &report).map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?;
    }
    report.verdict().map_err(CheckError::from)?;
    if args.control {
        let faults = report.faults.len();
        return Err(CheckError::from(verify::VerifyError::Caught { faults }).into());
    }
    Ok(())
}

fn run_bench(args: &Bench) -> Result<(), Error> {
    if let Some(graphs) = &args.graphs {
        return run_synthetic(args, graphs);
    }
    let models = args.models.as_deref().unwrap_or(Path::new("."));
    let backend = args.on.open(models)?;
    let model = &backend.models().config().dit;
    for &lanes in &args.lanes {
        let request = bench::Request {
            geometry: args.run.geometry(model, args.size)?,
            lanes: lanes.into(),
            runs: args.runs.into(),
        };
        let report = bench::run(&backend, args.on.threads(), &request)?;
        show(&report, args.json)?;
    }
    Ok(())
}

fn run_synthetic(args: &Bench, graphs: &Path) -> Result<(), Error> {
    let request = synthetic::Request {
        geometry: &|model| args.run.geometry(model, args.size),
        graphs: graphs.to_owned(),
        device: args.on.device(),
        size: args.size.effective(SizeMode::Exact, args.size)?,
        lanes: args.lanes.iter().map(|&l| l.into()).collect(),
        layers: args.layers.map(NonZeroUsize::get),
        runs: args.runs.into(),
        matmul: args.matmul.into(),
        offload: args.offload.map(|m| m.0),
    };
    let report = synthetic::run(&request, &|budget| args.on.separate(budget))?;
    show(&report, args.json)
}

fn run_parity(args: &Parity) -> Result<(), Error> {
    // The device's library serves the CPU as well, not the other way round.
    let device = args.on.open(&args.models)?;
    let host = Runtime::cpu(args.on.threads())?;
    let geometry = args
        .run
        .geometry(&device.models().config().dit, args.size)?;
    let models = Models::open(&args.models)?;
    let report = parity::run(&device, &host, models, &geometry)?;
    show(&report, args.json)?;
    report.verdict().map_err(CheckError::from)?;
    Ok(())
}

fn run_diff(args: &Diff) -> Result<(), Error> {
    let diff = diff::diff(&args.first, &args.second).map_err(CheckError::from)?;
    show(&diff, args.json)?;
    let differs = |differs| CheckError::from(diff::DiffError::from(differs));
    diff.verdict().map_err(differs)?;
    Ok(())
}

fn run_probe(args: &Probe) -> Result<(), Error> {
    let facts = probe(&args.file)?;
    show(&facts, args.json)
}

/// Joins videos under a name that no input has.
fn run_merge(args: &Merge, cancel: &Cancel) -> Result<(), Error> {
    let out = real(&args.out).ok().flatten();
    let target = Target::of(out.as_deref().unwrap_or(&args.out), None)?;
    let mut plan = FilePlan::with_folders();
    for video in &args.videos {
        plan.reads("a video to join", video);
    }
    plan.writes("--out", &args.out);
    if let Some(partial) = target.partial() {
        plan.passes_through("the unfinished video of --out", &partial);
    }
    let _claims = outputs::claim(&plan, args.existing.overwrite, cancel)?;
    show(&merge(&args.videos, &target, cancel)?, args.json)
}

fn run_verify_video(args: &VerifyVideo) -> Result<(), Error> {
    let expected = args.against.as_deref().map(film::Expected::read);
    let expected = expected.transpose().map_err(CheckError::from)?;
    let film = film::examine(&args.file)?;
    let report = film::Report {
        file: args.file.clone(),
        checks: expected.map_or_else(Vec::new, |e| e.compare(&film)),
        film,
    };
    show(&report, args.json)?;
    report.verdict().map_err(CheckError::from)?;
    Ok(())
}

fn run_doctor(args: &Doctor, cancel: &Cancel) -> Result<(), Error> {
    let request = doctor::Request {
        models: args.models.clone(),
        engines: args.engines.clone(),
        save_dir: args.save_dir.clone(),
    };
    let report = doctor::run(&request, cancel);
    show(&report, args.json)?;
    report.verdict().map_err(CheckError::from)?;
    Ok(())
}
