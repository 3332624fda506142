//! `compat`: what each word of an upstream or article command line becomes here. The answers come
//! from the flags of `generate` themselves and from the rules of `compat.rs`. The tables here hold
//! only words that `generate` never sees: launchers, variables, and flags of other programs.

use std::ffi::OsString;
use std::fmt::Write as _;

use engines::components::preset::Preset;
use engines::words::nearest;

use crate::commands::cli::{Cli, Command, complaint};
use crate::commands::compat;
use crate::commands::error::Error;
use crate::commands::layers::Flags;
use crate::commands::presets;
use crate::numbers::geometry::Geometry;
use crate::numbers::size::SizeMode;

/// What becomes of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Becomes {
    /// The same flag, perhaps with a remark.
    Same(&'static str),
    /// Another spelling of ours.
    Named(String),
    /// It asks for what happens anyway, or was settled by another command.
    Settled(String),
    /// It cannot be honoured: the reason, and the alternative.
    Refused(String),
    /// No program has it.
    Unknown(String),
}

/// A word of a command line, with its value, and what becomes of it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    word: String,
    becomes: Becomes,
}

/// A name that `generate` does not have.
struct Foreign {
    name: &'static str,
    takes_value: bool,
    answer: Answer,
}

/// The answer to a name that `generate` does not have.
enum Answer {
    Named(&'static str),
    Settled(&'static str),
    Refused(&'static str),
}

impl Answer {
    fn becomes(&self) -> Becomes {
        match self {
            Self::Named(to) => Becomes::Named((*to).to_owned()),
            Self::Settled(why) => Becomes::Settled((*why).to_owned()),
            Self::Refused(why) => Becomes::Refused((*why).to_owned()),
        }
    }
}

const fn flag(name: &'static str, answer: Answer) -> Foreign {
    Foreign {
        name,
        takes_value: true,
        answer,
    }
}

const fn bare(name: &'static str, answer: Answer) -> Foreign {
    Foreign {
        name,
        takes_value: false,
        answer,
    }
}

const ONE_PROCESS: &str = "one process uses all devices, so nothing is launched or connected";
const NO_NCCL: &str = "one process uses all devices, without NCCL";
const NO_PAGE: &str = "this program has no web page; `generate` and its --json events serve one";
const NO_TORCH: &str = "no torch runs here";

/// Flags of torchrun, of upstream's gradio_app.py and batch_eval.py @ 9c2c38d, and of articles.
const FLAGS: &[Foreign] = &[
    flag("nproc-per-node", Answer::Settled(ONE_PROCESS)),
    flag("nnodes", Answer::Settled(ONE_PROCESS)),
    flag("node-rank", Answer::Settled(ONE_PROCESS)),
    flag("master-addr", Answer::Settled(ONE_PROCESS)),
    flag("master-port", Answer::Settled(ONE_PROCESS)),
    flag("rdzv-backend", Answer::Settled(ONE_PROCESS)),
    flag("rdzv-endpoint", Answer::Settled(ONE_PROCESS)),
    bare("standalone", Answer::Settled(ONE_PROCESS)),
    flag("server-port", Answer::Refused(NO_PAGE)),
    flag("server-name", Answer::Refused(NO_PAGE)),
    flag(
        "sample-list",
        Answer::Refused("`generate` makes one video; give the list to `avatar-run batch`"),
    ),
    bare(
        "gradient-checkpointing",
        Answer::Refused("it saves memory of training only; --host-rings saves memory here"),
    ),
];

/// Variables that upstream's scripts and the articles set.
const VARIABLES: &[Foreign] = &[
    flag(
        "CUDA_VISIBLE_DEVICES",
        Answer::Settled("NVIDIA's driver obeys it here too"),
    ),
    flag(
        "ENABLE_COMPILE",
        Answer::Settled("graphs are compiled when they are loaded, or by `avatar-export build`"),
    ),
    flag(
        "ENABLE_FP8",
        Answer::Refused("upstream reads it nowhere; precision is a recipe of the export"),
    ),
    flag(
        "HF_ENDPOINT",
        Answer::Settled("`avatar-export download` obeys it"),
    ),
    flag(
        "HF_HOME",
        Answer::Settled("`avatar-export download` and `onnx` obey it"),
    ),
    flag(
        "HF_TOKEN",
        Answer::Settled("`avatar-export download` obeys it"),
    ),
    flag("OMP_NUM_THREADS", Answer::Named("--threads")),
    flag("PYTORCH_CUDA_ALLOC_CONF", Answer::Settled(NO_TORCH)),
    flag("TOKENIZERS_PARALLELISM", Answer::Settled(NO_TORCH)),
];

/// Beginnings of variables that mean nothing to one process without torch.
const SETTLED_PREFIXES: [(&str, &str); 3] = [
    ("NCCL_", NO_NCCL),
    ("TORCH_NCCL_", NO_NCCL),
    ("TORCH", NO_TORCH),
];

/// Programs and scripts, by the last part of their path.
const PROGRAMS: &[Foreign] = &[
    bare("torchrun", Answer::Settled(ONE_PROCESS)),
    bare("python", Answer::Settled("no Python runs here")),
    bare("python3", Answer::Settled("no Python runs here")),
    bare("bash", Answer::Settled("the script is answered below")),
    bare("sh", Answer::Settled("the script is answered below")),
    bare("export", Answer::Settled("the variable is answered below")),
    bare("avatar-run", Answer::Settled("this program")),
    bare("generate", Answer::Settled("this command")),
    bare(
        "s2v_streaming_interact.py",
        Answer::Named("avatar-run generate"),
    ),
    bare("batch_eval.py", Answer::Named("avatar-run batch")),
    bare("gradio_app.py", Answer::Refused(NO_PAGE)),
    bare("gradio_multi_gpu.sh", Answer::Refused(NO_PAGE)),
    bare("gradio_single_gpu.sh", Answer::Refused(NO_PAGE)),
    bare("run_4gpu_gradio.sh", Answer::Refused(NO_PAGE)),
    bare(
        "run_4gpu_tpp.sh",
        Answer::Named("scripts/articles/run_4gpu_tpp.sh"),
    ),
    bare(
        "infinite_inference_multi_gpu.sh",
        Answer::Named("scripts/articles/infinite_inference_multi_gpu.sh"),
    ),
    bare(
        "infinite_inference_single_gpu.sh",
        Answer::Named("scripts/articles/infinite_inference_single_gpu.sh"),
    ),
    bare(
        "batch_avatar.sh",
        Answer::Named("scripts/articles/batch_avatar.sh"),
    ),
    bare(
        "post_process.sh",
        Answer::Named("scripts/articles/post_process.sh"),
    ),
];

/// Flags that mean something else upstream, and what they mean here.
const REMARKS: [(&str, &str); 7] = [
    (
        "size",
        "the exact size; upstream takes it as an area, as --size_mode area does",
    ),
    (
        "sample-guide-scale",
        "upstream never reads it; above 1 it doubles the time and the rings here",
    ),
    (
        "sample-shift",
        "upstream never reads it and takes 3; here it counts",
    ),
    (
        "enable-online-decode",
        "every block is decoded as it is made; --mode single has upstream's meaning",
    ),
    ("num-gpus-dit", "any number of GPUs; upstream takes 1 or 4"),
    (
        "num-clip",
        "a clip has --infer_frames frames at 25 a second, 1.92 s for 48",
    ),
    ("offload-model", "layer by layer, not model by model"),
];

/// Answers a command line. Several words are taken as they are; a single one is split as a shell
/// splits it.
///
/// # Errors
/// [`Error::Usage`] for a quote that is not closed.
pub(super) fn translate(line: &[String]) -> Result<String, Error> {
    let words = match line {
        [one] => shlex::split(one).ok_or_else(|| {
            Error::Usage(format!(
                "compat: a quote is not closed in `{one}`; close it"
            ))
        })?,
        several => several.to_vec(),
    };
    let mut answers = Answers::new();
    answers.read(words);
    Ok(answers.table())
}

/// The answers so far.
struct Answers {
    flags: Flags,
    rows: Vec<Row>,
    /// Words of the command line that does the same here.
    ours: Vec<String>,
}

impl Answers {
    fn new() -> Self {
        Self {
            flags: Flags::new(),
            rows: Vec::new(),
            ours: Vec::new(),
        }
    }

    fn read(&mut self, words: Vec<String>) {
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            if is_of_shell(&word) {
                let rest: Vec<String> = std::iter::once(word).chain(words).collect();
                let why = "the shell reads this part, not a program".to_owned();
                self.push(&rest.join(" "), Becomes::Settled(why));
                return;
            }
            let Some(text) = word.strip_prefix("--") else {
                let becomes = self.plain(&word);
                self.push(&word, becomes);
                continue;
            };
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text, None),
            };
            let name = name.replace('_', "-");
            let value = value.or_else(|| {
                let follows = |next: &String| !next.starts_with("--") && !is_of_shell(next);
                self.takes_value(&name)
                    .unwrap_or(true)
                    .then(|| words.next_if(follows))
                    .flatten()
            });
            let shown = match &value {
                Some(value) if text.contains('=') => {
                    format!("--{}={value}", text.split('=').next().unwrap_or_default())
                }
                Some(value) => format!("--{text} {value}"),
                None => word.clone(),
            };
            let becomes = self.flag(&name, value.as_deref());
            self.keep(&name, value, &becomes);
            self.push(&shown, becomes);
        }
    }

