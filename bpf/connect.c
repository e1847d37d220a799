// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/*
 * cgroup/connect4 and connect6: leads the TCP connects of enrolled pods to the proxy, or straight to another pod of this node.
 *
 * A pod's connect goes to the pod's own address, port 15001, where sk_lookup.c hands it to a worker; the destination that was asked for
 * stays with the socket.  A direct one (there is a verdict for both pods) goes where it wanted, or to one of a service's endpoints.
 * The kubelet's own goes where it wanted, and is marked as such.
 * What is let go: other protocols, loopback, the pod's own addresses, pods that are not enrolled, and the proxy's own sockets, which are
 * told by the cgroup of the caller, never by a mark that a pod could set.
 */
#include "maps.h"
#include "direct.h"
#include "kubelet.h"

/* MPTCP hands its first subflow to these hooks, as TCP; the number stands here for kernels that hand over the MPTCP socket itself. */
#define NP_PROTO_MPTCP 262

static __always_inline int np_remember(struct bpf_sock *sk, struct np_client_socket *client)
{
	struct np_client_socket *kept = client_sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!kept) {
		np_count(NP_DROP_NO_STORAGE);
		bpf_set_retval(-ENOMEM);
		return NP_REFUSE;
	}
	*kept = *client;
	return NP_LET_GO;
}

/* A socket may connect again after connect(AF_UNSPEC): what it was before must not be what it is now. */
static __always_inline int np_let_go(struct bpf_sock *sk)
{
	client_sockets.sk_storage_delete(sk);
	return NP_LET_GO;
}

static __always_inline int np_own(struct bpf_sock *sk, struct np_client_socket *client)
{
	struct np_in_use *counts = np_counts();

	/* Tunnels (to 15008 of pods of this node too) are arrivals like any other; only the last leg goes past the proxy. */
	if (sk->mark != NP_MARK_LAST_LEG) {
		client->kind = NP_KIND_OWN;
		return np_remember(sk, client);
	}
	if (!counts || counts->flows >= NP_MAX_FLOWS - NP_FLOWS_SLACK) {
		np_count(NP_DROP_FLOWS_FULL);
		bpf_set_retval(-ENOBUFS);
		return NP_REFUSE;
	}
	client->kind = NP_KIND_LAST_LEG;
	return np_remember(sk, client);
}

/*
 * The pod that a direct connection would go to: the owner of the address, or else of one of a service's endpoints, which *to becomes.
 * 0 if the proxy has to see it.
 */
static __always_inline struct np_owner *np_direct_to(__u64 cookie, struct np_owner *owner, struct np_address_port *to)
{
	__u64 epoch = np_direct_epoch();
	struct np_direct_service *service;
	struct np_address address;
	__u32 count, chosen;
	int mapped = np_is_mapped(to->ip);

	if (!epoch)
		return 0;
	if (!owner) {
		service = services.lookup(to);
		if (!service || service->epoch != epoch)
			return 0;
		count = service->count;
		if (count == 0 || count > NP_MAX_ENDPOINTS)
			return 0;
		chosen = service->turn % count;
		__sync_fetch_and_add(&service->turn, 1);
		/* clang knows that this is small, the verifier does not. */
		asm volatile("" : "+r"(chosen));
		if (chosen >= NP_MAX_ENDPOINTS)
			return 0;
		*to = service->endpoints[chosen];
		/* The pod itself among the endpoints, or one that the socket's family cannot reach: the proxy can. */
		__builtin_memcpy(address.ip, to->ip, sizeof(address.ip));
		owner = pods_by_address.lookup(&address);
		if (!owner || owner->netns_cookie == cookie || np_is_mapped(to->ip) != mapped)
			return 0;
	}
	if (np_is_own_port(to->port) || !np_is_direct(epoch, cookie, owner->netns_cookie, to->port))
		return 0;
	return owner;
}

