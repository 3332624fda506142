//! Hardware profiles: what one kind of machine is, and how the project is laid out on it. Data in TOML, checked for numbers that cannot
//! be; not here: what fits and how fast it is (the runtime's planner), and what is there (its look at the devices).
use crate::error_kind::ErrorKind;
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Bytes of a GiB.
pub const GIB: f64 = (1u64 << 30) as f64;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../profiles/", $name, ".toml")))),*]
    };
}

/// Every profile that comes with the program: name and text.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The built-in's name, or the file's.
    #[serde(skip)]
    pub name: String,
    /// One line on what it is for.
    pub about: String,
    pub recipe: Recipe,
    /// Devices in order; a group of equal ones is one entry.
    pub devices: Vec<Device>,
    pub host: Host,
    pub layout: Layout,
    pub residency: Residency,
    pub sizes: Sizes,
    pub builder: Builder,
}

/// One or several equal devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub count: usize,
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
    pub memory_gib: f64,
    /// What driver, context and libraries take before the first tensor.
    pub reserve_gib: f64,
    /// Dense, no sparsity, f32 accumulation, from the data sheet; 0 where the device lacks the type.
    pub tflops: Tflops,
    pub achieved: Achieved,
    pub bandwidth_gbs: f64,
    /// Pinned host memory to the device, one way; 0 where there is no link to cross.
    pub host_link_gbs: f64,
    /// Device to device, one way, by whatever way the machine has.
    pub peer_link_gbs: f64,
}

/// What runs graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Attention is not fused: its scores are tensors. Weights are used as they are mapped.
    Cpu,
    /// Attention is fused.
    Gpu,
}

/// Peak rates, in 10^12 operations a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tflops {
    pub fp32: f64,
    pub bf16: f64,
    pub fp8: f64,
}

/// Shares of the peaks that real graphs are planned to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Achieved {
    /// Large matrix products.
    pub linear: f64,
    pub attention: f64,
    /// The VAE's convolutions.
    pub convolution: f64,
    /// Of the memory bandwidth, by what moves bytes and computes little.
    pub memory: f64,
    /// Where the shares come from.
    pub reason: String,
}

/// The machine around the devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub memory_gib: f64,
    /// What the system keeps.
    pub reserve_gib: f64,
    /// Most memory that may be pinned.
    pub pinned_gib: f64,
    /// Reading a file once, for the time to load.
    pub disk_gbs: f64,
}

/// Which parts of the work go where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Parts of the layers: a number of even parts, or their proportion.
    pub layers: Parts,
    /// Devices that the denoising steps are dealt over; never more than there are steps.
    pub steps: usize,
    /// Items of a wave that ride in one call.
    pub lanes: LanePolicy,
    /// Blocks that a KV ring holds; the model is made for 4.
    pub ring_blocks: usize,
    pub vae: VaePolicy,
    pub encoders: EncoderPolicy,
}

/// How the layers are cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Parts {
    Even(usize),
    /// `[11, 9]` are 22 and 18 of 40 layers.
    Shares(Vec<usize>),
}

/// How many lanes a call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum LanePolicy {
    /// One a step: for a device that waits for weights.
    Wave,
    AtMost(usize),
}

/// Where the VAE decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VaePolicy {
    /// On the first device without a stage.
    Own,
    /// Beside a stage, where most memory is left.
    LeastLoaded,
}

/// How long the encoders of text, speech and picture stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderPolicy {
    /// Loaded, run and freed one after the other, before the transformer is loaded.
    Freed,
    /// Kept for the next request.
    Kept,
}

/// What stays on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residency {
    pub weights: Keep,
    pub rings: Keep,
    /// Layers that are on their way at once where anything streams.
    pub slots: usize,
}

/// Where a layer's bytes lie between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    Device,
    /// In pinned host memory, streamed for each call.
    Host,
    /// On the device as far as it has room.
    Fit,
}

/// Sizes of the video that engines are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    pub min: Extent,
    pub opt: Extent,
    pub max: Extent,
}

/// Width and height in pixels, written `W*H`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub width: usize,
    pub height: usize,
}

