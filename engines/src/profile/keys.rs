//! Reads a profile's text once: its tree, the keys that no profile has, and the place of each
//! field for the errors of later checks.

use super::{BUILT_IN, Location, Profile, ProfileError};
use crate::words::{line_and_column, nearest};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use toml::de::{DeTable, DeValue};

/// Reads a profile without checking its numbers; `file` names it in errors.
pub(super) fn read(file: &str, text: &str) -> Result<(Profile, Places), ProfileError> {
    let place = |start: usize| Location {
        file: file.to_owned(),
        line_and_column: Some(line_and_column(text, start)),
    };
    let syntax = |e: &toml::de::Error| ProfileError::Syntax {
        at: place(e.span().map_or(0, |span| span.start)),
        reason: e.message().replace('\n', "; "),
    };
    let tree = DeTable::parse(text).map_err(|e| syntax(&e))?;
    // Keys first: a misspelt key deserves its own answer, not "missing field" for the one that was
    // meant.
    let mut keys = Keys::default();
    keys.compare(tree.get_ref(), every_key(), "");
    if let Some(Unknown { start, field, hint }) = keys.unknown {
        let at = place(start);
        return Err(ProfileError::UnknownKey { at, field, hint });
    }
    let profile = Profile::deserialize(toml::Deserializer::from(tree)).map_err(|e| syntax(&e))?;
    let starts = keys.starts.into_iter();
    let places = Places {
        file: file.to_owned(),
        known: starts
            .map(|(field, start)| (field, line_and_column(text, start)))
            .collect(),
    };
    Ok((profile, places))
}

/// Lines and columns of a profile's fields.
pub(super) struct Places {
    file: String,
    /// Line and column by field, such as `devices[0].memory_gib`.
    known: BTreeMap<String, (usize, usize)>,
}

impl Places {
    /// The places of a profile without a text: only its name is known.
    pub(super) fn unknown(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            known: BTreeMap::new(),
        }
    }

    /// Returns the place of a field, or else of the innermost table or list around it.
    pub(super) fn of(&self, field: &str) -> Location {
        let around = |field: &&str| field.rfind(['.', '[']);
        let mut fields = std::iter::successors(Some(field), |f| Some(&f[..around(f)?]));
        Location {
            file: self.file.clone(),
            line_and_column: fields.find_map(|f| self.known.get(f).copied()),
        }
    }
}

/// The keys of a text, compared with those of a profile that has every key.
#[derive(Default)]
struct Keys {
    /// Byte at which each known key starts, by field.
    starts: BTreeMap<String, usize>,
    /// The first unknown key of the text.
    unknown: Option<Unknown>,
}

struct Unknown {
    start: usize,
    field: String,
    hint: Option<String>,
}

impl Keys {
    fn compare(&mut self, table: &DeTable<'_>, whole: &Value, at: &str) {
        for (key, value) in table {
            let (name, start) = (key.get_ref().as_ref(), key.span().start);
            let field = match at {
                "" => name.to_owned(),
                _ => format!("{at}.{name}"),
            };
            if let Some(like) = whole.get(name) {
                self.compare_value(value.get_ref(), like, &field);
                self.starts.insert(field, start);
            } else if self.unknown.as_ref().is_none_or(|u| start < u.start) {
                let known = whole.as_object().into_iter().flat_map(|o| o.keys());
                let hint = nearest(name, known.map(String::as_str));
                self.unknown = Some(Unknown { start, field, hint });
            }
        }
    }

    fn compare_value(&mut self, value: &DeValue<'_>, like: &Value, at: &str) {
        match (value, like) {
            (DeValue::Table(table), Value::Object(_)) => self.compare(table, like, at),
            (DeValue::Array(list), Value::Array(likes)) => {
                let Some(like) = likes.first() else { return };
                for (i, value) in list.iter().enumerate() {
                    let field = format!("{at}[{i}]");
                    self.compare_value(value.get_ref(), like, &field);
                    self.starts.insert(field, value.span().start);
                }
            }
            _ => {}
        }
    }
}

