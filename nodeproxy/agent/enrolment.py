"""Which pods of this node are in the mesh, and putting them in and out.

Two wishes make the set: what the source says (`want`, or `change` of some pods), and what an administrator says by command
(`enrol`, `leave`), which wins until the source says something new about that pod.  The node is brought there pod by pod, many of
them prepared at a time.
Order, so that no connection is lost or passes unseen: listeners, then the pod's sk_lookup link, then its netns cookie; out in
reverse. A pod that can't be enrolled is tried again, and is a named error in `status` until then.

When another agent takes over (`freeze`), nothing is put in or out here any more.  What it takes out is taken from this agent's
workers, too (`removed`), and it hears when they are done: to it this agent is a worker more, in the slot `PREDECESSOR`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from nodeproxy.agent.in_thread import in_thread
from nodeproxy.agent.pod_namespace import EnrolledPod as EnrolledPod
from nodeproxy.agent.pod_namespace import close_all, cookie_of, is_there, leads_to, prepare_all, tidy
from nodeproxy.errors import EnrolmentError, NodeproxyError
from nodeproxy.kernel.abi import Role
from nodeproxy.kernel.steering import PodSteering, Steering
from nodeproxy.linux.addresses import pod_addresses
from nodeproxy.linux.netns import netns_inode
from nodeproxy.linux.sockets import open_listeners
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.messages import PodAdded, PodRemoved

log = logging.getLogger(__name__)

# How often pods are looked at for a namespace that has gone or been replaced, and failed ones are tried again.
_WATCH_INTERVAL_S = 1.0
_RETRY_S = 1.0  # until then its traffic is plain
# So many are prepared in a thread and then put in before others have their turn: 10 ms.
_AT_ONCE = 16
# Of a pod.  Each has a listener for each worker and role in the kernel's map, which all pods of the node share.
MAX_ADDRESSES = 16

# The workers of the agent that this one has taken over from, all together.
PREDECESSOR = -1

Tell = Callable[[int, msgspec.Struct, tuple[int, ...]], bool]


@dataclass(slots=True)
class FailedPod:
    """A pod that should be in and is not; or should be out, or in another namespace, and can't be taken out.

    abort: whether its connections must end when it is taken out.
    """

    spec: PodSpec
    error: str
    retry_at: float
    abort: bool = False


@dataclass(slots=True)
class _Leaving:
    """A pod that has left while connections of it go on; `slots`: the workers that have not said yet that theirs have ended."""

    pod: EnrolledPod
    slots: set[int]


class Enrolment:
    """`tell(slot, message, fds)` reaches a worker; `on_change(uid)` is called after a pod came or went.

    `is_foreign(uid, address)`: whether the state gives the address to another workload than `uid`.
    `before_enter(cookie)`: the pod of that namespace is about to be steered.
    `before_leave(cookie, abort)`: a pod is about to leave; `abort`: its connections must end.
    """

    def __init__(
        self,
        steering: Steering,
        slots: int,
        tell: Tell,
        on_change: Callable[[str], None],
        is_foreign: Callable[[str, str], bool],
        before_enter: Callable[[int], None],
        before_leave: Callable[[int, bool], None],
    ) -> None:
        self.pods: dict[str, EnrolledPod] = {}
        self.cared_for: Collection[str] = ()  # pods of which somebody else notices when their namespaces have gone
        self.failed: dict[str, FailedPod] = {}
        self._steering = steering
        self._adopted = set(steering.enrolled_cookies())  # that an agent before this one has steered
        self._slots = slots
        self._tell = tell
        self._on_change = on_change
        self._is_foreign = is_foreign
        self._before_enter = before_enter
        self._before_leave = before_leave
        self._wanted: dict[str, PodSpec] = {}
        self._by_command: dict[str, PodSpec | None] = {}
        self._by_cookie: dict[int, str] = {}  # netns cookie → uid of the enrolled pod
        self._owners: dict[str, str] = {}  # address → uid of the enrolled pod
        self._leaving: dict[int, _Leaving] = {}  # by netns cookie
        self._tidying: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._successor: Callable[[int], None] | None = None  # told of namespaces that are not needed; None: there is none

    # ── wishes ──

    async def want(self, specs: tuple[PodSpec, ...]) -> None:
        """The source's pods of this node.  Where it says something new about a pod, a former command about it is over."""
        wanted = {spec.uid: spec for spec in specs}
        for uid in list(self._by_command):
            if self._wanted.get(uid) != wanted.get(uid) and self._wanted:
                del self._by_command[uid]
        self._wanted = wanted
        await self.reconcile()

    async def change(self, specs: Mapping[str, PodSpec | None], ended: Collection[str] = ()) -> None:
        """What the source says new of some pods; None: it is not to be in.  ended: those whose connections must end."""
        for uid, spec in specs.items():
            if self._wanted.get(uid) != spec:
                self._by_command.pop(uid, None)
            if spec is None:
                self._wanted.pop(uid, None)
            else:
                self._wanted[uid] = spec
        await self._reconcile(specs, ended)

    async def enrol(self, spec: PodSpec) -> None:
        """By command.  Raises EnrolmentError when it can't be done; then nothing is remembered."""
        async with self._lock:
            self._refuse_frozen()
            if (present := self.pods.get(spec.uid)) is not None and present.spec != spec:
                self._remove(present, abort=False)
            if spec.uid not in self.pods:
                await self._add(spec)
            self._by_command[spec.uid] = spec

    async def leave(self, uid: str) -> bool:
        """By command.  False: it was not in."""
        async with self._lock:
            self._refuse_frozen()
            self._by_command[uid] = None
            self.failed.pop(uid, None)
            pod = self.pods.get(uid)
            if pod is not None:
                self._remove(pod, abort=False)
            return pod is not None

    @property
    def commands(self) -> dict[str, PodSpec | None]:
        """What was said by command: uid → pod, or None for "stay out".  To be kept over a restart."""
        return dict(self._by_command)

    def target_uids(self) -> list[str]:
        """The pods that are to be in, as far as is known yet."""
        return list(self._target())

    def restore(self, commands: dict[str, PodSpec | None]) -> None:
        """What was said by command to the agent before this one."""
        self._by_command = dict(commands)

    # ── bringing the node there ──

    async def reconcile(self) -> None:
        """Enrol what should be in, release what should not; one pod's failure is its own."""
        await self._reconcile(dict.fromkeys([*self.pods, *self.failed, *self._target()]))

    async def _reconcile(self, uids: Iterable[str], ended: Collection[str] = ()) -> None:
        to_add = []
        async with self._lock:
            if self._successor is not None:
                return
            target = self._target()
            for uid in uids:
                spec = target.get(uid)
                pod = self.pods.get(uid)
                if pod is not None and spec is not None and (pod.spec == spec or pod.inode == spec.inode):
                    pod.spec = spec  # perhaps another way to the same namespace
                    if self.failed.pop(uid, None) is not None:
                        self._stay(pod)
                elif pod is not None and not self._try_remove(pod, spec, abort=uid in ended):
                    continue  # it is tried again
                elif spec is None:
                    self.failed.pop(uid, None)
                else:
                    to_add.append(uid)
        for start in range(0, len(to_add), _AT_ONCE):
            async with self._lock:
                if self._successor is None:
                    target = self._target()
                    await self._try_all([target[uid] for uid in to_add[start : start + _AT_ONCE] if uid in target])

    async def refresh(self, uid: str) -> None:
        """The pod may have other addresses by now than when it was enrolled.  Raises NodeproxyError."""
        async with self._lock:
            pod = self.pods.get(uid)
            if pod is None or self._successor is not None:
                return
            present = await asyncio.to_thread(pod_addresses, pod.netns_fd)
            before = pod.addresses
            self._sort_addresses(pod, present)
            if pod.addresses == before:
                return
            for address in before:
                self._owners.pop(address, None)
            self._owners.update(dict.fromkeys(pod.addresses, uid))
            self._before_enter(pod.cookie)
            self._steer(pod)
            log.info("pod %s has other addresses: %s", uid, ", ".join(pod.addresses))
            self._on_change(uid)

    async def release_strangers(self, others: Collection[int] = ()) -> None:
        """Steering that a former agent left pinned for pods that are no longer wanted.

        A pod that is wanted and could not be enrolled keeps its own: without a listener it is closed, without steering it would
        be open.  others: cookies of more namespaces that keep theirs.
        """
        kept = {pod.cookie for pod in self.pods.values()}.union(others)
        kept |= {cookie for failed in self.failed.values() if (cookie := cookie_of(failed.spec)) is not None}
        for cookie in self._steering.enrolled_cookies() - kept:
            self._steering.leave(cookie)
            self._adopted.discard(cookie)

    async def watch(self) -> None:
        """Until cancelled: notice namespaces that have gone, try again what failed."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            for pod in list(self.pods.values()):
                if pod.spec.uid not in self.cared_for and not is_there(pod):
                    async with self._lock:
                        if self.pods.get(pod.spec.uid) is not pod:  # somebody else removed it while this waited
                            continue
                        log.info("pod %s: its network namespace %s has gone; it is forgotten", pod.spec.uid, pod.spec.netns)
                        if self._try_remove(pod, pod.spec, abort=True):
                            self._fail(pod.spec, f"its network namespace {pod.spec.netns} has gone or been replaced")
            now = time.monotonic()
            for failed in list(self.failed.values()):
                if failed.retry_at <= now:
                    await self._reconcile([failed.spec.uid], [failed.spec.uid] if failed.abort else [])

    def released(self, slot: int, cookie: int) -> None:
        """The worker of `slot` has no connection any more that needs what was set up in that namespace."""
        if cookie in self._leaving:
            self._leaving[cookie].slots.discard(slot)
            self._finish_leaving(cookie)

    def attach_worker(self, slot: int) -> None:
        """A new worker took `slot`: give it listeners in every pod; what the one before held is over."""
        self.ended(slot)
        if self._successor is not None:
            return
        for pod in self.pods.values():
            try:
                self._listen(pod, slot)
            except (NodeproxyError, OSError) as error:
                log.error("pod %s: worker %d gets no listeners: %s", pod.spec.uid, slot, error)

    def ended(self, slot: int) -> None:
        """What held that slot holds nothing any more."""
        for cookie in list(self._leaving):
            self.released(slot, cookie)

    # ── handing over ──

    async def freeze(self, on_released: Callable[[int], None]) -> None:
        """Put nothing in or out from now on; `on_released(cookie)`: nothing here needs the namespace of a pod that has left."""
        async with self._lock:
            self._successor = on_released

    async def thaw(self) -> None:
        """There is no successor after all: what this agent has is put in once more, then whatever was wished meanwhile."""
        async with self._lock:
            self._successor = None
            for pod in list(self.pods.values()):
                try:
                    self._steer(pod)
                except (NodeproxyError, OSError) as error:
                    log.error("pod %s can't be put in once more, and is closed: %s", pod.spec.uid, error)
        await self.reconcile()

    def leaving(self) -> list[EnrolledPod]:
        """Pods that have left while connections of them go on."""
        return [each.pod for each in self._leaving.values()]

    def inherit_leaving(self, spec: PodSpec, cookie: int, netns_fd: int) -> None:
        """A pod has left while the agent before was the one to take it out, and connections of it go on there."""
        pod = EnrolledPod(spec, netns_fd, netns_inode(netns_fd), cookie, (), time.time())
        self._leaving[cookie] = _Leaving(pod, {PREDECESSOR})

    def removed(self, message: PodRemoved) -> None:
        """The successor has taken a pod out."""
        pod = self.pods.get(message.uid)
        if pod is None or pod.cookie != message.cookie:
            if self._successor is not None and message.cookie not in self._leaving:
                self._successor(message.cookie)
            return
        self._forget(pod)
        everybody = (*range(self._slots), PREDECESSOR)
        self._leaving[pod.cookie] = _Leaving(pod, {slot for slot in everybody if self._tell(slot, message, ())})
        self._finish_leaving(pod.cookie)

    def _refuse_frozen(self) -> None:
        if self._successor is not None:
            raise EnrolmentError("another agent is taking over from this one: say it again in a moment")

    # ── inside ──

    def _target(self) -> dict[str, PodSpec]:
        target = dict(self._wanted)
        for uid, spec in self._by_command.items():
            if spec is None:
                target.pop(uid, None)
            else:
                target[uid] = spec
        return target

    async def _try_all(self, specs: list[PodSpec]) -> None:
        specs = [spec for spec in specs if spec.uid not in self.pods]
        for spec, made in zip(specs, await in_thread(partial(prepare_all, specs), close_all), strict=True):
            try:
                if not isinstance(made, EnrolledPod):
                    raise made
                self._forget_ended(made)
                self._enter(made)
            except (NodeproxyError, OSError) as error:
                if spec.uid in self.cared_for and not leads_to(spec):
                    log.info("pod %s is not where it was any more: %s", spec.uid, error)
                elif spec.uid not in self.failed or self.failed[spec.uid].error != str(error):
                    log.error("pod %s can't be enrolled and its traffic is NOT in the mesh: %s", spec.uid, error)
                self._fail(spec, str(error))

    def _try_remove(self, pod: EnrolledPod, spec: PodSpec | None, abort: bool) -> bool:
        """Whether it is out.  spec: where it is to be instead, if anywhere."""
        uid = pod.spec.uid
        try:
            self._remove(pod, abort)
        except (NodeproxyError, OSError) as error:
            if uid not in self.failed or self.failed[uid].error != str(error):
                log.error("pod %s can't be released and stays in the mesh for now: %s", uid, error)
            self._fail(spec or pod.spec, str(error), abort)
            return False
        return True

    def _fail(self, spec: PodSpec, error: str, abort: bool = False) -> None:
        self.failed[spec.uid] = FailedPod(spec, error, time.monotonic() + _RETRY_S, abort)

    async def _add(self, spec: PodSpec) -> None:
        (made,) = await in_thread(partial(prepare_all, [spec]), close_all)
        if not isinstance(made, EnrolledPod):
            raise made
        self._enter(made)

    def _enter(self, pod: EnrolledPod) -> None:
        """Steer a pod that is prepared; its descriptor is closed if that fails."""
        spec = pod.spec
        before = self._leaving.pop(pod.cookie, None)
        if before is not None:  # back before it was quite gone: what is set up there stays
            os.close(before.pod.netns_fd)
        try:
            if (other := self._by_cookie.get(pod.cookie)) is not None:
                raise EnrolmentError(f"{spec.netns} is the network namespace of {other}, which is enrolled already")
            self._sort_addresses(pod, pod.addresses)
            for slot in range(self._slots):
                self._listen(pod, slot)
            self._before_enter(pod.cookie)
            self._steering.enrol(PodSteering(pod.netns_fd, pod.cookie, pod.addresses))
            pod.fresh = pod.cookie not in self._adopted and before is None
        except BaseException:
            for slot in range(self._slots):
                self._tell(slot, PodRemoved(spec.uid, pod.cookie, abort=True), ())
            os.close(pod.netns_fd)
            raise
        self.pods[spec.uid] = pod
        self._by_cookie[pod.cookie] = spec.uid
        self._owners.update(dict.fromkeys(pod.addresses, spec.uid))
        self.failed.pop(spec.uid, None)
        log.info("pod %s is in the mesh: %s, %s", spec.uid, spec.netns, ", ".join(pod.addresses))
        self._on_change(spec.uid)

    def _steer(self, pod: EnrolledPod) -> None:
        """Workers listen there, and what the pod sends comes to them, be it so already or not."""
        for slot in range(self._slots):
            self._listen(pod, slot)
        self._steering.enrol(PodSteering(pod.netns_fd, pod.cookie, pod.addresses))

    def _stay(self, pod: EnrolledPod) -> None:
        """It could be taken out in part, and is to be in after all."""
        try:
            self._before_enter(pod.cookie)
            self._steer(pod)
        except (NodeproxyError, OSError) as error:
            log.error("pod %s can't be put in once more, and is tried again: %s", pod.spec.uid, error)
            self._fail(pod.spec, str(error))
        else:
            self._on_change(pod.spec.uid)

    def _forget_ended(self, pod: EnrolledPod) -> None:
        """Whoever had an address of this pod's before it, and is not there any more, must not keep it from it."""
        for address in pod.addresses:
            owner = self.pods.get(self._owners.get(address, ""))
            if owner is not None and owner.spec.uid != pod.spec.uid and not is_there(owner):
                self._try_remove(owner, owner.spec, abort=True)

    def _sort_addresses(self, pod: EnrolledPod, present: tuple[str, ...]) -> None:
        """Give it those of the addresses in its namespace that are not somebody else's.

        A pod can give itself whatever address it likes, and must neither get another's connections, nor keep it out, nor stay
        out of the mesh by it.  Without any address that is its own it is in, and can't connect.
        """
        uid = pod.spec.uid
        foreign = [each for each in present if self._owners.get(each, uid) != uid or self._is_foreign(uid, each)]
        if foreign and tuple(foreign) != pod.lacking:
            log.warning("pod %s has addresses of other workloads, which it does not get: %s", uid, ", ".join(foreign))
        own = [address for address in present if address not in foreign]
        own.sort(key=lambda address: address not in pod.addresses)  # what it has stays, in its order
        if len(own) > MAX_ADDRESSES and pod.addresses != tuple(own[:MAX_ADDRESSES]):
            log.warning("pod %s has %d addresses, which is too many: only the first %d are served", uid, len(own), MAX_ADDRESSES)
        pod.addresses = tuple(own[:MAX_ADDRESSES])
        pod.lacking = tuple(foreign)

    def _listen(self, pod: EnrolledPod, slot: int) -> None:
        listeners = open_listeners(pod.netns_fd)
        try:
            fds = tuple(sock.fileno() for sock in listeners)
            if not self._tell(slot, PodAdded(pod.spec.uid, pod.cookie, pod.addresses), (pod.netns_fd, *fds)):
                return  # no worker is there; `attach_worker` comes when one is
            for address in pod.addresses:
                for role in Role:
                    self._steering.set_listener(address, role, slot, fds[role])
        finally:
            # The worker's copies are the ones that count: when it dies, so do its listeners, and the kernel passes that slot
            # over.
            for sock in listeners:
                sock.close()

    def _remove(self, pod: EnrolledPod, abort: bool) -> None:
        uid = pod.spec.uid
        self._before_leave(pod.cookie, abort)
        self._steering.leave(pod.cookie)
        self._adopted.discard(pod.cookie)
        removed = PodRemoved(uid, pod.cookie, abort)
        waiting = {slot for slot in (*range(self._slots), PREDECESSOR) if self._tell(slot, removed, ())}
        self._forget(pod)
        if abort:
            os.close(pod.netns_fd)
        else:
            self._leaving[pod.cookie] = _Leaving(pod, waiting)
            self._finish_leaving(pod.cookie)

    def _forget(self, pod: EnrolledPod) -> None:
        uid = pod.spec.uid
        del self.pods[uid]
        del self._by_cookie[pod.cookie]
        for address in pod.addresses:
            self._owners.pop(address, None)  # it may have been on two interfaces
        log.info("pod %s has left the mesh", uid)
        self._on_change(uid)

    def _finish_leaving(self, cookie: int) -> None:
        leaving = self._leaving.get(cookie)
        if leaving is None or leaving.slots:
            return
        del self._leaving[cookie]
        if self._successor is not None:
            os.close(leaving.pod.netns_fd)
            self._successor(cookie)
            return
        task = asyncio.get_running_loop().create_task(self._tidy_later(leaving.pod))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _tidy_later(self, pod: EnrolledPod) -> None:
        """When nobody puts it in again at this moment, and nobody has: what is set up there would be missing."""
        async with self._lock:
            if pod.cookie in self._by_cookie or pod.cookie in self._leaving or self._successor is not None:
                os.close(pod.netns_fd)
            else:
                await asyncio.to_thread(tidy, pod)
