//! Where the flags of `generate` come from. The command line wins over the environment
//! (`AVATAR_*`), that over a configuration file, that over a preset, and that over the defaults.
//!
//! A lower layer becomes flags in front of those that were typed, and the last one counts. So one
//! parser checks all of them, with the same rules and the same words.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory};
use engines::words::{line_and_column, nearest};
use toml::de::{DeTable, DeValue};

use crate::commands::cli::{Cli, dashed};
use crate::commands::error::Error;
use crate::commands::presets::{self, Preset};
use crate::generate::run_file::{Asked, Value};

/// Prefix of the variables that stand for flags: `AVATAR_SAMPLE_STEPS` is `--sample-steps`.
const PREFIX: &str = "AVATAR_";
/// Variables with the prefix that scripts use, and that are no flags.
const NO_FLAGS: [&str; 2] = ["AVATAR_RUN", "AVATAR_EXPORT"];
/// Flags of which one is given at most. A layer that has one hides the others of lower layers.
const ONE_OF: [&[&str]; 3] = [
    &["out", "save-dir"],
    &["stages", "num-gpus-dit"],
    &["crf", "bitrate"],
];

/// The layer that gave a flag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A preset, by name.
    Preset(&'static str),
    /// A configuration file, and the line in it.
    Config(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A run file.
    Run(PathBuf),
    /// The command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::Config(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Run(file) => write!(f, "{}", file.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// A command line with every layer in it.
#[derive(Debug, Default)]
pub struct Layered {
    /// Arguments, the program's name first.
    pub args: Vec<OsString>,
    /// The layer whose value counts, by flag.
    pub origins: BTreeMap<String, Origin>,
    /// What the user should know.
    pub notices: Vec<String>,
}

impl Layered {
    /// Returns `text` with the layer of the first flag that it names, unless it was typed.
    pub fn with_origin(&self, text: String) -> String {
        let named = self.origins.iter().filter_map(|(flag, origin)| {
            let flag = format!("--{flag}");
            let ends = |at: usize| {
                !text[at + flag.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '-')
            };
            text.match_indices(&flag)
                .find(|(at, _)| ends(*at))
                .map(|(at, _)| (at, origin))
        });
        match named.min() {
            Some((_, origin)) if *origin != Origin::CommandLine => {
                format!("{text} (from {origin})")
            }
            _ => text,
        }
    }
}

impl Layered {
    /// Says that a flag comes from a line of a file, such as a list.
    pub(super) fn given_in(&mut self, flag: &str, file: &Path, line: usize) {
        let origin = Origin::Config(file.to_owned(), line);
        self.origins.insert(flag.to_owned(), origin);
    }

    /// Returns the command and the value of each flag, for the run file.
    ///
    /// # Errors
    /// [`Error::Usage`]: the command line is malformed.
    pub fn asked(&self) -> Result<Asked, Error> {
        let command = self.args.iter().map(|a| a.to_string_lossy().into_owned());
        let words = self.args.iter().cloned().map(dashed);
        let matches = Cli::command().try_get_matches_from(words);
        let matches = matches.map_err(|e| Error::Usage(e.to_string()))?;
        let Some(given) = matches.subcommand_matches("generate") else {
            return Ok(Asked::default());
        };
        let cli = Cli::command();
        let flags = cli.find_subcommand("generate").into_iter();
        let values = flags.flat_map(|c| c.get_arguments()).filter_map(|arg| {
            let (name, id) = (arg.get_long()?, arg.get_id().as_str());
            let raw = given.get_raw(id)?;
            let raw: Vec<String> = raw.map(|v| v.to_string_lossy().into_owned()).collect();
            let value = match (arg.get_action(), raw.as_slice()) {
                (ArgAction::SetTrue, [on]) => (on == "true").into(),
                (ArgAction::Append, all) => all.to_vec().into(),
                (_, all) => all.last()?.as_str().into(),
            };
            let from = match given.value_source(id)? {
                ValueSource::DefaultValue => "default".to_owned(),
                _ => self
                    .origins
                    .get(name)
                    .unwrap_or(&Origin::CommandLine)
                    .to_string(),
            };
            Some((name.to_owned(), Value { value, from }))
        });
        Ok(Asked {
            command: command.collect(),
            values: values.collect(),
        })
    }
}

/// A flag of `generate`.
pub(super) struct Known {
    /// Name without dashes in front.
    pub(super) name: String,
    pub(super) takes_value: bool,
}

/// The flags of `generate`: by their names, and by their aliases.
pub(super) struct Flags(BTreeMap<String, Known>);

impl Flags {
    pub(super) fn new() -> Self {
        let cli = Cli::command();
        let generate = cli.find_subcommand("generate");
        let mut flags = BTreeMap::new();
        for arg in generate.into_iter().flat_map(|c| c.get_arguments()) {
            let Some(name) = arg.get_long() else { continue };
            let aliases = arg.get_all_aliases().unwrap_or_default();
            for alias in aliases.into_iter().chain([name]) {
                let known = Known {
                    name: name.to_owned(),
                    takes_value: matches!(arg.get_action(), ArgAction::Set | ArgAction::Append),
                };
                flags.insert(alias.to_owned(), known);
            }
        }
        Self(flags)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Known> {
        self.0.get(name)
    }

    /// Returns the names of all flags, without aliases.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.values().map(|known| known.name.clone()).collect()
    }

    pub(super) fn nearest(&self, name: &str) -> Option<String> {
        nearest(name, self.0.keys().map(String::as_str))
    }
}

/// One flag of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    /// Name without dashes in front.
    flag: String,
    /// `None` for a switch that is on.
    value: Option<OsString>,
    origin: Origin,
}

/// Puts preset, configuration file and environment into a command line. A command line of another
/// command than `generate` stays as it is.
///
/// # Errors
/// A preset is unknown; a configuration file cannot be read, or has a key or a value that no flag
/// takes; a variable has a value that is neither yes nor no where a switch is meant.
pub fn layered(
    args: Vec<OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Layered, Error> {
    if args.get(1).is_none_or(|command| command != "generate") {
        return Ok(Layered {
            args,
            ..Layered::default()
        });
    }
    let (flags, mut notices) = (Flags::new(), Vec::new());
    let typed = typed(&args[2..], &flags);
    let environment = variables(environment, &flags, &mut notices)?;
    let config = named("config", [&typed, &environment]);
    let config = match config {
        Some(file) => file_of(Path::new(file), &flags)?,
        None => Vec::new(),
    };
    let mut preset = Vec::new();
    for layer in [&typed, &environment, &config] {
        for given in layer.iter().filter(|g| g.flag == "preset") {
            let name = given.value.as_deref().unwrap_or_default();
            preset.extend(
                presets::find(&name.to_string_lossy())?
                    .into_iter()
                    .flat_map(Preset::flags),
            );
        }
        // The presets of one layer follow each other; those of a lower one have no say.
        if !preset.is_empty() {
            break;
        }
    }
    let mut layers = vec![preset, config, environment];
    for at in 0..layers.len() {
        let (lower, higher) = layers.split_at_mut(at + 1);
        let above = higher.iter().flatten().chain(&typed);
        let above: Vec<&str> = above.map(|g| g.flag.as_str()).collect();
        lower[at].retain(|g| !is_hidden(&g.flag, &above));
    }
    let mut words: Vec<OsString> = args[..2].to_vec();
    let mut origins = BTreeMap::new();
    for given in layers.into_iter().flatten() {
        let flag = format!("--{}", given.flag);
        words.push(match &given.value {
            Some(value) => joined(&flag, value),
            None => flag.into(),
        });
        origins.insert(given.flag, given.origin);
    }
    words.extend_from_slice(&args[2..]);
    origins.extend(typed.into_iter().map(|g| (g.flag, g.origin)));
    Ok(Layered {
        args: words,
        origins,
        notices,
    })
}

/// Says whether a flag of a lower layer has no say: a higher one has the flag, or one that excludes
/// it.
fn is_hidden(flag: &str, above: &[&str]) -> bool {
    let group = ONE_OF.iter().find(|group| group.contains(&flag));
    above
        .iter()
        .any(|&a| a == flag || group.is_some_and(|g| g.contains(&a)))
}

fn joined(flag: &str, value: &OsStr) -> OsString {
    let mut word = OsString::from(flag);
    word.push("=");
    word.push(value);
    word
}

/// Returns the value of a flag in the first layer that has it.
fn named<'a, const N: usize>(flag: &str, layers: [&'a Vec<Given>; N]) -> Option<&'a OsString> {
    let has = |layer: &&'a Vec<Given>| {
        let given = layer.iter().rev().find(|g| g.flag == flag)?;
        given.value.as_ref()
    };
    layers.iter().find_map(has)
}

