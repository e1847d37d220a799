"""A reader that keeps what no change touched answers as one that has just been opened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nodeproxy.model.delta import Delta, Everything
from nodeproxy.model.policy import Action, Policy, PolicyScope
from nodeproxy.model.workload import Service, Workload
from nodeproxy.policy.match import Subject
from nodeproxy.state import view
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import StateWriter
from nodeproxy.state.view import View
from tests.unit.state.builders import dump, pod, service

NAMESPACES = ("ns", "other")
IPS = ("10.0.0.1", "10.0.0.2", "fd00::1")
NETWORKS = ("", "n1", "a/b")
NAMES = ("a", "b", "c")
SERVICES = tuple(f"{namespace}/{name}.svc" for namespace in NAMESPACES for name in NAMES)
POLICIES = tuple(f"{namespace}/{name}" for namespace in (*NAMESPACES, "root") for name in NAMES)
SUBJECT = Subject("spiffe://td/ns/ns/sa/a", IPS[0], IPS[1], 80)


class Chance:
    """Deltas by chance, of few names, so that they meet often."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def some(self, values: tuple[str, ...], most: int = 2) -> tuple[str, ...]:
        return tuple(self.random.sample(values, self.random.randrange(most + 1)))

    def workload(self, name: str) -> Workload:
        choice = self.random.choice
        return pod(
            name,
            *self.some(IPS),
            services=dict.fromkeys(self.some(SERVICES), {80: 1}),
            namespace=choice(NAMESPACES),
            network=choice(NETWORKS),
            policies=self.some(POLICIES),
            node=choice(NAMES),
            host_network=choice((False, False, True)),
        )

    def service(self) -> Service:
        choice = self.random.choice
        flags = {"canonical": choice((False, True)), "namespace_only": choice((False, True))}
        return service(choice(NAMES), *self.some(IPS), namespace=choice(NAMESPACES), **flags)

    def policy(self, key: str) -> Policy:
        namespace, _, name = key.partition("/")
        choice = self.random.choice
        scope, action = choice(tuple(PolicyScope)), choice(tuple(Action))
        return Policy(name=name, namespace=namespace, scope=scope, action=action, dry_run=choice((False, True)))

    def delta(self) -> Delta:
        return Delta(
            workloads=tuple(map(self.workload, self.some(NAMES))),
            services=tuple(self.service() for _ in range(self.random.randrange(2))),
            policies=tuple(map(self.policy, self.some(POLICIES))),
            removed_workloads=self.some(NAMES, 1),
            removed_services=self.some(SERVICES, 1),
            removed_policies=self.some(POLICIES, 1),
        )


def all_answers(state: View) -> list[object]:
    pods = [pod("x", namespace=namespace, policies=listed) for namespace in NAMESPACES for listed in ((), POLICIES[:2])]
    answers: list[object] = [state.epoch, state.is_incomplete, state.counts()]
    answers += [state.workload(name) for name in NAMES]
    answers += [state.service(key) for key in SERVICES]
    answers += [state.workload_at(network, ip) for network in NETWORKS for ip in IPS]
    answers += [state.service_at(network, ip) for network in NETWORKS for ip in IPS]
    answers += [state.service_by_host(f"{name}.svc", namespace) for name in NAMES for namespace in NAMESPACES]
    answers += [state.endpoints(key) for key in SERVICES]
    answers += [state.policies_for(each) for each in pods]
    answers += [state.relevant_policies(each, SUBJECT) for each in pods]
    answers += [state.policy(key) for key in POLICIES]
    return answers


@pytest.mark.parametrize("most_walked", [0, 16])
@pytest.mark.parametrize("looks", [1.0, 0.3, 0.05])  # at how many of the epochs: who misses some catches up, or has lost count
def test_a_long_lived_reader_answers_as_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: float, most_walked: int
) -> None:
    monkeypatch.setattr(view, "MAX_WALKED", most_walked)
    chance = Chance(7)
    writer = StateWriter(tmp_path)
    reader = writer.reader()
    looked = 0
    for _ in range(1000):
        writer.apply(chance.delta())
        if chance.random.random() < looks:
            looked += 1
            fresh = StateReader(tmp_path)
            assert all_answers(reader.view()) == all_answers(fresh.view())
            reader.release()
            fresh.close()
    assert looked > 20
    reader.close()
    writer.close()


def test_a_replaced_state_is_the_one_that_was_given(tmp_path: Path) -> None:
    chance = Chance(5)
    writer = StateWriter(tmp_path / "long-lived")
    for turn in range(60):
        names = [f"{name}{number}" for name in NAMES for number in range(4)]
        chance.random.shuffle(names)
        given = Everything(
            workloads=tuple(chance.workload(name) for name in names if chance.random.random() < 0.7),
            services=tuple({each.key: each for each in (chance.service() for _ in range(4))}.values()),
            policies=tuple(map(chance.policy, chance.some(POLICIES, len(POLICIES)))),
        )
        epoch = writer.replace(given)
        assert writer.replace(given) == epoch
        fresh = StateWriter(tmp_path / str(turn))
        fresh.replace(given)
        fresh.close()
        assert dump(tmp_path / "long-lived") == dump(tmp_path / str(turn))
    writer.close()
