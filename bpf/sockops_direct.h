/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The life of a direct connection, as sock_ops sees it: from its SYN until the client's socket closes, and what it carried.
 */
#ifndef NODEPROXY_SOCKOPS_DIRECT_H
#define NODEPROXY_SOCKOPS_DIRECT_H
#include "sockops_maps.h"

#define NP_TCP_FIN 0x01 /* RFC 9293, section 3.1 */

/*
 * Payload, of what TCP counts: sequence numbers, in which SYN and FIN have one each (not the SYN that came).
 * Sent is what was sent at all, for who resets does not wait for acknowledgements.
 */
static __always_inline void np_payload(struct bpf_sock_ops *ctx, struct np_direct_flow *record)
{
	__u32 unacknowledged = ctx->snd_nxt - ctx->snd_una, old = ctx->args[0];
	__u64 sent = ctx->bytes_acked + unacknowledged, received = ctx->bytes_received;

	if (sent)
		sent -= 1;
	/* In FIN_WAIT1 all is acknowledged only if the FIN could not be sent yet. */
	if (old == BPF_TCP_FIN_WAIT2 || old == BPF_TCP_CLOSING || old == BPF_TCP_LAST_ACK || (old == BPF_TCP_FIN_WAIT1 && unacknowledged))
		sent -= 1;
	/* From FIN_WAIT2 there are two ways out: the other end's FIN, or that nobody waits for it any more. */
	if (old == BPF_TCP_CLOSE_WAIT || old == BPF_TCP_CLOSING || old == BPF_TCP_LAST_ACK ||
	    (old == BPF_TCP_FIN_WAIT2 && record->fin_seen && record->fin_at != ctx->rcv_nxt))
		received -= 1;
	record->sent = sent;
	record->received = received;
}

/* What an enrolled pod sends to another one, and connect.c let go, is direct; `kept` only if a service was asked for. */
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
	if (!owner || owner->netns_cookie == source)
		return;
	np_tell_changes(ctx);
	record.socket = bpf_get_socket_cookie(ctx);
	record.source = source;
	record.destination = owner->netns_cookie;
	record.started_ns = bpf_ktime_get_ns();
	__builtin_memcpy(record.original_ip, kept ? kept->ip : flow.destination_ip, sizeof(record.original_ip));
	record.original_port = kept ? kept->port : flow.destination_port;
	if (direct.insert(&flow, &record) == 0)
		return;
	/* What is not remembered cannot be judged again or told: then a worker shall have it, and know who it is from. */
	np_count_direct(NP_DIRECT_FULL);
	use.source = source;
	np_let_flow(&flow, &use);
}

/* A client closes first: from here on every segment is looked at, or nobody could say afterwards whether the other end's FIN came. */
static __always_inline void np_waits_for_fin(struct bpf_sock_ops *ctx)
{
	struct np_flow flow = {};

	np_outgoing(ctx, &flow);
	/* Others' programs ask for states as well: their sockets are none of ours. */
	if (direct.lookup(&flow))
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
}

static __always_inline void np_segment(struct bpf_sock_ops *ctx)
{
	struct np_direct_flow *record;
	struct np_flow flow = {};

	if (!(ctx->skb_tcp_flags & NP_TCP_FIN))
		return;
	np_outgoing(ctx, &flow);
	record = direct.lookup(&flow);
	if (record) {
		record->fin_seen = 1;
		record->fin_at = ctx->rcv_nxt;
	}
}

static __always_inline void np_direct_ends(struct bpf_sock_ops *ctx)
{
	struct np_direct_flow *record;
	struct np_direct_ended *told;
	struct np_flow flow = {};

	np_outgoing(ctx, &flow);
	record = direct.lookup(&flow);
	/* A socket that another pod bound to this one's address is not it. */
	if (!record || record->socket != bpf_get_socket_cookie(ctx)) {
		np_forget_flow(&flow);
		return;
	}
	np_payload(ctx, record);
	record->refused = ctx->args[0] == BPF_TCP_SYN_SENT && ctx->segs_in;
	record->ended_ns = bpf_ktime_get_ns();
	told = ended.ringbuf_reserve(sizeof(*told));
	if (!told) {
		record->ended = 1;
		np_count_direct(NP_DIRECT_LEFT);
		return;
	}
	told->flow = flow;
	told->unused = 0;
	told->carried = *record;
	ended.ringbuf_submit(told, BPF_RB_NO_WAKEUP);
	direct.delete(&flow);
}

/* The accepting end of a direct connection: the application, or a worker if the verdict no longer held. */
static __always_inline void np_direct_arrived(struct bpf_sock *sk, struct np_flow *flow, struct np_direct_flow *record)
{
	struct np_destination destination = {.kind = NP_KIND_DIRECT, .source = record->source, .port = record->original_port};

	if (!record->proxied) {
		record->accepted = 1;
		return;
	}
	__builtin_memcpy(destination.ip, record->original_ip, sizeof(destination.ip));
	np_hand_to_worker(sk, &destination);
	direct.delete(flow);
}

#endif