/// Returns the flags that were typed, by their main names.
fn typed(args: &[OsString], flags: &Flags) -> Vec<Given> {
    let mut given = Vec::new();
    let mut words = args.iter().cloned().map(dashed).peekable();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str().and_then(|t| t.strip_prefix("--")) else {
            continue;
        };
        let (name, value) = text
            .split_once('=')
            .map_or((text, None), |(n, v)| (n, Some(v)));
        let Some(known) = flags.get(name) else {
            continue;
        };
        let value = match value {
            Some(value) => Some(value.into()),
            None if known.takes_value => words.next(),
            None => None,
        };
        given.push(Given {
            flag: known.name.clone(),
            value,
            origin: Origin::CommandLine,
        });
    }
    given
}

/// Returns the flags that environment variables give. An empty one gives none.
fn variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &Flags,
    notices: &mut Vec<String>,
) -> Result<Vec<Given>, Error> {
    let mut given = Vec::new();
    for (variable, value) in environment {
        let Some(variable) = variable.to_str().filter(|v| v.starts_with(PREFIX)) else {
            continue;
        };
        if value.is_empty() || NO_FLAGS.contains(&variable) {
            continue;
        }
        let name = variable[PREFIX.len()..]
            .to_ascii_lowercase()
            .replace('_', "-");
        let Some(known) = flags.get(&name) else {
            let hint = flags.nearest(&name).map_or_else(String::new, |near| {
                let near = near.to_ascii_uppercase().replace('-', "_");
                format!("; did you mean {PREFIX}{near}?")
            });
            notices.push(format!(
                "{variable} names no flag of generate and has no effect{hint}"
            ));
            continue;
        };
        let origin = Origin::Environment(variable.to_owned());
        let flag = known.name.clone();
        if known.takes_value {
            let value = Some(value);
            given.push(Given {
                flag,
                value,
                origin,
            });
            continue;
        }
        match value.to_string_lossy().to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => given.push(Given {
                flag,
                value: None,
                origin,
            }),
            "0" | "false" | "no" | "off" => {}
            got => {
                return Err(Error::Usage(format!(
                    "{variable}: --{flag} is a switch, so 1 or 0 is wanted, got `{got}`"
                )));
            }
        }
    }
    given.sort_by(|a, b| a.flag.cmp(&b.flag));
    Ok(given)
}

