// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Makes load for tests and benches: run with live frames, it sends each out of an interface as one of many flows. The frame is an
 * untagged IPv4 packet with ports. Live frames come back as the last run left them, so every field that varies is written anew. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

char LICENSE[] SEC("license") = "GPL";

const volatile struct nagare_generator_config generator_config = { .interval = 0, .flows = 1, .ifindex = 0 };

/* A pause longer than this is none of the program's own: the clock goes on from there. */
#define PAUSE_NS 10000000

struct state {
	__u64 made; /* packets so far */
	__u64 began_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} made SEC(".maps");

struct frame {
	struct ethhdr ethernet;
	__u16 words[10]; /* the IPv4 header: word 1 is the length, word 5 the checksum, words 6 and 7 are the source address */
	__u16 source_port;
	__u16 destination_port;
	__u16 udp_length;
} __attribute__((packed));

/* Each flow has a source of its own: 16,384 ports for an address, as many addresses of 10.0.0.0/16 as are needed. */
static __always_inline void become(struct frame *frame, __u32 flow, __u32 length)
{
	__u32 sum = 0;
	int i;

	frame->words[1] = bpf_htons(length - sizeof(struct ethhdr));
	frame->udp_length = bpf_htons(length - sizeof(struct ethhdr) - sizeof(frame->words));
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

static long is_due(__u32 round, __u64 *due_ns)
{
	(void)round;
	return bpf_ktime_get_ns() >= *due_ns;
}

/* Waits until the next frame is due. */
static __always_inline void pace(struct state *state)
{
	__u64 passed = state->made * generator_config.interval >> 10, now_ns = bpf_ktime_get_ns();
	__u64 due_ns = state->began_ns + passed;

	if (due_ns + PAUSE_NS < now_ns) {
		state->began_ns = now_ns - passed;
		return;
	}
	bpf_loop(1 << 16, is_due, &due_ns, 0);
}

SEC("xdp")
int nagare_generate(struct xdp_md *ctx)
{
	__u64 turn;
	__u32 zero = 0, length, whole = ctx->data_end - ctx->data;
	struct state *state = bpf_map_lookup_elem(&made, &zero);
	struct frame *frame;

	if (!state)
		return XDP_ABORTED;
	if (generator_config.interval)
		pace(state);
	turn = state->made % NAGARE_LENGTHS;
	/* Changes nothing: it shows the verifier the bound of the very register that is used. */
	asm volatile("%0 &= 15" : "+r"(turn));
	length = generator_config.lengths[turn];
	if (length < whole && bpf_xdp_adjust_tail(ctx, (int)length - (int)whole))
		return XDP_ABORTED;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	become(frame, state->made % generator_config.flows, length);
	state->made += 1;
	return bpf_redirect(generator_config.ifindex, 0);
}

/* On the other end of a veth: takes what is sent, and passes it on to the kernel. */
SEC("xdp")
int nagare_pass(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}
