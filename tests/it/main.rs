//! The one integration binary: graphs as text, numbers against the reference, whole videos, and what the commands say.
mod cli;
mod graphs;
mod parity;
mod plans;
mod stream;
