//! One picture, speech and a prompt in; talking video out, of any length, in constant memory. The library behind `avatar-run`: it knows
//! engines by their contracts ([`engines`]) and nothing of checkpoints or exporters.
//!
//! ```text
//! picture, audio_file, speech, prompt --condition--> conditions --executor--> latents --pipeline--> frames --mp4--> file
//! ```
//! Numbers: [`size`], [`schedule`], [`rope`], [`rng`], [`ring`], [`wavefront`]. Devices: numbers in [`plan`], memory in [`devices`]. Order and threads:
//! [`executor`]. State: [`stage`] (KV rings) and [`vae`] (feature caches).
#[cfg_attr(not(feature = "media"), path = "no_media/audio_file.rs")]
pub mod audio_file;
pub mod bench;
pub mod call;
pub mod cli;
pub mod commands;
pub mod compat;
pub mod condition;
pub mod contact_sheet;
pub mod device;
pub mod devices;
pub mod error;
pub mod events;
pub mod exec;
pub mod executor;
#[cfg(test)]
mod fake;
#[cfg(feature = "media")]
pub mod ffmpeg;
pub mod footprint;
pub mod generate;
#[cfg(test)]
mod golden;
pub mod latents;
#[cfg_attr(not(feature = "media"), path = "no_media/mp4.rs")]
pub mod mp4;
mod offload;
mod output;
pub mod parity;
pub mod picture;
pub mod pipeline;
pub mod plan;
pub mod planner;
#[cfg_attr(not(feature = "media"), path = "no_media/probe.rs")]
pub mod probe;
pub mod progress;
pub mod prompt;
pub mod ring;
pub mod rng;
pub mod rope;
pub mod schedule;
pub mod simulate;
pub mod size;
pub mod speech;
pub mod stage;
pub mod streams;
pub mod synthetic;
pub mod trace;
pub mod vae;
pub mod verify;
pub mod wavefront;
