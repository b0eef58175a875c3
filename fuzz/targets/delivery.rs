//! Both directions of the delivery layer: whatever a stream says, reading ends, takes no more than is there, and what was read is
//! written as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nagare_wire::delivery::{ACK_LENGTH, Ack, FromProbe};

fuzz_target!(|bytes: &[u8]| {
    let mut at = 0;
    while let Ok(Some((frame, length))) = FromProbe::read(&bytes[at..]) {
        assert!(length > 0 && at + length <= bytes.len());
        let mut written = Vec::new();
        frame.write(&mut written);
        assert_eq!(FromProbe::read(&written), Ok(Some((frame, length))));
        at += length;
    }
    let mut rest = bytes;
    while let Ok(Some(ack)) = Ack::read(rest) {
        let mut written = Vec::new();
        ack.write(&mut written);
        assert_eq!(Ack::read(&written), Ok(Some(ack)));
        rest = &rest[ACK_LENGTH..];
    }
});
