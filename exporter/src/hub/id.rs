//! Names of repositories on the hub.

use std::fmt;
use std::str::FromStr;

/// What a name begins with where a path may stand too.
pub(crate) const PREFIX: &str = "hf:";
/// The repositories that an export needs: the base checkpoint and the LoRA.
pub(crate) const PUBLISHED: [&str; 2] = ["Wan-AI/Wan2.2-S2V-14B", "Quark-Vision/Live-Avatar"];
/// The branch that counts where a name has no revision.
const MAIN: &str = "main";

/// A repository of models, and one revision of it: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubId {
    name: String,
    revision: Option<String>,
}

/// A text that names no repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is no name of a repository; wanted ORG/NAME or ORG/NAME@REVISION")]
pub struct IdError {
    got: String,
}

impl HubId {
    /// Returns the name as the hub writes it: `ORG/NAME`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the branch, tag or commit.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl FromStr for HubId {
    type Err = IdError;

    /// Parses `ORG/NAME[@REVISION]`, with or without [`PREFIX`]. A revision may hold slashes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix(PREFIX).unwrap_or(text);
        let (name, revision) = match rest.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (rest, None),
        };
        let named = name
            .split_once('/')
            .is_some_and(|(org, name)| is_word(org) && is_word(name));
        if !named || !revision.is_none_or(|r| r.split('/').all(is_word)) {
            return Err(IdError {
                got: text.to_owned(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }
}

/// Returns whether a part may stand in a path of the cache: no dot or dash comes first, so no part
/// is `..`.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_an_owner_and_may_have_a_revision() {
        for (text, shown, revision) in [
            ("a/b", "a/b", "main"),
            ("hf:Wan-AI/Wan2.2-S2V-14B", "Wan-AI/Wan2.2-S2V-14B", "main"),
            ("a/b@v1.0", "a/b@v1.0", "v1.0"),
            ("hf:a/b@refs/pr/1", "a/b@refs/pr/1", "refs/pr/1"),
        ] {
            let id: HubId = text.parse().unwrap();
            assert_eq!((id.to_string().as_str(), id.revision()), (shown, revision));
        }
        for text in [
            "", "a", "a/", "/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@../c", "a/b@c//d", "a b/c",
            "a/-b", "hf:", "a/b@c@d",
        ] {
            assert!(text.parse::<HubId>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_published_repositories_have_names() {
        for name in PUBLISHED {
            assert_eq!(name.parse::<HubId>().unwrap().name(), name);
        }
    }
}
