/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What became of the packets that a program saw. */
#ifndef NAGARE_COUNTERS_H
#define NAGARE_COUNTERS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "nagare.h"

/* The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NAGARE_COUNTER_STEERED + 1);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 index, long packets)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		*counter += packets;
}

#endif
