/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the hooks decide about a socket. An AF_INET6 socket may speak IPv4: connect6, recvmsg6 and getpeername6 then
 * see ::ffff:a.b.c.d, while its sendto runs sendmsg4. Here every address is 16 bytes, so both are the same.
 */
#pragma once

#include "types.h" /* before bpf_helpers.h, which needs its integers */

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "config.h"
#include "lookup.h"
#include "maps.h"

enum protocol { TCP = 6, UDP = 17 };
enum { SK_ESTABLISHED = 1 }; /* bpf_sock.state, of connected UDP sockets too */
enum { ECONNREFUSED = 111 };

enum outcome {
	LEAVE,	   /* not ours, or nftables' business */
	TRANSLATE, /* write the new address into the context */
	REFUSE,	   /* ECONNREFUSED */
};

static __always_inline bool is_served(__u32 protocol)
{
	return protocol == TCP || protocol == UDP;
}

static __always_inline bool is_connected(struct bpf_sock_addr *ctx)
{
	return ctx->sk && ctx->sk->state == SK_ESTABLISHED;
}

static __always_inline bool is_loopback(const struct frontends6_key *address)
{
	if (is_mapped(address))
		return (address->ip[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !address->ip[0] && !address->ip[1] && !address->ip[2] && address->ip[3] == bpf_htonl(1);
}

/* A pod's loopback addresses are its own: a NodePort on them is the node's. */
static __always_inline bool find_set(struct bpf_sock_addr *ctx, const struct frontends6_key *to, __u32 *set)
{
	if (!lookup_frontend(to, set))
		return false;
	return !is_loopback(to) || bpf_get_netns_cookie(ctx) == host_netns;
}

/* A connect decides anew what the socket is connected to. Forgetting costs an ordinary socket nothing: it has no
 * storage. A UDP connect to an empty set is left to nftables, whose reject leaves the socket usable: connect() of
 * UDP succeeds under kube-proxy too, and the socket is served as soon as there is a backend.
 */
static __always_inline enum outcome connect(struct bpf_sock_addr *ctx, const struct frontends6_key *to,
					    struct backend *backend)
{
	enum outcome outcome = LEAVE;
	struct block block;
	struct peer *peer;
	__u32 set, slot;

	if (!ctx->sk || !is_served(to->protocol))
		return LEAVE;
	if (!find_set(ctx, to, &set))
		goto forget;
	block = load_set(set);
	if (!block.count) {
		if (to->protocol == TCP)
			outcome = REFUSE;
		goto forget;
	}
	if (!pick_backend(&block, backend, &slot))
		goto forget;
	peer = bpf_sk_storage_get(&connected, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer) {
		count(untracked);
		return LEAVE;
	}
	peer->frontend = *to;
	peer->backend = *backend;
	count(connected);
	return TRANSLATE;
forget:
	bpf_sk_storage_delete(&connected, ctx->sk);
	return outcome;
}

/* True if the socket has a flow to that frontend, copied to flow. */
static __always_inline bool find_flow(struct flows *flows, const struct frontends6_key *frontend, struct flow *flow)
{
	bool found = false;

	bpf_spin_lock(&flows->lock);
#pragma unroll
	for (__u32 i = 0; i < FLOWS; i++) {
		if (!found && same_address(&flows->flow[i].peer.frontend, frontend)) {
			*flow = flows->flow[i];
			flows->last = i;
			found = true;
		}
	}
	bpf_spin_unlock(&flows->lock);
	return found;
}

/* Takes the place of the same frontend's flow, or else of the one after the flow used last. */
static __always_inline void store_flow(struct flows *flows, const struct flow *flow)
{
	__u32 place;

	bpf_spin_lock(&flows->lock);
	place = (flows->last + 1) % FLOWS;
#pragma unroll
	for (__u32 i = 0; i < FLOWS; i++) {
		if (same_address(&flows->flow[i].peer.frontend, &flow->peer.frontend))
			place = i;
	}
#pragma unroll
	for (__u32 i = 0; i < FLOWS; i++) {
		if (i == place)
			flows->flow[i] = *flow;
	}
	flows->last = place;
	bpf_spin_unlock(&flows->lock);
}

/* A datagram to a backend's own address: its answers must show that address again. */
static __always_inline void forget_backend(struct bpf_sock_addr *ctx, const struct frontends6_key *address)
{
	struct flows *flows = bpf_sk_storage_get(&unconnected, ctx->sk, 0, 0);

	if (!flows)
		return;
	bpf_spin_lock(&flows->lock);
#pragma unroll
	for (__u32 i = 0; i < FLOWS; i++) {
		if (is_backend(address, &flows->flow[i].peer.backend))
			__builtin_memset(&flows->flow[i], 0, sizeof(flows->flow[i]));
	}
	bpf_spin_unlock(&flows->lock);
}

/* A connected socket that names its own frontend in sendto must reach the backend it is connected to: the kernel
 * drops answers from any other.
 */
static __always_inline bool send_to_peer(struct bpf_sock_addr *ctx, const struct frontends6_key *to,
					 struct backend *backend)
{
	struct peer *peer;

	if (!is_connected(ctx))
		return false;
	peer = bpf_sk_storage_get(&connected, ctx->sk, 0, 0);
	if (!peer || !same_address(&peer->frontend, to))
		return false;
	*backend = peer->backend;
	return true;
}

/* One frontend keeps its backend as long as the backend is in the set, however often that set changes. */
static __always_inline enum outcome sendmsg(struct bpf_sock_addr *ctx, const struct frontends6_key *to,
					    struct backend *backend)
{
	struct flow flow = {};
	struct block block;
	struct flows *flows;
	__u32 set, slot;

	if (!ctx->sk || to->protocol != UDP)
		return LEAVE;
	if (!find_set(ctx, to, &set)) {
		forget_backend(ctx, to);
		return LEAVE;
	}
	if (send_to_peer(ctx, to, backend))
		return TRANSLATE;
	block = load_set(set);
	if (!block.count)
		return REFUSE;
	flows = bpf_sk_storage_get(&unconnected, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!flows) {
		count(untracked);
		return LEAVE;
	}
	if (find_flow(flows, to, &flow)) {
		slot = flow.slot;
		if (has_backend(&block, &flow.peer.backend, &flow.slot)) {
			if (slot != flow.slot)
				store_flow(flows, &flow);
			*backend = flow.peer.backend;
			return TRANSLATE;
		}
	}
	if (!pick_backend(&block, backend, &flow.slot))
		return LEAVE;
	flow.peer.frontend = *to;
	flow.peer.backend = *backend;
	store_flow(flows, &flow);
	count(sent);
	return TRANSLATE;
}

/* Shows the frontend a connected socket asked for. */
static __always_inline bool reverse_peer(struct bpf_sock_addr *ctx, const struct frontends6_key *from,
					 struct frontends6_key *frontend)
{
	struct peer *peer;

	if (!ctx->sk)
		return false;
	peer = bpf_sk_storage_get(&connected, ctx->sk, 0, 0);
	if (!peer || !is_backend(from, &peer->backend))
		return false;
	*frontend = peer->frontend;
	return true;
}

static __always_inline bool reverse_flow(struct bpf_sock_addr *ctx, const struct frontends6_key *from,
					 struct frontends6_key *frontend)
{
	struct flows *flows;
	bool found = false;

	if (!ctx->sk)
		return false;
	flows = bpf_sk_storage_get(&unconnected, ctx->sk, 0, 0);
	if (!flows)
		return false;
	bpf_spin_lock(&flows->lock);
#pragma unroll
	for (__u32 i = 0; i < FLOWS; i++) {
		if ((!found || flows->last == i) && is_backend(from, &flows->flow[i].peer.backend)) {
			*frontend = flows->flow[i].peer.frontend;
			found = true;
		}
	}
	bpf_spin_unlock(&flows->lock);
	return found;
}

/* Shows the frontend a datagram answers. A socket disconnected with AF_UNSPEC, which no hook sees, still has the
 * peer it lost: hence the look at its state.
 */
static __always_inline bool recvmsg(struct bpf_sock_addr *ctx, const struct frontends6_key *from,
				    struct frontends6_key *frontend)
{
	if (is_connected(ctx) && reverse_peer(ctx, from, frontend))
		return true;
	return reverse_flow(ctx, from, frontend);
}
