//! Largest and smallest pictures.

/// Smallest side of a picture, in pixels. A smaller one cannot show a face.
pub(crate) const MIN_SIDE: usize = 16;
/// Largest side of a picture, in pixels. The header is checked before memory is allocated.
pub(crate) const MAX_SIDE: usize = 16_384;
/// Largest number of pixels of a picture, also checked by the header.
pub(crate) const MAX_PIXELS: usize = 1 << 27;
/// Bytes that a file may have and that a decoder may allocate: 16 per pixel.
pub(crate) const MAX_BYTES: u64 = 16 * MAX_PIXELS as u64;
