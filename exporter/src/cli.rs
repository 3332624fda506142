//! The command line of `avatar-export`. A flag that upstream has too keeps upstream's name, and may
//! be written with underscores or with dashes.
use crate::build::BuildError;
use crate::build::command::{self, BuildArgs};
use crate::checkpoint::sums::SumsWatch;
use crate::checkpoint::{LoraFile, LoraScale};
use crate::export::{self, Event, ExportError, LimitsOutcome, MeasureLimits};
use crate::graphs::{self, GraphsError};
use crate::hub::{self, HubError, HubId, Told};
use crate::inspect::{self, InspectError};
use crate::log_args::LogArgs;
use crate::progress::Screen;
use crate::synth::{self, Preset, SynthError, SynthOptions};
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use engines::claims::{ClaimError, Claims, Existing, FilePlan};
use engines::console::{self, OutputError, print_line};
use engines::error_kind::ErrorKind;
use engines::recipe::Recipe;
use engines::signals;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Converts the published Live Avatar checkpoints to one ONNX graph per component
#[derive(Debug, Parser)]
#[command(name = "avatar-export", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Task,
    #[command(flatten)]
    log: LogArgs,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 2 usage, 3 input, 4 model, \
     5 memory or disk, 6 interrupted, 7 verification failed";

#[derive(Debug, Subcommand)]
enum Task {
    /// Download published checkpoints into the hub's cache, and check the hash of every file
    #[command(after_help = HUB_VARIABLES)]
    Download(DownloadArgs),
    /// Report the content of a checkpoint folder, with missing and unexpected tensors
    Inspect(InspectArgs),
    /// Write a checkpoint of random weights with the published file layout
    Synth(SynthArgs),
    /// Export every component as an ONNX graph, and write each weight once
    Onnx(OnnxArgs),
    /// Write every graph of a preset without weights, to check or to read the graphs
    Graphs(GraphsArgs),
    /// Build a TensorRT engine of every component for one kind of machine
    Build(BuildArgs),
    /// Compare the results of an export with golden results (this runs `avatar-run verify`)
    #[command(disable_help_flag = true)]
    Verify(VerifyArgs),
    /// Print a script that completes the flags in a shell
    Completions {
        /// Shell to complete in
        shell: clap_complete::Shell,
    },
    /// Print a manual page, as roff: that of the program, or of one of its commands
    Man {
        /// Command to describe
        #[arg(value_parser = parse_command)]
        command: Option<String>,
    },
}

/// Parses the name of a command.
fn parse_command(text: &str) -> Result<String, String> {
    let cli = Cli::command();
    let known: Vec<&str> = cli.get_subcommands().map(|c| c.get_name()).collect();
    match known.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("wanted one of {}", known.join(", "))),
    }
}

const HUB_VARIABLES: &str = "\
Variables:
  HF_HOME      Folder of the cache, which gets the folder hub [default: ~/.cache/huggingface].
               HF_HUB_CACHE names the inner folder itself
  HF_ENDPOINT  Address of the hub or of a mirror [default: https://huggingface.co]
  HF_TOKEN     Token for repositories that are not open to everybody

A download that broke off continues where it stopped. Other commands take what is in the cache:
  avatar-export onnx --ckpt_dir hf:Wan-AI/Wan2.2-S2V-14B --lora Quark-Vision/Live-Avatar --out DIR";

#[derive(Debug, Args)]
struct DownloadArgs {
    /// Repositories on the hub, each with a branch, a tag or a commit if wanted [default:
    /// Wan-AI/Wan2.2-S2V-14B and Quark-Vision/Live-Avatar]
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    ids: Vec<HubId>,
    /// Download every file. Without the flag, files that no export reads stay on the hub
    #[arg(long)]
    all: bool,
    /// Print the size and the free disk, and download nothing
    #[arg(long = "dry-run", visible_alias = "dry_run")]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Folder that holds Wan2.2-S2V-14B and LiveAvatar, or the folder Wan2.2-S2V-14B itself, or
    /// hf:ORG/NAME for a download. Where SHA256SUMS lies in Wan2.2-S2V-14B, the files that it names
    /// are hashed
    dir: PathBuf,
    /// LoRA to check with the checkpoint: a file, a PEFT folder, or ORG/NAME for a download
    /// [default: LiveAvatar/liveavatar.safetensors beside it, where it exists]
    #[arg(
        long,
        visible_aliases = ["lora_path_dmd", "lora-path-dmd"],
        value_name = "FILE|ORG/NAME",
        value_parser = OsStringValueParser::new().map(|t| LoraSource::named(&t))
    )]
    lora: Option<LoraSource>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetName {
    /// About 8 million parameters, for tests and the demo
    Tiny,
    /// About 155 million parameters, for benchmarks
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
    /// Sizes of the checkpoint
    #[arg(long, value_enum)]
    preset: PresetName,
    /// Number of layers of the transformer [default: from the preset]
    #[arg(long)]
    layers: Option<usize>,
    /// Number that selects the random weights; the same seed gives the same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder to write, which must be new or empty
    #[arg(long)]
    out: PathBuf,
}

