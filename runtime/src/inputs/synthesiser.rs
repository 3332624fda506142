//! Lets a program of the user speak the words of the video.
//!
//! The command is split into words once, by the rules of a shell's quotes, and `{out}` and `{text}`
//! are put into the words. No shell runs, so nothing in a text can be a command.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use engines::cancel::Cancel;
use engines::error_kind::ErrorKind;

/// Place of the file to write.
const OUT: &str = "{out}";
/// Place of the words.
const TEXT: &str = "{text}";
/// Time between two looks at the program.
const PAUSE: Duration = Duration::from_millis(10);
/// Most bytes of the program's messages that an error shows.
const MOST_MESSAGE: usize = 2000;

/// A reason why nothing was spoken.
#[derive(Debug, thiserror::Error)]
pub enum SynthesiserError {
    /// The command cannot be split into words.
    #[error("tts_command `{command}`: a quote or a backslash is not closed")]
    Quotes {
        /// The command.
        command: String,
    },
    /// A place for the file or the words is missing.
    #[error(
        "tts_command `{command}`: wants {missing} among its words, as in \
         'espeak-ng -w {{out}} -- {{text}}'"
    )]
    Place {
        /// The command.
        command: String,
        /// The place.
        missing: &'static str,
    },
    /// There are no words.
    #[error("text wants words to speak, got none")]
    NoText,
    /// The words would be taken for a flag.
    #[error(
        "text `{text}` begins with `-`, which {program} may take for a flag; put `--` before \
         {{text}} in tts_command where the program knows it, or begin with a letter"
    )]
    Flag {
        /// The words.
        text: String,
        /// The program.
        program: String,
    },
    /// The program does not start.
    #[error("tts_command: cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// Answer of the system.
        source: std::io::Error,
    },
    /// The program failed.
    #[error("tts_command: {program} ended with {status}{}", said(message))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        message: String,
    },
    /// The program wrote nothing.
    #[error(
        "tts_command: {program} ended well and wrote no sound to {}{}",
        path.display(), said(message)
    )]
    Silent {
        /// The program.
        program: String,
        /// The file that it was to write.
        path: PathBuf,
        /// What it wrote to standard error.
        message: String,
    },
    /// The temporary folder cannot be used.
    #[error("cannot make a temporary folder for the speech: {source}")]
    Folder {
        /// Answer of the system.
        source: std::io::Error,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

fn said(message: &str) -> String {
    match message.trim() {
        "" => String::new(),
        message => format!(", and said: {}", message.replace('\n', "; ")),
    }
}

impl SynthesiserError {
    /// Returns `Usage` for a malformed command or text, `Resources` where the program or a disk is
    /// missing, and `Input` where the program cannot speak the words.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Quotes { .. } | Self::Place { .. } | Self::NoText | Self::Flag { .. } => {
                ErrorKind::Usage
            }
            Self::Start { .. } | Self::Folder { .. } => ErrorKind::Resources,
            Self::Failed { .. } | Self::Silent { .. } => ErrorKind::Input,
            Self::Interrupted => ErrorKind::Interrupted,
        }
    }
}

/// A command that speaks a text into a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthesiser {
    program: String,
    words: Vec<String>,
}

impl FromStr for Synthesiser {
    type Err = SynthesiserError;

    fn from_str(command: &str) -> Result<Self, SynthesiserError> {
        let mut words = shlex::split(command).ok_or_else(|| SynthesiserError::Quotes {
            command: command.to_owned(),
        })?;
        for missing in [OUT, TEXT] {
            if !words.iter().skip(1).any(|word| word.contains(missing)) {
                return Err(SynthesiserError::Place {
                    command: command.to_owned(),
                    missing,
                });
            }
        }
        let program = words.remove(0);
        Ok(Self { program, words })
    }
}

/// Speech in a temporary file, which goes with this value.
#[derive(Debug)]
pub struct Spoken {
    folder: tempfile::TempDir,
}

impl Spoken {
    /// Returns the path of the sound.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("speech.wav")
    }
}

impl Synthesiser {
    /// Refuses words that the command cannot be given.
    ///
    /// # Errors
    /// [`SynthesiserError::NoText`], [`SynthesiserError::Flag`].
    pub fn check(&self, text: &str) -> Result<(), SynthesiserError> {
        if text.trim().is_empty() {
            return Err(SynthesiserError::NoText);
        }
        let bare = self.words.iter().position(|word| word.starts_with(TEXT));
        let closed = |at: usize| self.words[..at].iter().any(|word| word == "--");
        if text.starts_with('-') && bare.is_some_and(|at| !closed(at)) {
            return Err(SynthesiserError::Flag {
                text: text.to_owned(),
                program: self.program.clone(),
            });
        }
        Ok(())
    }

