"""The verdict of a set of policies on a connection.

The semantics are Istio's and ztunnel's: DENY first, any match denies; then, with no ALLOW policy, allow; with ALLOW policies,
any match allows, else deny.  Rules OR; clauses of a rule AND; matches of a clause OR.  A policy with empty rules never matches,
a rule without clauses always does; an empty clause is true; an empty Match is skipped, so a clause of nothing but empty matches
is false.
Dry-run policies never decide: what they would have refused is told beside the verdict.

Knows nothing of where policies come from and whom they hold for (`nodeproxy.state`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from nodeproxy.model.policy import Action, Policy
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.policy.match import Facts, Subject, Test, compile_match

# Sets of policies kept compiled: one for each distinct (namespace, selected policies) of the pods on a node, and a node has at
# most some hundred pods.
MAX_COMPILED_SETS = 1024
MAX_COMPILED_POLICIES = 8192

_NEVER = -1


class Considered(msgspec.Struct, frozen=True):
    """One policy that was looked at.  rule: index of the rule that matched, -1 if none did."""

    policy: Policy
    rule: int


class Verdict(msgspec.Struct, frozen=True):
    """What the policies say; `refusal` is set exactly if not `allowed`.  dry_run: what dry-run policies would have refused."""

    allowed: bool
    refusal: Refusal | None = None
    dry_run: tuple[Refusal, ...] = ()


_ALLOWED = Verdict(allowed=True)


class CompiledPolicy:
    """A policy whose rules are tests: for each rule the clauses, for each clause the tests of its non-empty matches."""

    __slots__ = ("policy", "rules")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rules: tuple[tuple[tuple[Test, ...], ...], ...] = tuple(
            # An empty clause is true: it is left out.  A clause whose matches are all empty stays, with no test that could hold.
            tuple(tuple(test for match in clause if (test := compile_match(match))) for clause in rule if clause)
            for rule in policy.rules
        )

    def matching_rule(self, facts: Facts) -> int:
        """The index of the first rule that matches, -1 if none does."""
        for index, clauses in enumerate(self.rules):
            for tests in clauses:
                if not any(test(facts) for test in tests):
                    break
            else:
                return index
        return _NEVER


class CompiledSet:
    """Policies that hold together, by what they do."""

    __slots__ = ("allow", "deny", "dry_allow", "dry_deny", "policies")

    def __init__(self, policies: tuple[Policy, ...]) -> None:
        self.policies = policies  # keeps the objects alive whose identity is the cache's key
        self.deny = _select(policies, Action.DENY, dry_run=False)
        self.allow = _select(policies, Action.ALLOW, dry_run=False)
        self.dry_deny = _select(policies, Action.DENY, dry_run=True)
        self.dry_allow = _select(policies, Action.ALLOW, dry_run=True)


def _select(policies: tuple[Policy, ...], action: Action, *, dry_run: bool) -> tuple[CompiledPolicy, ...]:
    return tuple(_compiled_policy(policy) for policy in policies if policy.action is action and policy.dry_run == dry_run)


_policies: OrderedDict[int, CompiledPolicy] = OrderedDict()
_sets: OrderedDict[int, CompiledSet] = OrderedDict()


def _compiled_policy(policy: Policy) -> CompiledPolicy:
    found = _policies.get(id(policy))
    if found is None:
        found = _policies[id(policy)] = CompiledPolicy(policy)
        if len(_policies) > MAX_COMPILED_POLICIES:
            _policies.popitem(last=False)
    return found


def _compiled_set(policies: tuple[Policy, ...]) -> CompiledSet:
    found = _sets.get(id(policies))
    if found is None:
        found = _sets[id(policies)] = CompiledSet(policies)
        if len(_sets) > MAX_COMPILED_SETS:
            _sets.popitem(last=False)
    return found


def authorize(policies: Iterable[Policy], subject: Subject, trace: list[Considered] | None = None) -> Verdict:
    """What `policies` say about `subject`; each policy that was looked at goes to `trace`.

    Hand in the same tuple again (as `View.policies_for` does) and it is compiled once only.
    """
    if not policies:
        return _ALLOWED
    # Only a tuple can be asked for again: what was made for this call would push out what comes again.
    compiled = _compiled_set(policies) if isinstance(policies, tuple) else CompiledSet(tuple(policies))
    facts = Facts(subject)
    refusal, allow_matched = _decide(compiled, facts, trace)
    if not compiled.dry_deny and not compiled.dry_allow:
        return _ALLOWED if refusal is None else Verdict(allowed=False, refusal=refusal)
    return Verdict(allowed=refusal is None, refusal=refusal, dry_run=_dry_run(compiled, facts, allow_matched, trace))


def check_policy(policy: Policy) -> None:
    """Raises ConfigError if `policy` can't be compiled: for sources, so that a bad policy is refused where it comes from."""
    CompiledPolicy(policy)


def _first_match(policies: tuple[CompiledPolicy, ...], facts: Facts, trace: list[Considered] | None) -> tuple[Policy, int] | None:
    for compiled in policies:
        rule = compiled.matching_rule(facts)
        if trace is not None:
            trace.append(Considered(compiled.policy, rule))
        if rule != _NEVER:
            return compiled.policy, rule
    return None


def _decide(compiled: CompiledSet, facts: Facts, trace: list[Considered] | None) -> tuple[Refusal | None, bool]:
    """(refusal or None, whether an ALLOW policy matched)."""
    denied = _first_match(compiled.deny, facts, trace)
    if denied is not None:
        return _deny(*denied), False
    if not compiled.allow:
        return None, False
    if _first_match(compiled.allow, facts, trace) is not None:
        return None, True
    return _no_allow(compiled.allow), False


def _dry_run(compiled: CompiledSet, facts: Facts, allow_matched: bool, trace: list[Considered] | None) -> tuple[Refusal, ...]:
    """What the dry-run policies would add: each DENY that matches; the ALLOWs together, if no ALLOW matches."""
    refusals = []
    for policy in compiled.dry_deny:
        denied = _first_match((policy,), facts, trace)
        if denied is not None:
            refusals.append(_deny(*denied))
    if compiled.dry_allow and not allow_matched and _first_match(compiled.dry_allow, facts, trace) is None:
        # The enforced ALLOWs were not asked if a DENY decided: ask them now.
        asked = _first_match(compiled.allow, facts, None)
        if asked is None:
            refusals.append(_no_allow(compiled.dry_allow))
    return tuple(refusals)


def _deny(policy: Policy, rule: int) -> Refusal:
    return Refusal(Reason.POLICY_DENY, f"denied by DENY policy {policy.key}, rule {rule}", policy.key)


def _no_allow(policies: tuple[CompiledPolicy, ...]) -> Refusal:
    keys = [compiled.policy.key for compiled in policies]
    names = ", ".join(keys)
    return Refusal(Reason.POLICY_NO_ALLOW, f"no ALLOW policy matched: {names}", keys[0])
