//! Support for the integration tests: the binaries under test, the golden folders, files made by
//! hand, and numbers that carry their tolerance. The integration tests are in `it/`.

pub mod close;
pub mod files;
pub mod golden;
pub mod hub_server;
pub mod program;