/// How engines are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// What an engine's library takes beside tensors, as planned on every device.
    pub workspace_mib: usize,
    /// Most that one TensorRT engine may take for kernels and inner tensors; of the plan's activations and workspace, or of the VAE's.
    pub scratch_mib: usize,
    /// 0 to 5.
    pub optimization_level: usize,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
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
    #[error("{file}: not a profile: {reason}")]
    Syntax { file: String, reason: String },
    #[error("{file}: field {field} is not known{}", did_you_mean(hint))]
    UnknownKey {
        file: String,
        field: String,
        hint: Option<String>,
    },
    #[error("{file}: field {field}: wanted {want}, got {got}")]
    Field {
        file: String,
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
    /// Always a usage error.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }
}

impl Profile {
    /// A built-in by its name, or a file by its path.
    ///
    /// # Errors
    /// No such profile, a file that does not parse, a key that is not known, a number that cannot be.
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

    /// Every built-in profile.
    ///
    /// # Errors
    /// Never for the program's own profiles; a test reads them all.
    pub fn built_in() -> Result<Vec<Self>, ProfileError> {
        BUILT_IN
            .iter()
            .map(|(name, text)| Self::parse(name, text))
            .collect()
    }

    /// Reads the text of a profile; `file` names it in errors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(file: &str, text: &str) -> Result<Self, ProfileError> {
        let syntax = |e: basic_toml::Error| ProfileError::Syntax {
            file: file.to_owned(),
            reason: e.to_string(),
        };
        // Keys first: a misspelt key deserves its own answer, not "missing field" for the one that was meant.
        known_keys(file, &basic_toml::from_str(text).map_err(syntax)?)?;
        let mut profile: Self = basic_toml::from_str(text).map_err(syntax)?;
        profile.name = Path::new(file).file_stem().map_or_else(
            || file.to_owned(),
            |stem| stem.to_string_lossy().into_owned(),
        );
        profile.check(file)?;
        Ok(profile)
    }

    /// The same machine for an export of another precision.
    ///
    /// # Errors
    /// A device that has no rate for it.
    pub fn with_recipe(self, recipe: Recipe) -> Result<Self, ProfileError> {
        let profile = Self { recipe, ..self };
        profile.check(&profile.name)?;
        Ok(profile)
    }

    /// Devices of the machine.
    pub fn device_count(&self) -> usize {
        self.devices.iter().map(|d| d.count).sum()
    }

    /// One entry a device, in order.
    pub fn each_device(&self) -> impl Iterator<Item = &Device> {
        self.devices
            .iter()
            .flat_map(|d| std::iter::repeat_n(d, d.count))
    }

    fn check(&self, file: &str) -> Result<(), ProfileError> {
        let check = Check { file };
        if self.devices.is_empty() {
            return Err(check.field("devices", "one device or more", "none"));
        }
        for (i, d) in self.devices.iter().enumerate() {
            d.check(&check, &format!("devices[{i}]"), self.recipe)?;
        }
        let h = &self.host;
        check.positive("host.memory_gib", h.memory_gib)?;
        check.within(
            "host.reserve_gib",
            h.reserve_gib,
            "host.memory_gib",
            h.memory_gib,
        )?;
        check.within(
            "host.pinned_gib",
            h.pinned_gib,
            "host.memory_gib",
            h.memory_gib,
        )?;
        check.positive("host.disk_gbs", h.disk_gbs)?;
        self.check_layout(&check)?;
        self.check_sizes(&check)?;
        for (name, mib) in [
            ("builder.workspace_mib", self.builder.workspace_mib),
            ("builder.scratch_mib", self.builder.scratch_mib),
        ] {
            check.count(name, mib, 1, 1 << 20)?;
        }
        check.count(
            "builder.optimization_level",
            self.builder.optimization_level,
            0,
            5,
        )
    }

    fn check_layout(&self, check: &Check<'_>) -> Result<(), ProfileError> {
        let l = &self.layout;
        check.count("layout.steps", l.steps, 1, 1000)?;
        check.count("layout.ring_blocks", l.ring_blocks, 1, 64)?;
        check.count("residency.slots", self.residency.slots, 2, 64)?;
        if let LanePolicy::AtMost(n) = l.lanes {
            check.count("layout.lanes", n, 1, 64)?;
        }
        let parts = l.layers.count();
        let (stages, own) = (parts.saturating_mul(l.steps), l.vae == VaePolicy::Own);
        let (wanted, have) = (stages + usize::from(own), self.device_count());
        if wanted > have {
            let vae = if own { " and one for the VAE" } else { "" };
            let want = format!(
                "{wanted} devices ({parts} parts of the layers x {} of the steps{vae})",
                l.steps
            );
            return Err(check.field("devices", &want, &have.to_string()));
        }
        let used = self.each_device().take(wanted);
        if self.residency.slots > 0 && self.streams() {
            let link = used
                .filter(|d| d.kind == Kind::Gpu)
                .find(|d| d.host_link_gbs <= 0.0);
            if let Some(d) = link {
                let got = format!("{} with residency {:?}", d.host_link_gbs, self.residency);
                return Err(check.field(
                    "devices.host_link_gbs",
                    "a rate above 0 to stream over",
                    &got,
                ));
            }
        }
        Ok(())
    }

    fn streams(&self) -> bool {
        self.residency.weights != Keep::Device || self.residency.rings != Keep::Device
    }

    fn check_sizes(&self, check: &Check<'_>) -> Result<(), ProfileError> {
        let s = &self.sizes;
        for (name, extent) in [
            ("sizes.min", s.min),
            ("sizes.opt", s.opt),
            ("sizes.max", s.max),
        ] {
            let fits = |n: usize| (64..=8192).contains(&n) && n.is_multiple_of(16);
            if !fits(extent.width) || !fits(extent.height) {
                let want = "multiples of 16 from 64 to 8192";
                return Err(check.field(name, want, &extent.to_string()));
            }
        }
        if s.min.area() > s.opt.area() || s.opt.area() > s.max.area() {
            let got = format!("{}, {}, {}", s.min, s.opt, s.max);
            return Err(check.field("sizes", "min, opt and max of ascending area", &got));
        }
        Ok(())
    }
}

