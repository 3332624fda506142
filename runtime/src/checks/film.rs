//! Holds a finished video against the description of its run, or against another video's facts.

use std::fmt;
use std::path::{Path, PathBuf};

use engines::error_kind::{ErrorKind, reason};
use serde_json::Value;

use crate::generate::run_file::sha256_of;
use crate::media::film::Film;
use crate::media::video_facts::{ProbeError, probe};
use crate::media::video_frames::hash_frames;

/// Longest difference between two lengths of sound: a frame of AAC at 16 kHz is 64 ms, and one
/// more frame may begin.
const SOUND_TOLERANCE: f64 = 0.13;
/// Largest difference between two rates.
const RATE_TOLERANCE: f64 = 1e-3;

/// Reads a whole video: its facts, and the hash of its frames.
///
/// # Errors
/// The file cannot be read or decoded.
pub(crate) fn examine(path: &Path) -> Result<Film, ProbeError> {
    let facts = probe(path)?;
    let frames = hash_frames(path)?;
    let (file, _) = sha256_of(path).map_err(|source| ProbeError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(facts.film(frames, file))
}

/// A description that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The file cannot be read.
    #[error("{}: cannot read the description: {}", path.display(), reason(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no JSON.
    #[error("{}: wants the JSON object of a run: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it is none.
        source: serde_json::Error,
    },
    /// A field has another type.
    #[error("{}: field {field}: wants {wanted}, got {got}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Names from the object to the field, with dots.
        field: String,
        /// Its type.
        wanted: &'static str,
        /// Its value.
        got: String,
    },
    /// No field says anything of a video.
    #[error(
        "{}: describes no video: wants `settings` and `result` as a run writes them, or the \
         object of `avatar-run verify-video --json`",
        path.display()
    )]
    Nothing {
        /// The file.
        path: PathBuf,
    },
}

impl DescriptionError {
    /// Returns `Input`, unless the system lacks something.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } => ErrorKind::of_io(source, ErrorKind::Input),
            _ => ErrorKind::Input,
        }
    }
}

/// What a description says of a video. A field that it does not have is not checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Expected {
    size: Option<(usize, usize)>,
    fps: Option<f64>,
    frames: Option<usize>,
    video_seconds: Option<f64>,
    sound_seconds: Option<f64>,
    av_offset_ms: Option<f64>,
    decoded_sha256: Option<String>,
    file_sha256: Option<String>,
}