    fn push(&mut self, word: &str, becomes: Becomes) {
        self.rows.push(Row {
            word: word.to_owned(),
            becomes,
        });
    }

    /// Returns whether a flag takes a value, or `None` for an unknown flag.
    fn takes_value(&self, name: &str) -> Option<bool> {
        let foreign = || FLAGS.iter().find(|f| f.name == name);
        match self.flags.get(name) {
            Some(known) => Some(known.takes_value),
            None => foreign().map(|f| f.takes_value),
        }
    }

    /// Answers a flag.
    fn flag(&self, name: &str, value: Option<&str>) -> Becomes {
        let Some(known) = self.flags.get(name) else {
            return match FLAGS.iter().find(|f| f.name == name) {
                Some(foreign) => foreign.answer.becomes(),
                None => Becomes::Unknown(match self.flags.nearest(name) {
                    Some(near) => format!("neither upstream nor an article has it; --{near}?"),
                    None => "neither upstream nor an article has it".to_owned(),
                }),
            };
        };
        if let Some(answer) = compat::answer(&known.name, value) {
            return match answer {
                Ok(why) => Becomes::Settled(why.to_owned()),
                Err(why) => Becomes::Refused(why),
            };
        }
        if let Some(fault) = fault(&known.name, value) {
            return Becomes::Refused(fault);
        }
        if known.name != name {
            return Becomes::Named(format!("--{}", known.name.replace('-', "_")));
        }
        let remark = REMARKS.iter().find(|(flag, _)| *flag == name);
        Becomes::Same(remark.map_or("", |(_, remark)| remark))
    }

