//! Opens and parses profiles: reads the keys of a text, then checks the numbers.

use super::keys::{self, Places, nearest};
use super::{BUILT_IN, Profile, ProfileError};
use crate::recipe::Recipe;
use std::path::Path;

impl Profile {
    /// Opens a built-in profile by its name, or a file by its path.
    ///
    /// # Errors
    /// The profile does not exist, does not parse, or has an unknown key or an impossible number.
    pub fn open(name: &str) -> Result<Self, ProfileError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        if !path.exists() {
            let names: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
            return Err(ProfileError::Unknown {
                got: name.to_owned(),
                have: names.join(", "),
                hint: nearest(name, names.iter().copied()),
            });
        }
        let text = std::fs::read_to_string(path).map_err(|source| ProfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// Reads every built-in profile.
    ///
    /// # Errors
    /// None for the program's own profiles; a test reads them all.
    pub fn built_in() -> Result<Vec<Self>, ProfileError> {
        BUILT_IN
            .iter()
            .map(|(name, text)| Self::parse(name, text))
            .collect()
    }

    /// Reads the text of a profile; `file` names it in errors.
    ///
    /// # Errors
    /// The errors of [`Self::open`], except for a missing profile.
    pub fn parse(file: &str, text: &str) -> Result<Self, ProfileError> {
        let (mut profile, places) = keys::read(file, text)?;
        profile.name = Path::new(file).file_stem().map_or_else(
            || file.to_owned(),
            |stem| stem.to_string_lossy().into_owned(),
        );
        profile.check(&places)?;
        Ok(profile)
    }

    /// Returns the same machine for an export of another precision.
    ///
    /// # Errors
    /// A device has no rate for it.
    pub fn with_recipe(self, recipe: Recipe) -> Result<Self, ProfileError> {
        let profile = Self { recipe, ..self };
        profile.check(&Places::unknown(&profile.name))?;
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::text;

    #[test]
    fn every_profile_is_read_and_comes_back_from_its_json() {
        for (name, text) in BUILT_IN {
            let profile = Profile::parse(name, text).unwrap();
            assert_eq!(profile.name, *name);
            let json = serde_json::to_string(&profile).unwrap();
            let mut again: Profile = serde_json::from_str(&json).unwrap();
            again.name.clone_from(&profile.name);
            assert_eq!(again, profile, "{name}");
        }
    }

    #[test]
    fn a_name_that_is_no_profile_is_answered_with_the_nearest() {
        let error = Profile::open("4x24").unwrap_err().to_string();
        assert!(error.ends_with("; did you mean `4x24g`?"), "{error}");
        assert!(error.contains("built in are cpu, 5x80g"), "{error}");
    }

    #[test]
    fn a_profile_of_ones_own_is_a_file() {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text("2x48g")).unwrap();
        let profile = Profile::open(file.path().to_str().unwrap()).unwrap();
        assert_eq!(profile.device_count(), 2);
    }
}
