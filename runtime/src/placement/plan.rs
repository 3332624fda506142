//! Says which device runs which layers and which steps; no other file counts devices. A stage is a
//! device, a range of layers, a range of steps, and the weights and rings that stay on the device.
//! The stages of one range of steps form a chain through all layers. Nothing is loaded here, and no
//! thread is started.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use engines::error_kind::ErrorKind;

/// The reason why a placement cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A text that names no stages.
    #[error(
        "stages wants 1, LxS, `layers=L,steps=S` or a list such as `0:0-9/0-3;1:10-19/0-3` \
         (device:layers/steps), got `{got}`"
    )]
    Stages {
        /// The text.
        got: String,
    },
    /// A text that names no number of lanes.
    #[error("lanes wants auto or a number of 1 or more, got `{got}`")]
    Lanes {
        /// The text.
        got: String,
    },
    /// More lanes than a wave has items.
    #[error("lanes wants at most the {steps} steps of a wave, got {got}")]
    TooManyLanes {
        /// Lanes of the plan.
        got: usize,
        /// Denoising steps of the run.
        steps: usize,
    },
    /// Layers stream through too few slots.
    #[error(
        "slots wants {MIN_SLOTS} or more where layers stream, \
         one to compute from and one to fill, got {got}"
    )]
    Slots {
        /// Slots of the plan.
        got: usize,
    },
    /// A device does not exist.
    #[error("plan wants device {wanted}, there are {have}")]
    Device {
        /// Number of the device.
        wanted: usize,
        /// Devices that exist.
        have: usize,
    },
    /// More parts than layers or steps.
    #[error("stages wants at most {have} parts of {have} {what}, got {got}")]
    TooManyParts {
        /// `layers` or `steps`.
        what: &'static str,
        /// Layers of the model, or steps of the run.
        have: usize,
        /// Parts of the plan.
        got: usize,
    },
    /// Parts overlap, or leave something out.
    #[error(
        "stages wants {what} 0-{} each exactly once, in order; {} follows {}",
        have.saturating_sub(1), Inclusive(found), Before(*after)
    )]
    Gap {
        /// `layers` or `steps`.
        what: String,
        /// Layers of the model, or steps of the run.
        have: usize,
        /// End of the parts before.
        after: usize,
        /// The part that does not begin there.
        found: Range<usize>,
    },
    /// Parts end too early.
    #[error(
        "stages wants {what} 0-{} each exactly once; missing: {}",
        have.saturating_sub(1), Inclusive(&(*after..*have))
    )]
    Short {
        /// `layers` or `steps`.
        what: String,
        /// Layers of the model, or steps of the run.
        have: usize,
        /// End of the last part.
        after: usize,
    },
}

impl PlanError {
    /// Returns the kind of the failure: resources if the machine has fewer devices than the plan,
    /// usage otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Device { .. } => ErrorKind::Resources,
            _ => ErrorKind::Usage,
        }
    }
}

/// Fewest slots that let a layer's upload run while another computes.
pub(crate) const MIN_SLOTS: usize = 2;

/// The place of a stage's rings between calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rings {
    /// In the device's memory.
    #[default]
    OnDevice,
    /// In host memory. For each layer of a call, the rows that it reads are copied to the device,
    /// and the rows that it wrote are copied back.
    OnHost,
}

/// The weights and rings of a stage that stay on its device between calls. The others come from
/// host memory in each call, through slots.
///
/// ```
/// use runtime::placement::{Residency, Rings};
///
/// let residency = Residency { resident_layers: 10, ..Residency::default() };
/// assert!(residency.streams(40), "30 of 40 layers have no place on the device");
/// assert!(!residency.streams(10));
/// assert!(Residency { rings: Rings::OnHost, ..residency }.streams(10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Residency {
    /// Layers that keep their weights on the device, counted from the stage's first. A number above
    /// that of the stage's layers means all of them.
    pub resident_layers: usize,
    /// The place of the rings.
    pub rings: Rings,
    /// Layers that fit on the device beside the resident ones, at least 2. The number
    /// does not matter if nothing streams.
    pub slots: usize,
}

impl Default for Residency {
    /// Keeps everything on the device.
    fn default() -> Self {
        Self {
            resident_layers: usize::MAX,
            rings: Rings::OnDevice,
            slots: MIN_SLOTS,
        }
    }
}

impl Residency {
    /// Returns whether any layer of a stage of `layers` layers needs a slot.
    pub fn streams(&self, layers: usize) -> bool {
        self.resident_layers < layers || self.rings == Rings::OnHost
    }
}

