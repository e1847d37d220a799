"""One agent's life within its event loop: beside an agent that it takes over from, serving, handing over, ending.

Invariant: `active` tasks change what agents of one instance share (pins, pods, the direct path); they run only while this agent
holds the instance.  `passive` ones (source, certificates) are this agent's own: they run from its first moment until its last
connection has ended, for until then policy holds for it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from nodeproxy import __version__
from nodeproxy.agent.admin import Admin, new_token
from nodeproxy.agent.endpoints import Endpoints
from nodeproxy.agent.enrolment import PREDECESSOR
from nodeproxy.agent.handover.giving import Giving
from nodeproxy.agent.handover.taking import Predecessor, own_netns
from nodeproxy.agent.kubelet import KubeletWatch
from nodeproxy.agent.node import Node
from nodeproxy.agent.pods.events import Events
from nodeproxy.agent.pods.standing import Standing
from nodeproxy.agent.run_dir import RunDir
from nodeproxy.app.cni import cni_part
from nodeproxy.app.source import follow, source_name
from nodeproxy.config import EnrolmentMode, RunConfig, StandingConnections
from nodeproxy.errors import HandoverError, KernelError
from nodeproxy.identity.certificate import CertificateAuthority
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.kernel.steering import Steering
from nodeproxy.linux.kubepods import PodFinder
from nodeproxy.model.handover import Leaving, Said
from nodeproxy.model.messages import PodRemoved

log = logging.getLogger("nodeproxy")

_POLL_S = 0.05
# The source and the CA get so long to answer an agent that takes over; then it serves by what the one before knew.
_PREPARE_S = 5.0
# SIGTERM while another agent prepares to take over: it gets so long before connections are refused.
_SUCCESSOR_S = 15.0
# TCP ports that the agent before has in the same network namespace: it lets go of them when it has handed over.
_PORTS_S = 10.0
# An agent that was taken over from and waits: how often it looks whether somebody serves, and how long a dead one's place may be
# empty, so that a supervisor which starts that one again is not raced.
_LOOK_S = 0.5
_EMPTY_S = 2.0


class Serving:
    """`run` serves until it is to end.  It is also what `Giving` hands over."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        steering: Steering,
        authority: CertificateAuthority,
        kept: KeptCertificates | None,
        events: Events,
        *,
        cgroup_root: Path,
        own_cgroup_id: int,
        predecessor: Predecessor | None,
    ) -> None:
        """predecessor: the agent to take over from, which serves still; None: this one holds the instance."""
        self.own_cgroup_id = own_cgroup_id
        self.version = __version__
        self._config = config
        self._run_dir = run_dir
        self._steering = steering
        self._authority = authority
        self._cgroup_root = cgroup_root
        self._predecessor = predecessor
        self._store = run_dir.store if predecessor is None else run_dir.path / predecessor.offer.store
        self._kubelet = KubeletWatch(steering.probes, config.kubelet_cgroup, cgroup_root)
        self._node = Node(
            store=self._store,
            steering=steering,
            authority=authority,
            workers=config.workers,
            log_json=config.log_format == "json",
            same_node=config.same_node,
            standing=Standing(own_cgroup_id, ends_them=config.standing_connections is StandingConnections.DESTROY),
            version=__version__,
            source=source_name(config),
            kept=kept,
            on_demand=config.xds_on_demand,
            by_labels=PodFinder(config.cgroup_root) if config.enrolment is EnrolmentMode.LABELS else None,
            by_istio_cni=config.enrolment is EnrolmentMode.ZDS,
            cluster_domain=config.cluster_domain,
            kubelet=self._kubelet,
            events=events,
            held_back=predecessor is not None,
        )
        self._cni = cni_part(config, self._node)
        if config.enrolment is EnrolmentMode.ZDS:
            from nodeproxy.app.istio_cni import hear_istio_cni

            hear_istio_cni(config, self._node, active=predecessor is None)
        identification = {"version": __version__, "instance": config.instance, "run_dir": str(config.run_dir)}
        self._stopping = asyncio.Event()
        self._token = new_token()
        self._admin = Admin(self._node, identification=identification, name=config.node, stop=self._stopping.set)
        self._giving = Giving(self, run_dir)
        self._ports, self._paths = Endpoints(self._ports_come), Endpoints()
        self._ports_until = 0.0 if predecessor is None else float("inf")
        self._passive: list[asyncio.Task[Any]] = []
        self._active: list[asyncio.Task[Any]] = []
        self._hearing: asyncio.Task[None] | None = None  # of the agent before, until it has ended
        self._changed = asyncio.Event()  # which tasks run
        self._ending = asyncio.Event()

    async def run(self) -> bool:
        """Serve.  True: nobody serves this node any more, and this process is to start over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        ports = self._task(self._serve_ports(), "ports")
        try:
            if self._predecessor is None:
                await ports
                await self._serve_paths()
            await self._node.start()
            self._start_passive()
            if self._predecessor is not None and not await self._unless_ended(self._take_over(self._predecessor)):
                return False
            self._start_active()
            if self._cni is not None:
                await self._cni.start()
            self._giving.listen()
            await ports
            return await self._serve()
        finally:
            await _cancel(ports, *self._active, *self._passive, *filter(None, [self._hearing]))
            if self._cni is not None:
                await self._cni.stop()
            await self._paths.stop()
            await self._ports.stop()
            await self._authority.close()

    # ── its parts ──

    def _start_passive(self) -> None:
        node = self._node
        self._passive = [
            self._task(node.identities.manager.run(), "certificates"),
            self._task(node.events.run(), "events"),
            self._task(follow(self._config, node, self._store), "source"),
            self._task(node.standing.run(), "standing connections"),
        ]
        if node.zds is not None:
            self._passive.append(self._task(node.zds.run(), "istio-cni"))
        if node.on_demand is not None:
            self._passive.append(self._task(node.on_demand.run(), "on demand"))

    def _start_active(self) -> None:
        """What changes what agents share: none of it runs before this, or after `pause`."""
        node = self._node
        self._active = [
            self._task(node.enrolment.watch(), "pods"),
            self._task(node.direct.run(), "direct path"),
            self._task(self._kubelet.run(), "kubelet"),
            self._task(node.addresses.run(), "addresses"),
            self._task(_note_ready(node), "readiness"),
        ]
        if node.labels is not None:
            self._active.append(self._task(node.labels.run(), "pods by label"))
        if self._cni is not None:
            self._active.append(self._task(self._cni.run(), "cni"))
        self._changed.set()

    async def _stop_active(self) -> None:
        tasks, self._active = self._active, []
        self._changed.set()
        await _cancel(*tasks)

    def _task(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def _serve_ports(self) -> None:
        config = self._config
        if config.metrics is not None:
            await self._ports.serve_metrics(self._node, config.metrics)
        if config.ready is not None:
            await self._ports.serve_ready(lambda: [] if self._giving.given.is_set() else self._node.pending(), config.ready)
        if config.admin is not None:
            await self._ports.serve_admin(self._admin, config.admin, self._token)

    def _ports_come(self) -> bool:
        return asyncio.get_running_loop().time() < self._ports_until

    async def _serve_paths(self) -> None:
        """What stands in the run directory, in place of what the agent before has there."""
        await self._paths.serve_admin_socket(self._admin, self._run_dir.path, self._token)

    # ── beginning beside another one ──

    async def _take_over(self, predecessor: Predecessor) -> None:
        """Prepare, then serve in its place.  Whatever ends this in between leaves that one serving, or the pods closed."""
        node = self._node
        predecessor.start()
        node.identities.expect(predecessor.identities)
        await self._prepared()
        log.info("prepared: takes over from process %d, version %s", predecessor.offer.pid, predecessor.offer.version)
        async with predecessor.in_time():
            await self._take(predecessor)
        self._ports_until = asyncio.get_running_loop().time() + _PORTS_S
        self._hearing = self._task(self._hear(predecessor), "the agent before")
        log.info("took over %d pods", len(node.enrolment.pods))

    async def _take(self, predecessor: Predecessor) -> None:
        """Have what both share, and serve by it."""
        node = self._node
        taken = await predecessor.take()
        if taken is None:
            log.warning("process %d has ended meanwhile", predecessor.offer.pid)
            if not self._run_dir.hold(self._store):
                raise HandoverError(f"process {self._run_dir.holder} was faster: start this one again")
        else:
            self._run_dir.take(taken.run_dir_lock, self._store)
            node.predecessor = predecessor
        pins_lock = taken.pins_lock if taken is not None and taken.pins_lock >= 0 else await self._free_pins()
        self._steering.take(pins_lock, own_cgroup_id=self.own_cgroup_id, workers=self._config.workers)
        for leaving, netns_fd in taken.leaving if taken is not None else ():
            node.enrolment.inherit_leaving(leaving.spec, leaving.cookie, netns_fd)
        await node.take_over({said.uid: said.spec for said in taken.said} if taken is not None else None)
        await self._kubelet.look()
        self._steering.attach(self._cgroup_root)
        await self._serve_paths()
        predecessor.done()

    async def _prepared(self) -> None:
        """All is there that can be had beforehand; without knowing the pods there is no going on, without the rest there is."""
        node, loop = self._node, asyncio.get_running_loop()
        deadline = loop.time() + _PREPARE_S
        while not node.knows_its_pods or (
            (not node.source_answered or node.identities.expected_missing()) and loop.time() < deadline
        ):
            await asyncio.sleep(_POLL_S)

    async def _free_pins(self) -> int:
        """An agent that was killed a moment ago may not be dead yet."""
        deadline = asyncio.get_running_loop().time() + _SUCCESSOR_S
        while True:
            try:
                return self._steering.take_lock()
            except KernelError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    async def _hear(self, predecessor: Predecessor) -> None:
        """Until the agent before has ended, which leaves nothing behind that is needed."""
        enrolment = self._node.enrolment
        await predecessor.hear(lambda cookie: enrolment.released(PREDECESSOR, cookie))
        predecessor.close()
        self._node.predecessor = None
        enrolment.ended(PREDECESSOR)
        log.info("the agent before, process %d, has ended", predecessor.offer.pid)
        if self._run_dir.held and self._steering.lock >= 0:
            self._steering.forget_others()
            self._run_dir.remove_other_stores()

    async def _unless_ended(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do this; False: SIGTERM came first.  Raises what ended a passive task."""
        task, ending = self._task(work, "handover"), self._task(self._stopping.wait(), "signal")
        try:
            done, _ = await asyncio.wait([task, ending, *self._passive], return_when=asyncio.FIRST_COMPLETED)
            for each in done - {ending}:
                each.result()
            return task in done
        finally:
            await _cancel(task, ending)

    # ── serving, and the end ──

    async def _serve(self) -> bool:
        stopping = self._task(self._stopping.wait(), "signal")
        given = self._task(self._giving.given.wait(), "handover")
        changed = self._task(self._changed.wait(), "changes")
        try:
            while True:
                watched = [*self._passive, *self._active]
                await asyncio.wait([*watched, stopping, given, changed], return_when=asyncio.FIRST_COMPLETED)
                if given.done():
                    return await self._end_as_predecessor()
                failed = [task for task in watched if task.done() and not task.cancelled() and task.exception() is not None]
                if stopping.done() and not failed and not self._giving.settled.is_set():
                    log.info("another agent prepares to take over: it is waited for")
                    await asyncio.wait([given, self._settled()], timeout=_SUCCESSOR_S, return_when=asyncio.FIRST_COMPLETED)
                    if given.done():
                        return await self._end_as_predecessor()
                if failed or stopping.done():
                    await self._end()
                    for task in failed:
                        task.result()
                    return False
                if changed.done():
                    self._changed.clear()
                    changed = self._task(self._changed.wait(), "changes")
        finally:
            await _cancel(stopping, given, changed)

    async def _end(self) -> None:
        drain_s = self._config.drain_s
        log.info("ending: connections get %d s; pods stay closed until the next start or `nodeproxy uninstall`", drain_s)
        self._ending.set()
        if self._cni is not None:
            await self._cni.stop()
        await self._stop_active()
        await self._node.drain(drain_s)
        await self._giving.close()
        await _cancel(*self._passive)
        await self._node.close()

    async def _end_as_predecessor(self) -> bool:
        """Another agent serves: let connections end, and whoever supervises this process end it."""
        successor, config = self._giving.successor, self._config
        pid, netns = (successor.pid, successor.netns) if successor is not None else (0, 0)
        log.info("process %d has taken over; connections that stand here get %d s", pid, config.drain_s)
        await self._paths.stop()
        if netns == own_netns():
            await self._ports.stop()
        drain = self._task(self._node.drain(config.drain_s, passed_on=True), "drain")
        orphaned = self._task(self._orphaned() if config.wait_after_handover else asyncio.Event().wait(), "successor")
        await asyncio.wait([drain, orphaned], return_when=asyncio.FIRST_COMPLETED)
        if self._hearing is not None:  # its connections have the same rules in pods' namespaces as this one's
            await asyncio.wait([self._hearing, orphaned], timeout=config.drain_s, return_when=asyncio.FIRST_COMPLETED)
        await _cancel(drain, *self._passive)
        await self._giving.close()
        again = False
        if config.wait_after_handover:
            log.info("drained; waits for SIGTERM, or until nobody serves this node")
            stopping = self._task(self._stopping.wait(), "signal")
            await asyncio.wait([stopping, orphaned], return_when=asyncio.FIRST_COMPLETED)
            again = orphaned.done() and not stopping.done()
            await _cancel(stopping)
        await _cancel(orphaned)
        await self._node.close()
        return again

    async def _orphaned(self) -> None:
        """Until the successor is gone and nobody has come in its place; then this process holds the run directory."""
        empty_s = 0.0
        while empty_s < _EMPTY_S or not self._run_dir.hold():
            await asyncio.sleep(_LOOK_S)
            empty_s = empty_s + _LOOK_S if self._run_dir.is_free() else 0.0

    def _settled(self) -> asyncio.Task[Any]:
        return self._task(self._giving.settled.wait(), "handover settled")

    # ── what `Giving` asks for ──

    async def copy_state(self, directory: Path) -> list[str]:
        """See `Giver`."""
        return await self._node.copy_state(directory)

    async def pause(self) -> None:
        """See `Giver`."""
        if self._cni is not None:
            await self._cni.pause()
        await self._stop_active()
        if self._node.zds is not None:
            await self._node.zds.pause()
        await self._node.let_go(self._giving.released)

    async def resume(self) -> None:
        """See `Giver`."""
        self._run_dir.sign()
        if self._ending.is_set():
            return
        try:
            await self._node.hold_again(self.own_cgroup_id, self._cgroup_root)
            if self._node.zds is not None:
                self._node.zds.resume()
            await self._paths.stop()
            await self._serve_paths()
        except Exception:
            log.exception("after a handover that failed this agent can't serve on: it ends, so that another start mends it")
            self._stopping.set()
            return
        if self._ending.is_set():  # SIGTERM's patience ran out meanwhile
            return
        self._start_active()
        if self._cni is not None:
            self._cni.resume()
        self._giving.listen()

    def said(self) -> list[Said]:
        """See `Giver`."""
        return [Said(uid, spec) for uid, spec in self._node.enrolment.commands.items()]

    def leaving(self) -> list[tuple[Leaving, int]]:
        """See `Giver`."""
        return [(Leaving(pod.spec, pod.cookie), pod.netns_fd) for pod in self._node.enrolment.leaving()]

    def locks(self) -> tuple[int, ...]:
        """See `Giver`."""
        return self._run_dir.lock, self._steering.lock

    def let_go(self) -> None:
        """See `Giver`."""
        self._run_dir.let_go()
        self._steering.let_go()

    def removed(self, message: PodRemoved) -> None:
        """See `Giver`."""
        self._node.enrolment.removed(message)


async def _note_ready(node: Node) -> None:
    while node.pending():
        await asyncio.sleep(_POLL_S)
    log.info("ready: %d pods in the mesh", len(node.enrolment.pods))
    await asyncio.Event().wait()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
