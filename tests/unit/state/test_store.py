"""The writer: deltas in any order, replacement by difference, damage, locks, limits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta, Everything
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.model.workload import Gateway, LoadBalancer, Scope, Workload
from nodeproxy.state import layout, store
from nodeproxy.state.layout import PARTIAL
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from tests.unit.state.builders import dump, pod, service


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[StateWriter]:
    writer = StateWriter(tmp_path)
    yield writer
    writer.close()


def policy(name: str, scope: PolicyScope, namespace: str = "ns") -> Policy:
    return Policy(name=name, namespace=namespace, scope=scope, action=Action.ALLOW)


WEB = pod("web", "10.0.0.1", services={"ns/web.svc": {80: 8080}}, policies=("ns/listed",))
EVERYTHING = Everything(
    workloads=(WEB, pod("db", "10.0.0.2", "fd00::2"), pod("other", "10.0.0.3", namespace="other")),
    services=(service("web", "10.96.0.1"), service("db", "10.96.0.2", "fd00:96::2")),
    policies=(
        policy("all", PolicyScope.GLOBAL),
        policy("in-ns", PolicyScope.NAMESPACE),
        policy("in-other", PolicyScope.NAMESPACE, "other"),
        policy("listed", PolicyScope.WORKLOAD_SELECTOR),
    ),
)


def test_what_is_written_is_read_back_whole(writer: StateWriter) -> None:
    rich = pod(
        "rich",
        "10.1.0.1",
        waypoint=Gateway(destination="ns/wp", is_hostname=True),
        services={"ns/a": {80: 8080, 443: 8443}, "ns/b": {}},
        policies=("ns/p", "ns/q"),
        healthy=False,
        capacity=7,
    )
    balanced = service("s", load_balancer=LoadBalancer(routing_preferences=(Scope.ZONE, Scope.REGION), allow_unhealthy=True))
    writer.apply(Delta(workloads=(rich,), services=(balanced,)))
    view = writer.reader().view()
    assert view.workload("rich") == rich
    assert view.service("ns/s.svc") == balanced
    assert view.counts() == {"workloads": 1, "services": 1, "policies": 0}


def test_the_order_of_deltas_does_not_matter(tmp_path: Path) -> None:
    deltas = [Delta(workloads=(workload,)) for workload in EVERYTHING.workloads]
    deltas += [Delta(services=(found,)) for found in EVERYTHING.services]
    deltas += [Delta(policies=(found,)) for found in EVERYTHING.policies]
    dumps = []
    for seed in range(4):
        random.Random(seed).shuffle(deltas)
        writer = StateWriter(tmp_path / str(seed))
        for delta in deltas:
            writer.apply(delta)
        dumps.append(dump(tmp_path / str(seed)))
        writer.close()
    assert all(found == dumps[0] for found in dumps)


def test_an_address_that_moves_from_one_workload_to_another(writer: StateWriter) -> None:
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    # The new owner comes first, then the old one goes: nothing of the new one is lost.
    writer.apply(Delta(workloads=(pod("b", "10.0.0.1"),)))
    writer.apply(Delta(removed_workloads=("a",)))
    reader = writer.reader()
    assert reader.view().workload_at("", "10.0.0.1") == pod("b", "10.0.0.1")
    writer.apply(Delta(workloads=(pod("b", "10.0.0.2"),)))
    assert reader.view().workload_at("", "10.0.0.1") is None
    assert reader.view().workload_at("", "10.0.0.2") == pod("b", "10.0.0.2")


def test_removing_leaves_no_index_behind(tmp_path: Path, writer: StateWriter) -> None:
    empty = dump(tmp_path)
    writer.replace(EVERYTHING)
    assert dump(tmp_path) != empty
    writer.apply(
        Delta(
            removed_workloads=tuple(found.uid for found in EVERYTHING.workloads),
            removed_services=tuple(found.key for found in EVERYTHING.services),
            removed_policies=tuple(found.key for found in EVERYTHING.policies),
        )
    )
    assert dump(tmp_path) == empty


def test_changing_a_policys_scope_moves_it(writer: StateWriter) -> None:
    other = pod("other", namespace="other")
    writer.apply(Delta(workloads=(other,), policies=(policy("p", PolicyScope.GLOBAL),)))
    reader = writer.reader()
    assert [found.key for found in reader.view().policies_for(other)] == ["ns/p"]
    writer.apply(Delta(policies=(policy("p", PolicyScope.NAMESPACE),)))
    assert reader.view().policies_for(other) == ()
    assert [found.key for found in reader.view().policies_for(WEB)] == ["ns/p"]


def test_one_delta_that_removes_and_gives_keeps_what_it_gives(writer: StateWriter) -> None:
    writer.apply(Delta(workloads=(pod("a", "10.0.0.1"),)))
    writer.apply(Delta(workloads=(pod("a", "10.0.0.2"),), removed_workloads=("a",)))
    assert writer.reader().view().workload("a") == pod("a", "10.0.0.2")


def test_the_epoch_stays_if_nothing_changes(writer: StateWriter) -> None:
    first = writer.replace(EVERYTHING)
    assert first == writer.epoch
    assert writer.replace(EVERYTHING) == first
    assert writer.apply(Delta(workloads=(WEB,), removed_workloads=("nobody",))) == first
    swapped = msgspec.structs.replace(WEB, services={"ns/web.svc": {80: 8080}, "ns/b": {1: 2}})
    second = writer.apply(Delta(workloads=(swapped,)))
    assert second > first
    # The same map in another order is the same map.
    again = msgspec.structs.replace(WEB, services={"ns/b": {1: 2}, "ns/web.svc": {80: 8080}})
    assert writer.apply(Delta(workloads=(again,))) == second


def test_replace_amounts_to_the_difference(tmp_path: Path, writer: StateWriter) -> None:
    writer.replace(EVERYTHING)
    changed = Everything(
        workloads=(*EVERYTHING.workloads[1:], pod("new", "10.0.0.1")),
        services=EVERYTHING.services[:1],
        policies=EVERYTHING.policies[1:],
    )
    writer.replace(changed)
    fresh = StateWriter(tmp_path / "fresh")
    fresh.replace(changed)
    assert dump(tmp_path) == dump(tmp_path / "fresh")
    fresh.close()


def test_only_that_the_state_is_partial_is_a_change_of_it(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    reader = writer.reader()
    epochs = []
    for meta in (
        {"other": b"1"},
        {PARTIAL: b"1"},
        {PARTIAL: b"1"},
        {"other": b"2", PARTIAL: None},
        {"other": b"3", PARTIAL: None},
    ):
        writer.apply(Delta(services=(service("s", "10.1.0.1"),)), meta)
        epochs.append((writer.epoch, reader.view().is_incomplete))
    assert epochs == [(1, False), (2, True), (2, True), (3, False), (3, False)]
    reader.close()
    writer.close()


def test_meta_is_kept_and_survives_a_restart(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.put_meta({"pods": b"\x00one"})
    writer.replace(EVERYTHING)
    writer.close()
    again = StateWriter(tmp_path)
    assert again.rebuilt == ""
    assert again.get_meta("pods") == again.reader().get_meta("pods") == b"\x00one"
    assert again.reader().view().workload("web") == WEB
    again.put_meta({"pods": None})
    assert again.get_meta("pods") is None
    again.close()


HOLD = """
import sys
from nodeproxy.state.store import StateWriter
writer = StateWriter(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_in_this_process_is_refused(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    with pytest.raises(StateError, match="already has a writer in this process"):
        StateWriter(tmp_path)
    writer.apply(Delta(workloads=(WEB,)))  # and the first one goes on, and still holds the lock
    other = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in other.stderr
    writer.close()
    reader_first = StateReader(tmp_path)
    with pytest.raises(StateError, match="already has a reader in this process"):
        StateWriter(tmp_path)
    reader_first.close()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=rf"in use by process {holder.pid}; stop it, or"):
            StateWriter(tmp_path)
        holder.stdin.close()
    StateWriter(tmp_path).close()


def test_a_killed_writer_leaves_a_whole_state(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        StateWriter(tmp_path).replace(EVERYTHING)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    writer = StateWriter(tmp_path)
    assert writer.rebuilt == ""
    assert writer.reader().view().counts() == {"workloads": 3, "services": 2, "policies": 4}
    writer.close()


def lend(path: Path, deltas: Callable[[], Iterator[Delta]]) -> int:
    """Write in a child process to which the store is lent; returns its status as from waitpid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            StateWriter(path, lent=True).rewrite(deltas(), kept=None, meta={"k": b"v"})
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def test_what_is_written_by_whom_it_is_lent_to_is_seen(tmp_path: Path, writer: StateWriter) -> None:
    writer.replace(EVERYTHING)
    reader = writer.reader()
    assert lend(tmp_path, lambda: iter((Delta(workloads=(pod("new"),)), Delta(removed_services=(service("web").key,))))) == 0
    before = writer.epoch
    writer.see_lent()
    assert writer.epoch == before + 1
    assert reader.view().counts() == {"workloads": 4, "services": 1, "policies": 4}
    assert writer.get_meta("k") == b"v"
    assert writer.apply(Delta(removed_workloads=(pod("new").uid,))) == before + 2
    reader.close()


def test_whom_it_is_lent_to_may_be_killed_amid_a_transaction(tmp_path: Path, writer: StateWriter) -> None:
    writer.replace(EVERYTHING)

    def deltas() -> Iterator[Delta]:
        yield Delta(workloads=tuple(pod(f"p{number}") for number in range(1000)))
        os.kill(os.getpid(), 9)

    assert lend(tmp_path, deltas) == 9
    before = writer.epoch
    writer.see_lent()
    assert (writer.epoch, writer.get_meta("k")) == (before, None)
    writer.apply(Delta(workloads=(pod("new"),)))  # LMDB's lock died with its holder
    reader = writer.reader()
    assert reader.view().counts() == {"workloads": 4, "services": 2, "policies": 4}
    reader.close()


def test_a_state_can_be_replaced_in_pieces(tmp_path: Path, writer: StateWriter) -> None:
    writer.apply(Delta(workloads=(pod("old"), EVERYTHING.workloads[0]), services=(service("old"),)))
    kept = {
        "workloads": {workload.uid for workload in EVERYTHING.workloads},
        "services": {resource.key for resource in EVERYTHING.services},
        "policies": {policy.key for policy in EVERYTHING.policies},
    }
    first, *rest = EVERYTHING.workloads
    pieces = [Delta(workloads=tuple(rest)), Delta(services=EVERYTHING.services), Delta(policies=EVERYTHING.policies)]
    before = writer.epoch
    assert writer.rewrite(iter(pieces), kept) == before + 1
    found = dump(tmp_path)
    assert writer.rewrite([Delta(workloads=(first,)), *pieces], kept) == before + 1
    writer.replace(EVERYTHING)
    assert (writer.epoch, dump(tmp_path)) == (before + 1, found)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_damaged_store_is_made_anew(tmp_path: Path, damage: str) -> None:
    writer = StateWriter(tmp_path)
    writer.replace(EVERYTHING)
    writer.close()
    data = tmp_path / layout.DATA_FILE
    if damage == "garbage":
        data.write_bytes(b"\xa5" * data.stat().st_size)
    else:
        os.truncate(data, 8192 if damage == "truncated" else 0)
    again = StateWriter(tmp_path)
    assert damage == "empty" or "damaged" in again.rebuilt
    assert again.reader().view().is_incomplete
    again.replace(EVERYTHING)
    assert again.reader().view().workload("web") == WEB
    again.close()


def test_a_store_of_another_version_is_made_anew_and_not_read(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path)
    writer.replace(EVERYTHING)
    environment = layout.acquire(tmp_path, writable=False)
    with environment.env.begin(write=True) as txn:
        txn.put(b"schema", b"0", db=environment.tables["about"])
    environment.release()
    with pytest.raises(StateError, match="version"):
        StateReader(tmp_path)
    writer.close()
    again = StateWriter(tmp_path)
    assert "version" in again.rebuilt
    assert again.reader().view().is_incomplete
    again.close()


def test_a_full_map_refuses_the_change_whole(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path, map_size_bytes=512 << 10)
    writer.apply(Delta(workloads=(WEB,)))
    epoch = writer.epoch
    many = tuple(pod(f"w{number}", f"10.1.{number >> 8}.{number & 255}") for number in range(8000))
    with pytest.raises(StateError, match="does not fit"):
        writer.apply(Delta(workloads=many))
    assert writer.epoch == epoch
    assert writer.reader().view().counts()["workloads"] == 1
    writer.apply(Delta(workloads=many[:10]))
    writer.close()


@pytest.mark.parametrize("uid", ["", "u" * 512])
def test_a_key_that_cannot_be_stored_refuses_the_change_whole(writer: StateWriter, uid: str) -> None:
    with pytest.raises(StateError, match="empty or above 511 bytes"):
        writer.apply(Delta(workloads=(WEB, Workload(uid=uid, name="x", namespace="ns"))))
    assert writer.reader().view().is_incomplete
    writer.apply(Delta(removed_workloads=(uid,)))


def test_after_a_large_change_writer_and_readers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_LARGE", 10)
    writer = StateWriter(tmp_path)
    writer.apply(Delta(workloads=(WEB,)))
    reader = writer.reader()
    view = reader.view()
    assert view.workload("web") == WEB
    many = tuple(pod(f"w{number}", f"10.1.0.{number}") for number in range(20))
    epoch = writer.replace(Everything(workloads=(WEB, *many)))
    with pytest.raises(StateError, match="can't read"):
        view.workload("w3")  # its snapshot was let go of
    assert reader.view().workload("w3") == many[3]
    assert reader.view().counts()["workloads"] == 21
    assert writer.apply(Delta(removed_workloads=("w3",))) == epoch + 1
    assert reader.view().workload("w3") is None
    reader.close()
    writer.close()
    StateWriter(tmp_path).close()  # nothing was left open


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="choose another run directory"):
        StateWriter(tmp_path / "file" / "state")


def test_a_copy_is_a_state_of_its_own(tmp_path: Path) -> None:
    writer = StateWriter(tmp_path / "state")
    writer.apply(Delta(workloads=(WEB,)), {"key": b"value"})
    (tmp_path / "state-2").mkdir()
    (tmp_path / "state-2" / "data.mdb").write_text("of somebody who died")
    writer.copy(tmp_path / "state-2")
    copy = StateWriter(tmp_path / "state-2")
    assert (copy.rebuilt, copy.epoch, copy.get_meta("key")) == ("", writer.epoch, b"value")
    writer.apply(Delta(removed_workloads=("web",)))
    assert copy.reader().view().workload("web") == WEB
    copy.apply(Delta(workloads=(pod("other", "10.9.9.9"),)))
    assert writer.reader().view().workload("other") is None
    with pytest.raises(StateError, match="can't copy the state"):
        writer.copy(tmp_path / "absent" / "state")
    copy.close()
    writer.close()
