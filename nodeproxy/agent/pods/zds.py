"""Enrolment by istio-cni: whom it tells of over ZDS is put in, whom it takes back leaves.

Invariants: each request is answered once, in its order and in time, for a late answer would pass for the next one's; a pod is in
when its Add is answered without an error; before a whole snapshot came on a connection that was made while this agent serves,
nobody leaves; a namespace is held by its descriptor as long as its pod is told of; of pods of one name the newest is in,
and the one before if that is taken back.  What fails is answered with why, and tried again by
`Enrolment.watch`.
It must not know packets, nor what istio-cni does in a pod.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from nodeproxy.agent.enrolment import Enrolment
from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.pods.zds_connection import Packet, ZdsConnection
from nodeproxy.agent.pods.zds_kept import ZdsKept
from nodeproxy.agent.pods.zds_protocol import Add, Delete, Keep, Request, SnapshotSent, answer, hello, parse
from nodeproxy.agent.sources.change import Change
from nodeproxy.errors import EnrolmentError, NodeproxyError
from nodeproxy.kernel.abi import MAX_PODS
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.dns_capture import is_dns_captured
from nodeproxy.linux.netns import netns_cookie, netns_inode, refuse_node_netns, refuse_other_kinds
from nodeproxy.linux.netns_users import has_processes
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.workload import Protocol as WorkloadProtocol
from nodeproxy.model.workload import Workload
from nodeproxy.observe.zds_metrics import ZdsStatistics
from nodeproxy.state.store import Meta
from nodeproxy.state.view import View

# istio-cni waits 5 s for an answer, and takes one that comes later for the answer to its next request.
_ANSWER_S: Final = 4.0
_TOO_LATE_S: Final = 4.8
# A pod that is new: its certificate, or the control plane's word about it.
_SERVING_S: Final = 3.0
_POLL_S: Final = 0.05
# An answer that is due while another agent takes over: new connections to pods go on meanwhile.
_LAST_ANSWER_S: Final = 1.0
# Between two connections; istio-cni accepts five a second.
_AGAIN_S: Final = (0.25, 5.0)

_KINDS: Final = {Add: "add", Keep: "keep", Delete: "delete", SnapshotSent: "snapshot_sent"}

log = logging.getLogger(__name__)


class Node(Protocol):
    """The agent, as this needs it."""

    def view(self) -> View:
        """The state as it is now."""

    async def write(self, change: Change) -> None:
        """Change the state of the agent's own accord.  Raises StateError."""

    async def keep(self, meta: Meta) -> None:
        """Put this beside the state.  Raises StateError."""

    async def serving(self, uid: str, timeout_s: float) -> None:
        """Wait until the pod's certificate is there and all workers know all that was written.  Raises EnrolmentError."""


@dataclass(frozen=True, slots=True)
class Place:
    """What this node's workloads have in common, and how istio-cni is reached."""

    socket: Path
    node: str
    cluster: str
    network: str
    trust_domain: str


@dataclass(slots=True, eq=False)
class _Pod:
    """A pod that istio-cni has told of.  fd: of its network namespace, ours."""

    add: Add
    spec: PodSpec
    fd: int


@dataclass(slots=True)
class _Snapshot:
    """What was told on one connection.  turn: of this agent's service, when it began."""

    turn: int
    named: set[str] = field(default_factory=set)
    whole: bool = False