/// The share of one device: all of `layers` for all of `steps`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StageSpec {
    /// Number of the device.
    pub device: usize,
    /// Layers of the model.
    pub layers: Range<usize>,
    /// Denoising steps.
    pub steps: Range<usize>,
    /// Weights and rings that stay on the device.
    pub residency: Residency,
}

impl StageSpec {
    /// Makes a stage whose weights and rings all stay.
    pub fn new(device: usize, layers: Range<usize>, steps: Range<usize>) -> Self {
        Self {
            device,
            layers,
            steps,
            residency: Residency::default(),
        }
    }

    /// Makes the stage of a placement on one device.
    pub fn whole(layers: usize, steps: usize) -> Self {
        Self::new(0, 0..layers, 0..steps)
    }
}

/// The value of `--stages`, before the model's sizes are known.
///
/// ```
/// use runtime::placement::{Lanes, Plan, PlanError, Stages};
///
/// // Two parts of the layers times two parts of the steps: four devices.
/// let stages: Stages = "2x2".parse()?;
/// assert_eq!(stages, "layers=2,steps=2".parse()?);
/// let plan = Plan::new(&stages, Lanes::Auto, 40, 4)?;
/// assert_eq!(plan.devices(), 4);
///
/// // A list that leaves layers out is refused.
/// let stages: Stages = "0:0-19/0-3".parse()?;
/// let error = Plan::new(&stages, Lanes::Auto, 40, 4).unwrap_err();
/// assert!(error.to_string().ends_with("missing: 20-39"));
/// # Ok::<(), PlanError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stages {
    /// Even parts, on `layers` x `steps` devices.
    Grid {
        /// Parts of the layers.
        layers: usize,
        /// Parts of the steps.
        steps: usize,
    },
    /// A list of every stage.
    List(Vec<StageSpec>),
}

impl Default for Stages {
    fn default() -> Self {
        Self::Grid {
            layers: 1,
            steps: 1,
        }
    }
}

/// The value of `--lanes`: the items of a wave that share one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lanes {
    /// One item. A call on a CPU is bound by arithmetic, so more lanes save no time, and each lane
    /// needs memory for its attention scores.
    #[default]
    Auto,
    /// So many items, or as many as the chain has steps if those are fewer.
    AtMost(usize),
}

/// The stages of one range of steps, in layer order.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Chain {
    /// Denoising steps.
    pub steps: Range<usize>,
    /// Stages in the order of their layers.
    pub stages: Vec<StageSpec>,
    /// Most lanes of a call.
    pub lanes: usize,
}

/// A placement that covers every layer and every step once.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// Chains in the order of their steps.
    pub chains: Vec<Chain>,
    /// Device of the text encoder, the speech encoder and the VAE encoder. Each is freed before the
    /// next is loaded, and the last one before the transformer is loaded.
    pub encoders: usize,
    /// Device of the VAE decoder.
    pub vae: usize,
    /// Whether the encoders stay on their device for the next video.
    pub encoders_stay: bool,
    /// Blocks that a KV ring holds, the newest ones; those of a clip if `None`.
    pub ring_blocks: Option<usize>,
    /// What the order of work favours.
    pub latency: Latency,
    /// Kind of every device.
    pub kind: DeviceKind,
}

/// What the order of work favours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    /// All stages are busy from the beginning.
    #[default]
    Normal,
    /// The first block comes as soon as it can: until then, stages in a row take it first, and
    /// leave a gap for it.
    Low,
}

/// The kind of the devices of a plan, which names them: `cpu:0`, `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The CPU, or virtual devices on it.
    #[default]
    Cpu,
    /// CUDA devices.
    Cuda,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

impl Plan {
    /// Places `layers` layers and `steps` steps.
    ///
    /// # Errors
    /// There are more parts than layers or steps, or more lanes than steps; a list leaves a gap or
    /// overlaps.
    pub fn new(
        stages: &Stages,
        lanes: Lanes,
        layers: usize,
        steps: usize,
    ) -> Result<Self, PlanError> {
        if let Lanes::AtMost(got) = lanes
            && got > steps
        {
            return Err(PlanError::TooManyLanes { got, steps });
        }
        let specs = match stages {
            Stages::Grid {
                layers: l,
                steps: s,
            } => grid(*l, *s, layers, steps)?,
            Stages::List(list) => list.clone(),
        };
        let mut groups: Vec<(Range<usize>, Vec<StageSpec>)> = Vec::new();
        for spec in specs {
            match groups.iter_mut().find(|(s, _)| *s == spec.steps) {
                Some((_, group)) => group.push(spec),
                None => groups.push((spec.steps.clone(), vec![spec])),
            }
        }
        groups.sort_by_key(|(s, _)| s.start);
        covered("steps", steps, groups.iter().map(|(s, _)| s))?;
        let chains = groups
            .into_iter()
            .map(|(steps, stages)| chain(steps, stages, lanes, layers));
        let chains = chains.collect::<Result<Vec<_>, _>>()?;
        let first = chains.first().and_then(|c| c.stages.first());
        let device = first.map_or(0, |s| s.device);
        Ok(Self {
            chains,
            encoders: device,
            vae: device,
            encoders_stay: false,
            ring_blocks: None,
            latency: Latency::default(),
            kind: DeviceKind::Cpu,
        })
    }

