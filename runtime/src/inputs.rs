//! Turns the inputs of the user into the inputs of the model.

pub(crate) mod actors;
pub(crate) mod framing;
pub(crate) mod heard;
pub(crate) mod pose;
pub(crate) mod prompt;
pub(crate) mod replay;
pub(crate) mod speech;
pub(crate) mod synthesiser;

pub use actors::{ActorsError, Cast, Place};
pub use prompt::Prompter;
pub use replay::Distance;
pub use speech::{Channels, Speech};
pub use synthesiser::{Spoken, Synthesiser, SynthesiserError};
