"""What people are told of pods that come in by label and leave."""

from __future__ import annotations

import pytest

from nodeproxy.model.delta import PodSpec
from nodeproxy.model.node_pod import Membership
from tests.unit.agent.pods import label_bench
from tests.unit.agent.pods.label_bench import HERE, INODE, UID, Bench, Run, add, told


def test_whoever_looks_at_a_pod_that_ran_already_is_told_of_its_way_in_and_out(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.update(("u", "w"))
        bench.tell(told(), told("b", uid="w", addresses=("10.0.0.2",)), told("c", uid="x", addresses=()))
        await bench.labels.reconcile()
        await bench.labels.admit(add("c", "x", addresses=("10.0.0.3",)))
        for name, standing in (("a", 2), ("b", 0), ("c", 0)):
            bench.standing._listener(f"K//Pod/ns/{name}", standing, False)
            bench.standing._listener(f"K//Pod/ns/{name}", standing, False)  # in another namespace, some time later
        assert [(name, uid, reason, warning) for _, name, uid, reason, _, warning in bench.events.told] == [
            ("a", "u", "Enrolled", False),
            ("a", "u", "StandingConnections", True),
            ("b", "w", "Enrolled", False),  # and not who was brought by the CNI: it has sent nothing yet
        ]
        assert bench.events.told[1][4].endswith("without encryption and past every policy, until they end: 2")
        bench.events.told.clear()
        bench.tell(told(membership=Membership.OPTED_OUT), removed=["ns/b"])
        await bench.labels.reconcile()
        ((_, name, uid, reason, message, warning),) = bench.events.told  # and not who has ended
        assert (name, uid, reason, warning) == ("a", "u", "Left", False)
        assert message.startswith("it has left the mesh: its own label istio.io/dataplane-mode keeps it out")

    run(scenario)


def test_nobody_is_told_again_of_what_an_agent_before_has_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bench: Bench) -> None:
        bench.finder.there.add("u")
        bench.tell(told())
        monkeypatch.setattr(label_bench.Enrolled, "fresh", False)
        await bench.labels.reconcile()
        bench.standing._listener(UID, 0, False)
        bench.tell(told(membership=Membership.OPTED_OUT))
        bench.enrolment.stuck = True
        await bench.labels.reconcile()
        assert bench.events.told == []

    run(scenario)


def test_whoever_looks_at_a_pod_that_comes_in_or_leaves_at_the_second_try_is_told_as_well(run: Run) -> None:
    async def scenario(bench: Bench) -> None:
        def reasons() -> list[str]:
            return [reason for _, _, _, reason, _, _ in bench.events.told]

        bench.finder.there.add("u")
        bench.enrolment.error = "no room"
        bench.tell(told())
        await bench.labels.reconcile()
        bench.enrolment.error = ""
        await bench.enrolment.change({UID: PodSpec(UID, HERE, INODE)})  # as Enrolment.watch does
        bench.standing._listener(UID, 2, False)
        assert reasons() == ["EnrolmentFailed", "Enrolled", "StandingConnections"]
        bench.events.told.clear()
        for ended in (False, True):
            bench.tell(told(membership=Membership.OPTED_OUT))
            bench.enrolment.stuck = True
            await bench.labels.reconcile()
            await bench.labels._watch()
            assert reasons() == []  # it is in still
            bench.enrolment.stuck = False
            await bench.enrolment.change({UID: None})
            bench.tell(removed=["ns/a"] if ended else ())
            await bench.labels._watch()
            await bench.labels._watch()
            assert reasons() == ([] if ended else ["Left"])
            bench.events.told.clear()
            bench.tell(told())
            await bench.labels.reconcile()
        assert not bench.labels._going

    run(scenario)