    /// Returns the same placement with another order of work.
    #[must_use]
    pub fn with_latency(self, latency: Latency) -> Self {
        Self { latency, ..self }
    }

    /// Returns the same placement with `residency` in every stage.
    ///
    /// # Errors
    /// Layers stream through fewer slots than 2.
    pub fn with_residency(mut self, residency: Residency) -> Result<Self, PlanError> {
        for spec in self.chains.iter_mut().flat_map(|c| &mut c.stages) {
            if residency.streams(spec.layers.len()) && residency.slots < MIN_SLOTS {
                return Err(PlanError::Slots {
                    got: residency.slots,
                });
            }
            spec.residency = residency;
        }
        Ok(self)
    }

    /// Returns the same placement with the VAE on another device.
    #[must_use]
    pub fn with_vae(self, device: usize) -> Self {
        Self {
            vae: device,
            ..self
        }
    }

    /// Lists every stage, chain by chain.
    pub fn stages(&self) -> impl Iterator<Item = &StageSpec> {
        self.chains.iter().flat_map(|c| &c.stages)
    }

    /// Returns the same placement with KV rings of `blocks` blocks, or of a clip's if `None`.
    #[must_use]
    pub fn with_ring(self, blocks: Option<usize>) -> Self {
        Self {
            ring_blocks: blocks,
            ..self
        }
    }

    /// Returns the same placement on devices of another kind.
    #[must_use]
    pub fn on(self, kind: DeviceKind) -> Self {
        Self { kind, ..self }
    }

    /// Names a stage in texts by its device and layers, such as `cuda:1 layers 10-19`.
    pub fn stage_name(&self, spec: &StageSpec) -> String {
        let layers = Inclusive(&spec.layers);
        format!("{}:{} layers {layers}", self.kind, spec.device)
    }

    /// Counts the denoising steps that the stages cover.
    pub fn steps(&self) -> usize {
        self.chains.last().map_or(0, |c| c.steps.end)
    }

    /// Lists the numbers of the devices in use, ascending.
    pub fn device_ids(&self) -> Vec<usize> {
        let mut ids: Vec<usize> = self.stages().map(|s| s.device).collect();
        ids.extend([self.encoders, self.vae]);
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Counts the devices in use.
    pub fn devices(&self) -> usize {
        self.device_ids().len()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, chain) in self.chains.iter().enumerate() {
            for (j, s) in chain.stages.iter().enumerate() {
                let sep = if i + j == 0 { "" } else { "; " };
                write!(f, "{sep}{}:{s}", self.kind)?;
            }
            write!(
                f,
                " ({} lane{} a call)",
                chain.lanes,
                if chain.lanes == 1 { "" } else { "s" }
            )?;
        }
        match self.chains.first().and_then(|c| c.stages.first()) {
            Some(first) if first.device != self.vae => {
                write!(f, "; {}:{} VAE", self.kind, self.vae)
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for StageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layers, steps) = (Inclusive(&self.layers), Inclusive(&self.steps));
        write!(f, "{} layers {layers} steps {steps}", self.device)?;
        let Residency {
            resident_layers,
            rings,
            slots,
        } = self.residency;
        if !self.residency.streams(self.layers.len()) {
            return Ok(());
        }
        if resident_layers < self.layers.len() {
            write!(f, ", {resident_layers} resident")?;
        }
        if rings == Rings::OnHost {
            f.write_str(", rings on the host")?;
        }
        write!(f, ", {slots} slots")
    }
}

fn chain(
    steps: Range<usize>,
    mut stages: Vec<StageSpec>,
    lanes: Lanes,
    layers: usize,
) -> Result<Chain, PlanError> {
    stages.sort_by_key(|s| s.layers.start);
    covered(
        &format!("(for steps {}) layers", Inclusive(&steps)),
        layers,
        stages.iter().map(|s| &s.layers),
    )?;
    let lanes = match lanes {
        Lanes::Auto => 1,
        Lanes::AtMost(n) => n.min(steps.len()),
    };
    Ok(Chain {
        steps,
        stages,
        lanes,
    })
}

fn covered<'r>(
    what: &str,
    have: usize,
    parts: impl Iterator<Item = &'r Range<usize>>,
) -> Result<(), PlanError> {
    let mut at = 0;
    for part in parts {
        if part.start != at || part.end > have || part.is_empty() {
            return Err(PlanError::Gap {
                what: what.to_owned(),
                have,
                after: at,
                found: part.clone(),
            });
        }
        at = part.end;
    }
    if at == have {
        Ok(())
    } else {
        Err(PlanError::Short {
            what: what.to_owned(),
            have,
            after: at,
        })
    }
}

