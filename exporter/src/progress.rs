//! Shows an export on standard error: as a bar on a terminal, as a plain line every few seconds
//! elsewhere. A run that ends before the first line is due prints nothing.
use crate::export::{Event, Progress};
use engines::console;
use engines::progress_bar::{ProgressBar, progress_bar};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Time between lines.
const EVERY: Duration = Duration::from_secs(5);
/// Time before the first rate is shown; an earlier rate would jump.
const SETTLED: Duration = Duration::from_millis(200);

/// Shows the events of one export.
pub(crate) struct Screen {
    bar: Option<ProgressBar>,
    phase: Phase,
    /// Start of the phase.
    began: Instant,
    told: Instant,
}

/// A part of an export that has a speed of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Checking,
    Writing,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let began = Instant::now();
        Self {
            bar: (std::io::stderr().is_terminal() && !console::is_quiet()).then(progress_bar),
            phase: Phase::Writing,
            began,
            told: began,
        }
    }

    pub(crate) fn show(&mut self, event: Event<'_>) {
        match (event, &self.bar) {
            (Event::Notice(text), Some(bar)) => {
                bar.suspend(|| console::tell(format_args!("note: {text}")));
            }
            (Event::Notice(text), None) => console::tell(format_args!("note: {text}")),
            (Event::Checking(p), _) => {
                let p = Progress {
                    file: p.file,
                    done: p.done,
                    kept: 0,
                    total: p.total,
                };
                self.advance(Phase::Checking, p);
            }
            (Event::Progress(p), _) => self.advance(Phase::Writing, p),
        }
    }

    fn advance(&mut self, phase: Phase, p: Progress<'_>) {
        if self.phase != phase {
            (self.phase, self.began) = (phase, Instant::now());
        }
        let name = match phase {
            Phase::Checking => "checking ",
            Phase::Writing => "",
        };
        let message = || name.to_owned() + &line(p, self.began.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_length(p.total);
                bar.set_message(message());
                bar.set_position(p.done);
            }
            None if self.told.elapsed() >= EVERY => {
                console::tell(message());
                self.told = Instant::now();
            }
            None => {}
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns the progress line: bytes, speed and remaining time. Bytes of an earlier run do not count
/// for the speed.
fn line(p: Progress<'_>, elapsed: Duration) -> String {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let at = format!("{}: {:.2} of {:.2} GB", p.file, gb(p.done), gb(p.total));
    let kept = if p.kept > 0 {
        format!(" ({:.2} kept)", gb(p.kept))
    } else {
        String::new()
    };
    let written = p.done - p.kept;
    if written == 0 || elapsed < SETTLED {
        return at + &kept;
    }
    let rate = written as f64 / elapsed.as_secs_f64();
    let left = (p.total - p.done) as f64 / rate;
    format!("{at}{kept}, {:.0} MB/s, ETA {left:.0} s", rate / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_place_speed_and_end() {
        let p = Progress {
            file: "dit.data",
            done: 3_000_000_000,
            kept: 0,
            total: 9_000_000_000,
        };
        let continued = Progress {
            kept: 2_000_000_000,
            ..p
        };
        let verified = Progress { kept: p.done, ..p };
        let two = Duration::from_secs(2);
        for (p, elapsed, want) in [
            (p, two, "dit.data: 3.00 of 9.00 GB, 1500 MB/s, ETA 4 s"),
            (p, Duration::ZERO, "dit.data: 3.00 of 9.00 GB"),
            (
                continued,
                two,
                "dit.data: 3.00 of 9.00 GB (2.00 kept), 500 MB/s, ETA 12 s",
            ),
            (verified, two, "dit.data: 3.00 of 9.00 GB (3.00 kept)"),
        ] {
            assert_eq!(line(p, elapsed), want);
        }
    }
}
