"""Enrolment by label: whom the roster says to be in the mesh is found on the node, and put in or out.

A pod is found in two ways that come to one: the CNI plug-in brings it with its network namespace before its first instruction
(`admit`), or it is there already and is found through its cgroup.  Kept over a restart is what the CNI has brought, and which
namespaces are steered for whom.
Invariants: before the controller's first answer, or a kept one, nobody leaves the mesh; a pod stays in until it is said to be out
or to have ended, whatever becomes of its containers; what was removed by the CNI is not found again; `admit` returns when the
pod's first packet will be carried, or raises.
It must not know what the labels are, nor who speaks for the CNI.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from nodeproxy.agent.enrolment import Enrolment
from nodeproxy.agent.pod_namespace import leads_to
from nodeproxy.agent.pods.attachments import Attached, Attachments
from nodeproxy.agent.pods.events import Events
from nodeproxy.agent.pods.label_events import LabelEvents, describe
from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.pods.roster import Roster
from nodeproxy.agent.pods.standing import Standing
from nodeproxy.agent.sources.change import Change
from nodeproxy.errors import EnrolmentError, NodeproxyError
from nodeproxy.linux.kubepods import PodFinder, places
from nodeproxy.linux.netns import netns_inode, open_netns
from nodeproxy.model.cni import Admission, Attachment, CniAdd
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.node_pod import NodePod
from nodeproxy.model.workload import Workload
from nodeproxy.state.store import Meta
from nodeproxy.state.view import View

# How long `admit` waits for the controller to tell of a pod: it hears of it from the API server when the kubelet does.
WAIT_S = 5.0
# The same while no control plane is connected: a reconnect, most often.
_AWAY_WAIT_S = 1.0
# The certificate of a pod that is admitted: the CA answers in milliseconds, or is away.
_READY_WAIT_S = 4.0
# The same of pods that run already, which are plain until then.
_CERTIFICATES_S = 2.0
# A pod that is to be in and is not found is looked for after so long, and each time later, up to the second number.
_LOOK_AGAIN_S = (0.05, 1.0)
# How often pods are looked at for a namespace that has gone or was replaced.
_WATCH_S = 1.0
# Without any process for so long a pod has ended, though nobody has said so; containers that crash come back within minutes, but
# then the sandbox's process, or the CNI's mount of the namespace, is there.
_ENDED_S = 30.0
# For so long what an agent before has steered stays closed while a pod that is to be in is not found: it may be that pod's.
_STRANGERS_S = 30.0
# Pods that are put in without letting the CNI have its turn.
_AT_ONCE = 16

log = logging.getLogger(__name__)


class Node(Protocol):
    """The agent, as this needs it.  events: who tells people of pods; standing: who counts their connections."""

    events: Events
    standing: Standing

    def view(self) -> View:
        """The state as it is now."""

    @property
    def is_connected(self) -> bool:
        """Whether the controller is connected."""

    async def write(self, change: Change) -> None:
        """Change the state of the agent's own accord.  Raises StateError."""

    async def keep(self, meta: Meta) -> None:
        """Put this beside the state.  Raises StateError."""

    def certificates(self, identities: Collection[str], timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Within, there are certificates for these, as far as the CA makes them in time."""

    async def serving(self, uid: str, timeout_s: float) -> None:
        """Wait until the pod's certificate is there and all workers know all that was written.  Raises EnrolmentError."""


class LabelEnrolment:
    """`run` serves until cancelled.

    on_looked: called when every pod was looked at for the first time, with the cookies of namespaces that are to stay steered,
    for pods that are to be in and were not found.
    """

    def __init__(
        self,
        node: Node,
        enrolment: Enrolment,
        finder: PodFinder,
        roster: Roster,
        attachments: Attachments,
        provisional: Provisional,
        *,
        on_looked: Callable[[Collection[int] | None], Awaitable[None]],
    ) -> None:
        self.waiting: dict[str, str] = {}  # pods that are to be in, "namespace/name", and why they are not
        self._node = node
        self._roster = roster
        self._enrolment = enrolment
        self._finder = finder
        self._events = LabelEvents(node.events)
        self._attachments = attachments
        self._provisional = provisional
        self._on_looked = on_looked
        self._looked = False
        self._strangers = True  # there may be pods that an agent before has steered, and of which it is not known whose they are
        self._began = time.monotonic()
        self._places: dict[str, tuple[NodePod, PodSpec]] = {}  # by "namespace/name": as it was told, and where it is
        self._going: dict[str, NodePod] = {}  # by uid: pods that go on and are to be out, and are not known to be
        self._lost: dict[str, float] = {}  # pods in whose namespace nobody seems to be, since when
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._failed = False  # something that is tried again
        self._uids: set[str] = set()  # of those in `_places`
        enrolment.cared_for = self._uids
        node.standing.listen(self._events.counted)
        roster.listen(lambda changed: self._changed.set())

    # ── serving ──

    async def run(self) -> None:
        """Until cancelled."""
        delay_s = _LOOK_AGAIN_S[0]
        watched = time.monotonic()
        self._changed.set()  # what was told while nobody ran this, or was begun when it was cancelled
        while True:
            due_s = max(0.0, watched + _WATCH_S - time.monotonic())
            try:
                async with asyncio.timeout(min(delay_s, due_s) if self.waiting or self._failed else due_s):
                    await self._changed.wait()
                delay_s = _LOOK_AGAIN_S[0]
            except TimeoutError:
                delay_s = min(delay_s * 2, _LOOK_AGAIN_S[1])
            if self._changed.is_set() or self.waiting or self._failed:
                self._changed.clear()
                self._failed = not await self._attempt(self.reconcile())
            if time.monotonic() >= watched + _WATCH_S:
                watched = time.monotonic()
                await self._attempt(self._watch())

    async def _attempt(self, work: Awaitable[None]) -> bool:
        """Whether it could be done."""
        try:
            await work
        except (NodeproxyError, OSError) as error:
            log.error("pods are not all as the labels say, and it is tried again: %s", error)
            return False
        return True

    async def reconcile(self) -> None:
        """Bring the node to where the roster is, as far as pods are found.  Raises StateError."""
        if not self._roster.received:
            return
        await self._let_go()
        wanted = {pod.key: pod for pod in self._roster.pods() if pod.membership.in_mesh and pod.key not in self._places}
        self.waiting = {key: why for key, why in self.waiting.items() if key in wanted}
        found = await self._find(wanted)
        keys = list(found)
        # Who is steered already is closed until it is served; for the others nothing changes before their certificates are there.
        steered = self._attachments.steered()
        fresh = {self._identity(wanted[key]) for key in keys if found[key].uid not in steered}
        async with self._node.certificates(fresh, _CERTIFICATES_S):
            for start in range(0, len(keys), _AT_ONCE):
                async with self._lock:
                    await self._put_in({key: found[key] for key in keys[start : start + _AT_ONCE]})
        await self._release_strangers({self._uid(pod) for pod in wanted.values() if pod.key in self.waiting})

    async def _release_strangers(self, waiting: Set[str]) -> None:
        """What an agent before has steered and nobody wants is plain, once it is known whose it is.

        waiting: who is to be in and is not found yet.  The agent before may have put such a pod in after this one got its state.
        """
        steered = self._attachments.steered()
        theirs = [cookie for uid, cookie in steered.items() if uid in waiting]
        known = waiting <= steered.keys() or time.monotonic() > self._began + _STRANGERS_S
        if not self._looked:
            self._looked = True
            await self._on_looked(theirs if known else None)
        elif self._strangers and known:
            await self._enrolment.release_strangers(theirs)
        self._strangers = self._strangers and not known

    # ── out ──

    async def _let_go(self) -> None:
        """Whoever has ended, was replaced by a pod of the same name, or is not to be in."""
        async with self._lock:
            out: dict[str, None] = {}
            ended = set()
            for key, (pod, spec) in list(self._places.items()):
                now = self._roster.get(key)
                if now is not None and now.pod_uid == pod.pod_uid and now.membership.in_mesh:
                    if now != pod:
                        self._places[key] = now, spec
                    continue
                out[spec.uid] = None
                if now is None or now.pod_uid != pod.pod_uid:
                    ended.add(spec.uid)
                elif spec.uid in self._enrolment.pods:
                    self._going[spec.uid] = now
                self._forget(key, spec.uid)
            if out:
                await self._enrolment.change(out, ended)
            self._tell_left()
            pods = self._roster.pods()
            here = {self._uid(pod) for pod in pods if pod.membership.in_mesh}
            await self._node.write(self._provisional.take_back(self._provisional.uids - here))
            over = [uid for uid in self._attachments.steered() if uid not in here and (self._looked or uid in out)]
            await self._node.keep(self._attachments.forget_steered(over))
            await self._node.keep(self._attachments.prune({pod.pod_uid for pod in pods}))

    def _tell_left(self) -> None:
        """Of whoever could not be taken out at once, when it is out: `Enrolment.watch` has tried again."""
        for uid, pod in list(self._going.items()):
            now = self._roster.get(pod.key)
            if now is None or now.pod_uid != pod.pod_uid:
                del self._going[uid]
            elif uid not in self._enrolment.pods:
                self._events.left(self._going.pop(uid))

    def _forget(self, key: str, uid: str) -> None:
        self._places.pop(key, None)
        self._uids.discard(uid)
        self._lost.pop(key, None)
        self._provisional.forget(uid)
        self._events.forget(uid)

    # ── in ──

    async def _find(self, wanted: Mapping[str, NodePod]) -> dict[str, PodSpec]:
        """Where these pods are: by what the CNI has said, or else by their cgroups."""
        found: dict[str, PodSpec] = {}
        addresses: dict[str, frozenset[str]] = {}
        for key, pod in wanted.items():
            brought = next(
                (spec for each in self._attachments.of(pod.pod_uid) if (spec := _place_of(self._uid(pod), each))), None
            )
            if brought is not None:
                found[key] = brought
            elif told := self._addresses(pod):
                addresses[key] = frozenset(told)
            else:
                self.waiting[key] = "it has no address yet"
        by_uid = {wanted[key].pod_uid: key for key in addresses}
        for uid, (path, inode) in (await self._look({wanted[key].pod_uid: each for key, each in addresses.items()})).items():
            key = by_uid[uid]
            if not self._attachments.has_gone(uid, inode):
                found[key] = PodSpec(self._uid(wanted[key]), path, inode)
            else:
                self.waiting[key] = "its network was removed"
        return found

    async def _look(self, wanted: dict[str, frozenset[str]]) -> dict[str, tuple[str, int]]:
        """By pods' uids; of those that are not found it is noted why."""
        if not wanted:
            return {}
        found, missing = await asyncio.to_thread(places, self._finder, wanted)
        keys = {pod.pod_uid: pod.key for pod in self._roster.pods()}
        for uid, why in missing.items():
            if uid in keys:
                self.waiting.setdefault(keys[uid], why)
                self.waiting[keys[uid]] = why
        return found

    async def _put_in(self, found: Mapping[str, PodSpec]) -> None:
        """Those of these that are still to be in, and that nobody has put in meanwhile."""
        entering: list[tuple[NodePod, PodSpec]] = []
        for key, spec in found.items():
            pod = self._roster.get(key)
            if pod is None or not pod.membership.in_mesh or key in self._places:
                continue
            if self._attachments.has_gone(pod.pod_uid, spec.inode):
                continue
            await self._make_known(pod, spec.inode)
            entering.append((pod, spec))
        for pod, spec in entering:  # all at once: whoever has a place and is not put in is not looked at again
            self._set_place(pod, spec)
            self._events.entering(spec.uid, pod)
        specs: dict[str, PodSpec | None] = {spec.uid: spec for _, spec in entering}
        if specs:
            await self._enrolment.change(specs)
            self._tell_people(entering)
            await self._drop_ended({key: spec for key, spec in found.items() if spec.uid in specs})
            await self._note_steered(specs)

    def _tell_people(self, put_in: Collection[tuple[NodePod, PodSpec]]) -> None:
        """Whoever looks at such a pod must know."""
        for pod, spec in put_in:
            if (failed := self._enrolment.failed.get(spec.uid)) is not None:
                self._events.failed(pod, failed.error)
            enrolled = self._enrolment.pods.get(spec.uid)
            if enrolled is not None and not enrolled.fresh:  # who is not in yet may be at the next try
                self._events.forget(spec.uid)

    async def _drop_ended(self, put_in: Mapping[str, PodSpec]) -> None:
        """Whose process has ended while it was put in is looked for again."""
        for key, spec in put_in.items():
            failed = self._enrolment.failed.get(spec.uid)
            if failed is not None and not leads_to(spec):
                self._forget(key, spec.uid)
                self.waiting[key] = failed.error
                await self._enrolment.change({spec.uid: None})

    def _set_place(self, pod: NodePod, spec: PodSpec) -> None:
        self._places[pod.key] = pod, spec
        self._uids.add(spec.uid)
        self._going.pop(spec.uid, None)
        self._lost.pop(pod.key, None)
        self.waiting.pop(pod.key, None)

    async def _make_known(self, pod: NodePod, inode: int) -> None:
        """Its workload is in the state from now on, until the pod ends: the control plane's, or one in its place.

        inode: of its network namespace.  The addresses of a sandbox before this one are others' by now.
        """
        assert pod.workload is not None  # `decode` sees to it
        here = [each for each in self._attachments.of(pod.pod_uid) if each.inode == inode]
        brought = [address for each in here for address in each.request.addresses]
        await self._node.write(self._provisional.admit(pod.workload, brought))

    async def _note_steered(self, uids: Collection[str]) -> None:
        cookies = {uid: self._enrolment.pods[uid].cookie for uid in uids if uid in self._enrolment.pods}
        await self._node.keep(self._attachments.note_steered(cookies))

    # ── what becomes of pods that are in ──

    async def _watch(self) -> None:
        """Follow pods whose namespace is not where it was, and notice who is out at last."""
        async with self._lock:
            self._tell_left()
            lost = {key: place for key, place in self._places.items() if not leads_to(place[1])}
            for key in self._lost.keys() - lost.keys():
                del self._lost[key]
            if lost:
                await self._follow(lost)

    async def _follow(self, lost: Mapping[str, tuple[NodePod, PodSpec]]) -> None:
        addresses = {pod.pod_uid: frozenset(self._addresses(pod)) for pod, _ in lost.values()}
        found, _ = await asyncio.to_thread(places, self._finder, addresses)
        for key, (pod, spec) in lost.items():
            if pod.pod_uid in found:
                path, inode = found[pod.pod_uid]
                if self._attachments.has_gone(pod.pod_uid, inode):
                    continue
                moved = PodSpec(spec.uid, path, inode)
                if inode != spec.inode:
                    log.info("pod %s has another network namespace", key)
                self._set_place(pod, moved)
                async with self._node.certificates({self._identity(pod)}, 0.0):
                    await self._enrolment.change({spec.uid: moved}, () if inode == spec.inode else (spec.uid,))
                await self._note_steered([spec.uid])
            elif time.monotonic() - self._lost.setdefault(key, time.monotonic()) >= _ENDED_S:
                log.info("pod %s: no process of it is left", key)
                self._forget(key, spec.uid)
                self.waiting[key] = "it has no process any more"
                await self._enrolment.change({spec.uid: None}, (spec.uid,))

    # ── the CNI ──

    def pending(self) -> str:
        """Why nobody can be admitted now; "" when they can."""
        return "" if self._roster.received else "the controller has not told of this node's pods yet"

    async def admit(self, request: CniAdd) -> Admission:
        """Put the pod into the mesh if it belongs there, before its first packet.  Raises EnrolmentError: it is tried again."""
        if not request.pod_uid:
            return Admission(False, "it is no pod of a kubelet's")
        wait_s = WAIT_S if self._node.is_connected else _AWAY_WAIT_S
        pod = await self._roster.wait(request.namespace, request.name, request.pod_uid, wait_s)
        if pod is None:
            return self._unknown(request)
        async with self._lock:
            pod = self._roster.get(pod.key)  # whoever had the lock may have taken long
            if pod is None or pod.pod_uid != request.pod_uid:
                raise EnrolmentError(f"pod {request.namespace}/{request.name} has ended, says the controller")
            if not pod.membership.in_mesh:
                return Admission(False, describe(pod.membership))
            spec = PodSpec(self._uid(pod), request.netns, _inode(request.netns))
            self._refuse_foreign(pod, request.addresses)
            await self._node.keep(self._attachments.add(Attached(request, spec.inode)))
            await self._make_known(pod, spec.inode)
            await self._enter(pod, spec)
        await self._node.serving(spec.uid, _READY_WAIT_S)
        return Admission(True, describe(pod.membership))

    async def _enter(self, pod: NodePod, spec: PodSpec) -> None:
        before = self._places.get(pod.key)
        self._set_place(pod, spec)
        is_new = before is None or before[1].inode != spec.inode
        await self._enrolment.change({spec.uid: spec}, (spec.uid,) if is_new else ())
        enrolled = self._enrolment.pods.get(spec.uid)
        if enrolled is None or enrolled.inode != spec.inode:
            failed = self._enrolment.failed.get(spec.uid)
            raise EnrolmentError(failed.error if failed is not None else "another agent is taking over from this one")
        if not is_new:
            await self._enrolment.refresh(spec.uid)  # another interface of it has come
        await self._note_steered([spec.uid])

    def _unknown(self, request: CniAdd) -> Admission:
        key = f"{request.namespace}/{request.name}"
        connected = "the controller does not tell of it" if self._node.is_connected else "the controller is away"
        if request.namespace in self._roster.namespaces() or not self._roster.received:
            raise EnrolmentError(f"{connected}, and pod {key} may belong into the mesh: it is held back until that is known")
        log.warning("pod %s starts outside the mesh: %s, and its namespace has no pods in the mesh", key, connected)
        return Admission(False, f"{connected}, and its namespace has no pods in the mesh")

    def _refuse_foreign(self, pod: NodePod, addresses: Collection[str]) -> None:
        assert pod.workload is not None
        view = self._node.view()
        for address in addresses:
            owner = view.workload_at(pod.workload.network, address)
            if owner is not None and owner.uid != pod.workload.uid:
                raise EnrolmentError(f"its address {address} is {owner.uid}'s by the state: has that pod ended just now?")

    async def gone(self, attachment: Attachment) -> None:
        """The interface is about to be removed; with its last one the pod leaves."""
        async with self._lock:
            brought, meta = self._attachments.remove(attachment)
            await self._node.keep(meta)
            if brought is None or any(each.inode == brought.inode for each in self._attachments.of(brought.request.pod_uid)):
                return
            key = f"{brought.request.namespace}/{brought.request.name}"
            if key not in self._places:
                return
            pod, spec = self._places[key]
            if pod.pod_uid != brought.request.pod_uid or spec.inode != brought.inode:
                return
            self._forget(key, spec.uid)
            self.waiting[key] = "its network was removed"
            await self._enrolment.change({spec.uid: None}, (spec.uid,))
            await self._node.write(self._provisional.take_back([spec.uid]))
            await self._node.keep(self._attachments.forget_steered([spec.uid]))

    async def check(self, request: CniAdd) -> None:
        """Raises EnrolmentError when a pod that belongs into the mesh is not there, with this namespace."""
        pod = self._roster.pod(request.namespace, request.name)
        if pod is None or pod.pod_uid != request.pod_uid or not pod.membership.in_mesh:
            return
        enrolled = self._enrolment.pods.get(self._uid(pod))
        if enrolled is None or enrolled.inode != _inode(request.netns):
            why = self.waiting.get(pod.key) or "its network namespace is not the one that is steered"
            raise EnrolmentError(f"pod {pod.key} belongs into the mesh and is not in: {why}")

    async def keep(self, valid: frozenset[Attachment]) -> None:
        """These are all that the network has; any other that came by `admit` has gone."""
        for attachment in self._attachments.all() - valid:
            await self.gone(attachment)

    # ── inside ──

    @staticmethod
    def _uid(pod: NodePod) -> str:
        assert pod.workload is not None  # `decode` sees to it
        return pod.workload.uid

    @staticmethod
    def _identity(pod: NodePod) -> str:
        assert pod.workload is not None  # `decode` sees to it
        return pod.workload.identity

    def _addresses(self, pod: NodePod) -> tuple[str, ...]:
        """As they are told of; a pod's own word is not enough."""
        workload: Workload | None = self._node.view().workload(self._uid(pod))
        told = pod.workload.addresses if pod.workload is not None else ()
        return told or (workload.addresses if workload is not None else ())


def _place_of(uid: str, brought: Attached) -> PodSpec | None:
    """Where the CNI has brought a pod, if it is there still."""
    return PodSpec(uid, brought.request.netns, brought.inode) if brought.is_there() else None


def _inode(netns: str) -> int:
    """Raises EnrolmentError if there is no network namespace at that path."""
    descriptor = open_netns(netns)
    try:
        return netns_inode(descriptor)
    finally:
        os.close(descriptor)
