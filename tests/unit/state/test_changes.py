"""What changes touch, and that the rest is kept; that nothing stale is kept is shown in tests/fuzz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeproxy.model.delta import Delta
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.model.workload import Service, Workload
from nodeproxy.state import changes
from nodeproxy.state.changes import Touched
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import pod, service


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[StateWriter]:
    writer = StateWriter(tmp_path)
    yield writer
    writer.close()


def touched(reader: StateReader) -> Touched:
    reader.view()
    reader.release()
    return reader.take_touched()


def test_what_a_change_touches(writer: StateWriter) -> None:
    before = pod("a", "10.0.0.1", services={"ns/s.svc": {}}, network="n1")
    writer.apply(Delta(workloads=(before, pod("b", "10.0.0.9")), services=(service("s", "10.96.0.1"),)))
    reader = writer.reader()
    assert not touched(reader)
    writer.apply(Delta(workloads=(pod("a", "10.0.0.2", services={"ns/t.svc": {}}),)))
    assert touched(reader) == Touched(workloads={"a"}, addresses={"n1/10.0.0.1", "/10.0.0.2"}, endpoints={"ns/s.svc", "ns/t.svc"})
    writer.apply(Delta(services=(service("s", "10.96.0.2"),)))
    assert touched(reader) == Touched(services={"ns/s.svc"}, vips={"/10.96.0.1", "/10.96.0.2"})
    policy = Policy(name="p", namespace="ns", scope=PolicyScope.NAMESPACE, action=Action.DENY)
    writer.apply(Delta(policies=(policy,)))
    writer.apply(Delta(removed_policies=("ns/p",), removed_workloads=("b",)))
    assert touched(reader) == Touched(policies={"ns/p"}, scopes={"ns"}, workloads={"b"}, addresses={"/10.0.0.9"})
    assert not touched(reader)


def test_what_no_change_touched_stays_the_same_object(writer: StateWriter) -> None:
    same, other = pod("same", "10.0.0.1", services={"ns/s.svc": {}}), pod("other", "10.0.0.2")
    writer.apply(Delta(workloads=(same, other), services=(service("s", "10.96.0.1"),)))
    reader = writer.reader()

    def ask() -> list[Workload | Service | tuple[object, ...] | None]:
        view = reader.view()
        service_at = view.service_at("", "10.96.0.1")
        return [view.workload("same"), view.workload_at("", "10.0.0.1"), service_at, view.endpoints("ns/s.svc")]

    before = ask()
    writer.apply(Delta(workloads=(pod("other", "10.0.0.3"),), services=(service("t"),)))
    assert all(now is then for now, then in zip(ask(), before, strict=True))


def test_what_the_agent_remembers_is_no_change(writer: StateWriter) -> None:
    epoch = writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    reader = writer.reader()
    view = reader.view()
    found = view.workload("a")
    reader.release()
    writer.put_meta({"key": b"value"})
    assert writer.epoch == epoch
    assert reader.view() is view
    assert reader.view().workload("a") is found
    assert not reader.take_touched()


def test_one_transaction_for_the_state_and_what_goes_with_it(writer: StateWriter) -> None:
    def transactions() -> int:
        return int(writer._environment.env.info()["last_txnid"])

    before = transactions()
    writer.apply(Delta(workloads=(pod("a"),)), {"one": b"1", "two": b"2"})
    assert transactions() == before + 1
    assert (writer.get_meta("one"), writer.get_meta("two")) == (b"1", b"2")


def test_a_reader_that_is_far_behind_and_a_large_change_keep_nothing(writer: StateWriter) -> None:
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    reader = writer.reader()
    reader.view()
    for turn in range(16):
        writer.apply(Delta(workloads=(pod("b", f"10.0.1.{turn}"),)))
    assert touched(reader).workloads == {"b"}
    for turn in range(17):
        writer.apply(Delta(workloads=(pod("b", f"10.0.2.{turn}"),)))
    assert touched(reader) == Touched(everything=True)
    writer.apply(Delta(workloads=tuple(pod(f"w{n}") for n in range(changes.MAX_NAMES + 1))))
    assert touched(reader) == Touched(everything=True)


def test_a_new_agent_goes_on_counting(tmp_path: Path) -> None:
    first = StateWriter(tmp_path)
    epoch = first.apply(Delta(workloads=(pod("a"),)))
    first.close()
    second = StateWriter(tmp_path)
    assert second.epoch == epoch
    assert second.apply(Delta(workloads=(pod("b"),))) == epoch + 1
    second.close()
