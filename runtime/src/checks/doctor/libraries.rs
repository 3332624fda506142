//! ONNX Runtime, CUDA, TensorRT and FFmpeg, each loaded as a run loads it.

use engines::error_kind::ErrorKind;
use engines::installed::{self, Found};

use super::report::Line;
use crate::media::encoders;

/// Checks every library. CUDA's matter only where there are GPUs.
pub(super) fn lines(gpus: bool) -> Vec<Line> {
    let mut lines = vec![onnx_runtime()];
    if gpus {
        lines.push(cuda());
    }
    lines.extend(tensorrt(gpus));
    lines.push(ffmpeg());
    lines.extend(encoders::NEEDED.map(|name| needed(name, encoders::usable(name))));
    let others = encoders::OTHERS.map(|name| (name, encoders::usable(name)));
    lines.extend(other(&others));
    lines
}

fn words(found: &Found) -> String {
    match &found.path {
        Some(path) => format!("{}, {}", found.version, path.display()),
        None => found.version.clone(),
    }
}

fn onnx_runtime() -> Line {
    match installed::onnx_runtime() {
        Ok(found) => Line::ok("ONNX Runtime", words(&found)),
        Err(error) => {
            let remedy = "run `scripts/setup`, or name the library by ORT_DYLIB_PATH";
            Line::error("ONNX Runtime", error.to_string(), remedy, error.kind())
        }
    }
}

fn cuda() -> Line {
    match installed::onnx_runtime_cuda() {
        Ok(found) => Line::ok("CUDA provider", words(&found)),
        Err(error) => {
            let remedy = "run `scripts/setup --cuda`; until then the CPU computes";
            Line::warning("CUDA provider", error.to_string(), remedy)
        }
    }
}

fn tensorrt(gpus: bool) -> Option<Line> {
    let (flavour, found) = installed::tensorrt()?;
    let subject = flavour.name();
    Some(match found {
        Ok(found) => Line::ok(subject, words(&found)),
        Err(error) if gpus => {
            let remedy = "--engines cannot be used until then; ONNX Runtime runs the graphs";
            Line::warning(subject, error.to_string(), remedy)
        }
        Err(error) => Line::ok(subject, format!("not usable, and not needed here: {error}")),
    })
}

fn ffmpeg() -> Line {
    match cfg!(feature = "media") {
        true => Line::ok("FFmpeg", encoders::version()),
        false => Line::error(
            "FFmpeg",
            encoders::version(),
            "use a program built with the feature `media`",
            ErrorKind::Resources,
        ),
    }
}

fn needed(name: &str, usable: Result<(), String>) -> Line {
    match usable {
        Ok(()) => Line::ok(name, "is there"),
        Err(reason) => Line::error(
            name,
            reason,
            "install an FFmpeg that has this encoder (Debian's has it)",
            ErrorKind::Resources,
        ),
    }
}

/// Lists the encoders that no video needs, in one line.
fn other(tried: &[(&str, Result<(), String>)]) -> Option<Line> {
    let words = |(name, usable): &(&str, Result<(), String>)| match usable {
        Ok(()) => format!("{name} is there"),
        Err(reason) => format!("{name}: {reason}"),
    };
    let all: Vec<String> = tried.iter().map(words).collect();
    (!all.is_empty()).then(|| Line::ok("other encoders", all.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn a_needed_encoder_is_an_error_where_it_is_missing_and_others_are_not() {
        let missing = || Err("FFmpeg was built without it".to_owned());
        assert_eq!(needed("libx264", Ok(())).level, Level::Ok);
        let line = needed("libx264", missing());
        assert_eq!(
            (line.level, line.kind),
            (Level::Error, Some(ErrorKind::Resources))
        );
        let line = other(&[("libx265", Ok(())), ("h264_nvenc", missing())]).unwrap();
        assert_eq!(line.level, Level::Ok);
        assert_eq!(
            line.text,
            "libx265 is there; h264_nvenc: FFmpeg was built without it"
        );
    }
}
