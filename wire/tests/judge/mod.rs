//! An Exporter is judged by the letter of RFC 7011, with none of Nagare's own code: what breaks a rule panics, and names it.
//! Tests of other crates that have an Exporter include this file, too.
#![allow(dead_code)] // Not every test uses all of it.

use std::collections::BTreeMap;

/// By what rules Templates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// TCP, TLS: everything arrives, in order; what is defined anew was withdrawn before.
    Stream,
    /// UDP: Templates come again, and are never withdrawn.
    Datagram,
    /// An IPFIX File: Templates may be replaced.
    File,
}

/// A field of a Template: element, enterprise (0: IANA), length.
pub type Field = (u16, u32, u16);

/// A Template as it was defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub scopes: usize,
    pub fields: Vec<Field>,
    defined_s: u32,
}

/// A Data Record: its Template's ID and scopes, and every field with its octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub domain: u32,
    pub template: u16,
    pub scopes: usize,
    pub fields: Vec<(Field, Vec<u8>)>,
}

impl Record {
    /// The octets of an element of IANA's.
    pub fn get(&self, element: u16) -> Option<&[u8]> {
        self.fields.iter().find(|((id, pen, _), _)| (*id, *pen) == (element, 0)).map(|(_, octets)| &octets[..])
    }

    /// Its value, where it is a number.
    pub fn number(&self, element: u16) -> Option<u64> {
        self.get(element).map(|octets| octets.iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet)))
    }
}

/// One Transport Session of an Exporter, and what it has sent.
pub struct Judge {
    manner: Manner,
    templates: BTreeMap<(u32, u16), Template>,
    withdrawn_s: BTreeMap<(u32, u16), u32>,
    sequence: BTreeMap<u32, u32>,
    time_s: u32,
    /// Every Data Record, in order.
    pub records: Vec<Record>,
    /// Messages.
    pub messages: usize,
    /// Template Records, definitions and withdrawals, by Template ID; withdrawals have no fields.
    pub templates_seen: Vec<(u16, usize)>,
    /// Octets of the longest Message.
    pub longest: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

/// IANA's elements that Nagare may export: number, octets of the type, whether a reduced size is allowed (6.2).
const TYPES: &[(&[u16], u16, bool)] = &[
    (&[1, 2, 25, 26, 40, 41, 42, 85, 86, 163, 164, 165, 166, 167, 168, 302, 352], 8, true),
    (&[10, 31, 34, 143, 144, 149, 184, 295, 309, 310, 396, 397], 4, true),
    (&[7, 11, 32, 58, 139, 243, 245, 304, 390, 6], 2, true),
    (&[4, 5, 35, 52, 53, 136, 239], 1, true),
    (&[8, 12], 4, false),
    (&[27, 28], 16, false),
    (&[56, 80], 6, false),
    (&[152, 153, 154, 155, 156, 157, 160], 8, false),
    (&[150, 151], 4, false),
    (&[70], 3, false),
];
const STRINGS: [u16; 1] = [335];

/// Elements that have no reverse (RFC 5103, 6.1): identifiers, of processes and their statistics, padding, the direction.
const NOT_REVERSIBLE: &[u16] = &[
    40, 41, 42, 130, 131, 137, 143, 144, 145, 148, 149, 160, 163, 164, 165, 166, 167, 168, 173, 210, 211, 212, 213,
    214, 215, 216, 217, 239,
];
/// The keys that tell a flow's one direction from the other.
const DIRECTIONAL: &[u16] = &[7, 8, 11, 12, 27, 28, 56, 80];
const REVERSE: u32 = 29305;
const VARIABLE: u16 = 65535;

impl Judge {
    pub fn new(manner: Manner) -> Judge {
        Judge {
            manner,
            templates: BTreeMap::new(),
            withdrawn_s: BTreeMap::new(),
            sequence: BTreeMap::new(),
            time_s: 0,
            records: Vec::new(),
            messages: 0,
            templates_seen: Vec::new(),
            longest: 0,
        }
    }