    /// Speaks `text`, and waits for the program. A request to stop ends it.
    ///
    /// # Errors
    /// The words cannot be given, or the program does not start, fails or writes nothing.
    pub fn speak(&self, text: &str, cancel: &Cancel) -> Result<Spoken, SynthesiserError> {
        self.check(text)?;
        let folder = tempfile::tempdir().map_err(|source| SynthesiserError::Folder { source })?;
        let spoken = Spoken { folder };
        let path = spoken.path();
        let mut child = self.start(text, &path)?;
        let messages = child
            .stderr
            .take()
            .map(|pipe| thread::spawn(|| last_of(pipe)));
        let ended = wait(&mut child, cancel);
        if cancel.is_cancelled() {
            return Err(SynthesiserError::Interrupted);
        }
        let (program, message) = (self.program.clone(), messages.map(thread::JoinHandle::join));
        let message = message.and_then(Result::ok).unwrap_or_default();
        let status = match ended {
            Ok(status) => status,
            Err(source) => return Err(SynthesiserError::Start { program, source }),
        };
        if !status.success() {
            return Err(SynthesiserError::Failed {
                program,
                status,
                message,
            });
        }
        if std::fs::metadata(&path).map_or(0, |facts| facts.len()) == 0 {
            return Err(SynthesiserError::Silent {
                program,
                path,
                message,
            });
        }
        Ok(spoken)
    }

    fn start(&self, text: &str, out: &Path) -> Result<Child, SynthesiserError> {
        let out = out.to_string_lossy();
        let word = |word: &String| filled(word, &out, text);
        Command::new(&self.program)
            .args(self.words.iter().map(word))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| SynthesiserError::Start {
                program: self.program.clone(),
                source,
            })
    }
}

/// Puts the path and the words into one word of the command. Places in the words stay as they are.
fn filled(word: &str, out: &str, text: &str) -> String {
    let parts = word.split(TEXT).map(|part| part.replace(OUT, out));
    parts.collect::<Vec<_>>().join(text)
}

/// Waits for a program, and ends it when a stop is asked for.
fn wait(child: &mut Child, cancel: &Cancel) -> std::io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if cancel.is_cancelled() {
            child.kill()?;
        }
        thread::sleep(PAUSE);
    }
}

/// Reads messages to their end, and keeps the last of them.
fn last_of(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut part) {
        bytes.extend_from_slice(&part[..n]);
        let over = bytes.len().saturating_sub(MOST_MESSAGE);
        bytes.drain(..over);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speak(command: &str, text: &str) -> Result<String, String> {
        let synthesiser: Synthesiser = command
            .parse()
            .map_err(|e: SynthesiserError| e.to_string())?;
        let spoken = synthesiser.speak(text, &Cancel::default());
        let spoken = spoken.map_err(|e| e.to_string())?;
        Ok(std::fs::read_to_string(spoken.path()).unwrap())
    }

    /// A program that writes its second argument to the file that its first one names.
    const WRITE: &str = r#"sh -c 'printf "%s" "$2" > "$1"' sh {out} {text}"#;

    #[test]
    fn words_reach_the_program_as_they_are() {
        for text in [
            "Hello.",
            "$(rm -rf x); `id` 'a' \"b\" \\ \n {out} {text}",
            "-v -w",
        ] {
            let command = if text.starts_with('-') {
                WRITE.replace("sh {out}", "sh {out} --").replace("$2", "$3")
            } else {
                WRITE.to_owned()
            };
            assert_eq!(speak(&command, text).as_deref(), Ok(text));
        }
        let inside = r#"sh -c 'printf "%s" "$1" > "$2"' sh '<{out}|{text}>' {out}"#;
        let said = speak(inside, "x").unwrap();
        assert!(said.ends_with("speech.wav|x>"), "{said}");
    }

    #[test]
    fn a_command_that_cannot_speak_is_refused_with_the_reason() {
        for (command, text, want) in [
            ("say '{out} {text}", "a", "is not closed"),
            ("say {text}", "a", "wants {out} among its words"),
            ("{out} {text}", "a", "wants {out} among its words"),
            ("say {out}", "a", "wants {text} among its words"),
            ("say {out} {text}", " \n", "wants words to speak"),
            (
                "say {out} {text}",
                "-q",
                "begins with `-`, which say may take",
            ),
            (
                "/no/such/program {out} {text}",
                "a",
                "cannot start /no/such/program: No such file",
            ),
            (
                "sh -c 'echo no voice >&2; exit 3' {out} {text}",
                "a",
                "exit status: 3, and said: no voice",
            ),
            ("sh -c 'kill -9 $$' {out} {text}", "a", "signal: 9"),
            ("true {out} {text}", "a", "wrote no sound"),
        ] {
            let error = speak(command, text).unwrap_err();
            assert!(error.contains(want), "{command}: {error}");
        }
    }

    #[test]
    fn long_messages_do_not_block_and_a_stop_ends_the_program() {
        let noisy = r#"sh -c 'yes no | head -c 300000 >&2; exit 1' {out} {text}"#;
        assert!(speak(noisy, "a").unwrap_err().len() < 9000);
        let cancel = Cancel::default();
        cancel.cancel();
        let slow: Synthesiser = "sh -c 'exec sleep 60' {out} {text}".parse().unwrap();
        let begun = std::time::Instant::now();
        assert!(matches!(
            slow.speak("a", &cancel),
            Err(SynthesiserError::Interrupted)
        ));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
