//! The one integration binary: graphs as text, numbers against the reference, whole videos, and
//! what the commands say.
mod bench;
mod cli;
mod device;
mod engine;
mod export;
mod graphs;
mod parity;
mod placement;
mod plans;
mod rooms;
mod stream;
