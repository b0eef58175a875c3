// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Steers each packet to a worker's AF_XDP socket by a symmetric hash of its flow (the outermost, or with `inner` that within
 * tunnels), so that both directions of a conversation meet, whatever the NIC's own hashing does. wire/src/steer.rs computes the
 * same hash; wire/src/packet is the decoder that parse.h and tunnel.h follow. What it cannot read goes to worker 0, where the decoder names it: nothing is dropped
 * here but what finds no socket, and that is counted. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"
#include "parse.h"
#include "tunnel.h"

char LICENSE[] SEC("license") = "GPL";

const volatile struct nagare_config config = { .seed = 0, .workers = 1, .octets_max = 0xffff, .inner = 0 };

/* Index: rx queue * workers + worker. A socket receives only from the queue that it is bound to. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NAGARE_COUNTER_REDIRECTED + 1);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Only fragments touch this map, so that a flood of them harms fragments alone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NAGARE_FRAGMENTS_MAX);
	__type(key, struct datagram);
	__type(value, struct upper);
} fragments SEC(".maps");

static __always_inline void count(__u32 index)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		*counter += 1;
}

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
static __always_inline int parse(struct xdp_md *ctx, struct flow *flow)
{
	__u32 length = ctx->data_end - ctx->data;
	struct flow inner;
	__u64 place;
	int i;

	place = pass_link(ctx, PLACE(TYPE_ETHERNET, 0, length < 0xffff ? length : 0xffff));
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

/* A packet that no frame of the socket's memory can hold would be dropped there; its headers are all that is wanted. The IP
 * header keeps the length that it had. */
static __always_inline void cut(struct xdp_md *ctx)
{
	int length = ctx->data_end - ctx->data;
	int octets_max = config.octets_max;

	if (length > octets_max)
		bpf_xdp_adjust_tail(ctx, octets_max - length);
}

SEC("xdp")
int nagare_steer(struct xdp_md *ctx)
{
	struct flow flow = {};
	__u32 worker = 0;
	long verdict;

	count(NAGARE_COUNTER_SEEN);
	if (config.workers > 1 && parse(ctx, &flow))
		worker = ((__u64)flow_hash(&flow) * config.workers) >> 32;
	cut(ctx);
	verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index * config.workers + worker, XDP_DROP);
	count(verdict == XDP_REDIRECT ? NAGARE_COUNTER_REDIRECTED + worker : NAGARE_COUNTER_NO_SOCKET);
	return verdict;
}
