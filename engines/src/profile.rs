//! Hardware profiles: one kind of machine each, and the project's layout on it. They are data in
//! TOML, checked for impossible numbers. The runtime's planner decides what fits and how fast it
//! is.

mod check;
mod keys;
mod open;

use crate::error_kind::ErrorKind;
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../profiles/", $name, ".toml")))),*]
    };
}

/// Names and texts of the profiles that come with the program.
pub const BUILT_IN: &[(&str, &str)] = built_in![
    "cpu",
    "5x80g",
    "4x80g",
    "2x80g",
    "1x80g",
    "1x141g",
    "2x48g",
    "1x48g",
    "1x48g-offload",
    "4x24g",
    "2x24g",
    "2x24g-offload",
    "1x24g-offload",
    "1x16g-offload",
];

/// One kind of machine.
///
/// ```
/// use engines::profile::Profile;
///
/// let profile = Profile::open("4x24g")?;
/// assert_eq!((profile.device_count(), profile.devices[0].sm), (4, 89));
/// let error = Profile::parse("my.toml", "recipie = \"bf16\"").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "my.toml:1:1: field recipie is not known; did you mean `recipe`?"
/// );
/// # Ok::<(), engines::profile::ProfileError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the built-in profile, or of the file without its folder and extension.
    #[serde(skip)]
    pub name: String,
    /// The profile's purpose, in one line.
    pub about: String,
    /// Precision of the export.
    pub recipe: Recipe,
    /// Devices in order; one entry may stand for several equal ones.
    pub devices: Vec<Device>,
    /// The machine around the devices.
    pub host: Host,
    /// The device of each part of the work.
    pub layout: Layout,
    /// The bytes that stay on a device.
    pub residency: Residency,
    /// Sizes of the video that engines are built for.
    pub sizes: Sizes,
    /// Settings of engine builds.
    pub builder: Builder,
}

/// One or several equal devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Number of devices.
    pub count: usize,
    /// Processor or GPU.
    pub kind: Kind,
    /// The card whose data sheet the figures are from.
    pub card: String,
    /// Other cards of the same memory, whose figures differ.
    #[serde(default)]
    pub also: Vec<String>,
    /// Compute capability without the dot; 0 for a CPU.
    pub sm: u32,
    /// Cores that `tflops` stands for, on a CPU; 0 for a GPU.
    #[serde(default)]
    pub cores: usize,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// GiB that driver, context and libraries take before the first tensor.
    pub reserve_gib: f64,
    /// Dense rates without sparsity and with f32 accumulation, from the data sheet. A rate is 0
    /// where the device lacks the type.
    pub tflops: Tflops,
    /// Shares of the rates that graphs reach.
    pub achieved: Achieved,
    /// Memory bandwidth in GB/s.
    pub bandwidth_gbs: f64,
    /// GB/s from pinned host memory to the device, one way; 0 where there is no link to cross.
    pub host_link_gbs: f64,
    /// GB/s from device to device, one way, by the fastest way that the machine has.
    pub peer_link_gbs: f64,
}

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A processor: attention is not fused, so its scores are tensors. Weights are used as mapped.
    Cpu,
    /// A GPU: attention is fused.
    Gpu,
}

/// Peak rates, in 10^12 operations a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tflops {
    /// Rate of f32.
    pub fp32: f64,
    /// Rate of bf16.
    pub bf16: f64,
    /// Rate of e4m3.
    pub fp8: f64,
}

/// Shares of the peaks that real graphs are planned to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Achieved {
    /// Share of large matrix products.
    pub linear: f64,
    /// Share of fused attention.
    pub attention: f64,
    /// Share of the VAE's convolutions.
    pub convolution: f64,
    /// Share of the memory bandwidth that operators reach which move bytes and compute little.
    pub memory: f64,
    /// Source of the shares.
    pub reason: String,
}

/// The machine around the devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Memory in GiB.
    pub memory_gib: f64,
    /// GiB that the system keeps.
    pub reserve_gib: f64,
    /// Most GiB that may be pinned.
    pub pinned_gib: f64,
    /// GB/s of reading a file once, for the time to load.
    pub disk_gbs: f64,
}

/// The device of each part of the work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Parts of the layers: a number of even parts, or their proportion.
    pub layers: Parts,
    /// Devices that the denoising steps are dealt over; at most the number of steps.
    pub steps: usize,
    /// Items of a wave that share one call.
    pub lanes: LanePolicy,
    /// Blocks that a KV ring holds; the model is made for 4.
    pub ring_blocks: usize,
    /// Device of the VAE's decoder.
    pub vae: VaePolicy,
    /// Lifetime of the encoders in memory.
    pub encoders: EncoderPolicy,
}

/// The cut of the layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Parts {
    /// Even parts, by number.
    Even(usize),
    /// Proportion of the parts: `[11, 9]` are 22 and 18 of 40 layers.
    Shares(Vec<usize>),
}

/// Number of lanes in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum LanePolicy {
    /// One lane for each step, for a device that waits for weights.
    Wave,
    /// At most so many.
    AtMost(usize),
}

/// The device on which the VAE decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VaePolicy {
    /// On the first device without a stage.
    Own,
    /// Beside a stage, where most memory is left.
    LeastLoaded,
}

/// Lifetime of the encoders of text, speech and picture in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderPolicy {
    /// Loaded, run and freed one after the other, before the transformer is loaded.
    Freed,
    /// Kept for the next request.
    Kept,
}

/// The bytes that stay on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residency {
    /// Weights of the layers.
    pub weights: Keep,
    /// KV rings.
    pub rings: Keep,
    /// Layers that are on their way at once where anything streams.
    pub slots: usize,
}