/// Parses a recipe, and refuses a recipe that cannot be exported.
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
    /// Folder of the base checkpoint, for example ckpt/Wan2.2-S2V-14B, or hf:ORG/NAME[@REVISION]
    /// for a download. Where the folder holds SHA256SUMS, the files that it names are hashed first
    #[arg(long = "ckpt_dir", visible_alias = "ckpt-dir")]
    ckpt_dir: PathBuf,
    /// File or PEFT folder of a LoRA to merge into the transformer, for example
    /// ckpt/LiveAvatar/liveavatar.safetensors, or ORG/NAME[@REVISION] for a download. FILE:0.7
    /// merges it at strength 0.7. Several LoRAs are merged in the order of their flags
    #[arg(
        long,
        visible_aliases = ["lora_path_dmd", "lora-path-dmd"],
        value_name = "FILE[:STRENGTH]",
        required_unless_present = "no_lora",
        value_parser = OsStringValueParser::new().try_map(|t| parse_lora(&t))
    )]
    lora: Vec<LoraArgument>,
    /// Export the base weights without a LoRA
    #[arg(
        long = "no-lora",
        visible_alias = "no_lora",
        conflicts_with_all = ["lora", "lora_alpha", "lora_rank", "lora_scale"]
    )]
    no_lora: bool,
    /// Alpha of every LoRA, in place of the alpha in its file. The factor of a module is alpha /
    /// rank. A file without alpha gets 64 / 128, as the published LoRA
    #[arg(long = "lora-alpha", visible_alias = "lora_alpha")]
    lora_alpha: Option<f64>,
    /// Rank for the factor alpha / rank, in place of the rank of each module. Without --lora-alpha,
    /// alpha is 64
    #[arg(
        long = "lora-rank",
        visible_alias = "lora_rank",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    lora_rank: Option<u32>,
    /// Factor of every LoRA as one number, in place of alpha / rank
    #[arg(
        long = "lora-scale",
        visible_alias = "lora_scale",
        conflicts_with_all = ["lora_alpha", "lora_rank"]
    )]
    lora_scale: Option<f64>,
    /// Precision of the graphs: fp32 is the most exact, bf16 rounds like the reference
    #[arg(long, default_value = "fp32", value_parser = parse_recipe)]
    recipe: Recipe,
    /// Number of layers of the transformer to export, counted from the first. A smaller number
    /// needs less disk
    #[arg(long)]
    layers: Option<usize>,
    /// Folder to write. It replaces an older export once the new export is complete. An unfinished
    /// run leaves the folder .NAME.partial beside it, and the same command continues that run
    #[arg(long)]
    out: PathBuf,
    /// Delete the files of an unfinished run and start from the beginning
    #[arg(long)]
    restart: bool,
    /// Measure the speed of the disk and the processor after the export, and compare the export's
    /// time with it. Without the flag, an export of 20 s or more measures for two seconds
    #[arg(long = "measure-limits", visible_alias = "measure_limits")]
    measure_limits: bool,
}

/// Alpha of the published LoRA's training configuration.
const PUBLISHED_ALPHA: f64 = 64.0;

impl OnnxArgs {
    fn lora_scale(&self) -> LoraScale {
        match (self.lora_scale, self.lora_alpha, self.lora_rank) {
            (Some(factor), ..) => LoraScale::Scale(factor),
            (None, alpha, Some(rank)) => LoraScale::AlphaRank {
                alpha: alpha.unwrap_or(PUBLISHED_ALPHA),
                rank,
            },
            (None, Some(alpha), None) => LoraScale::Alpha(alpha),
            (None, None, None) => LoraScale::Stored,
        }
    }
}

