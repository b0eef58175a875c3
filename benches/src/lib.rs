//! The harness: makes traffic whose flows are known, sends it, and runs the programs on it in network namespaces.
#![deny(missing_docs)]

pub mod lab;
pub mod memory;
pub mod plot;
pub mod sender;
pub mod traffic;
