/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the address a client dials to a backend. */
#pragma once

#include "types.h" /* before bpf_helpers.h, which needs its integers */

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

enum {
	ATTEMPTS = 3,	   /* lookups of a frontend whose element changes under our hands */
	SEARCH_STEPS = 21, /* halvings down to one backend: sets have at most 1 << 20 */
};

static __always_inline bool is_mapped(const struct frontends6_key *address)
{
	return !address->ip[0] && !address->ip[1] && address->ip[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_address(const struct frontends6_key *a, const struct frontends6_key *b)
{
	return a->ip[3] == b->ip[3] && a->port == b->port && a->ip[2] == b->ip[2] && a->ip[1] == b->ip[1] &&
	       a->ip[0] == b->ip[0];
}

static __always_inline bool is_backend(const struct frontends6_key *address, const struct backend *backend)
{
	return address->ip[3] == backend->ip[3] && address->port == backend->port &&
	       address->ip[2] == backend->ip[2] && address->ip[1] == backend->ip[1] &&
	       address->ip[0] == backend->ip[0];
}

/* Go computes the same in encode.go. */
static __always_inline __u32 fingerprint(const struct frontends6_key *address)
{
	__u32 h = address->ip[0];

	h = h * 0x9e3779b1 ^ address->ip[1];
	h = h * 0x9e3779b1 ^ address->ip[2];
	h = h * 0x9e3779b1 ^ address->ip[3];
	h = h * 0x9e3779b1 ^ ((__u32)address->port << 8 | address->protocol);
	return h * 0x9e3779b1;
}

static __always_inline __u64 *lookup_element(const struct frontends6_key *address)
{
	struct frontends4_key key4 = {
		.ip = address->ip[3],
		.port = address->port,
		.protocol = address->protocol,
	};

	if (is_mapped(address))
		return bpf_map_lookup_elem(&frontends4, &key4);
	return bpf_map_lookup_elem(&frontends6, address);
}

/* The kernel may give a replaced hash element to another key while we still hold it (since 6.1 at once), so the
 * value says whose it is. True if address is a frontend, with its set.
 */
static __always_inline bool lookup_frontend(const struct frontends6_key *address, __u32 *set)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		__u64 *element = lookup_element(address), word;

		if (!element)
			return false;
		word = *(volatile __u64 *)element;
		*set = (__u32)word;
		if (word >> 32 == fingerprint(address))
			return true;
	}
	count(broken);
	return false;
}

struct block {
	__u32 offset;
	__u32 count;
};

static __always_inline struct block load_set(__u32 set)
{
	__u64 *word = bpf_map_lookup_elem(&sets, &set), value;
	struct block block = {};

	if (!word)
		return block;
	value = *(volatile __u64 *)word;
	block.offset = (__u32)value;
	block.count = value >> 32;
	return block;
}

static __always_inline const struct backend *load_backend(const struct block *block, __u32 slot)
{
	__u32 index = block->offset + slot;

	return bpf_map_lookup_elem(&backends, &index);
}

static __always_inline bool pick_backend(const struct block *block, struct backend *backend, __u32 *slot)
{
	const struct backend *picked;

	*slot = bpf_get_prandom_u32() % block->count;
	picked = load_backend(block, *slot);
	if (!picked) {
		count(broken);
		return false;
	}
	*backend = *picked;
	return true;
}

static __always_inline bool same_backend(const struct backend *a, const struct backend *b)
{
	return a->ip[3] == b->ip[3] && a->port == b->port && a->ip[2] == b->ip[2] && a->ip[1] == b->ip[1] &&
	       a->ip[0] == b->ip[0];
}

static __always_inline bool after(const struct backend *a, const struct backend *b)
{
	for (int i = 0; i < 4; i++) {
		if (a->ip[i] != b->ip[i])
			return bpf_ntohl(a->ip[i]) > bpf_ntohl(b->ip[i]);
	}
	return bpf_ntohs(a->port) > bpf_ntohs(b->port);
}

/* Whether the set still has the backend; slot is where it was and becomes where it is. Sets are sorted. */
static __always_inline bool has_backend(const struct block *block, const struct backend *backend, __u32 *slot)
{
	const struct backend *seen;
	__u32 first = 0, rest = block->count;

	if (*slot < block->count) {
		seen = load_backend(block, *slot);
		if (seen && same_backend(seen, backend))
			return true;
	}
	for (int i = 0; i < SEARCH_STEPS && rest > 1; i++) {
		__u32 half = rest / 2;

		seen = load_backend(block, first + half);
		if (!seen)
			return false;
		if (!after(seen, backend))
			first += half;
		rest -= half;
	}
	seen = load_backend(block, first);
	*slot = first;
	return seen && same_backend(seen, backend);
}
