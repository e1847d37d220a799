"""Enrolment by label over a real store: the kernel's side (enrolment, finding) is the test's."""

from __future__ import annotations

import asyncio
import os

import pytest

from nodeproxy.agent.pods import labels
from nodeproxy.agent.pods.attachments import Attached
from nodeproxy.errors import EnrolmentError
from nodeproxy.model.cni import Attachment
from nodeproxy.model.delta import Delta, PodSpec
from nodeproxy.model.node_pod import Membership, MeshNamespace
from nodeproxy.model.workload import Workload
from tests.unit.agent.pods.label_bench import HERE, INODE, UID, Bench, Run, add, told


def test_nobody_is_looked_for_before_the_controller_has_spoken(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.tell(told(), settled=False)
        await bench.labels.reconcile()
        assert not bench.enrolment.pods
        assert not bench.kept_steered
        assert bench.labels.pending()
        bench.tell()
        await bench.labels.reconcile()
        assert bench.enrolment.pods[UID].spec == PodSpec(UID, HERE, INODE)
        assert bench.kept_steered == [[]]
        assert bench.labels.pending() == ""
        assert UID in bench.enrolment.cared_for

    run(scenario)


def test_a_pod_is_looked_for_until_it_is_found_and_only_with_told_addresses(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told(addresses=()))
        bench.finder.there.add("u")
        await bench.labels.reconcile()
        assert bench.labels.waiting == {"ns/a": "it has no address yet"}
        assert bench.finder.asked == []
        bench.finder.there.clear()
        bench.tell(told())
        await bench.labels.reconcile()
        assert bench.labels.waiting == {"ns/a": "it has no process yet"}
        assert bench.finder.asked == [{"u": frozenset({"10.0.0.1"})}]
        bench.finder.there.add("u")
        await bench.labels.reconcile()
        assert (bench.labels.waiting, list(bench.enrolment.pods)) == ({}, [UID])
        await bench.labels.reconcile()
        assert len(bench.finder.asked) == 2  # who is in is not looked for

    run(scenario)


@pytest.mark.parametrize("membership", [each for each in Membership if not each.in_mesh])
def test_who_is_not_to_be_in_leaves_and_its_connections_go_on(run: Run, membership: Membership) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.tell(told())
        await bench.labels.reconcile()
        bench.tell(told(membership=membership))
        await bench.labels.reconcile()
        assert not bench.enrolment.pods
        assert not bench.enrolment.ended
        assert not bench.enrolment.cared_for
        assert bench.view().workload(UID) is None  # it was provisional
        assert labels.describe(membership)

    run(scenario)


def test_who_has_ended_leaves_with_its_connections(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.update({"u", "v"})
        bench.tell(told())
        await bench.labels.reconcile()
        bench.tell(removed=["ns/a"])
        await bench.labels.reconcile()
        assert (bench.enrolment.pods, bench.enrolment.ended) == ({}, [UID])
        bench.tell(told())
        await bench.labels.reconcile()
        bench.tell(told(uid="v"))  # of the same name
        await bench.labels.reconcile()
        assert bench.enrolment.ended == [UID, UID]
        assert list(bench.enrolment.pods) == [UID]
        assert dict(bench.attachments.steered()) == {UID: 7}

    run(scenario)


def test_what_the_cni_brings_is_in_before_its_addresses_are_told(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told(addresses=()))
        admission = await bench.labels.admit(add(addresses=("10.0.0.1", "fd00::1")))
        assert admission.in_mesh
        assert bench.enrolment.pods[UID].spec == PodSpec(UID, HERE, INODE)
        workload = bench.view().workload(UID)
        assert workload is not None
        assert workload.addresses == ("10.0.0.1", "fd00::1")
        assert bench.provisional.uids == {UID}
        await bench.labels.check(add())
        again = await bench.labels.admit(add(ifname="net1", addresses=("10.1.0.1",)))
        assert again.in_mesh
        assert bench.enrolment.refreshed == [UID]

    run(scenario)


def test_who_is_outside_is_let_go_at_once(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told(membership=Membership.OPTED_OUT))
        admission = await asyncio.wait_for(bench.labels.admit(add()), 0.1)
        assert not admission.in_mesh
        assert "its own label" in admission.why
        assert not (await bench.labels.admit(add(uid=""))).in_mesh
        await bench.labels.check(add())
        assert not bench.attachments.all()

    run(scenario)


def test_an_unknown_pod_waits_for_the_controller_and_is_held_back_where_it_may_belong(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell()
        waiting = asyncio.ensure_future(bench.labels.admit(add()))
        await asyncio.sleep(0)
        bench.tell(told())
        assert (await waiting).in_mesh
        monkeypatch.setattr(labels, "WAIT_S", 0.0)
        bench.is_connected = False
        monkeypatch.setattr(labels, "_AWAY_WAIT_S", 0.0)
        unknown = await bench.labels.admit(add("b", "w"))
        assert not unknown.in_mesh
        assert "pod ns/b starts outside the mesh: the controller is away" in caplog.text
        bench.roster.namespaces_written([MeshNamespace(name="ns", labelled=False)], [])
        with pytest.raises(EnrolmentError, match=r"pod ns/b may belong into the mesh: it is held back"):
            await bench.labels.admit(add("b", "w"))
        with pytest.raises(EnrolmentError):  # a pod of that name is known, but not this one
            await bench.labels.admit(add("a", "w"))

    run(scenario)


@pytest.mark.parametrize("broken", ["enrolment", "certificate", "namespace"])
def test_a_pod_that_can_not_be_served_is_held_back(run: Run, broken: str) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told())
        request = add(netns="/nowhere/netns") if broken == "namespace" else add()
        bench.enrolment.error = "no room" if broken == "enrolment" else ""
        bench.no_certificate = "the CA is away" if broken == "certificate" else ""
        said = {"enrolment": "no room", "certificate": "the CA is away", "namespace": "does not exist"}[broken]
        with pytest.raises(EnrolmentError, match=said):
            await bench.labels.admit(request)

    run(scenario)


def test_an_address_that_is_somebody_elses_is_refused(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.state.apply(Delta(workloads=(Workload(uid="other", name="o", namespace="ns", addresses=("10.0.0.9",)),)))
        bench.tell(told(addresses=()))
        with pytest.raises(EnrolmentError, match=r"its address 10\.0\.0\.9 is other's by the state"):
            await bench.labels.admit(add(addresses=("10.0.0.9",)))
        assert not bench.enrolment.pods
        assert not bench.attachments.all()
        assert bench.view().workload(UID) is None

    run(scenario)


def test_what_was_told_is_never_overridden(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        given = Workload(uid=UID, name="a", namespace="ns", addresses=("10.0.0.1",), service_account="told")
        bench.state.apply(Delta(workloads=(given,)))
        bench.tell(told())
        await bench.labels.admit(add(addresses=("10.0.0.1", "10.0.0.2")))
        assert bench.view().workload(UID) == given
        assert bench.provisional.uids == frozenset()

    run(scenario)


def test_what_the_cni_removes_is_not_found_again(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told())
        await bench.labels.admit(add())
        await bench.labels.gone(Attachment("c-u", "eth0"))
        assert (bench.enrolment.pods, bench.enrolment.ended[-1:]) == ({}, [UID])
        assert bench.view().workload(UID) is None
        bench.finder.there.add("u")
        await bench.labels.reconcile()
        assert bench.labels.waiting == {"ns/a": "its network was removed"}
        await bench.labels.gone(Attachment("c-u", "eth0"))
        with pytest.raises(EnrolmentError, match="belongs into the mesh and is not in: its network was removed"):
            await bench.labels.check(add())
        bench.tell(removed=["ns/a"])
        await bench.labels.reconcile()
        assert bench.labels.waiting == {}
        assert not bench.attachments._gone

    run(scenario)


def test_a_sandbox_that_was_replaced_is_removed_late(run: Run) -> None:
    """DEL of the first comes after ADD of the second: the pod stays in."""

    async def scenario(bench: Bench) -> None:
        bench.tell(told())
        await bench.labels.admit(add())
        await bench.labels.admit(add(container_id="c-2"))
        await bench.labels.gone(Attachment("c-u", "eth0"))
        assert list(bench.enrolment.pods) == [UID]
        await bench.labels.keep(frozenset({Attachment("c-2", "eth0")}))
        assert list(bench.enrolment.pods) == [UID]
        await bench.labels.keep(frozenset())
        assert not bench.enrolment.pods

    run(scenario)


def test_nobody_is_plain_because_the_agent_before_put_him_in_too_late_to_say_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told("late", uid="w", addresses=()))
        await bench.labels.reconcile()
        assert bench.kept_steered == [None]  # any of those that are steered may be this pod
        await bench.labels.reconcile()
        assert not bench.enrolment.released_but
        bench.finder.there.add("w")
        bench.tell(told("late", uid="w", addresses=("10.0.0.2",)))
        await bench.labels.reconcile()
        assert bench.enrolment.released_but == [[]]
        await bench.labels.reconcile()
        assert bench.enrolment.released_but == [[]], "once"
        bench.restart()
        monkeypatch.setattr(labels, "_STRANGERS_S", 0.0)
        bench.tell(told("never", uid="v", addresses=()))
        await bench.labels.reconcile()
        assert bench.kept_steered[1:] == [[]]  # it is not waited for without end

    run(scenario)


def test_another_agent_finds_what_the_cni_brought(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told(addresses=()), told("b", uid="w", addresses=("10.0.0.2",)))
        bench.finder.there.add("w")
        await bench.labels.admit(add())
        await bench.labels.reconcile()
        assert set(bench.enrolment.pods) == {UID, "K//Pod/ns/b"}
        bench.finder.there.clear()
        bench.restart()
        assert bench.provisional.uids == {UID, "K//Pod/ns/b"}
        await bench.labels.reconcile()
        assert set(bench.enrolment.pods) == {UID}
        assert bench.kept_steered == [[], [7]]  # the other one is not found, and stays closed
        bench.tell(removed=["ns/a", "ns/b"])
        bench.restart()
        await bench.labels.reconcile()
        await bench.labels.reconcile()
        assert bench.kept_steered[2:] == [[]]
        assert bench.provisional.uids == frozenset()
        assert dict(bench.attachments.steered()) == {}
        assert bench.view().counts()["workloads"] == 0

    run(scenario)


def test_a_pod_that_ends_while_it_is_put_in_is_looked_for_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.tell(told())
        bench.enrolment.error = "its network namespace does not exist"
        with monkeypatch.context() as patched:
            patched.setattr(labels, "leads_to", lambda spec: False)
            await bench.labels.reconcile()
        assert not bench.enrolment.failed
        assert bench.labels.waiting == {"ns/a": "its network namespace does not exist"}
        await bench.labels.reconcile()
        assert list(bench.enrolment.failed) == [UID]  # it is there, and can't be put in: Enrolment tries again
        bench.enrolment.error = ""

    run(scenario)


def test_a_pod_without_any_process_ends_after_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.tell(told())
        await bench.labels.reconcile()
        monkeypatch.setattr(labels, "leads_to", lambda spec: False)
        await bench.labels._watch()
        assert list(bench.enrolment.pods) == [UID]  # found again, where it was
        bench.finder.there.clear()
        await bench.labels._watch()
        assert list(bench.enrolment.pods) == [UID]
        monkeypatch.setattr(labels, "_ENDED_S", 0.0)
        await bench.labels._watch()
        assert not bench.enrolment.pods
        assert bench.labels.waiting == {"ns/a": "it has no process any more"}

    run(scenario)


def test_pods_come_and_go_and_nothing_is_left(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell()
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            name, uid = f"p{number % 20}", f"u{number}"
            bench.tell(told(name, uid=uid, addresses=()))
            await bench.labels.admit(add(name, uid, addresses=(f"10.0.{number // 100}.{number % 100}",)))
            await bench.labels.gone(Attachment(f"c-{uid}", "eth0"))
            bench.tell(removed=[f"ns/{name}"])
            if number % 50 == 0:
                await bench.labels.reconcile()
        await bench.labels.reconcile()
        assert not bench.enrolment.pods
        assert not bench.attachments.all()
        assert not bench.attachments._gone
        assert not bench.attachments.steered()
        assert not bench.provisional.uids
        assert not bench.provisional._admitted
        assert not bench.labels.waiting
        assert not bench.labels._places
        assert bench.view().counts()["workloads"] == 0
        assert [key for key, _ in bench.state.metas("node/")] == ["received"]
        assert len(os.listdir("/proc/self/fd")) == descriptors

    run(scenario)


def test_whoever_looks_at_a_pod_that_can_not_be_put_in_is_told(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.enrolment.error = "no room"
        bench.tell(told())
        await bench.labels.reconcile()
        ((namespace, name, uid, reason, message, warning),) = bench.events.told
        assert (namespace, name, uid, reason, warning) == ("ns", "a", "u", "EnrolmentFailed", True)
        assert message == "it can't be put into the mesh, and is tried again: no room"

    run(scenario)


def test_what_could_not_be_written_is_tried_again_though_nothing_else_changes(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.tell(told())
        bench.full_times = 1
        serving = asyncio.create_task(bench.labels.run())
        async with asyncio.timeout(10):
            while not bench.enrolment.pods:
                await asyncio.sleep(0.01)
        serving.cancel()
        assert bench.full_times == 0

    run(scenario)


def test_a_number_that_the_kernel_gives_again_is_no_network_that_has_gone(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        old, new = add(container_id="old"), add(container_id="new")
        bench.attachments.add(Attached(old, INODE))
        bench.attachments.remove(Attached(old, INODE).attachment)
        assert bench.attachments.has_gone("u", INODE)
        bench.attachments.add(Attached(new, INODE))
        assert not bench.attachments.has_gone("u", INODE)

    run(scenario)


def test_what_the_roster_says_when_the_cni_has_its_turn_counts(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told())
        async with bench.labels._lock:
            waiting = asyncio.create_task(bench.labels.admit(add()))
            await asyncio.sleep(0)
            bench.tell(told(membership=Membership.OPTED_OUT))
        assert not (await waiting).in_mesh
        for later in ([told(uid="another")], []):
            bench.tell(told())
            async with bench.labels._lock:
                waiting = asyncio.create_task(bench.labels.admit(add()))
                await asyncio.sleep(0)
                bench.tell(*later, removed=() if later else ["ns/a"])
            with pytest.raises(EnrolmentError, match="pod ns/a has ended, says the controller"):
                await waiting
        assert not bench.enrolment.pods
        assert not bench.provisional.uids

    run(scenario)


def test_addresses_of_a_sandbox_before_are_not_the_pods_any_more(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told(addresses=()))
        before = Attached(add(container_id="before", addresses=("10.0.0.9",)), INODE + 1)
        await bench.keep(bench.attachments.add(before))
        await bench.labels.admit(add(addresses=("10.0.0.1",)))
        await bench.labels.admit(add(ifname="net1", addresses=("10.1.0.1",)))
        workload = bench.view().workload(UID)
        assert workload is not None
        assert workload.addresses == ("10.0.0.1", "10.1.0.1")

    run(scenario)


def test_a_place_that_is_given_up_while_others_are_looked_at_is_not_followed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bench: Bench) -> None:
        bench.tell(told())
        await bench.labels.admit(add())
        bench.finder.there.add("u")
        monkeypatch.setattr(labels, "leads_to", lambda spec: False)
        async with bench.labels._lock:
            watching = asyncio.create_task(bench.labels._watch())
            await asyncio.sleep(0)
            bench.labels._forget("ns/a", UID)  # as `gone` does, which has the lock
            await bench.enrolment.change({UID: None})
        await watching
        assert not bench.enrolment.pods

    run(scenario)
