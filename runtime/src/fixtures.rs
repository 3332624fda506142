//! What unit tests share.

pub(crate) mod fake;
pub(crate) mod golden;
pub(crate) mod sizes;
pub(crate) mod sound;
