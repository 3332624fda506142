//! `avatar-run`: a shell over the library.

use std::process::ExitCode;

use engines::console;
use engines::error_kind::ErrorKind;
use runtime::chain::Cancel;
use runtime::commands;
use runtime::commands::Error;
use runtime::commands::{Cli, complaint};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => match complaint(&error) {
            Some(text) => {
                console::tell(format_args!("error: {text}"));
                return ExitCode::from(ErrorKind::Usage.code());
            }
            None => error.exit(),
        },
    };
    let style = commands::style(&cli);
    let cancel = Cancel::default();
    let result = listen(&cancel).and_then(|()| commands::run(&cli, style, &cancel));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.kind().code();
            commands::failed(style, &error, code);
            ExitCode::from(code)
        }
    }
}

/// The first Ctrl-C asks the run to end after the block at hand, the second ends the process.
fn listen(cancel: &Cancel) -> Result<(), Error> {
    let cancel = cancel.clone();
    ctrlc::set_handler(move || {
        if cancel.cancel() {
            std::process::exit(i32::from(ErrorKind::Interrupted.code()));
        }
        console::tell("stopping after the block at hand; press Ctrl-C again to stop at once");
    })
    .map_err(|e| Error::Signal {
        reason: e.to_string(),
    })
}
