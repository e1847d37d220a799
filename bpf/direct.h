/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The direct path: whether two pods may talk without the proxy (connect.c asks, and sk_lookup.c again), and what a connection carried
 * (sockops.c tells).
 */
#ifndef NODEPROXY_DIRECT_H
#define NODEPROXY_DIRECT_H
#include "maps.h"

#define NP_TCP_FIN 0x01 /* RFC 9293, section 3.1 */

/* The epoch that verdicts must have to count now; 0: none does.  The coarse clock is some milliseconds late, and cheap. */
static __always_inline __u64 np_direct_epoch(void)
{
	__u32 zero = 0;
	struct np_direct_state *state = direct_state.lookup(&zero);

	return state && bpf_ktime_get_coarse_ns() < state->valid_until_ns ? *(volatile __u64 *)&state->epoch : 0;
}

static __always_inline int np_is_direct(__u64 epoch, __u64 source, __u64 destination, __u32 port)
{
	struct np_pair pair = {.source = source, .destination = destination};
	struct np_verdict *verdict = verdicts.lookup(&pair), *exception;

	if (!verdict || verdict->epoch != epoch)
		return 0;
	if (!verdict->exceptions)
		return verdict->direct;
	pair.port = port;
	exception = verdicts.lookup(&pair);
	if (!exception)
		return verdict->direct;
	return exception->epoch == epoch && exception->direct;
}

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

/*
 * A client that closes first sees every segment from there on (BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG), or nobody could say afterwards
 * whether the other end's FIN came.
 */
static __always_inline void np_segment(struct bpf_sock_ops *ctx)
{
	struct np_direct_flow *record;
	__u64 cookie;

	if (!(ctx->skb_tcp_flags & NP_TCP_FIN))
		return;
	cookie = bpf_get_socket_cookie(ctx);
	record = direct.lookup(&cookie);
	if (record) {
		record->fin_seen = 1;
		record->fin_at = ctx->rcv_nxt;
	}
}

#endif
