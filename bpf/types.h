/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every struct the kernel side shares with Go. Go's types are generated from these. Addresses and ports are in
 * network order. A change here changes layoutVersion in pkg/datapath/ebpf/pins.go.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

typedef _Bool bool;
enum { false, true };

struct frontends4_key {
	__be32 ip;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* Also what the hooks speak of an address they were given, then with IPv4 as ::ffff:a.b.c.d. */
struct frontends6_key {
	__be32 ip[4];
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* IPv4 as ::ffff:a.b.c.d. */
struct backend {
	__be32 ip[4];
	__be16 port;
	__u16 pad[3];
};

/* What a connected socket was connected to, and what its owner asked for. */
struct peer {
	struct frontends6_key frontend;
	struct backend backend;
};

/* An unconnected UDP socket's choice for one frontend. */
struct flow {
	struct peer peer;
	__u32 slot; /* where in its set the backend was last seen: a hint */
};

enum { FLOWS = 4 };

struct flows {
	struct bpf_spin_lock lock; /* two threads may send on one socket */
	__u32 last;		   /* used last: it wins when two frontends share a backend */
	struct flow flow[FLOWS];
};

/* Per CPU. */
struct totals {
	__u64 connected; /* connects translated */
	__u64 sent;	 /* flows opened by unconnected UDP sockets */
	__u64 refused;	 /* refused for want of a backend */
	__u64 untracked; /* left alone: no memory for the socket's state */
	__u64 broken;	 /* left alone: a map contradicts another */
};

_Static_assert(sizeof(struct frontends4_key) == 8, "frontends4_key");
_Static_assert(sizeof(struct frontends6_key) == 20, "frontends6_key");
_Static_assert(sizeof(struct backend) == 24, "backend");
_Static_assert(sizeof(struct peer) == 44, "peer");
_Static_assert(sizeof(struct flow) == 48, "flow");
_Static_assert(sizeof(struct flows) == 8 + FLOWS * 48, "flows");
