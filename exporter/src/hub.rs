//! Published checkpoints on a hub: their names, the cache of their files on this machine, and their
//! download. `hf-hub` is the client; this module adds what it lacks: hashes, room on the disk, and
//! files that are whole before their name is there.

mod cache;
mod download;
mod error;
mod id;
mod listing;

pub(crate) use cache::{checkpoint_folder, lora_path};
pub(crate) use download::{Download, Told, download};
pub(crate) use error::HubError;
pub(crate) use id::{HubId, PUBLISHED};
