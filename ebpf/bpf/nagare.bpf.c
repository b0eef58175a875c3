// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Steers each packet to a worker's AF_XDP socket by a symmetric hash of its outermost flow, so that both directions of a
 * conversation meet, whatever the NIC's own hashing does. wire/src/steer.rs computes the same hash; wire/src/packet.rs is
 * the decoder that this one follows. What it cannot read goes to worker 0, where the decoder names it: nothing is dropped
 * here but what finds no socket, and that is counted. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

char LICENSE[] SEC("license") = "GPL";

const volatile struct nagare_config config = { .seed = 0, .workers = 1, .octets_max = 0xffff };

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

/* Which datagram a fragment belongs to. IPv4 leaves words 1 to 3 of the addresses 0. */
struct datagram {
	__u32 source[4];
	__u32 destination[4];
	__u32 identification;
	__u8 protocol; /* IPv4's; 0 for IPv6, whose fragments may name different headers (RFC 8200, 4.5) */
	__u8 version;
	__u16 pad;
};
_Static_assert(sizeof(struct datagram) == 40, "padding would make equal keys differ");

/* What only a datagram's first fragment knows. */
struct upper {
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct upper) == 8, "padding would be sent to the map uninitialised");

/* Only fragments touch this map, so that a flood of them harms fragments alone. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, NAGARE_FRAGMENTS_MAX);
	__type(key, struct datagram);
	__type(value, struct upper);
} fragments SEC(".maps");

enum fragment { WHOLE, FIRST, LATER };

/* The outermost flow of a packet. Everything but the addresses' words is in host order. */
struct flow {
	struct datagram datagram;
	struct upper upper;
	enum fragment fragment;
};

/* A place in the packet; `left` octets of the IP payload follow by the IP header's word. */
struct cursor {
	void *at;
	void *end;
	__u32 left;
};

static __always_inline void count(__u32 index)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		*counter += 1;
}

/* The next `size` octets, which the cursor then has passed; NULL where they were not captured. */
static __always_inline void *take(struct cursor *cursor, __u32 size)
{
	void *start = cursor->at;

	if (cursor->left < size || start + size > cursor->end)
		return NULL;
	cursor->at += size;
	cursor->left -= size;
	return start;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_UDPLITE;
}

/* Where fewer than four octets of the transport header are there, both ports stay 0, as in the decoder. */
static __always_inline void read_ports(struct cursor *cursor, struct upper *upper)
{
	__u16 *ports;

	if (!has_ports(upper->protocol))
		return;
	ports = take(cursor, 4);
	if (!ports)
		return;
	upper->source_port = bpf_ntohs(ports[0]);
	upper->destination_port = bpf_ntohs(ports[1]);
}

/* A later fragment takes what its datagram's first one left here. */
static __always_inline void finish(struct cursor *cursor, struct flow *flow)
{
	struct upper *first;

	if (flow->fragment == LATER) {
		first = bpf_map_lookup_elem(&fragments, &flow->datagram);
		if (first)
			flow->upper = *first;
		return;
	}
	read_ports(cursor, &flow->upper);
	if (flow->fragment == FIRST)
		bpf_map_update_elem(&fragments, &flow->datagram, &flow->upper, BPF_ANY);
}

struct ipv4_header {
	__u8 version_length;
	__u8 tos;
	__u16 total_length;
	__u16 identification;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};
_Static_assert(sizeof(struct ipv4_header) == 20, "RFC 791");

static __always_inline int parse_ipv4(struct cursor *cursor, struct flow *flow)
{
	struct ipv4_header *header = take(cursor, sizeof(*header));
	__u32 length, total;
	__u16 fragment;

	if (!header || header->version_length >> 4 != 4)
		return 0;
	length = (header->version_length & 0x0f) * 4;
	total = bpf_ntohs(header->total_length);
	if (length < sizeof(*header) || (total != 0 && total < length))
		return 0;
	cursor->at += length - sizeof(*header);
	/* A length of 0 is segmentation offload: then the frame tells it, and must hold the header's options at least. */
	if (total == 0 && cursor->at > cursor->end)
		return 0;
	cursor->left = total != 0 ? total - length : 0xffff;

	fragment = bpf_ntohs(header->fragment);
	flow->fragment = fragment & 0x1fff ? LATER : fragment & 0x2000 ? FIRST : WHOLE;
	flow->datagram.version = 4;
	flow->datagram.source[0] = header->source;
	flow->datagram.destination[0] = header->destination;
	flow->datagram.identification = bpf_ntohs(header->identification);
	flow->datagram.protocol = header->protocol;
	flow->upper.protocol = header->protocol;
	finish(cursor, flow);
	return 1;
}

