//! The collector: receives flows, stores them, answers queries, reports.
//!
//! One thread listens and decodes ([`listener`], [`stream`], [`session`], [`collect`]), the store writes ([`store`]); [`query`] and
//! [`report`] read what it wrote.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod collect;
pub mod commands;
pub mod delivery;
pub mod kernel;
pub mod listener;
pub mod options;
pub mod pki;
pub mod query;
pub mod report;
pub mod session;
pub mod sites;
pub mod store;
pub mod strangers;
pub mod stream;
pub mod time;
