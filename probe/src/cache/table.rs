//! The memory of the flow cache: groups of tags and dues, one cache line per flow, and cold lines beside it.
//!
//! A flow has two groups of [`SLOTS`] slots where it may live. A group is 32 octets: a tag of each slot (7 bits of the hash, or 0
//! for a free slot), how many flows overflowed to their second group, and for each slot the tick at which its flow is to
//! be looked at. So a lookup touches half a line of tags and the flow's own line, and there are no tombstones, no chains and
//! nothing to rehash.

use nagare_wire::observation::WideKey;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Slots of a group.
pub const SLOTS: usize = 15;
/// The mask of all slots.
pub const ALL: u32 = (1 << SLOTS) - 1;
/// Transparent huge pages are of this size.
const HUGE_PAGE: usize = 2 << 20;

/// Sixteen tags (the last counts overflows) and sixteen dues.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Group {
    tags: [u8; 16],
    dues: [u8; 16],
}

impl Group {
    /// The slots that bear `tag`, a bit each.
    #[inline(always)]
    pub fn matching(&self, tag: u8) -> u32 {
        lanes::equal(&self.tags, tag) & ALL
    }

    /// The slots that hold a flow: tags have their high bit set.
    #[inline(always)]
    pub fn occupied(&self) -> u32 {
        lanes::high_bits(&self.tags) & ALL
    }

    /// The occupied slots whose due tick is `tick` or came up to 127 ticks before.
    #[inline(always)]
    pub fn due(&self, tick: u8) -> u32 {
        !lanes::high_bits(&lanes::distance(tick, &self.dues)) & self.occupied()
    }

    /// Flows of this group that live in their second one, saturated at 255.
    #[inline(always)]
    pub fn overflowed(&self) -> u8 {
        self.tags[SLOTS]
    }

    /// Notes that one more flow lives, or no longer lives, in its second group. A count that was ever 255 stays.
    pub fn overflow(&mut self, more: bool) {
        let count = self.tags[SLOTS];
        self.tags[SLOTS] = match (count, more) {
            (u8::MAX, _) => u8::MAX,
            (count, true) => count + 1,
            (count, false) => count.saturating_sub(1),
        };
    }

    /// Takes a slot for a flow, to be looked at at tick `due`.
    pub fn take(&mut self, slot: usize, tag: u8, due: u8) {
        (self.tags[slot], self.dues[slot]) = (tag, due);
    }

    /// Frees a slot.
    pub fn free(&mut self, slot: usize) {
        self.tags[slot] = 0;
    }

    /// All flows of the group are to be looked at at tick `due`.
    pub fn set_all_due(&mut self, due: u8) {
        self.dues = [due; 16];
    }

    /// Sets when the flow in a slot is to be looked at.
    pub fn set_due(&mut self, slot: usize, due: u8) {
        self.dues[slot] = due;
    }
}

/// Sixteen octets at once.
#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};
    use std::arch::x86_64::{_mm_storeu_si128, _mm_sub_epi8};

    #[inline(always)]
    fn load(octets: &[u8; 16]) -> __m128i {
        // SAFETY: sixteen octets are readable; the load needs no alignment. SSE2 is part of x86-64.
        unsafe { _mm_loadu_si128(octets.as_ptr().cast()) }
    }

    #[inline(always)]
    pub fn equal(octets: &[u8; 16], value: u8) -> u32 {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(load(octets), _mm_set1_epi8(value as i8))) as u32 }
    }

    #[inline(always)]
    pub fn high_bits(octets: &[u8; 16]) -> u32 {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_movemask_epi8(load(octets)) as u32 }
    }

    #[inline(always)]
    pub fn distance(from: u8, octets: &[u8; 16]) -> [u8; 16] {
        let mut out = [0; 16];
        // SAFETY: SSE2 is part of x86-64; sixteen octets are writable.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_sub_epi8(_mm_set1_epi8(from as i8), load(octets))) };
        out
    }
}

/// The same, one octet after another, where there is no SSE2.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
mod plain_lanes {
    fn mask(bit: impl Fn(usize) -> bool) -> u32 {
        (0..16).fold(0, |mask, lane| mask | u32::from(bit(lane)) << lane)
    }

    pub fn equal(octets: &[u8; 16], value: u8) -> u32 {
        mask(|lane| octets[lane] == value)
    }

    pub fn high_bits(octets: &[u8; 16]) -> u32 {
        mask(|lane| octets[lane] & 0x80 != 0)
    }

    pub fn distance(from: u8, octets: &[u8; 16]) -> [u8; 16] {
        octets.map(|octet| from.wrapping_sub(octet))
    }
}

#[cfg(not(target_arch = "x86_64"))]
use plain_lanes as lanes;

/// What every packet of a flow touches: one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Hot {
    /// The key ([`nagare_wire::observation::CompactKey`]); of a wide key the places of the addresses hold a keyed digest. 0: free.
    pub words: [u64; 2],
    /// Time of the first packet of this record.
    pub first_us: u64,
    /// Time of the last packet.
    pub last_us: u64,
    /// IP octets by direction, seen from the key.
    pub octets: [u64; 2],
    /// Packets likewise.
    pub packets: [u32; 2],
    /// All TCP flags likewise.
    pub tcp_flags: [u16; 2],
    /// Of the first packet.
    pub tos: u8,
    /// Bits of [`super`].
    pub state: u8,
    /// Observation Points by direction, four bits each.
    pub interfaces: u8,
    /// How far the handshake, the first request and the sequence are: bits of [`super::measure`].
    pub stage: u8,
}