    /// Answers a word that is no flag: a variable, a program or a script.
    fn plain(&self, word: &str) -> Becomes {
        if let Some((name, _)) = word.split_once('=') {
            let settled = SETTLED_PREFIXES.iter().find(|(p, _)| name.starts_with(p));
            return match (VARIABLES.iter().find(|v| v.name == name), settled) {
                (Some(variable), _) => variable.answer.becomes(),
                (None, Some((_, why))) => Becomes::Settled((*why).to_owned()),
                (None, None) => Becomes::Unknown("no program here reads this variable".to_owned()),
            };
        }
        let last = word.rsplit('/').next().unwrap_or(word);
        match PROGRAMS.iter().find(|p| p.name == last) {
            Some(program) => program.answer.becomes(),
            None => {
                let near = nearest(last, PROGRAMS.iter().map(|p| p.name));
                let hint = near.map_or_else(String::new, |near| format!("; {near}?"));
                Becomes::Unknown(format!("neither a flag nor a known program{hint}"))
            }
        }
    }

    /// Adds a flag that counts to our command line.
    fn keep(&mut self, name: &str, value: Option<String>, becomes: &Becomes) {
        let flag = match becomes {
            Becomes::Same(_) => format!("--{}", name.replace('-', "_")),
            Becomes::Named(to) if to.starts_with("--") => to.clone(),
            _ => return,
        };
        self.ours.push(flag);
        self.ours.extend(value);
    }

    /// Returns the answers in columns, and the command line that does the same here.
    fn table(&self) -> String {
        /// Most columns of a word. A longer one has its answer on the next line.
        const WIDEST: usize = 32;
        let shown: Vec<String> = self.rows.iter().map(|row| shortened(&row.word)).collect();
        let lengths = shown.iter().map(|w| w.chars().count());
        let width = lengths.filter(|&n| n <= WIDEST).max().unwrap_or(0);
        let mut out = String::new();
        for (word, row) in shown.iter().zip(&self.rows) {
            let (kind, why) = row.becomes.texts();
            if word.chars().count() > width {
                let _ = write!(out, "{word}\n{:width$}", "");
            } else {
                let _ = write!(out, "{word:width$}");
            }
            let line = format!("  {kind:10}  {why}");
            let _ = writeln!(out, "{}", line.trim_end());
        }
        let ours = self.ours.iter().map(String::as_str);
        // A word with a NUL byte cannot stand on a command line.
        let ours = shlex::try_join(ours).unwrap_or_default();
        let _ = write!(out, "\navatar-run generate --models MODELS {ours}");
        if let Some(fault) = together(&self.ours) {
            let _ = write!(out, "\nrefused: {fault}");
        }
        out
    }
}

