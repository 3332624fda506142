//! Supports the one integration binary. Runs the binaries under test, opens golden folders, makes
//! files by hand, and gives numbers a tolerance by type. No test is here.
pub mod close;
pub mod files;
pub mod golden;
pub mod program;
