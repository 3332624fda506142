//! The command line of `avatar-export`. Flags are upstream's where upstream has them, with underscores or dashes.
use crate::build::BuildError;
use crate::build::command::{self, BuildArgs};
use crate::checkpoint::LoraScale;
use crate::export::{self, ExportError, LimitsOutcome, MeasureLimits};
use crate::graphs::{self, GraphsError};
use crate::inspect::{self, InspectError};
use crate::progress::Screen;
use crate::synth::{self, Preset, SynthError, SynthOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
use engines::error_kind::ErrorKind;
use engines::recipe::Recipe;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

/// Turns the published Live Avatar checkpoints into per-component ONNX graphs.
#[derive(Debug, Parser)]
#[command(name = "avatar-export", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Task,
}

const EXIT_CODES: &str = "ErrorKind codes: 0 done, 2 usage, 3 input, 4 model, 5 memory or disk, 6 interrupted, 7 verification failed";

#[derive(Debug, Subcommand)]
enum Task {
    /// Say what a checkpoint folder holds, what is missing and what is unexpected
    Inspect(InspectArgs),
    /// Write a random checkpoint in the published layout
    Synth(SynthArgs),
    /// Export every component as an ONNX graph, weights written once
    Onnx(OnnxArgs),
    /// Write every graph without weights at a preset's real shapes, for checking and for reading
    Graphs(GraphsArgs),
    /// Build TensorRT engines of every component for a kind of machine
    Build(BuildArgs),
    /// Check an export, component by component and end to end, against a golden folder (runs `avatar-run verify`)
    #[command(disable_help_flag = true)]
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Folder that holds Wan2.2-S2V-14B and LiveAvatar, or Wan2.2-S2V-14B itself
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetName {
    /// About 8 M parameters: tests and the demo
    Tiny,
    /// About 155 M parameters: benchmarks
    Small,
    /// The published sizes
    Full,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Self {
        match name {
            PresetName::Tiny => Self::Tiny,
            PresetName::Small => Self::Small,
            PresetName::Full => Self::Full,
        }
    }
}

#[derive(Debug, Args)]
struct SynthArgs {
    #[arg(long, value_enum)]
    preset: PresetName,
    /// Layers of the transformer, when not the preset's
    #[arg(long)]
    layers: Option<usize>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// New or empty folder to write
    #[arg(long)]
    out: PathBuf,
}

/// Reads a recipe that can be exported.
fn parse_recipe(text: &str) -> Result<Recipe, String> {
    match text.parse::<Recipe>() {
        Ok(Recipe::Fp8) => Err(
            "fp8 needs scales from a calibration, which this version does not have; use bf16"
                .to_owned(),
        ),
        other => other.map_err(|e| e.to_string()),
    }
}

#[derive(Debug, Args)]
struct OnnxArgs {
    /// Folder of the base checkpoint, e.g. ckpt/Wan2.2-S2V-14B
    #[arg(long = "ckpt_dir", visible_alias = "ckpt-dir")]
    ckpt_dir: PathBuf,
    /// LoRA to merge into the transformer, e.g. ckpt/LiveAvatar/liveavatar.safetensors
    #[arg(long, required_unless_present = "no_lora")]
    lora: Option<PathBuf>,
    /// Export the base weights without a LoRA
    #[arg(long = "no-lora", visible_alias = "no_lora", conflicts_with_all = ["lora", "lora_alpha", "lora_rank", "lora_scale"])]
    no_lora: bool,
    /// LoRA strength is alpha / rank
    #[arg(
        long = "lora-alpha",
        visible_alias = "lora_alpha",
        default_value_t = 64.0
    )]
    lora_alpha: f64,
    /// The published configuration's rank; the file's own rank does not matter
    #[arg(long = "lora-rank", visible_alias = "lora_rank", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    lora_rank: u32,
    /// LoRA strength itself, instead of alpha / rank
    #[arg(long = "lora-scale", visible_alias = "lora_scale", conflicts_with_all = ["lora_alpha", "lora_rank"])]
    lora_scale: Option<f64>,
    /// Precision: fp32, the oracle; bf16, the reference's own
    #[arg(long, default_value = "fp32", value_parser = parse_recipe)]
    recipe: Recipe,
    /// Export only the first layers of the transformer, so that a full-width export fits a disk
    #[arg(long)]
    layers: Option<usize>,
    /// Folder to write; an export that is there is replaced when the new one is complete. A run that was stopped, killed or ran out of disk
    /// leaves .NAME.partial beside it, and the same command continues there
    #[arg(long)]
    out: PathBuf,
    /// Throw away what an unfinished run left
    #[arg(long)]
    restart: bool,
    /// Measure disk and cores thoroughly afterwards and hold the time against them (exports of 20 s and more do so briefly)
    #[arg(long = "measure-limits", visible_alias = "measure_limits")]
    measure_limits: bool,
}