impl Expected {
    /// Reads the description of a run, or the facts of another video.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub(crate) fn read(path: &Path) -> Result<Self, DescriptionError> {
        let text = std::fs::read_to_string(path).map_err(|source| DescriptionError::Read {
            path: path.to_owned(),
            source,
        })?;
        let value = serde_json::from_str(&text).map_err(|source| DescriptionError::Parse {
            path: path.to_owned(),
            source,
        })?;
        let expected = Self::of(&Fields {
            path,
            value: &value,
        })?;
        if expected == Self::default() {
            return Err(DescriptionError::Nothing {
                path: path.to_owned(),
            });
        }
        Ok(expected)
    }

    fn of(fields: &Fields<'_>) -> Result<Self, DescriptionError> {
        // A run says the length of its recording; the video may end before it.
        let recording = fields.number(&["/result/audio_seconds", "/settings/audio_seconds"])?;
        let video_seconds = fields.number(&[
            "/result/video_seconds",
            "/settings/video_seconds",
            "/video_seconds",
        ])?;
        let heard = recording.map(|r| video_seconds.map_or(r, |v| r.min(v)));
        let width = fields.count(&[
            "/result/effective_size/width",
            "/settings/effective_size/width",
            "/width",
        ])?;
        let height = fields.count(&[
            "/result/effective_size/height",
            "/settings/effective_size/height",
            "/height",
        ])?;
        Ok(Self {
            size: width.zip(height),
            fps: fields.number(&["/result/fps", "/settings/fps", "/fps"])?,
            frames: fields.count(&["/result/frames", "/settings/frames", "/frames"])?,
            video_seconds,
            sound_seconds: fields
                .number(&["/result/sound_seconds", "/sound_seconds"])?
                .or(heard),
            av_offset_ms: fields.number(&["/result/av_offset_ms", "/av_offset_ms"])?,
            decoded_sha256: fields.text(&["/decoded_sha256"])?,
            // A video that was made again in another container has the same frames.
            file_sha256: fields.text(&["/result/sha256"])?,
        })
    }

    /// Compares a video with the description.
    pub(crate) fn compare(&self, film: &Film) -> Vec<Check> {
        let frame = 1.0 / film.fps.max(1.0);
        let near = |what, wanted: Option<f64>, got: f64, most: f64, unit: &str| {
            wanted.map(|wanted| Check {
                what,
                wanted: format!("{wanted:.3}{unit}"),
                got: format!("{got:.3}{unit}"),
                ok: (wanted - got).abs() <= most,
            })
        };
        let sound = film.sound_seconds.unwrap_or(0.0);
        // Without a wish, sound and picture begin within a frame of each other.
        let offset = film.sound_seconds.map(|_| self.av_offset_ms.unwrap_or(0.0));
        let apart = 1000.0 * frame;
        [
            self.size.map(|(width, height)| {
                let got = (film.width, film.height);
                let text = |(w, h): (usize, usize)| format!("{w}*{h}");
                Check::same("size", text((width, height)), text(got))
            }),
            near("fps", self.fps, film.fps, RATE_TOLERANCE, ""),
            self.frames
                .map(|wanted| Check::same("frames", wanted.to_string(), film.frames.to_string())),
            Some(Check::same(
                "decoded frames",
                film.frames.to_string(),
                film.decoded_frames.to_string(),
            )),
            near(
                "video length",
                self.video_seconds,
                film.video_seconds,
                frame / 2.0,
                " s",
            ),
            near(
                "sound length",
                self.sound_seconds,
                sound,
                SOUND_TOLERANCE,
                " s",
            ),
            near("sync", offset, film.av_offset_ms, apart, " ms"),
            self.decoded_sha256
                .as_ref()
                .map(|wanted| Check::same("sha256", wanted.clone(), film.decoded_sha256.clone())),
            self.file_sha256
                .as_ref()
                .map(|wanted| Check::same("file", wanted.clone(), film.file_sha256.clone())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A description, and how its fields are found in it.
struct Fields<'a> {
    path: &'a Path,
    value: &'a Value,
}

impl Fields<'_> {
    /// Returns the first field that is there, as `read` reads it. `null` is not there.
    fn first<T>(
        &self,
        pointers: &[&str],
        wanted: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, DescriptionError> {
        let there = pointers.iter().find_map(|p| {
            let value = self.value.pointer(p).filter(|v| !v.is_null());
            value.map(|v| (*p, v))
        });
        let Some((pointer, value)) = there else {
            return Ok(None);
        };
        let field = || pointer.trim_start_matches('/').replace('/', ".");
        let read = read(value).ok_or_else(|| DescriptionError::Field {
            path: self.path.to_owned(),
            field: field(),
            wanted,
            got: value.to_string(),
        })?;
        Ok(Some(read))
    }

    fn number(&self, pointers: &[&str]) -> Result<Option<f64>, DescriptionError> {
        self.first(pointers, "a number", Value::as_f64)
    }

    fn count(&self, pointers: &[&str]) -> Result<Option<usize>, DescriptionError> {
        let count = |v: &Value| usize::try_from(v.as_u64()?).ok();
        self.first(pointers, "a whole number", count)
    }

    fn text(&self, pointers: &[&str]) -> Result<Option<String>, DescriptionError> {
        self.first(pointers, "a text", |v| v.as_str().map(str::to_owned))
    }
}

/// One fact that was compared.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Check {
    /// The fact.
    what: &'static str,
    /// Value of the description.
    wanted: String,
    /// Value of the video.
    got: String,
    /// Whether they agree.
    ok: bool,
}

impl Check {
    fn same(what: &'static str, wanted: String, got: String) -> Self {
        Self {
            what,
            ok: wanted == got,
            wanted,
            got,
        }
    }
}

/// The facts of a video, and how they compare with a description.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Report {
    /// The video.
    pub(crate) file: PathBuf,
    /// Its facts.
    #[serde(flatten)]
    pub(crate) film: Film,
    /// Compared facts; none without a description.
    pub(crate) checks: Vec<Check>,
}