/// A LoRA as the command line names it.
#[derive(Clone, Debug, PartialEq)]
struct LoraArgument {
    source: LoraSource,
    strength: f64,
}

/// The place of a LoRA.
#[derive(Clone, Debug, PartialEq)]
enum LoraSource {
    /// A file or a PEFT folder.
    Path(PathBuf),
    /// A repository in the hub's cache.
    Hub(HubId),
}

impl LoraSource {
    /// Reads a path that exists, or the name of a repository, with or without `hf:`. Any other text
    /// is a path too.
    fn named(text: &OsStr) -> Self {
        let path = Path::new(text);
        let weights = ["safetensors", "pth", "pt", "bin"];
        let is_file = path
            .extension()
            .is_some_and(|e| weights.iter().any(|w| e == *w));
        let id = text.to_str().and_then(|t| t.parse().ok());
        match id.filter(|_| !path.exists() && !is_file) {
            Some(id) => Self::Hub(id),
            None => Self::Path(path.to_owned()),
        }
    }

    fn path(self) -> Result<PathBuf, HubError> {
        match self {
            Self::Path(path) => Ok(path),
            Self::Hub(id) => hub::lora_path(&id),
        }
    }
}

/// Parses `FILE` or `FILE:STRENGTH`, where `FILE` may be a repository. A file whose whole name
/// exists has no strength, so a name may hold a colon.
fn parse_lora(text: &OsStr) -> Result<LoraArgument, String> {
    let whole = LoraArgument {
        source: LoraSource::named(text),
        strength: 1.0,
    };
    let split = text.to_str().and_then(|t| t.rsplit_once(':'));
    let is_whole = matches!(whole.source, LoraSource::Hub(_)) || Path::new(text).exists();
    let Some((file, strength)) = split.filter(|_| !is_whole) else {
        return Ok(whole);
    };
    match strength.parse::<f64>() {
        Ok(strength) if strength.is_finite() && !file.is_empty() => Ok(LoraArgument {
            source: LoraSource::named(OsStr::new(file)),
            strength,
        }),
        _ => Err(
            "no file has this name, and the text after the last colon is no strength; \
                  wanted FILE or FILE:NUMBER, such as lora.safetensors:0.7"
                .to_owned(),
        ),
    }
}

#[derive(Debug, Args)]
struct GraphsArgs {
    /// Sizes of the model
    #[arg(long, value_enum, default_value = "full")]
    preset: PresetName,
    /// Number of layers of the transformer [default: from the preset]
    #[arg(long)]
    layers: Option<usize>,
    /// Precision of the graphs: fp32 is the most exact, bf16 rounds like the reference
    #[arg(long, default_value = "fp32", value_parser = parse_recipe)]
    recipe: Recipe,
    /// Picture size in pixels as W*H, multiples of 16. Without the flag, sizes stay symbols such as
    /// h*w
    #[arg(long, value_parser = graphs::parse_size)]
    size: Option<(usize, usize)>,
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Flags for `avatar-run verify`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<std::ffi::OsString>,
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `download` failed, or a download that a flag names is not there.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// `inspect` failed.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// `synth` failed.
    #[error(transparent)]
    Synth(#[from] SynthError),
    /// `onnx` failed.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// `graphs` failed.
    #[error(transparent)]
    Graphs(#[from] GraphsError),
    /// `build` failed.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The folder to write is read too, or belongs to another run.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Standard output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The system refuses a handler for Ctrl-C.
    #[error("cannot listen for Ctrl-C: {reason}")]
    Signal {
        /// The system's message.
        reason: String,
    },
    /// The program `avatar-run` cannot be started.
    #[error(
        "{}: cannot run: {source}; avatar-run is searched beside avatar-export, then in PATH",
        program.display()
    )]
    Runtime {
        /// Path or name of the program.
        program: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl CliError {
    /// Returns the kind of failure, from which `main` makes the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Hub(e) => e.kind(),
            Self::Inspect(e) => e.kind(),
            Self::Synth(e) => e.kind(),
            Self::Export(e) => e.kind(),
            Self::Graphs(e) => e.kind(),
            Self::Build(e) => e.kind(),
            Self::Claim(e) => e.kind(),
            Self::Output(e) => e.kind(),
            Self::Runtime { .. } | Self::Signal { .. } => ErrorKind::Resources,
        }
    }
}

