//! The XDP side: the program that steers packets to workers' AF_XDP sockets, its loader, and a load generator.
//!
//! The programs are C (`bpf/`), compiled by the build and embedded here. A loaded [`Program`] owns its maps and its link to
//! the interface: when it is dropped, or its process dies, the kernel detaches it.
#![deny(missing_docs)]

mod error;
mod generator;
mod layout;
mod program;

pub use error::Error;
pub use generator::Generator;
pub use program::{Counters, Mode, Program};
