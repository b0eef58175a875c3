//! The Nagare probe: captures packets, meters flows, exports IPFIX.
//!
//! One straight line: [`capture`] -> [`worker`] (decode) -> [`cache`] -> ring -> [`exporter`] -> collector.
#![deny(missing_docs)]

pub mod books;
pub mod cache;
pub mod capture;
pub mod counters;
pub mod exporter;
pub mod options;
pub mod run;
pub mod select;
pub mod spools;
mod sys;
pub mod template;
pub mod worker;
