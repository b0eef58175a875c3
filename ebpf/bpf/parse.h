/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From a frame to the flow of an IP packet in it, by the steps of the decoder (wire/src/packet/link.rs and ip.rs).
 *
 * Whoever includes this defines before it: CONTEXT, the type that stands for a frame, and octets(ctx, at, end, size), which gives
 * `size` octets (40 at most) at a place, or NULL where the packet ended before, or they were not captured.
 *
 * The functions that are not inlined are verified once, whatever they are called with: that keeps the verifier's work small. Such
 * functions give back numbers only, hence places that are packed in a word. */
#ifndef NAGARE_PARSE_H
#define NAGARE_PARSE_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

/* EtherTypes, in host order. */
#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86dd
#define TYPE_ETHERNET 0x6558
#define TYPE_PPP 0x880b

/* Something in the frame: its EtherType, where it begins, and where it ended on the wire by the headers before it. */
#define PLACE(type, at, end) ((__u64)(type) << 32 | (__u64)(end) << 16 | (at))
#define PLACE_TYPE(place) ((__u32)((place) >> 32) & 0xffff)
#define PLACE_AT(place) ((__u32)(place) & 0xffff)
#define PLACE_END(place) ((__u32)((place) >> 16) & 0xffff)

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

enum fragment { WHOLE, FIRST, LATER };

/* The flow of a packet. Everything but the addresses' words is in host order. */
struct flow {
	struct datagram datagram;
	struct upper upper;
	enum fragment fragment;
};

/* The number in host order; below 0 where it is not there. */
static __always_inline long read8(CONTEXT *ctx, __u32 at, __u32 end)
{
	__u8 *octet = octets(ctx, at, end, 1);

	return octet ? *octet : -1;
}

static __always_inline long read16(CONTEXT *ctx, __u32 at, __u32 end)
{
	__u16 *number = octets(ctx, at, end, 2);

	return number ? bpf_ntohs(*number) : -1;
}

static __always_inline long read32(CONTEXT *ctx, __u32 at, __u32 end)
{
	__u32 *number = octets(ctx, at, end, 4);

	return number ? (long)bpf_ntohl(*number) : -1;
}

/* The EtherType that the first octet of an IP packet tells; 0 for anything else. */
static __always_inline __u32 by_version(CONTEXT *ctx, __u32 at, __u32 end)
{
	long octet = read8(ctx, at, end);

	if (octet < 0)
		return 0;
	return octet >> 4 == 4 ? TYPE_IPV4 : octet >> 4 == 6 ? TYPE_IPV6 : 0;
}

static __always_inline int is_vlan(__u32 type)
{
	return type == 0x8100 || type == 0x88a8 || type == 0x9100 || type == 0x9200;
}

/* Nothing names what follows the labels; IP shows its version. */
static __always_inline __u64 pass_labels(CONTEXT *ctx, __u32 at, __u32 end)
{
	__u32 type;
	long bottom;
	int i;

	for (i = 0; i < NAGARE_STACK_MAX; i++) {
		bottom = read8(ctx, at + 2, end);
		if (bottom < 0)
			return 0;
		at += 4;
		if (!(bottom & 1))
			continue;
		type = by_version(ctx, at, end);
		return type ? PLACE(type, at, end) : 0;
	}
	return 0;
}

static __always_inline __u64 pass_ppp(CONTEXT *ctx, __u32 at, __u32 end)
{
	__u32 type;
	long protocol;

	if (read16(ctx, at, end) == 0xff03)
		at += 2;
	protocol = read8(ctx, at, end);
	if (protocol < 0)
		return 0;
	/* A protocol number with an odd first octet is compressed to that octet. */
	if (protocol & 1) {
		at += 1;
	} else {
		protocol = read16(ctx, at, end);
		at += 2;
	}
	type = protocol == 0x21 ? TYPE_IPV4 : protocol == 0x57 ? TYPE_IPV6 : 0;
	return type ? PLACE(type, at, end) : 0;
}

/* What follows VLAN tags, MPLS, PPPoE and SNAP: IP's place, or 0. */
__noinline __u64 pass_link(CONTEXT *ctx, __u64 place)
{
	__u32 at = PLACE_AT(place), end = PLACE_END(place), type = PLACE_TYPE(place);
	long next;
	int i;

	if (type == TYPE_ETHERNET) {
		next = read16(ctx, at + 12, end);
		if (next < 0)
			return 0;
		type = next;
		at += 14;
	}
	for (i = 0; i < NAGARE_STACK_MAX; i++) {
		if (type == TYPE_IPV4 || type == TYPE_IPV6)
			return PLACE(type, at, end);
		if (type == 0x8847 || type == 0x8848)
			return pass_labels(ctx, at, end);
		if (type == 0x8864)
			return pass_ppp(ctx, at + 6, end);
		if (type == TYPE_PPP)
			return pass_ppp(ctx, at, end);
		if (is_vlan(type)) {
			next = read16(ctx, at + 2, end);
			at += 4;
		} else if (type < 0x0600 && read32(ctx, at, end) == 0xaaaa0300 && read16(ctx, at + 4, end) == 0) {
			next = read16(ctx, at + 6, end);
			at += 8;
		} else {
			return 0;
		}
		if (next < 0)
			return 0;
		type = next;
	}
	return 0;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_UDPLITE;
}

