// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* A capture port: steers each packet to a worker's AF_XDP socket, with its time and length before it. Nothing is dropped here but
 * what finds no socket, and that is counted. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

char LICENSE[] SEC("license") = "GPL";

#define CONTEXT struct xdp_md

/* No header is looked for behind this: the verifier wants a bound. */
#define DEPTH_MAX 0x3fff

static __always_inline void *octets(struct xdp_md *ctx, __u32 at, __u32 end, __u32 size)
{
	__u64 offset = at;
	void *start;

	if (at > DEPTH_MAX || at + size > end)
		return NULL;
	/* Changes nothing, but shows the verifier the bound of the very register that is used. */
	asm volatile("%0 &= %1" : "+r"(offset) : "i"(DEPTH_MAX));
	start = (void *)(long)ctx->data + offset;
	return start + size > (void *)(long)ctx->data_end ? NULL : start;
}

#include "counters.h"
#include "steer.h"

/* Index: rx queue * workers + worker. A socket receives only from the queue that it is bound to. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* What stands before the packet in its frame of the UMEM. A driver that keeps no room for it gives none. */
static __always_inline void stamp(struct xdp_md *ctx, __u32 length)
{
	struct nagare_metadata *metadata;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*metadata)))
		return;
	metadata = (void *)(long)ctx->data_meta;
	if ((void *)(metadata + 1) > (void *)(long)ctx->data)
		return;
	metadata->time_ns = bpf_ktime_get_ns();
	metadata->length = length;
	metadata->mark = NAGARE_METADATA_MARK;
}

/* The headers are all that is wanted; the metadata keeps the length that the packet had. */
static __always_inline void cut(struct xdp_md *ctx, __u32 length)
{
	int more = length - config.octets_max;

	if (more > 0)
		bpf_xdp_adjust_tail(ctx, -more);
}

static __always_inline int steer(struct xdp_md *ctx, __u32 length)
{
	__u32 worker = worker_of(ctx, TYPE_ETHERNET, length);
	long verdict;

	count(NAGARE_COUNTER_SEEN, 1);
	stamp(ctx, length);
	cut(ctx, length);
	verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index * config.workers + worker, XDP_DROP);
	count(verdict == XDP_REDIRECT ? NAGARE_COUNTER_STEERED + worker : NAGARE_COUNTER_LOST, 1);
	return verdict;
}

/* For drivers that hand on packets in several buffers (jumbo frames), on kernels that know of them: 5.18 and newer. */
SEC("xdp.frags")
int nagare_steer_all(struct xdp_md *ctx)
{
	return steer(ctx, bpf_xdp_get_buff_len(ctx));
}

SEC("xdp")
int nagare_steer(struct xdp_md *ctx)
{
	return steer(ctx, ctx->data_end - ctx->data);
}