/// A flow: its line, and the line of what is measured, where anything is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Slot<M> {
    /// What every packet touches.
    pub hot: Hot,
    /// Nothing, or [`super::measure::Measure`].
    pub more: M,
}

/// What is written once, when a flow begins, and read again where the key is wide.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Cold {
    /// The rest of the key.
    pub key: WideKey,
    /// [`nagare_wire::flow::Origin::tunnel_id`].
    pub tunnel_id: u32,
    /// IPv6 flow label, 20 bits.
    pub flow_label: [u8; 3],
    /// Top MPLS entry, 24 bits.
    pub mpls_top: [u8; 3],
    /// Of the first packet.
    pub source_mac: [u8; 6],
    /// Likewise; the ICMP type and code of a flow of ICMP stand in [`super::measure::Measure`].
    pub destination_mac: [u8; 6],
}

/// Addresses of the packet around, kept where tunnels are looked into.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Outer {
    /// Source and destination.
    pub addresses: [[u8; 16]; 2],
}

const _: () = assert!(
    size_of::<Group>() == 32 && size_of::<Hot>() == 64 && size_of::<Slot<()>>() == 64 && size_of::<Cold>() == 64
);

/// Types of which all bits may be 0.
///
/// # Safety
/// Zeroed memory must be a value of the type, and the type must not need dropping.
pub unsafe trait Zeroed: Copy {}

// SAFETY: integers and arrays of them.
unsafe impl Zeroed for Group {}
// SAFETY: likewise, where `M` is.
unsafe impl<M: Zeroed> Zeroed for Slot<M> {}
// SAFETY: nothing.
unsafe impl Zeroed for () {}
// SAFETY: likewise.
unsafe impl Zeroed for Hot {}
// SAFETY: likewise.
unsafe impl Zeroed for Cold {}
// SAFETY: likewise.
unsafe impl Zeroed for Outer {}
// SAFETY: likewise.
unsafe impl Zeroed for super::measure::Measure {}

/// Zeroed memory for values, in huge pages where the kernel gives them, present from the start.
pub struct Pages<T: Zeroed> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: it owns its memory as a Box does, and T is plain data.
unsafe impl<T: Zeroed + Send> Send for Pages<T> {}

impl<T: Zeroed> Pages<T> {
    /// Memory for `count` values. Panics where there is none: this happens at the start, before any packet.
    pub fn new(count: usize) -> Pages<T> {
        let size = Self::bytes(count);
        if size == 0 {
            return Pages { start: NonNull::dangling(), count };
        }
        // Fresh pages from the kernel are zeroed, and untouched: only then can they become huge ones.
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of our own, of a size that is not 0.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
        let cause = std::io::Error::last_os_error();
        assert_ne!(memory, libc::MAP_FAILED, "no memory for {count} flows ({size} bytes): {cause}; lower --flows-max");
        // Advice alone: without huge pages the cache works, slower; without populating, the first packets fault pages in.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
            // SAFETY: the range is the mapping made above.
            unsafe { libc::madvise(memory, size, advice) };
        }
        // Mappings begin at a page, which is more than any T is aligned to.
        Pages { start: NonNull::new(memory.cast()).expect("a mapping is nowhere near 0"), count }
    }

    /// Bytes that `count` values take.
    pub fn bytes(count: usize) -> usize {
        let size = size_of::<T>().checked_mul(count).expect("a number of flows that fits into memory");
        size.next_multiple_of(if size >= HUGE_PAGE { HUGE_PAGE } else { 4096 })
    }
}

impl<T: Zeroed> Drop for Pages<T> {
    fn drop(&mut self) {
        if self.count > 0 {
            // SAFETY: mapped in `new` with the same size, and nobody borrows it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), Self::bytes(self.count)) };
        }
    }
}

impl<T: Zeroed> Deref for Pages<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `count` values, zeroed at first, which T permits; a dangling start goes with a count of 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> DerefMut for Pages<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lanes_agree_with_plain_octets(octets in any::<[u8; 16]>(), value in any::<u8>()) {
            prop_assert_eq!(lanes::equal(&octets, value), plain_lanes::equal(&octets, value));
            prop_assert_eq!(lanes::high_bits(&octets), plain_lanes::high_bits(&octets));
            prop_assert_eq!(lanes::distance(value, &octets), plain_lanes::distance(value, &octets));
        }
    }

    #[test]
    fn memory_of_any_size_is_zeroed_and_its_own() {
        for count in [0, 1, 1000, HUGE_PAGE / 64, HUGE_PAGE / 64 * 3 + 1] {
            let mut pages = Pages::<Hot>::new(count);
            assert_eq!(pages.len(), count);
            assert!(pages.iter().all(|hot| hot.words == [0, 0]));
            pages.iter_mut().for_each(|hot| hot.last_us = 1);
        }
    }
}
