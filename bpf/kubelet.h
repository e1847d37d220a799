/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The kubelet's probes of enrolled pods: who is the kubelet (connect.c), and which SYN is one of its (sockops.c, sk_lookup.c).
 *
 * The kubelet is told by the cgroup of the process that connects and by the node's network namespace, neither of which a pod has.  Its
 * connection is known by both ends from before its SYN leaves until the application accepts it, or its socket closes.
 */
#ifndef NODEPROXY_KUBELET_H
#define NODEPROXY_KUBELET_H
#include "maps.h"

static __always_inline void np_count_probe(__u32 what)
{
	u64 *count = probe_counts.lookup(&what);

	if (count)
		*count += 1;
}

static __always_inline int np_is_kubelet(struct bpf_sock_addr *ctx, __u64 cgroup_id)
{
	__u32 zero = 0;
	struct np_kubelet *known = kubelet.lookup(&zero);

	return known && known->cgroup_id && known->cgroup_id == cgroup_id && known->netns_cookie == bpf_get_netns_cookie(ctx);
}

/* Whether the kubelet's connect goes to an enrolled pod, on a port that it may reach past policy. */
static __always_inline int np_may_probe(const __u32 *ip, __u32 port)
{
	struct np_probe_port key = {};
	struct np_address address;
	struct np_owner *owner;

	__builtin_memcpy(address.ip, ip, sizeof(address.ip));
	owner = pods_by_address.lookup(&address);
	if (!owner || np_is_own_port(port))
		return 0;
	key.netns_cookie = owner->netns_cookie;
	if (probe_ports.lookup(&key))
		return 1;
	key.port = port;
	if (probe_ports.lookup(&key))
		return 1;
	np_count_probe(NP_PROBE_OTHER);
	return 0;
}

static __always_inline void np_probe_begins(struct np_flow *flow, __u64 socket)
{
	struct np_in_use *counts = np_counts();
	struct np_probe probe = {}, *known;
	struct np_address address;
	struct np_owner *owner;

	__builtin_memcpy(address.ip, flow->destination_ip, sizeof(address.ip));
	owner = pods_by_address.lookup(&address);
	if (!owner || !counts)
		return;
	probe.destination = owner->netns_cookie;
	probe.socket = socket;
	/* insert, for the count must know whether there is one entry more. */
	if (probes.insert(flow, &probe) == 0) {
		__sync_fetch_and_add(&counts->probes, 1);
		return;
	}
	/* Sockets that are bound to different devices may have the same ends: the first one's entry is good for both, if it is for this pod. */
	known = probes.lookup(flow);
	if (!known) {
		np_count_probe(NP_PROBE_FULL);
	} else if (known->destination != probe.destination) {
		known->destination = probe.destination;
		known->socket = socket;
	}
}

static __always_inline void np_forget_probe(struct np_flow *flow)
{
	struct np_in_use *counts = np_counts();

	if (counts && probes.delete(flow) == 0)
		__sync_fetch_and_add(&counts->probes, -1);
}

static __always_inline void np_probe_ends(struct np_flow *flow, __u64 socket)
{
	struct np_probe *known = probes.lookup(flow);

	if (known && known->socket == socket)
		np_forget_probe(flow);
}

/* Whether this is the SYN, or the handshake's end, of a probe of that pod. */
static __always_inline int np_is_probe(struct np_in_use *counts, struct np_flow *flow, __u64 destination)
{
	struct np_probe *probe;

	if (!counts || !counts->probes)
		return 0;
	probe = probes.lookup(flow);
	return probe && probe->destination == destination;
}

#endif