/// Reads a configuration file: TOML whose keys are flags of `generate`.
fn file_of(file: &Path, flags: &Flags) -> Result<Vec<Given>, Error> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::Config {
        file: file.to_owned(),
        source,
    })?;
    configured(file, &text, flags)
}

fn configured(file: &Path, text: &str, flags: &Flags) -> Result<Vec<Given>, Error> {
    let fault = |at: usize, message: String| {
        let (line, column) = line_and_column(text, at);
        Error::ConfigField {
            place: format!("{}:{line}:{column}", file.display()),
            message,
        }
    };
    let table = DeTable::parse(text).map_err(|e| {
        let message = e.message().replace('\n', "; ");
        fault(e.span().map_or(0, |span| span.start), message)
    })?;
    let mut given = Vec::new();
    for (key, value) in table.get_ref() {
        let (start, typed) = (key.span().start, key.get_ref().as_ref());
        let name = typed.replace('_', "-");
        let Some(known) = flags.get(&name).filter(|k| k.name != "config") else {
            let hint = flags.nearest(&name);
            let hint = hint.map_or_else(String::new, |h| format!("; did you mean `{h}`?"));
            return Err(fault(
                start,
                format!("key {typed} is no flag of generate{hint}"),
            ));
        };
        let origin = Origin::Config(file.to_owned(), line_and_column(text, start).0);
        let flag = known.name.clone();
        let plain = plain_value(typed, known, value.get_ref());
        let Some(value) = plain.map_err(|message| fault(value.span().start, message))? else {
            continue;
        };
        given.push((
            start,
            Given {
                flag,
                value,
                origin,
            },
        ));
    }
    given.sort_by_key(|(start, _)| *start);
    Ok(given.into_iter().map(|(_, g)| g).collect())
}