/// A video that differs from its description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: differs from its description: {differences}", file.display())]
pub struct Differs {
    /// The video.
    pub file: PathBuf,
    /// Every fact that differs.
    pub differences: String,
}

impl Report {
    /// Fails if a fact differs.
    ///
    /// # Errors
    /// [`Differs`] names every such fact.
    pub(crate) fn verdict(&self) -> Result<(), Differs> {
        let wrong = self.checks.iter().filter(|c| !c.ok);
        let words = |c: &Check| format!("{}: wanted {}, got {}", c.what, c.wanted, c.got);
        let differences: Vec<String> = wrong.map(words).collect();
        match differences.is_empty() {
            true => Ok(()),
            false => Err(Differs {
                file: self.file.clone(),
                differences: differences.join("; "),
            }),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.film)?;
        for Check {
            what,
            wanted,
            got,
            ok,
        } in &self.checks
        {
            match ok {
                true => write!(f, "\nok      {what}: {got}")?,
                false => write!(f, "\nwrong   {what}: wanted {wanted}, got {got}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn film() -> Film {
        Film {
            width: 256,
            height: 128,
            fps: 25.0,
            frames: 45,
            decoded_frames: 45,
            video_seconds: 1.8,
            sound_seconds: Some(1.792),
            av_offset_ms: 0.0,
            decoded_sha256: "ab".to_owned(),
            file_sha256: "cd".to_owned(),
        }
    }

    fn expected(value: &Value) -> Result<Expected, DescriptionError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), value.to_string()).unwrap();
        Expected::read(file.path())
    }

    /// Names what differs.
    fn wrong(value: &Value, film: &Film) -> Vec<&'static str> {
        let checks = expected(value).unwrap().compare(film);
        checks.iter().filter(|c| !c.ok).map(|c| c.what).collect()
    }

    #[test]
    fn a_runs_description_and_a_videos_own_facts_are_both_read() {
        let run = json!({
            "settings": {
                "effective_size": {"width": 256, "height": 128}, "frames": 48,
                "video_seconds": 1.92, "audio_seconds": 7.5,
            },
            "result": {
                "frames": 45, "video_seconds": 1.8, "sha256": "cd",
                "frames_sha256": "of frames before the encoder",
            },
        });
        assert_eq!(
            wrong(&run, &film()),
            Vec::<&str>::new(),
            "what was made wins over the wish"
        );
        let own = serde_json::to_value(film()).unwrap();
        assert_eq!(wrong(&own, &film()), Vec::<&str>::new());
        assert_eq!(expected(&own).unwrap().compare(&film()).len(), 8);
    }

    #[test]
    fn every_fact_that_differs_is_named() {
        let own = serde_json::to_value(film()).unwrap();
        type Change = fn(&mut Film);
        let cases: [(Change, &[&str]); 8] = [
            (|f| f.width = 128, &["size"]),
            (|f| f.fps = 24.0, &["fps"]),
            (|f| f.frames = 44, &["frames", "decoded frames"]),
            (|f| f.decoded_frames = 44, &["decoded frames"]),
            (|f| f.video_seconds = 1.84, &["video length"]),
            (|f| f.sound_seconds = None, &["sound length"]),
            (|f| f.av_offset_ms = -41.0, &["sync"]),
            (|f| f.decoded_sha256 = "ac".to_owned(), &["sha256"]),
        ];
        for (change, want) in cases {
            let mut other = film();
            change(&mut other);
            assert_eq!(wrong(&own, &other), want);
        }
    }

    #[test]
    fn a_description_of_another_type_or_of_nothing_is_refused() {
        for (value, want) in [
            (
                json!({"settings": {"frames": "many"}}),
                "field settings.frames: wants a whole number",
            ),
            (
                json!({"decoded_sha256": 7}),
                "field decoded_sha256: wants a text, got 7",
            ),
            (json!({"event": "finished"}), "describes no video"),
            (json!([1]), "describes no video"),
        ] {
            let error = expected(&value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.to_string().contains(want), "{error}");
        }
    }
}
