/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What the eBPF programs and nodeproxy/kernel/abi.py agree on: constants, structs, map names.  A test compiles this header with the
 * system's compiler and compares every size, offset and number with Python's; README.md beside it is the table of the maps.
 *
 * Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d.  Ports are in host order unless the name says otherwise.
 */
#ifndef NODEPROXY_H
#define NODEPROXY_H

#define NP_PORT_OUTBOUND 15001  /* where connect() of an enrolled pod is led: never a port that an application can serve from outside */
#define NP_PORT_PLAINTEXT 15006 /* Istio's inbound port; ours needs no socket on it, but nobody else gets it either */
#define NP_PORT_HBONE 15008

#define NP_MARK_LAST_LEG 0x53a /* SO_MARK of the proxy's connection to the application; only believed of the proxy's own sockets */

#define NP_MAX_SLOTS 16       /* workers; bounds the search for a listener, which the verifier must see the end of */
#define NP_MAX_FLOWS 262144   /* entries live from SYN to accept, so this is connections *being made*, not connections */
#define NP_FLOWS_SLACK 4096   /* connects that may be between the check of the count and their insertion: more than any machine has threads running */
#define NP_MAX_PODS 4096      /* a node's practical limit is some hundreds */
#define NP_MAX_LISTENERS 65536

enum np_role {
	NP_ROLE_OUTBOUND = 0,
	NP_ROLE_HBONE = 1,
	NP_ROLE_PLAINTEXT = 2,
	NP_ROLES = 3,
};

/* Why something was refused: the index into `drops`. */
enum np_drop {
	NP_DROP_NO_LISTENER = 0,     /* no worker listens for this pod and role */
	NP_DROP_UNKNOWN_ADDRESS = 1, /* came to an address that the pod was not enrolled with */
	NP_DROP_ASSIGN_FAILED = 2,   /* the kernel refused to hand the connection to the listener */
	NP_DROP_NO_FAMILY = 3,       /* the pod connects by a family that it has no address of */
	NP_DROP_NO_STORAGE = 4,      /* no memory to remember the destination in */
	NP_DROP_HANDOVER_FULL = 5,   /* too many steered connections are being made */
	NP_DROP_FLOWS_FULL = 6,      /* too many last legs are being made */
	NP_DROPS = 7,
};

/* What a client's socket storage says it is. */
enum np_kind {
	NP_KIND_STEERED = 1,
	NP_KIND_LAST_LEG = 2,
};

#define NP_FAMILY_V4 1u
#define NP_FAMILY_V6 2u

struct np_config {
	__u64 own_cgroup_id; /* the agent's and the workers' cgroup: its sockets are never steered */
	__u32 slots;         /* workers, 1..NP_MAX_SLOTS */
	__u32 unused;
};

/* Value of `enrolled`, keyed by the netns cookie: where the pod's connections are led. */
struct np_pod {
	__u32 address4; /* network order */
	__u32 families; /* NP_FAMILY_* */
	__u32 address6[4];
};

struct np_address {
	__u32 ip[4];
};

/* Value of `pods_by_address`. */
struct np_owner {
	__u64 netns_cookie;
	__u32 turn[NP_ROLES]; /* which worker's turn it is, for each role apart: mixed, two roles in step would each stay with one worker */
	__u32 unused;
};

struct np_destination {
	__u32 ip[4];
	__u32 port;
	__u32 kind; /* enum np_kind in `client_sockets`, else 0 */
};

/* Key of `handover`.  The cookie keeps pods with equal addresses (127.0.0.1 bound as source, say) apart. */
struct np_client {
	__u64 netns_cookie;
	__u32 ip[4];
	__u32 port;
	__u32 unused;
};

/* Key of `flows`: connections that go to the application, as their SYN shows them. */
struct np_flow {
	__u32 source_ip[4];
	__u32 destination_ip[4];
	__u16 source_port;
	__u16 destination_port;
};

struct np_listener {
	__u32 ip[4];
	__u32 role;
	__u32 slot;
};

/* Entries of `handover` and `flows`, so that a connect can be refused *before* it finds the map full. */
struct np_in_use {
	__u64 handover;
	__u64 flows;
};

#ifdef NP_PINS /* compiled by BCC, which makes each map (or takes the one that is pinned there) */

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

NP_MAP("array", u32, struct np_config, config, 1, 0);
NP_MAP("hash", u64, struct np_pod, enrolled, NP_MAX_PODS, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_address, struct np_owner, pods_by_address, NP_MAX_PODS * 4, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_client, struct np_destination, handover, NP_MAX_FLOWS, BPF_F_NO_PREALLOC);
NP_MAP("hash", struct np_flow, u32, flows, NP_MAX_FLOWS, BPF_F_NO_PREALLOC);
NP_MAP("array", u32, struct np_in_use, in_use, 1, 0);
NP_MAP("percpu_array", u32, u64, drops, NP_DROPS, 0);
NP_MAP("sockhash", struct np_listener, int, listeners, NP_MAX_LISTENERS, 0);
NP_SK_STORAGE(client_sockets, struct np_destination);
NP_SK_STORAGE(original_destination, struct np_destination);

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

#endif /* NP_PINS */
#endif
