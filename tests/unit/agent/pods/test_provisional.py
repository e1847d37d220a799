from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.sources.xds_apply import XdsChange
from nodeproxy.agent.sources.xds_kept import known
from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload
from nodeproxy.state.store import StateWriter
from nodeproxy.xds.names import ADDRESS

UID = "K//Pod/ns/a"
TOLD = Workload(uid=UID, name="a", namespace="ns", addresses=("10.0.0.1",), service_account="told")
BARE = Workload(uid=UID, name="a", namespace="ns")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateWriter]:
    made = StateWriter(tmp_path / "s")
    yield made
    made.close()


def stand(store: StateWriter, provisional: Provisional) -> Workload:
    made = provisional.admit(BARE, ("10.0.0.1", "::ffff:10.0.0.2"))
    delta, meta = provisional.put(made)
    store.apply(delta, meta)
    provisional.written(meta)
    return made


def source_says(store: StateWriter, provisional: Provisional, delta: Delta) -> None:
    asyncio.run(XdsChange(delta, {}, provisional=provisional).write(store, {}))


def in_store(store: StateWriter) -> Workload | None:
    reader = store.reader()
    try:
        return reader.view().workload(UID)
    finally:
        reader.close()


def test_it_stands_until_the_control_plane_tells(store: StateWriter) -> None:
    provisional = Provisional(store)
    made = stand(store, provisional)
    assert made.addresses == ("10.0.0.1", "10.0.0.2")
    assert in_store(store) == made
    assert list(known(store, ADDRESS)) == []  # the server is not told of what it does not know
    assert Provisional(store).uids == {UID}  # of another agent
    source_says(store, provisional, Delta(workloads=(TOLD,)))
    assert in_store(store) == TOLD
    assert provisional.uids == Provisional(store).uids == frozenset()
    assert list(known(store, ADDRESS)) == [(UID, "")]


def test_it_takes_the_place_of_what_is_taken_away_as_long_as_the_pod_is_here(store: StateWriter) -> None:
    provisional = Provisional(store)
    made = stand(store, provisional)
    source_says(store, provisional, Delta(workloads=(TOLD,)))
    source_says(store, provisional, Delta(removed_workloads=(UID, "other")))
    assert in_store(store) == made
    assert provisional.uids == {UID}
    source_says(store, provisional, Delta(workloads=(TOLD,), removed_workloads=(UID,)))  # both given and removed: it stays
    assert in_store(store) == TOLD
    provisional.forget(UID)
    source_says(store, provisional, Delta(removed_workloads=(UID,)))
    assert in_store(store) is None
    assert provisional.uids == frozenset()


def test_it_goes_when_the_pod_has_gone_and_only_if_nobody_has_told_of_it(store: StateWriter) -> None:
    provisional = Provisional(store)
    stand(store, provisional)
    delta, meta = provisional.take_back([UID, "other"])
    store.apply(delta, meta)
    provisional.written(meta)
    assert in_store(store) is None
    source_says(store, provisional, Delta(workloads=(TOLD,)))
    assert provisional.take_back([UID]) == (Delta(), {})
