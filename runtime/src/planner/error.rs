//! The errors of the planner, and a refusal with its remedies.

use std::fmt::{self, Display};

use engines::error_kind::ErrorKind;
use engines::profile::{GIB, ProfileError};

use super::ask::Ask;
use crate::numbers::geometry::ClipLengthError;
use crate::numbers::schedule::ScheduleError;
use crate::placement::plan::PlanError;

/// The reason why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The profile cannot be read.
    #[error(transparent)]
    ProfileFile(#[from] ProfileError),
    /// The stages do not cover the model.
    #[error(transparent)]
    Stages(#[from] PlanError),
    /// A clip is no whole number of blocks.
    #[error(transparent)]
    ClipLength(#[from] ClipLengthError),
    /// There is no schedule of so many steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A field of the profile does not suit the model or the run.
    #[error("profile {profile}: field {field}: wanted {want}, got {got}")]
    Profile {
        /// Name of the profile.
        profile: String,
        /// Path of the field, such as `layout.lanes`.
        field: &'static str,
        /// Values that suit.
        want: String,
        /// Value of the profile.
        got: String,
    },
    /// A device or the host has too little memory.
    #[error("{0}")]
    DoesNotFit(Box<Refusal>),
    /// The machine has fewer or smaller devices than the profile.
    #[error(
        "profile {profile} is for {wanted} device{} of {memory_gib} GiB, this machine has {found}; \
         profiles for it: {instead}",
        if *wanted == 1 { "" } else { "s" }
    )]
    Devices {
        /// Name of the profile.
        profile: String,
        /// Devices of the profile.
        wanted: usize,
        /// Memory of the profile's largest device.
        memory_gib: f64,
        /// Devices of the machine, in words.
        found: String,
        /// Names of the profiles that suit the machine.
        instead: String,
    },
    /// Flags ask for more devices than there are.
    #[error(
        "{flags} wants {wanted} device{}, there {} {found}; name fewer, or leave the flags out and \
         let the profile choose",
        if *wanted == 1 { "" } else { "s" },
        if found.starts_with("1 ") { "is" } else { "are" }
    )]
    Flags {
        /// The flags.
        flags: String,
        /// Devices that they need.
        wanted: usize,
        /// Devices that there are, in words.
        found: String,
    },
    /// Another process uses the memory that the plan needs.
    #[error(
        "{device} has {free_gib:.1} GiB free, profile {profile} plans {needed_gib:.1}; \
         end what else uses it, or take {instead}"
    )]
    Occupied {
        /// Name of the device, such as `cuda:1`.
        device: String,
        /// Name of the profile.
        profile: String,
        /// Memory that nobody uses.
        free_gib: f64,
        /// Memory that the plan needs.
        needed_gib: f64,
        /// Names of the profiles that suit the machine.
        instead: String,
    },
}

impl PlannerError {
    /// Returns the kind of the failure: usage for a profile that contradicts itself or the run,
    /// resources for memory or devices that are missing.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ProfileFile(e) => e.kind(),
            Self::Stages(e) => e.kind(),
            Self::ClipLength(e) => e.kind(),
            Self::Schedule(e) => e.kind(),
            Self::Profile { .. } => ErrorKind::Usage,
            Self::DoesNotFit(_)
            | Self::Devices { .. }
            | Self::Flags { .. }
            | Self::Occupied { .. } => ErrorKind::Resources,
        }
    }
}

/// A plan that does not fit, with the nearest settings that do.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Name of the profile.
    pub profile: String,
    /// The video that was asked for.
    pub ask: Ask,
    /// The resource that the plan needs more of.
    pub shortage: Shortage,
    /// Changes that make it fit, the smallest first.
    pub nearest: Vec<Remedy>,
}

/// A resource that a plan needs more of than there is. Memory is in bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Shortage {
    /// Memory of a device.
    Device {
        /// Number of the device.
        device: usize,
        /// The most that the plan needs at once.
        needed: u64,
        /// Memory that tensors may take.
        usable: u64,
    },
    /// Memory of the host.
    Host {
        /// Memory that the plan needs.
        needed: u64,
        /// Memory that the program may take.
        usable: u64,
    },
    /// Memory of the host whose pages are locked.
    Pinned {
        /// Memory that the plan locks.
        needed: u64,
        /// Memory that the profile allows to lock.
        usable: u64,
    },
    /// The profile's engines are for smaller videos.
    Size {
        /// The largest size, as `WIDTH*HEIGHT`.
        max: String,
    },
}

/// A change that makes a plan fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The setting and its value, written for the command line or for the profile.
    pub what: String,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = &self.ask;
        write!(
            f,
            "profile {} does not fit {} with {} steps: {}",
            self.profile, a.size, a.steps, self.shortage
        )?;
        if self.nearest.is_empty() {
            return write!(f, "; nothing near it fits");
        }
        let ways: Vec<&str> = self.nearest.iter().map(|w| w.what.as_str()).collect();
        write!(f, "; what fits: {}", ways.join(", or "))
    }
}

impl Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |n: &u64| *n as f64 / GIB;
        match self {
            Self::Device {
                device,
                needed,
                usable,
            } => write!(
                f,
                "device {device} needs {:.1} GiB and has {:.1} usable",
                gib(needed),
                gib(usable)
            ),
            Self::Host { needed, usable } => write!(
                f,
                "the host needs {:.1} GiB and has {:.1} usable",
                gib(needed),
                gib(usable)
            ),
            Self::Pinned { needed, usable } => write!(
                f,
                "{:.1} GiB of pinned host memory are needed and {:.1} allowed",
                gib(needed),
                gib(usable)
            ),
            Self::Size { max } => write!(f, "its engines are for sizes up to the area of {max}"),
        }
    }
}
