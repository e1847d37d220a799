"""The agent's parts joined: what the source says goes to the store and the workers, pods in and out go to certificates and
workers.

Nothing here decides about a connection, and nothing waits for a worker that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nodeproxy.agent.direct import DirectPath, why_not_direct
from nodeproxy.agent.direct_flows import DirectFlows
from nodeproxy.agent.direct_judge import Judge
from nodeproxy.agent.direct_pods import DirectPods
from nodeproxy.agent.enrolment import PREDECESSOR, Enrolment
from nodeproxy.agent.handover.taking import Predecessor
from nodeproxy.agent.identities import Identities
from nodeproxy.agent.kubelet import KubeletWatch
from nodeproxy.agent.node_state import NodeState
from nodeproxy.agent.on_demand import OnDemand
from nodeproxy.agent.pod_namespace import EnrolledPod
from nodeproxy.agent.pods.address_watch import AddressWatch
from nodeproxy.agent.pods.attachments import Attachments
from nodeproxy.agent.pods.cni import CniPart
from nodeproxy.agent.pods.events import Events
from nodeproxy.agent.pods.labels import LabelEnrolment
from nodeproxy.agent.pods.roster import Roster
from nodeproxy.agent.pods.standing import Standing
from nodeproxy.agent.remembered import Commands
from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.connection import SourceConnection
from nodeproxy.agent.sources.xds_kept import DemandChange
from nodeproxy.agent.workers import Workers
from nodeproxy.config import SameNode
from nodeproxy.errors import EnrolmentError, IdentityError, NodeproxyError
from nodeproxy.identity.certificate import CertificateAuthority
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.kernel.steering import Steering
from nodeproxy.linux.kubepods import PodFinder
from nodeproxy.model.connection import Connection
from nodeproxy.model.delta import Delta, PodSpec
from nodeproxy.model.messages import NamesUsed, NamesWanted, StateChanged, WorkerSettings
from nodeproxy.observe.counters import Totals
from nodeproxy.observe.metrics import Metrics
from nodeproxy.state.balance import Balancer
from nodeproxy.state.changes import Touched
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.state.view import View

if TYPE_CHECKING:  # with it comes protobuf, which an agent with a mesh file does without
    from nodeproxy.agent.pods.zds import ZdsEnrolment

# A CA answers in milliseconds, or is away.
_CERTIFICATE_WAIT_S = 2.0

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Node:
    """One node's agent.  Made before anything is steered; `start` brings it to work, `drain` ends it."""

    def __init__(
        self,
        *,
        store: Path,
        steering: Steering,
        authority: CertificateAuthority,
        workers: int,
        log_json: bool,
        same_node: SameNode,
        standing: Standing,
        version: str,
        source: str,
        kept: KeptCertificates | None = None,
        on_demand: bool = False,
        by_labels: PodFinder | None = None,
        by_istio_cni: bool = False,
        cluster_domain: str = "cluster.local",
        kubelet: KubeletWatch,
        held_back: bool = False,
        events: Events | None = None,
    ) -> None:
        """source: its name, for people.  kept: where certificates outlive the agent, if the CA may be away.

        by_labels: labels in the cluster say which pods are in the mesh, and this finds them.
        by_istio_cni: istio-cni says which they are; who hears it becomes `zds`.
        held_back: another agent serves the node; nothing that both share is changed until `take_over`.
        on_demand: the state holds only what was asked for; cluster_domain: of the names that `why` completes then.
        events: who tells people of pods, if not nobody.
        """
        self.source_error = ""
        self.events = events if events is not None else Events("", None)
        self.started = time.time()
        self.steering = steering
        self.state = NodeState(store, source, before_commit=self._before_commit, on_written=self._state_written)
        if self.state.store.rebuilt:
            log.warning("the last state was thrown away, and what was enrolled by command with it: %s", self.state.store.rebuilt)
        self.roster = Roster(self.state.store) if by_labels is not None else None
        self.balancer = Balancer()
        self.totals = Totals()
        self.connection: Callable[[], SourceConnection] | None = None  # of a source that has one
        self._reconciled = False
        self._held_back = held_back
        self._first_pods: tuple[PodSpec, ...] | None = None  # to be put in when this agent is not held back any more
        self.source_answered = False
        self._kept = kept
        self.predecessor: Predecessor | None = None  # that this agent has taken over from, while it lives
        self.same_node = same_node
        self.standing = standing
        self.cluster_domain = cluster_domain
        self.kubelet = kubelet
        hbone = same_node is SameNode.HBONE
        settings = WorkerSettings(slot=0, store=str(store), log_json=log_json, same_node_hbone=hbone, on_demand=on_demand)
        self.workers = Workers(
            workers,
            settings,
            steering.original_destination_fd,
            self.totals,
            self._tell_new_worker,
            self._pod_released,
            self._names_asked,
        )
        self.identities = Identities(authority, self.workers.broadcast, kept)
        pods = DirectPods()
        flows = DirectFlows(pods, self.view, self.totals, log_json=log_json, log_fd=sys.stdout.fileno())
        judge = Judge(pods, flows, self.view, hbone=hbone)
        off = why_not_direct(hbone=hbone, redirected=by_istio_cni)
        self.direct = DirectPath(steering.direct, pods, flows, judge, self.view, off=off, on_demand=on_demand)
        self.on_demand: OnDemand | None = None
        if on_demand:
            self.on_demand = OnDemand(self.view, self._write_answers, self.workers.send, self.direct.service_addresses)
        else:
            self.state.store.forget_asked()  # nobody will keep up to date what an agent before this one asked for
        self.enrolment = Enrolment(
            steering, workers, self._tell, self._pods_changed, self._is_foreign, self.direct.entering, self.direct.leaving
        )
        self.addresses = AddressWatch(self.enrolment)
        self.metrics = Metrics(self.totals, version=version)
        self.metrics.certificates = self.identities.manager.statistics
        self.metrics.state = self.state.statistics
        self.metrics.kernel_drops = steering.drop_counters
        self.metrics.direct = self.direct.statistics
        self.metrics.kubelet = kubelet.statistics
        self.metrics.events = self.events.statistics if self.events.on else None
        self.metrics.on_demand = self.on_demand.statistics if self.on_demand is not None else None
        self.cni: CniPart | None = None
        self.labels: LabelEnrolment | None = None
        if by_labels is not None and self.roster is not None:
            known = self.roster, Attachments(self.state.store), self.state.provisional
            self.labels = LabelEnrolment(self, self.enrolment, by_labels, *known, on_looked=self.looked)
        self.zds: ZdsEnrolment | None = None
        self.enrolment.restore(self.state.remembered.commands)
        if self.on_demand is not None:
            for uid in self.enrolment.target_uids():
                self.on_demand.keep(uid)
        if not held_back:
            self.direct.hold(close=bool(self.state.store.rebuilt))

    # ── life ──

    async def start(self) -> None:
        """Workers first, so that a pod that is enrolled is served at once."""
        await self.workers.start()

    async def drain(self, grace_s: float, *, passed_on: bool = False) -> None:
        """Let connections end; steering stays: the node is closed until the next agent comes, or served by it (passed_on)."""
        await self.workers.drain(grace_s, passed_on=passed_on)

    async def close(self) -> None:
        """Let go of everything."""
        await self.workers.stop()
        await self.direct.finish()
        self.addresses.close()
        self.steering.close()
        self.state.close()

    # ── from one agent to the next ──

    @property
    def knows_its_pods(self) -> bool:
        """Whether somebody has said which pods are to be in."""
        told = self.roster.received if self.roster is not None else self.zds is None or self.zds.told
        return self._reconciled or (self._first_pods is not None and told)

    async def take_over(self, said: Commands | None) -> None:
        """Serve the node from now on: the steering is this agent's.  said: by command to the agent before, None: it is known."""
        if said is not None:
            self.enrolment.restore(said)
            await self.state.keep_commands(self.enrolment.commands)
        self.direct.hold(close=self.state.doubtful)
        self._held_back = False
        await self._reconcile(self._first_pods or ())
        if self.zds is not None:
            await self.zds.take_over()
        self.identities.expect_no_more()

    async def copy_state(self, directory: Path) -> list[str]:
        """Copy the state for a successor; the identities of this node's pods.  Raises StateError."""
        await self.state.reading(lambda store: store.copy(directory))
        return self.identities.wanted()

    async def let_go(self, on_released: Callable[[int], None]) -> None:
        """A successor takes over: what both share is its own from now on.  on_released: see `Enrolment.freeze`."""
        await self.enrolment.freeze(on_released)
        await asyncio.to_thread(self.steering.direct.let_go)
        if self._kept is not None:
            self._kept.pass_on()

    async def hold_again(self, own_cgroup_id: int, cgroup_root: Path) -> None:
        """The successor is gone before it served: all is as this agent has it."""
        self.steering.take(self.steering.lock, own_cgroup_id=own_cgroup_id, workers=self.workers.count)
        self.direct.hold(close=True)
        await self.enrolment.thaw()
        for uid, pod in self.enrolment.pods.items():
            self._allow_kubelet(uid, pod)  # the successor may have taken it out
        self.steering.attach(cgroup_root)
        self.steering.forget_others()
        if self._kept is not None:
            self._kept.pass_on(False)
        self.direct.changed()

    @property
    def has_last_state(self) -> bool:
        """Whether an agent before this one left a state to go on with."""
        return self.state.remembered.pods is not None

    async def go_on_with_last_state(self) -> None:
        """The source does not answer: serve what it said last."""
        self.state.received = self.state.remembered.received
        await self._reconcile(self.state.remembered.pods or ())

    # ── the source ──

    async def apply(self, change: Change) -> None:
        """What the source says now.  Policy first: who is put in after it is already judged by it.  Raises StateError."""
        pods = change.pods
        if pods is not None and not self._reconciled and pods != self.state.remembered.pods:
            self.direct.close()  # what the agent before opened was for other pods
        await self.state.apply(change)
        self.source_error = ""
        if pods is None:
            return
        self.source_answered = True
        await self._reconcile(pods)
        counts = self.view().counts()
        log.info(
            "state %d: %s; %d pods here",
            self.state.epoch,
            ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            len(self.enrolment.pods),
        )

    async def write(self, change: Change) -> None:
        """Change the state of the agent's own accord: the source has not spoken.  Raises StateError."""
        await self.state.write(change)

    async def keep(self, meta: Meta) -> None:
        """Write what is kept beside the state, of the agent's own accord.  Raises StateError."""
        await self.state.keep(meta)

    async def reading(self, work: Callable[[StateWriter], _T]) -> _T:
        """Do this in a thread, for what takes long; nobody writes meanwhile."""
        return await self.state.reading(work)

    @property
    def is_connected(self) -> bool:
        """Whether the source is one that is connected to, and is."""
        return self.connection is not None and self.connection().connected

    def certificates(self, identities: Collection[str], timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Within, there are certificates for these, as far as the CA makes them in time."""
        return self.identities.beforehand(identities, timeout_s)

    async def serving(self, uid: str, timeout_s: float) -> None:
        """Wait until an enrolled pod is served: with its certificate, by all workers.  Raises EnrolmentError if it is not."""
        workload = self.view().workload(uid)
        if workload is None:
            raise EnrolmentError(f"the state has no workload {uid}: its connections would be refused")
        try:
            async with asyncio.timeout(timeout_s):
                await self.identities.manager.wait_certificate(workload.identity)
        except (TimeoutError, IdentityError) as error:
            why = str(error) or f"the CA did not answer within {timeout_s:g} s"
            raise EnrolmentError(f"there is no certificate for {workload.identity}: {why}") from error
        await self.workers.refresh_counters()  # who has answered has read what was told before

    def state_changed(self) -> None:
        """The state has a new epoch: whoever goes by it is told."""
        touched = self.state.take_touched()
        pods = self.enrolment.pods
        self._assign_identities(list(pods) if touched.everything else [uid for uid in touched.workloads if uid in pods])
        self.workers.broadcast(StateChanged())

    def refuse(self, error: NodeproxyError) -> None:
        """The source said what can't be used: the last good state stays."""
        self.source_error = str(error)
        log.error("%s; nothing of it was applied, the last good state stays in use", error)

    # ── commands ──

    async def enrol(self, spec: PodSpec) -> float:
        """By an administrator's command; how long it took, in milliseconds."""
        before = time.monotonic()
        if not self._reconciled:  # what the agent before opened may be for another pod in that namespace
            self.direct.close()
            self.direct.changed()
        await self.enrolment.enrol(spec)
        took_ms = (time.monotonic() - before) * 1000
        await self.state.keep_commands(self.enrolment.commands)
        if self.on_demand is not None:
            await self.on_demand.ask((spec.uid,))
        workload = self.view().workload(spec.uid)
        if workload is not None:
            # So that its first connection does not come before its certificate; a CA that is away is no reason to fail.
            with contextlib.suppress(TimeoutError, IdentityError):
                async with asyncio.timeout(_CERTIFICATE_WAIT_S):
                    await self.identities.manager.wait_certificate(workload.identity)
        return took_ms

    async def leave(self, uid: str) -> bool:
        """By an administrator's command; False: it was not in."""
        was_in = await self.enrolment.leave(uid)
        await self.state.keep_commands(self.enrolment.commands)
        return was_in

    # ── what can be asked ──

    async def refresh_counters(self) -> None:
        """Bring the totals up to now."""
        await self.workers.refresh_counters()
        await self.direct.refresh()

    async def connections(self) -> list[Connection]:
        """The live connections: those that workers carry, and the direct ones."""
        return [*await self.workers.connections(), *await self.direct.connections()]

    def pending(self) -> list[str]:
        """What stands between this node and ready; empty: it is."""
        pending = []
        if not self.state.received:
            pending.append("state: the source has not answered")
        if self._held_back:
            pending.append("handover: the agent before this one serves still")
        elif not self._reconciled:
            pending.append("pods: not all looked at yet")
        if not self.workers.all_ready:
            pending.append("workers: not all run")
        pending += self.zds.pending() if self.zds is not None else []
        pending += [f"certificate: none for {identity}" for identity in self.identities.missing()]
        return pending

    def view(self) -> View:
        """The state as it is now, until control goes back to the loop."""
        return self.state.view()

    # ── inside ──

    async def _write_answers(self, delta: Delta) -> None:
        await self.state.write(DemandChange(delta))

    def _state_written(self, changed: bool) -> None:
        if self.direct.changing:
            self.direct.changed()
        if changed:
            self.state_changed()

    async def _reconcile(self, pods: tuple[PodSpec, ...]) -> None:
        if self._held_back:
            self._first_pods = pods
        elif self.labels is not None:
            if not self._reconciled:
                await self.labels.reconcile()
        elif self.zds is None:
            await self.enrolment.want(pods)
            await self.looked()

    async def looked(self, others: Collection[int] | None = ()) -> None:
        """Every pod that is known has been looked at.  others: cookies of namespaces that stay steered; None: all do, for now."""
        if not self._reconciled:
            await self.enrolment.reconcile()  # what was said by command to the agent before: the source may not speak of it
            if others is not None:
                await self.enrolment.release_strangers(others)
            self._reconciled = True
            self.direct.start()
            self.identities.manager.all_wanted()

    def _tell(self, slot: int, message: msgspec.Struct, fds: tuple[int, ...]) -> bool:
        if slot == PREDECESSOR:
            return self.predecessor is not None and self.predecessor.tell(message)
        return self.workers.send(slot, message, fds)

    def _pods_changed(self, uid: str) -> None:
        self.metrics.enrolled_pods = len(self.enrolment.pods)
        pod = self.enrolment.pods.get(uid)
        if self.on_demand is not None:
            if pod is not None:
                self.on_demand.keep(uid)
            else:
                self.on_demand.leave(uid)
        if pod is not None:
            self._allow_kubelet(uid, pod)
            self.direct.entered(pod)
            self.addresses.entered(pod)
            if pod.fresh:
                self.standing.entered(pod)
        else:
            self.addresses.left(uid)
            self.standing.left(uid)
        self._assign_identities([uid])

    def _allow_kubelet(self, uid: str, pod: EnrolledPod) -> None:
        told = self.roster.get(uid.partition("//Pod/")[2]) if self.roster is not None else None
        self.kubelet.allow(uid, pod.cookie, told.probe_ports if told is not None else None)

    def _before_commit(self, touched: Touched) -> None:
        self.direct.before_change(touched)

    def _is_foreign(self, uid: str, address: str) -> bool:
        view = self.view()
        pod = view.workload(uid)
        owner = view.workload_at(pod.network if pod else "", address)
        return owner is not None and owner.uid != uid and not (pod and address in pod.addresses)

    def _assign_identities(self, uids: list[str]) -> None:
        view = self.view()
        workloads = [(uid, view.workload(uid) if uid in self.enrolment.pods else None) for uid in uids]
        self.identities.assign((uid, workload.identity if workload is not None else "") for uid, workload in workloads)

    def _tell_new_worker(self, slot: int) -> None:
        self.metrics.worker_restarts = sum(self.workers.restarts)
        for message in self.identities.messages():
            self.workers.send(slot, message)
        self.enrolment.attach_worker(slot)

    def _names_asked(self, slot: int, message: NamesWanted | NamesUsed) -> None:
        if self.on_demand is not None:
            self.on_demand.heard(slot, message)

    def _pod_released(self, slot: int, cookie: int) -> None:
        self.enrolment.released(slot, cookie)
