//! The program `avatar-export`: it parses flags, calls the library and returns an exit code. See
//! `cli.rs`.
use clap::Parser;
use engines::console;
use std::process::ExitCode;

fn main() -> ExitCode {
    engines::signals::prepare();
    match exporter::cli::run(exporter::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            console::complain(format_args!("error: {error}"));
            ExitCode::from(error.kind().code())
        }
    }
}