/// Returns the value of a flag in TOML: none for a switch that is off, and none inside for one that
/// is on.
///
/// # Errors
/// The value has a type that no flag takes.
pub(super) fn plain_value(
    key: &str,
    known: &Known,
    value: &DeValue<'_>,
) -> Result<Option<Option<OsString>>, String> {
    Ok(Some(match (value, known.takes_value) {
        (DeValue::Boolean(false), false) => return Ok(None),
        (DeValue::Boolean(true), false) => None,
        (DeValue::String(s), true) => Some(OsString::from(s.as_ref())),
        (DeValue::Boolean(b), true) => Some(b.to_string().into()),
        (DeValue::Integer(n), true) => Some(n.to_string().into()),
        (DeValue::Float(x), true) => Some(x.to_string().into()),
        (other, takes_value) => {
            let want = if takes_value {
                "a string, a number or a boolean"
            } else {
                "true or false"
            };
            let got = other.type_str();
            return Err(format!("key {key} wants {want}, got {got}"));
        }
    }))
}

impl Preset {
    fn flags(&'static self) -> impl Iterator<Item = Given> {
        self.flags.iter().map(|&(flag, value)| Given {
            flag: flag.to_owned(),
            value: (!value.is_empty()).then(|| value.into()),
            origin: Origin::Preset(self.name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<OsString> {
        text.iter().map(OsString::from).collect()
    }

    fn with(args: &[&str], environment: &[(&str, &str)]) -> Result<Layered, Error> {
        let environment = environment.iter().map(|(k, v)| (k.into(), v.into()));
        layered(
            words(&[&["avatar-run", "generate"], args].concat()),
            environment,
        )
    }

    fn config(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn the_command_line_wins_over_environment_file_preset_and_defaults() {
        let file = config("sample_steps = 5\ninfer-frames = 24\ncrf = 20\njson = true\n");
        let file = file.path().to_str().unwrap();
        let args = ["--preset", "quick-preview", "--config", file, "--crf=30"];
        let all = with(&args, &[("AVATAR_SAMPLE_STEPS", "6"), ("AVATAR_CRF", "25")]).unwrap();
        let flags: Vec<_> = all.args[2..].iter().map(|a| a.to_str().unwrap()).collect();
        let lower = [
            "--size=384*256",
            "--num-clip=10",
            "--infer-frames=24",
            "--json",
            "--sample-steps=6",
        ];
        assert_eq!(flags[..5], lower);
        assert_eq!(flags[5..], args);
        let from = |flag: &str| all.origins[flag].to_string();
        assert_eq!(from("size"), "preset quick-preview");
        assert_eq!(from("infer-frames"), format!("{file}:2"));
        assert_eq!(from("sample-steps"), "AVATAR_SAMPLE_STEPS");
        assert_eq!(from("crf"), "command line");
    }

    #[test]
    fn a_fault_names_the_layer_that_it_comes_from() {
        let all = with(&[], &[("AVATAR_SAMPLE_STEPS", "many")]).unwrap();
        let text = "invalid value 'many' for '--sample-steps <N>'".to_owned();
        assert_eq!(
            all.with_origin(text.clone()),
            format!("{text} (from AVATAR_SAMPLE_STEPS)")
        );
        let all = with(&["--sample-steps", "many"], &[]).unwrap();
        assert_eq!(all.with_origin(text.clone()), text);
        let other = with(&[], &[("AVATAR_SAMPLE_STEPS", "4")]).unwrap();
        let longer = "unexpected argument '--sample-steps-more'".to_owned();
        assert_eq!(other.with_origin(longer.clone()), longer);
    }

    #[test]
    fn of_flags_that_exclude_each_other_the_higher_layer_has_its_own() {
        let file = config("save_dir = \"videos\"\n");
        let file = file.path().to_str().unwrap();
        let all = with(&["--config", file, "--save_file", "o.mp4"], &[]).unwrap();
        assert!(
            !all.args
                .iter()
                .any(|a| a.to_str().unwrap().starts_with("--save-dir"))
        );
        let kept = with(&["--config", file], &[]).unwrap();
        assert!(kept.args.contains(&"--save-dir=videos".into()));
    }

    #[test]
    fn keys_values_and_files_that_cannot_be_used_are_named() {
        let fault = |text: &str| {
            let file = config(text);
            let error = with(&["--config", file.path().to_str().unwrap()], &[]).unwrap_err();
            error.to_string().split_once(".toml:").unwrap().1.to_owned()
        };
        assert_eq!(
            fault("sample_step = 4"),
            "1:1: key sample_step is no flag of generate; did you mean `sample-steps`?"
        );
        assert_eq!(
            fault("a = 1\nb ="),
            "2:4: string values must be quoted, expected literal string"
        );
        assert_eq!(
            fault("json = 3"),
            "1:8: key json wants true or false, got integer"
        );
        assert_eq!(
            fault("size = [1]"),
            "1:8: key size wants a string, a number or a boolean, got array"
        );
        assert!(fault("config = 'x'").starts_with("1:1: key config is no flag"));
        let missing = with(&["--config", "no.toml"], &[]).unwrap_err();
        assert_eq!(missing.kind(), engines::error_kind::ErrorKind::Input);
        let unknown = with(&["--preset", "quik-preview"], &[]).unwrap_err();
        assert!(
            unknown
                .to_string()
                .contains("did you mean `quick-preview`?"),
            "{unknown}"
        );
        let switch = with(&[], &[("AVATAR_JSON", "maybe")]).unwrap_err();
        assert_eq!(
            switch.to_string(),
            "AVATAR_JSON: --json is a switch, so 1 or 0 is wanted, got `maybe`"
        );
    }

    #[test]
    fn a_variable_that_names_no_flag_is_told_and_an_empty_one_is_not_there() {
        let all = with(
            &[],
            &[
                ("AVATAR_SAMPLE_STEP", "4"),
                ("AVATAR_CRF", ""),
                ("AVATAR_RUN", "x"),
            ],
        )
        .unwrap();
        assert_eq!(all.args.len(), 2);
        assert_eq!(
            all.notices,
            [
                "AVATAR_SAMPLE_STEP names no flag of generate and has no effect; did you mean AVATAR_SAMPLE_STEPS?"
            ]
        );
        let plan = layered(
            words(&["avatar-run", "plan"]),
            [("AVATAR_CRF".into(), "1".into())],
        );
        assert_eq!(plan.unwrap().args, words(&["avatar-run", "plan"]));
    }
}
