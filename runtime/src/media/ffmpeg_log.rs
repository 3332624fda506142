//! What FFmpeg says about a failure. Its error codes are coarse; its log names the cause.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

use ffmpeg_next::{Error, ffi};

thread_local! {
    /// Lines of this thread, while somebody listens.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Longest line that is kept, in bytes.
const LINE: usize = 1024;
/// Most lines that are kept: the first ones name the cause.
const LINES: usize = 2;

/// An error of FFmpeg with the words of its log.
#[derive(Clone, Debug)]
pub(crate) struct Reason {
    source: Error,
    said: Vec<String>,
}

impl From<Error> for Reason {
    fn from(source: Error) -> Self {
        Self {
            source,
            said: Vec::new(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.said.is_empty() {
            true => self.source.fmt(f),
            false => write!(f, "{} ({})", self.said.join("; "), self.source),
        }
    }
}

/// Does `work`, and adds to its error what FFmpeg said on this thread.
///
/// # Errors
/// That of `work`.
pub(crate) fn explained<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Reason> {
    HEARD.set(Some(Vec::new()));
    let result = work();
    let said = HEARD.take().unwrap_or_default();
    result.map_err(|source| Reason { source, said })
}

/// Puts every line of FFmpeg's log where [`explained`] finds it, and nowhere else.
pub(crate) fn hear_all() {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "the wrapper has no function for it")]
    // SAFETY: the callback has the type that the library states, and lives as long as the program.
    unsafe {
        ffi::av_log_set_callback(Some(hear));
    }
}

/// Keeps one message of an error.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "FFmpeg calls it with pointers")]
unsafe extern "C" fn hear(
    class: *mut c_void,
    level: c_int,
    format: *const c_char,
    arguments: *mut ffi::__va_list_tag,
) {
    if level > ffi::AV_LOG_ERROR {
        return;
    }
    // A thread that ends has no place for words any more.
    let _ = HEARD.try_with(|heard| {
        let Ok(mut heard) = heard.try_borrow_mut() else {
            return;
        };
        let Some(lines) = heard.as_mut().filter(|lines| lines.len() < LINES) else {
            return;
        };
        let (mut line, mut prefix) = ([0 as c_char; LINE], 0);
        // SAFETY: FFmpeg gives the arguments of the format, and writes a line of at most so many
        // bytes with a zero at its end.
        let text = unsafe {
            ffi::av_log_format_line2(
                class,
                level,
                format,
                arguments,
                line.as_mut_ptr(),
                LINE as c_int,
                &raw mut prefix,
            );
            CStr::from_ptr(line.as_ptr())
        };
        let text = text.to_string_lossy();
        let text = text.trim().trim_end_matches('.');
        if !text.is_empty() {
            lines.push(text.to_owned());
        }
    });
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::media::ffmpeg;

    #[test]
    fn an_error_has_the_words_of_the_log() {
        ffmpeg::start().unwrap();
        let parse = || ffmpeg_next::filter::Graph::new().parse("nosuch=1");
        let reason = explained(parse).unwrap_err().to_string();
        assert!(reason.contains("No such filter: 'nosuch'"), "{reason}");
        assert_eq!(Reason::from(Error::Eof).to_string(), Error::Eof.to_string());
    }
}
