// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * sock_ops: carries what connect.c decided to the other end of the connection, and accounts for direct ones.
 *
 * A steered socket's destination goes into `handover` under its source before the SYN leaves, and from there to the accepted socket, where
 * a worker reads it.  The proxy's own last leg goes into `flows`, so that sk_lookup.c lets its SYN through to the application; a direct
 * connection does too.  Both entries end when the connection is accepted, or at the latest when the connecting socket closes: a 4-tuple
 * that stayed behind would be a way past the proxy for whoever can send from it.
 *
 * A direct connection is in `direct` from its SYN until the client's socket closes, and is told to the agent through the ring `ended`.
 */
#include "maps.h"
#include "direct.h"

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

/*
 * What an enrolled pod sends to another one, and connect.c let go, is direct; `kept` only if a service was asked for.
 */
static __always_inline void np_direct_begins(struct bpf_sock_ops *ctx, struct np_client_socket *kept)
{
	__u64 source = bpf_get_netns_cookie(ctx);
	struct np_direct_flow record = {};
	struct np_flow_use use = {};
	struct np_address address;
	struct np_flow flow = {};
	struct np_owner *owner;

	if (!enrolled.lookup(&source))
		return;
	np_outgoing(ctx, &flow);
	__builtin_memcpy(address.ip, flow.destination_ip, sizeof(address.ip));
	owner = pods_by_address.lookup(&address);
	if (!owner || owner->netns_cookie == source || np_is_own_port(flow.destination_port))
		return;
	np_tell_changes(ctx);
	record.socket = bpf_get_socket_cookie(ctx);
	record.source = source;
	record.destination = owner->netns_cookie;
	record.started_ns = bpf_ktime_get_ns();
	__builtin_memcpy(record.source_ip, flow.source_ip, sizeof(record.source_ip));
	__builtin_memcpy(record.destination_ip, flow.destination_ip, sizeof(record.destination_ip));
	__builtin_memcpy(record.original_ip, kept ? kept->ip : flow.destination_ip, sizeof(record.original_ip));
	record.source_port = flow.source_port;
	record.destination_port = flow.destination_port;
	record.original_port = kept ? kept->port : flow.destination_port;
	use.source = source;
	/* What is not remembered cannot be judged again or told: then a worker shall have it, and know who it is from. */
	if (direct.insert(&record.socket, &record) == 0)
		use.socket = record.socket;
	else
		np_count_direct(NP_DIRECT_FULL);
	np_let_flow(&flow, &use);
}

static __always_inline void np_direct_ends(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct np_direct_flow *record = direct.lookup(&cookie);
	struct np_flow flow = {};

	if (!record || !record->established) {
		np_outgoing(ctx, &flow);
		np_forget_flow(&flow);
	}
	if (!record)
		return;
	np_payload(ctx, record);
	record->refused = ctx->args[0] == BPF_TCP_SYN_SENT && ctx->segs_in;
	record->ended_ns = bpf_ktime_get_ns();
	if (ended.ringbuf_output(record, sizeof(*record), BPF_RB_NO_WAKEUP) == 0) {
		direct.delete(&cookie);
	} else {
		record->ended = 1;
		np_count_direct(NP_DIRECT_LEFT);
	}
}

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
			bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
	} else if (state == BPF_TCP_FIN_WAIT1) {
		return;
	} else if (kept->kind == NP_KIND_STEERED) {
		client.netns_cookie = bpf_get_netns_cookie(ctx);
		np_local(ctx, client.ip);
		client.port = ctx->local_port;
		np_forget_handover(&client);
	} else {
		np_outgoing(ctx, &flow);
		np_forget_flow(&flow);
	}
}

static __always_inline void np_hand_to_worker(struct bpf_sock *sk, struct np_destination *destination)
{
	struct np_destination *kept = original_destination.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (kept)
		*kept = *destination;
	else
		np_count(NP_DROP_NO_STORAGE);
}

/* The accepting end of a direct connection: the application, or a worker if the verdict no longer held. */
static __always_inline void np_direct_arrived(struct bpf_sock *sk, struct np_flow *flow, struct np_flow_use *use)
{
	struct np_direct_flow *record = direct.lookup(&use->socket);
	struct np_destination destination = {.kind = NP_KIND_DIRECT, .source = use->source, .port = flow->destination_port};

	if (!use->proxied) {
		if (record)
			record->established = 1;
		return;
	}
	__builtin_memcpy(destination.ip, flow->destination_ip, sizeof(destination.ip));
	if (record) {
		__builtin_memcpy(destination.ip, record->original_ip, sizeof(destination.ip));
		destination.port = record->original_port;
		direct.delete(&use->socket);
	}
	np_hand_to_worker(sk, &destination);
}

/* The accepting end: of the proxy's listeners and of the applications in enrolled pods. */
static __always_inline void np_accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct np_destination *waiting;
	struct np_client client = {};
	struct np_flow_use *use, copy;
	struct np_flow flow = {};

	client.netns_cookie = bpf_get_netns_cookie(ctx);
	if (!enrolled.lookup(&client.netns_cookie))
		return;
	if (ctx->local_port == NP_PORT_OUTBOUND) {
		np_remote(ctx, client.ip);
		client.port = bpf_ntohl(ctx->remote_port);
		waiting = handover.lookup(&client);
		if (waiting) {
			np_hand_to_worker(sk, waiting);
			np_forget_handover(&client);
		}
		return;
	}
	np_remote(ctx, flow.source_ip);
	np_local(ctx, flow.destination_ip);
	flow.source_port = bpf_ntohl(ctx->remote_port);
	flow.destination_port = ctx->local_port;
	use = flows.lookup(&flow);
	if (!use)
		return;
	copy = *use;
	np_forget_flow(&flow);
	if (copy.source)
		np_direct_arrived(sk, &flow, &copy);
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