class ZdsEnrolment:
    """`run` serves until cancelled.  active: this agent serves the node; else `take_over` says when it does.

    on_looked: called with each whole snapshot, with the cookies of namespaces that stay steered for pods that are kept.
    """

    def __init__(
        self,
        node: Node,
        enrolment: Enrolment,
        provisional: Provisional,
        kept: ZdsKept,
        on_looked: Callable[[Collection[int]], Awaitable[None]],
        place: Place,
        *,
        active: bool,
    ) -> None:
        self.told = False  # a whole snapshot has come, to whichever connection
        self.connected = False
        self.error = ""  # why there is no connection
        self._node = node
        self._enrolment = enrolment
        self._provisional = provisional
        self._kept = kept
        self._place = place
        self._on_looked = on_looked
        self._pods: dict[str, _Pod] = {}  # by the pod's uid
        self._lock = asyncio.Lock()
        self._active = asyncio.Event()
        if active:
            self._active.set()
        self._turn = 0
        self._looked = False
        self._dns_told = False
        self._running = asyncio.Event()  # not paused
        self._running.set()
        self._following: asyncio.Task[None] | None = None
        self._answering = False
        self._connection: ZdsConnection | None = None
        self._requests: Counter[tuple[str, str]] = Counter()  # by kind and outcome
        self._work: set[asyncio.Task[None]] = set()
        self._delay_s = _AGAIN_S[0]

    # ── the connection ──

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._running.wait()
            self._following = asyncio.get_running_loop().create_task(self._follow(), name="istio-cni's connection")
            try:
                await asyncio.wait([self._following])
            finally:
                await _cancel(self._following)
            if self._following.cancelled() or (error := self._following.exception()) is None:
                continue
            self._note_broken(error)
            await asyncio.sleep(self._delay_s * random.uniform(0.5, 1.0))
            self._delay_s = min(self._delay_s * 2, _AGAIN_S[1])

    def _note_broken(self, error: BaseException) -> None:
        if not isinstance(error, (NodeproxyError, OSError)):
            raise error
        if str(error) != self.error:
            log.warning("%s; pods stay as they are, and it is tried again", error)
        self.error = str(error)

    async def _follow(self) -> None:
        """One connection, as long as this agent's turn is the same.  Raises EnrolmentError when istio-cni's end is gone."""
        with ZdsConnection(self._place.socket) as connection:
            connection.send(hello())
            self._connection, self.connected = connection, True
            try:
                await self._serve(connection, _Snapshot(self._turn))
            finally:
                self._connection, self.connected = None, False

    async def _serve(self, connection: ZdsConnection, snapshot: _Snapshot) -> None:
        while (packet := await connection.receive()) is not None:
            began = time.monotonic()
            self._answering = True
            try:
                error = await self._answer(packet, snapshot)
            finally:
                self._answering = False
            if time.monotonic() - began > _TOO_LATE_S:
                raise EnrolmentError("istio-cni waited too long for an answer: this node has no time; all is asked again")
            if error:
                log.error("istio-cni's request can't be done: %s", error)
            connection.send(answer(error))
            self.error = ""
            if snapshot.turn != self._turn or not self._running.is_set():
                return
        raise EnrolmentError("istio-cni has closed the connection")

    async def _answer(self, packet: Packet, snapshot: _Snapshot) -> str:
        """What to answer: "", or an error."""
        fds, kind = list(packet.fds), "unknown"
        try:
            if not packet.whole:
                raise EnrolmentError("the packet is larger than any of ZDS, or has too many descriptors")
            request = parse(packet.data)
            kind = _KINDS[type(request)]
            work = self._work_for(request, fds, snapshot)
        except NodeproxyError as error:
            self._requests[kind, "malformed"] += 1
            return str(error)
        finally:
            for fd in fds:
                os.close(fd)
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait([task], timeout=_ANSWER_S)
        if not task.done():
            self._requests[kind, "timeout"] += 1
            return f"not done within {_ANSWER_S:g} s, and goes on"
        failure = task.exception()
        self._requests[kind, _outcome(failure)] += 1
        return str(failure) if failure is not None else ""

    def _work_for(self, request: Request, fds: list[int], snapshot: _Snapshot) -> Coroutine[Any, Any, None]:
        """Takes a descriptor that is right.  Raises EnrolmentError."""
        if len(fds) != isinstance(request, Add):
            raise EnrolmentError(f"{len(fds)} descriptors came with {type(request).__name__}: an Add has one, others none")
        if isinstance(request, Add):
            refuse_other_kinds(fds[0], "what came with an Add")
            refuse_node_netns(fds[0], f"what came for pod {request.key}")
            return self._add(request, fds.pop(), snapshot)
        if isinstance(request, Keep):
            return self._keep(request, snapshot)
        return self._delete(request) if isinstance(request, Delete) else self._finish(snapshot)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and _outcome(error := task.exception()) == "internal":
            log.error("nodeproxy failed on a request of istio-cni's", exc_info=error)

    # ── from one agent to the next ──

    async def take_over(self) -> None:
        """This agent serves from now on: whom it was told of is put in, and everything is asked once more.

        What was told while another agent served may have been answered by that one.
        """
        self._begin()
        async with self._lock:
            await self._put_in_all(list(self._pods.values()))
        if self._following is not None and not self._is_asked:  # else it ends with its answer
            self._following.cancel()

    async def pause(self) -> None:
        """Another agent takes over: put nobody in any more, and leave istio-cni to it."""
        self._running.clear()
        if self._following is not None:
            if self._is_asked:
                await asyncio.wait([self._following], timeout=_LAST_ANSWER_S)
            await _cancel(self._following)
        async with self._lock:  # whose turn it is has it; who is served already is only waited for
            self._active.clear()

    def resume(self) -> None:
        """It did not: go on, from a snapshot."""
        self._begin()
        self._running.set()

    @property
    def _is_asked(self) -> bool:
        """Whether istio-cni waits for an answer: without one, it holds the pod back."""
        return self._answering or (self._connection is not None and self._connection.has_more)

    def _begin(self) -> None:
        self._turn += 1
        self._active.set()
        self._delay_s = _AGAIN_S[0]

    # ── what istio-cni says ──

    async def _add(self, request: Add, fd: int, snapshot: _Snapshot) -> None:
        async with self._lock:
            pod = self._know(request, fd)
            was_whole = snapshot.whole
            snapshot.named.add(request.pod_uid)
            if self._active.is_set():
                await self._put_in(pod)
        if not was_whole:
            return  # of many that run already: what they lack yet is waited for by `pending`
        if not self._active.is_set():
            await self._served(pod)
        if pod.spec.uid in self._enrolment.pods:
            await self._known(pod)
            await self._node.serving(pod.spec.uid, _SERVING_S)

    def _know(self, request: Add, fd: int) -> _Pod:
        """The pod as it is told of now; the descriptor is its own, or closed."""
        inode = netns_inode(fd)
        known = self._pods.get(request.pod_uid)
        if known is not None and known.spec.inode == inode and known.add == request:
            os.close(fd)
            return known
        if known is None and len(self._pods) >= MAX_PODS:
            os.close(fd)
            raise EnrolmentError(f"{MAX_PODS} pods are told of: no node has more")
        # By this process's number and not as /proc/self: people follow it, too.
        spec = PodSpec(f"{self._place.cluster}//Pod/{request.key}", f"/proc/{os.getpid()}/fd/{fd}", inode)
        made = self._pods[request.pod_uid] = _Pod(request, spec, fd)
        if known is not None:
            os.close(known.fd)
        return made

    def _named(self, uid: str) -> _Pod | None:
        """Who is to be in of those of one name: one pod has ended, and its Del is still to come."""
        return next((pod for pod in reversed(self._pods.values()) if pod.spec.uid == uid), None)

    async def _put_in(self, pod: _Pod) -> None:
        """Raises EnrolmentError; then it is tried again."""
        uid = pod.spec.uid
        if self._named(uid) is not pod:
            return
        before = self._enrolment.pods.get(uid)
        await self._node.keep(self._kept.note(pod.add.pod_uid, netns_cookie(pod.fd)))
        await self._make_known(pod)
        await self._enrolment.change({uid: pod.spec}, (uid,) if before is not None and before.inode != pod.spec.inode else ())
        enrolled = self._enrolment.pods.get(uid)
        if (enrolled is None or enrolled.inode != pod.spec.inode) and self._enrolment.commands.get(uid, pod) is not None:
            failed = self._enrolment.failed.get(uid)
            raise EnrolmentError(failed.error if failed is not None else "another agent is taking over from this one")
        if not self._dns_told and await asyncio.to_thread(is_dns_captured, pod.fd):
            self._dns_told = True
            log.error(
                "pod %s, and others: istio-cni sends what it asks of DNS to port 15053, where nodeproxy does not answer, so it "
                "resolves no names; install istio-cni with ambient.dnsCapture=false, and start these pods again",
                uid,
            )

    async def _put_in_all(self, pods: Iterable[_Pod]) -> None:
        """Each for itself: one's failure is neither another's, nor that of what istio-cni asks for."""
        for pod in pods:
            try:
                await self._put_in(pod)
            except (NodeproxyError, OSError) as error:
                log.error("pod %s can't be put in: %s", pod.add.key, error)

    async def _make_known(self, pod: _Pod) -> None:
        """A workload for who starts: the control plane tells of it when it has an address, and that is after this.

        Only of a namespace in which nobody runs yet: whoever does could give it any address.
        """
        uid, place = pod.spec.uid, self._place
        if self._node.view().workload(uid) is not None and uid not in self._provisional.uids:
            return
        # In this order: who has begun to run by now may have made any of these addresses.
        addresses = await asyncio.to_thread(pod_addresses, pod.fd)
        if await asyncio.to_thread(has_processes, pod.spec.inode):
            return
        workload = Workload(
            uid=uid,
            name=pod.add.name,
            namespace=pod.add.namespace,
            service_account=pod.add.service_account,
            network=place.network,
            protocol=WorkloadProtocol.HBONE,
            trust_domain=place.trust_domain,
            node=place.node,
            cluster=place.cluster,
            canonical_name=pod.add.name,
            canonical_revision="latest",
            workload_name=pod.add.name,
        )
        await self._node.write(self._provisional.admit(workload, addresses))

    async def _served(self, pod: _Pod) -> None:
        """While another agent serves: it is this one's turn soon, or istio-cni is to try again."""
        try:
            async with asyncio.timeout(_SERVING_S):
                await self._active.wait()
        except TimeoutError:
            raise EnrolmentError("an agent that is to take over was told, and has not taken over yet") from None
        async with self._lock:
            if self._pods.get(pod.add.pod_uid) is pod:
                await self._put_in(pod)

    async def _known(self, pod: _Pod) -> None:
        deadline = time.monotonic() + _SERVING_S
        while self._node.view().workload(pod.spec.uid) is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)

    async def _keep(self, request: Keep, snapshot: _Snapshot) -> None:
        snapshot.named.add(request.pod_uid)

    async def _delete(self, request: Delete) -> None:
        async with self._lock:
            await self._take_out([request.pod_uid])

    async def _finish(self, snapshot: _Snapshot) -> None:
        async with self._lock:
            snapshot.whole = self.told = True
            self._delay_s = _AGAIN_S[0]
            if snapshot.turn != self._turn or not self._active.is_set():
                return  # another one follows
            self._looked = True
            await self._enrolment.reconcile()
            await self._on_looked(self._waiting())
            await self._take_out([uid for uid in {*self._pods, *self._kept.cookies} if uid not in snapshot.named])
            here = {pod.spec.uid for pod in self._pods.values()}
            await self._node.write(self._provisional.take_back(self._provisional.uids - here))
            log.info("istio-cni has told of %d pods", len(self._pods))

    async def _take_out(self, pod_uids: list[str]) -> None:
        """These are not to be in; their connections may end on their own."""
        pods = [self._pods.pop(uid) for uid in pod_uids if uid in self._pods]
        others = {pod.spec.uid: other for pod in pods if (other := self._named(pod.spec.uid)) is not None}
        out = [pod.spec.uid for pod in pods if pod.spec.uid not in others]
        try:
            for uid in out:
                self._provisional.forget(uid)
            await self._enrolment.change(dict.fromkeys(out))
            forgotten = self._kept.forget(pod_uids)
            await self._node.keep(forgotten)
            await self._node.write(self._provisional.take_back(out))
            if self._active.is_set():
                await self._put_in_all(others.values())
                if self._looked and len(forgotten) > len(pods):
                    await self._enrolment.release_strangers(self._waiting())
        finally:
            for pod in pods:
                os.close(pod.fd)

    def _waiting(self) -> list[int]:
        """Cookies of namespaces that stay steered, of pods that an agent before had and this one is told to keep."""
        return [cookie for uid, cookie in self._kept.cookies.items() if uid not in self._pods]

    # ── what can be asked ──

    def pending(self) -> list[str]:
        """Why the node is not ready."""
        if not self.told:
            return [f"istio-cni: {self.error or 'it has not told of all pods yet'}"]
        failed = self._enrolment.failed
        uids = dict.fromkeys(pod.spec.uid for pod in self._pods.values())
        return [f"pod {uid}: {failed[uid].error}" for uid in uids if uid in failed]

    def statistics(self) -> ZdsStatistics:
        """For metrics."""
        return ZdsStatistics(connected=self.connected, pods=len(self._pods), requests=dict(self._requests))


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "done"
    return "not_enrolled" if isinstance(error, (NodeproxyError, OSError)) else "internal"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