impl Device {
    /// Bytes that tensors may take.
    pub fn usable_bytes(&self) -> u64 {
        ((self.memory_gib - self.reserve_gib) * GIB) as u64
    }

    /// Operations a second of matrix products in `recipe`'s weights, at their peak. A card without FP8 computes in bf16.
    pub fn peak(&self, recipe: Recipe) -> f64 {
        let t = &self.tflops;
        1e12 * match recipe {
            Recipe::Fp32 => t.fp32,
            Recipe::Fp8 if t.fp8 > 0.0 => t.fp8,
            Recipe::Bf16 | Recipe::Fp8 => t.bf16,
        }
    }

    fn check(&self, check: &Check<'_>, at: &str, recipe: Recipe) -> Result<(), ProfileError> {
        let field = |name: &str| format!("{at}.{name}");
        check.count(&field("count"), self.count, 1, 64)?;
        check.positive(&field("memory_gib"), self.memory_gib)?;
        check.within(
            &field("reserve_gib"),
            self.reserve_gib,
            &field("memory_gib"),
            self.memory_gib,
        )?;
        check.positive(&field("bandwidth_gbs"), self.bandwidth_gbs)?;
        for (name, rate) in [
            ("tflops.fp32", self.tflops.fp32),
            ("tflops.bf16", self.tflops.bf16),
            ("tflops.fp8", self.tflops.fp8),
            ("host_link_gbs", self.host_link_gbs),
            ("peer_link_gbs", self.peer_link_gbs),
        ] {
            check.not_negative(&field(name), rate)?;
        }
        if self.peak(recipe) <= 0.0 {
            let name = if recipe == Recipe::Fp32 {
                "tflops.fp32"
            } else {
                "tflops.bf16"
            };
            let want = format!("a rate above 0 for recipe {recipe}");
            return Err(check.field(&field(name), &want, "0"));
        }
        for (name, share) in [
            ("achieved.linear", self.achieved.linear),
            ("achieved.attention", self.achieved.attention),
            ("achieved.convolution", self.achieved.convolution),
            ("achieved.memory", self.achieved.memory),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(check.field(
                    &field(name),
                    "a share above 0 and at most 1",
                    &share.to_string(),
                ));
            }
        }
        match (self.kind, self.sm, self.cores) {
            (Kind::Gpu, 0, _) => {
                Err(check.field(&field("sm"), "a compute capability such as 89", "0"))
            }
            (Kind::Cpu, _, 0) => {
                Err(check.field(&field("cores"), "the cores that tflops stands for", "0"))
            }
            _ => Ok(()),
        }
    }
}

impl Parts {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Even(n) => *n,
            Self::Shares(list) => list.len(),
        }
    }
}

impl Extent {
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
        parsed.ok_or_else(|| format!("layers wants a number of parts of 1 or more, or their proportion such as [11, 9], got {value}"))
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

/// Checks of single fields.
struct Check<'a> {
    file: &'a str,
}