#[derive(Debug, Args)]
struct GraphsArgs {
    #[arg(long, value_enum, default_value = "full")]
    preset: PresetName,
    /// Layers of the transformer, when not the preset's
    #[arg(long)]
    layers: Option<usize>,
    /// Precision: fp32, the oracle; bf16, the reference's own
    #[arg(long, default_value = "fp32", value_parser = parse_recipe)]
    recipe: Recipe,
    /// Pixels as W*H, multiples of 16; without it latent sizes stay symbols
    #[arg(long, value_parser = graphs::parse_size)]
    size: Option<(usize, usize)>,
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Passed on to `avatar-run verify`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<std::ffi::OsString>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Graphs(#[from] GraphsError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("cannot listen for Ctrl-C: {reason}")]
    Signal { reason: String },
    #[error("{}: cannot run: {source}; avatar-run is looked for beside avatar-export, then in PATH", program.display())]
    Runtime {
        program: PathBuf,
        source: std::io::Error,
    },
}

impl CliError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Inspect(e) => e.kind(),
            Self::Synth(e) => e.kind(),
            Self::Export(e) => e.kind(),
            Self::Graphs(e) => e.kind(),
            Self::Build(e) => e.kind(),
            Self::Runtime { .. } | Self::Signal { .. } => ErrorKind::Resources,
        }
    }
}

/// Runs a parsed command line.
pub fn run(cli: Cli) -> Result<ExitCode, CliError> {
    match cli.command {
        Task::Inspect(a) => inspect(&a),
        Task::Synth(a) => synth(&a),
        Task::Onnx(a) => onnx(a),
        Task::Graphs(a) => graphs(&a),
        Task::Build(a) => Ok(command::build(&a).map(|()| ExitCode::SUCCESS)?),
        Task::Verify(a) => verify(&a),
    }
}

fn inspect(a: &InspectArgs) -> Result<ExitCode, CliError> {
    let found = inspect::inspect(&a.dir)?;
    if a.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&found).expect("an inspection is plain data")
        );
    } else {
        print!("{found}");
    }
    Ok(if found.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(ErrorKind::Model.code())
    })
}

fn synth(a: &SynthArgs) -> Result<ExitCode, CliError> {
    let report = synth::synth(
        a.preset.into(),
        &SynthOptions {
            layers: a.layers,
            seed: a.seed,
        },
        &a.out,
    )?;
    for c in &report.components {
        println!(
            "{:<16} {:>6} tensors {:>14} parameters {:>14} bytes",
            c.name, c.tensors, c.parameters, c.bytes
        );
    }
    println!(
        "wrote {} ({} parameters, {} bytes)",
        a.out.display(),
        report.parameters(),
        report.bytes()
    );
    Ok(ExitCode::SUCCESS)
}

fn onnx(a: OnnxArgs) -> Result<ExitCode, CliError> {
    let scale = match a.lora_scale {
        Some(s) => LoraScale::Scale(s),
        None => LoraScale::AlphaRank {
            alpha: a.lora_alpha,
            rank: a.lora_rank,
        },
    };
    let request = export::Request {
        ckpt_dir: a.ckpt_dir,
        lora: a.lora.map(|l| (l, scale)),
        recipe: a.recipe,
        layers: a.layers,
        out: a.out,
    };
    let options = export::Options {
        start: if a.restart {
            export::Start::Anew
        } else {
            export::Start::Continue
        },
        measure_limits: if a.measure_limits {
            MeasureLimits::Always
        } else {
            MeasureLimits::LongExports
        },
        stop: Some(stop_on_signal()?),
    };
    let mut screen = Screen::new();
    let report = export::export_with(&request, &options, &mut |event| screen.show(event));
    screen.finish();
    print_report(&report?);
    Ok(ExitCode::SUCCESS)
}

