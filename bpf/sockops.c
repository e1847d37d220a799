// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * sock_ops: carries what connect.c decided to the other end of the connection, and accounts for direct ones.
 *
 * A steered socket's destination goes into `handover` under its source before the SYN leaves, and from there to the accepted socket, where
 * a worker reads it.  The proxy's own last leg goes into `flows`, and what the kubelet connects into `probes`, so that sk_lookup.c lets
 * its SYN through to the application.  These entries
 * end when the connection is accepted, or at the latest when the connecting socket closes: a 4-tuple that stayed behind would be a way past
 * the proxy for whoever can send from it.
 *
 * A direct connection is in `direct` from its SYN until the client's socket closes, and is told to the agent through the ring `ended`; from
 * when it is accepted, its 4-tuple lets nobody through there either.
 */
#include "sockops_direct.h"
#include "kubelet.h"

/* Before the SYN of a connecting socket leaves. */
static __always_inline void np_begins(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct np_client_socket *kept = client_sockets.sk_storage_get(sk, 0, 0);
	struct np_destination destination = {};
	struct np_client client = {};
	struct np_flow_use use = {};
	struct np_flow flow = {};

	if (kept && kept->kind == NP_KIND_OWN)
		return;
	if (!kept || kept->kind == NP_KIND_DIRECT) {
		np_direct_begins(ctx, kept);
	} else if (kept->kind == NP_KIND_STEERED) {
		np_tell_changes(ctx);
		client.netns_cookie = bpf_get_netns_cookie(ctx);
		np_local(ctx, client.ip);
		client.port = ctx->local_port;
		__builtin_memcpy(destination.ip, kept->ip, sizeof(destination.ip));
		destination.port = kept->port;
		np_hand_over(&client, &destination);
	} else {
		np_tell_changes(ctx);
		np_outgoing(ctx, &flow);
		if (kept->kind == NP_KIND_KUBELET)
			np_probe_begins(&flow, bpf_get_socket_cookie(ctx));
		else
			np_let_flow(&flow, &use);
	}
}

/* A state of a connecting socket that `np_tell_changes` was called for. */
static __always_inline void np_changes(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u32 state)
{
	struct np_client_socket *kept;
	struct np_client client = {};
	struct np_flow flow = {};

	if (state != BPF_TCP_CLOSE && state != BPF_TCP_FIN_WAIT1)
		return;
	kept = client_sockets.sk_storage_get(sk, 0, 0);
	if (!kept || kept->kind == NP_KIND_DIRECT) {
		if (state == BPF_TCP_CLOSE)
			np_direct_ends(ctx);
		else
			np_waits_for_fin(ctx);
	} else if (state == BPF_TCP_FIN_WAIT1) {
		return;
	} else if (kept->kind == NP_KIND_STEERED) {
		client.netns_cookie = bpf_get_netns_cookie(ctx);
		np_local(ctx, client.ip);
		client.port = ctx->local_port;
		np_forget_handover(&client);
	} else {
		np_outgoing(ctx, &flow);
		if (kept->kind == NP_KIND_KUBELET)
			np_probe_ends(&flow, bpf_get_socket_cookie(ctx));
		else
			np_forget_flow(&flow);
	}
}

/* What is in `flows`: a last leg, which is let through, or a direct connection that could not be remembered. */
static __always_inline void np_flow_arrived(struct bpf_sock *sk, struct np_flow *flow, struct np_flow_use *use)
{
	struct np_destination destination = {.kind = NP_KIND_DIRECT, .source = use->source, .port = flow->destination_port};

	if (use->source) {
		__builtin_memcpy(destination.ip, flow->destination_ip, sizeof(destination.ip));
		np_hand_to_worker(sk, &destination);
	}
	np_forget_flow(flow);
}

static __always_inline void np_steered_arrived(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct np_destination *waiting;
	struct np_client client = {};

	client.netns_cookie = bpf_get_netns_cookie(ctx);
	np_remote(ctx, client.ip);
	client.port = bpf_ntohl(ctx->remote_port);
	waiting = handover.lookup(&client);
	if (waiting) {
		np_hand_to_worker(sk, waiting);
		np_forget_handover(&client);
	}
}

/* The accepting end: of the proxy's listeners and of the applications in enrolled pods. */
static __always_inline void np_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct np_in_use *counts = np_counts();
	struct np_direct_flow *record;
	struct np_flow_use *use = 0;
	struct np_flow flow = {};

	if (!enrolled.lookup(&cookie))
		return;
	if (ctx->local_port == NP_PORT_OUTBOUND) {
		np_steered_arrived(ctx, sk);
		return;
	}
	np_remote(ctx, flow.source_ip);
	np_local(ctx, flow.destination_ip);
	flow.source_port = bpf_ntohl(ctx->remote_port);
	flow.destination_port = ctx->local_port;
	if (counts && counts->flows)
		use = flows.lookup(&flow);
	if (use) {
		np_flow_arrived(sk, &flow, use);
		return;
	}
	if (np_is_probe(counts, &flow, cookie)) {
		np_count_probe(NP_PROBE_PASSED);
		np_forget_probe(&flow);
		return;
	}
	record = direct.lookup(&flow);
	if (record && !record->accepted)
		np_direct_arrived(sk, &flow, record);
}

int np_sockops(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;
	struct bpf_sock *sk;

	/* Most calls are for others: the kernel asks for timeouts, windows and more, a dozen times a connection. */
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_STATE_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_PARSE_HDR_OPT_CB)
		return 1;
	sk = ctx->sk;
	if (!sk || (ctx->family != AF_INET && ctx->family != AF_INET6))
		return 1;
	if (op == BPF_SOCK_OPS_STATE_CB)
		np_changes(ctx, sk, ctx->args[1]);
	else if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		np_begins(ctx, sk);
	else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		np_accepted(ctx, sk);
	else
		np_segment(ctx);
	return 1;
}
