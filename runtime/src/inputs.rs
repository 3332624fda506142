//! Turns what the user gives into what the model takes.

pub(crate) mod replay;
pub(crate) mod prompt;
pub(crate) mod speech;

pub use prompt::Prompter;
pub use speech::Speech;
