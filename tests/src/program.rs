//! Runs the two binaries under test as a user runs them, and judges their failures. The environment
//! names the folder of the binaries, or each test process builds them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use engines::error_kind::ErrorKind;

/// Columns of a terminal. The programs wrap their help at them on every machine.
const COLUMNS: &str = "100";

/// A binary of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `avatar-export`.
    Export,
    /// `avatar-run`.
    Run,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Export => "avatar-export",
            Self::Run => "avatar-run",
        }
    }

    /// Returns its path. Builds it first, unless the environment names a folder.
    pub fn path(self) -> PathBuf {
        folder().join(self.name())
    }

    /// Makes a command without terminal, input or colour.
    pub fn command(self) -> Command {
        let mut command = Command::new(self.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("COLUMNS", COLUMNS)
            .env_remove("RUST_BACKTRACE");
        // Settings of the developer's shell are not those of the test.
        let names = std::env::vars_os().map(|(name, _)| name);
        for name in names.filter(|n| n.to_string_lossy().starts_with("AVATAR_")) {
            command.env_remove(name);
        }
        command
    }

    /// Runs the binary to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(self, args: impl IntoIterator<Item = S>) -> Finished {
        self.command()
            .args(args)
            .output()
            .map(Finished::from)
            .expect("a binary that was just built starts")
    }
}

/// Starts `inner` at the end of the line of `outer`, such as a shell that sets a limit. The
/// environment that [`Program::command`] chose goes along, so that a backtrace which the developer
/// asked for does not stand among the words of the program.
pub fn started_by(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Names the folder of binaries that are built already, such as `target/release`.
const PROGRAMS: &str = "LIVEAVATAR_PROGRAMS";

/// Returns the folder of the binaries: the one that the environment names, or the one of this
/// test's profile, where they are built first.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| std::env::var_os(PROGRAMS).map_or_else(built, PathBuf::from))
}

/// Builds the binaries in the profile and target directory of the running test.
fn built() -> PathBuf {
    let profile = profile();
    let target = profile
        .parent()
        .expect("a profile lies in the target directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--bins"])
        .args(["--package", "exporter", "--package", "runtime"])
        .arg("--target-dir")
        .arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo
        .current_dir(crate::golden::workspace())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the binaries under test do not build");
    profile
}

/// Returns `target/PROFILE` of the running test.
pub(crate) fn profile() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its path");
    exe.parent()
        .and_then(Path::parent)
        .expect("a test lies in PROFILE/deps")
        .to_owned()
}

/// The exit code and the output of a finished run.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; `None` when a signal ended the run.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("programs write UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

impl Finished {
    /// Returns the run.
    ///
    /// # Panics
    /// The run failed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// Returns the message of a failed run: the text from its only `error:` on, without clap's
    /// pointer to --help.
    ///
    /// # Panics
    /// The run ended with another exit code, panicked, or printed no or several errors.
    #[track_caller]
    pub fn error(&self, exit: ErrorKind) -> String {
        assert_eq!(
            self.code,
            Some(i32::from(exit.code())),
            "{}{}",
            self.stdout,
            self.stderr
        );
        for word in ["panicked", "RUST_BACKTRACE", "unwrap"] {
            assert!(!self.stderr.contains(word), "{}", self.stderr);
        }
        let errors = self
            .stderr
            .lines()
            .filter(|l| l.starts_with("error: "))
            .count();
        assert_eq!(errors, 1, "wanted one line `error: ...`\n{}", self.stderr);
        let at = self.stderr.find("error: ").unwrap_or_default();
        let message = self.stderr[at + "error: ".len()..]
            .split("\n\nFor more information")
            .next()
            .unwrap_or_default();
        message.trim_end().to_owned()
    }
}

/// A list of cases with their messages, for one snapshot. Names stand for this machine's folders.
#[derive(Default)]
pub struct Transcript {
    text: String,
    names: Vec<(String, &'static str)>,
}

impl Transcript {
    /// Writes `name` for `path` in the messages that follow.
    pub fn naming(mut self, path: &Path, name: &'static str) -> Self {
        self.names.push((path.display().to_string(), name));
        self
    }

    /// Adds one case.
    pub fn add(&mut self, case: &str, exit: ErrorKind, message: &str) {
        let message = self.named(message);
        writeln!(
            self.text,
            "{case} (exit {})\n    {}",
            exit.code(),
            message.replace('\n', "\n    ")
        )
        .expect("a string grows");
    }

    /// Returns `text` without this machine's paths. Also removes the lines of our code that a graph
    /// error names.
    pub fn named(&self, text: &str) -> String {
        let named = self
            .names
            .iter()
            .fold(text.to_owned(), |text, (path, name)| {
                text.replace(path, name)
            });
        let without = |line: &str| {
            line.find(" (exporter/src/")
                .map_or(line, |at| &line[..at])
                .to_owned()
        };
        named
            .split('\n')
            .map(without)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Returns the whole list.
    pub fn text(&self) -> &str {
        &self.text
    }
}
