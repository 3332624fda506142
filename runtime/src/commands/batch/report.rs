//! What became of the videos of a batch: a line for each, and the exit code.

use std::fmt::Write as _;
use std::path::PathBuf;

use engines::console;
use serde_json::json;

use crate::chain::events::Summary;
use crate::commands::batch::list::Item;
use crate::commands::error::Error;
use crate::commands::print::print;
use crate::commands::progress::{Style, to_stdout};

/// What became of one video.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The batch ended before it was made.
    Waiting,
    /// It is made.
    Done(Box<Summary>),
    /// An earlier run made it.
    Skipped,
    /// It is not made.
    Failed(Error),
}

/// What became of all videos, in the order of the list.
pub(super) struct Report(Vec<Row>);

struct Row {
    video: PathBuf,
    place: String,
    outcome: Outcome,
}

impl Report {
    pub(super) fn of(items: &[Item]) -> Self {
        let row = |item: &Item| Row {
            video: item.video.clone(),
            place: item.told(),
            outcome: Outcome::Waiting,
        };
        Self(items.iter().map(row).collect())
    }

    pub(super) fn end(&mut self, at: usize, outcome: Outcome) {
        self.0[at].outcome = outcome;
    }

    /// Tells of one video that has ended.
    pub(super) fn tell(&self, at: usize, style: Style) {
        let row = &self.0[at];
        match style {
            Style::Json => to_stdout(&row.object().to_string()),
            _ if !matches!(row.outcome, Outcome::Waiting) => console::tell(row.line()),
            _ => {}
        }
    }

    /// Prints the table, or its counts as an object.
    pub(super) fn show(&self, style: Style) -> Result<(), Error> {
        let [done, skipped, failed, waiting] = self.counts();
        if style == Style::Json {
            let all = self.0.len();
            let counts = json!({
                "event": "batch", "videos": all, "done": done, "skipped": skipped,
                "failed": failed, "not_begun": waiting,
            });
            return print(&counts.to_string());
        }
        let mut text = String::from("\n");
        for row in &self.0 {
            let _ = writeln!(text, "{}", row.line());
        }
        let _ = write!(
            text,
            "{} of {} videos are there: {done} made, {skipped} there before; {failed} failed",
            done + skipped,
            self.0.len()
        );
        if waiting > 0 {
            let _ = write!(text, ", {waiting} not made");
        }
        print(&text)
    }

    fn counts(&self) -> [usize; 4] {
        let count = |is: fn(&Outcome) -> bool| self.0.iter().filter(|r| is(&r.outcome)).count();
        [
            count(|o| matches!(o, Outcome::Done(_))),
            count(|o| matches!(o, Outcome::Skipped)),
            count(|o| matches!(o, Outcome::Failed(_))),
            count(|o| matches!(o, Outcome::Waiting)),
        ]
    }

    /// Ends the batch.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first video that failed.
    pub(super) fn verdict(self) -> Result<(), Error> {
        let ([_, _, failed, _], all) = (self.counts(), self.0.len());
        let first = self.0.into_iter().find_map(|row| match row.outcome {
            Outcome::Failed(error) => Some((row.video, error)),
            _ => None,
        });
        match first {
            None => Ok(()),
            Some((item, error)) => Err(Error::Batch {
                failed,
                all,
                item,
                first: Box::new(error),
            }),
        }
    }
}

impl Row {
    fn line(&self) -> String {
        let video = self.video.display();
        match &self.outcome {
            Outcome::Waiting => format!("- {video}: not made"),
            Outcome::Skipped => format!("✓ {video}: there before, nothing changed"),
            Outcome::Failed(error) => {
                let (place, code) = (&self.place, error.kind().code());
                format!("✗ {video} ({place}): {error} (exit {code})")
            }
            Outcome::Done(s) => format!(
                "✓ {video}: {:.2} s in {:.1} s; opening {:.1} s, first frames after {:.1} s",
                s.video_seconds, s.wall_seconds, s.opening_seconds, s.first_frame_seconds
            ),
        }
    }

    fn object(&self) -> serde_json::Value {
        let state = match &self.outcome {
            Outcome::Waiting => "not_begun",
            Outcome::Done(_) => "done",
            Outcome::Skipped => "skipped",
            Outcome::Failed(_) => "failed",
        };
        let mut object = json!({
            "event": "item", "item": self.video.display().to_string(),
            "from": self.place, "state": state,
        });
        if let Outcome::Failed(error) = &self.outcome {
            object["message"] = error.to_string().into();
            object["exit"] = error.kind().code().into();
        }
        object
    }
}
