//! Claims the files that a command writes, and asks before one is replaced.

use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use engines::cancel::Cancel;
use engines::claims::{ClaimError, Claims, Existing, FilePlan};

use crate::commands::cli::Generate;
use crate::commands::error::Error;
use crate::generate::error::GenerateError;
use crate::generate::{ClaimedRequest, Request};

/// Claims the files of `plan`. Asks on a terminal before it replaces a file.
///
/// # Errors
/// [`Error::Claim`].
pub(super) fn claim(plan: &FilePlan, overwrite: bool, cancel: &Cancel) -> Result<Claims, Error> {
    decided(overwrite, cancel, |existing| Ok(plan.claim(existing)?))
}

/// Claims the files of a video. A video that gets its name from its inputs takes the first free
/// name.
///
/// # Errors
/// [`GenerateError::Claim`]; a name with another ending.
pub(super) fn claim_video(
    args: &Generate,
    request: &Request,
    cancel: &Cancel,
) -> Result<ClaimedRequest, Error> {
    let claim = |video: &Path, existing| claim_as(args, request, video, existing);
    let video = &request.files.video;
    if args.names_video() && !args.existing.overwrite {
        let names = (1..).map(|number| numbered(video, number));
        for name in names {
            match claim(&name, Existing::Keep) {
                Err(error) if is_taken(&error, &name) => {}
                result => return result,
            }
        }
    }
    decided(args.existing.overwrite, cancel, |existing| {
        claim(video, existing)
    })
}

/// Claims the files of a video under a name, and asks nobody.
///
/// # Errors
/// As [`claim_video`].
pub(super) fn claim_as(
    args: &Generate,
    request: &Request,
    video: &Path,
    existing: Existing,
) -> Result<ClaimedRequest, Error> {
    let mut read = vec![("--models", args.models.as_path())];
    let folders = [
        ("--profile", args.profile.as_ref().map(Path::new)),
        ("--engines", args.engines.as_deref()),
    ];
    read.extend(folders.into_iter().filter_map(|(f, p)| Some((f, p?))));
    let mut request = request.clone();
    request.files.video = video.to_owned();
    request.files.existing = existing;
    Ok(request.claim(&read)?)
}

/// Returns `video.mp4` for 1, `video-2.mp4` for 2, and so on.
fn numbered(video: &Path, number: usize) -> PathBuf {
    if number == 1 {
        return video.to_owned();
    }
    let stem = video.file_stem().unwrap_or_default().to_string_lossy();
    let ending = video.extension().unwrap_or_default();
    let name = format!("{stem}-{number}");
    video.with_file_name(name).with_added_extension(ending)
}

/// Says whether the name alone is taken, so that another one may do.
fn is_taken(error: &Error, name: &Path) -> bool {
    match refusal(error) {
        Some(ClaimError::Exists { paths }) => paths.iter().all(|path| path == name),
        Some(ClaimError::Busy { path, .. }) => path == name,
        _ => false,
    }
}

/// Claims as flags say, or else as the user says on a terminal.
fn decided<T>(
    overwrite: bool,
    cancel: &Cancel,
    claim: impl Fn(Existing) -> Result<T, Error>,
) -> Result<T, Error> {
    if overwrite {
        return claim(Existing::Replace);
    }
    let refused = match claim(Existing::Keep) {
        Err(error) => error,
        claimed => return claimed,
    };
    match refusal(&refused) {
        Some(ClaimError::Exists { paths }) if agreed(paths, cancel)? => claim(Existing::Replace),
        _ => Err(refused),
    }
}

fn refusal(error: &Error) -> Option<&ClaimError> {
    match error {
        Error::Claim(error) => Some(error),
        Error::Generate(error) => match &**error {
            GenerateError::Claim(error) => Some(error),
            _ => None,
        },
        _ => None,
    }
}

/// Asks whether files may be replaced, where somebody can answer.
fn agreed(paths: &[PathBuf], cancel: &Cancel) -> Result<bool, Error> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    // A terminal that takes no question gives no answer.
    drop(write!(
        io::stderr(),
        "{}: replace? [y/N] ",
        names.join(", ")
    ));
    let answer = unless_stopped(cancel, || {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let answer = answer.ok_or(Error::Interrupted)?.unwrap_or_default();
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// Runs `work` on a thread of its own. Returns `None` as soon as a stop is asked for; the thread
/// then goes on until the process ends.
///
/// # Panics
/// If `work` panics.
pub(super) fn unless_stopped<T: Send + 'static>(
    cancel: &Cancel,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = mpsc::channel();
    let stopped = done.clone();
    let _watch = cancel.watch(move || drop(stopped.send(None)));
    // Nobody listens any more after a stop.
    thread::spawn(move || drop(done.send(Some(catch_unwind(AssertUnwindSafe(work))))));
    let ended = result.recv().expect("the watch holds the channel open")?;
    Some(ended.unwrap_or_else(|panic| resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_stop_does_not_wait_for_the_work() {
        let cancel = Cancel::default();
        assert_eq!(unless_stopped(&cancel, || 7), Some(7));
        let (begun, other) = (Instant::now(), cancel.clone());
        let minute = Duration::from_secs(60);
        thread::spawn(move || other.cancel());
        assert_eq!(unless_stopped(&cancel, move || thread::sleep(minute)), None);
        assert!(begun.elapsed() < minute / 10);
    }

    #[test]
    fn only_a_clear_yes_replaces() {
        for (answer, yes) in [
            ("y\n", true),
            ("YES\n", true),
            ("\n", false),
            ("", false),
            ("yo\n", false),
        ] {
            assert_eq!(is_yes(answer), yes, "{answer:?}");
        }
    }

    #[test]
    fn free_names_count_from_two() {
        let names = [1, 2, 3].map(|n| numbered(Path::new("d/i.x-a.mp4"), n));
        assert_eq!(
            names,
            ["d/i.x-a.mp4", "d/i.x-a-2.mp4", "d/i.x-a-3.mp4"].map(PathBuf::from)
        );
    }
}
