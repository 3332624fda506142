//! One picture, speech and a prompt in; talking video out, of any length, in constant memory. The
//! library behind `avatar-run`: it knows engines by their contracts ([`engines`]) and nothing of
//! checkpoints or exporters.
//!
//! ```text
//! inputs --encoders--> conditions --executor--> latents --decoders--> frames --media--> file
//! ```
//!
//! The rooms form a stair. A room uses only rooms above it in this list:
//! [`numbers`] (pure functions of numbers), [`media`] (files of sound, pictures and video),
//! [`inputs`] (what the user gives, as the model takes it), [`placement`] (who runs what where),
//! [`chain`] (the model running), [`generate`] (one request from files to a video), [`planner`]
//! (what a machine can do), [`checks`] (does it compute the right thing, and how fast) and
//! [`commands`] (flags, text and exit codes).
#![warn(missing_docs)]

pub mod chain;
pub mod checks;
pub mod commands;
#[cfg(test)]
mod fixtures;
pub mod generate;
pub mod inputs;
pub mod media;
pub mod numbers;
pub mod placement;
pub mod planner;
