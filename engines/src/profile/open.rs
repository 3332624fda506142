//! Opens profiles: built-in ones by name, others from files.

use super::keys::{self, Places};
use super::{BUILT_IN, Profile, ProfileError};
use crate::recipe::Recipe;
use crate::words::nearest;
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
