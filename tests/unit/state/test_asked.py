"""What a source answered that was asked for names: kept, found, and never in the way of what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.model.delta import Delta
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod, service


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[StateWriter]:
    writer = StateWriter(tmp_path)
    yield writer
    writer.close()


@pytest.fixture
def reader(writer: StateWriter) -> Iterator[StateReader]:
    reader = writer.reader()
    yield reader
    reader.close()


def test_nobody_is_an_answer_and_unknown_is_none(writer: StateWriter, reader: StateReader) -> None:
    writer.apply(Delta(absent=("/192.0.2.1", "ns/gone.svc", "uid"), present=("/10.0.0.1",)))
    view = reader.view()
    assert [view.is_absent(name) for name in ("/192.0.2.1", "ns/gone.svc", "uid")] == [True, True, True]
    assert [view.is_absent(name) for name in ("/10.0.0.1", "/192.0.2.2", "", "x" * 1000)] == [False] * 4
    assert list(view.asked()) == ["/10.0.0.1", "/192.0.2.1", "ns/gone.svc", "uid"]


def test_an_answer_is_seen_at_once_and_is_no_change_of_the_state(writer: StateWriter, reader: StateReader) -> None:
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    view = reader.view()
    epoch = writer.epoch
    assert writer.apply(Delta(absent=("/192.0.2.1",))) == epoch
    assert reader.view() is view, "nothing that readers keep hangs on a name that was not answered"
    assert view.is_absent("/192.0.2.1")


def test_to_forget_that_there_is_nobody_is_a_change(writer: StateWriter, reader: StateReader) -> None:
    writer.apply(Delta(absent=("/192.0.2.1",), present=("/10.0.0.1",)))
    epoch = writer.epoch
    assert writer.apply(Delta(forgotten=("/10.0.0.1", "/192.0.2.9"))) == epoch, "of these nobody has kept anything"
    reader.view()
    assert writer.apply(Delta(forgotten=("/192.0.2.1",))) == epoch + 1
    assert not reader.view().is_absent("/192.0.2.1")
    assert reader.take_touched().addresses == {"/192.0.2.1"}


@pytest.mark.parametrize("name", ["net/10.0.0.1", "a", "/10.96.0.1", "ns/web.svc"])
def test_whoever_comes_is_not_nobody(writer: StateWriter, reader: StateReader, name: str) -> None:
    writer.apply(Delta(absent=(name,)))
    came = Delta(workloads=(pod("a", "10.0.0.1", network="net"),), services=(service("web", "10.96.0.1"),))
    writer.apply(came)
    assert not reader.view().is_absent(name)
    writer.apply(Delta(removed_workloads=("a",), removed_services=("ns/web.svc",)))
    assert not reader.view().is_absent(name), "who has gone leaves a question, no answer"


def test_a_pod_of_the_hosts_network_answers_to_no_address(writer: StateWriter, reader: StateReader) -> None:
    writer.apply(Delta(absent=("/10.0.0.1", "a")))
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1", host_network=True),)))
    assert reader.view().is_absent("/10.0.0.1")
    assert not reader.view().is_absent("a")


def test_it_outlives_the_agent_or_is_forgotten_as_a_whole(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.apply(Delta(absent=("/192.0.2.1",)))
    writer.close()
    writer = StateWriter(tmp_path)
    reader = writer.reader()
    assert reader.view().is_absent("/192.0.2.1")
    writer.forget_asked()
    assert list(reader.view().asked()) == []
    reader.close()
    writer.close()