/* ESP hides what follows and AH is a protocol of its own, as in the decoder. */
static __always_inline int is_extension_header(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT ||
	       next == IPPROTO_DSTOPTS || next == IPPROTO_MH || next == 139 /* HIP */ || next == 140 /* Shim6 */;
}

struct extension_header {
	__u8 next;
	__u8 length;   /* in eight octets beyond the first eight */
	__u16 offset;  /* the fragment header's offset and flags */
	__u32 identification;
};
_Static_assert(sizeof(struct extension_header) == 8, "RFC 8200, 4");

/* Passes the extension headers; upper.protocol becomes the first header that is none. */
static __always_inline void pass_extension_headers(struct cursor *cursor, struct flow *flow)
{
	struct extension_header *header;
	__u32 more;
	int i;

	for (i = 0; i < NAGARE_EXTENSION_HEADERS_MAX; i++) {
		if (!is_extension_header(flow->upper.protocol))
			return;
		header = take(cursor, sizeof(*header));
		if (!header)
			return;
		more = header->length * 8;
		if (flow->upper.protocol == IPPROTO_FRAGMENT) {
			more = 0;
			/* An offset of 0 without more fragments is a whole packet (RFC 6946). */
			if (header->offset & bpf_htons(0xfff9)) {
				flow->fragment = header->offset & bpf_htons(0xfff8) ? LATER : FIRST;
				flow->datagram.identification = bpf_ntohl(header->identification);
			}
		}
		flow->upper.protocol = header->next;
		if (flow->fragment == LATER)
			return;
		if (more >= cursor->left) {
			cursor->left = 0;
			return;
		}
		cursor->left -= more;
		cursor->at += more;
	}
}

struct ipv6_header {
	__u8 version_class;
	__u8 class_label[3];
	__u16 payload_length;
	__u8 next;
	__u8 hop_limit;
	__u32 source[4];
	__u32 destination[4];
};
_Static_assert(sizeof(struct ipv6_header) == 40, "RFC 8200, 3");

static __always_inline int parse_ipv6(struct cursor *cursor, struct flow *flow)
{
	struct ipv6_header *header = take(cursor, sizeof(*header));
	__u32 payload;

	if (!header || header->version_class >> 4 != 6)
		return 0;
	payload = bpf_ntohs(header->payload_length);
	/* A length of 0 is a jumbogram or segmentation offload: then the frame tells it. */
	cursor->left = payload == 0 && header->next != IPPROTO_NONE ? 0xffff : payload;
	flow->datagram.version = 6;
	__builtin_memcpy(flow->datagram.source, header->source, sizeof(header->source));
	__builtin_memcpy(flow->datagram.destination, header->destination, sizeof(header->destination));
	flow->upper.protocol = header->next;
	pass_extension_headers(cursor, flow);
	finish(cursor, flow);
	return 1;
}

struct vlan_tag {
	__u16 control;
	__u16 type;
};

static __always_inline int is_vlan(__u16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD) || type == bpf_htons(ETH_P_QINQ1) ||
	       type == bpf_htons(ETH_P_QINQ2);
}

/* Where the IP header begins and, above bit 16, its EtherType (host order); 0 where the frame ends before. It is a function of its
 * own, not inlined, so that the verifier follows what comes after once, and not once for each number of tags. */
__noinline __u32 find_network_header(struct xdp_md *ctx)
{
	struct cursor cursor = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, 0xffff };
	struct ethhdr *ethernet = take(&cursor, sizeof(*ethernet));
	struct vlan_tag *tag;
	__u16 type;
	int i;

	if (!ethernet)
		return 0;
	type = ethernet->h_proto;
#pragma unroll
	for (i = 0; i < NAGARE_VLAN_TAGS_MAX; i++) {
		if (!is_vlan(type))
			break;
		tag = take(&cursor, sizeof(*tag));
		if (!tag)
			return 0;
		type = tag->type;
	}
	return (__u32)bpf_ntohs(type) << 16 | (sizeof(*ethernet) + i * sizeof(*tag));
}

/* Fills `flow`; 0 where the frame holds no IP packet that this program reads. */
static __always_inline int parse(struct xdp_md *ctx, struct flow *flow)
{
	__u32 header = find_network_header(ctx);
	__u32 offset = header & 0xff;
	struct cursor cursor = { (void *)(long)ctx->data + offset, (void *)(long)ctx->data_end, 0xffff };

	if (header >> 16 == ETH_P_IP)
		return parse_ipv4(&cursor, flow);
	if (header >> 16 == ETH_P_IPV6)
		return parse_ipv6(&cursor, flow);
	return 0;
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