impl Check<'_> {
    fn field(&self, field: &str, want: &str, got: &str) -> ProfileError {
        ProfileError::Field {
            file: self.file.to_owned(),
            field: field.to_owned(),
            want: want.to_owned(),
            got: got.to_owned(),
        }
    }

    fn require(&self, ok: bool, field: &str, want: &str, got: f64) -> Result<(), ProfileError> {
        if ok {
            Ok(())
        } else {
            Err(self.field(field, want, &got.to_string()))
        }
    }

    fn positive(&self, field: &str, got: f64) -> Result<(), ProfileError> {
        self.require(got.is_finite() && got > 0.0, field, "a number above 0", got)
    }

    fn not_negative(&self, field: &str, got: f64) -> Result<(), ProfileError> {
        self.require(
            got.is_finite() && got >= 0.0,
            field,
            "a number of 0 or more",
            got,
        )
    }

    fn within(&self, field: &str, got: f64, of: &str, most: f64) -> Result<(), ProfileError> {
        self.not_negative(field, got)?;
        let want = format!("less than {of} = {most}");
        let equal_is_fine = field.ends_with("pinned_gib");
        self.require(
            got < most || (equal_is_fine && got <= most),
            field,
            &want,
            got,
        )
    }

    fn count(
        &self,
        field: &str,
        got: usize,
        least: usize,
        most: usize,
    ) -> Result<(), ProfileError> {
        if (least..=most).contains(&got) {
            return Ok(());
        }
        let want = format!("a whole number from {least} to {most}");
        Err(self.field(field, &want, &got.to_string()))
    }
}

/// Compares the keys of a text with those of a profile that has every key.
fn known_keys(file: &str, text: &Value) -> Result<(), ProfileError> {
    let (name, whole) = BUILT_IN[0];
    let whole: Profile = basic_toml::from_str(whole).map_err(|e| ProfileError::Syntax {
        file: name.to_owned(),
        reason: e.to_string(),
    })?;
    let whole = serde_json::to_value(whole).unwrap_or_default();
    unknown_key(text, &whole, "").map_or(Ok(()), |(field, hint)| {
        Err(ProfileError::UnknownKey {
            file: file.to_owned(),
            field,
            hint,
        })
    })
}

/// The first key of `text` that `whole` lacks, and the nearest one that it has.
fn unknown_key(text: &Value, whole: &Value, at: &str) -> Option<(String, Option<String>)> {
    match (text, whole) {
        (Value::Object(text), Value::Object(whole)) => text.iter().find_map(|(key, value)| {
            let path = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            match whole.get(key) {
                Some(known) => unknown_key(value, known, &path),
                None => Some((path, nearest(key, whole.keys().map(String::as_str)))),
            }
        }),
        (Value::Array(text), Value::Array(whole)) => {
            let like = whole.first()?;
            text.iter()
                .enumerate()
                .find_map(|(i, v)| unknown_key(v, like, &format!("{at}[{i}]")))
        }
        _ => None,
    }
}

