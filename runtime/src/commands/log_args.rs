//! `-v`, `-q` and `--log-format`, which every command has.

use clap::{Args, ValueEnum};
use engines::console;
use engines::log::{self, Format, Verbosity};

/// Flags of the logs.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Logs on standard error")]
pub struct LogArgs {
    /// Tell what is opened and decided; -vv tells every call of a component.
    #[arg(short = 'v', long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Tell nothing but errors: no progress and no notices.
    #[arg(short = 'q', long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Form of the lines that -v adds.
    #[arg(
        long = "log-format",
        global = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    /// Returns whether a bar can be drawn: no other line comes, and the user wants to see one.
    pub fn leaves_a_bar(self) -> bool {
        self.verbose == 0 && !self.quiet
    }

    /// Starts the logs of this process.
    pub fn start(self) {
        if self.quiet {
            console::be_quiet();
        }
        let verbosity = Verbosity {
            verbose: self.verbose,
            quiet: self.quiet,
        };
        let format = match self.log_format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        };
        log::start(verbosity, format);
    }
}
