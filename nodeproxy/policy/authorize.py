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
# A compiled policy of 10 rules takes some 15 KiB.
MAX_COMPILED_POLICIES = 1024
# A refusal for want of an ALLOW policy names so many of them: each such line of the access log has them.
MAX_NAMED = 16

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


class Named(msgspec.Struct, frozen=True):
    """Policies that a refusal names: the keys of the first `MAX_NAMED`, and how many there are."""

    first: tuple[str, ...] = ()
    count: int = 0


class Candidates(msgspec.Struct, frozen=True):
    """Of many policies that hold, those that may match one subject; the others can't (`nodeproxy.policy.index`).

    policies: by key.  allow, dry_allow: all the ALLOW policies that hold, enforced and dry-run, candidates or not.
    left_out: how many can't match.
    """

    policies: tuple[Policy, ...]
    allow: Named
    dry_allow: Named
    left_out: int


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
    """Policies that hold together, by what they do.  named, dry_named: the ALLOW policies, those that were left out too."""

    __slots__ = ("allow", "deny", "dry_allow", "dry_deny", "dry_named", "named", "policies")

    def __init__(self, policies: tuple[Policy, ...], candidates: Candidates | None = None) -> None:
        self.policies = policies  # keeps the objects alive whose identity is the cache's key
        self.deny = _select(policies, Action.DENY, dry_run=False)
        self.allow = _select(policies, Action.ALLOW, dry_run=False)
        self.dry_deny = _select(policies, Action.DENY, dry_run=True)
        self.dry_allow = _select(policies, Action.ALLOW, dry_run=True)
        self.named = _named(self.allow) if candidates is None else candidates.allow
        self.dry_named = _named(self.dry_allow) if candidates is None else candidates.dry_allow


def _select(policies: tuple[Policy, ...], action: Action, *, dry_run: bool) -> tuple[CompiledPolicy, ...]:
    return tuple(_compiled_policy(policy) for policy in policies if policy.action is action and policy.dry_run == dry_run)


def _named(policies: tuple[CompiledPolicy, ...]) -> Named:
    return Named(tuple(compiled.policy.key for compiled in policies[:MAX_NAMED]), len(policies))


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


def authorize(policies: Iterable[Policy] | Candidates, subject: Subject, trace: list[Considered] | None = None) -> Verdict:
    """What `policies` say about `subject`; each policy that was looked at goes to `trace`.

    Hand in the same tuple again (as `View.policies_for` does) and it is compiled once only.
    """
    if not policies:
        return _ALLOWED
    # Only a tuple can be asked for again: what was made for this call would push out what comes again.
    if isinstance(policies, tuple):
        compiled = _compiled_set(policies)
    elif isinstance(policies, Candidates):
        compiled = CompiledSet(policies.policies, policies)
    else:
        compiled = CompiledSet(tuple(policies))
    facts = Facts(subject)
    refusal, allow_matched = _decide(compiled, facts, trace)
    if not compiled.dry_deny and not compiled.dry_named.count:
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
    if not compiled.named.count:
        return None, False
    if _first_match(compiled.allow, facts, trace) is not None:
        return None, True
    return _no_allow(compiled.named), False


def _dry_run(compiled: CompiledSet, facts: Facts, allow_matched: bool, trace: list[Considered] | None) -> tuple[Refusal, ...]:
    """What the dry-run policies would add: each DENY that matches; the ALLOWs together, if no ALLOW matches."""
    refusals = []
    for policy in compiled.dry_deny:
        denied = _first_match((policy,), facts, trace)
        if denied is not None:
            refusals.append(_deny(*denied))
    if compiled.dry_named.count and not allow_matched and _first_match(compiled.dry_allow, facts, trace) is None:
        # The enforced ALLOWs were not asked if a DENY decided: ask them now.
        asked = _first_match(compiled.allow, facts, None)
        if asked is None:
            refusals.append(_no_allow(compiled.dry_named))
    return tuple(refusals)


def _deny(policy: Policy, rule: int) -> Refusal:
    if policy.stands_in:
        detail = f"policy {policy.key} can't be understood, so it denies everything: {policy.stands_in}"
        return Refusal(Reason.POLICY_DENY, detail, policy.key)
    return Refusal(Reason.POLICY_DENY, f"denied by DENY policy {policy.key}, rule {rule}", policy.key)


def _no_allow(policies: Named) -> Refusal:
    names = ", ".join(policies.first)
    more = policies.count - len(policies.first)
    detail = f"no ALLOW policy matched: {names} and {more} more" if more else f"no ALLOW policy matched: {names}"
    return Refusal(Reason.POLICY_NO_ALLOW, detail, policies.first[0])
