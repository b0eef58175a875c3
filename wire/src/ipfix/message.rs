//! Messages, Sets and Template Records as they stand on the wire (RFC 7011, 3).

use super::codec::Reader;
use std::fmt;

/// The longest Message (RFC 7011, 3.1: Length has 16 bits).
pub const MESSAGE_MAX: usize = 65535;
pub(super) const HEADER_LENGTH: usize = 16;
pub(super) const VERSION: u16 = 0x000a;
pub(super) const TEMPLATE_SET: u16 = 2;
pub(super) const OPTIONS_TEMPLATE_SET: u16 = 3;
/// The first Set ID of data (RFC 7011, 3.3.2).
pub(super) const FIRST_DATA_SET: u16 = 256;
const ENTERPRISE_BIT: u16 = 0x8000;

/// The Message Header (RFC 7011, 3.1), without its constant version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageHeader {
    /// Length of the Message, this header included, octets.
    pub length: u16,
    /// When the header left the Exporter, seconds since 1970 UTC.
    pub export_time: u32,
    /// Data Records sent before in this session and Observation Domain, modulo 2^32.
    pub sequence: u32,
    /// Observation Domain ID.
    pub domain: u32,
}

/// Why a Message cannot be read (RFC 7011, 9.1). The session that sent it is not to be trusted further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The version is not 10; the value.
    Version(u16),
    /// The Length of the Message is below 16 or not that of the Message at hand; the value.
    Length(u16),
    /// A Set's length is below 4 or passes the Message's end; offset in the Message and value.
    SetLength(usize, u16),
    /// A Set with an ID that is reserved (RFC 7011, 3.3.2); offset and value.
    SetId(usize, u16),
    /// A Template Record that passes its Set's end or breaks a rule; offset.
    Template(usize),
    /// A record that passes its Set's end; offset of the Set.
    Record(usize),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Malformed::Version(found) => write!(f, "version {found} at offset 0 where IPFIX has 10"),
            Malformed::Length(found) => write!(f, "Message length {found} at offset 2 is not the Message's"),
            Malformed::SetLength(at, found) => write!(f, "Set length {found} at offset {at} does not fit the Message"),
            Malformed::SetId(at, found) => write!(f, "reserved Set ID {found} at offset {at}"),
            Malformed::Template(at) => write!(f, "broken Template Record at offset {at}"),
            Malformed::Record(at) => write!(f, "a Data Record passes the end of the Set at offset {at}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// The length of the Message at the start of a byte stream, `None` where more octets are needed.
pub fn frame(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut reader = Reader::new(buffer);
    let Some(version) = reader.u16() else { return Ok(None) };
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    match reader.u16() {
        Some(length) if usize::from(length) < HEADER_LENGTH => Err(Malformed::Length(length)),
        Some(length) if usize::from(length) <= buffer.len() => Ok(Some(usize::from(length))),
        _ => Ok(None),
    }
}

impl MessageHeader {
    /// Reads the header of a whole Message.
    pub fn read(message: &[u8]) -> Result<MessageHeader, Malformed> {
        match frame(message)? {
            Some(length) if length == message.len() => {}
            _ => return Err(Malformed::Length(message.len().min(MESSAGE_MAX) as u16)),
        }
        let mut reader = Reader::new(&message[2..]);
        let header = (|| {
            Some(MessageHeader {
                length: reader.u16()?,
                export_time: reader.u32()?,
                sequence: reader.u32()?,
                domain: reader.u32()?,
            })
        })();
        header.ok_or(Malformed::Length(message.len() as u16))
    }

    pub(super) fn write(&self, out: &mut [u8]) {
        out[0..2].copy_from_slice(&VERSION.to_be_bytes());
        out[2..4].copy_from_slice(&self.length.to_be_bytes());
        out[4..8].copy_from_slice(&self.export_time.to_be_bytes());
        out[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        out[12..16].copy_from_slice(&self.domain.to_be_bytes());
    }
}

/// One Set of a Message: its ID, where it stands, what it holds.
#[derive(Clone, Copy)]
pub(super) struct Set<'a> {
    pub id: u16,
    pub offset: usize,
    pub content: &'a [u8],
}

/// The Sets of a Message, or the first thing that is wrong with their lengths and IDs.
pub(super) fn sets(message: &[u8]) -> impl Iterator<Item = Result<Set<'_>, Malformed>> {
    let mut offset = HEADER_LENGTH;
    let mut broken = false;
    std::iter::from_fn(move || {
        if broken || offset >= message.len() {
            return None;
        }
        let set = set_at(message, offset);
        match &set {
            Ok(set) => offset += set.content.len() + 4,
            Err(_) => broken = true,
        }
        Some(set)
    })
}

