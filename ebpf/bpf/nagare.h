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

/* Indexes of the per-CPU array `counters`: packets seen, packets dropped as no socket stood at their worker's place, and from
 * NAGARE_COUNTER_REDIRECTED on packets redirected to worker 0, 1, ... */
#define NAGARE_COUNTER_SEEN 0
#define NAGARE_COUNTER_NO_SOCKET 1
#define NAGARE_COUNTER_REDIRECTED 2

/* The read-only global `config`, set by the loader. */
struct nagare_config {
	__u32 seed;       /* of the flow hash */
	__u32 workers;    /* at least 1 */
	__u32 octets_max; /* of a packet that is handed on; longer ones are cut */
	__u32 inner;      /* not 0: the flow is that of the innermost packet */
};
_Static_assert(sizeof(struct nagare_config) == 16, "nagare_config has padding");

/* The read-only global `generator_config` of the load generator. */
struct nagare_generator_config {
	__u32 flows;   /* at least 1 */
	__u32 ifindex; /* that frames are sent out of */
};
_Static_assert(sizeof(struct nagare_generator_config) == 8, "nagare_generator_config has padding");

#endif