/* Whether the connect may go on; to->port is not 0 when the destination must be rewritten. */
static __always_inline int np_decide(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct np_client_socket *client, struct np_address_port *to)
{
	__u32 zero = 0;
	__u64 cookie, cgroup_id = bpf_get_current_cgroup_id();
	struct np_address_port direct_to = {};
	struct np_address address;
	struct np_config *settings = config.lookup(&zero);
	struct np_in_use *counts = np_counts();
	struct np_owner *owner;
	struct np_pod *pod;

	if (settings && cgroup_id == settings->own_cgroup_id)
		return np_own(sk, client);
	if (np_is_kubelet(ctx, cgroup_id)) {
		if (!np_may_probe(client->ip, client->port))
			return np_let_go(sk);
		client->kind = NP_KIND_KUBELET;
		return np_remember(sk, client);
	}
	cookie = bpf_get_netns_cookie(ctx);
	pod = enrolled.lookup(&cookie);
	if (!pod || np_is_loopback(client->ip) || np_is_unspecified(client->ip))
		return np_let_go(sk);
	__builtin_memcpy(address.ip, client->ip, sizeof(address.ip));
	owner = pods_by_address.lookup(&address);
	if (owner && owner->netns_cookie == cookie)
		return np_let_go(sk);
	if (!(pod->families & (np_is_mapped(client->ip) ? NP_FAMILY_V4 : NP_FAMILY_V6))) {
		np_count(NP_DROP_NO_FAMILY);
		bpf_set_retval(-ENETUNREACH);
		return NP_REFUSE;
	}
	__builtin_memcpy(direct_to.ip, client->ip, sizeof(direct_to.ip));
	direct_to.port = client->port;
	owner = np_direct_to(cookie, owner, &direct_to);
	if (owner && counts) {
		if (counts->flows < NP_MAX_FLOWS - NP_FLOWS_SLACK) {
			/* sockops.c sees for itself that it goes to a pod; only what was asked for instead must be remembered. */
			if (np_equal(direct_to.ip, client->ip) && direct_to.port == client->port)
				return np_let_go(sk);
			client->kind = NP_KIND_DIRECT;
			*to = direct_to;
			return np_remember(sk, client);
		}
		np_count_direct(NP_DIRECT_FULL);
	}
	if (!counts || counts->handover >= NP_MAX_FLOWS - NP_FLOWS_SLACK) {
		np_count(NP_DROP_HANDOVER_FULL);
		bpf_set_retval(-ENOBUFS);
		return NP_REFUSE;
	}
	client->kind = NP_KIND_STEERED;
	if (np_is_mapped(client->ip))
		np_map4(to->ip, pod->address4);
	else
		__builtin_memcpy(to->ip, pod->address6, sizeof(to->ip));
	to->port = NP_PORT_OUTBOUND;
	return np_remember(sk, client);
}

static __always_inline int np_is_tcp(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP || ctx->protocol == NP_PROTO_MPTCP;
}

int np_connect4(struct bpf_sock_addr *ctx)
{
	struct np_client_socket client = {};
	struct np_address_port to = {};
	struct bpf_sock *sk = ctx->sk;

	if (!np_is_tcp(ctx) || !sk)
		return NP_LET_GO;
	np_map4(client.ip, ctx->user_ip4);
	client.port = bpf_ntohs((__u16)ctx->user_port);
	if (!np_decide(ctx, sk, &client, &to))
		return NP_REFUSE;
	if (to.port) {
		ctx->user_ip4 = to.ip[3];
		ctx->user_port = bpf_htons((__u16)to.port);
	}
	return NP_LET_GO;
}

int np_connect6(struct bpf_sock_addr *ctx)
{
	struct np_client_socket client = {};
	struct np_address_port to = {};
	struct bpf_sock *sk = ctx->sk;

	if (!np_is_tcp(ctx) || !sk)
		return NP_LET_GO;
	client.ip[0] = ctx->user_ip6[0];
	client.ip[1] = ctx->user_ip6[1];
	client.ip[2] = ctx->user_ip6[2];
	client.ip[3] = ctx->user_ip6[3];
	client.port = bpf_ntohs((__u16)ctx->user_port);
	if (!np_decide(ctx, sk, &client, &to))
		return NP_REFUSE;
	if (to.port) {
		ctx->user_ip6[0] = to.ip[0];
		ctx->user_ip6[1] = to.ip[1];
		ctx->user_ip6[2] = to.ip[2];
		ctx->user_ip6[3] = to.ip[3];
		ctx->user_port = bpf_htons((__u16)to.port);
	}
	return NP_LET_GO;
}
