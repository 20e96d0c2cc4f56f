/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map. Sizes are set by Go, which replaces maps that became too small. */
#pragma once

#include "types.h" /* before bpf_helpers.h, which needs its integers */

#include <bpf/bpf_helpers.h>

/* IPv4 address a client dials -> fingerprint of the key (high 32 bits), set id (low 32 bits). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct frontends4_key);
	__type(value, __u64);
} frontends4 SEC(".maps");

/* The same for IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct frontends6_key);
	__type(value, __u64);
} frontends6 SEC(".maps");

/* Set id -> number of backends (high 32 bits), index of the first in `backends` (low 32 bits). One word: the
 * store of it is the moment a change takes effect.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sets SEC(".maps");

/* The backends of a set lie together, sorted by address and port. Go writes through a mapping, and never to a
 * block that a set pointed at within the last second.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* Connected sockets that were translated. Lives and dies with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} connected SEC(".maps");

/* Unconnected UDP sockets that sent to a frontend. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flows);
} unconnected SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} counters SEC(".maps");

/* Adds one to the member of struct totals that lies there. */
static __always_inline void count_at(__u32 offset)
{
	__u32 key = 0;
	void *totals = bpf_map_lookup_elem(&counters, &key);

	if (totals)
		(*(__u64 *)(totals + offset))++;
}

#define count(member) count_at(__builtin_offsetof(struct totals, member))
