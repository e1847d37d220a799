// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * sock_ops: carries what connect.c decided to the other end of the connection.
 *
 * A steered socket's destination goes into `handover` under its source before the SYN leaves, and from there to the accepted socket, where
 * a worker reads it.  The proxy's own last leg goes into `flows`, so that sk_lookup.c lets its SYN through to the application.  Both entries
 * end when the connection is accepted, or at the latest when the connecting socket closes: a 4-tuple that stayed behind would be a way past
 * the proxy for whoever can send from it.
 */
#include "nodeproxy.h"

static __always_inline void np_local(struct bpf_sock_ops *ctx, __u32 *ip)
{
	__u32 address4 = NP_READ(ctx->local_ip4);

	ip[0] = NP_READ(ctx->local_ip6[0]);
	ip[1] = NP_READ(ctx->local_ip6[1]);
	ip[2] = NP_READ(ctx->local_ip6[2]);
	ip[3] = NP_READ(ctx->local_ip6[3]);
	if (ctx->family == AF_INET)
		np_map4(ip, address4);
}

static __always_inline void np_remote(struct bpf_sock_ops *ctx, __u32 *ip)
{
	__u32 address4 = NP_READ(ctx->remote_ip4);

	ip[0] = NP_READ(ctx->remote_ip6[0]);
	ip[1] = NP_READ(ctx->remote_ip6[1]);
	ip[2] = NP_READ(ctx->remote_ip6[2]);
	ip[3] = NP_READ(ctx->remote_ip6[3]);
	if (ctx->family == AF_INET)
		np_map4(ip, address4);
}

static __always_inline void np_forget_handover(struct np_client *client)
{
	struct np_in_use *counts = np_counts();

	if (counts && handover.delete(client) == 0)
		__sync_fetch_and_add(&counts->handover, -1);
}

static __always_inline void np_hand_over(struct np_client *client, struct np_destination *destination)
{
	struct np_in_use *counts = np_counts();

	/* insert, not update: the count must know whether there is one entry more. */
	np_forget_handover(client);
	if (counts && handover.insert(client, destination) == 0)
		__sync_fetch_and_add(&counts->handover, 1);
	else
		np_count(NP_DROP_HANDOVER_FULL);
}

static __always_inline void np_forget_flow(struct np_flow *flow)
{
	struct np_in_use *counts = np_counts();

	if (counts && flows.delete(flow) == 0)
		__sync_fetch_and_add(&counts->flows, -1);
}

static __always_inline void np_let_flow(struct np_flow *flow)
{
	struct np_in_use *counts = np_counts();
	__u32 one = 1;

	np_forget_flow(flow);
	if (counts && flows.insert(flow, &one) == 0)
		__sync_fetch_and_add(&counts->flows, 1);
	else
		np_count(NP_DROP_FLOWS_FULL);
}

/* The connecting end: `begins` before its SYN leaves, else when it closes. */
static __always_inline void np_client_side(struct bpf_sock_ops *ctx, struct bpf_sock *sk, int begins)
{
	struct np_destination *kept = client_sockets.sk_storage_get(sk, 0, 0);
	struct np_destination destination = {};
	struct np_client client = {};
	struct np_flow flow = {};

	if (!kept)
		return;
	if (begins)
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (kept->kind == NP_KIND_STEERED) {
		client.netns_cookie = bpf_get_netns_cookie(ctx);
		np_local(ctx, client.ip);
		client.port = ctx->local_port;
		if (!begins) {
			np_forget_handover(&client);
			return;
		}
		__builtin_memcpy(destination.ip, kept->ip, sizeof(destination.ip));
		destination.port = kept->port;
		np_hand_over(&client, &destination);
	} else if (kept->kind == NP_KIND_LAST_LEG) {
		np_local(ctx, flow.source_ip);
		np_remote(ctx, flow.destination_ip);
		flow.source_port = ctx->local_port;
		flow.destination_port = bpf_ntohl(ctx->remote_port);
		if (begins)
			np_let_flow(&flow);
		else
			np_forget_flow(&flow);
	}
}

/* The accepting end: of the proxy's listeners and of the applications in enrolled pods. */
static __always_inline void np_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct np_destination *waiting, *kept;
	struct np_client client = {};
	struct np_flow flow = {};

	client.netns_cookie = bpf_get_netns_cookie(ctx);
	if (!enrolled.lookup(&client.netns_cookie))
		return;
	np_remote(ctx, client.ip);
	client.port = bpf_ntohl(ctx->remote_port);
	waiting = handover.lookup(&client);
	if (waiting && ctx->local_port == NP_PORT_OUTBOUND) {
		kept = original_destination.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (kept)
			*kept = *waiting;
		else
			np_count(NP_DROP_NO_STORAGE);
		np_forget_handover(&client);
		return;
	}
	__builtin_memcpy(flow.source_ip, client.ip, sizeof(flow.source_ip));
	np_local(ctx, flow.destination_ip);
	flow.source_port = client.port;
	flow.destination_port = ctx->local_port;
	np_forget_flow(&flow);
}

int np_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || (ctx->family != AF_INET && ctx->family != AF_INET6))
		return 1;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		np_client_side(ctx, sk, 1);
	else if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		np_client_side(ctx, sk, 0);
	else if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		np_accepted(ctx, sk);
	return 1;
}
