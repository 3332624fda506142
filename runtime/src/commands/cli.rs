//! The command line of `avatar-run`: turns flags into requests, and does nothing else. Upstream's
//! flags keep their names. Every flag may be written with underscores or with dashes.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use engines::claims::Existing;
use engines::components::dit::DitConfig;

use crate::chain::decoders::Mode;
use crate::commands::batch::values::{Jobs, jobs, time};
use crate::commands::compat::Upstream;
use crate::commands::device_args::{self, DeviceArgs};
use crate::commands::error::Error;
use crate::commands::log_args::LogArgs;
use crate::commands::presets;
use crate::generate::error::GenerateError;
use crate::generate::{Clips, Guiding, Keeping, OutputFiles, Request, Watching};
use crate::inputs::speech::Channels;
use crate::media::encoding::{BitRate, Encoding, Rate};
use crate::media::pcm::{Gaps, Pcm, SampleForm};
use crate::media::picture::{Background, Fit, Icc, Reading};
use crate::media::target::{Format, Target as Output};
use crate::numbers::geometry::Geometry;
use crate::numbers::guide_scale::GuideScale;
use crate::numbers::memory_size::MemorySize;
use crate::numbers::schedule::SHIFT;
use crate::numbers::size::{Size, SizeMode};
use crate::numbers::solver::{Sampling, Solver};
use crate::numbers::timing::Timing;
use crate::placement::plan::{Lanes, Latency, MIN_SLOTS, Residency, Rings, Stages};
use crate::placement::told::Told;
use crate::planner::wishes::Wishes;

/// One picture, speech and a prompt in; talking video out.
#[derive(Debug, Parser)]
#[command(name = "avatar-run", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
    /// Logs on standard error.
    #[command(flatten)]
    pub log: LogArgs,
}

const EXIT_CODES: &str = "\
You may write a flag with dashes, or with underscores as upstream does.
Exit codes: 0 done, 2 usage, 3 input, 4 model, 5 memory or disk, \
6 interrupted (the unfinished video plays), 7 verification failed";

const COMPAT_ANSWERS: &str = "\
Answers:
  same        generate has the flag
  other name  generate has it under that name
  not needed  it asks for what happens anyway, or another command settled it
  refused     it cannot be honoured; the reason and the alternative follow
  unknown     neither upstream nor an article has it

The last line is the command that does the same here. Example:
  avatar-run compat 'torchrun s2v_streaming_interact.py --size \"720*400\" --offload_model False'";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate a talking video.
    Generate(Box<Generate>),
    /// Make a video of every sound file in a folder, or of every line of a list. The models are
    /// opened once.
    Batch(Box<Batch>),
    /// Repeat the run of a run file with the same values, and compare the frames.
    Replay(Replay),
    /// Compare two videos, two run files or two traces: the first block that differs, and the
    /// sound.
    Diff(Diff),
    /// Print the settings that --preset knows by name.
    Presets,
    /// Print what each flag of an upstream or article command line becomes here.
    #[command(after_help = COMPAT_ANSWERS)]
    Compat {
        /// Command line, in quotes as one argument: a launcher, a program and its flags, or flags
        /// alone.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        line: Vec<String>,
    },
    /// Run one component of an export on tensors from a file.
    Exec(Exec),
    /// Check an export against a folder of reference tensors.
    Verify(Verify),
    /// Measure the time of every component of an export at a given size.
    Bench(Bench),
    /// Compare every component of an export on a device with the same component on the CPU.
    Parity(Parity),
    /// Print the size, frame rate, lengths and sound of a video file.
    Probe(Probe),
    /// Join videos of equal settings: frames are copied, and the sound stays in step.
    Merge(Merge),
    /// Decode a whole video and print its facts with a hash of its frames; compare them with a run.
    VerifyVideo(VerifyVideo),
    /// Check this machine: driver, libraries, devices, memory, disk, FFmpeg, models and engines.
    Doctor(Doctor),
    /// Print what a machine can do, before anything is loaded: the memory of every device, the
    /// times, and the part that limits them.
    Plan(PlanArgs),
    /// Run the schedule of a plan without a model, and show when each device does which work.
    Simulate(SimulateArgs),
    /// Print a script that completes the flags in a shell.
    Completions {
        /// Shell to complete in.
        shell: clap_complete::Shell,
    },
    /// Print a manual page, as roff: that of the program, or of one of its commands.
    Man {
        /// Command to describe.
        command: Option<String>,
    },
}

/// Flags that tell a placement. A profile decides all of them.
const TOLD: [&str; 7] = [
    "stages",
    "lanes",
    "resident_layers",
    "slots",
    "device_memory",
    "vae_device",
    "ring_blocks",
];

/// What happens to a file that exists where another one is to be written.
#[derive(Clone, Copy, Debug, Args)]
pub struct ExistingArgs {
    /// Replace files that exist under the names of the files to write. Without it, a terminal is
    /// asked, and a script is refused.
    #[arg(long)]
    pub overwrite: bool,
}