/* Where fewer than four octets of the transport header are there, both ports stay 0, as in the decoder. A later fragment has
 * none, whatever stands there. */
static __always_inline void read_ports(CONTEXT *ctx, __u32 at, __u32 end, struct flow *flow)
{
	__u16 *ports;

	if (flow->fragment == LATER || !has_ports(flow->upper.protocol))
		return;
	ports = octets(ctx, at, end, 4);
	if (!ports)
		return;
	flow->upper.source_port = bpf_ntohs(ports[0]);
	flow->upper.destination_port = bpf_ntohs(ports[1]);
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

static __always_inline __u64 parse_ipv4(CONTEXT *ctx, __u32 at, __u32 end, struct flow *flow)
{
	struct ipv4_header *header = octets(ctx, at, end, sizeof(*header));
	__u32 length, total;
	__u16 fragment;

	if (!header || header->version_length >> 4 != 4)
		return 0;
	length = (header->version_length & 0x0f) * 4;
	total = bpf_ntohs(header->total_length);
	/* A length of 0 is segmentation offload: then what is around tells it. */
	if (total == 0)
		total = end - at;
	if (length < sizeof(*header) || total < length)
		return 0;
	fragment = bpf_ntohs(header->fragment);
	flow->fragment = fragment & 0x1fff ? LATER : fragment & 0x2000 ? FIRST : WHOLE;
	flow->datagram.version = 4;
	flow->datagram.source[0] = header->source;
	flow->datagram.destination[0] = header->destination;
	flow->datagram.identification = bpf_ntohs(header->identification);
	flow->datagram.protocol = header->protocol;
	flow->upper.protocol = header->protocol;
	if (total < end - at)
		end = at + total;
	at += length;
	read_ports(ctx, at, end, flow);
	return PLACE(1, at, end);
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

/* Passes the extension headers; upper.protocol becomes the first header that is none. Gives where that begins. */
static __always_inline __u32 pass_extension_headers(CONTEXT *ctx, __u32 at, __u32 end, struct flow *flow)
{
	struct extension_header *header;
	__u32 length;
	int i;

	for (i = 0; i < NAGARE_EXTENSION_HEADERS_MAX; i++) {
		if (!is_extension_header(flow->upper.protocol))
			return at;
		header = octets(ctx, at, end, sizeof(*header));
		if (!header)
			return at;
		length = (header->length + 1) * 8;
		if (flow->upper.protocol == IPPROTO_FRAGMENT) {
			length = 8;
			/* An offset of 0 without more fragments is a whole packet (RFC 6946). */
			if (header->offset & bpf_htons(0xfff9)) {
				flow->fragment = header->offset & bpf_htons(0xfff8) ? LATER : FIRST;
				flow->datagram.identification = bpf_ntohl(header->identification);
			}
		}
		flow->upper.protocol = header->next;
		at += length;
		if (flow->fragment == LATER)
			return at;
	}
	return at;
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

static __always_inline __u64 parse_ipv6(CONTEXT *ctx, __u32 at, __u32 end, struct flow *flow)
{
	struct ipv6_header *header = octets(ctx, at, end, sizeof(*header));
	__u32 total;

	if (!header || header->version_class >> 4 != 6)
		return 0;
	total = sizeof(*header) + bpf_ntohs(header->payload_length);
	/* A length of 0 is a jumbogram or segmentation offload: then what is around tells it. */
	if (total == sizeof(*header) && header->next != IPPROTO_NONE)
		total = end - at;
	flow->datagram.version = 6;
	__builtin_memcpy(flow->datagram.source, header->source, sizeof(header->source));
	__builtin_memcpy(flow->datagram.destination, header->destination, sizeof(header->destination));
	flow->upper.protocol = header->next;
	if (total < end - at)
		end = at + total;
	at = pass_extension_headers(ctx, at + sizeof(*header), end, flow);
	read_ports(ctx, at, end, flow);
	return PLACE(1, at & 0xffff, end);
}

/* Fills `flow` of the IP packet at a place; gives the place of what it carries, or 0 where it is no IP that can be read. */
__noinline __u64 parse_ip(CONTEXT *ctx, __u64 place, struct flow *flow)
{
	__u32 at = PLACE_AT(place), end = PLACE_END(place);

	if (!flow)
		return 0;
	__builtin_memset(flow, 0, sizeof(*flow));
	if (PLACE_TYPE(place) == TYPE_IPV4)
		return parse_ipv4(ctx, at, end, flow);
	return parse_ipv6(ctx, at, end, flow);
}

#endif
