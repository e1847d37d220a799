"""The direct path of this node: kept closed while the state changes, opened for what policy lets through, and its live flows
judged again after each change.

Invariant: a change that matters takes effect only after the kernel's table was closed; it is opened again only with verdicts of
the state after that, and after every live flow that this state denies has been destroyed.  A flow that can't be destroyed keeps
it closed.  What fails here costs speed: then connections go through the proxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from nodeproxy.agent.direct_flows import DirectFlows
from nodeproxy.agent.direct_judge import Judge
from nodeproxy.agent.direct_pods import DirectPods
from nodeproxy.agent.pod_namespace import EnrolledPod
from nodeproxy.decide.direct import MAX_POLICIES, Direct, Held, Summary, summarise
from nodeproxy.decide.direct_relevance import Relevance
from nodeproxy.decide.outbound import Route, RouteKind, who_is
from nodeproxy.kernel.direct import DirectService, DirectTable, Verdict
from nodeproxy.linux.sock_diag import can_destroy
from nodeproxy.model.connection import Connection
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Workload
from nodeproxy.observe.metrics import DirectStatistics
from nodeproxy.policy.beforehand import Hindrance
from nodeproxy.state.changes import Touched
from nodeproxy.state.view import View

log = logging.getLogger(__name__)

# Ended flows are told after this long at most.
_TICK_S = 0.25
_TICKS_A_RENEWAL = 4
# Between two publications: as many times as the last one took, so that pods which come one by one do not cost a core.  As long as
# it took while the table is closed.
_REST = 4.0
_MAX_REST_S = 1.0
_RETRY_S = 1.0
# Policies that are read at once, before the loop's other work has its turn: some 10 ms.
_POLICIES_A_TURN = 300


class DirectPath:
    """`run` serves until cancelled.  off: why the table is never opened, "" if it is."""

    def __init__(
        self,
        table: DirectTable,
        pods: DirectPods,
        flows: DirectFlows,
        judge: Judge,
        view: Callable[[], View],
        *,
        off: str,
        on_demand: bool = False,
    ) -> None:
        """view: the state as it is now, until control goes back to the loop; on_demand: it holds only what was asked for."""
        self.off = off
        self._on_demand = on_demand
        self._published_at: frozenset[str] = frozenset()  # the virtual addresses of services
        self.changing = False  # from before the state changes until it has, nothing is judged or opened
        self._table = table
        self._pods = pods
        self._flows = flows
        self._judge = judge
        self._view = view
        self._relevance: Relevance | None = None  # None: everything matters
        self._closing = 0
        self._judge_wanted = True  # what a former agent left
        self._ready = False
        self._wanted = asyncio.Event()
        self._published = (0, 0)  # pairs of pods, virtual addresses
        self._members: set[str] = set()  # that the published table knows
        self._spoken_of: set[int] = set()  # cookies that may be in the table
        self._openings = 0
        self._closed_since = time.monotonic()
        self._closed_s = 0.0

    # ── what the node says ──

    def hold(self, *, close: bool) -> None:
        """The table is this agent's from now on.  close: what is open is of a state that is not this agent's."""
        if self._table.epoch:
            self._closed_since = 0.0
        if close or self.off:
            self._shut()

    def before_change(self, touched: Touched) -> None:
        """A change is about to be committed.  `changed` must follow, whatever becomes of it."""
        if self._relevance is None or self._relevance.touches(touched):
            self.close()

    def close(self) -> None:
        """The state is about to change: from now on connects go to the proxy.  `changed` must follow."""
        self.changing = True
        self._shut()

    def leaving(self, cookie: int, gone: bool) -> None:
        """A pod is about to leave, and its namespace has `gone`.

        Nothing has to be closed: it will not be steered, and has no address, so that what is said of it is never asked for.
        """
        self._pods.leave(cookie, gone=gone)
        self._judge_wanted = True
        self._wanted.set()

    def entering(self, cookie: int) -> None:
        """A pod is about to be steered.  What is still said of one that had its namespace before must not hold for it."""
        if cookie in self._spoken_of:
            self._shut()

    def changed(self) -> None:
        """What was to change in the state has changed, or did not."""
        view = self._view()
        self._pods.refresh(view)
        if self._ready:
            self._relevance = Relevance(view, self._pods.known())
        self._flows.forget_labels()
        self.changing = False
        self._wanted.set()

    def entered(self, pod: EnrolledPod) -> None:
        """A pod came."""
        view = self._view()
        local = self._pods.enter(pod, view)
        if self._relevance is not None:
            self._relevance.add(view, local)
        self._wanted.set()

    def start(self) -> None:
        """All pods have been looked at once: what a former agent left can be judged, and the table be opened."""
        self._ready = True
        self.changed()

    # ── serving ──

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._settle_always())
            tasks.create_task(self._tick_always())

    async def finish(self) -> None:
        """Tell what has ended; the table stays as it is until its lease runs out."""
        await self._flows.tell(self._table.take_ended())

    async def _settle_always(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self.changing or not self._ready:
                continue
            begun = time.monotonic()
            await self._settle(self._closing)
            await asyncio.sleep(min((time.monotonic() - begun) * (_REST if self._table.epoch else 1.0), _MAX_REST_S))

    async def _settle(self, closing: int) -> None:
        if self._judge_wanted:
            self._judge_wanted = False
            failures = await self._judge.judge(await asyncio.to_thread(self._table.flows))
            if failures:
                log.error("direct connections can't be ended, and the direct path stays closed until they are: %s", failures[0])
                self._shut()
                asyncio.get_running_loop().call_later(_RETRY_S, self._wanted.set)
                return
            self._forget_left()
        if self.off or closing != self._closing:
            return  # closed again: the end of that change asks for this again
        members = self._pods.members()
        self._spoken_of.update(pod.cookie for pod in members)
        direct = Direct(self._view(), members, on_demand=self._on_demand)
        direct.find_ways()
        services = [DirectService(*service) for service in direct.services()]
        summaries = await self._summaries(direct)
        verdicts = await asyncio.to_thread(self._publish, closing, direct, summaries, services)
        if verdicts < 0:
            return
        self._published = verdicts, len(services)
        self._published_at = frozenset([service.ip for service in services])
        self._members = {pod.uid for pod in members}
        self._spoken_of = {pod.cookie for pod in members}
        self._openings += 1
        if self._closed_since:
            self._closed_s += time.monotonic() - self._closed_since
            self._closed_since = 0.0

    async def _summaries(self, direct: Direct) -> dict[Held, dict[str, Summary]]:
        """What the policies say: read here, some at a time, and looked at in a thread.

        A change meanwhile that matters closes the table, so that what is read before and after it is never published.
        """
        identities = direct.identities()
        found: dict[Held, dict[str, Summary]] = {}
        batch: dict[Held, tuple[Policy, ...]] = {}
        count = 0
        for held, workload in direct.held().items():
            view = self._view()
            if view.count_policies(workload) > MAX_POLICIES:
                continue
            batch[held] = view.policies_for(workload)
            count += len(batch[held])
            if count > _POLICIES_A_TURN:
                found |= await asyncio.to_thread(_summarise, batch, identities)
                batch, count = {}, 0
        return found | await asyncio.to_thread(_summarise, batch, identities)

    def _publish(
        self, closing: int, direct: Direct, summaries: dict[Held, dict[str, Summary]], services: Iterable[DirectService]
    ) -> int:
        """In a thread.  How many verdicts count now; -1: the table was closed again meanwhile."""
        verdicts = [Verdict(*verdict) for verdict in direct.verdicts(summaries)]
        return len(verdicts) if self._table.publish(closing, verdicts, services) else -1

    async def _tick_always(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            ended = self._table.take_ended()
            if ended:
                await self._flows.tell(ended)
            self._flows.flush()
            ticks += 1
            if ticks % _TICKS_A_RENEWAL == 0:
                self._table.renew()
                self._forget_left()

    def _forget_left(self) -> None:
        """Let go of pods that left and have no flow any more."""
        if self._pods.any_left and not self.changing:
            self._pods.forget_left(
                {cookie for flow in self._table.flows() for cookie in (flow.source_cookie, flow.destination_cookie)}
            )

    def _shut(self) -> None:
        self._judge_wanted = True
        self._closing = self._table.close()
        if not self._closed_since:
            self._closed_since = time.monotonic()

    # ── what can be asked ──

    def hindrance(self, view: View, source: Workload, ip: str, port: int, route: Route) -> Hindrance | None:
        """Why a connection that `outbound` has given this route goes through the proxy; None: it does not."""
        if route.kind is not RouteKind.LOCAL or route.destination is None:
            return Hindrance("the destination is no pod of this node that is reached in plain")
        if self.off:
            return Hindrance(f"the direct path is off: {self.off}")
        if not self._table.epoch or not {source.uid, route.destination.uid} <= self._members:
            return Hindrance("the direct path is closed for the moment: a change is being put into effect")
        direct = Direct(view, self._pods.members(), on_demand=self._on_demand)
        service = who_is(view, source.network, ip)[0]
        if service is not None and (found := direct.hindrance_of_service(service, ip, port)) is not None:
            return found
        return direct.hindrance(source, route.destination.uid, route.address[1])

    def service_addresses(self) -> frozenset[str]:
        """Virtual addresses that the kernel leads to an endpoint, unseen by workers."""
        return self._published_at

    async def connections(self) -> list[Connection]:
        """The live ones."""
        flows = await asyncio.to_thread(self._table.flows)
        return self._flows.connections(flows, await self._pods.bytes_of(flows))

    async def refresh(self) -> None:
        """Bring what the flows count up to now."""
        await self._flows.tell(self._table.take_ended())
        async with self._flows.looking():
            flows = await asyncio.to_thread(self._table.flows)
            self._flows.refresh(flows, await self._pods.bytes_of(flows))

    def status(self) -> dict[str, object]:
        """For `status`: see docs/json.md."""
        return {
            "open": bool(self._table.epoch),
            "off": self.off,
            "pairs": self._published[0],
            "services": self._published[1],
            "left_out": self._table.left_out,
            "undestroyed": self._judge.failures,
        }

    def statistics(self) -> DirectStatistics:
        """For the metrics."""
        return DirectStatistics(
            is_open=bool(self._table.epoch),
            openings=self._openings,
            closed_s=self._closed_s + (time.monotonic() - self._closed_since if self._closed_since else 0.0),
            live=self._flows.live,
            ended=self._flows.ended,
            left_out=self._table.left_out,
            destroyed=self._judge.destroyed,
            undestroyed=len(self._judge.failures),
            unlogged=self._flows.unlogged,
            kernel=self._table.counters(),
        )


def _summarise(sets: dict[Held, tuple[Policy, ...]], identities: set[str]) -> dict[Held, dict[str, Summary]]:
    return {held: summarise(policies, identities) for held, policies in sets.items()}


def why_not_direct(*, hbone: bool, redirected: bool) -> str:
    """Why there is no direct path on this node; "": there is one.

    redirected: istio-cni's rules lead what a pod sends back to it, but for what the proxy sends, which has a mark.
    """
    if hbone:
        return "same_node is hbone"
    if redirected:
        return "istio-cni redirects what pods send"
    off = can_destroy()
    if off:
        log.warning("pods of this node talk through the proxy, as direct connections could not be ended: %s", off)
    return off
