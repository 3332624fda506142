//! `avatar-export`: flags to a request, a library call, an exit code. See `cli.rs`.
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match exporter::cli::run(exporter::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.kind().code())
        }
    }
}
