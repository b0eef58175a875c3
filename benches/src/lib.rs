//! The harness: makes traffic whose flows are known, sends it, and runs the programs on it in network namespaces.
#![deny(missing_docs)]

pub mod export;
pub mod faults;
pub mod file;
pub mod lab;
pub mod memory;
pub mod outage;
pub mod peers;
pub mod plot;
pub mod rings;
pub mod sender;
pub mod traffic;
pub mod wire;
