//! IPFIX (RFC 7011): Messages, Templates and records, written and read.

pub mod codec;
pub mod element;
pub mod export;
pub mod field;
pub mod mapping;
mod message;
mod session;

pub use message::{FieldSpecifier, MESSAGE_MAX, Malformed, MessageHeader, TemplateRecord, frame};
pub use session::{
    DOMAINS_MAX, DataRecord, Received, TEMPLATE_FIELDS_MAX, TEMPLATE_FIELDS_MAX_DATAGRAM, TEMPLATES_MAX,
    TransportSession,
};

/// What carries the Messages; Templates live by its rules (RFC 7011, 8.1 and 8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP or TLS: Messages in order, Templates withdrawn explicitly.
    Stream,
    /// UDP: Messages may be lost or reordered, Templates are repeated and replaced, never withdrawn.
    Datagram,
    /// An IPFIX File (RFC 5655), one session per file.
    File,
}