/// A profile that has every key.
fn every_key() -> &'static Value {
    static WHOLE: OnceLock<Value> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let (_, text) = BUILT_IN[0];
        let whole: Profile = toml::from_str(text).expect("a built-in profile is read by a test");
        serde_json::to_value(whole).expect("a profile is plain data")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_kind::ErrorKind;
    use crate::profile::tests::changed;

    #[test]
    fn an_unknown_key_is_named_with_the_nearest() {
        for (from, to, want) in [
            (
                "memory_gib",
                "memory_gb",
                "my.toml:12:1: field devices[0].memory_gb is not known; did you mean `memory_gib`?",
            ),
            (
                "lanes",
                "lane",
                "my.toml:35:1: field layout.lane is not known; did you mean `lanes`?",
            ),
            (
                "recipe",
                "reciep",
                "my.toml:4:1: field reciep is not known; did you mean `recipe`?",
            ),
            (
                "optimization_level",
                "zzz",
                "my.toml:53:1: field builder.zzz is not known",
            ),
            (
                "fp8 = ",
                "f8 = ",
                "my.toml:17:39: field devices[0].tflops.f8 is not known; did you mean `fp8`?",
            ),
        ] {
            let error = changed(from, to).unwrap_err();
            assert_eq!(error.to_string(), want);
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn of_several_unknown_keys_the_first_is_named() {
        let error = read("my.toml", "zzz = 1\naaa = 2\n").map(drop).unwrap_err();
        assert_eq!(error.to_string(), "my.toml:1:1: field zzz is not known");
    }

    #[test]
    fn values_of_the_wrong_kind_are_named() {
        for (from, to, want) in [
            (
                "lanes = 1",
                "lanes = 0",
                "35:9: not a profile: lanes wants \"wave\" or a number of 1 or more, got 0",
            ),
            (
                "lanes = 1",
                "lanes = \"all\"",
                "35:9: not a profile: lanes wants \"wave\" or a number of 1 or more, got \"all\"",
            ),
            (
                "layers = [11, 7, 11, 11]",
                "layers = [10, 0]",
                "33:10: not a profile: layers wants a number of parts of 1 or more",
            ),
            (
                "recipe = \"bf16\"",
                "recipe = \"fp4\"",
                "4:10: not a profile: recipe wants fp32, bf16 or fp8, got `fp4`",
            ),
            (
                "vae = \"least-loaded\"",
                "vae = \"third\"",
                "37:7: not a profile: unknown variant `third`, expected `own` or `least-loaded`",
            ),
            (
                "sm = 89",
                "sm = \"89\"",
                "11:6: not a profile: invalid type: string \"89\"",
            ),
            ("count = 4", "", "6:1: not a profile: missing field `count`"),
            (
                "[host]",
                "[host",
                "26:6: not a profile: unclosed table, expected `]`",
            ),
            (
                "opt = \"704*384\"",
                "opt = \"704\"",
                "47:7: not a profile: size wants W*H such as 704*384, got `704`",
            ),
        ] {
            let error = changed(from, to).expect_err(to).to_string();
            let want = format!("my.toml:{want}");
            assert!(
                error.starts_with(&want),
                "{error}
{want}"
            );
        }
    }

    #[test]
    fn places_are_lines_and_columns_of_characters() {
        let text = "a = 1\nb = \"\u{e9}\"; c";
        let at = |what| line_and_column(text, text.find(what).unwrap());
        assert_eq!((at("a"), at("b"), at("c")), ((1, 1), (2, 1), (2, 10)));
        assert_eq!(line_and_column(text, 1000), (2, 11));
    }

    #[test]
    fn a_field_without_a_place_has_that_of_the_table_around_it() {
        let known = [("devices", (6, 3)), ("devices[1].sm", (30, 1))];
        let places = Places {
            file: "my.toml".to_owned(),
            known: known.map(|(f, p)| (f.to_owned(), p)).into(),
        };
        for (field, want) in [
            ("devices[1].sm", "my.toml:30:1"),
            ("devices[0].sm", "my.toml:6:3"),
            ("devices.host_link_gbs", "my.toml:6:3"),
            ("sizes.min", "my.toml"),
        ] {
            assert_eq!(places.of(field).to_string(), want);
        }
        assert_eq!(Places::unknown("x").of("devices").to_string(), "x");
    }

    #[test]
    fn the_nearest_name_is_one_that_was_meant() {
        let known = ["lanes", "layers", "steps"];
        for (got, want) in [
            ("lane", Some("lanes")),
            ("step", Some("steps")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(got, known.into_iter()).as_deref(), want);
        }
    }
}
