/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the payload of a packet carries, by the steps of the decoder (wire/src/packet/tunnel.rs). */
#ifndef NAGARE_TUNNEL_H
#define NAGARE_TUNNEL_H

#include "parse.h"

#define PORT_L2TP 1701
#define PORT_GTP_U 2152
#define PORT_TEREDO 3544
#define PORT_VXLAN 4789
#define PORT_GENEVE 6081
#define PORT_VXLAN_LINUX 8472

#define PROTOCOL_L2TP 115

static __always_inline __u64 place_or_none(__u32 type, __u32 at, __u32 end)
{
	return at <= end ? PLACE(type, at, end) : 0;
}

static __always_inline __u64 packet_or_none(CONTEXT *ctx, __u32 at, __u32 end)
{
	__u32 type = by_version(ctx, at, end);

	return type ? PLACE(type, at, end) : 0;
}

static __always_inline __u64 pass_erspan(CONTEXT *ctx, __u32 at, __u32 end, __u32 type, int sequenced)
{
	long version = read8(ctx, at, end) >> 4, last;

	if (type == 0x88be && !sequenced)
		return place_or_none(TYPE_ETHERNET, at, end);
	if (type == 0x88be && version == 1)
		return place_or_none(TYPE_ETHERNET, at + 8, end);
	if (type != 0x22eb || version != 2)
		return 0;
	last = read16(ctx, at + 10, end);
	if (last < 0)
		return 0;
	at += last & 1 ? 20 : 12;
	if ((last >> 10 & 0x1f) == 0)
		return place_or_none(TYPE_ETHERNET, at, end);
	if ((last >> 10 & 0x1f) == 2)
		return packet_or_none(ctx, at, end);
	return 0;
}

static __always_inline __u64 pass_gre(CONTEXT *ctx, __u32 at, __u32 end)
{
	long flags = read16(ctx, at, end), type = read16(ctx, at + 2, end);
	__u32 checksum, key, sequence, acknowledgement;

	if (flags < 0 || type < 0)
		return 0;
	checksum = flags & 0x8000 ? 4 : 0;
	key = flags & 0x2000 ? 4 : 0;
	sequence = flags & 0x1000 ? 4 : 0;
	acknowledgement = flags & 0x0080 ? 4 : 0;
	if ((flags & 7) == 1)
		return key && sequence && type == TYPE_PPP ? place_or_none(TYPE_PPP, at + 12 + acknowledgement, end) : 0;
	if (flags & 0x4007)
		return 0;
	at += 4 + checksum + key + sequence;
	if (type == 0x88be || type == 0x22eb)
		return pass_erspan(ctx, at, end, type, sequence);
	return place_or_none(type, at, end);
}

static __always_inline __u64 pass_vxlan(CONTEXT *ctx, __u32 at, __u32 end)
{
	long flags = read8(ctx, at, end);

	return flags >= 0 && flags & 0x08 ? place_or_none(TYPE_ETHERNET, at + 8, end) : 0;
}

static __always_inline __u64 pass_geneve(CONTEXT *ctx, __u32 at, __u32 end)
{
	long first = read32(ctx, at, end);

	if (first < 0 || first >> 30 != 0 || first & 0x00800000)
		return 0;
	return place_or_none(first & 0xffff, at + 8 + (first >> 24 & 0x3f) * 4, end);
}

static __always_inline __u64 pass_gtp_u(CONTEXT *ctx, __u32 at, __u32 end)
{
	long first = read16(ctx, at, end), next, words;
	int i;

	if (first < 0 || first >> 12 != 3 || (first & 0xff) != 255)
		return 0;
	at += 8;
	if (first & 0x0700)
		at += 4;
	if (first & 0x0400) {
		for (i = 0; i < NAGARE_GTP_EXTENSIONS_MAX; i++) {
			if (read8(ctx, at - 1, end) == 0)
				break;
			words = read8(ctx, at, end);
			if (words <= 0)
				return 0;
			at += words * 4;
		}
		next = read8(ctx, at - 1, end);
		if (next != 0)
			return 0;
	}
	return packet_or_none(ctx, at, end);
}