/// Runs a parsed command line. Returns the exit code of a command that ran.
///
/// # Errors
/// The failure of the command.
pub fn run(cli: Cli) -> Result<ExitCode, CliError> {
    cli.log.start();
    match cli.command {
        Task::Download(a) => {
            listen(OnSignal::End)?;
            download(a)
        }
        Task::Inspect(a) => {
            listen(OnSignal::End)?;
            inspect(a)
        }
        Task::Synth(a) => synth(&a, listen(OnSignal::Stop)?),
        Task::Onnx(a) => onnx(a, listen(OnSignal::StopFor(GRACE))?),
        Task::Graphs(a) => {
            listen(OnSignal::End)?;
            graphs(&a)
        }
        Task::Build(a) => {
            listen(OnSignal::End)?;
            build(&a)
        }
        Task::Verify(a) => verify(&a),
        Task::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "avatar-export", &mut script);
            print_text(&script)
        }
        Task::Man { command } => print_text(&manual(command.as_deref())),
    }
}

fn print_text(text: &[u8]) -> Result<ExitCode, CliError> {
    print_line(String::from_utf8_lossy(text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the manual page of a command that exists, or of the program.
fn manual(name: Option<&str>) -> Vec<u8> {
    let mut cli = Cli::command();
    cli.build();
    let page = name.and_then(|n| cli.find_subcommand(n)).unwrap_or(&cli);
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page.clone()).render(&mut text);
    rendered.expect("memory takes every write");
    text
}

/// Claims the folder that a command writes.
fn claim(out: &Path, reads: &[(&str, &Path)]) -> Result<Claims, CliError> {
    let mut plan = FilePlan::with_folders();
    reads
        .iter()
        .for_each(|(flag, path)| plan.reads(*flag, path));
    plan.writes_folder("--out", out);
    Ok(plan.claim(Existing::Keep)?)
}

fn download(a: DownloadArgs) -> Result<ExitCode, CliError> {
    let published = || {
        hub::PUBLISHED
            .map(|name| name.parse().expect("a name"))
            .to_vec()
    };
    let request = hub::Download {
        ids: if a.ids.is_empty() { published() } else { a.ids },
        all: a.all,
        dry_run: a.dry_run,
    };
    let mut screen = Screen::new();
    // The last error of standard output; a download does not end with it.
    let mut printed = Ok(());
    let fetched = hub::download(&request, &mut |told| match told {
        Told::Line(line) => printed = print_line(line),
        Told::Event(event) => screen.show(event),
    });
    screen.finish();
    fetched?;
    printed?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(a: InspectArgs) -> Result<ExitCode, CliError> {
    let dir = hub::checkpoint_folder(&a.dir)?;
    let lora = a.lora.map(LoraSource::path).transpose()?;
    let mut screen = Screen::new();
    // Nothing is written, so a signal ends the process.
    let mut sums = SumsWatch {
        stop: None,
        observe: Box::new(|progress| screen.show(Event::Checking(progress))),
    };
    let found = inspect::inspect(&dir, lora.as_deref(), &mut sums);
    drop(sums);
    screen.finish();
    let found = found?;
    let text = match a.json {
        true => serde_json::to_string_pretty(&found).expect("an inspection is plain data"),
        false => found.to_string(),
    };
    print_line(text)?;
    match found.sound {
        true => Ok(ExitCode::SUCCESS),
        false => Err(InspectError::from(found.refusals).into()),
    }
}

fn synth(a: &SynthArgs, stop: &AtomicBool) -> Result<ExitCode, CliError> {
    let _claims = claim(&a.out, &[])?;
    let report = synth::synth_until(
        a.preset.into(),
        &SynthOptions {
            layers: a.layers,
            seed: a.seed,
        },
        &a.out,
        stop,
    )?;
    for c in &report.components {
        print_line(format_args!(
            "{:<16} {:>6} tensors {:>14} parameters {:>14} bytes",
            c.name, c.tensors, c.parameters, c.bytes
        ))?;
    }
    print_line(format_args!(
        "wrote {} ({} parameters, {} bytes)",
        a.out.display(),
        report.parameters(),
        report.bytes()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn onnx(a: OnnxArgs, stop: &AtomicBool) -> Result<ExitCode, CliError> {
    let ckpt_dir = hub::checkpoint_folder(&a.ckpt_dir)?;
    let scale = a.lora_scale();
    let lora = |l: LoraArgument| {
        Ok(LoraFile {
            path: l.source.path()?,
            scale,
            strength: l.strength,
        })
    };
    let loras: Vec<LoraFile> = a
        .lora
        .into_iter()
        .map(lora)
        .collect::<Result<_, HubError>>()?;
    let mut reads = vec![("--ckpt_dir", ckpt_dir.as_path())];
    reads.extend(loras.iter().map(|lora| ("--lora", lora.path.as_path())));
    let _claims = claim(&a.out, &reads)?;
    let request = export::Request {
        ckpt_dir,
        loras,
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
        stop: Some(stop),
    };
    let mut screen = Screen::new();
    let report = export::export_with(&request, &options, &mut |event| screen.show(event));
    screen.finish();
    print_report(&report?)?;
    Ok(ExitCode::SUCCESS)
}

/// What the first signal does to a command. The second one ends every command at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnSignal {
    /// Ends the command, which leaves whole files only.
    End,
    /// Asks the command to stop.
    Stop,
    /// Asks the command to stop, and ends it after a time. What it has written is kept.
    StopFor(Duration),
}

/// Time that an export gets to finish the blocks at hand. A block takes far less, but a disk that
/// is asked to make files durable may take minutes.
const GRACE: Duration = Duration::from_millis(700);

/// Returns a flag that the first Ctrl-C or SIGTERM sets.
fn listen(act: OnSignal) -> Result<&'static AtomicBool, CliError> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let end = || signals::end(ErrorKind::Interrupted);
    let handler = move || {
        if STOP.swap(true, Ordering::Relaxed) {
            end();
        }
        match act {
            OnSignal::End => {
                console::complain("error: interrupted");
                end();
            }
            OnSignal::Stop => console::tell("stopping; press Ctrl-C again to stop at once"),
            OnSignal::StopFor(grace) => {
                console::tell(
                    "stopping after the current blocks; press Ctrl-C again to stop at once",
                );
                thread::spawn(move || {
                    thread::sleep(grace);
                    console::complain(
                        "error: stopped by a signal; finished blocks are kept: the same command \
                         continues, --restart begins anew",
                    );
                    end();
                });
            }
        }
    };
    match ctrlc::set_handler(handler) {
        Ok(()) => Ok(&STOP),
        Err(e) => Err(CliError::Signal {
            reason: e.to_string(),
        }),
    }
}

fn print_report(report: &export::Report) -> Result<(), OutputError> {
    print_line(format_args!(
        "wrote {}: {} graphs, {} weights, {} bytes, LoRA merged into {} tensors",
        report.out.display(),
        report.components,
        report.weights,
        report.bytes,
        report.lora_targets
    ))?;
    if report.kept > 0 {
        let kept = report.kept;
        print_line(format_args!(
            "{kept} bytes were kept from an unfinished run"
        ))?;
    }
    let written = (report.bytes - report.kept) as f64 / 1e6;
    let mb = |bytes: Option<u64>| {
        bytes.map_or_else(|| "unknown".to_owned(), |b| format!("{} MB", b / 1_000_000))
    };
    print_line(format_args!(
        "{:.1} s, {} s of processor time, {:.0} MB/s written, \
         peak memory {} (with pages of files {})",
        report.seconds,
        report
            .processor_seconds
            .map_or_else(|| "unknown".to_owned(), |s| format!("{s:.1}")),
        written / report.seconds,
        mb(report.peak_anonymous),
        mb(report.peak_resident)
    ))?;
    match &report.limits {
        LimitsOutcome::NotRequested => {}
        LimitsOutcome::Measured(limits) => print_line(limits)?,
        LimitsOutcome::Failed { reason } => {
            console::tell(format_args!("note: limits not measured: {reason}"));
        }
    }
    Ok(())
}

fn graphs(a: &GraphsArgs) -> Result<ExitCode, CliError> {
    let _claims = claim(&a.out, &[])?;
    let count = graphs::write(a.preset.into(), a.layers, a.recipe, a.size, &a.out)?;
    print_line(format_args!(
        "wrote {count} graphs without weights to {}",
        a.out.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn build(a: &BuildArgs) -> Result<ExitCode, CliError> {
    // Engines lie beside other files, so nothing that is read is in danger.
    let _claims = claim(&a.out, &[])?;
    command::build(a)?;
    Ok(ExitCode::SUCCESS)
}

/// Becomes `avatar-run verify`, which then gets the signals and returns the exit code. Verification
/// needs the runtime's chain, and the two libraries must not depend on each other.
fn verify(a: &VerifyArgs) -> Result<ExitCode, CliError> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("avatar-run")))
        .filter(|p| p.is_file());
    let program = beside.unwrap_or_else(|| PathBuf::from("avatar-run"));
    let mut command = Command::new(&program);
    let source = command.arg("verify").args(&a.flags).exec();
    Err(CliError::Runtime { program, source })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn onnx_args(flags: &[&str]) -> Result<OnnxArgs, clap::Error> {
        let rest = ["avatar-export", "onnx", "--ckpt_dir", "c", "--out", "o"];
        let cli = Cli::try_parse_from(rest.iter().chain(flags))?;
        let Task::Onnx(a) = cli.command else {
            panic!("not onnx")
        };
        Ok(a)
    }

    #[test]
    fn loras_have_an_order_and_a_strength_each() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:0.5");
        std::fs::write(&odd, "").unwrap();
        let odd = odd.to_str().unwrap();
        let a = onnx_args(&[
            "--lora", odd, "--lora", "b:0.7", "--lora", "c", "--lora", "d:-1",
        ]);
        let lora = |path: &str, strength| LoraArgument {
            source: LoraSource::Path(path.into()),
            strength,
        };
        let want = [
            lora(odd, 1.0),
            lora("b", 0.7),
            lora("c", 1.0),
            lora("d", -1.0),
        ];
        assert_eq!(a.unwrap().lora, want);
        let again = format!("{odd}:2");
        assert_eq!(
            onnx_args(&["--lora", &again]).unwrap().lora,
            [lora(odd, 2.0)]
        );
        for text in [
            "C:\\loras\\b.safetensors",
            "b:",
            ":0.7",
            "b:nan",
            "b:inf",
            "b:0,7",
        ] {
            let error = onnx_args(&["--lora", text]).unwrap_err().to_string();
            assert!(
                error.contains("wanted FILE or FILE:NUMBER"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_lora_may_be_a_repository_unless_a_file_has_the_name() {
        let hub = |name: &str, strength| LoraArgument {
            source: LoraSource::Hub(name.parse().unwrap()),
            strength,
        };
        for (text, want) in [
            (
                "Quark-Vision/Live-Avatar",
                hub("Quark-Vision/Live-Avatar", 1.0),
            ),
            ("hf:a/b@v1", hub("a/b@v1", 1.0)),
            ("hf:a/b:0.5", hub("a/b", 0.5)),
            ("a/b@v1:-1", hub("a/b@v1", -1.0)),
            (
                "a/b.safetensors",
                LoraArgument {
                    source: LoraSource::Path("a/b.safetensors".into()),
                    strength: 1.0,
                },
            ),
        ] {
            let alias = onnx_args(&["--lora_path_dmd", text]).unwrap().lora;
            assert_eq!(onnx_args(&["--lora", text]).unwrap().lora, alias);
            assert_eq!(alias, [want], "{text}");
        }
    }

    #[test]
    fn flags_choose_the_factor_and_else_the_file_does() {
        for (flags, want) in [
            (&[][..], LoraScale::Stored),
            (&["--lora-alpha", "8"], LoraScale::Alpha(8.0)),
            (&["--lora-scale", "0.5"], LoraScale::Scale(0.5)),
            (
                &["--lora-rank", "32"],
                LoraScale::AlphaRank {
                    alpha: 64.0,
                    rank: 32,
                },
            ),
            (
                &["--lora_alpha", "8", "--lora_rank", "4"],
                LoraScale::AlphaRank {
                    alpha: 8.0,
                    rank: 4,
                },
            ),
        ] {
            let flags = [&["--lora", "l"], flags].concat();
            assert_eq!(onnx_args(&flags).unwrap().lora_scale(), want, "{flags:?}");
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
