"""A node as LabelEnrolment sees it, with an enrolment and a finder that tests tell what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from nodeproxy.agent.enrolment import Enrolment
from nodeproxy.agent.pods.attachments import Attachments
from nodeproxy.agent.pods.labels import LabelEnrolment
from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.pods.roster import Roster, pod_meta
from nodeproxy.agent.pods.standing import Standing
from nodeproxy.agent.sources.change import Change
from nodeproxy.errors import EnrolmentError, StateError
from nodeproxy.linux.kubepods import PodFinder, PodNetns
from nodeproxy.model.cni import CniAdd
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.node_pod import Membership, NodePod
from nodeproxy.model.workload import Workload
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.state.view import View

HERE = "/proc/self/ns/net"  # a network namespace that is there, whoever runs this
INODE = os.stat(HERE).st_ino


@dataclass
class Enrolled:
    spec: PodSpec
    inode: int
    cookie: int = 7
    lacking: tuple[str, ...] = ()
    fresh: ClassVar[bool] = True


class FakeEnrolment:
    """Puts in whatever it is given, unless `error` says no.  stuck: nobody leaves."""

    def __init__(self) -> None:
        self.pods: dict[str, Enrolled] = {}
        self.failed: dict[str, Any] = {}
        self.cared_for: Collection[str] = ()
        self.error = ""
        self.stuck = False
        self.ended: list[str] = []
        self.refreshed: list[str] = []
        self.released_but: list[Collection[int]] = []

    async def change(self, specs: Mapping[str, PodSpec | None], ended: Collection[str] = ()) -> None:
        self.ended += ended
        for uid, spec in specs.items() if not self.stuck else ():
            self.pods.pop(uid, None)
            self.failed.pop(uid, None)
            if spec is not None and self.error:
                self.failed[uid] = labels_failed(spec, self.error)
            elif spec is not None:
                self.pods[uid] = Enrolled(spec, spec.inode)

    async def release_strangers(self, others: Collection[int] = ()) -> None:
        self.released_but.append(others)

    async def refresh(self, uid: str) -> None:
        self.refreshed.append(uid)


def labels_failed(spec: PodSpec, error: str) -> Any:
    from nodeproxy.agent.enrolment import FailedPod

    return FailedPod(spec, error, 0.0)


class FakeFinder:
    """Finds pods whose uid is in `there`: in the test's own namespace."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.asked: list[dict[str, frozenset[str]]] = []

    def find(self, wanted: Mapping[str, frozenset[str]]) -> tuple[dict[str, PodNetns], dict[str, str]]:
        self.asked.append(dict(wanted))
        found = {uid: PodNetns(os.open(HERE, os.O_RDONLY), HERE) for uid in wanted if uid in self.there}
        return found, {uid: "it has no process yet" for uid in wanted if uid not in found}


class FakeEvents:
    """What people are told of pods."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def tell(self, *what: Any) -> None:
        self.told.append(what)


class Bench:
    """Also the node, as LabelEnrolment sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_connected = True
        self.no_certificate = ""
        self.kept_steered: list[Collection[int] | None] = []
        self.enrolment, self.finder = FakeEnrolment(), FakeFinder()
        self.events, self.full_times = FakeEvents(), 0
        self.standing = Standing(0, ends_them=False)
        self.open()

    def open(self) -> None:
        """An agent begins, perhaps another one."""
        self.state = StateWriter(self.path)
        self.reader = self.state.reader()
        self.roster = Roster(self.state)
        self.provisional = Provisional(self.state, self.view)
        self.attachments = Attachments(self.state)
        self.labels = LabelEnrolment(
            self,
            cast(Enrolment, self.enrolment),
            cast(PodFinder, self.finder),
            self.roster,
            self.attachments,
            self.provisional,
            on_looked=self._looked,
        )

    def close(self) -> None:
        self.reader.close()
        self.state.close()

    def restart(self) -> None:
        self.close()
        self.enrolment = FakeEnrolment()
        self.open()

    async def _looked(self, cookies: Collection[int] | None) -> None:
        self.kept_steered.append(cookies)

    def view(self) -> View:
        return self.reader.view()

    async def write(self, change: Change) -> None:
        self._refuse_full()
        await change.write(self.state, {})

    async def keep(self, meta: Meta) -> None:
        self._refuse_full()
        self.state.put_meta(meta)

    def _refuse_full(self) -> None:
        if self.full_times:
            self.full_times -= 1
            raise StateError("no room")

    @contextlib.asynccontextmanager
    async def certificates(self, identities: Collection[str], timeout_s: float) -> AsyncIterator[None]:
        yield

    async def serving(self, uid: str, timeout_s: float) -> None:
        assert self.view().workload(uid) is not None
        if self.no_certificate:
            raise EnrolmentError(self.no_certificate)

    def tell(self, *pods: NodePod, removed: Collection[str] = (), settled: bool = True) -> None:
        meta = dict(pod_meta(pod.key, pod) for pod in pods) | {pod_meta(key, None)[0]: None for key in removed}
        self.state.put_meta({**meta, **(Roster.SETTLED if settled else {})})
        self.roster.pods_written(pods, removed)
        if settled:
            self.roster.settled()


def told(
    name: str = "a",
    membership: Membership = Membership.NAMESPACE_LABEL,
    uid: str = "u",
    addresses: tuple[str, ...] = ("10.0.0.1",),
) -> NodePod:
    workload = Workload(uid=f"K//Pod/ns/{name}", name=name, namespace="ns", addresses=addresses)
    return NodePod(
        namespace="ns", name=name, pod_uid=uid, membership=membership, workload=workload if membership.in_mesh else None
    )


def add(name: str = "a", uid: str = "u", **more: Any) -> CniAdd:
    given = {"container_id": f"c-{uid}", "netns": HERE, "ifname": "eth0", "addresses": ("10.0.0.1",), **more}
    return CniAdd(namespace="ns", name=name, pod_uid=uid, **given)


UID = "K//Pod/ns/a"


Run = Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]