static __always_inline int looks_like_a_frame(CONTEXT *ctx, __u32 at, __u32 end)
{
	long type = read16(ctx, at + 12, end), octet = read8(ctx, at + 14, end);

	if (type < 0 || octet < 0)
		return 0;
	return (type == TYPE_IPV4 && octet >> 4 == 4) || (type == TYPE_IPV6 && octet >> 4 == 6) || type == 0x8100 ||
	       type == 0x88a8;
}

/* Version 3, from the session on. */
static __always_inline __u64 pass_l2tp_3(CONTEXT *ctx, __u32 at, __u32 end)
{
	int i;

	if (read32(ctx, at, end) <= 0)
		return 0;
	for (i = 0; i < 4; i++) {
		at += 4;
		if (looks_like_a_frame(ctx, at, end))
			return PLACE(TYPE_ETHERNET, at, end);
	}
	return 0;
}

static __always_inline __u64 pass_l2tp(CONTEXT *ctx, __u32 at, __u32 end)
{
	long flags = read16(ctx, at, end), offset;

	if (flags < 0 || flags & 0x8000)
		return 0;
	if ((flags & 0x0f) == 3)
		return pass_l2tp_3(ctx, at + 4, end);
	if ((flags & 0x0f) != 2)
		return 0;
	at += flags & 0x4000 ? 4 : 2;
	at += flags & 0x0800 ? 8 : 4;
	if (flags & 0x0200) {
		offset = read16(ctx, at, end);
		if (offset < 0)
			return 0;
		at += 2 + offset;
	}
	return place_or_none(TYPE_PPP, at, end);
}

static __always_inline __u64 pass_teredo(CONTEXT *ctx, __u32 at, __u32 end)
{
	long kind = read16(ctx, at, end), lengths;

	if (kind == 1) {
		lengths = read16(ctx, at + 2, end);
		if (lengths < 0)
			return 0;
		at += 13 + (lengths >> 8) + (lengths & 0xff);
		kind = read16(ctx, at, end);
	}
	if (kind == 0)
		at += 8;
	return by_version(ctx, at, end) == TYPE_IPV6 ? PLACE(TYPE_IPV6, at, end) : 0;
}

static __always_inline __u64 pass_udp(CONTEXT *ctx, __u32 at, __u32 end, __u32 port)
{
	switch (port) {
	case PORT_VXLAN:
	case PORT_VXLAN_LINUX:
		return pass_vxlan(ctx, at, end);
	case PORT_GENEVE:
		return pass_geneve(ctx, at, end);
	case PORT_GTP_U:
		return pass_gtp_u(ctx, at, end);
	case PORT_L2TP:
		return pass_l2tp(ctx, at, end);
	case PORT_TEREDO:
		return pass_teredo(ctx, at, end);
	}
	return 0;
}

/* The place of what a packet's payload carries; 0 where it is no tunnel. `ports`: source port << 16 | destination port. */
__noinline __u64 pass_tunnel(CONTEXT *ctx, __u64 place, __u32 protocol, __u32 ports)
{
	__u32 at = PLACE_AT(place), end = PLACE_END(place);
	__u64 inside;

	switch (protocol) {
	case IPPROTO_IPIP:
		return PLACE(TYPE_IPV4, at, end);
	case IPPROTO_IPV6:
		return PLACE(TYPE_IPV6, at, end);
	case IPPROTO_GRE:
		return pass_gre(ctx, at, end);
	case PROTOCOL_L2TP:
		return pass_l2tp_3(ctx, at, end);
	case IPPROTO_UDP:
		inside = pass_udp(ctx, at + 8, end, ports & 0xffff);
		return inside ? inside : pass_udp(ctx, at + 8, end, ports >> 16);
	}
	return 0;
}

#endif