impl Becomes {
    /// Returns the kind of the answer, and its words.
    fn texts(&self) -> (&'static str, &str) {
        match self {
            Self::Same(remark) => ("same", remark),
            Self::Named(to) => ("other name", to),
            Self::Settled(why) => ("not needed", why),
            Self::Refused(why) => ("refused", why),
            Self::Unknown(why) => ("unknown", why),
        }
    }
}

/// Returns whether a word ends the command: the shell reads what follows.
fn is_of_shell(word: &str) -> bool {
    matches!(word, "&&" | "||" | "|" | ";" | "&") || word.starts_with(['>', '<']) || {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.len() < word.len() && rest.starts_with('>')
    }
}

/// Returns a word with the middle of a long value left out.
fn shortened(word: &str) -> String {
    const SHOWN: usize = 60;
    match word.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", word[..at].trim_end()),
        None => word.to_owned(),
    }
}

/// Arguments that `generate` needs, in place of those that a line may lack.
const NEEDED: [&str; 10] = [
    "--models", "m", "--image", "i", "--audio", "a", "--prompt", "p", "--out", "o.mp4",
];

/// Parses flags as `generate` does. Flags that are needed get stand-ins, unless they are given.
fn parsed(flags: &[String]) -> Result<Cli, String> {
    let given = |name: &str| flags.iter().any(|f| f.replace('_', "-") == *name);
    let needed = NEEDED.chunks(2).filter(|pair| match pair[0] {
        "--out" => !given("--out") && !given("--save-dir"),
        name => !given(name),
    });
    let needed = needed.flatten().map(|word| (*word).to_owned());
    let line = ["avatar-run", "generate"].map(str::to_owned).into_iter();
    let line = line.chain(needed).chain(flags.iter().cloned());
    Cli::read(line.map(OsString::from)).map_err(|e| {
        complaint(&e).unwrap_or_else(|| "it asks for help, not for a video".to_owned())
    })
}

/// Returns why one flag with this value cannot be honoured.
fn fault(name: &str, value: Option<&str>) -> Option<String> {
    let flag = match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    };
    if let ("preset", Some(value)) = (name, value) {
        return presets::find(value).err().map(|e| e.to_string());
    }
    let needs = NEEDS_PROFILE.contains(&name);
    let profile = needs.then(|| "--profile=auto".to_owned());
    let flags: Vec<String> = profile.into_iter().chain([flag]).collect();
    match parsed(&flags) {
        Err(fault) => Some(fault),
        Ok(cli) => impossible(&cli),
    }
}

/// Flags that `--profile` must accompany.
const NEEDS_PROFILE: [&str; 2] = ["virtual", "engines"];

/// Returns why flags that are well formed each cannot be honoured together.
fn together(flags: &[String]) -> Option<String> {
    parsed(flags).err()
}

