//! Writes to standard output and standard error for every program.
//!
//! A reader may close a pipe early, as `head` does. That is no fault: the rest of the text is
//! dropped, the command finishes its work, and the exit code is the one of the work. `println!`
//! would panic instead.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error_kind::ErrorKind;

/// Standard output that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("standard output: cannot write: {0}")]
pub struct OutputError(pub io::Error);

impl OutputError {
    /// Returns the kind of failure.
    pub fn kind(&self) -> ErrorKind {
        match self.0.kind() {
            io::ErrorKind::StorageFull => ErrorKind::Resources,
            _ => ErrorKind::Input,
        }
    }
}

/// Writes `text` and a line break to standard output.
///
/// # Errors
/// Standard output cannot be written, for example because its disk is full. A reader that closed
/// the pipe is no error.
pub fn print_line(text: impl fmt::Display) -> Result<(), OutputError> {
    write_line(&mut io::stdout().lock(), text).map_err(OutputError)
}

/// Set for good by [`be_quiet`].
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, [`tell`] tells nothing, and no bar is drawn.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Returns whether only errors are told.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes progress or a notice and a line break to standard error, unless the user wants quiet. A
/// failure is ignored: no channel is left that could tell it.
pub fn tell(text: impl fmt::Display) {
    if !is_quiet() {
        complain(text);
    }
}

/// Writes an error and a line break to standard error. A failure is ignored, as that of [`tell`].
pub fn complain(text: impl fmt::Display) {
    drop(write_line(&mut io::stderr().lock(), text));
}

fn write_line(out: &mut impl Write, text: impl fmt::Display) -> io::Result<()> {
    // One write a line: lines of several threads and processes do not mix.
    let line = format!("{text}\n");
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that always fails in one way.
    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_quiet_and_a_full_disk_is_not() {
        let mut whole = Vec::new();
        write_line(&mut whole, "a line").unwrap();
        assert_eq!(whole, b"a line\n");
        write_line(&mut Failing(io::ErrorKind::BrokenPipe), "lost").unwrap();
        let error = write_line(&mut Failing(io::ErrorKind::StorageFull), "lost").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