/// Flags of `generate`.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct Generate {
    /// Settings of an article by name, such as quick-preview (`avatar-run presets` lists them;
    /// every other flag wins), or x264's preset: ultrafast to veryslow.
    #[arg(long, value_name = "NAME", action = clap::ArgAction::Append)]
    preset: Vec<String>,
    /// TOML file with flags, such as `sample_steps = 4`. Variables such as AVATAR_SAMPLE_STEPS win
    /// over it, and flags win over both.
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,
    /// Folder that `avatar-export onnx` made.
    #[arg(long)]
    pub models: PathBuf,
    /// Picture of the person.
    #[arg(long)]
    pub image: PathBuf,
    /// Speech, in any file that FFmpeg decodes; or - for raw samples on standard input, which are
    /// heard as they arrive.
    #[arg(long, value_name = "FILE|-")]
    pub audio: PathBuf,
    /// Samples a second of --audio -, 16000 by default.
    #[arg(
        long = "pcm-rate",
        value_name = "HZ",
        value_parser = clap::value_parser!(u32).range(8_000..=192_000)
    )]
    pcm_rate: Option<u32>,
    /// Form of the samples of --audio -: integers of 16 bits (the default) or floats of 32.
    #[arg(long = "pcm-format", value_name = "NAME")]
    pcm_format: Option<PcmFormatArg>,
    /// Number of channels of --audio -, 1 by default.
    #[arg(
        long = "pcm-channels",
        value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..=8)
    )]
    pcm_channels: Option<u8>,
    /// Fill a gap in the sound of --audio - with silence after 0.2 s, instead of waiting.
    #[arg(long)]
    live: bool,
    /// Channels of the speech that are heard: the mix of all, or one of a stereo recording. If all
    /// cancel each other, the mix is the loudest one.
    #[arg(long = "audio-channel", value_name = "NAME", default_value = "mix")]
    audio_channel: ChannelArg,
    /// Text that describes the video, for example "A woman speaks to the camera".
    #[arg(long)]
    pub prompt: String,
    /// Width and height of the video.
    #[arg(long, value_name = "W*H", default_value = "704*384")]
    pub size: Size,
    /// Meaning of --size: the exact size of the video, or an area that a video in the picture's
    /// shape fills (upstream's rule).
    #[arg(long = "size-mode", default_value = "exact")]
    size_mode: SizeModeArg,
    /// How a picture of another shape fills an exact size: cut its edges off, or add black bars.
    #[arg(long, default_value = "crop")]
    fit: FitArg,
    /// Use of the picture's colour profile: convert its colours to sRGB, or ignore it as upstream
    /// does.
    #[arg(long, default_value = "convert")]
    icc: IccArg,
    /// Ground under transparent pixels: white, black, a colour such as #20ff80, or drop, which
    /// shows their hidden colours as upstream does.
    #[arg(long, value_name = "COLOUR|drop", default_value_t = Background::WHITE)]
    background: Background,
    /// Number of clips to make; auto makes as many as the recording fills.
    #[arg(
        long = "num-clip",
        value_name = "N|auto",
        default_value = "auto",
        allow_negative_numbers = true,
        value_parser = clips
    )]
    num_clip: Clips,
    /// How the video follows the recording in time: begin and end with it, or lose its first
    /// 0.12 s and fill the last clip with silence (the reference's way).
    #[arg(long, default_value = "recording")]
    timing: TimingArg,
    /// Number of denoising steps; the model is distilled for 4.
    #[arg(long = "sample-steps", value_name = "N", default_value_t = 4)]
    sample_steps: usize,
    /// Solver of the steps: euler, unipc or dpm++ (dpmpp_2m). The model is distilled for euler.
    #[arg(long = "sample-solver", value_name = "SOLVER", default_value = "euler")]
    sample_solver: Solver,
    /// Shift of the sigmas towards noise; the model is distilled for 3.
    #[arg(long = "sample-shift", value_name = "SHIFT", default_value_t = SHIFT)]
    sample_shift: f64,
    /// Scale of guidance by prompt and speech, as in Wan 2.2. 1 or less is none: the model is
    /// distilled to do without. Guidance doubles the time and the rings.
    #[arg(long = "sample-guide-scale", value_name = "SCALE", default_value = "0")]
    sample_guide_scale: GuideScale,
    /// Text that guidance leads away from, by default that of Wan 2.2.
    #[arg(long = "negative-prompt", alias = "n-prompt", value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Video frames of a clip, a multiple of 12.
    #[arg(long = "infer-frames", value_name = "N", default_value_t = 48)]
    infer_frames: usize,
    /// Number of 12-frame blocks that attention sees back, by default those of a clip. Fewer blocks
    /// need less memory and time, and change the video.
    #[arg(long = "ring-blocks", value_name = "N", value_parser = count)]
    ring_blocks: Option<usize>,
    /// Seed of the noise. A negative number asks for a random seed.
    #[arg(
        long = "base-seed",
        visible_alias = "seed",
        value_name = "N",
        default_value_t = 420,
        allow_negative_numbers = true
    )]
    base_seed: i64,
    /// File to write the video to. Its ending says the format: mp4, mkv, webm, y4m or rgb. A folder
    /// with --format frames, - for standard output, or a URL: rtmp, srt, udp or tcp. Repeat the
    /// flag for several outputs.
    #[arg(
        long,
        alias = "save-file",
        value_name = "F.mp4",
        required_unless_present = "save_dir",
        action = clap::ArgAction::Append
    )]
    out: Vec<PathBuf>,
    /// Folder to write the video to. The file gets its name from the picture and the speech, with a
    /// number where that name is taken.
    #[arg(long = "save-dir", value_name = "DIR", conflicts_with = "out")]
    save_dir: Option<PathBuf>,
    /// Format where the name says none: mp4, mkv, webm, frames (numbered PNG files and sound.wav),
    /// raw (bare RGB frames, no sound) or y4m (YUV4MPEG2, no sound).
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Pipeline of the reference to follow: the multi-GPU one (tpp) or a single-GPU one.
    #[arg(long, default_value = "tpp")]
    mode: ModeArg,
    /// The same as --mode single.
    #[arg(long = "single-gpu", hide = true)]
    single_gpu: bool,
    /// With --mode single: decode the first clip before the second begins, and condition the second
    /// on it.
    #[arg(long = "enable-online-decode")]
    enable_online_decode: bool,
    /// Kind of machine to place the work on: a built-in name such as 4x24g, a file of your own, or
    /// auto for this machine.
    #[arg(long, value_name = "NAME|FILE|auto", conflicts_with_all = TOLD)]
    pub profile: Option<String>,
    /// Use threads of this CPU as the profile's devices, each with the memory that is planned for
    /// it. This tries a placement without the machine.
    #[arg(long = "virtual", requires = "profile")]
    pub virtual_devices: bool,
    /// Folder of TensorRT engines that `avatar-export build` made for the profile. Without it, ONNX
    /// Runtime runs the graphs.
    #[arg(
        long,
        value_name = "DIR",
        requires = "profile",
        conflicts_with = "virtual_devices"
    )]
    pub engines: Option<PathBuf>,
    /// Placement on virtual CPU devices: 1, LxS, `layers=L,steps=S`, or a list
    /// `device:layers/steps;...`.
    #[arg(long, value_name = "STAGES")]
    stages: Option<Stages>,
    /// Number of GPUs for the transformer, as in upstream. Without a GPU it is the same as
    /// --stages steps=N.
    #[arg(long = "num-gpus-dit", value_name = "N", conflicts_with = "stages")]
    num_gpus_dit: Option<NonZeroUsize>,
    /// Decode on a GPU of its own, as in upstream. On one device the decoder has its own thread
    /// anyway.
    #[arg(long = "enable-vae-parallel")]
    enable_vae_parallel: bool,
    /// Number of denoising steps of different blocks that share one call.
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    lanes: Lanes,
    /// What the order of work favours where layers are split over devices: busy devices, or the
    /// first block (low).
    #[arg(long, default_value = "normal")]
    latency: LatencyArg,
    /// Number of layers of each stage whose weights stay on its device, by default all. The other
    /// layers stream from host memory in every call.
    #[arg(long = "resident-layers", value_name = "N")]
    resident_layers: Option<usize>,
    /// Stream the weights of all layers from host memory, as in upstream: True is the same as
    /// --resident-layers 0.
    #[arg(
        long = "offload-model",
        value_name = "BOOL",
        ignore_case = true,
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    offload_model: Option<bool>,
    /// Keep the KV rings in host memory. Every call brings in the rows that it reads, and sends
    /// back the rows that it writes.
    #[arg(long = "host-rings", alias = "offload-kv-cache")]
    host_rings: bool,
    /// Number of layers that have room on a device at a time where layers stream.
    #[arg(long, value_name = "N", default_value_t = MIN_SLOTS)]
    slots: usize,
    /// Most memory of each device, such as 24GB. A placement that needs more is refused.
    #[arg(long = "device-memory", value_name = "SIZE")]
    device_memory: Option<MemorySize>,
    /// Device of the VAE decoder.
    #[arg(long = "vae-device", value_name = "DEVICE")]
    vae_device: Option<usize>,
    /// Number of CPU threads, by default one for each core. The same number gives the same bytes.
    /// Another number changes the last bits of latents, and so some pixels by one level.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Go on where an unfinished run of this line stopped: from the state beside the video. Without
    /// a state the video begins anew.
    #[arg(long, conflicts_with = "trace")]
    resume: bool,
    /// Least seconds between two states of the run that are kept beside the unfinished video, for
    /// --resume; never keeps none.
    #[arg(
        long = "keep-state",
        value_name = "SECONDS|never",
        default_value = "60",
        value_parser = keep_state
    )]
    keep_state: KeepState,
    /// File of a recorded run, to take the noise and the reference distances from.
    #[arg(long, value_name = "F.safetensors")]
    replay: Option<PathBuf>,
    /// File to write every tensor of the run to. The run keeps every frame in memory.
    #[arg(long, value_name = "F.safetensors")]
    trace: Option<PathBuf>,
    /// File to write a sheet of frames to, spread over the video. The ending of its name says the
    /// format: png, jpg, webp, bmp or tiff.
    #[arg(long = "contact-sheet", value_name = "F.png")]
    contact_sheet: Option<PathBuf>,
    /// File to write one JSON object to for each second and each block: frames, rate, time of each
    /// block and component, and memory of the process and of every device.
    #[arg(long, value_name = "F.jsonl")]
    metrics: Option<PathBuf>,
    /// Memory of a device above which a warning is due, such as 22GB.
    #[arg(long = "memory-red-line", value_name = "SIZE")]
    memory_red_line: Option<MemorySize>,
    #[command(flatten)]
    pub existing: ExistingArgs,
    /// Quality of the video: 0 is lossless, 51 is worst.
    #[arg(long, value_name = "N", default_value_t = 17, value_parser = crf())]
    crf: u8,
    /// Bits per second of the video in place of a quality, such as 2500k or 4M.
    #[arg(long, value_name = "RATE", conflicts_with = "crf")]
    bitrate: Option<BitRate>,
    /// Video encoder of FFmpeg, such as libx265 or h264_nvenc. It is libx264 by default, and
    /// libvpx-vp9 in WebM. An encoder that does not open is refused.
    #[arg(long, value_name = "NAME")]
    vcodec: Option<String>,
    /// Filters of FFmpeg on the frames, such as "hqdn3d=1.5:1.5:6:6,scale=1920:1080".
    #[arg(long, value_name = "FILTERS")]
    vf: Option<String>,
    /// Frames per second of the video. The model makes 25; FFmpeg's fps filter repeats or drops
    /// frames.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=240))]
    fps: Option<u32>,
    /// Print one JSON object for each event on standard output.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    upstream: Upstream,
}

