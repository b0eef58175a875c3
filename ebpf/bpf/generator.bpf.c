// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Makes load for tests and benches: run with live frames, it sends each out of an interface as one of many flows. The frame is an
 * untagged IPv4 packet with ports. Live frames come back as the last run left them, so every field that varies is written anew. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

char LICENSE[] SEC("license") = "GPL";

const volatile struct nagare_generator_config generator_config = { .flows = 1, .ifindex = 0 };

/* Packets made so far. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} made SEC(".maps");

struct frame {
	struct ethhdr ethernet;
	__u16 words[10]; /* the IPv4 header: word 5 is the checksum, words 6 and 7 are the source address */
	__u16 source_port;
	__u16 destination_port;
} __attribute__((packed));

/* Each flow has a source of its own: 16,384 ports for an address, as many addresses of 10.0.0.0/16 as are needed. */
static __always_inline void become(struct frame *frame, __u32 flow)
{
	__u32 sum = 0;
	int i;

	frame->words[5] = 0;
	frame->words[6] = bpf_htons(10 << 8);
	frame->words[7] = bpf_htons((flow >> 14) + 1);
	frame->source_port = bpf_htons(1024 + (flow & 0x3fff));
#pragma unroll
	for (i = 0; i < 10; i++)
		sum += frame->words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	frame->words[5] = ~sum;
}

SEC("xdp")
int nagare_generate(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	__u32 zero = 0;
	__u64 *number = bpf_map_lookup_elem(&made, &zero);

	if (!number || (void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	become(frame, *number % generator_config.flows);
	*number += 1;
	return bpf_redirect(generator_config.ifindex, 0);
}
