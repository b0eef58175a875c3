//! Messages of foreign Exporters, put together by hand.
#![allow(dead_code)] // Not every test uses all of it.

/// A Message of the given domain and sequence with Sets of (ID, content).
pub fn message(domain: u32, sequence: u32, sets: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = vec![0, 10, 0, 0];
    for word in [1_700_000_000, sequence, domain] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for (id, content) in sets {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&(content.len() as u16 + 4).to_be_bytes());
        out.extend_from_slice(content);
    }
    let length = (out.len() as u16).to_be_bytes();
    out[2..4].copy_from_slice(&length);
    out
}

/// A Template Record; an element above 32767 is one of enterprise 4242.
pub fn template(id: u16, fields: &[(u16, u16)]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &(fields.len() as u16).to_be_bytes(), &specifiers(fields)].concat()
}

/// Field Specifiers; an element above 32767 is one of enterprise 4242.
pub fn specifiers(fields: &[(u16, u16)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (element, length) in fields {
        out.extend_from_slice(&element.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        if *element > 32767 {
            out.extend_from_slice(&4242u32.to_be_bytes());
        }
    }
    out
}