/// Flags of `generate` that a batch has itself.
const OWN_OF_BATCH: [&str; 4] = ["out", "save-dir", "json", "overwrite"];

/// Flags of `batch`.
#[derive(Debug)]
pub struct Batch {
    pub(crate) own: BatchOnly,
    /// The typed flags of `generate`, in the order of their names.
    pub(crate) common: Vec<OsString>,
}

/// Flags that only `batch` has.
#[derive(Debug, Args)]
pub(crate) struct BatchOnly {
    /// Folder of sound files, or a list in a file that ends in .csv, .jsonl or .toml. The columns
    /// of a list are flags of `generate`; relative paths begin at the list's folder, `out` at
    /// --out-dir.
    pub(crate) inputs: PathBuf,
    /// Folder for the videos. Without a column `out`, a video has the name of its sound:
    /// talk.wav makes talk_avatar.mp4.
    #[arg(
        long = "out-dir",
        visible_alias = "save-dir",
        value_name = "DIR",
        default_value = "."
    )]
    pub(crate) out_dir: PathBuf,
    /// Number of videos to make at a time; auto makes one for each device of the placement. More
    /// than one needs memory for each, which is counted first.
    #[arg(long, value_name = "N|auto", default_value = "1", value_parser = jobs)]
    pub(crate) jobs: Jobs,
    /// Number of further attempts after a failure that may pass: a lack of memory or disk,
    /// or a timeout. Bad input is not tried again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: usize,
    /// Longest time of one video, such as 90s, 30m or 2h. A video that takes longer is stopped, and
    /// its part that plays is kept.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) timeout: Option<Duration>,
    /// File that remembers what is done, by default batch.jsonl in --out-dir. A second run of the
    /// same line skips videos that are done and whose inputs, model and flags are unchanged.
    #[arg(long, value_name = "F.jsonl")]
    pub(crate) journal: Option<PathBuf>,
    /// Replace videos that exist. Without it, a video that this batch did not make so is kept, and
    /// its item fails.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print one JSON object for each event on standard output; `item` names the video.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Run file that `generate` wrote beside a video.
    #[arg(value_name = "F.run.json")]
    pub run: PathBuf,
    /// File to write the video to, by default NAME-replay.mp4 beside the run file.
    #[arg(long, value_name = "F.mp4")]
    pub out: Option<PathBuf>,
    /// Go on where an input or the model is another one than at the run.
    #[arg(long = "changed-inputs")]
    pub changed_inputs: bool,
    #[command(flatten)]
    pub existing: ExistingArgs,
    /// Print one JSON object for each event on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Video, run file (NAME.run.json) or trace (NAME.safetensors).
    #[arg(value_name = "A")]
    pub first: PathBuf,
    /// File of the same kind.
    #[arg(value_name = "B")]
    pub second: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Component, such as `dit_layer.03`.
    pub component: String,
    /// Folder that `avatar-export onnx` made.
    #[arg(long)]
    pub models: PathBuf,
    /// File with the inputs and the state, by port name.
    #[arg(long, value_name = "I.safetensors")]
    pub inputs: PathBuf,
    /// File to write the outputs, the next states (`name.next`) and the taps to.
    #[arg(long, value_name = "O.safetensors")]
    pub outputs: PathBuf,
    /// Inner values of the graph to write as well.
    #[arg(long = "tap", value_name = "PATH", num_args = 1..)]
    pub taps: Vec<String>,
    #[command(flatten)]
    pub existing: ExistingArgs,
    #[command(flatten)]
    pub on: DeviceArgs,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Folder that `avatar-export onnx` made.
    #[arg(long)]
    pub models: PathBuf,
    /// Golden folder: golden/manifest.json, golden/*.safetensors, inputs/.
    #[arg(long, value_name = "DIR")]
    pub golden: PathBuf,
    /// File to write every row to, with the tensors that were not checked and the planted faults.
    #[arg(long, value_name = "F.json")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub existing: ExistingArgs,
    /// Check only these files of the golden folder, such as dit_blocks.
    #[arg(long, value_name = "FILE,..", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Plant a fault in each component in turn. Verification must detect every fault.
    #[arg(long)]
    pub control: bool,
    /// Skip the runs of the whole chain, from files to frames.
    #[arg(long = "skip-e2e")]
    pub skip_e2e: bool,
    #[command(flatten)]
    pub on: DeviceArgs,
}

