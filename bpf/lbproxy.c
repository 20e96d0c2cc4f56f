/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The hooks: unpack the context, ask sock.h, write back. */
#include "sock.h"

enum { PASS = 1, FAIL = 0 }; /* what a hook returns */

static __always_inline struct frontends6_key read4(struct bpf_sock_addr *ctx)
{
	struct frontends6_key address = {
		.ip = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 },
		.port = ctx->user_port,
		.protocol = ctx->protocol,
	};

	return address;
}

static __always_inline struct frontends6_key read6(struct bpf_sock_addr *ctx)
{
	struct frontends6_key address = {
		.ip = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] },
		.port = ctx->user_port,
		.protocol = ctx->protocol,
	};

	return address;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const __be32 *ip, __be16 port)
{
	ctx->user_ip4 = ip[3];
	ctx->user_port = port;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const __be32 *ip, __be16 port)
{
	ctx->user_ip6[0] = ip[0];
	ctx->user_ip6[1] = ip[1];
	ctx->user_ip6[2] = ip[2];
	ctx->user_ip6[3] = ip[3];
	ctx->user_port = port;
}

/* Without bpf_set_retval the client would get EPERM, so there the frontends of empty sets do not exist at all, and
 * a set that empties before they are gone is left to nftables for that moment.
 */
static __always_inline int refuse(void)
{
	if (!has_set_retval)
		return PASS;
	count(refused);
	bpf_set_retval(-ECONNREFUSED);
	return FAIL;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct frontends6_key to = read4(ctx);
	struct backend backend;
	enum outcome outcome = connect(ctx, &to, &backend);

	if (outcome == TRANSLATE)
		write4(ctx, backend.ip, backend.port);
	return outcome == REFUSE ? refuse() : PASS;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct frontends6_key to = read6(ctx);
	struct backend backend;
	enum outcome outcome = connect(ctx, &to, &backend);

	if (outcome == TRANSLATE)
		write6(ctx, backend.ip, backend.port);
	return outcome == REFUSE ? refuse() : PASS;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct frontends6_key to = read4(ctx);
	struct backend backend;
	enum outcome outcome = sendmsg(ctx, &to, &backend);

	if (outcome == TRANSLATE)
		write4(ctx, backend.ip, backend.port);
	return outcome == REFUSE ? refuse() : PASS;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct frontends6_key to = read6(ctx);
	struct backend backend;
	enum outcome outcome = sendmsg(ctx, &to, &backend);

	if (outcome == TRANSLATE)
		write6(ctx, backend.ip, backend.port);
	return outcome == REFUSE ? refuse() : PASS;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct frontends6_key from = read4(ctx), frontend;

	if (recvmsg(ctx, &from, &frontend))
		write4(ctx, frontend.ip, frontend.port);
	return PASS;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct frontends6_key from = read6(ctx), frontend;

	if (recvmsg(ctx, &from, &frontend))
		write6(ctx, frontend.ip, frontend.port);
	return PASS;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct frontends6_key from = read4(ctx), frontend;

	if (reverse_peer(ctx, &from, &frontend))
		write4(ctx, frontend.ip, frontend.port);
	return PASS;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct frontends6_key from = read6(ctx), frontend;

	if (reverse_peer(ctx, &from, &frontend))
		write6(ctx, frontend.ip, frontend.port);
	return PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
