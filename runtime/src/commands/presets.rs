//! The settings that the articles on Live Avatar recommend, by name. A preset stands below the
//! configuration file, the environment and the flags, so each of its values can be changed.

use std::fmt::Write as _;

use engines::words::nearest;

use crate::commands::error::Error;

/// Flags under one name.
#[derive(Debug)]
pub(crate) struct Preset {
    /// Name that `--preset` takes.
    pub(crate) name: &'static str,
    /// What it is for.
    about: &'static str,
    /// Flags without dashes in front, and their values. A switch has an empty value.
    pub(crate) flags: &'static [(&'static str, &'static str)],
}

/// The presets. An `infer_frames` of 32 in an article is 36 here: the model makes blocks of 12.
pub(crate) const PRESETS: &[Preset] = &[
    Preset {
        name: "quick-preview",
        about: "small and short, to see whether picture, speech and prompt work",
        flags: &[
            ("size", "384*256"),
            ("num-clip", "10"),
            ("sample-steps", "3"),
            ("infer-frames", "36"),
        ],
    },
    Preset {
        name: "standard",
        about: "the usual quality for some minutes",
        flags: &[
            ("size", "688*368"),
            ("num-clip", "100"),
            ("sample-steps", "4"),
            ("infer-frames", "48"),
            ("enable-vae-parallel", ""),
        ],
    },
    Preset {
        name: "long-video",
        about: "half an hour with the whole model on its devices",
        flags: &[
            ("size", "688*368"),
            ("num-clip", "1000"),
            ("sample-steps", "4"),
            ("infer-frames", "48"),
            ("enable-online-decode", ""),
            ("offload-model", "False"),
        ],
    },
    Preset {
        name: "hd",
        about: "a larger picture, one more step, and guidance by the prompt",
        flags: &[
            ("size", "704*384"),
            ("num-clip", "50"),
            ("sample-steps", "5"),
            ("infer-frames", "48"),
            ("sample-guide-scale", "5"),
        ],
    },
    Preset {
        name: "fast-check",
        about: "as quick-preview, twice as long",
        flags: &[
            ("size", "384*256"),
            ("num-clip", "20"),
            ("sample-steps", "3"),
            ("infer-frames", "36"),
            ("sample-guide-scale", "0"),
        ],
    },
    Preset {
        name: "social-media",
        about: "minutes for a network, in three steps",
        flags: &[
            ("size", "688*368"),
            ("num-clip", "100"),
            ("sample-steps", "3"),
            ("enable-online-decode", ""),
            ("sample-guide-scale", "0"),
        ],
    },
    Preset {
        name: "high-fidelity",
        about: "the largest picture of a 24 GB card",
        flags: &[
            ("size", "704*384"),
            ("num-clip", "50"),
            ("sample-steps", "4"),
            ("enable-online-decode", ""),
            ("sample-guide-scale", "0"),
        ],
    },
    Preset {
        name: "long-production",
        about: "half an hour in three steps",
        flags: &[
            ("size", "688*368"),
            ("num-clip", "1000"),
            ("sample-steps", "3"),
            ("infer-frames", "48"),
            ("enable-online-decode", ""),
            ("sample-guide-scale", "0"),
        ],
    },
    Preset {
        name: "production-688",
        about: "minutes at 688*368 in four steps",
        flags: &[
            ("size", "688*368"),
            ("num-clip", "100"),
            ("sample-steps", "4"),
            ("enable-online-decode", ""),
        ],
    },
    Preset {
        name: "stable-24gb",
        about: "what fits a card of 24 GB with room to spare",
        flags: &[
            ("size", "384*256"),
            ("num-clip", "10"),
            ("sample-steps", "3"),
        ],
    },
    Preset {
        name: "single-gpu-offload",
        about: "one small card: layers stream from host memory",
        flags: &[
            ("offload-model", "True"),
            ("num-gpus-dit", "1"),
            ("enable-online-decode", ""),
        ],
    },
];

