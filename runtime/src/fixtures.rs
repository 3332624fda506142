//! Parts that unit tests share: fake components, golden sets, sizes and recordings.

#[cfg(feature = "media")]
pub(crate) mod encoded;
pub(crate) mod fake;
pub(crate) mod golden;
pub(crate) mod sizes;
pub(crate) mod sound;