fn grid(l: usize, s: usize, layers: usize, steps: usize) -> Result<Vec<StageSpec>, PlanError> {
    for (what, have, got) in [("layers", layers, l), ("steps", steps, s)] {
        if got > have {
            return Err(PlanError::TooManyParts { what, have, got });
        }
    }
    let cells =
        even(steps, s).flat_map(|steps| even(layers, l).map(move |layers| (layers, steps.clone())));
    Ok(cells
        .enumerate()
        .map(|(device, (layers, steps))| StageSpec::new(device, layers, steps))
        .collect())
}

/// `0..n` in `parts` contiguous ranges whose lengths differ by one at most.
fn even(n: usize, parts: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    (0..parts).map(move |i| n * i / parts..n * (i + 1) / parts)
}

impl FromStr for Stages {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let parsed = if plain.contains(':') {
            list(&plain)
        } else {
            even_parts(&plain)
        };
        parsed.ok_or_else(|| PlanError::Stages {
            got: text.to_owned(),
        })
    }
}

fn even_parts(text: &str) -> Option<Stages> {
    let count = |t: &str| t.parse().ok().filter(|&n: &usize| n > 0);
    if let Some((l, s)) = text.split_once(['x', 'X', '*']) {
        return Some(Stages::Grid {
            layers: count(l)?,
            steps: count(s)?,
        });
    }
    let (mut layers, mut steps) = (None, None);
    for part in text.split(',') {
        let slot = match part.split_once('=') {
            Some(("layers", n)) => (&mut layers, n),
            Some(("steps", n)) => (&mut steps, n),
            None if part == "1" => (&mut layers, part),
            _ => return None,
        };
        if slot.0.replace(count(slot.1)?).is_some() {
            return None;
        }
    }
    Some(Stages::Grid {
        layers: layers.unwrap_or(1),
        steps: steps.unwrap_or(1),
    })
}

fn list(text: &str) -> Option<Stages> {
    let stage = |part: &str| {
        let (device, rest) = part.split_once(':')?;
        let (layers, steps) = rest.split_once('/')?;
        Some(StageSpec::new(
            device.parse().ok()?,
            inclusive(layers)?,
            inclusive(steps)?,
        ))
    };
    text.split(';')
        .map(stage)
        .collect::<Option<_>>()
        .map(Stages::List)
}

fn inclusive(text: &str) -> Option<Range<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(())?;
    Some(first..last.checked_add(1)?)
}

impl FromStr for Lanes {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .ok()
                .filter(|&n| n > 0)
                .map(Self::AtMost)
                .ok_or_else(|| PlanError::Lanes {
                    got: text.to_owned(),
                }),
        }
    }
}

/// A range as people write it: both ends included.
struct Inclusive<'r>(&'r Range<usize>);

impl fmt::Display for Inclusive<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "{}", self.0.start),
            _ => write!(f, "{}-{}", self.0.start, self.0.end.saturating_sub(1)),
        }
    }
}

