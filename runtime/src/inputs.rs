//! Turns the inputs of the user into the inputs of the model.

pub(crate) mod framing;
pub(crate) mod heard;
pub(crate) mod live;
pub(crate) mod prompt;
pub(crate) mod replay;
pub(crate) mod speech;

pub use prompt::Prompter;
pub use speech::{Channels, Speech};
