//! Logs of a process: what it opens, decides and calls, on standard error. Without a wish there are
//! only warnings, so that nothing stands between the lines of the progress.

use std::io;

pub use tracing_subscriber::filter::LevelFilter;

/// Form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Words for people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbosity {
    /// 1 tells what is opened and decided, 2 also every call of a component.
    pub verbose: u8,
    /// Only errors.
    pub quiet: bool,
}

impl Verbosity {
    /// Returns the least important level that is told.
    pub fn level(self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        }
    }
}

/// Starts the logs of this process. A second call changes nothing.
pub fn start(verbosity: Verbosity, format: Format) {
    let logs = tracing_subscriber::fmt()
        .with_max_level(verbosity.level())
        .with_writer(io::stderr);
    // Only a process that has logs already refuses others.
    let _started = match format {
        Format::Text => logs.try_init(),
        Format::Json => logs.json().flatten_event(true).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_told_for_each_flag_and_quiet_wins() {
        let level = |verbose, quiet| Verbosity { verbose, quiet }.level();
        assert_eq!(level(0, false), LevelFilter::WARN);
        assert_eq!(level(1, false), LevelFilter::INFO);
        assert_eq!(level(2, false), LevelFilter::DEBUG);
        assert_eq!(level(9, false), LevelFilter::TRACE);
        assert_eq!(level(2, true), LevelFilter::ERROR);
    }
}
