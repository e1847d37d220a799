from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.pods.roster import Roster, namespace_meta, pod_meta
from nodeproxy.model.node_pod import Membership, MeshNamespace, NodePod
from nodeproxy.model.workload import Workload
from nodeproxy.state.store import StateWriter


def told(name: str, uid: str = "u", membership: Membership = Membership.UNLABELLED) -> NodePod:
    workload = Workload(uid=f"Kubernetes//Pod/ns/{name}", name=name, namespace="ns") if membership.in_mesh else None
    return NodePod(namespace="ns", name=name, pod_uid=uid, membership=membership, workload=workload)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateWriter]:
    made = StateWriter(tmp_path / "s")
    yield made
    made.close()


def test_it_knows_nothing_before_it_is_told(store: StateWriter) -> None:
    roster = Roster(store)
    assert (roster.received, roster.pods(), roster.namespaces()) == (False, [], frozenset())


def test_what_was_written_is_there_for_the_next_agent(store: StateWriter) -> None:
    pod = told("a", membership=Membership.POD_LABEL)
    namespace = MeshNamespace(name="ns", labelled=False)
    store.put_meta(dict([pod_meta("ns/a", pod), namespace_meta("ns", namespace)]) | Roster.SETTLED)
    roster = Roster(store)
    assert (roster.received, roster.pod("ns", "a"), roster.namespaces()) == (True, pod, frozenset({"ns"}))
    store.put_meta(dict([pod_meta("ns/a", None), namespace_meta("ns", None)]))
    roster = Roster(store)
    assert (roster.received, roster.pods(), roster.namespaces()) == (True, [], frozenset())


def test_whoever_listens_is_told_what_changed_and_only_that(store: StateWriter) -> None:
    roster = Roster(store)
    heard: list[frozenset[str]] = []
    roster.listen(heard.append)
    roster.pods_written([told("a"), told("b")], [])
    roster.pods_written([told("a"), told("b", membership=Membership.OPTED_OUT)], ["ns/c"])
    roster.pods_written([], ["ns/a"])
    roster.namespaces_written([MeshNamespace(name="ns", labelled=True)], [])
    roster.namespaces_written([MeshNamespace(name="ns", labelled=True)], ["other"])
    roster.settled()
    roster.settled()
    assert heard == [{"ns/a", "ns/b"}, {"ns/b"}, {"ns/a"}, frozenset(), frozenset()]
    assert [pod.key for pod in roster.pods()] == ["ns/b"]


def test_a_pod_is_waited_for_by_its_uid(store: StateWriter) -> None:
    async def scenario() -> None:
        roster = Roster(store)
        roster.pods_written([told("a", "before")], [])
        waiting = asyncio.ensure_future(roster.wait("ns", "a", "now", 5))
        also = asyncio.ensure_future(roster.wait("ns", "a", "now", 5))
        await asyncio.sleep(0)
        roster.pods_written([], ["ns/a"])
        await asyncio.sleep(0)
        assert not waiting.done()
        roster.pods_written([told("a", "now")], [])
        assert await waiting == await also == told("a", "now")
        assert await roster.wait("ns", "a", "now", 5) == told("a", "now")
        assert await roster.wait("ns", "a", "before", 0) is None
        assert await roster.wait("ns", "b", "x", 0.001) is None
        assert not roster._waiting

    asyncio.run(scenario())
