//! placeholder
pub mod prepare;
pub mod sizes;
