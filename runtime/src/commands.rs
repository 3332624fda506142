//! What each command of `avatar-run` does: opens what it names, calls the library, shows the result.

pub(crate) mod cli;
pub(crate) mod compat;
pub(crate) mod device_args;
pub(crate) mod error;
mod foresee;
mod machine;
pub(crate) mod progress;

pub use cli::{Cli, complaint};
pub use error::Error;
pub use progress::{Style, failed};

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use engines::backend::ort::{Ort, Runtime};
use engines::manifest::Models;

use crate::chain::events::{Cancel, Event, Observer};
use crate::checks::bench;
use crate::checks::exec;
use crate::checks::parity;
use crate::checks::synthetic;
use crate::checks::verify;
use crate::commands::cli::{Bench, Command, Exec, Generate, Parity, Probe};
use crate::commands::progress::Screen;
use crate::generate::{Engine, Request, generate};
use crate::media::video_facts::probe;
use crate::numbers::size::{Size, SizeMode};
use crate::placement::devices::Devices;

/// How this command shows what it does.
pub fn style(cli: &Cli) -> Style {
    match &cli.command {
        Command::Generate(g) if g.json => Style::Json,
        Command::Probe(p) if p.json => Style::Json,
        _ if std::io::stderr().is_terminal() => Style::Bar,
        _ => Style::Lines,
    }
}

/// Runs the command.
///
/// # Errors
/// As the library's.
pub fn run(cli: &Cli, style: Style, cancel: &Cancel) -> Result<(), Error> {
    match &cli.command {
        Command::Generate(g) => run_generate(g, style, cancel),
        Command::Exec(e) => run_exec(e),
        Command::Verify(v) => {
            verify::command(v, &mut std::io::stdout(), &Screen::new(style), cancel)
        }
        Command::Bench(b) => run_bench(b),
        Command::Parity(p) => run_parity(p),
        Command::Probe(p) => run_probe(p),
        Command::Plan(p) => foresee::plan(p),
        Command::Simulate(s) => foresee::simulate(s),
    }
}

/// Opens an export on ONNX Runtime's CPU provider.
///
/// # Errors
/// A folder that is missing, damaged or of another version; a runtime library that is missing.
pub fn open(models: &Path, threads: Option<NonZeroUsize>) -> Result<Ort, Error> {
    Ok(Ort::new(
        Models::open(models)?,
        device_args::threads(threads),
    )?)
}

fn run_generate(args: &Generate, style: Style, cancel: &Cancel) -> Result<(), Error> {
    let (request, notices) = args.request(random_seed)?;
    let screen = Screen::new(style);
    for notice in notices {
        screen.event(&Event::Notice(notice));
    }
    let placed = match &args.profile {
        Some(_) => machine::placed(args, &request, &screen)?,
        None => machine::as_told(args, &request, &screen)?,
    };
    let request = Request {
        placement: placed.plan,
        ring_blocks: placed.ring_blocks,
        ..request
    };
    let backends = placed.backends.iter().map(|b| &**b);
    let devices = match placed.backends.as_slice() {
        [one] if !one.memory().is_separate() => Devices::one(&**one),
        _ => Devices::each(backends.collect()),
    };
    let engine = Engine::on(&placed.models, devices);
    generate(&engine, &request, &screen, cancel).map(drop)
}

fn run_exec(args: &Exec) -> Result<(), Error> {
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
    Ok(())
}

fn run_bench(args: &Bench) -> Result<(), Error> {
    let size = args.size.effective(SizeMode::Exact, args.size)?;
    if let Some(graphs) = &args.graphs {
        return run_synthetic(args, graphs, size);
    }
    let models = args.models.as_deref().unwrap_or(Path::new("."));
    let backend = args.on.open(models)?;
    for &lanes in &args.lanes {
        let request = bench::Request {
            size,
            lanes: lanes.into(),
            runs: args.runs.into(),
        };
        let report = bench::run(&backend, args.on.threads(), &request)?;
        show(&report, args.json)?;
    }
    Ok(())
}

fn run_synthetic(args: &Bench, graphs: &Path, size: Size) -> Result<(), Error> {
    let request = synthetic::Request {
        graphs: graphs.to_owned(),
        device: args.on.device,
        size,
        lanes: args.lanes.iter().map(|&l| l.into()).collect(),
        layers: args.layers.map(NonZeroUsize::get),
        runs: args.runs.into(),
        matmul: args.matmul.into(),
        offload: args.offload.map(|m| m.0),
    };
    let report = synthetic::run(&request, &|budget| args.on.separate(budget))?;
    show(&report, args.json)
}

fn show(report: &(impl serde::Serialize + std::fmt::Display), json: bool) -> Result<(), Error> {
    match json {
        true => print(&serde_json::to_string(report).unwrap_or_default()),
        false => print(report.to_string().trim_end()),
    }
}

fn run_parity(args: &Parity) -> Result<(), Error> {
    let size = args.size.effective(SizeMode::Exact, args.size)?;
    // The device's library serves the CPU as well, not the other way round.
    let device = args.on.open(&args.models)?;
    let host = Runtime::cpu(args.on.threads())?;
    let report = parity::run(&device, &host, Models::open(&args.models)?, size)?;
    show(&report, args.json)?;
    Ok(report.verdict()?)
}

fn run_probe(args: &Probe) -> Result<(), Error> {
    let facts = probe(&args.file)?;
    let text = if args.json {
        serde_json::to_string(&facts).unwrap_or_default()
    } else {
        facts.to_string()
    };
    print(&text)
}

fn print(text: &str) -> Result<(), Error> {
    writeln!(std::io::stdout(), "{text}").map_err(|source| Error::Write {
        path: "standard output".into(),
        source,
    })
}

/// Different at every call; shown in the settings, so that a run can be repeated.
fn random_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 & u64::from(u32::MAX)
}
