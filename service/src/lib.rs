//! What both programs need to be services: where to connect ([`endpoint`]), how long and how large ([`units`]), TOML under the
//! command line ([`options`]), certificates and refusals in words ([`tls`]), equations that must balance ([`books`]), signals,
//! systemd and the log ([`run`]).
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod books;
pub mod endpoint;
pub mod options;
pub mod run;
pub mod tls;
pub mod units;
