//! Words that a program speaks before a video is made.

use engines::cancel::Cancel;

use crate::chain::events::{Event, Observer, Phase};
use crate::commands::cli::Generate;
use crate::commands::error::Error;
use crate::commands::progress::Screen;
use crate::generate::ClaimedRequest;
use crate::inputs::synthesiser::Spoken;

/// Lets a program speak the words of a request, if there is one. The file with the sound lives as
/// long as what this returns.
///
/// # Errors
/// The program cannot speak, or a stop was asked for.
pub(super) fn speak(
    args: &Generate,
    claimed: &mut ClaimedRequest,
    screen: &Screen,
    cancel: &Cancel,
) -> Result<Option<Spoken>, Error> {
    let Some((program, words)) = args.speaker() else {
        return Ok(None);
    };
    screen.event(&Event::Phase(Phase::Speaking));
    let spoken = program.speak(words, cancel)?;
    claimed.request.audio = spoken.path();
    Ok(Some(spoken))
}
