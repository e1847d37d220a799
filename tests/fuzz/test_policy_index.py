"""The index of policies decides as the walk over all of them does."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.model.delta import Delta
from nodeproxy.model.reason import Reason
from nodeproxy.policy.authorize import Candidates, CompiledPolicy, Verdict, authorize
from nodeproxy.policy.index import index_keys, values_of
from nodeproxy.policy.match import Facts
from nodeproxy.state import view
from nodeproxy.state.store import StateWriter
from tests.fuzz.random_policies import Chance
from tests.unit.state.builders import pod


def test_a_policy_that_matches_is_found() -> None:
    chance = Chance(1)
    matching = found = 0
    for _ in range(3000):
        policy = chance.policy()
        compiled, keys = CompiledPolicy(policy), index_keys(policy)
        for _ in range(4):
            facts = Facts(chance.subject())
            is_found = any(values_of(shape)(facts) == values for shape, values in keys)
            found += is_found
            if compiled.matching_rule(facts) >= 0:
                matching += 1
                assert is_found, (policy, facts.principal, facts.port)
    assert matching > 1000  # so that this shows something
    assert found < 2 * matching  # nor is everything found


def told(verdict: Verdict) -> tuple[object, ...]:
    return verdict.allowed, verdict.refusal, verdict.dry_run


@pytest.mark.parametrize("seed", range(4))
def test_the_verdict_is_the_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(view, "MAX_WALKED", 0)
    chance = Chance(seed)
    writer = StateWriter(tmp_path)
    reader = writer.reader()
    reasons: list[Reason | None] = []
    for _ in range(60):
        removed = tuple(policy.key for policy in chance.some(chance.policy, 6))
        writer.apply(Delta(policies=chance.some(chance.policy, 6), removed_policies=removed))
        state = reader.view()
        for _ in range(10):
            listed = tuple({policy.key: None for policy in chance.some(chance.policy)})
            workload = pod("w", namespace=chance.random.choice(("ns", "other", "third")), policies=listed)
            subject = chance.subject()
            walked = authorize(state.policies_for(workload), subject)
            relevant = state.relevant_policies(workload, subject)
            assert told(authorize(relevant, subject)) == told(walked)
            if isinstance(relevant, Candidates):
                assert len(relevant.policies) + relevant.left_out == len(state.policies_for(workload))
            reasons.append(walked.refusal.reason if walked.refusal else None)
    assert {*reasons} == {None, Reason.POLICY_DENY, Reason.POLICY_NO_ALLOW}
    reader.close()
    writer.close()
