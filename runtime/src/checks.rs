//! Checks that an export computes the right thing, and measures how fast.

pub(crate) mod bench;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod error;
pub(crate) mod exec;
pub(crate) mod film;
pub(crate) mod made_up;
pub(crate) mod parity;
pub(crate) mod synthetic;
pub(crate) mod verify;

pub use diff::{
    BlockDiff, Diff, DiffError, Distance, FilesDiffer, Picture, Sound, TensorDiff, diff,
};
pub use verify::{Golden, Report, Request, Subject, run};
