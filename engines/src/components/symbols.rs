//! The symbols in the shapes of contracts, as consts. A caller binds a symbol to a size by its
//! const, as it binds a port by its const. Only the shapes of ports spell the letters.
//!
//! ```
//! use engines::components::{dit, symbols};
//!
//! let sizes = symbols::bindings([
//!     (symbols::LANES, 1),
//!     (symbols::LATENT_CHANNELS, 16),
//!     (symbols::BLOCK_FRAMES, 3),
//!     (symbols::TOKEN_ROWS, 24),
//!     (symbols::TOKEN_COLUMNS, 44),
//! ]);
//! let dims = dit::LATENTS.dims();
//! let shape: Option<Vec<i64>> = dims.iter().map(|d| d.eval(&sizes)).collect();
//! assert_eq!(shape, Some(vec![1, 16, 3, 48, 88]));
//! ```

use crate::dim::Bindings;

/// Lanes of one call: independent videos or denoising steps that share the call.
pub const LANES: &str = "B";
/// Lanes of the sink's and the text's keys: 1 if all lanes of the call share them, else [`LANES`].
pub const CONDITION_LANES: &str = "G";
/// Latent frames of one block.
pub const BLOCK_FRAMES: &str = "F";
/// Token rows of one frame; a token covers 2 x 2 latents, so a frame has `2*h` latent rows.
pub const TOKEN_ROWS: &str = "h";
/// Token columns of one frame; a frame has `2*w` latent columns.
pub const TOKEN_COLUMNS: &str = "w";

/// Width of the transformer's hidden state.
pub const MODEL_WIDTH: &str = "D";
/// Attention heads of the transformer.
pub const HEADS: &str = "N";
/// Elements of one attention head.
pub const HEAD_SIZE: &str = "d";
/// Pairs of elements that rotary embedding turns: half of [`HEAD_SIZE`].
pub const ROTARY_PAIRS: &str = "p";
/// Elements of the timestep's sinusoid.
pub const SINUSOID_SIZE: &str = "f";
/// Tokens that the KV ring of one layer and step holds.
pub const RING_TOKENS: &str = "S";
/// Tokens of the sink: the reference picture and the motion history.
pub const SINK_TOKENS: &str = "C";

/// Rows of the text embedding, its zero padding included.
pub const TEXT_ROWS: &str = "M";
/// Width of the text encoder's output.
pub const TEXT_WIDTH: &str = "T";

/// Actors: people in the picture who each have a speech track.
pub const ACTORS: &str = "A";
/// Audio tokens of one latent frame, the padding token included.
pub const AUDIO_TOKENS: &str = "K";
/// Hidden states of the speech encoder that the adapter mixes: its layers and its input.
pub const SPEECH_STATES: &str = "Q";
/// Width of the speech encoder's hidden states.
pub const SPEECH_WIDTH: &str = "E";
/// Sound samples, at 16 kHz.
pub const SAMPLES: &str = "s";
/// Length of an encoder's sequence: tokens of a prompt, or speech frames at 50 a second.
pub const SEQUENCE: &str = "t";
/// Rows of the sequence that one call of a speech layer computes.
pub const SEQUENCE_ROWS: &str = "r";

/// Channels of a latent.
pub const LATENT_CHANNELS: &str = "Z";
/// Latent rows of one frame: an eighth of its pixel rows.
pub const LATENT_ROWS: &str = "H";
/// Latent columns of one frame: an eighth of its pixel columns.
pub const LATENT_COLUMNS: &str = "W";
/// Base width of the VAE.
pub const VAE_WIDTH: &str = "c";

/// Rows of the left matrix of a matrix product.
pub const PRODUCT_ROWS: &str = "m";
/// Columns of the left matrix and rows of the right matrix of a matrix product.
pub const PRODUCT_INNER: &str = "k";
/// Columns of the right matrix of a matrix product.
pub const PRODUCT_COLUMNS: &str = "n";

/// Every symbol, in the order above.
pub const ALL: [&str; 28] = [
    LANES,
    CONDITION_LANES,
    BLOCK_FRAMES,
    TOKEN_ROWS,
    TOKEN_COLUMNS,
    MODEL_WIDTH,
    HEADS,
    HEAD_SIZE,
    ROTARY_PAIRS,
    SINUSOID_SIZE,
    RING_TOKENS,
    SINK_TOKENS,
    TEXT_ROWS,
    TEXT_WIDTH,
    ACTORS,
    AUDIO_TOKENS,
    SPEECH_STATES,
    SPEECH_WIDTH,
    SAMPLES,
    SEQUENCE,
    SEQUENCE_ROWS,
    LATENT_CHANNELS,
    LATENT_ROWS,
    LATENT_COLUMNS,
    VAE_WIDTH,
    PRODUCT_ROWS,
    PRODUCT_INNER,
    PRODUCT_COLUMNS,
];

/// Binds symbols to sizes.
///
/// # Panics
/// If a size is above `i64::MAX`.
pub fn bindings(sizes: impl IntoIterator<Item = (&'static str, usize)>) -> Bindings {
    let size = |n| i64::try_from(n).expect("a size of a tensor");
    let sizes = sizes.into_iter();
    sizes.map(|(s, n)| (s.to_owned(), size(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::components;
    use crate::components::matmul;
    use std::collections::BTreeSet;

    #[test]
    fn contracts_use_these_symbols_and_no_others() {
        let contracts = components::ALL.iter().chain([&matmul::MATMUL]);
        let ports = contracts.flat_map(|c| c.inputs.iter().chain(c.state).chain(c.outputs));
        let words = |shape: &'static str| shape.split(|c: char| !c.is_ascii_alphanumeric());
        let used: BTreeSet<&str> = ports
            .flat_map(|p| words(p.shape))
            .filter(|w| w.starts_with(|c: char| c.is_ascii_alphabetic()) && *w != "floor")
            .collect();
        assert_eq!(used, BTreeSet::from(ALL));
        assert_eq!(used.len(), ALL.len(), "a symbol stands twice");
    }
}
