// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * sk_lookup, one link for each enrolled pod's network namespace: hands arriving TCP connections to a worker's listener.
 *
 * A direct connection goes to the application if its verdict still holds when its SYN comes; it was asked at connect(), and a SYN may be
 * sent again a minute later.  Else a worker judges it, knowing who it is from, so what is still allowed is not refused.
 *
 * Fails closed: where no worker listens the SYN is dropped, for the application must not get what policy has not seen.
 */
#include "maps.h"
#include "direct.h"
#include "kubelet.h"

static __always_inline void np_ends(struct bpf_sk_lookup *ctx, struct np_flow *flow)
{
	__u32 remote4 = NP_READ(ctx->remote_ip4), local4 = NP_READ(ctx->local_ip4);

	flow->source_ip[0] = NP_READ(ctx->remote_ip6[0]);
	flow->source_ip[1] = NP_READ(ctx->remote_ip6[1]);
	flow->source_ip[2] = NP_READ(ctx->remote_ip6[2]);
	flow->source_ip[3] = NP_READ(ctx->remote_ip6[3]);
	flow->destination_ip[0] = NP_READ(ctx->local_ip6[0]);
	flow->destination_ip[1] = NP_READ(ctx->local_ip6[1]);
	flow->destination_ip[2] = NP_READ(ctx->local_ip6[2]);
	flow->destination_ip[3] = NP_READ(ctx->local_ip6[3]);
	if (ctx->family == AF_INET) {
		np_map4(flow->source_ip, remote4);
		np_map4(flow->destination_ip, local4);
	}
	flow->source_port = bpf_ntohs(ctx->remote_port);
	flow->destination_port = ctx->local_port;
}

static __always_inline int np_drop(__u32 reason)
{
	np_count(reason);
	return SK_DROP;
}

/* The next worker in turn that listens: tunnels are few and long-lived, so a hash of their addresses would often put all on one. */
static __always_inline int np_assign(struct bpf_sk_lookup *ctx, struct np_owner *owner, const __u32 *ip, __u32 role)
{
	struct np_listener key = {};
	struct np_config *settings;
	struct bpf_sock *sk;
	__u32 zero = 0, turn, i, slots;
	long error;

	settings = config.lookup(&zero);
	slots = settings ? settings->slots : 0;
	if (role >= NP_ROLES || slots == 0 || slots > NP_MAX_SLOTS)
		return np_drop(NP_DROP_NO_LISTENER);
	turn = owner->turn[role];
	__sync_fetch_and_add(&owner->turn[role], 1);
	__builtin_memcpy(key.ip, ip, sizeof(key.ip));
	key.role = role;
	for (i = 0; i < NP_MAX_SLOTS; i++) {
		/* Or clang counts down from the smaller of both bounds instead, and the verifier sees no end of that. */
		asm volatile("" : "+r"(i));
		if (i >= slots)
			break;
		/* No branch: Linux 6.1 would follow both ways in each of the sixteen rounds, half a million instructions. */
		key.slot = (turn + i) % slots;
		sk = (struct bpf_sock *)listeners.lookup(&key);
		if (!sk)
			continue;
		error = bpf_sk_assign((void *)ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
		bpf_sk_release(sk);
		return error ? np_drop(NP_DROP_ASSIGN_FAILED) : SK_PASS;
	}
	return np_drop(NP_DROP_NO_LISTENER);
}

/* Whether a direct connection may still be one. */
static __always_inline int np_still_direct(struct np_direct_flow *known, __u64 destination, __u32 port)
{
	__u64 epoch = np_direct_epoch();

	return epoch && np_is_direct(epoch, known->source, destination, port);
}

int np_sk_lookup(struct bpf_sk_lookup *ctx)
{
	struct np_flow flow = {};
	struct np_flow_use *use = 0;
	struct np_direct_flow *known = 0;
	struct np_in_use *counts = 0;
	struct np_address address;
	struct np_owner *owner;
	__u32 port = ctx->local_port, role = NP_ROLE_PLAINTEXT;

	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	np_ends(ctx, &flow);
	if (np_is_loopback(flow.destination_ip))
		return SK_PASS;
	if (port == NP_PORT_OUTBOUND) {
		role = NP_ROLE_OUTBOUND;
	} else if (port == NP_PORT_HBONE) {
		role = NP_ROLE_HBONE;
	} else if (port != NP_PORT_PLAINTEXT) {
		/*
		 * A pod that calls itself.  Sent from outside, such a source is a martian that IPv4 drops; in IPv6 the answer to it stays
		 * in the pod, so no handshake completes.
		 */
		if (np_equal(flow.source_ip, flow.destination_ip))
			return SK_PASS;
		counts = np_counts();
		if (counts && counts->flows)
			use = flows.lookup(&flow);
		if (use && !use->source)
			return SK_PASS;
		if (!use)
			known = direct.lookup(&flow);
	}
	__builtin_memcpy(address.ip, flow.destination_ip, sizeof(address.ip));
	owner = pods_by_address.lookup(&address);
	if (!owner)
		return np_drop(NP_DROP_UNKNOWN_ADDRESS);
	/* `counts` was not read for the proxy's own ports, which no probe reaches. */
	if (!use && np_is_probe(counts, &flow, owner->netns_cookie))
		return SK_PASS;
	if (known && !known->accepted) {
		known->proxied = !np_still_direct(known, owner->netns_cookie, port);
		if (!known->proxied)
			return SK_PASS;
		np_count_direct(NP_DIRECT_LATE);
	}
	return np_assign(ctx, owner, flow.destination_ip, role);
}
