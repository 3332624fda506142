//! Repeats the run of a run file with the same values, and compares what comes out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checks::diff;
use crate::commands::cli::{Cli, Command, Generate, Replay, complaint};
use crate::commands::error::Error;
use crate::commands::layers::{Flags, Layered, Origin};
use crate::commands::print::print;
use crate::generate::GenerateError;
use crate::generate::run_file::{self, Asked, InputFile, RunFile};

/// Flags that say where results go and not what they are. A replay has its own.
const NOT_REPEATED: [&str; 9] = [
    "config",
    "contact-sheet",
    "json",
    "keep-state",
    "out",
    "overwrite",
    "resume",
    "save-dir",
    "trace",
];
/// Flags whose values are paths, which begin at the folder of the first run.
const PATHS: [&str; 9] = [
    "audio",
    "ckpt-dir",
    "engines",
    "image",
    "lora-path",
    "lora-path-dmd",
    "models",
    "profile",
    "replay",
];

/// Repeats a run. `generate` makes a video.
///
/// # Errors
/// The file is no run file; an input or the model is another one; the video cannot be made;
/// [`Error::NotEqual`] if its frames differ.
pub(super) fn run(
    args: &Replay,
    generate: impl Fn(&Generate, Asked) -> Result<(), Error>,
) -> Result<(), Error> {
    let run = RunFile::read(&args.run).map_err(GenerateError::from)?;
    let changed = changes(&run)?;
    if !changed.is_empty() && !args.changed_inputs {
        return Err(Error::Changed {
            run: args.run.clone(),
            changed: changed.join("; "),
        });
    }
    let video = args.out.clone().unwrap_or_else(|| default_name(&args.run));
    let (repeated, asked) = repeated(args, &run, &video)?;
    generate(&repeated, asked)?;
    let again = RunFile::read(&run_file::path_of(&video)).map_err(GenerateError::from)?;
    let file = run.result.sha256 == again.result.sha256;
    let (was, is) = (&run.result.frames_sha256, &again.result.frames_sha256);
    let frames = file || (was.is_some() && was == is);
    show(args, &run, [frames, file])?;
    if frames {
        return Ok(());
    }
    Err(Error::NotEqual {
        video: video.clone(),
        run: args.run.clone(),
        what: first_difference(&run.video(&args.run), &video),
    })
}

fn show(args: &Replay, run: &RunFile, [frames, file]: [bool; 2]) -> Result<(), Error> {
    if args.json {
        let object = json!({"event": "replay", "frames_equal": frames, "file_equal": file});
        return print(&object.to_string());
    }
    let count = run.result.frames;
    match (frames, file) {
        (true, true) => print(&format!(
            "equal: all {count} frames, and the file byte for byte"
        )),
        (true, false) => print(&format!(
            "equal: all {count} frames before they are encoded; the file has other bytes, because \
             {} and another build of FFmpeg, or other settings of the encoder, made it",
            run.program
        )),
        (false, _) => Ok(()),
    }
}

/// Returns `x-replay.mp4` beside `x.run.json`.
fn default_name(run: &Path) -> PathBuf {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".run.json").unwrap_or(&name);
    run.with_file_name(format!("{stem}-replay.mp4"))
}

/// Returns what is another file now than it was at the run.
fn changes(run: &RunFile) -> Result<Vec<String>, Error> {
    let mut changed = Vec::new();
    for (flag, was) in &run.inputs {
        let path = was.path.display();
        let Some(hash) = &was.sha256 else {
            changed.push(format!("--{flag} {path} was a pipe, whose bytes are gone"));
            continue;
        };
        let is = InputFile::of(&was.path);
        let is = is.map_err(|source| Error::NoInput {
            flag: format!("--{flag}"),
            path: was.path.clone(),
            source,
        })?;
        if is.sha256.as_ref() != Some(hash) {
            let is = is.sha256.as_deref().unwrap_or("none");
            changed.push(format!("--{flag} {path} had SHA-256 {hash}, and has {is}"));
        }
    }
    let (folder, was) = (&run.models.path, &run.models.manifest_sha256);
    let is = run_file::manifest_hash(folder).map_err(|source| Error::NoInput {
        flag: "--models".to_owned(),
        path: folder.clone(),
        source,
    })?;
    if is != *was {
        let folder = folder.display();
        changed.push(format!(
            "--models {folder} had a manifest of SHA-256 {was}, and has {is}"
        ));
    }
    Ok(changed)
}

