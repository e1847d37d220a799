// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * cgroup/getpeername4 and getpeername6: the peer of a socket that we led elsewhere is the one that the application asked for.
 *
 * getsockname keeps telling the truth: the pod's own address, which is what it would be without the proxy.
 */
#include "maps.h"

static __always_inline struct np_client_socket *np_asked_for(struct bpf_sock *sk)
{
	struct np_client_socket *kept;

	if (!sk)
		return 0;
	kept = client_sockets.sk_storage_get(sk, 0, 0);
	return kept && (kept->kind == NP_KIND_STEERED || kept->kind == NP_KIND_DIRECT) ? kept : 0;
}

int np_getpeername4(struct bpf_sock_addr *ctx)
{
	struct np_client_socket *asked = np_asked_for(ctx->sk);

	if (asked) {
		ctx->user_ip4 = asked->ip[3];
		ctx->user_port = bpf_htons((__u16)asked->port);
	}
	return NP_LET_GO;
}

int np_getpeername6(struct bpf_sock_addr *ctx)
{
	struct np_client_socket *asked = np_asked_for(ctx->sk);

	if (asked) {
		ctx->user_ip6[0] = asked->ip[0];
		ctx->user_ip6[1] = asked->ip[1];
		ctx->user_ip6[2] = asked->ip[2];
		ctx->user_ip6[3] = asked->ip[3];
		ctx->user_port = bpf_htons((__u16)asked->port);
	}
	return NP_LET_GO;
}
