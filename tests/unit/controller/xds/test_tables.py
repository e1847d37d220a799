"""Tables of encoded resources: what leads to them, and the log of what changed."""

from __future__ import annotations

import pytest

from nodeproxy.controller.xds.log import ChangeLog
from nodeproxy.controller.xds.tables import Table
from nodeproxy.proto import discovery_pb2
from nodeproxy.xds.encode import Encoded, encode_service, encode_workload
from nodeproxy.xds.names import ADDRESS
from tests.unit.state.builders import pod, service


def filled() -> Table:
    table = Table(ADDRESS)
    table.put(encode_workload(pod("a", "10.0.0.1", services={"ns/s.svc": {80: 1}}, node="n1")), 1.0)
    table.put(encode_workload(pod("b", "10.0.0.2", "fd00::2", services={"ns/s.svc": {80: 1}, "ns/t.svc": {}}, node="n2")), 1.0)
    table.put(encode_service(service("s", "10.1.0.1")), 1.0)
    return table


def names(table: Table, key: str) -> set[str]:
    return {resource.name for resource in table.find(key)}


def test_keys_lead_to_resources() -> None:
    table = filled()
    assert names(table, "a") == {"a"}
    assert names(table, "/10.0.0.2") == names(table, "/fd00::2") == {"b"}
    assert names(table, "ns/s.svc") == names(table, "/10.1.0.1") == {"a", "b", "ns/s.svc"}
    assert table.find("ns/s.svc")[-1].name == "ns/s.svc"
    assert names(table, "ns/t.svc") == names(table, "other/10.0.0.2") == names(table, "") == set()
    assert {resource.name for resource in table.on_node("n1")} == {"a"}
    assert table.on_node("") == []


def test_an_address_leads_to_all_that_have_it() -> None:
    table = filled()
    table.put(encode_workload(pod("c", "10.0.0.1", "10.1.0.1")), 1.0)
    assert names(table, "/10.0.0.1") == {"a", "c"}
    assert names(table, "/10.1.0.1") == {"a", "b", "c", "ns/s.svc"}


def test_keys_that_lead_to_one_service_cost_its_endpoints_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = filled()
    looked_at: list[str] = []
    real = table.endpoints

    def counting(service: str) -> list[Encoded]:
        looked_at.append(service)
        return real(service)

    monkeypatch.setattr(table, "endpoints", counting)
    found, missing = table.find_all(["ns/s.svc", "/10.1.0.1", "a", "nobody"])
    assert (set(found), missing, looked_at) == ({"a", "b", "ns/s.svc"}, ["nobody"], ["ns/s.svc"])


def test_what_changed_leads_elsewhere() -> None:
    table = filled()
    table.put(encode_workload(pod("b", "10.0.0.3", services={"ns/t.svc": {}}, node="n1")), 2.0)
    assert names(table, "/10.0.0.2") == names(table, "/fd00::2") == set()
    assert names(table, "/10.0.0.3") == {"b"}
    assert names(table, "ns/s.svc") == {"a", "ns/s.svc"}
    assert {resource.name for resource in table.on_node("n1")} == {"a", "b"}
    assert table.on_node("n2") == []
    for name in ("a", "b", "ns/s.svc"):
        assert table.remove(name, 3.0)
        assert not table.remove(name, 3.0)
    assert not any(index._names for index in (table._aliases, table._endpoints, table._nodes))


def test_a_resource_that_is_the_same_has_not_changed() -> None:
    table = filled()
    revision = table.revision
    assert not table.put(encode_service(service("s", "10.1.0.1")), 2.0)
    assert table.revision == revision


def test_changes_are_read_when_they_are_released_and_from_any_place() -> None:
    table = filled()
    assert list(table.changes(0)) == []
    assert table.release()
    assert not table.release()
    assert list(table.changes(0)) == [(1, "a"), (2, "b"), (3, "ns/s.svc")]
    table.remove("a", 5.0)
    assert list(table.changes(1)) == [(2, "b"), (3, "ns/s.svc")]
    table.release()
    assert list(table.changes(0)) == [(2, "b"), (3, "ns/s.svc"), (4, "a")]
    assert (table.changed_at(2), table.changed_at(4)) == (1.0, 5.0)
    table.forget(3)
    assert (table.horizon, table.kept) == (3, 1)
    assert list(table.changes(3)) == [(4, "a")]


def test_the_names_of_what_is_gone_are_kept_to_a_bound() -> None:
    table = Table(ADDRESS, max_removed=100)
    for number in range(1000):
        table.put(encode_workload(pod(f"p{number}")), 0.0)
        table.remove(f"p{number}", 0.0)
        assert table.kept <= 101
    assert table.horizon > 0
    table.release()
    assert [name for _, name in table.changes(table.horizon)][-1] == "p999"


def test_what_is_there_is_always_in_the_log_of_who_needs_it() -> None:
    table = Table(ADDRESS, max_removed=10)
    for number in range(1000):
        table.put(encode_workload(pod(f"p{number}")), 0.0)
    assert (table.horizon, table.kept) == (0, 1000)


def test_a_whole_state_is_made_once_for_many_and_let_go_of() -> None:
    table = filled()
    first = table.snapshot()
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(first.message)
    assert {resource.name for resource in response.resources} == {"a", "b", "ns/s.svc"}
    assert (response.type_url, response.nonce) == (ADDRESS, first.nonce)
    table.remove("a", 0.0)
    assert table.snapshot() is first  # whoever gets it reads on from its revision
    table.forget(table.revision)
    second = table.snapshot()
    assert second is not first  # what it does not tell is forgotten
    assert second.count == 2
    del second
    assert table._snapshot is not None
    assert table._snapshot() is None


def test_a_name_that_changes_again_and_again_is_in_the_log_once() -> None:
    log = ChangeLog()
    for revision in range(1, 10_001):
        log.append(revision, f"n{revision % 3}", float(revision))
    assert len(log) == 3
    assert len(log._names) < 3000
    assert list(log.between(0, 10_000)) == [(9998, "n2"), (9999, "n0"), (10_000, "n1")]
    assert list(log.between(0, 9999)) == [(9998, "n2"), (9999, "n0")]
    assert list(log.between(10_000, 0)) == []
    assert log.time(9999) == 9999.0
    log.drop(9999)
    assert list(log.between(0, 10_000)) == [(10_000, "n1")]
    assert log.count(0, 10_000) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_snapshot_that_is_old_is_made_anew(count: int) -> None:
    table = filled()
    first = table.snapshot()
    for number in range(2001 * (count - 1)):
        table.put(encode_workload(pod("a", services={"ns/s.svc": {80: number % 2 + 1}})), 0.0)
    assert (table.snapshot() is first) == (count == 1)
