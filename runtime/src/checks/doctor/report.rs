//! The report on a machine: lines with a state and a remedy, for people and for programs.

use std::fmt;

use engines::error_kind::ErrorKind;

/// The state of one part of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// The part works.
    Ok,
    /// Videos can be made, with a drawback.
    Warning,
    /// The part keeps a video from being made.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Line {
    /// The part of the machine.
    pub subject: String,
    /// Its state.
    pub level: Level,
    /// The facts, or the fault.
    pub text: String,
    /// What to do about a fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The kind of an error.
    #[serde(skip)]
    pub(super) kind: Option<ErrorKind>,
}

impl Line {
    pub(super) fn ok(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            level: Level::Ok,
            text: text.into(),
            remedy: None,
            kind: None,
        }
    }

    pub(super) fn warning(
        subject: impl Into<String>,
        text: impl Into<String>,
        remedy: &str,
    ) -> Self {
        Self {
            level: Level::Warning,
            remedy: Some(remedy.to_owned()),
            ..Self::ok(subject, text)
        }
    }

    pub(super) fn error(
        subject: impl Into<String>,
        text: impl Into<String>,
        remedy: &str,
        kind: ErrorKind,
    ) -> Self {
        Self {
            level: Level::Error,
            kind: Some(kind),
            ..Self::warning(subject, text, remedy)
        }
    }
}

/// The state of a machine.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Report {
    /// Version of the program.
    pub version: &'static str,
    /// Lines with an error.
    pub errors: usize,
    /// Lines with a warning.
    pub warnings: usize,
    /// The parts of the machine.
    pub lines: Vec<Line>,
}

/// A machine that cannot make a video.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subjects}: this machine cannot make a video until that is mended")]
pub struct Ill {
    /// The parts with an error.
    pub subjects: String,
    /// The kind of the first error.
    pub kind: ErrorKind,
}

impl Report {
    pub(super) fn of(lines: Vec<Line>) -> Self {
        let count = |level| lines.iter().filter(|l| l.level == level).count();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            errors: count(Level::Error),
            warnings: count(Level::Warning),
            lines,
        }
    }

    /// Fails if any line is an error.
    ///
    /// # Errors
    /// [`Ill`] with the kind of the first error.
    pub(crate) fn verdict(&self) -> Result<(), Ill> {
        let ill = || self.lines.iter().filter(|l| l.level == Level::Error);
        let subjects: Vec<&str> = ill().map(|l| l.subject.as_str()).collect();
        match ill().find_map(|l| l.kind) {
            None => Ok(()),
            Some(kind) => Err(Ill {
                subjects: subjects.join(", "),
                kind,
            }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .lines
            .iter()
            .map(|l| l.subject.len())
            .max()
            .unwrap_or(0);
        for line in &self.lines {
            let Line {
                level,
                subject,
                text,
                ..
            } = line;
            writeln!(f, "{level:<8} {subject:<width$}  {text}")?;
            if let Some(remedy) = &line.remedy {
                writeln!(f, "{:8} {:width$}  -> {remedy}", "", "")?;
            }
        }
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let (errors, warnings) = (self.errors, self.warnings);
        write!(
            f,
            "{errors} error{}, {warnings} warning{}",
            plural(errors),
            plural(warnings)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_decides_the_exit_code_and_a_warning_does_not() {
        let warning = Line::warning("disk", "3 GB free", "free some room");
        let error = |subject, kind| Line::error(subject, "is missing", "install it", kind);
        let well = Report::of(vec![Line::ok("driver", "580"), warning.clone()]);
        assert_eq!((well.errors, well.warnings, well.verdict()), (0, 1, Ok(())));
        let ill = Report::of(vec![
            warning,
            error("models", ErrorKind::Model),
            error("libx264", ErrorKind::Resources),
        ]);
        let verdict = ill.verdict().unwrap_err();
        assert_eq!(verdict.kind, ErrorKind::Model);
        assert!(verdict.to_string().starts_with("models, libx264: "));
        let text = ill.to_string();
        assert!(
            text.contains("warning  disk     3 GB free\n                  -> free some room\n"),
            "{text}"
        );
        assert!(text.ends_with("2 errors, 1 warning"), "{text}");
    }

    #[test]
    fn a_line_is_a_flat_object_and_has_a_remedy_only_for_a_fault() {
        let json = |line: &Line| serde_json::to_string(line).unwrap();
        assert_eq!(
            json(&Line::ok("driver", "580")),
            r#"{"subject":"driver","level":"ok","text":"580"}"#
        );
        assert_eq!(
            json(&Line::warning("disk", "full", "free some")),
            r#"{"subject":"disk","level":"warning","text":"full","remedy":"free some"}"#
        );
    }
}
