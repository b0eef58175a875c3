/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the XDP program and user space agree on. `ebpf/src/layout.rs` says the same in Rust, and its tests hold it to this file. */
#ifndef NAGARE_H
#define NAGARE_H

#include <linux/types.h>

/* VLAN tags and labels, IPv6 extension headers, tunnels within one another, and extension headers of GTP-U that are looked through,
 * as in the decoder (wire/src/packet). Frames with more go to worker 0. */
#define NAGARE_STACK_MAX 8
#define NAGARE_EXTENSION_HEADERS_MAX 8
#define NAGARE_TUNNELS_MAX 4
#define NAGARE_GTP_EXTENSIONS_MAX 4
/* Datagrams whose first fragment is remembered. */
#define NAGARE_FRAGMENTS_MAX 16384

/* Workers that a host's interface can have. */
#define NAGARE_RINGS_MAX 8
/* Octets of a frame that are copied from a host's interface, a VLAN tag included. */
#define NAGARE_HOST_OCTETS 196

/* Indexes of the per-CPU array `counters`: packets seen; lost, as no socket stood at their worker's place or its ring was full;
 * unreadable, as they were shorter than a header; and from NAGARE_COUNTER_STEERED on, given to worker 0, 1, ... */
#define NAGARE_COUNTER_SEEN 0
#define NAGARE_COUNTER_LOST 1
#define NAGARE_COUNTER_UNREADABLE 2
#define NAGARE_COUNTER_STEERED 3

/* What stands before a packet in a frame of AF_XDP. The mark says that it is there: whoever has read it wipes it out. */
struct nagare_metadata {
	__u64 time_ns; /* of the monotonic clock */
	__u32 length;  /* of the frame on the wire, octets */
	__u32 mark;
};
_Static_assert(sizeof(struct nagare_metadata) == 16, "nagare_metadata has padding");
#define NAGARE_METADATA_MARK 0x6e676172

/* What a ring of a host's interface holds of a frame. Beyond `captured` the octets are those of frames before. */
struct nagare_frame {
	__u64 time_ns;   /* of the monotonic clock */
	__u32 length;    /* of the frame, octets */
	__u16 captured;  /* octets of it that are here */
	__u16 packets;   /* that it is or will be on the wire: more than one where segmentation is offloaded */
	__u8 octets[256];
};
_Static_assert(sizeof(struct nagare_frame) == 272, "nagare_frame has padding");

/* The read-only global `config`, set by the loader. */
struct nagare_config {
	__u32 seed;       /* of the flow hash */
	__u32 workers;    /* at least 1 */
	__u32 octets_max; /* of a packet that is handed on; longer ones are cut */
	__u32 inner;      /* not 0: the flow is that of the innermost packet */
	__u32 has_ethernet; /* not 0: frames begin with an Ethernet header, else with IP */
};
_Static_assert(sizeof(struct nagare_config) == 20, "nagare_config has padding");

#define NAGARE_LENGTHS 12

/* The read-only global `generator_config` of the load generator. */
struct nagare_generator_config {
	__u64 interval;    /* between two frames, in 1024ths of a nanosecond; 0: as fast as it goes */
	__u32 flows;       /* at least 1 */
	__u32 ifindex;     /* that frames are sent out of */
	__u16 lengths[16]; /* octets of each frame of NAGARE_LENGTHS, none more than the frame has that is given */
};
_Static_assert(sizeof(struct nagare_generator_config) == 48, "nagare_generator_config has padding");

#endif
