//! `avatar-run`: a shell over the library.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use engines::console;
use engines::error_kind::ErrorKind;
use engines::signals;
use runtime::chain::Cancel;
use runtime::commands;
use runtime::commands::Error;
use runtime::commands::{Cli, Style, as_typed, complaint, layered};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let refuse = |text: &str, kind: ErrorKind| {
        console::complain(format_args!("error: {}", as_typed(text, &args)));
        ExitCode::from(kind.code())
    };
    let layered = match layered(args.clone(), std::env::vars_os()) {
        Ok(layered) => layered,
        Err(error) => return refuse(&error.to_string(), error.kind()),
    };
    let cli = match Cli::read(layered.args.iter().cloned()) {
        Ok(cli) => cli,
        Err(error) => match complaint(&error) {
            Some(text) => return refuse(&layered.with_origin(text), ErrorKind::Usage),
            None => error.exit(),
        },
    };
    cli.log.start();
    for notice in &layered.notices {
        console::tell(notice);
    }
    signals::prepare();
    let style = commands::style(&cli);
    let cancel = Cancel::default();
    let result = listen(&cancel, style, commands::grace(&cli))
        .and_then(|()| commands::run(&cli, &layered, style, &cancel));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.kind().code();
            commands::failed(style, &as_typed(&error.to_string(), &args), code);
            ExitCode::from(code)
        }
    }
}

/// The first signal asks the command to stop, the second ends the process. A command that gets a
/// time of grace is ended after it.
fn listen(cancel: &Cancel, style: Style, grace: Option<Duration>) -> Result<(), Error> {
    let cancel = cancel.clone();
    let code = ErrorKind::Interrupted.code();
    ctrlc::set_handler(move || {
        if cancel.is_cancelled() {
            signals::end(ErrorKind::Interrupted);
        }
        console::tell("stopping; press Ctrl-C again to stop at once");
        cancel.cancel();
        let Some(grace) = grace else { return };
        std::thread::spawn(move || {
            std::thread::sleep(grace);
            commands::failed(style, &Error::Interrupted.to_string(), code);
            signals::end(ErrorKind::Interrupted);
        });
    })
    .map_err(|e| Error::Signal {
        reason: e.to_string(),
    })
}
