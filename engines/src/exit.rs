//! Process exit codes, one list for every binary.

/// What a failed command tells its caller. Documented in `README.md`; the numbers never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A control run's fault went unnoticed: the check proves nothing.
    Unproven = 1,
    /// A flag or its value is malformed.
    Usage = 2,
    /// A picture, speech file, prompt, replay file or output path cannot be used.
    Input = 3,
    /// A checkpoint, export or engine is missing, damaged or does not fit its contract.
    Model = 4,
    /// Memory, disk or a device is exhausted or absent.
    Resources = 5,
    /// Stopped by a signal; what was written is playable.
    Interrupted = 6,
    /// Numbers differ from the golden ones.
    Verification = 7,
}

impl Exit {
    /// The process status.
    pub fn code(self) -> u8 {
        self as u8
    }
}