/// Returns the flags of the run, with another name for the video.
fn repeated(args: &Replay, run: &RunFile, video: &Path) -> Result<(Generate, Asked), Error> {
    let flags = Flags::new();
    let (mut given, mut defaults) = (Vec::new(), Vec::new());
    for (flag, value) in &run.values {
        if NOT_REPEATED.contains(&flag.as_str()) {
            continue;
        }
        if flags.get(flag).is_none() {
            let (file, program) = (args.run.display(), &run.program);
            return Err(Error::Usage(format!(
                "{file}: values: --{flag} is no flag of this program; {program} made the file"
            )));
        }
        let words = words(run, flag, &value.value);
        match value.from.as_str() {
            "default" => defaults.push((flag, &value.value, words)),
            _ => given.extend(words),
        }
    }
    let mut line: Vec<OsString> = ["avatar-run", "generate"].map(OsString::from).into();
    line.extend(given);
    line.push(joined("out", video.as_os_str()));
    if args.existing.overwrite {
        line.push("--overwrite".into());
    }
    let (_, asked) = read(args, line.clone())?;
    // A default is repeated only where this program has another one: some flags exclude each other
    // once they are given.
    for (flag, value, words) in defaults {
        if asked.values.get(flag).is_none_or(|now| now.value != *value) {
            line.extend(words);
        }
    }
    read(args, line)
}

fn joined(flag: &str, value: &std::ffi::OsStr) -> OsString {
    let mut word = OsString::from(format!("--{flag}="));
    word.push(value);
    word
}

/// Returns a flag of the run as words of a command line.
fn words(run: &RunFile, flag: &str, value: &Value) -> Vec<OsString> {
    let one = |text: &str| {
        let here = run.folder.join(text);
        let path = match run.inputs.get(flag) {
            Some(input) => input.path.clone(),
            None if flag == "models" => run.models.path.clone(),
            None if PATHS.contains(&flag) && here.exists() => here,
            None => text.into(),
        };
        joined(flag, path.as_os_str())
    };
    match value {
        // A random seed was chosen at the run.
        Value::String(seed) if flag == "base-seed" && seed.starts_with('-') => {
            vec![one(&run.settings["seed"].to_string())]
        }
        Value::String(text) => vec![one(text)],
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(one).collect(),
        Value::Bool(true) => vec![format!("--{flag}").into()],
        _ => Vec::new(),
    }
}

fn read(args: &Replay, line: Vec<OsString>) -> Result<(Generate, Asked), Error> {
    let file = args.run.display();
    let cli = Cli::read(line.iter().cloned()).map_err(|error| {
        let text = complaint(&error).unwrap_or_else(|| error.to_string());
        Error::Usage(format!("{file}: {text}"))
    })?;
    let Command::Generate(mut generate) = cli.command else {
        return Err(Error::Usage(format!("{file}: wants the run of generate")));
    };
    generate.json = args.json;
    let names = Flags::new().names();
    let origin = |name: String| (name, Origin::Run(args.run.clone()));
    let layered = Layered {
        args: line,
        origins: names.into_iter().map(origin).collect::<BTreeMap<_, _>>(),
        notices: Vec::new(),
    };
    Ok((*generate, layered.asked()?))
}

/// Returns how the new video differs, if the old one is there.
fn first_difference(old: &Path, new: &Path) -> String {
    if !old.exists() {
        return format!("{} is gone, so nothing tells where", old.display());
    }
    match diff::diff(old, new).map(|diff| diff.verdict()) {
        Ok(Ok(())) => "no decoded frame differs, only what was encoded".to_owned(),
        Ok(Err(differs)) => differs.what,
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_has_a_name_of_its_own() {
        let name = default_name(Path::new("d/talk.run.json"));
        assert_eq!(name, Path::new("d/talk-replay.mp4"));
    }
}
