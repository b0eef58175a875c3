/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which worker a frame goes to: by a symmetric hash of its flow (the outermost, or with `inner` that within tunnels), so that both
 * directions of a conversation meet, whatever the NIC's own hashing does. wire/src/steer.rs computes the same hash;
 * wire/src/packet is the decoder that parse.h and tunnel.h follow. What cannot be read goes to worker 0, where the decoder
 * names it. */
#ifndef NAGARE_STEER_H
#define NAGARE_STEER_H

#include "parse.h"
#include "tunnel.h"

const volatile struct nagare_config config = { .seed = 0, .workers = 1, .octets_max = 0xffff, .inner = 0, .has_ethernet = 1 };

/* Only fragments touch this map, so that a flood of them harms fragments alone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NAGARE_FRAGMENTS_MAX);
	__type(key, struct datagram);
	__type(value, struct upper);
} fragments SEC(".maps");

/* A later fragment takes what its datagram's first one left here. */
static __always_inline void join_datagram(struct flow *flow)
{
	struct upper *first;

	if (flow->fragment == FIRST)
		bpf_map_update_elem(&fragments, &flow->datagram, &flow->upper, BPF_ANY);
	if (flow->fragment != LATER)
		return;
	first = bpf_map_lookup_elem(&fragments, &flow->datagram);
	if (first)
		flow->upper = *first;
}

/* Fills `flow`; 0 where the frame holds no IP packet that this program reads. */
static __always_inline int parse(CONTEXT *ctx, __u32 type, __u32 length, struct flow *flow)
{
	__u32 end = length < 0xffff ? length : 0xffff;
	struct flow inner;
	__u64 place;
	int i;

	place = pass_link(ctx, PLACE(type, 0, end));
	place = place ? parse_ip(ctx, place, flow) : 0;
	if (!place)
		return 0;
	for (i = 0; i < NAGARE_TUNNELS_MAX && config.inner && flow->fragment == WHOLE; i++) {
		place = pass_tunnel(ctx, place, flow->upper.protocol,
				    (__u32)flow->upper.source_port << 16 | flow->upper.destination_port);
		place = place ? pass_link(ctx, place) : 0;
		place = place ? parse_ip(ctx, place, &inner) : 0;
		if (!place)
			break;
		*flow = inner;
	}
	join_datagram(flow);
	return 1;
}

static __always_inline __u32 fold(__u32 hash, __u32 word)
{
	hash = (hash ^ bpf_ntohl(word)) * 0x9E3779B1;
	return hash ^ (hash >> 15);
}

static __always_inline __u32 mix(const __u32 *address, __u8 version, __u16 port)
{
	__u32 hash = fold(config.seed, address[0]);

	if (version == 6) {
		hash = fold(hash, address[1]);
		hash = fold(hash, address[2]);
		hash = fold(hash, address[3]);
	}
	hash = (hash ^ port) * 0x85EBCA77;
	return hash ^ (hash >> 13);
}

static __always_inline __u32 flow_hash(const struct flow *flow)
{
	const struct datagram *datagram = &flow->datagram;
	const struct upper *upper = &flow->upper;
	__u32 hash = mix(datagram->source, datagram->version, upper->source_port) +
		     mix(datagram->destination, datagram->version, upper->destination_port);

	hash = (hash ^ upper->protocol) * 0xC2B2AE3D;
	return hash ^ (hash >> 16);
}

/* The worker of a frame that begins with what the EtherType says, and had `length` octets on the wire. */
static __always_inline __u32 worker_of(CONTEXT *ctx, __u32 type, __u32 length)
{
	struct flow flow = {};

	if (config.workers <= 1 || !parse(ctx, type, length, &flow))
		return 0;
	return ((__u64)flow_hash(&flow) * config.workers) >> 32;
}

#endif