/// The place of a layer's bytes between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// On the device.
    Device,
    /// In pinned host memory; they stream for each call.
    Host,
    /// On the device as far as it has room.
    Fit,
}

/// Sizes of the video that engines are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// The smallest.
    pub min: Extent,
    /// The size that engines are tuned for.
    pub opt: Extent,
    /// The largest.
    pub max: Extent,
}

/// Width and height in pixels, written `W*H`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

/// Settings of engine builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// MiB that an engine's library takes beside tensors, as planned on every device.
    pub workspace_mib: usize,
    /// Most MiB that one TensorRT engine may take for kernels and inner tensors. They are part of
    /// the plan's activations and workspace, or of the VAE's.
    pub scratch_mib: usize,
    /// TensorRT's optimisation level, 0 to 5.
    pub optimization_level: usize,
}

/// The place of an error in a profile's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file, or the name of a built-in profile.
    pub file: String,
    /// Line and column, from 1 on; `None` for a profile that was made without a text.
    pub line_and_column: Option<(usize, usize)>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line_and_column {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "a variant's message says what its fields are")]
pub enum ProfileError {
    #[error(
        "profile `{got}` is neither built in nor a file; built in are {have}{}",
        did_you_mean(hint)
    )]
    Unknown {
        got: String,
        have: String,
        hint: Option<String>,
    },
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{at}: not a profile: {reason}")]
    Syntax { at: Location, reason: String },
    #[error("{at}: field {field} is not known{}", did_you_mean(hint))]
    UnknownKey {
        at: Location,
        field: String,
        hint: Option<String>,
    },
    #[error("{at}: field {field}: wanted {want}, got {got}")]
    Field {
        at: Location,
        field: String,
        want: String,
        got: String,
    },
}

fn did_you_mean(hint: &Option<String>) -> String {
    hint.as_ref()
        .map_or_else(String::new, |h| format!("; did you mean `{h}`?"))
}

impl ProfileError {
    /// Returns the kind of failure: always the usage.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }
}

impl Profile {
    /// Counts the devices of the machine.
    pub fn device_count(&self) -> usize {
        self.devices.iter().map(|d| d.count).sum()
    }

    /// Lists one entry for each device, in order.
    pub fn each_device(&self) -> impl Iterator<Item = &Device> {
        self.devices
            .iter()
            .flat_map(|d| std::iter::repeat_n(d, d.count))
    }
}

impl Device {
    /// Counts the bytes that tensors may take.
    pub fn usable_bytes(&self) -> u64 {
        ((self.memory_gib - self.reserve_gib) * GIB) as u64
    }

    /// Returns the peak rate of matrix products with `recipe`'s weights, in operations a second. A
    /// card without FP8 computes in bf16.
    pub fn peak(&self, recipe: Recipe) -> f64 {
        let t = &self.tflops;
        1e12 * match recipe {
            Recipe::Fp32 => t.fp32,
            Recipe::Fp8 if t.fp8 > 0.0 => t.fp8,
            Recipe::Bf16 | Recipe::Fp8 => t.bf16,
        }
    }
}

impl Parts {
    /// Counts the parts.
    pub fn count(&self) -> usize {
        match self {
            Self::Even(n) => *n,
            Self::Shares(list) => list.len(),
        }
    }
}

impl Extent {
    /// Counts the pixels.
    pub fn area(self) -> usize {
        self.width * self.height
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}*{}", self.width, self.height)
    }
}

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("size wants W*H such as 704*384, got `{got}`")]
pub struct BadExtent {
    /// The text.
    pub got: String,
}

impl FromStr for Extent {
    type Err = BadExtent;

    fn from_str(text: &str) -> Result<Self, BadExtent> {
        let sides = text.split_once('*').and_then(|(w, h)| {
            Some(Self {
                width: w.trim().parse().ok()?,
                height: h.trim().parse().ok()?,
            })
        });
        sides.ok_or_else(|| BadExtent {
            got: text.to_owned(),
        })
    }
}

impl Serialize for Extent {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl TryFrom<Value> for Parts {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let count = |v: &Value| {
            v.as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|&n| n > 0)
        };
        let parsed = match &value {
            Value::Array(list) if !list.is_empty() => list
                .iter()
                .map(count)
                .collect::<Option<_>>()
                .map(Self::Shares),
            other => count(other).map(Self::Even),
        };
        parsed.ok_or_else(|| {
            format!(
                "layers wants a number of parts of 1 or more, or their proportion such as \
                 [11, 9], got {value}"
            )
        })
    }
}

impl From<Parts> for Value {
    fn from(parts: Parts) -> Self {
        match parts {
            Parts::Even(n) => n.into(),
            Parts::Shares(list) => list.into(),
        }
    }
}

impl TryFrom<Value> for LanePolicy {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match (value.as_str(), count) {
            (Some("wave"), _) => Ok(Self::Wave),
            (_, Some(n)) if n > 0 => Ok(Self::AtMost(n)),
            _ => Err(format!(
                "lanes wants \"wave\" or a number of 1 or more, got {value}"
            )),
        }
    }
}

impl From<LanePolicy> for Value {
    fn from(lanes: LanePolicy) -> Self {
        match lanes {
            LanePolicy::Wave => "wave".into(),
            LanePolicy::AtMost(n) => n.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn text(name: &str) -> &'static str {
        BUILT_IN.iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// A profile that differs from a built-in one in one place.
    pub(super) fn changed(from: &str, to: &str) -> Result<Profile, ProfileError> {
        let text = text("4x24g");
        assert!(text.contains(from), "{from}");
        Profile::parse("my.toml", &text.replacen(from, to, 1))
    }

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
    fn every_profile_stands_in_the_folder_and_the_other_way_round() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut names: Vec<String> = BUILT_IN.iter().map(|(n, _)| format!("{n}.toml")).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
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