    /// A whole stream or file.
    pub fn of(manner: Manner, mut bytes: &[u8]) -> Judge {
        let mut judge = Judge::new(manner);
        while !bytes.is_empty() {
            assert!(bytes.len() >= 16, "the stream ends within a Message Header");
            let length = usize::from(u16_at(bytes, 2));
            assert!(length <= bytes.len(), "the stream ends within a Message");
            judge.message(&bytes[..length]);
            bytes = &bytes[length..];
        }
        judge
    }

    /// One whole Message, a datagram's content over UDP.
    pub fn message(&mut self, message: &[u8]) {
        assert!(message.len() >= 16, "a Message has a header");
        assert_eq!(u16_at(message, 0), 0x000a, "3.1: the version is 0x000a");
        assert_eq!(usize::from(u16_at(message, 2)), message.len(), "3.1: Length is that of header and Sets");
        let (time_s, sequence, domain) = (u32_at(message, 4), u32_at(message, 8), u32_at(message, 12));
        assert!(time_s >= self.time_s, "Export Time goes back, and 8.2 binds Templates to it");
        self.time_s = time_s;
        let expected = *self.sequence.entry(domain).or_default();
        assert_eq!(sequence, expected, "3.1: the sequence counts the Data Records of domain {domain} before");
        let before = self.records.len();
        let mut at = 16;
        while at < message.len() {
            assert!(message.len() - at >= 4, "a Set has a header");
            let (id, length) = (u16_at(message, at), usize::from(u16_at(message, at + 2)));
            assert!(length >= 4 && at + length <= message.len(), "3.3.2: Set Length ends within the Message");
            let content = &message[at + 4..at + length];
            match id {
                2 | 3 => self.templates(domain, id == 3, content),
                256.. => self.data(domain, id, content),
                _ => panic!("3.3.2: Set ID {id} is reserved"),
            }
            at += length;
        }
        let records = (self.records.len() - before) as u32;
        self.sequence.insert(domain, sequence.wrapping_add(records));
        self.messages += 1;
        self.longest = self.longest.max(message.len());
    }

    fn templates(&mut self, domain: u32, options: bool, content: &[u8]) {
        let mut at = 0;
        assert!(content.len() >= 4, "3.3.1: a Set holds a record");
        while content.len() - at >= 4 {
            let (id, count) = (u16_at(content, at), usize::from(u16_at(content, at + 2)));
            at += 4;
            self.templates_seen.push((id, count));
            if count == 0 {
                self.withdraw(domain, id, options);
                continue;
            }
            assert!(id >= 256, "3.4.1: Template ID {id}");
            let scopes = if options { usize::from(u16_at(content, at)) } else { 0 };
            at += if options { 2 } else { 0 };
            assert!(!options || (1..=count).contains(&scopes), "3.4.2: Scope Field Count {scopes} of {count}");
            let mut fields = Vec::new();
            for _ in 0..count {
                let (element, length) = (u16_at(content, at), u16_at(content, at + 2));
                let enterprise = element & 0x8000 != 0;
                let pen = if enterprise { u32_at(content, at + 4) } else { 0 };
                assert!(!enterprise || pen != 0, "3.2: the enterprise bit stands where a PEN follows");
                at += if enterprise { 8 } else { 4 };
                fields.push((element & 0x7fff, pen, length));
            }
            fields.iter().for_each(|field| check_field(*field));
            check_biflow(&fields);
            self.define(domain, id, Template { scopes, fields, defined_s: self.time_s });
        }
        assert!(content[at..].iter().all(|octet| *octet == 0), "3.3.1: padding is zero");
    }

    fn define(&mut self, domain: u32, id: u16, template: Template) {
        let known = self.templates.get(&(domain, id));
        let same = known.is_none_or(|known| (known.scopes, &known.fields) == (template.scopes, &template.fields));
        assert!(same || self.manner != Manner::Stream, "8.1: Template {id} is defined anew without a withdrawal");
        if known.is_none() || !same {
            self.templates.insert((domain, id), template);
        }
    }