/// The run whose sizes are measured.
#[derive(Debug, Args)]
pub struct RunSizes {
    /// Video frames of a clip, a multiple of 12.
    #[arg(long = "infer-frames", value_name = "N", default_value_t = 48)]
    infer_frames: usize,
    /// Blocks of 12 frames that attention sees back, as `generate` has them; a clip's by default.
    #[arg(long = "ring-blocks", value_name = "N", value_parser = count)]
    ring_blocks: Option<usize>,
}

impl RunSizes {
    /// Returns the sizes of a run of `model` at exactly `size`.
    ///
    /// # Errors
    /// A size, a length of a clip or a length of the ring cannot be used.
    pub fn geometry(&self, model: &DitConfig, size: Size) -> Result<Geometry, GenerateError> {
        let size = size.effective(SizeMode::Exact, size)?;
        let geometry = Geometry::new(model, size, self.infer_frames)?;
        Ok(match self.ring_blocks {
            Some(blocks) => geometry.with_ring(blocks)?,
            None => geometry,
        })
    }
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Folder that `avatar-export onnx` made.
    #[arg(long, required_unless_present = "synthetic")]
    pub models: Option<PathBuf>,
    /// Measure the transformer with made-up weights instead of an export, beside the rate of one
    /// matrix product.
    #[arg(long, requires = "graphs", conflicts_with = "models")]
    pub synthetic: bool,
    /// Folder that `avatar-export graphs` made without --size.
    #[arg(long, requires = "synthetic")]
    pub graphs: Option<PathBuf>,
    /// Number of layers of the transformer, by default the model's.
    #[arg(long, requires = "synthetic")]
    pub layers: Option<NonZeroUsize>,
    /// Rows and columns of the matrices of the product.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8192,
        requires = "synthetic",
        value_parser = clap::value_parser!(u16).range(16..)
    )]
    pub matmul: u16,
    /// Measure also a run under this much memory, which streams the layers that do not fit.
    #[arg(long, value_name = "SIZE", requires = "synthetic")]
    pub offload: Option<MemorySize>,
    /// Width and height of the video.
    #[arg(long, value_name = "W*H", default_value = "256*256")]
    pub size: Size,
    /// Number of lanes of one call. Several numbers are measured one after the other.
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "1",
        value_parser = clap::value_parser!(u8).range(1..=64)
    )]
    pub lanes: Vec<u8>,
    /// Number of measured runs of each component, after some that are not measured.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub runs: u16,
    #[command(flatten)]
    pub run: RunSizes,
    #[command(flatten)]
    pub on: DeviceArgs,
    /// Print JSON: one object for each number of lanes.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `parity`.
#[derive(Debug, Args)]
pub struct Parity {
    /// Folder that `avatar-export onnx` made.
    #[arg(long)]
    pub models: PathBuf,
    /// Width and height of the video.
    #[arg(long, value_name = "W*H", default_value = "128*64")]
    pub size: Size,
    #[command(flatten)]
    pub run: RunSizes,
    #[command(flatten)]
    pub on: DeviceArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// Video file.
    pub file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `merge`.
#[derive(Debug, Args)]
pub struct Merge {
    /// Videos to join, in this order.
    #[arg(value_name = "V.mp4", required = true, num_args = 2..)]
    pub videos: Vec<PathBuf>,
    /// File to write the joined video to: mp4, mkv or webm.
    #[arg(long, value_name = "F.mp4")]
    pub out: PathBuf,
    #[command(flatten)]
    pub existing: ExistingArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `verify-video`.
#[derive(Debug, Args)]
pub struct VerifyVideo {
    /// Video file.
    pub file: PathBuf,
    /// Description to compare with: the JSON file of a run, or the facts of another video as this
    /// command prints them with --json. A difference ends with exit code 7.
    #[arg(long, value_name = "RUN.json")]
    pub against: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR)]
pub struct Doctor {
    /// Folder that `avatar-export onnx` made. Every file in it is hashed.
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// Folder of TensorRT engines that `avatar-export build` made for these models.
    #[arg(long, value_name = "DIR", requires = "models")]
    pub engines: Option<PathBuf>,
    /// Folder that videos are to be written to.
    #[arg(long = "save-dir", value_name = "DIR", default_value = ".")]
    pub save_dir: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

const DOCTOR: &str = "\
Each line is ok, a warning or an error, and has its remedy. No GPU is needed: without one, the CPU
computes. The exit code is 0 without errors, 4 for models and engines, 5 for this machine.";

/// What to plan, and for which machine.
#[derive(Debug, Args)]
pub struct Target {
    /// Kind of machine: a built-in name such as 4x24g, a file of your own, or auto for this
    /// machine.
    #[arg(long, value_name = "NAME|FILE|auto", default_value = "auto")]
    pub profile: String,
    /// Width and height of the video.
    #[arg(long, value_name = "W*H", default_value = "704*384")]
    pub size: Size,
    /// Number of denoising steps; the model is distilled for 4.
    #[arg(long = "sample-steps", value_name = "N", default_value_t = 4, value_parser = count)]
    pub sample_steps: usize,
    /// Scale of guidance; above 1, each step takes two passes.
    #[arg(long = "sample-guide-scale", value_name = "SCALE", default_value = "0")]
    pub sample_guide_scale: GuideScale,
    /// Number of clips to make; auto stands for a recording of any length.
    #[arg(long = "num-clip", value_name = "N|auto", default_value = "auto", value_parser = clips)]
    pub num_clip: Clips,
    /// Video frames of a clip, a multiple of 12.
    #[arg(long = "infer-frames", value_name = "N", default_value_t = 48)]
    pub infer_frames: usize,
    /// What the order of work favours where layers are split over devices: busy devices, or the
    /// first block (low).
    #[arg(long, default_value = "normal")]
    latency: LatencyArg,
    /// Folder that `avatar-export onnx` made, to take the model's sizes from.
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    pub models: Option<PathBuf>,
    /// Known model to take the sizes from, if no folder is given.
    #[arg(long, default_value = "full")]
    pub preset: PresetArg,
}

impl Target {
    /// Returns what the order of work favours.
    pub(crate) fn latency(&self) -> Latency {
        self.latency.into()
    }
}

/// Flags of `plan`.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct PlanArgs {
    #[command(flatten)]
    pub target: Target,
    /// Refuse a plan that needs more devices or more free memory than this machine has.
    #[arg(long)]
    pub check: bool,
    /// Print the source of every figure, and how busy every device and link is.
    #[arg(long)]
    pub explain: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `simulate`.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct SimulateArgs {
    #[command(flatten)]
    pub target: Target,
    /// Number of 12-frame blocks to run.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = count)]
    pub blocks: usize,
    /// File to draw the timeline into.
    #[arg(long, value_name = "F.svg")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub existing: ExistingArgs,
    /// Print the timeline as one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LatencyArg {
    Normal,
    Low,
}

impl From<LatencyArg> for Latency {
    fn from(arg: LatencyArg) -> Self {
        match arg {
            LatencyArg::Normal => Self::Normal,
            LatencyArg::Low => Self::Low,
        }
    }
}

/// A model known by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PresetArg {
    /// The published model
    Full,
    /// About 155 M parameters
    Small,
    /// About 8 M parameters
    Tiny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SizeModeArg {
    Exact,
    Area,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ChannelArg {
    Mix,
    Left,
    Right,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PcmFormatArg {
    S16le,
    F32le,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TimingArg {
    Recording,
    Reference,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FitArg {
    Crop,
    Pad,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IccArg {
    Convert,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    Tpp,
    Single,
}

impl Cli {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// The command line is malformed, or asks for help or the version. Errors of the second kind
    /// print themselves; [`complaint`] makes a line of the others.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(args.into_iter().map(dashed))
    }
}

/// Returns the fault of a command line in one line, with clap's suggestion, or `None` if it asked
/// for help or the version.
pub fn complaint(error: &clap::Error) -> Option<String> {
    let text = error.to_string();
    let mut parts = text.strip_prefix("error: ")?.split("\n\n");
    let one_line = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let fault = one_line(parts.next()?);
    let tip = parts.map(one_line).find_map(|part| {
        let tip = part.strip_prefix("tip: ")?;
        Some(tip.split(" tip: ").next().unwrap_or(tip).to_owned())
    });
    Some(match tip {
        Some(tip) => format!("{fault}; {tip}"),
        None => fault,
    })
}

/// Writes the flags in `text` as the user typed them: with underscores, if `args` have them so.
pub fn as_typed(text: &str, args: &[OsString]) -> String {
    let typed = args.iter().filter_map(|a| a.to_str()).filter_map(|arg| {
        let name = arg.split('=').next()?;
        (name.starts_with("--") && name.contains('_')).then_some(name)
    });
    typed.fold(text.to_owned(), |text, name| {
        let dashed = name.replace('_', "-");
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(&dashed) {
            let (before, after) = (&rest[..at], &rest[at + dashed.len()..]);
            out.push_str(before);
            out.push_str(if ends(after) { name } else { &dashed });
            rest = after;
        }
        out + rest
    })
}

/// Different at every call; shown in the settings, so that a run can be repeated.
pub(super) fn random_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as u64 & u64::from(u32::MAX)
}

/// Writes a flag's name with dashes: `--num_clip` is `--num-clip`. Values stay unchanged.
pub(super) fn dashed(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|t| t.starts_with("--")) else {
        return arg;
    };
    // A whole command line, which `compat` takes, has spaces behind its first flag.
    let ends = |c: char| c == '=' || c.is_whitespace();
    let (name, value) = text.split_at(text.find(ends).unwrap_or(text.len()));
    format!("{}{value}", name.replace('_', "-")).into()
}

/// Qualities that x264 knows.
fn crf() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=51)
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=10_000).contains(&n) => Ok(n),
        _ => Err(format!("a number from 1 to 10000 is wanted, got `{text}`")),
    }
}

