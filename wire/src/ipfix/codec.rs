//! One cursor reads. Every read names how much it takes and fails where that is not there.

/// Reads big-endian values from the front of a slice; `None` where too few octets are left.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `length` octets.
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// One octet.
    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    /// Two octets.
    pub fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    /// Four octets.
    pub fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A field of a record: `length` octets, or, where that is [`VARIABLE`], as many as its prefix says (RFC 7011, 7).
    pub fn field(&mut self, length: u16) -> Option<&'a [u8]> {
        if length != VARIABLE {
            return self.take(usize::from(length));
        }
        match self.u8()? {
            255 => {
                let length = self.u16()?;
                self.take(usize::from(length))
            }
            short => self.take(usize::from(short)),
        }
    }
}

/// The field length that says: each record carries its own (RFC 7011, 7).
pub const VARIABLE: u16 = 65535;

/// An unsigned value of 1 to 8 octets, as reduced-size encoding allows (RFC 7011, 6.2); `None` for other lengths.
pub fn unsigned(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 8 {
        return None;
    }
    Some(bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

/// Appends a variable-length field with its prefix (RFC 7011, 7). What exceeds 65,535 octets is cut off.
pub fn put_variable(out: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(65535)];
    if value.len() < 255 {
        out.push(value.len() as u8);
    } else {
        out.push(255);
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    }
    out.extend_from_slice(value);
}