fn set_at(message: &[u8], offset: usize) -> Result<Set<'_>, Malformed> {
    let mut reader = Reader::new(&message[offset..]);
    let (Some(id), Some(length)) = (reader.u16(), reader.u16()) else {
        return Err(Malformed::SetLength(offset, (message.len() - offset) as u16));
    };
    let content = usize::from(length).checked_sub(4).and_then(|length| reader.take(length));
    let content = content.ok_or(Malformed::SetLength(offset, length))?;
    match id {
        TEMPLATE_SET | OPTIONS_TEMPLATE_SET | FIRST_DATA_SET.. => Ok(Set { id, offset, content }),
        _ => Err(Malformed::SetId(offset, id)),
    }
}

/// One field of a Template (RFC 7011, 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldSpecifier {
    /// Number of the Information Element, without the enterprise bit.
    pub element: u16,
    /// Private Enterprise Number, 0 for the IANA registry.
    pub enterprise: u32,
    /// Length in octets, [`super::codec::VARIABLE`] where each record carries its own.
    pub length: u16,
}

impl FieldSpecifier {
    /// A field of the IANA registry.
    pub const fn iana(element: u16, length: u16) -> FieldSpecifier {
        FieldSpecifier { element, enterprise: 0, length }
    }

    /// The same element of the reverse direction (RFC 5103, 6.1).
    pub const fn reverse(element: u16, length: u16) -> FieldSpecifier {
        FieldSpecifier { element, enterprise: super::element::REVERSE_PEN, length }
    }

    fn read(reader: &mut Reader<'_>) -> Option<FieldSpecifier> {
        let (id, length) = (reader.u16()?, reader.u16()?);
        let enterprise = if id & ENTERPRISE_BIT != 0 { reader.u32()? } else { 0 };
        Some(FieldSpecifier { element: id & !ENTERPRISE_BIT, enterprise, length })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let bit = if self.enterprise == 0 { 0 } else { ENTERPRISE_BIT };
        out.extend_from_slice(&(self.element | bit).to_be_bytes());
        out.extend_from_slice(&self.length.to_be_bytes());
        if self.enterprise != 0 {
            out.extend_from_slice(&self.enterprise.to_be_bytes());
        }
    }
}

/// A Template Record or Options Template Record (RFC 7011, 3.4). Without fields it withdraws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateRecord {
    /// Template ID: 256 and above; 2 or 3 where all are withdrawn.
    pub id: u16,
    /// How many of the fields, from the first, are scope: 0 for a Template, at least 1 for an Options Template.
    pub scopes: u16,
    /// The fields, in the order of the records.
    pub fields: Vec<FieldSpecifier>,
}

impl TemplateRecord {
    /// Reads the next record of a Template Set (`options` false) or Options Template Set.
    pub(super) fn read(reader: &mut Reader<'_>, options: bool) -> Option<TemplateRecord> {
        let (id, count) = (reader.u16()?, reader.u16()?);
        let set = if options { OPTIONS_TEMPLATE_SET } else { TEMPLATE_SET };
        if count == 0 {
            return (id == set || id >= FIRST_DATA_SET).then_some(TemplateRecord { id, scopes: 0, fields: Vec::new() });
        }
        let scopes = if options { reader.u16()? } else { 0 };
        let scopes_fit = if options { (1..=count).contains(&scopes) } else { true };
        // Four octets a field at least: a count that cannot be there reserves nothing.
        if id < FIRST_DATA_SET || !scopes_fit || usize::from(count) * 4 > reader.rest().len() {
            return None;
        }
        let mut fields = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            fields.push(FieldSpecifier::read(reader)?);
        }
        Some(TemplateRecord { id, scopes, fields })
    }

    /// Appends the record to an open Template Set or Options Template Set.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&(self.fields.len() as u16).to_be_bytes());
        if self.scopes > 0 {
            out.extend_from_slice(&self.scopes.to_be_bytes());
        }
        for field in &self.fields {
            field.write(out);
        }
    }

    /// The length of the shortest record of this Template, octets; a variable-length field takes one at least.
    pub fn record_length_min(&self) -> usize {
        let length = |field: &FieldSpecifier| match field.length {
            super::codec::VARIABLE => 1,
            fixed => usize::from(fixed),
        };
        self.fields.iter().map(length).sum()
    }

    /// Whether any field has a variable length.
    pub fn is_variable(&self) -> bool {
        self.fields.iter().any(|field| field.length == super::codec::VARIABLE)
    }
}
