/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What sockops.c and sockops_direct.h share: both ends of a connection, and the entries that go before it.
 */
#ifndef NODEPROXY_SOCKOPS_MAPS_H
#define NODEPROXY_SOCKOPS_MAPS_H
#include "maps.h"

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

static __always_inline void np_let_flow(struct np_flow *flow, struct np_flow_use *use)
{
	struct np_in_use *counts = np_counts();

	/* insert first, for the count must know whether there is one entry more; one that is there is of a connection that is no more. */
	if (counts && flows.insert(flow, use) == 0)
		__sync_fetch_and_add(&counts->flows, 1);
	else if (!counts || flows.update(flow, use) != 0)
		np_count(NP_DROP_FLOWS_FULL);
}

static __always_inline void np_outgoing(struct bpf_sock_ops *ctx, struct np_flow *flow)
{
	np_local(ctx, flow->source_ip);
	np_remote(ctx, flow->destination_ip);
	flow->source_port = ctx->local_port;
	flow->destination_port = bpf_ntohl(ctx->remote_port);
}

static __always_inline void np_tell_changes(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void np_hand_to_worker(struct bpf_sock *sk, struct np_destination *destination)
{
	struct np_destination *kept = original_destination.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (kept)
		*kept = *destination;
	else
		np_count(NP_DROP_NO_STORAGE);
}

#endif
