//! Precision of an export: the type of stored weights, of activations and of rings. The models
//! decide which values stay f32 in every recipe: norms, softmax, modulation, time, rotation and the
//! residual inside a block.

use crate::dtype::DType;
use std::fmt;
use std::str::FromStr;

/// A precision recipe, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recipe {
    /// Everything in f32: the oracle for every other recipe.
    #[default]
    Fp32,
    /// The reference's own precision: bf16 with f32 islands.
    Bf16,
    /// Weights and rings in e4m3 with scales, arithmetic in bf16. No exporter makes it yet.
    Fp8,
}

impl Recipe {
    /// Every recipe.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Bf16, Self::Fp8];

    /// Returns the name as manifests, profiles and command lines spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }

    /// Returns the type of hidden states, of keys and values of the condition, and of feature
    /// caches.
    pub const fn compute(self) -> DType {
        match self {
            Self::Fp32 => DType::F32,
            Self::Bf16 | Self::Fp8 => DType::BF16,
        }
    }

    /// Counts the bytes of one element of a large weight matrix.
    pub const fn weight_bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }

    /// Counts the bytes of one element of a KV ring.
    pub const fn ring_bytes(self) -> usize {
        self.weight_bytes()
    }
}

/// A name that is no recipe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("recipe wants fp32, bf16 or fp8, got `{got}`")]
pub struct UnknownRecipe {
    /// The name.
    pub got: String,
}

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|r| r.name() == text)
            .ok_or_else(|| UnknownRecipe {
                got: text.to_owned(),
            })
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Recipe {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Recipe {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_recipes_are_one_to_one() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.name().parse(), Ok(recipe));
        }
        let error = "fp4".parse::<Recipe>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "recipe wants fp32, bf16 or fp8, got `fp4`"
        );
    }
}