/// Set by the first Ctrl-C; the second ends the process. What is written is kept either way.
fn stop_on_signal() -> Result<&'static AtomicBool, CliError> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let handler = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(ErrorKind::Interrupted.code()));
        }
        eprintln!("stopping after the blocks at hand; press Ctrl-C again to stop at once");
    };
    match ctrlc::set_handler(handler) {
        Ok(()) => Ok(&STOP),
        Err(e) => Err(CliError::Signal {
            reason: e.to_string(),
        }),
    }
}

fn print_report(report: &export::Report) {
    println!(
        "wrote {}: {} graphs, {} weights, {} bytes, LoRA merged into {} tensors",
        report.out.display(),
        report.components,
        report.weights,
        report.bytes,
        report.lora_targets
    );
    if report.kept > 0 {
        println!("{} bytes were kept from an unfinished run", report.kept);
    }
    let written = (report.bytes - report.kept) as f64 / 1e6;
    let mb = |bytes: Option<u64>| {
        bytes.map_or_else(|| "unknown".to_owned(), |b| format!("{} MB", b / 1_000_000))
    };
    println!(
        "{:.1} s, {} s of processor time, {:.0} MB/s written, peak memory {} (with pages of files {})",
        report.seconds,
        report
            .processor_seconds
            .map_or_else(|| "unknown".to_owned(), |s| format!("{s:.1}")),
        written / report.seconds,
        mb(report.peak_anonymous),
        mb(report.peak_resident)
    );
    match &report.limits {
        LimitsOutcome::NotRequested => {}
        LimitsOutcome::Measured(limits) => println!("{limits}"),
        LimitsOutcome::Failed { reason } => eprintln!("note: limits not measured: {reason}"),
    }
}

fn graphs(a: &GraphsArgs) -> Result<ExitCode, CliError> {
    let count = graphs::write(a.preset.into(), a.layers, a.recipe, a.size, &a.out)?;
    println!(
        "wrote {count} graphs without weights to {}",
        a.out.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The chain that verification runs is the runtime's, so the runtime does it; the two libraries stay strangers.
fn verify(a: &VerifyArgs) -> Result<ExitCode, CliError> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("avatar-run")))
        .filter(|p| p.is_file());
    let program = beside.unwrap_or_else(|| PathBuf::from("avatar-run"));
    let status = Command::new(&program).arg("verify").args(&a.flags).status();
    let status = status.map_err(|source| CliError::Runtime { program, source })?;
    // Stopped by a signal: as an interrupted run.
    Ok(status
        .code()
        .map_or(ExitCode::from(ErrorKind::Interrupted.code()), |c| {
            ExitCode::from(u8::try_from(c).unwrap_or(1))
        }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn underscores_and_dashes_are_the_same_flag() {
        for flags in [
            ["--ckpt_dir", "--lora_scale"],
            ["--ckpt-dir", "--lora-scale"],
        ] {
            let cli = Cli::try_parse_from([
                "avatar-export",
                "onnx",
                flags[0],
                "c",
                "--lora",
                "l",
                flags[1],
                "0.5",
                "--out",
                "o",
            ])
            .unwrap();
            let Task::Onnx(a) = cli.command else {
                panic!("not onnx")
            };
            assert_eq!((a.ckpt_dir.to_str(), a.lora_scale), (Some("c"), Some(0.5)));
        }
    }

    #[test]
    fn fp8_is_refused_with_the_reason_and_unknown_recipes_by_name() {
        for (recipe, want) in [
            ("fp32", Ok(Recipe::Fp32)),
            ("bf16", Ok(Recipe::Bf16)),
            ("fp8", Err("calibration")),
            ("int4", Err("`int4`")),
        ] {
            let parsed =
                Cli::try_parse_from(["avatar-export", "graphs", "--recipe", recipe, "--out", "o"]);
            match (parsed, want) {
                (Ok(cli), Ok(want)) => {
                    let Task::Graphs(a) = cli.command else {
                        panic!("not graphs")
                    };
                    assert_eq!(a.recipe, want);
                }
                (Err(e), Err(word)) => assert!(e.to_string().contains(word), "{e}"),
                (parsed, want) => panic!("{recipe}: wanted {want:?}, got {parsed:?}"),
            }
        }
    }

    #[test]
    fn a_lora_is_named_or_declined() {
        assert!(
            Cli::try_parse_from(["avatar-export", "onnx", "--ckpt_dir", "c", "--out", "o"])
                .is_err()
        );
        assert!(
            Cli::try_parse_from([
                "avatar-export",
                "onnx",
                "--ckpt_dir",
                "c",
                "--no-lora",
                "--out",
                "o"
            ])
            .is_ok()
        );
    }
}
