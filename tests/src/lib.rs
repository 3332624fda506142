//! Test support shared by the one integration binary: the binaries under test, the golden folders, files made by hand, and a tolerance
//! that lives in a type. No test is here.
pub mod close;
pub mod files;
pub mod golden;
pub mod program;