    fn withdraw(&mut self, domain: u32, id: u16, options: bool) {
        assert_ne!(self.manner, Manner::Datagram, "8.4: nothing is withdrawn over UDP");
        let all = id == if options { 3 } else { 2 };
        assert!(all || id >= 256, "8.1: all are withdrawn by the ID of the Set");
        let is_meant = |template: &Template, key: u16| {
            if all { (template.scopes > 0) == options } else { key == id }
        };
        let gone: Vec<(u32, u16)> =
            self.templates.iter().filter(|((d, key), t)| *d == domain && is_meant(t, *key)).map(|(k, _)| *k).collect();
        assert!(all || !gone.is_empty(), "8.1: what is withdrawn was defined");
        for key in gone {
            self.templates.remove(&key);
            self.withdrawn_s.insert(key, self.time_s);
        }
    }

    fn data(&mut self, domain: u32, id: u16, content: &[u8]) {
        let template = self.templates.get(&(domain, id)).cloned();
        let template = template.unwrap_or_else(|| panic!("8.2: data of {id} before its Template"));
        assert!(self.time_s >= template.defined_s, "8.2: Export Time before the Template's");
        let smallest: usize =
            template.fields.iter().map(|field| if field.2 == VARIABLE { 1 } else { field.2.into() }).sum();
        let mut rest = content;
        assert!(rest.len() >= smallest, "3.3.1: a Set holds a record");
        while rest.len() >= smallest {
            let mut fields = Vec::new();
            for field in &template.fields {
                let (value, left) = split(field.2, rest);
                if STRINGS.contains(&field.0) && field.1 == 0 {
                    assert!(std::str::from_utf8(value).is_ok(), "6.1.6: {value:?} is no UTF-8");
                }
                fields.push((*field, value.to_vec()));
                rest = left;
            }
            self.records.push(Record { domain, template: id, scopes: template.scopes, fields });
        }
        assert!(rest.iter().all(|octet| *octet == 0), "3.3.1: padding is zero");
    }

    /// The Template of an ID.
    pub fn template(&self, domain: u32, id: u16) -> Option<&Template> {
        self.templates.get(&(domain, id))
    }

    /// The records of flows: those without scope.
    pub fn flows(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.scopes == 0)
    }

    /// The last record whose first scope is an element.
    pub fn last_scoped_by(&self, element: u16, with: u16) -> Option<&Record> {
        let scoped =
            |record: &&Record| record.scopes > 0 && record.fields[0].0.0 == element && record.get(with).is_some();
        self.records.iter().rev().find(scoped)
    }
}

fn split(length: u16, bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, bytes) = match (length, bytes.first()) {
        (VARIABLE, Some(255)) => (usize::from(u16_at(bytes, 1)), &bytes[3..]),
        (VARIABLE, Some(short)) => (usize::from(*short), &bytes[1..]),
        (VARIABLE, None) => panic!("7: a length stands before the value"),
        (fixed, _) => (usize::from(fixed), bytes),
    };
    assert!(length <= bytes.len(), "a Data Record passes its Set's end");
    bytes.split_at(length)
}

fn check_field((element, pen, length): Field) {
    if pen != 0 && pen != REVERSE {
        return; // An enterprise's elements are its own.
    }
    if STRINGS.contains(&element) {
        return;
    }
    let known = TYPES.iter().find(|(elements, _, _)| elements.contains(&element));
    let (_, octets, reducible) = known.unwrap_or_else(|| panic!("element {element} is not in the judge's table"));
    let fits = if *reducible { (1..=*octets).contains(&length) } else { length == *octets };
    assert!(fits, "6.2: element {element} in {length} octets");
}

fn check_biflow(fields: &[Field]) {
    let reverse: Vec<u16> = fields.iter().filter(|field| field.1 == REVERSE).map(|field| field.0).collect();
    for element in &reverse {
        assert!(!NOT_REVERSIBLE.contains(element), "RFC 5103, 6.1: element {element} has no reverse");
    }
    let directional = fields.iter().any(|(element, pen, _)| *pen == 0 && DIRECTIONAL.contains(element));
    assert!(reverse.is_empty() || directional, "RFC 5103, 4: reverse elements, and no key that has a direction");
}
