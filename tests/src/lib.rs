//! Test support shared by the one integration binary.
