//! Where a video goes and in which format: a file, a folder of frames, standard output or a URL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::media::partial::{self, NameError};

/// A format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// H.264 and AAC in MP4.
    Mp4,
    /// H.264 and AAC in Matroska.
    Mkv,
    /// VP9 and Opus in WebM.
    Webm,
    /// A folder of numbered PNG files, with the sound in `sound.wav`.
    Frames,
    /// Frames `[T, H, W, 3]` of 8-bit RGB without a header, and no sound.
    Raw,
    /// Frames as YUV4MPEG2 in 4:2:0, and no sound.
    Y4m,
}

/// Formats by name, each with the endings of its files.
const FORMATS: [(Format, &str, &[&str]); 6] = [
    (Format::Mp4, "mp4", &["mp4"]),
    (Format::Mkv, "mkv", &["mkv"]),
    (Format::Webm, "webm", &["webm"]),
    (Format::Frames, "frames", &[]),
    (Format::Raw, "raw", &["rgb", "raw"]),
    (Format::Y4m, "y4m", &["y4m"]),
];

/// A text that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Standard output is a place, not a format.
    #[error("format - is a place: --out - writes to standard output")]
    Stdout,
    /// The format is not known.
    #[error("format wants mp4, mkv, webm, frames, raw or y4m, got `{got}`")]
    Unknown {
        /// The text.
        got: String,
    },
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let found = FORMATS.iter().find(|(_, name, _)| *name == text);
        match (found, text) {
            (Some((format, ..)), _) => Ok(*format),
            (None, "-") => Err(FormatError::Stdout),
            (None, _) => Err(FormatError::Unknown {
                got: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().1)
    }
}

impl Format {
    fn facts(self) -> &'static (Self, &'static str, &'static [&'static str]) {
        let found = FORMATS.iter().find(|(format, ..)| *format == self);
        found.expect("every format is in the table")
    }

    /// Returns the ending of its files, with the dot. A folder has none.
    pub fn ending(self) -> String {
        let ending = self.facts().2.first();
        ending.map_or_else(String::new, |ending| format!(".{ending}"))
    }

    /// Returns whether it has frames alone and no sound.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Raw | Self::Y4m)
    }

    /// Returns the format that the ending of a name says.
    fn of_name(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        let found = FORMATS.iter().find(|(.., all)| all.contains(&&*ending));
        found.map(|(format, ..)| *format)
    }
}

/// Schemes of URLs that FFmpeg writes to, and the muxer of each.
const SCHEMES: [(&str, &str); 5] = [
    ("rtmp", "flv"),
    ("rtmps", "flv"),
    ("srt", "mpegts"),
    ("udp", "mpegts"),
    ("tcp", "mpegts"),
];

/// Where a video goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file. It grows under another name and gets its own when it is complete.
    File {
        /// The final name.
        path: PathBuf,
        /// Any format but frames.
        format: Format,
    },
    /// A folder of frames. It grows under another name, as a file does.
    Folder {
        /// The final name.
        path: PathBuf,
    },
    /// Standard output.
    Stdout {
        /// Any format but frames.
        format: Format,
    },
    /// A URL that FFmpeg sends to.
    Url {
        /// The URL.
        url: String,
        /// FFmpeg's name of the container.
        muxer: &'static str,
    },
}

impl Target {
    /// Reads the value of `--out`. `told` is the value of `--format`.
    ///
    /// # Errors
    /// The name says no format or another one than `told`, is a folder where a file is wanted, or
    /// has a scheme that is not known.
    pub fn of(out: &Path, told: Option<Format>) -> Result<Self, NameError> {
        if let Some(url) = out.to_str().filter(|text| text.contains("://")) {
            return Self::of_url(url, told);
        }
        if out == Path::new("-") {
            let format = told.unwrap_or(Format::Mp4);
            return match format {
                Format::Frames => Err(NameError::NotAFolder),
                format => Ok(Self::Stdout { format }),
            };
        }
        let path = out.to_owned();
        let folder = out.as_os_str().as_encoded_bytes().ends_with(b"/");
        let named = match Format::of_name(out) {
            None if folder && !out.is_dir() => Some(Format::Frames),
            named => named,
        };
        match (named, told) {
            (Some(named), Some(told)) if named != told => Err(NameError::Format {
                path,
                named: named.to_string(),
                told: told.to_string(),
            }),
            (_, Some(Format::Frames)) | (Some(Format::Frames), _) => Ok(Self::Folder { path }),
            _ if out.is_dir() => Err(NameError::Folder { path }),
            (Some(format), _) if out.file_stem().is_some() => Ok(Self::File { path, format }),
            (_, Some(told)) => Err(NameError::Ending {
                path,
                wanted: told.ending(),
            }),
            _ => Err(NameError::Name { path }),
        }
    }

