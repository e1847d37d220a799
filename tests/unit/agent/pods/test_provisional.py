from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.xds_apply import XdsChange
from nodeproxy.agent.sources.xds_kept import known
from nodeproxy.model.delta import Delta
from nodeproxy.model.workload import Workload
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from nodeproxy.xds.names import ADDRESS

UID = "K//Pod/ns/a"
TOLD = Workload(uid=UID, name="a", namespace="ns", addresses=("10.0.0.1",), service_account="told")
BARE = Workload(uid=UID, name="a", namespace="ns")
MADE = msgspec.structs.replace(BARE, addresses=("10.0.0.1", "10.0.0.2"))


def other(address: str) -> Workload:
    return Workload(uid=f"other {address}", name="o", namespace="ns", addresses=(address,))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateWriter]:
    made = StateWriter(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def reader(store: StateWriter) -> Iterator[StateReader]:
    made = store.reader()
    yield made
    made.close()


@pytest.fixture
def provisional(store: StateWriter, reader: StateReader) -> Provisional:
    return Provisional(store, reader.view)


def write(store: StateWriter, change: Change) -> None:
    asyncio.run(change.write(store, {}))


def stand(store: StateWriter, provisional: Provisional) -> None:
    write(store, provisional.admit(BARE, ("10.0.0.1", "::ffff:10.0.0.2")))


def source_says(store: StateWriter, provisional: Provisional, delta: Delta) -> None:
    write(store, XdsChange(delta, {}, provisional=provisional))


def addresses(reader: StateReader, uid: str = UID) -> tuple[str, ...] | None:
    workload = reader.view().workload(uid)
    return workload.addresses if workload is not None else None


def test_it_stands_until_the_control_plane_tells(store: StateWriter, reader: StateReader, provisional: Provisional) -> None:
    stand(store, provisional)
    assert reader.view().workload(UID) == MADE
    assert list(known(store, ADDRESS)) == []  # the server is not told of what it does not know
    assert Provisional(store, reader.view).uids == {UID}  # of another agent
    source_says(store, provisional, Delta(workloads=(TOLD,)))
    assert reader.view().workload(UID) == TOLD
    assert provisional.uids == Provisional(store, reader.view).uids == frozenset()
    assert list(known(store, ADDRESS)) == [(UID, "")]
    stand(store, provisional)  # too late
    assert reader.view().workload(UID) == TOLD


def test_it_takes_the_place_of_what_is_taken_away_as_long_as_the_pod_is_here(
    store: StateWriter, reader: StateReader, provisional: Provisional
) -> None:
    stand(store, provisional)
    source_says(store, provisional, Delta(workloads=(TOLD,)))
    source_says(store, provisional, Delta(removed_workloads=(UID, "other")))
    assert reader.view().workload(UID) == MADE
    assert provisional.uids == {UID}
    source_says(store, provisional, Delta(workloads=(TOLD,), removed_workloads=(UID,)))  # both given and removed: it stays
    assert reader.view().workload(UID) == TOLD
    provisional.forget(UID)
    source_says(store, provisional, Delta(removed_workloads=(UID,)))
    assert reader.view().workload(UID) is None
    assert provisional.uids == frozenset()


def test_it_goes_when_the_pod_has_gone_and_only_if_nobody_has_told_of_it(
    store: StateWriter, reader: StateReader, provisional: Provisional
) -> None:
    stand(store, provisional)
    write(store, provisional.take_back([UID, "other"]))
    assert reader.view().workload(UID) is None
    source_says(store, provisional, Delta(workloads=(TOLD,)))
    write(store, provisional.take_back([UID]))
    assert reader.view().workload(UID) == TOLD


def test_an_address_that_is_told_of_another_is_given_up(
    store: StateWriter, reader: StateReader, provisional: Provisional
) -> None:
    stand(store, provisional)
    source_says(store, provisional, Delta(workloads=(other("10.0.0.1"), other("10.0.0.9"))))
    assert addresses(reader) == ("10.0.0.2",)
    assert Provisional(store, reader.view).uids == {UID}
    found = reader.view().workload_at("", "10.0.0.1")
    assert found is not None
    assert found.uid == "other 10.0.0.1"
    provisional.forget(UID)
    write(store, provisional.admit(BARE, ("10.0.0.1", "10.0.0.3")))  # another network of the pod
    assert addresses(reader) == ("10.0.0.3",)


def test_it_gets_no_address_that_another_has_and_none_that_it_loses_in_the_same_breath(
    store: StateWriter, reader: StateReader, provisional: Provisional
) -> None:
    source_says(store, provisional, Delta(workloads=(other("10.0.0.1"),)))
    stand(store, provisional)
    assert addresses(reader) == ("10.0.0.2",)
    source_says(store, provisional, Delta(workloads=(msgspec.structs.replace(TOLD, addresses=("10.0.0.2",)),)))
    gone = Delta(workloads=(other("10.0.0.2"),), removed_workloads=(UID, "other 10.0.0.1"))
    source_says(store, provisional, gone)
    assert addresses(reader) == ("10.0.0.1",)  # whose owner goes as well
    source_says(store, provisional, Delta(workloads=(other("10.0.0.1"),)))
    assert addresses(reader) == ()
    write(store, provisional.take_back([UID]))
    write(store, provisional.admit(BARE, ("10.0.0.1",)))
    assert addresses(reader) is None  # nothing of it is its own
