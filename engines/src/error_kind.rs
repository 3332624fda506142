//! Kinds of failure, one list for every binary. A caller acts on the kind; a process returns it as
//! its exit code.

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
