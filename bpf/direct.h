/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The direct path: whether two pods may talk without the proxy.  connect.c asks, and sk_lookup.c again.
 */
#ifndef NODEPROXY_DIRECT_H
#define NODEPROXY_DIRECT_H
#include "maps.h"

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

#endif