/// Names of x264's presets, from fast to small. `--preset` takes them as well.
const ENCODER: [&str; 9] = [
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
];

/// Returns a name as presets have it: in small letters, with dashes.
fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', ' '], "-")
}

/// Returns the video encoder's preset of a name, if there is one.
pub(crate) fn encoder(name: &str) -> Option<&'static str> {
    let name = plain(name);
    ENCODER.into_iter().find(|preset| *preset == name)
}

/// Returns the preset of a name, or `None` for a preset of the video encoder. Underscores may stand
/// for dashes.
///
/// # Errors
/// [`Error::Usage`] with the nearest name.
pub(crate) fn find(name: &str) -> Result<Option<&'static Preset>, Error> {
    if encoder(name).is_some() {
        return Ok(None);
    }
    let dashed = plain(name);
    let found = PRESETS.iter().find(|p| p.name == dashed);
    found.map(Some).ok_or_else(|| {
        let names = PRESETS.iter().map(|p| p.name).chain(ENCODER);
        let hint =
            nearest(&dashed, names).map_or_else(String::new, |h| format!("; did you mean `{h}`?"));
        Error::Usage(format!(
            "--preset {name} is not known{hint} (`avatar-run presets` lists them)"
        ))
    })
}

/// Returns the presets as a table, each with its flags as they are typed and its length.
pub(crate) fn table() -> String {
    let mut out = String::new();
    for preset in PRESETS {
        let flags = preset.flags.iter().map(|(flag, value)| match *value {
            "" => format!(" --{}", flag.replace('-', "_")),
            value => format!(" --{} {value}", flag.replace('-', "_")),
        });
        let (name, about) = (preset.name, preset.about);
        let length = preset
            .seconds()
            .map_or_else(String::new, |s| format!("; at most {s:.1} s"));
        let _ = writeln!(
            out,
            "{name}: {about}{length}\n   {}",
            flags.collect::<String>()
        );
    }
    out
}

impl Preset {
    /// Returns how long the video is at most, in seconds.
    fn seconds(&self) -> Option<f64> {
        let value = |name: &str| {
            let found = self.flags.iter().find(|(flag, _)| *flag == name)?;
            found.1.parse::<f64>().ok()
        };
        let frames = value("num-clip")? * value("infer-frames").unwrap_or(48.0) - 3.0;
        Some(frames / f64::from(crate::numbers::timing::FPS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Cli;
    use std::ffi::OsString;

    #[test]
    fn every_preset_is_a_command_line_that_is_understood() {
        for preset in PRESETS {
            let args = [
                "avatar-run",
                "generate",
                "--models",
                "m",
                "--image",
                "i",
                "--audio",
                "a",
                "--prompt",
                "p",
                "--out",
                "o.mp4",
            ];
            let flags = preset.flags.iter().flat_map(|(flag, value)| {
                let value = (!value.is_empty()).then(|| (*value).to_owned());
                [Some(format!("--{flag}")), value].into_iter().flatten()
            });
            let args = args.iter().map(|a| (*a).to_owned()).chain(flags);
            let read = Cli::read(args.map(OsString::from));
            assert!(read.is_ok(), "{}: {}", preset.name, read.unwrap_err());
        }
    }

    #[test]
    fn a_preset_is_found_in_any_spelling_and_a_wrong_one_is_suggested() {
        assert_eq!(
            find("Quick_Preview").unwrap().map(|p| p.name),
            Some("quick-preview")
        );
        assert!(find("VeryFast").unwrap().is_none());
        assert_eq!(encoder("VeryFast"), Some("veryfast"));
        assert_eq!(encoder("quick-preview"), None);
        let error = find("social").unwrap_err().to_string();
        assert!(error.starts_with("--preset social is not known"), "{error}");
    }

    #[test]
    fn the_table_says_how_long_a_video_is() {
        let table = table();
        assert!(table.contains("at most 14.3 s"), "{table}");
        assert_eq!(table.lines().count(), 2 * PRESETS.len());
    }
}
