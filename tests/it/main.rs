//! Holds the one integration binary: graphs, numbers against the reference, whole videos, commands.
mod bench;
mod cli;
mod device;
mod engine;
mod export;
mod graphs;
mod outputs;
mod parity;
mod placement;
mod plans;
mod readme;
mod rooms;
mod signals;
mod stream;
mod sums;
mod umt5;
mod zeros;
