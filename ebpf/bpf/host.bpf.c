// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* An interface that the host itself uses: copies the headers of what comes in and goes out into the worker's ring, and lets
 * everything pass. And for AF_PACKET the choice of a worker's socket, by the same hash. */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

char LICENSE[] SEC("license") = "GPL";

#define CONTEXT struct nagare_frame

/* What can be read at once. */
#define PIECE 40

static __always_inline void *octets(struct nagare_frame *frame, __u32 at, __u32 end, __u32 size)
{
	__u64 offset = at;

	/* The verifier takes it for possible that there is no frame. */
	if (!frame || at + size > end || at + size > frame->captured)
		return NULL;
	/* Changes nothing: what was captured ends before. It shows the verifier the bound of the very register that is used. */
	asm volatile("" : "+r"(offset));
	if (offset > sizeof(frame->octets) - PIECE)
		return NULL;
	return frame->octets + offset;
}

#include "counters.h"
#include "steer.h"

#define RING(number)                                                                                                           \
	struct {                                                                                                                   \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                                                    \
		__uint(max_entries, 4096);                                                                                             \
	} ring_##number SEC(".maps")

/* One for each worker, at most NAGARE_RINGS_MAX; the loader sets their sizes. */
RING(0);
RING(1);
RING(2);
RING(3);
RING(4);
RING(5);
RING(6);
RING(7);

/* Where a frame's headers are looked at before its worker is known. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nagare_frame);
} scratch SEC(".maps");

/* Copies the headers of what `skb` begins with; `tagged`: with the VLAN tag that the kernel has taken off. */
static __always_inline int copy(struct __sk_buff *skb, struct nagare_frame *frame, int tagged)
{
	__u32 tag = tagged && skb->vlan_present ? 4 : 0;
	__u64 rest = skb->len;
	void *to = frame->octets + 12 + tag;

	if (rest > NAGARE_HOST_OCTETS - 4)
		rest = NAGARE_HOST_OCTETS - 4;
	rest -= 12;
	/* Changes nothing: it shows the verifier the bounds of the very register that is used. */
	asm volatile("" : "+r"(rest));
	if (rest < 4 || rest > NAGARE_HOST_OCTETS - 16)
		return -1;
	if (bpf_skb_load_bytes(skb, 0, frame->octets, 12) || bpf_skb_load_bytes(skb, 12, to, rest))
		return -1;
	if (tag) {
		frame->octets[12] = skb->vlan_proto & 0xff;
		frame->octets[13] = skb->vlan_proto >> 8 & 0xff;
		frame->octets[14] = skb->vlan_tci >> 8 & 0xff;
		frame->octets[15] = skb->vlan_tci & 0xff;
	}
	frame->captured = 12 + tag + rest;
	frame->length = skb->len + tag;
	return 0;
}

#define CASE(number)                                                                                                           \
	case number:                                                                                                               \
		return bpf_ringbuf_output(&ring_##number, frame, sizeof(*frame), 0)

static __always_inline long hand_over(struct nagare_frame *frame, __u32 worker)
{
	switch (worker) {
		CASE(0);
		CASE(1);
		CASE(2);
		CASE(3);
		CASE(4);
		CASE(5);
		CASE(6);
		CASE(7);
	}
	return -1;
}

static __always_inline __u32 first_type(struct nagare_frame *frame)
{
	return config.has_ethernet ? TYPE_ETHERNET : by_version(frame, 0, frame->captured);
}

static __always_inline int meter(struct __sk_buff *skb)
{
	__u32 zero = 0, worker, packets = skb->gso_segs ? skb->gso_segs : 1;
	struct nagare_frame *frame = bpf_map_lookup_elem(&scratch, &zero);

	count(NAGARE_COUNTER_SEEN, packets);
	if (!frame)
		return TC_ACT_UNSPEC;
	if (copy(skb, frame, config.has_ethernet)) {
		count(NAGARE_COUNTER_UNREADABLE, packets);
		return TC_ACT_UNSPEC;
	}
	frame->time_ns = bpf_ktime_get_ns();
	frame->packets = packets;
	worker = worker_of(frame, first_type(frame), frame->length);
	/* Counted before the worker can have it: whoever reads the books must not find more metered than was given. */
	count(NAGARE_COUNTER_STEERED + worker, packets);
	if (hand_over(frame, worker)) {
		count(NAGARE_COUNTER_STEERED + worker, -(long)packets);
		count(NAGARE_COUNTER_LOST, packets);
	}
	return TC_ACT_UNSPEC;
}

SEC("classifier")
int nagare_ingress(struct __sk_buff *skb)
{
	return meter(skb);
}

SEC("classifier")
int nagare_egress(struct __sk_buff *skb)
{
	return meter(skb);
}

/* The index of the socket of the fanout group that a packet goes to. */
SEC("socket")
int nagare_fanout(struct __sk_buff *skb)
{
	__u32 zero = 0, type;
	struct nagare_frame *frame = bpf_map_lookup_elem(&scratch, &zero);

	if (!frame)
		return 0;
	if (copy(skb, frame, 0))
		return 0;
	/* What comes in begins with what follows the Ethernet header here, what goes out with that header. */
	type = skb->pkt_type == PACKET_OUTGOING ? first_type(frame) : bpf_ntohs(skb->protocol);
	return worker_of(frame, type, frame->length);
}
