// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * cgroup/connect4 and connect6: leads the TCP connects of enrolled pods to the proxy.
 *
 * A pod's connect goes to the pod's own address, port 15001, where sk_lookup.c hands it to a worker; the destination that was asked for
 * stays with the socket.  What is let go: other protocols, loopback, the pod's own addresses, pods that are not enrolled, and the proxy's
 * own sockets, which are told by the cgroup of the caller, never by a mark that a pod could set.
 */
#include "nodeproxy.h"

/* MPTCP hands its first subflow to these hooks, as TCP; the number stands here for kernels that hand over the MPTCP socket itself. */
#define NP_PROTO_MPTCP 262

static __always_inline int np_remember(struct bpf_sock *sk, struct np_destination *destination)
{
	struct np_destination *kept = client_sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!kept) {
		np_count(NP_DROP_NO_STORAGE);
		bpf_set_retval(-ENOMEM);
		return NP_REFUSE;
	}
	*kept = *destination;
	return NP_LET_GO;
}

/* A socket may connect again after connect(AF_UNSPEC): what it was before must not be what it is now. */
static __always_inline int np_let_go(struct bpf_sock *sk)
{
	client_sockets.sk_storage_delete(sk);
	return NP_LET_GO;
}

static __always_inline int np_own(struct bpf_sock *sk, struct np_destination *destination)
{
	struct np_in_use *counts = np_counts();

	/* Tunnels (to 15008 of pods of this node too) are arrivals like any other; only the last leg goes past the proxy. */
	if (sk->mark != NP_MARK_LAST_LEG)
		return np_let_go(sk);
	if (!counts || counts->flows >= NP_MAX_FLOWS - NP_FLOWS_SLACK) {
		np_count(NP_DROP_FLOWS_FULL);
		bpf_set_retval(-ENOBUFS);
		return NP_REFUSE;
	}
	destination->kind = NP_KIND_LAST_LEG;
	return np_remember(sk, destination);
}

/* Whether the connect may go on; *lead is set to the pod when the destination must be rewritten. */
static __always_inline int np_decide(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct np_destination *destination, struct np_pod **lead)
{
	__u32 zero = 0;
	__u64 cookie;
	struct np_address address;
	struct np_config *settings = config.lookup(&zero);
	struct np_in_use *counts = np_counts();
	struct np_owner *owner;
	struct np_pod *pod;

	if (settings && bpf_get_current_cgroup_id() == settings->own_cgroup_id)
		return np_own(sk, destination);
	cookie = bpf_get_netns_cookie(ctx);
	pod = enrolled.lookup(&cookie);
	if (!pod || np_is_loopback(destination->ip) || np_is_unspecified(destination->ip))
		return np_let_go(sk);
	__builtin_memcpy(address.ip, destination->ip, sizeof(address.ip));
	owner = pods_by_address.lookup(&address);
	if (owner && owner->netns_cookie == cookie)
		return np_let_go(sk);
	if (!(pod->families & (np_is_mapped(destination->ip) ? NP_FAMILY_V4 : NP_FAMILY_V6))) {
		np_count(NP_DROP_NO_FAMILY);
		bpf_set_retval(-ENETUNREACH);
		return NP_REFUSE;
	}
	if (!counts || counts->handover >= NP_MAX_FLOWS - NP_FLOWS_SLACK) {
		np_count(NP_DROP_HANDOVER_FULL);
		bpf_set_retval(-ENOBUFS);
		return NP_REFUSE;
	}
	destination->kind = NP_KIND_STEERED;
	*lead = pod;
	return np_remember(sk, destination);
}

static __always_inline int np_is_tcp(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP || ctx->protocol == NP_PROTO_MPTCP;
}

int np_connect4(struct bpf_sock_addr *ctx)
{
	struct np_destination destination = {};
	struct np_pod *lead = 0;
	struct bpf_sock *sk = ctx->sk;

	if (!np_is_tcp(ctx) || !sk)
		return NP_LET_GO;
	np_map4(destination.ip, ctx->user_ip4);
	destination.port = bpf_ntohs((__u16)ctx->user_port);
	if (!np_decide(ctx, sk, &destination, &lead))
		return NP_REFUSE;
	if (lead) {
		ctx->user_ip4 = lead->address4;
		ctx->user_port = bpf_htons(NP_PORT_OUTBOUND);
	}
	return NP_LET_GO;
}

int np_connect6(struct bpf_sock_addr *ctx)
{
	struct np_destination destination = {};
	struct np_pod *lead = 0;
	struct bpf_sock *sk = ctx->sk;
	int mapped;

	if (!np_is_tcp(ctx) || !sk)
		return NP_LET_GO;
	destination.ip[0] = ctx->user_ip6[0];
	destination.ip[1] = ctx->user_ip6[1];
	destination.ip[2] = ctx->user_ip6[2];
	destination.ip[3] = ctx->user_ip6[3];
	destination.port = bpf_ntohs((__u16)ctx->user_port);
	mapped = np_is_mapped(destination.ip);
	if (!np_decide(ctx, sk, &destination, &lead))
		return NP_REFUSE;
	if (!lead)
		return NP_LET_GO;
	ctx->user_port = bpf_htons(NP_PORT_OUTBOUND);
	if (mapped) {
		ctx->user_ip6[3] = lead->address4;
		return NP_LET_GO;
	}
	ctx->user_ip6[0] = lead->address6[0];
	ctx->user_ip6[1] = lead->address6[1];
	ctx->user_ip6[2] = lead->address6[2];
	ctx->user_ip6[3] = lead->address6[3];
	return NP_LET_GO;
}
