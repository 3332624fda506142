//! Upstream's flags that choose nothing here. A flag is accepted if it asks for the only possible
//! behaviour, noted if it belongs to the export, and refused with the reason otherwise. No flag is
//! ignored.

use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::commands::error::Error;

/// What a flag may say.
enum Rule {
    /// Only these values are what happens anyway.
    Only(&'static [&'static str], &'static str),
    /// A switch that is always on.
    Always,
    /// Accepted with this notice: it was settled at export.
    Told(&'static str),
    /// As [`Rule::Told`]. The value is a folder, which must exist, or `hf:ORG/NAME`.
    ToldPath(&'static str),
    /// As [`Rule::Told`]. The value is a file or folder, which must exist, or the name of a
    /// repository, such as `Quark-Vision/Live-Avatar`.
    ToldPathOrName(&'static str),
    Refused(&'static str),
}

struct Flag {
    name: &'static str,
    takes_value: bool,
    rule: Rule,
}

const fn value(name: &'static str, rule: Rule) -> Flag {
    Flag {
        name,
        takes_value: true,
        rule,
    }
}

const fn switch(name: &'static str, rule: Rule) -> Flag {
    Flag {
        name,
        takes_value: false,
        rule,
    }
}

const AT_EXPORT: &str =
    "was settled when `avatar-export onnx` made the models folder; it is not read here";
const NO_PROMPTER: &str = "no prompt extension is built in; write the prompt out";
const NO_TTS: &str = "no speech synthesis is built in; give --audio";

/// Flags of upstream's `s2v_streaming_interact.py` @ 9c2c38d that [`crate::commands::cli`] does not
/// define itself. Dashes stand for underscores.
const FLAGS: &[Flag] = &[
    value(
        "task",
        Rule::Only(&["s2v-14B"], "this is the speech-to-video model"),
    ),
    value(
        "ulysses-size",
        Rule::Only(
            &["1"],
            "sequence parallelism is refused upstream too; --stages places layers and steps",
        ),
    ),
    value("ckpt-dir", Rule::ToldPath(AT_EXPORT)),
    value("lora-path", Rule::ToldPathOrName(AT_EXPORT)),
    value("lora-path-dmd", Rule::ToldPathOrName(AT_EXPORT)),
    // A file of upstream's repository, which users of this program need not have.
    value("training-config", Rule::Told(AT_EXPORT)),
    switch("load-lora", Rule::Told(AT_EXPORT)),
    switch("using-merged-ckpt", Rule::Told(AT_EXPORT)),
    switch("convert-model-dtype", Rule::Told(AT_EXPORT)),
    value(
        "vae-dtype",
        Rule::Refused(
            "upstream has no such flag; precision is a recipe of the export: \
             `avatar-export onnx --recipe fp32|bf16`",
        ),
    ),
    switch("t5-cpu", Rule::Always),
    switch(
        "fp8",
        Rule::Refused("precision is a recipe of the export, and this export has none with FP8"),
    ),
    switch(
        "t5-fsdp",
        Rule::Refused("weights are not sharded; --stages places layers"),
    ),
    switch(
        "dit-fsdp",
        Rule::Refused("weights are not sharded; --stages places layers"),
    ),
    switch(
        "start-from-ref",
        Rule::Refused("upstream parses it and nothing reads it"),
    ),
    switch(
        "drop-motion-noisy",
        Rule::Refused("upstream computes zeros for it and never uses them"),
    ),
    value(
        "frame-num",
        Rule::Refused(
            "the speech-to-video pipelines never read it; --infer_frames and --num_clip set the length",
        ),
    ),
    value(
        "start-frame",
        Rule::Refused(
            "upstream has no such flag, and a video cannot begin in the middle yet: its first \
             frames depend on the blocks before; --num_clip cuts its end",
        ),
    ),
    value(
        "output-file",
        Rule::Refused("upstream has no such flag; --save_file (or --out) names the video"),
    ),
    value(
        "audio-align-method",
        Rule::Refused(
            "upstream has no such flag; lips follow the speech of every frame, and nothing is \
             aligned afterwards",
        ),
    ),
    value("pose-video", Rule::Refused("pose video is not built in")),
    switch(
        "use-dataset",
        Rule::Refused("it belongs to upstream's training data"),
    ),
    value(
        "dataset-sample-idx",
        Rule::Refused("it belongs to upstream's training data"),
    ),
    switch("use-prompt-extend", Rule::Refused(NO_PROMPTER)),
    value("prompt-extend-method", Rule::Refused(NO_PROMPTER)),
    value("prompt-extend-model", Rule::Refused(NO_PROMPTER)),
    value("prompt-extend-target-lang", Rule::Refused(NO_PROMPTER)),
    switch("enable-tts", Rule::Refused(NO_TTS)),
    value("tts-prompt-audio", Rule::Refused(NO_TTS)),
    value("tts-prompt-text", Rule::Refused(NO_TTS)),
    value("tts-text", Rule::Refused(NO_TTS)),
];

/// Returns the answer to a flag of this file: `Ok` with the reason why nothing is left to do, or
/// `Err` with the reason for the refusal. Returns `None` for a flag that `generate` defines itself.
/// It looks at no file.
pub(super) fn answer(name: &str, value: Option<&str>) -> Option<Result<&'static str, String>> {
    let flag = FLAGS.iter().find(|f| f.name == name)?;
    Some(match &flag.rule {
        Rule::Only(values, why) if value.is_some_and(|v| values.contains(&v)) => Ok(why),
        Rule::Only(values, why) => Err(format!("only {} is possible: {why}", values[0])),
        Rule::Always => Ok("it happens anyway"),
        Rule::Told(why) | Rule::ToldPath(why) | Rule::ToldPathOrName(why) => Ok(why),
        Rule::Refused(why) => Err((*why).to_owned()),
    })
}

/// Returns whether `text` has the form of a repository's name: `owner/name`, perhaps with `hf:` in
/// front and `@revision` behind, and no file's ending.
fn is_repository(text: &str) -> bool {
    let text = text.strip_prefix("hf:").unwrap_or(text);
    let text = text.split_once('@').map_or(text, |(name, _)| name);
    let whole = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(known)
    };
    let ending = Path::new(text).extension();
    let file = ending.is_some_and(|e| e == "safetensors" || e == "pth" || e == "pt" || e == "bin");
    text.split_once('/')
        .is_some_and(|(owner, name)| whole(owner) && whole(name))
        && !file
}

/// Upstream's flags as they were given, with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Upstream(Vec<(&'static str, Option<String>)>);

impl Upstream {
    /// Notices for what is settled elsewhere.
    ///
    /// # Errors
    /// [`Error::Usage`] with the reason for the first flag that cannot be honoured.
    pub(crate) fn check(&self) -> Result<Vec<String>, Error> {
        let mut notices = Vec::new();
        for (name, value) in &self.0 {
            let Some(flag) = FLAGS.iter().find(|f| f.name == *name) else {
                continue;
            };
            let given = value
                .as_ref()
                .map_or_else(|| format!("--{name}"), |v| format!("--{name} {v}"));
            match (&flag.rule, value) {
                (Rule::Only(values, _), Some(v)) if values.contains(&v.as_str()) => {}
                (Rule::Only(values, why), _) => {
                    return Err(Error::Usage(format!(
                        "{given}: only {} is possible: {why}",
                        values[0]
                    )));
                }
                (Rule::Refused(why), _) => return Err(Error::Usage(format!("{given}: {why}"))),
                (Rule::Told(why), _) => notices.push(format!("{given} {why}")),
                (Rule::ToldPath(why) | Rule::ToldPathOrName(why), path) => {
                    let path = path.as_deref().unwrap_or_default();
                    let bare = matches!(flag.rule, Rule::ToldPathOrName(_));
                    let named = (bare || path.starts_with("hf:")) && is_repository(path);
                    if !named && !Path::new(path).exists() {
                        return Err(Error::NoPath {
                            flag: format!("--{name}"),
                            path: path.into(),
                        });
                    }
                    notices.push(format!("{given} {why}"));
                }
                (Rule::Always, _) => {}
            }
        }
        Ok(notices)
    }
}

impl clap::FromArgMatches for Upstream {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Self::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for flag in FLAGS {
            if flag.takes_value {
                let value = matches.get_one::<String>(flag.name);
                self.0.extend(value.map(|v| (flag.name, Some(v.clone()))));
            } else if matches.get_flag(flag.name) {
                self.0.push((flag.name, None));
            }
        }
        Ok(())
    }
}

impl clap::Args for Upstream {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| {
            let action = if flag.takes_value {
                ArgAction::Set
            } else {
                ArgAction::SetTrue
            };
            command.arg(
                Arg::new(flag.name)
                    .long(flag.name)
                    .action(action)
                    .hide(true)
                    .allow_negative_numbers(flag.takes_value),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_needs_no_file_where_its_name_may_stand() {
        let check = |name, value: &str| Upstream(vec![(name, Some(value.to_owned()))]).check();
        for (name, value, accepted) in [
            ("ckpt-dir", "hf:Wan-AI/Wan2.2-S2V-14B@main", true),
            ("ckpt-dir", "no/folder", false),
            ("lora-path-dmd", "Quark-Vision/Live-Avatar", true),
            ("lora-path-dmd", "hf:Quark-Vision/Live-Avatar", true),
            ("lora-path-dmd", "no/lora.safetensors", false),
        ] {
            assert_eq!(check(name, value).is_ok(), accepted, "{name} {value}");
        }
    }
}
