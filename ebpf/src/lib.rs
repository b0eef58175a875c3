//! The kernel side: the programs that give packets to workers (XDP for a capture port, tc for an interface that the host uses, and
//! the choice of a socket for AF_PACKET), their loaders, and a load generator.
//!
//! The programs are C (`bpf/`), compiled by the build and embedded here. A loaded [`Program`] owns its maps and its link to
//! the interface: when it is dropped, or its process dies, the kernel detaches it.
#![deny(missing_docs)]

mod error;
mod generator;
mod host;
mod layout;
mod program;

pub use error::Error;
pub use generator::{Generator, Passing};
pub use host::{Fanout, Host, HostRing};
pub use layout::{HostFrame, Metadata, RINGS_MAX};
pub use program::{Counters, Mode, Program, Steering};
