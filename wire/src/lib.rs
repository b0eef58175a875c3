//! What both ends of Nagare read and write: packet headers and IPFIX Messages.
//!
//! Bytes become values and values become bytes here. There is no I/O, no clock and no `unsafe`; every length that a peer
//! or a packet names is checked, and what cannot be decoded is refused under a name, never by a panic.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod delivery;
pub mod flow;
pub mod fragment;
pub mod ipfix;
pub mod observation;
pub mod packet;
pub mod steer;
