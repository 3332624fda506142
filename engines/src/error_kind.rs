//! Kinds of failure, one list for every binary. A caller acts on the kind; a process returns it as
//! its exit code.

use std::fmt;
use std::io;

/// The kind of a failure, which tells the caller how to react.
///
/// `README.md` documents the exit codes. A number never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorKind {
    /// A control run missed a planted fault: the check proves nothing.
    Unproven = 1,
    /// A flag or its value is malformed.
    Usage = 2,
    /// A picture, speech file, prompt, replay file or output path cannot be used.
    Input = 3,
    /// A checkpoint, export or engine is missing, is damaged or does not fit its contract.
    Model = 4,
    /// Memory, disk or a device is exhausted or absent.
    Resources = 5,
    /// A signal stopped the work. What was written is playable.
    Interrupted = 6,
    /// Numbers differ from the golden ones.
    Verification = 7,
}

impl ErrorKind {
    /// Returns the exit code of a process that fails so. Only a `main` needs it.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// A resource of the system that ran short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// No more files can be opened.
    Files,
    /// Memory.
    Memory,
    /// No more threads can be started.
    Threads,
    /// Room on the disk.
    Disk,
    /// The length that a file may have.
    FileLength,
}

impl Shortage {
    /// Returns the resource that the system reports as exhausted, if it reports one.
    pub fn of(error: &io::Error) -> Option<Self> {
        // ENFILE and EMFILE, which std gives no kind. Both have these numbers on every Unix.
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::Disk),
            io::ErrorKind::FileTooLarge => Some(Self::FileLength),
            io::ErrorKind::OutOfMemory => Some(Self::Memory),
            _ => match error.raw_os_error() {
                Some(ENFILE | EMFILE) => Some(Self::Files),
                _ => None,
            },
        }
    }

    /// Returns the resource that a library's message names as exhausted, if it names one.
    pub fn named_in(message: &str) -> Option<Self> {
        let names = |words: &[&str]| words.iter().any(|w| message.contains(w));
        if names(&["Too many open files", "errno = 24", "errno: 24", "errno 24"]) {
            Some(Self::Files)
        } else if names(&[
            "Failed to allocate",
            "bad_alloc",
            "Cannot allocate memory",
            "errno = 12",
        ]) {
            Some(Self::Memory)
        } else if names(&["pthread_create failed"]) {
            Some(Self::Threads)
        } else {
            None
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "no more files can be opened; raise the limit (`ulimit -n`)",
            Self::Memory => {
                "memory is short; free some, or raise the limit of the process (`ulimit -v`)"
            }
            Self::Threads => {
                "no more threads can be started; raise the limits (`ulimit -v`, `ulimit -u`)"
            }
            Self::Disk => "the disk is full; free some room, or choose another place",
            Self::FileLength => "the file may grow no further; raise the limit (`ulimit -f`)",
        })
    }
}

impl ErrorKind {
    /// Returns [`Self::Resources`] for an error that reports an exhausted resource, and `otherwise`
    /// for every other error.
    pub fn of_io(error: &io::Error, otherwise: Self) -> Self {
        match Shortage::of(error) {
            Some(_) => Self::Resources,
            None => otherwise,
        }
    }
}

/// Returns the system's reason, and for an exhausted resource what to do about it.
pub fn reason(error: &io::Error) -> String {
    match Shortage::of(error) {
        Some(shortage) => format!("{error}: {shortage}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_resource_is_told_from_other_errors() {
        // EMFILE, ENFILE, ENOMEM, ENOSPC, EDQUOT, EFBIG, ENOENT and EACCES of Linux.
        for (number, want) in [
            (24, Some(Shortage::Files)),
            (23, Some(Shortage::Files)),
            (12, Some(Shortage::Memory)),
            (28, Some(Shortage::Disk)),
            (122, Some(Shortage::Disk)),
            (27, Some(Shortage::FileLength)),
            (2, None),
            (13, None),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(Shortage::of(&error), want, "{error}");
            let kind = want.map_or(ErrorKind::Input, |_| ErrorKind::Resources);
            assert_eq!(ErrorKind::of_io(&error, ErrorKind::Input), kind);
            assert_eq!(
                reason(&error).contains("ulimit -n"),
                number == 24 || number == 23
            );
        }
    }

    #[test]
    fn a_librarys_message_names_a_shortage() {
        for (text, want) in [
            ("open failed: Too many open files", Some(Shortage::Files)),
            ("std::bad_alloc", Some(Shortage::Memory)),
            ("mmap: Cannot allocate memory", Some(Shortage::Memory)),
            (
                "pthread_create failed, error code: 11",
                Some(Shortage::Threads),
            ),
            ("Protobuf parsing failed.", None),
        ] {
            assert_eq!(Shortage::named_in(text), want, "{text}");
        }
    }
}