    fn of_url(url: &str, told: Option<Format>) -> Result<Self, NameError> {
        let scheme = url.split("://").next().unwrap_or_default();
        let scheme = scheme.to_ascii_lowercase();
        let muxer = SCHEMES.iter().find(|(name, _)| *name == scheme);
        match (muxer, told) {
            (None, _) => Err(NameError::Scheme {
                url: url.to_owned(),
                known: SCHEMES.map(|(name, _)| name).join(", "),
            }),
            (Some((_, muxer)), Some(told)) => Err(NameError::Format {
                path: url.into(),
                named: (*muxer).to_owned(),
                told: told.to_string(),
            }),
            (Some((_, muxer)), None) => Ok(Self::Url {
                url: url.to_owned(),
                muxer,
            }),
        }
    }

    /// Returns the final name, or the name under which users know the place.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::File { path, .. } | Self::Folder { path } => path.clone(),
            Self::Stdout { .. } => "-".into(),
            Self::Url { url, .. } => url.into(),
        }
    }

    /// Returns the name under which an unfinished video grows. A stream has none.
    pub(crate) fn partial(&self) -> Option<PathBuf> {
        match self {
            Self::File { path, .. } | Self::Folder { path } => Some(partial::name(path)),
            Self::Stdout { .. } | Self::Url { .. } => None,
        }
    }

    /// Returns FFmpeg's name of the container. Frames and raw video have none.
    pub(crate) fn muxer(&self) -> Option<&'static str> {
        match self {
            Self::Url { muxer, .. } => Some(muxer),
            Self::Folder { .. } => None,
            Self::File { format, .. } | Self::Stdout { format } => match format {
                Format::Mp4 => Some("mp4"),
                Format::Mkv => Some("matroska"),
                Format::Webm => Some("webm"),
                Format::Frames | Format::Raw | Format::Y4m => None,
            },
        }
    }

    /// Returns the only rate of sound that the container takes, if it takes no other.
    pub(crate) fn sound_rate(&self) -> Option<u32> {
        (self.muxer() == Some("webm")).then_some(48_000)
    }

    /// Returns whether a reader gets the video while it is made, so that nothing is kept.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stdout { .. } | Self::Url { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engines::error_kind::ErrorKind;

    fn of(out: &str, told: Option<Format>) -> Result<Target, (String, ErrorKind)> {
        Target::of(Path::new(out), told).map_err(|e| (e.to_string(), e.kind()))
    }

    #[test]
    fn a_name_says_the_format() {
        let file = |path: &str, format| {
            Ok(Target::File {
                path: path.into(),
                format,
            })
        };
        for (name, format) in [
            ("v.mp4", Format::Mp4),
            ("d/v.MKV", Format::Mkv),
            ("v.webm", Format::Webm),
            ("v.rgb", Format::Raw),
            ("v.raw", Format::Raw),
            ("v.y4m", Format::Y4m),
        ] {
            assert_eq!(of(name, None), file(name, format));
            assert_eq!(of(name, Some(format)), file(name, format));
        }
        let folder = |path: &str| Ok(Target::Folder { path: path.into() });
        assert_eq!(of("no/such/", None), folder("no/such/"));
        assert_eq!(of("v", Some(Format::Frames)), folder("v"));
        let stdout = |format| Ok(Target::Stdout { format });
        assert_eq!(of("-", None), stdout(Format::Mp4));
        assert_eq!(of("-", Some(Format::Y4m)), stdout(Format::Y4m));
    }

    #[test]
    fn a_url_says_the_container() {
        for (url, wanted) in [
            ("rtmp://h/live", "flv"),
            ("SRT://h:1", "mpegts"),
            ("udp://127.0.0.1:5000", "mpegts"),
        ] {
            assert_eq!(of(url, None).unwrap().muxer(), Some(wanted), "{url}");
        }
        let (text, kind) = of("http://h/v.mp4", None).unwrap_err();
        assert!(text.contains("rtmp, rtmps, srt, udp, tcp"), "{text}");
        assert_eq!(kind, ErrorKind::Usage);
    }

    #[test]
    fn a_name_that_contradicts_or_says_nothing_is_refused() {
        for (out, told, says) in [
            (
                "v.mp4",
                Some(Format::Mkv),
                "the name says mp4, --format says mkv",
            ),
            (
                "v.mp4",
                Some(Format::Frames),
                "the name says mp4, --format says frames",
            ),
            ("v", Some(Format::Webm), "wants a name that ends in .webm"),
            ("v.avi", None, "wants a name that ends in .mp4"),
            (".mp4", None, "wants a name that ends in .mp4"),
            ("v", None, "--format frames"),
            (
                "-",
                Some(Format::Frames),
                "standard output takes one stream",
            ),
            ("udp://h:1", Some(Format::Mp4), "--format says mp4"),
        ] {
            let (text, kind) = of(out, told).unwrap_err();
            assert!(text.contains(says), "{out}: {text}");
            assert_eq!(kind, ErrorKind::Usage, "{text}");
        }
        assert_eq!(of(".", None).unwrap_err().1, ErrorKind::Input);
        let error = "-".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("--out -"), "{error}");
        assert!("avi".parse::<Format>().is_err());
    }
}