/// Returns why sizes that are well formed cannot be made.
fn impossible(cli: &Cli) -> Option<String> {
    let Command::Generate(generate) = &cli.command else {
        return None;
    };
    let (request, _) = generate.request(|| 0).ok()?;
    let config = Preset::Full.config().dit;
    let size = match request.size_mode {
        SizeMode::Exact => request.size.effective(SizeMode::Exact, request.size),
        SizeMode::Area => Ok(request.size),
    };
    match size {
        Err(fault) => Some(fault.to_string()),
        Ok(size) => Geometry::new(&config, size, request.infer_frames)
            .err()
            .map(|fault| fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every flag of upstream's three programs @ 9c2c38d.
    const UPSTREAM: &str = "--audio --base_seed --ckpt_dir --convert_model_dtype \
        --dataset_sample_idx --dit_fsdp --drop_motion_noisy --enable_online_decode --enable_tts \
        --enable_vae_parallel --fp8 --frame_num --image --infer_frames --load_lora --lora_path \
        --lora_path_dmd --num_clip --num_gpus_dit --offload_kv_cache --offload_model --pose_video \
        --prompt --prompt_extend_method --prompt_extend_model --prompt_extend_target_lang \
        --sample_guide_scale --sample_list --sample_shift --sample_solver --sample_steps \
        --save_dir --save_file --server_name --server_port --single_gpu --size --start_from_ref \
        --t5_cpu --t5_fsdp --task --training_config --tts_prompt_audio --tts_prompt_text \
        --tts_text --ulysses_size --use_dataset --use_prompt_extend --using_merged_ckpt";
    /// Every flag of the articles that upstream does not have, and the flags of its launcher.
    const ARTICLES: &str = "--audio_align_method --start_frame --output_file --vae_dtype \
        --gradient_checkpointing --nproc_per_node --nnodes --node_rank --master_addr \
        --master_port --rdzv_backend --rdzv_endpoint --standalone";

    fn rows(line: &str) -> Vec<Row> {
        let mut answers = Answers::new();
        answers.read(shlex::split(line).unwrap());
        answers.rows
    }

    fn table(line: &str) -> String {
        translate(&[line.to_owned()]).unwrap()
    }

    #[test]
    fn no_flag_is_unanswered() {
        let flags = UPSTREAM
            .split_whitespace()
            .chain(ARTICLES.split_whitespace());
        for flag in flags {
            let rows = rows(flag);
            assert_eq!(rows.len(), 1);
            assert!(!matches!(rows[0].becomes, Becomes::Unknown(_)), "{rows:?}");
        }
        for foreign in FLAGS {
            let known = Flags::new().get(foreign.name).is_some();
            assert!(!known, "{} is a flag of generate now", foreign.name);
        }
    }

    #[test]
    fn every_value_of_the_articles_has_an_answer() {
        let same = |line: &str| match &rows(line)[..] {
            [row] => matches!(row.becomes, Becomes::Same(_)),
            _ => false,
        };
        for line in [
            "--size 384*256",
            "--size 688*368",
            "--size '704 × 384'",
            "--size 720*400",
            "--size 480*832",
            "--size 1024*704",
            "--num_clip 1000",
            "--sample_steps 3",
            "--sample_steps 5",
            "--infer_frames 48",
            "--enable_online_decode",
            "--enable_vae_parallel",
            "--offload_model True",
            "--num_gpus_dit 3",
            "--sample_guide_scale 5",
            "--sample_solver dpmpp_2m",
            "--audio examples/dwarven_blacksmith.wav",
            "--preset hd",
        ] {
            assert!(same(line), "{line}: {:?}", rows(line));
        }
        for (line, word) in [
            ("--infer_frames 32", "the nearest are 24 and 36"),
            ("--size 700*384", "multiples of 16"),
            ("--size big", "W*H"),
            ("--ulysses_size 4", "only 1 is possible"),
            ("--sample_solver heun", "heun"),
            ("--preset hdd", "did you mean `hd`"),
            ("--fp8", "recipe"),
            ("ENABLE_FP8=1", "recipe"),
            ("--num_clip", "value is required"),
        ] {
            let rows = rows(line);
            let refused = matches!(&rows[0].becomes, Becomes::Refused(why) if why.contains(word));
            assert!(refused && rows.len() == 1, "{line}: {rows:?}");
        }
    }

    #[test]
    fn upstreams_own_script_becomes_a_command_line_of_ours() {
        let table = table(
            "NCCL_DEBUG=WARN CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=5 \
             minimal_inference/s2v_streaming_interact.py --ulysses_size 1 --size \"720*400\" \
             --offload_kv_cache --save_file o.mp4 --lora_path_dmd \"Quark-Vision/Live-Avatar\" \
             --ckpt_dir ckpt/Wan2.2-S2V-14B/ --fp8 2>&1 | tee log",
        );
        let ours = "\navatar-run generate --models MODELS --size '720*400' --host_rings \
                    --out o.mp4";
        assert!(table.ends_with(ours), "{table}");
        for word in ["unknown", "same", "other name  --out", "refused"] {
            assert_eq!(table.contains(word), word != "unknown", "{table}");
        }
        assert!(table.contains("2>&1 | tee log"), "{table}");
    }

    #[test]
    fn unknown_words_are_named_and_a_contradiction_is_told() {
        let text = table("--num_clips 3 frobnicate.py WHAT=1 --stages 1 --num_gpus_dit 4");
        assert_eq!(text.matches("unknown").count(), 3, "{text}");
        assert!(text.contains("--num-clip?"), "{text}");
        assert!(text.contains("cannot be used with"), "{text}");
        let open = translate(&["--prompt \"a man".to_owned()]).unwrap_err();
        assert!(open.to_string().contains("a quote is not closed"), "{open}");
    }

    #[test]
    fn a_long_value_is_shortened_in_the_table_only() {
        let prompt = "a ".repeat(60);
        let text = table(&format!("--prompt '{prompt}'"));
        assert!(text.contains('…') && text.contains(prompt.trim()), "{text}");
    }
}