/// Least time between two states; `None` keeps none.
#[derive(Clone, Copy, Debug)]
struct KeepState(Option<Duration>);

fn keep_state(text: &str) -> Result<KeepState, String> {
    if text == "never" {
        return Ok(KeepState(None));
    }
    let seconds = text
        .parse()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds
        .map(|seconds| KeepState(Some(seconds)))
        .ok_or_else(|| format!("never or a number of seconds is wanted, got `{text}`"))
}

fn clips(text: &str) -> Result<Clips, String> {
    match text {
        "auto" => Ok(Clips::Auto),
        _ => match text.parse() {
            Ok(n) if n > 0 => Ok(Clips::AtMost(n)),
            _ => Err(format!(
                "num_clip wants auto or a number of 1 or more, got `{text}`{}",
                match text {
                    "0" => "; 1 is the least",
                    _ if text.starts_with('-') => "; auto makes the whole recording",
                    _ => "",
                }
            )),
        },
    }
}

/// Returns the flags of `generate` that may stand on the line of a batch.
fn shared_flags() -> impl Iterator<Item = Arg> {
    let generate = Generate::augment_args(clap::Command::new("generate"));
    let flags: Vec<Arg> = generate.get_arguments().cloned().collect();
    let shared = |arg: &Arg| {
        arg.get_long()
            .is_some_and(|name| !OWN_OF_BATCH.contains(&name))
    };
    let all = flags.into_iter().filter(shared);
    all.map(|arg| arg.required(false).hide(true))
}

impl Batch {
    /// Returns whether events are shown as JSON.
    pub fn json(&self) -> bool {
        self.own.json
    }
}