struct Before(usize);

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("nothing"),
            n => write!(f, "{}", n - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(stages: &str, lanes: &str) -> Result<Plan, PlanError> {
        Plan::new(&stages.parse()?, lanes.parse()?, 4, 4)
    }

    #[test]
    fn every_spelling_of_a_placement_is_read() {
        for (text, lanes, want) in [
            ("1", "auto", "cpu:0 layers 0-3 steps 0-3 (1 lane a call)"),
            ("1", "4", "cpu:0 layers 0-3 steps 0-3 (4 lanes a call)"),
            ("1", "1", "cpu:0 layers 0-3 steps 0-3 (1 lane a call)"),
            (
                "layers=2",
                "auto",
                "cpu:0 layers 0-1 steps 0-3; cpu:1 layers 2-3 steps 0-3 (1 lane a call)",
            ),
            (
                "2x1",
                "4",
                "cpu:0 layers 0-1 steps 0-3; cpu:1 layers 2-3 steps 0-3 (4 lanes a call)",
            ),
            (
                "steps=2",
                "3",
                "cpu:0 layers 0-3 steps 0-1 (2 lanes a call); cpu:1 layers 0-3 steps 2-3 (2 lanes a call)",
            ),
            (
                "0:0-2/0-3; 1:3/0-3",
                "2",
                "cpu:0 layers 0-2 steps 0-3; cpu:1 layers 3 steps 0-3 (2 lanes a call)",
            ),
        ] {
            assert_eq!(
                plan(text, lanes).map(|p| p.to_string()),
                Ok(want.to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            plan("layers=2,steps=2", "auto").map(|p| (p.devices(), p.chains.len())),
            Ok((4, 2))
        );
        assert_eq!(
            plan("3x1", "auto").map(|p| p.chains[0].stages[2].layers.clone()),
            Ok(2..4)
        );
    }

    #[test]
    fn what_stays_and_what_streams_is_shown_and_needs_two_slots() {
        let with = |resident_layers, rings, slots| {
            let residency = Residency {
                resident_layers,
                rings,
                slots,
            };
            plan("2x1", "4").and_then(|p| p.with_residency(residency))
        };
        let shown = |p: Result<Plan, PlanError>| p.map(|p| p.with_vae(3).to_string());
        assert_eq!(
            shown(with(1, Rings::OnHost, 3)).as_deref(),
            Ok(
                "cpu:0 layers 0-1 steps 0-3, 1 resident, rings on the host, 3 slots; \
                cpu:1 layers 2-3 steps 0-3, 1 resident, rings on the host, 3 slots (4 lanes a call); cpu:3 VAE"
            )
        );
        // As many layers as there are, or more: nothing streams, and slots do not matter.
        for all in [2, 3, usize::MAX] {
            assert_eq!(
                shown(with(all, Rings::OnDevice, 0)).as_deref(),
                Ok(
                    "cpu:0 layers 0-1 steps 0-3; cpu:1 layers 2-3 steps 0-3 (4 lanes a call); cpu:3 VAE"
                )
            );
        }
        for (resident, rings) in [(1, Rings::OnDevice), (9, Rings::OnHost)] {
            assert_eq!(
                with(resident, rings, 1).unwrap_err().to_string(),
                "slots wants 2 or more where layers stream, one to compute from and one to fill, got 1"
            );
        }
        assert_eq!(
            with(0, Rings::OnDevice, 2)
                .unwrap()
                .with_vae(3)
                .device_ids(),
            [0, 1, 3]
        );
    }

    #[test]
    fn what_is_not_a_placement_is_a_usage_error() {
        for text in [
            "",
            "0",
            "2",
            "x",
            "0x1",
            "layers=0",
            "layers=2,layers=2",
            "rows=2",
            "0:1",
            "0:3-1/0-3",
            "a:0-3/0-3",
            "-1",
        ] {
            assert_eq!(
                text.parse::<Stages>(),
                Err(PlanError::Stages {
                    got: text.to_owned()
                }),
                "{text}"
            );
        }
        for text in ["", "0", "-1", "all"] {
            assert!(
                matches!(text.parse::<Lanes>(), Err(PlanError::Lanes { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn gaps_overlaps_and_excess_are_named() {
        for (text, want) in [
            (
                "layers=5",
                "stages wants at most 4 parts of 4 layers, got 5",
            ),
            ("steps=5", "stages wants at most 4 parts of 4 steps, got 5"),
            (
                "0:0-1/0-3",
                "stages wants (for steps 0-3) layers 0-3 each exactly once; missing: 2-3",
            ),
            (
                "0:0-1/0-3;1:1-3/0-3",
                "stages wants (for steps 0-3) layers 0-3 each exactly once, in order; 1-3 follows 1",
            ),
            (
                "0:0-3/0-1;1:0-3/1-3",
                "stages wants steps 0-3 each exactly once, in order; 1-3 follows 1",
            ),
            (
                "0:0-3/0-2",
                "stages wants steps 0-3 each exactly once; missing: 3",
            ),
            (
                "0:0-4/0-3",
                "stages wants (for steps 0-3) layers 0-3 each exactly once, in order; 0-4 follows nothing",
            ),
        ] {
            assert_eq!(plan(text, "auto").unwrap_err().to_string(), want, "{text}");
        }
        assert_eq!(
            plan("1", "5"),
            Err(PlanError::TooManyLanes { got: 5, steps: 4 })
        );
    }
}
