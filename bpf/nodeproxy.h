/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What the eBPF programs and nodeproxy/kernel/abi.py agree on: constants and structs.  A test compiles this header with the system's
 * compiler and compares every size, offset and number with Python's; the maps are in maps.h, README.md has their table.
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
#define NP_MAX_FLOWS 65536    /* entries live from SYN to accept, so this is connections *being made*, not connections */
#define NP_FLOWS_SLACK 4096   /* connects that may be between the check of the count and their insertion: more than any machine has threads running */
#define NP_MAX_PODS 4096      /* a node's practical limit is some hundreds */
#define NP_MAX_LISTENERS 65536
#define NP_MAX_VERDICTS 262144 /* 250 pods have 62,250 pairs, and some pairs have ports of their own */
#define NP_MAX_SERVICES 4096   /* those that lie on this node altogether */
#define NP_MAX_ENDPOINTS 8
#define NP_MAX_DIRECT 65536    /* live direct connections; a larger table is more often not in the CPU's cache: 400 ns an insertion */
#define NP_MAX_PROBES 16384    /* of the kubelet's, being made: 250 pods have some hundreds, and nobody waits for one longer than its timeout */
#define NP_MAX_PROBE_PORTS 65536
#define NP_ENDED_BYTES 1048576 /* 7,710 connections that ended, to be read four times a second */

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

/* What happened on the direct path: the index into `direct_counts`. */
enum np_direct_count {
	NP_DIRECT_FULL = 0, /* allowed, but led through the proxy: too many are being made, or there is no room to remember one more */
	NP_DIRECT_LATE = 1, /* the SYN came when the verdict no longer held: handed to a worker */
	NP_DIRECT_LEFT = 2, /* ended while the ring was full, and was left among the live ones */
	NP_DIRECT_COUNTS = 3,
};

/* What happened to the kubelet's connects to enrolled pods: the index into `probe_counts`. */
enum np_probe_count {
	NP_PROBE_PASSED = 0, /* accepted by the application, past policy */
	NP_PROBE_FULL = 1,   /* no room to remember one more: judged by policy, as anybody's */
	NP_PROBE_OTHER = 2,  /* to a port that the pod's own probes do not name: judged by policy */
	NP_PROBE_COUNTS = 3,
};

/* What a client's socket storage says it is. */
enum np_kind {
	NP_KIND_STEERED = 1,
	NP_KIND_LAST_LEG = 2,
	NP_KIND_DIRECT = 3, /* only if a service's endpoint was chosen: else there is nothing to remember */
	NP_KIND_OWN = 4,    /* the proxy's, but no last leg: it comes from a pod's namespace, and is not the pod's */
	NP_KIND_KUBELET = 5,
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

/* Value of `client_sockets`: what the application asked for, and what was made of it. */
struct np_client_socket {
	__u32 ip[4];
	__u32 port;
	__u32 kind; /* enum np_kind */
};

/* Value of `handover` and `original_destination`. */
struct np_destination {
	__u32 ip[4];
	__u32 port;
	__u32 kind;   /* NP_KIND_DIRECT: handed to a worker after all; else 0 */
	__u64 source; /* of such a one: netns cookie of the client's pod */
};

/* Key of `handover`.  The cookie keeps pods with equal addresses (127.0.0.1 bound as source, say) apart. */
struct np_client {
	__u64 netns_cookie;
	__u32 ip[4];
	__u32 port;
	__u32 unused;
};

/* Key of `flows` and `direct`: connections that go to the application, as their SYN shows them. */
struct np_flow {
	__u32 source_ip[4];
	__u32 destination_ip[4];
	__u16 source_port;
	__u16 destination_port;
};

/* Value of `flows`. */
struct np_flow_use {
	__u64 source; /* 0: a last leg.  Else the netns cookie of the client's pod: a worker shall have it */
};

/* Value of `kubelet`: who the kubelet is. */
struct np_kubelet {
	__u64 cgroup_id;    /* 0: nobody is */
	__u64 netns_cookie; /* of the node's own network namespace */
};

/* Value of `probes`. */
struct np_probe {
	__u64 destination; /* netns cookie of the pod, because an address may move to another one while a SYN is on its way */
	__u64 socket;      /* cookie of the kubelet's socket */
};

/* Key of `probe_ports`: a port that the kubelet may reach past policy; 0: all of the pod's. */
struct np_probe_port {
	__u64 netns_cookie;
	__u32 port;
	__u32 unused;
};

/* Key of `verdicts`: network namespaces, because an address may move to another pod and a cookie never does. */
struct np_pair {
	__u64 source;
	__u64 destination;
	__u32 port; /* 0: the pair's own entry, for every port that has none */
	__u32 unused;
};

struct np_verdict {
	__u64 epoch;  /* counts only while this is the epoch of `direct_state` */
	__u32 direct; /* 1: the two may talk without the proxy */
	__u32 exceptions; /* in a pair's own entry: how many ports have one */
};

struct np_address_port {
	__u32 ip[4];
	__u32 port;
};

/* Value of `services`, by VIP and port: one whose usable endpoints are all pods of this node. */
struct np_direct_service {
	__u64 epoch;
	__u32 count; /* 1..NP_MAX_ENDPOINTS */
	__u32 turn;  /* whose it is */
	struct np_address_port endpoints[NP_MAX_ENDPOINTS];
};

struct np_direct_state {
	__u64 epoch;          /* 0: the direct path is closed */
	__u64 valid_until_ns; /* CLOCK_MONOTONIC: a lease, so that verdicts end with the agent that knows better */
};

/* Value of `direct`, from the SYN until the client's socket closes.  Flags are bytes of their own: two CPUs may set them at once. */
struct np_direct_flow {
	__u64 socket; /* cookie of the client's socket */
	__u64 source; /* netns cookies of both pods */
	__u64 destination;
	__u64 started_ns; /* CLOCK_MONOTONIC */
	__u64 ended_ns;
	__u64 sent; /* bytes of payload, known at the end */
	__u64 received;
	__u32 original_ip[4]; /* what the application asked for */
	__u16 original_port;
	__u8 proxied;  /* what the last SYN met: the application (0) or a worker (1) */
	__u8 accepted; /* by the application */
	__u8 ended;
	__u8 refused;  /* a reset answered the SYN */
	__u8 fin_seen; /* if the client closed first: the other end's FIN came, */
	__u8 unused;
	__u32 fin_at; /* when this was the next byte expected */
	__u32 unused_too;
};

/* Record of `ended`. */
struct np_direct_ended {
	struct np_flow flow;
	__u32 unused;
	struct np_direct_flow carried;
};

struct np_listener {
	__u32 ip[4];
	__u32 role;
	__u32 slot;
};

/* Entries of these maps: a connect can be refused *before* it finds one full, and nobody looks into one that is empty. */
struct np_in_use {
	__u64 handover;
	__u64 flows;
	__u64 probes;
};

#endif
