"""Judging live direct flows by the state as it is now, and destroying those that it denies.

A flow is judged as what the kernel says it is, by the pods at its ends and its addresses, not by what was said beforehand.
Invariant: what is denied is gone when `judge` returns, or is among the failures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import itemgetter

from nodeproxy.agent.direct_flows import DirectFlows
from nodeproxy.agent.direct_pods import DirectPods, Membership
from nodeproxy.decide.inbound import recheck
from nodeproxy.errors import NodeproxyError
from nodeproxy.kernel.direct import DirectFlow
from nodeproxy.linux.sock_diag import TcpSocket, destroy
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.policy.match import Subject
from nodeproxy.state.view import View

# Kinds of flows judged before the loop's other work has its turn: some 10 ms.
_KINDS_A_TURN = 500
_POD_LEFT = Refusal(Reason.POD_LEFT, "a pod of this direct connection has left the mesh or ended")
_SAME_NODE = Refusal(Reason.SAME_NODE_HBONE, "it was made without the proxy, and same_node is now hbone; connect again")

# What a flow is judged by.
_KIND = itemgetter(
    *map(DirectFlow._fields.index, ("source_cookie", "destination_cookie", "source_ip", "destination_ip", "destination_port"))
)
Denied = list[tuple[DirectFlow, Refusal]]


class Judge:
    """failures: why flows of the last judgement could not be destroyed.  destroyed: how many were, by reason."""

    def __init__(self, pods: DirectPods, flows: DirectFlows, view: Callable[[], View], *, hbone: bool) -> None:
        """hbone: no flow may go on, whatever policy says."""
        self.failures: list[str] = []
        self.destroyed: dict[str, int] = {}
        self._pods = pods
        self._flows = flows
        self._view = view
        self._hbone = hbone

    async def judge(self, flows: list[DirectFlow]) -> list[str]:
        """Destroy those of `flows` that may not be; why some could not be destroyed."""
        denied = await self._denied(flows)
        for flow, refusal in denied:
            self._flows.destroyed(flow.socket_cookie, refusal)
        with self._pods.in_use():
            failures = await asyncio.to_thread(self._destroy, denied) if denied else {}
        for flow, refusal in denied:
            if flow.socket_cookie not in failures:
                self.destroyed[refusal.reason.value] = self.destroyed.get(refusal.reason.value, 0) + 1
        self.failures = sorted(failures.values())
        return self.failures

    async def _denied(self, flows: list[DirectFlow]) -> Denied:
        known: dict[tuple[object, ...], Refusal | None] = {}
        denied: Denied = []
        for flow in flows:
            key = _KIND(flow)
            if key not in known:
                if len(known) % _KINDS_A_TURN == _KINDS_A_TURN - 1:
                    await asyncio.sleep(0)
                known[key] = self._refusal(self._view(), flow)
            refusal = known[key]
            if refusal is not None:
                denied.append((flow, refusal))
        return denied

    def _refusal(self, view: View, flow: DirectFlow) -> Refusal | None:
        source, destination = self._pods.get(flow.source_cookie), self._pods.get(flow.destination_cookie)
        if source is None or destination is None or Membership.GONE in (source.membership, destination.membership):
            return _POD_LEFT
        if self._hbone:
            return _SAME_NODE
        client, server = view.workload(source.local.uid), view.workload(destination.local.uid)
        if client is None or server is None:
            uid = (source if client is None else destination).local.uid
            return Refusal(Reason.UNKNOWN_WORKLOAD, f"workload {uid} was removed from the state", uid)
        return recheck(view, server, Subject(client.identity, flow.source[0], *flow.destination))

    def _destroy(self, denied: Denied) -> dict[int, str]:
        """In a thread.  The servers' ends first: then clients see a reset, as from a peer, not that their own kernel aborted."""
        failures: dict[int, str] = {}
        for flow, _ in denied:
            self._destroy_end(flow, flow.destination_cookie, TcpSocket(flow.destination, flow.source), failures)
        for flow, _ in denied:
            client = TcpSocket(flow.source, flow.destination, flow.socket_cookie)
            self._destroy_end(flow, flow.source_cookie, client, failures)
        return failures

    def _destroy_end(self, flow: DirectFlow, cookie: int, connection: TcpSocket, failures: dict[int, str]) -> None:
        pod = self._pods.get(cookie)
        if pod is None:
            return  # there is no way into that namespace; the other end's reset reaches it
        try:
            destroy(pod.netns_fd, connection)
        except (NodeproxyError, OSError) as error:
            failures[flow.socket_cookie] = f"{pod.local.uid}: {error}"
