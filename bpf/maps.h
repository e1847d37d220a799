/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The maps, which BCC makes, or takes where one is pinned, and the small questions that several programs ask of them.
 */
#ifndef NODEPROXY_MAPS_H
#define NODEPROXY_MAPS_H
#include "nodeproxy.h"

#define NP_MAP(type, key, leaf, name, entries, flags) BPF_F_TABLE(type ":" NP_PINS "/" #name, key, leaf, name, entries, flags)

/* BCC's BPF_SK_STORAGE cannot be pinned; this is the same with a path. */
#define NP_SK_STORAGE(name, leaf_type)                               \
	struct name##_table_t {                                      \
		int key;                                             \
		leaf_type leaf;                                      \
		void *(*sk_storage_get)(void *, void *, int);        \
		int (*sk_storage_delete)(void *);                    \
		u32 flags;                                           \
	};                                                           \
	__attribute__((section("maps/sk_storage:" NP_PINS "/" #name))) struct name##_table_t name = {.flags = BPF_F_NO_PREALLOC}; \
	BPF_ANNOTATE_KV_PAIR(name, int, leaf_type)

/* BCC's BPF_RINGBUF_OUTPUT cannot be pinned either. */
#define NP_RING(name, bytes)                                         \
	struct name##_table_t {                                      \
		int key;                                             \
		u32 leaf;                                            \
		void *(*ringbuf_reserve)(u64);                       \
		void (*ringbuf_submit)(void *, u64);                 \
		u32 max_entries;                                     \
	};                                                           \
	__attribute__((section("maps/ringbuf:" NP_PINS "/" #name))) struct name##_table_t name = {.max_entries = (bytes)}

NP_MAP("array", u32, struct np_config, config, 1, 0);
NP_MAP("hash", u64, struct np_pod, enrolled, NP_MAX_PODS, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_address, struct np_owner, pods_by_address, NP_MAX_PODS * 4, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_client, struct np_destination, handover, NP_MAX_FLOWS, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_flow, struct np_flow_use, flows, NP_MAX_FLOWS, 0);
NP_MAP("array", u32, struct np_in_use, in_use, 1, 0);
NP_MAP("percpu_array", u32, u64, drops, NP_DROPS, 0);
NP_MAP("sockhash", struct np_listener, int, listeners, NP_MAX_LISTENERS, 0);
NP_SK_STORAGE(client_sockets, struct np_client_socket);
NP_SK_STORAGE(original_destination, struct np_destination);
NP_MAP("hash", struct np_pair, struct np_verdict, verdicts, NP_MAX_VERDICTS, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_address_port, struct np_direct_service, services, NP_MAX_SERVICES, BPF_F_NO_PREALLOC);
NP_MAP("array", u32, struct np_direct_state, direct_state, 1, 0);
NP_MAP("hash", struct np_flow, struct np_direct_flow, direct, NP_MAX_DIRECT, BPF_F_NO_PREALLOC);
NP_RING(ended, NP_ENDED_BYTES);
NP_MAP("percpu_array", u32, u64, direct_counts, NP_DIRECT_COUNTS, 0);
NP_MAP("array", u32, struct np_kubelet, kubelet, 1, 0);
NP_MAP("hash", struct np_flow, struct np_probe, probes, NP_MAX_PROBES, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_probe_port, u32, probe_ports, NP_MAX_PROBE_PORTS, BPF_F_NO_PREALLOC);
NP_MAP("percpu_array", u32, u64, probe_counts, NP_PROBE_COUNTS, 0);

#define NP_MAPPED_PREFIX bpf_htonl(0xffff)
/*
 * A field of the context, read here and now: left to itself, clang joins the reads of two branches into one through a computed pointer,
 * which the verifier refuses ("dereference of modified ctx ptr").
 */
#define NP_READ(field)                                   \
	({                                               \
		__u32 np_value = field;                  \
		asm volatile("" : "+r"(np_value));       \
		np_value;                                \
	})

#define NP_LET_GO 1
#define NP_REFUSE 0

static __always_inline void np_count(__u32 reason)
{
	u64 *count = drops.lookup(&reason);

	if (count)
		*count += 1;
}

static __always_inline void np_count_direct(__u32 what)
{
	u64 *count = direct_counts.lookup(&what);

	if (count)
		*count += 1;
}

static __always_inline struct np_in_use *np_counts(void)
{
	__u32 zero = 0;

	return in_use.lookup(&zero);
}

static __always_inline void np_map4(__u32 *ip, __u32 address4)
{
	ip[0] = 0;
	ip[1] = 0;
	ip[2] = NP_MAPPED_PREFIX;
	ip[3] = address4;
}

static __always_inline int np_is_mapped(const __u32 *ip)
{
	return ip[0] == 0 && ip[1] == 0 && ip[2] == NP_MAPPED_PREFIX;
}

static __always_inline int np_equal(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline int np_is_loopback(const __u32 *ip)
{
	if (np_is_mapped(ip))
		return (ip[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return ip[0] == 0 && ip[1] == 0 && ip[2] == 0 && ip[3] == bpf_htonl(1);
}

/* 0.0.0.0 and :: mean "this host" to connect(). */
static __always_inline int np_is_unspecified(const __u32 *ip)
{
	return ip[0] == 0 && ip[1] == 0 && (ip[2] == 0 || ip[2] == NP_MAPPED_PREFIX) && ip[3] == 0;
}

static __always_inline int np_is_own_port(__u32 port)
{
	return port == NP_PORT_OUTBOUND || port == NP_PORT_PLAINTEXT || port == NP_PORT_HBONE;
}

#endif