/// The known name with the fewest edits, unless that is a different word.
pub fn nearest<'a>(got: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let best = known.map(|k| (edits(got, k), k)).min()?;
    (best.0 <= got.len().max(best.1.len()) / 2).then(|| best.1.to_owned())
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> &'static str {
        BUILT_IN.iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn changed(from: &str, to: &str) -> Result<Profile, ProfileError> {
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
    fn an_unknown_key_is_named_with_the_nearest() {
        for (from, to, want) in [
            (
                "memory_gib",
                "memory_gb",
                "my.toml: field devices[0].memory_gb is not known; did you mean `memory_gib`?",
            ),
            (
                "lanes",
                "lane",
                "my.toml: field layout.lane is not known; did you mean `lanes`?",
            ),
            (
                "recipe",
                "reciep",
                "my.toml: field reciep is not known; did you mean `recipe`?",
            ),
            (
                "optimization_level",
                "zzz",
                "my.toml: field builder.zzz is not known",
            ),
            (
                "fp8 = ",
                "f8 = ",
                "my.toml: field devices[0].tflops.f8 is not known; did you mean `fp8`?",
            ),
        ] {
            let error = changed(from, to).unwrap_err();
            assert_eq!(error.to_string(), want);
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
    }

    #[test]
    fn impossible_numbers_are_named_with_what_was_wanted() {
        for (from, to, want) in [
            (
                "memory_gib = 24",
                "memory_gib = 0",
                "field devices[0].memory_gib: wanted a number above 0, got 0",
            ),
            (
                "memory_gib = 24",
                "memory_gib = -24",
                "field devices[0].memory_gib: wanted a number above 0, got -24",
            ),
            (
                "memory_gib = 24",
                "memory_gib = nan",
                "field devices[0].memory_gib: wanted a number above 0, got NaN",
            ),
            (
                "memory_gib = 24",
                "memory_gib = inf",
                "field devices[0].memory_gib: wanted a number above 0, got inf",
            ),
            (
                "reserve_gib = 1.25",
                "reserve_gib = 25.0",
                "field devices[0].reserve_gib: wanted less than devices[0].memory_gib = 24, got 25",
            ),
            (
                "reserve_gib = 1.25",
                "reserve_gib = -1.0",
                "field devices[0].reserve_gib: wanted a number of 0 or more, got -1",
            ),
            (
                "bf16 = 165.2",
                "bf16 = 0.0",
                "field devices[0].tflops.bf16: wanted a rate above 0 for recipe bf16, got 0",
            ),
            (
                "linear = 0.85",
                "linear = 1.5",
                "field devices[0].achieved.linear: wanted a share above 0 and at most 1, got 1.5",
            ),
            (
                "host_link_gbs = 24",
                "host_link_gbs = -1",
                "field devices[0].host_link_gbs: wanted a number of 0 or more, got -1",
            ),
            (
                "count = 4",
                "count = 3",
                "field devices: wanted 4 devices (4 parts of the layers x 1 of the steps), got 3",
            ),
            (
                "count = 4",
                "count = 0",
                "field devices[0].count: wanted a whole number from 1 to 64, got 0",
            ),
            (
                "vae = \"least-loaded\"",
                "vae = \"own\"",
                "field devices: wanted 5 devices (4 parts of the layers x 1 of the steps and one for the VAE), got 4",
            ),
            (
                "ring_blocks = 4",
                "ring_blocks = 0",
                "field layout.ring_blocks: wanted a whole number from 1 to 64, got 0",
            ),
            (
                "slots = 2",
                "slots = 1",
                "field residency.slots: wanted a whole number from 2 to 64, got 1",
            ),
            (
                "pinned_gib = 16",
                "pinned_gib = 65",
                "field host.pinned_gib: wanted less than host.memory_gib = 64, got 65",
            ),
            (
                "max = \"720*400\"",
                "max = \"256*240\"",
                "field sizes: wanted min, opt and max of ascending area, got 256*256, 704*384, 256*240",
            ),
            (
                "max = \"720*400\"",
                "max = \"720*401\"",
                "field sizes.max: wanted multiples of 16 from 64 to 8192, got 720*401",
            ),
            (
                "optimization_level = 3",
                "optimization_level = 6",
                "field builder.optimization_level: wanted a whole number from 0 to 5, got 6",
            ),
            (
                "sm = 89",
                "sm = 0",
                "field devices[0].sm: wanted a compute capability such as 89, got 0",
            ),
        ] {
            let error = changed(from, to).expect_err(to).to_string();
            assert_eq!(error, format!("my.toml: {want}"), "{to}");
        }
    }

    #[test]
    fn values_of_the_wrong_kind_are_named() {
        for (from, to, want) in [
            (
                "lanes = 1",
                "lanes = 0",
                "lanes wants \"wave\" or a number of 1 or more, got 0",
            ),
            (
                "lanes = 1",
                "lanes = \"all\"",
                "lanes wants \"wave\" or a number of 1 or more, got \"all\"",
            ),
            (
                "layers = [11, 7, 11, 11]",
                "layers = [10, 0]",
                "layers wants a number of parts of 1 or more",
            ),
            (
                "recipe = \"bf16\"",
                "recipe = \"fp4\"",
                "recipe wants fp32, bf16 or fp8, got `fp4`",
            ),
            (
                "vae = \"least-loaded\"",
                "vae = \"third\"",
                "unknown variant `third`, expected `own` or `least-loaded`",
            ),
            ("sm = 89", "sm = \"89\"", "invalid type: string \"89\""),
            ("count = 4", "", "missing field `count`"),
            ("[host]", "[host", "my.toml: not a profile:"),
            (
                "opt = \"704*384\"",
                "opt = \"704\"",
                "size wants W*H such as 704*384, got `704`",
            ),
        ] {
            let error = changed(from, to).expect_err(to).to_string();
            assert!(
                error.starts_with("my.toml: ") && error.contains(want),
                "{error}"
            );
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