impl Args for Batch {
    fn augment_args(command: clap::Command) -> clap::Command {
        let own = BatchOnly::augment_args(command).args_override_self(true);
        own.args(shared_flags()).after_help(
            "Every flag of `generate` but --out may be given, and counts for each video whose \
             line in the list says nothing else.\nThe exit code is 0 if every video is there, \
             or that of the first video that failed.",
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Batch {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut words = Vec::new();
        for arg in shared_flags() {
            let (id, name) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let flag = OsString::from(format!("--{name}"));
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                words.push(flag);
                continue;
            }
            for value in matches.get_raw(id).into_iter().flatten() {
                let mut word = flag.clone();
                word.push("=");
                word.push(value);
                words.push(word);
            }
        }
        Ok(Self {
            own: BatchOnly::from_arg_matches(matches)?,
            common: words,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Generate {
    /// Returns the request, and notices for flags that have no effect. `random` gives the seed if
    /// the flag asks for a random one.
    ///
    /// # Errors
    /// [`Error::Usage`] for flags that contradict each other or cannot be honoured.
    pub fn request(&self, random: impl FnOnce() -> u64) -> Result<(Request, Vec<String>), Error> {
        let mut notices = self.upstream.check()?;
        self.one_recording()?;
        let (mode, asked_for_what_happens) = self.mode();
        if asked_for_what_happens {
            notices.push(
                "--enable_online_decode: mode tpp decodes every block as it is made anyway"
                    .to_owned(),
            );
        }
        notices.extend(self.output_notices());
        if self.negative_prompt.is_some() && !self.sample_guide_scale.is_on() {
            notices.push(
                "--negative_prompt has no effect: only guidance reads it (--sample_guide_scale 5)"
                    .to_owned(),
            );
        }
        let request = Request {
            image: self.image.clone(),
            reading: Reading {
                icc: match self.icc {
                    IccArg::Convert => Icc::Convert,
                    IccArg::Ignore => Icc::Ignore,
                },
                background: self.background,
            },
            audio: self.audio.clone(),
            live: self.pcm()?,
            channels: match self.audio_channel {
                ChannelArg::Mix => Channels::Mix,
                ChannelArg::Left => Channels::Left,
                ChannelArg::Right => Channels::Right,
            },
            prompt: self.prompt.clone(),
            size: self.size,
            size_mode: match self.size_mode {
                SizeModeArg::Exact => SizeMode::Exact,
                SizeModeArg::Area => SizeMode::Area,
            },
            fit: match self.fit {
                FitArg::Crop => Fit::Crop,
                FitArg::Pad => Fit::Pad,
            },
            clips: self.num_clip,
            timing: match self.timing {
                TimingArg::Recording => Timing::Recording,
                TimingArg::Reference => Timing::Reference,
            },
            steps: self.sample_steps,
            sampling: Sampling {
                solver: self.sample_solver,
                shift: self.sample_shift,
            },
            guidance: self.guiding(),
            infer_frames: self.infer_frames,
            seed: u64::try_from(self.base_seed).unwrap_or_else(|_| random()),
            mode,
            replay: self.replay.clone(),
            files: OutputFiles {
                existing: Existing::default(),
                asked: None,
                video: self.path(),
                copies: self.out.iter().skip(1).cloned().collect(),
                format: self.format,
                encoding: self.encoding(),
                contact_sheet: self.contact_sheet.clone(),
                metrics: self.metrics.clone(),
                trace: self.trace.clone(),
            },
            keeping: Keeping {
                every: self.keep_state.0,
                resume: self.resume,
                machine: vec![("threads", device_args::threads(self.threads).to_string())],
            },
        };
        Ok((request, notices))
    }

    /// Returns the form of the sound on standard input, if `--audio -` asks for it.
    fn pcm(&self) -> Result<Option<Pcm>, Error> {
        let only = |flag: &str| Err(Error::Usage(format!("{flag} wants --audio -")));
        if self.audio != Path::new("-") {
            return match (self.pcm_rate, self.pcm_format, self.pcm_channels, self.live) {
                (Some(_), ..) => only("--pcm-rate"),
                (_, Some(_), ..) => only("--pcm-format"),
                (_, _, Some(_), _) => only("--pcm-channels"),
                (.., true) => only("--live"),
                _ => Ok(None),
            };
        }
        let whole = [
            ("--contact-sheet", self.contact_sheet.is_some()),
            ("--trace", self.trace.is_some()),
            ("--replay", self.replay.is_some()),
            (
                "--timing reference",
                matches!(self.timing, TimingArg::Reference),
            ),
        ];
        if let Some((flag, _)) = whole.iter().find(|(_, given)| *given) {
            return Err(Error::Usage(format!(
                "{flag} wants a recording whose length is known, got --audio -"
            )));
        }
        Ok(Some(Pcm {
            rate: self.pcm_rate.unwrap_or(16_000),
            channels: self.pcm_channels.map_or(1, usize::from),
            form: match self.pcm_format {
                Some(PcmFormatArg::F32le) => SampleForm::F32Le,
                Some(PcmFormatArg::S16le) | None => SampleForm::S16Le,
            },
            gaps: if self.live { Gaps::Silence } else { Gaps::Wait },
        }))
    }

    fn guiding(&self) -> Guiding {
        let default = Guiding::default().negative_prompt;
        Guiding {
            scale: self.sample_guide_scale,
            negative_prompt: self.negative_prompt.clone().unwrap_or(default),
        }
    }

    /// Tells what an output leaves out or changes.
    fn output_notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if let Some(fps) = self.fps {
            notices.push(format!(
                "--fps {fps}: the model makes 25 frames a second; FFmpeg's fps filter repeats or \
                 drops frames, and the motion stays the same"
            ));
        }
        for out in &self.out {
            if let Ok(Output::File { format, .. } | Output::Stdout { format }) =
                Output::of(out, self.format)
                && format.is_silent()
            {
                notices.push(format!(
                    "--out {}: the format {format} holds frames alone; add an --out of another \
                     format for the sound",
                    out.display()
                ));
            }
        }
        notices
    }

    /// Returns whether the video goes to standard output, where no text may stand then.
    pub fn fills_stdout(&self) -> bool {
        self.out.iter().any(|out| out == Path::new("-"))
    }

    fn encoding(&self) -> Encoding {
        let preset = self
            .preset
            .iter()
            .rev()
            .find_map(|name| presets::encoder(name));
        Encoding {
            rate: self.bitrate.map_or(Rate::Quality(self.crf), Rate::Bits),
            preset: preset.map(str::to_owned),
            codec: self.vcodec.clone(),
            filters: self.vf.clone(),
            fps: self.fps,
            ..Encoding::default()
        }
    }

    /// Refuses upstream's form for two speakers: two recordings joined by a plus sign.
    fn one_recording(&self) -> Result<(), Error> {
        let text = self.audio.to_string_lossy();
        match text.split_once('+') {
            Some((first, second)) if !self.audio.exists() && Path::new(first).exists() => {
                Err(Error::Usage(format!(
                    "--audio {text}: two speakers are not built in yet, and this video has one; \
                     give {first} or {second}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The pipeline, and whether online decoding was asked for where it happens anyway.
    fn mode(&self) -> (Mode, bool) {
        let single = self.mode == ModeArg::Single || self.single_gpu;
        match (single, self.enable_online_decode) {
            (false, asked) => (Mode::Tpp, asked),
            (true, false) => (Mode::Single, false),
            (true, true) => (Mode::SingleOnline, false),
        }
    }

    /// Returns the placement that the flags tell. A profile has none of these flags.
    pub fn told(&self) -> Told {
        Told {
            stages: self.stages(),
            lanes: self.lanes,
            residency: self.residency(),
            vae_device: self.vae_device,
            device_memory: self.device_memory,
            ring_blocks: self.ring_blocks,
        }
    }

    /// Returns what the order of work favours.
    pub(crate) fn latency(&self) -> Latency {
        self.latency.into()
    }

    /// Returns the flags that choose among GPUs.
    pub(crate) fn wishes(&self) -> Wishes {
        Wishes {
            dit_devices: self.num_gpus_dit.map(NonZeroUsize::get),
            offload: self.offload_model,
            host_rings: self.host_rings,
            own_vae: self.enable_vae_parallel,
        }
    }

    /// Returns a flag that places the work on virtual devices of the CPU, if one was given.
    pub(crate) fn places_by_hand(&self) -> Option<&'static str> {
        [
            ("--stages", self.stages.is_some()),
            ("--lanes", self.lanes != Lanes::default()),
            ("--resident-layers", self.resident_layers.is_some()),
            ("--slots", self.slots != MIN_SLOTS),
            ("--device-memory", self.device_memory.is_some()),
            ("--vae-device", self.vae_device.is_some()),
            ("--ring-blocks", self.ring_blocks.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }

    fn stages(&self) -> Stages {
        let steps = self.num_gpus_dit.map(|n| Stages::Grid {
            layers: 1,
            steps: n.get(),
        });
        self.stages.clone().or(steps).unwrap_or_default()
    }

    fn residency(&self) -> Residency {
        let offloaded = self.offload_model.unwrap_or(false);
        let all = if offloaded { 0 } else { usize::MAX };
        Residency {
            resident_layers: self.resident_layers.unwrap_or(all),
            rings: if self.host_rings {
                Rings::OnHost
            } else {
                Rings::OnDevice
            },
            slots: self.slots,
        }
    }

    /// Returns what is watched while the video is made.
    pub(crate) fn watching(&self) -> Watching {
        Watching {
            metrics: self.metrics.clone(),
            red_line: self.memory_red_line.map(|m| m.0),
        }
    }

    /// Returns whether the video gets its name from its inputs.
    pub fn names_video(&self) -> bool {
        self.out.is_empty()
    }

    fn path(&self) -> PathBuf {
        let stem = |p: &PathBuf| {
            p.file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let ending = self.format.unwrap_or(Format::Mp4).ending();
        match (self.out.first(), &self.save_dir) {
            (Some(out), _) => out.clone(),
            (None, dir) => dir.clone().unwrap_or_default().join(format!(
                "{}-{}{ending}",
                stem(&self.image),
                stem(&self.audio)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::plan::StageSpec;

    const NEEDED: [&str; 9] = [
        "generate",
        "--models",
        "m",
        "--image",
        "p/i.png",
        "--audio",
        "a.wav",
        "--prompt",
        "a man speaks",
    ];

    fn read(more: &[&str]) -> Result<Generate, String> {
        let line = ["avatar-run"]
            .iter()
            .chain(&NEEDED)
            .chain(more)
            .map(OsString::from);
        match Cli::read(line).map_err(|e| e.to_string())?.command {
            Command::Generate(generate) => Ok(*generate),
            other => Err(format!("{other:?}")),
        }
    }

    fn request(more: &[&str]) -> Result<(Request, Vec<String>), String> {
        read(more)?
            .request(|| 7)
            .map_err(|e| format!("{e} (exit {})", e.kind().code()))
    }

    fn told(more: &[&str]) -> Told {
        read(more).unwrap().told()
    }

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn both_spellings_and_both_value_forms_mean_the_same() {
        let want = format!(
            "{:?}",
            request(&[
                "--out",
                "o.mp4",
                "--num_clip",
                "3",
                "--sample_steps",
                "2",
                "--base_seed",
                "9"
            ])
            .unwrap()
        );
        for line in [
            &[
                "--out",
                "o.mp4",
                "--num-clip",
                "3",
                "--sample-steps",
                "2",
                "--base-seed",
                "9",
            ][..],
            &[
                "--out=o.mp4",
                "--num_clip=3",
                "--sample_steps=2",
                "--seed=9",
            ],
            &[
                "--save_file",
                "o.mp4",
                "--num-clip=3",
                "--sample_steps",
                "2",
                "--seed",
                "9",
            ],
        ] {
            assert_eq!(format!("{:?}", request(line).unwrap()), want, "{line:?}");
        }
    }

    #[test]
    fn defaults_are_upstreams_published_ones() {
        let (r, notices) = request(&["--out", "o.mp4"]).unwrap();
        assert_eq!(
            (r.size.to_string(), r.steps, r.infer_frames, r.seed, r.clips),
            ("704*384".to_owned(), 4, 48, 420, Clips::Auto)
        );
        assert_eq!(
            (r.mode, r.size_mode, told(&["--out", "o.mp4"])),
            (Mode::Tpp, SizeMode::Exact, Told::default())
        );
        assert!(notices.is_empty());
    }

    #[test]
    fn upstreams_published_command_line_runs_but_for_fp8() {
        let line = "--ulysses_size 1 --task s2v-14B --size 720*400 --base_seed 420 \
                    --training_config liveavatar/configs/s2v_causal_sft.yaml \
                    --offload_model False --convert_model_dtype --infer_frames 48 --load_lora --lora_path_dmd Quark-Vision/Live-Avatar \
                    --sample_steps 4 --sample_guide_scale 0 --num_clip 10000 --num_gpus_dit 4 --sample_solver euler --enable_vae_parallel \
                    --save_dir out --ckpt_dir";
        let ckpt = tempfile::tempdir().unwrap();
        let ckpt = ckpt.path().display().to_string();
        let words: Vec<&str> = line.split_whitespace().chain([&*ckpt]).collect();
        let (r, notices) = request(&words).unwrap();
        let wanted = Told {
            stages: Stages::Grid {
                layers: 1,
                steps: 4,
            },
            ..Told::default()
        };
        assert_eq!(told(&words), wanted);
        assert_eq!(
            (r.clips, r.files.video),
            (Clips::AtMost(10_000), PathBuf::from("out/i-a.mp4"))
        );
        assert_eq!(notices.len(), 5, "{notices:?}");
        let error = request(&[&words[..], &["--fp8"]].concat()).unwrap_err();
        assert_eq!(
            error,
            "--fp8: precision is a recipe of the export, and this export has none with FP8 (exit 2)"
        );
    }

    #[test]
    fn modes_placements_and_seeds() {
        type Check = fn(&Request, &Told) -> bool;
        let cases: [(&[&str], Check); 13] = [
            (&["--mode", "single"], |r, _| r.mode == Mode::Single),
            (&["--single_gpu"], |r, _| r.mode == Mode::Single),
            (&["--mode=single", "--enable-online-decode"], |r, _| {
                r.mode == Mode::SingleOnline
            }),
            (&["--stages", "layers=2,steps=2"], |_, t| {
                t.stages
                    == Stages::Grid {
                        layers: 2,
                        steps: 2,
                    }
            }),
            (&["--stages", "3:0-3/0-3"], |_, t| {
                t.stages == Stages::List(vec![StageSpec::new(3, 0..4, 0..4)])
            }),
            (&["--lanes", "1"], |_, t| t.lanes == Lanes::AtMost(1)),
            (&["--offload_model", "True"], |_, t| {
                t.residency.resident_layers == 0 && t.virtual_budget() == Some(u64::MAX)
            }),
            (&["--offload_model=False"], |_, t| {
                t.residency == Residency::default() && t.virtual_budget().is_none()
            }),
            (&["--offload_kv_cache", "--slots", "3"], |_, t| {
                t.residency.rings == Rings::OnHost && t.residency.slots == 3
            }),
            (
                &["--offload_model", "True", "--resident_layers", "7"],
                |_, t| t.residency.resident_layers == 7,
            ),
            (&["--device-memory", "24GB", "--vae-device", "2"], |_, t| {
                t.virtual_budget() == Some(24_000_000_000) && t.vae_device == Some(2)
            }),
            (&["--base_seed", "-1"], |r, _| r.seed == 7),
            (&["--size", "704x384", "--size_mode", "area"], |r, _| {
                r.size.to_string() == "704*384" && r.size_mode == SizeMode::Area
            }),
        ];
        for (more, check) in cases {
            let line = [more, &["--out", "o.mp4"]].concat();
            let ((r, _), told) = (request(&line).unwrap(), told(&line));
            assert!(check(&r, &told), "{more:?}: {r:?} {told:?}");
        }
    }

    #[test]
    fn online_decode_is_noted_where_it_happens_anyway() {
        for (more, mode, notices) in [
            (&["--enable_online_decode"][..], Mode::Tpp, 1),
            (
                &["--enable_online_decode", "--mode=single"],
                Mode::SingleOnline,
                0,
            ),
            (&[], Mode::Tpp, 0),
        ] {
            let (r, told) = request(&[more, &["--out", "o.mp4"]].concat()).unwrap();
            assert_eq!((r.mode, told.len()), (mode, notices), "{more:?}: {told:?}");
        }
    }

    #[test]
    fn the_last_preset_of_the_encoder_counts_in_any_spelling() {
        let preset = |more: &[&str]| {
            let (r, _) = request(&[more, &["--out", "o.mp4"]].concat()).unwrap();
            r.files.encoding.preset
        };
        assert_eq!(preset(&[]), None);
        let both = [
            "--preset", "slow", "--preset", "hd", "--preset", "VeryFast", "--preset", "hd",
        ];
        assert_eq!(preset(&both).as_deref(), Some("veryfast"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_the_reason() {
        for (more, want) in [
            (
                &["--ulysses_size", "4"][..],
                "--ulysses-size 4: only 1 is possible",
            ),
            (&["--pose_video", "p.mp4"], "pose video is not built in"),
            (
                &["--start_frame", "9"],
                "a video cannot begin in the middle yet",
            ),
            (
                &["--output_file", "f"],
                "--save_file (or --out) names the video",
            ),
            (&["--vae_dtype", "fp16"], "--recipe fp32|bf16"),
            (
                &["--audio_align_method", "dtw"],
                "nothing is aligned afterwards",
            ),
            (
                &["--ckpt_dir", "no/folder"],
                "--ckpt-dir no/folder: there is no such file or folder (exit 3)",
            ),
            (
                &["--lora_path", "lora.safetensors"],
                "--lora-path lora.safetensors: there is no such file or folder (exit 3)",
            ),
            (&["--enable_tts"], "no speech synthesis is built in"),
            (&["--size", "704"], "size wants W*H"),
            (&["--size", "0*0"], "size wants both sides within"),
            (
                &["--num_clip", "0"],
                "num_clip wants auto or a number of 1 or more, got `0`",
            ),
            (&["--stages", "rows=2"], "stages wants"),
            (&["--lanes", "0"], "lanes wants auto"),
            (&["--device-memory", "big"], "memory wants a size"),
            (&["--offload_model", "perhaps"], "offload-model"),
            (&["--crf", "60"], "60 is not in 0..=51"),
            (&["--bitrate", "fast"], "bitrate wants bits per second"),
            (&["--bitrate", "4M", "--crf", "17"], "cannot be used with"),
            (&["--fps", "0"], "0 is not in 1..=240"),
            (&["--format", "avi"], "format wants mp4, mkv"),
            (&["--format", "-"], "--out - writes to standard output"),
            (&["--no_such_flag"], "unexpected argument '--no-such-flag'"),
            (
                &["--stages", "1", "--num_gpus_dit", "4"],
                "cannot be used with",
            ),
        ] {
            let error = request(&[more, &["--out", "o.mp4"]].concat()).unwrap_err();
            assert!(error.contains(want), "{more:?}: {error}");
        }
        assert!(
            request(&[]).unwrap_err().contains("--out"),
            "an output is required"
        );
    }

    #[test]
    fn a_complaint_is_one_line_and_help_is_none() {
        let complain =
            |words: &[&str]| complaint(&Cli::read(words.iter().map(OsString::from)).unwrap_err());
        assert_eq!(complain(&["avatar-run", "--help"]), None);
        assert_eq!(complain(&["avatar-run", "--version"]), None);
        let missing = complain(&["avatar-run", "generate", "--image", "i"]).unwrap();
        assert_eq!(
            missing,
            "the following required arguments were not provided: --models <MODELS> --audio <FILE|-> --prompt <PROMPT> --out <F.mp4>"
        );
        let size = complain(&["avatar-run", "generate", "--size", "704"]).unwrap();
        assert!(
            size.starts_with("invalid value '704' for '--size <W*H>': size wants W*H"),
            "{size}"
        );
    }

    #[test]
    fn a_mistyped_flag_gets_a_suggestion_and_flags_are_named_as_typed() {
        let complain = |words: &[&str]| {
            let args: Vec<OsString> = words.iter().map(OsString::from).collect();
            let error = Cli::read(args.clone()).unwrap_err();
            as_typed(&complaint(&error).unwrap(), &args)
        };
        assert_eq!(
            complain(&["avatar-run", "generate", "--num_clips", "3"]),
            "unexpected argument '--num_clips' found; a similar argument exists: '--num-clip'"
        );
        let size = complain(&["avatar-run", "generate", "--sample_steps=many"]);
        assert!(size.contains("'--sample_steps <N>'"), "{size}");
        let both = ["--num_gpus_dit", "4", "--stages", "1"];
        let both = complain(&[&["avatar-run", "generate"], &both[..]].concat());
        assert!(both.contains("'--num_gpus_dit <N>'"), "{both}");
        let args = ["--num_clip".into()];
        assert_eq!(
            as_typed("--num-clip-x --num-clip", &args),
            "--num-clip-x --num_clip"
        );
    }

    #[test]
    fn the_nearest_value_that_works_is_named() {
        for (more, want) in [
            (["--num_clip", "-1"], "auto makes the whole recording"),
            (["--num_clip", "0"], "1 is the least"),
        ] {
            let error = request(&[&more[..], &["--out", "o.mp4"]].concat()).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_pictures_profile_and_transparency_have_flags() {
        let reading =
            |more: &[&str]| request(&[&["--out", "o.mp4"], more].concat()).map(|r| r.0.reading);
        assert_eq!(reading(&[]).unwrap(), Reading::default());
        let upstreams = reading(&["--icc", "ignore", "--background", "drop"]);
        assert_eq!(upstreams.unwrap(), Reading::REFERENCE);
        let green = reading(&["--background=#00ff00"]).unwrap().background;
        assert_eq!(green, Background::Colour([0, 255, 0]));
        let error = reading(&["--background", "green"]).unwrap_err();
        assert!(
            error.contains("a colour such as #20ff80, got `green`"),
            "{error}"
        );
    }

    #[test]
    fn two_recordings_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("a.wav"), b"x").unwrap();
        let both = format!("{}+{}", path("a.wav"), path("b.wav"));
        let error = request(&["--out", "o.mp4", "--audio", &both]).unwrap_err();
        assert!(
            error.contains("two speakers are not built in yet"),
            "{error}"
        );
        // A name may have a plus sign.
        std::fs::write(path("a+b.wav"), b"x").unwrap();
        assert!(request(&["--out", "o.mp4", "--audio", &path("a+b.wav")]).is_ok());
    }

    fn batch(line: &str) -> Result<Batch, String> {
        let words = ["avatar-run", "batch"].into_iter().chain(line.split(' '));
        match Cli::read(words.map(Into::into))
            .map_err(|e| e.to_string())?
            .command
        {
            Command::Batch(batch) => Ok(*batch),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn flags_of_generate_stand_anywhere_on_the_line() {
        let read = batch("--num_clip 2 list.csv --jobs auto --host-rings --crf=20").unwrap();
        assert_eq!(read.own.jobs, Jobs::Auto);
        assert_eq!(read.own.inputs, PathBuf::from("list.csv"));
        assert_eq!(read.common, ["--num-clip=2", "--host-rings", "--crf=20"]);
        let refused = batch("list.csv --out a.mp4").unwrap_err();
        assert!(refused.contains("--out-dir"), "{refused}");
        assert!(batch("list.csv --num_clip many").is_err());
        assert!(batch("list.csv --jobs 0").is_err());
    }

    #[test]
    fn the_last_of_repeated_flags_counts() {
        let (r, _) = request(&["--out", "o.mp4", "--num_clip", "1", "--num_clip", "auto"]).unwrap();
        assert_eq!(r.clips, Clips::Auto);
    }
}
