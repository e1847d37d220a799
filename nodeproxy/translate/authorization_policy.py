"""One AuthorizationPolicy → the policy that nodes enforce.

A node sees a connection, not its requests, and knows fewer fields than Istio may have.
Invariant: what can't be enforced never widens access.  An ALLOW rule that asks for more than a node can see allows nothing, and
the policy exists all the same, so that its presence denies; a DENY rule is applied without what can't be seen, and denies more.
Where Istio's own control plane drops such a condition, and a node would then allow more than is written, this module is narrower.
Knows nothing of other policies, nor of workloads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nodeproxy.model.policy import Action, Clause, Match, Policy, PolicyScope, Rule
from nodeproxy.translate import objects
from nodeproxy.translate.notes import Note, Notes, member, quoted
from nodeproxy.translate.selectors import Selector, read_selector
from nodeproxy.translate.values import CONDITIONS, LAYER_7_FIELDS, OPERATION_FIELDS, SOURCE_FIELDS, UNSUPPORTED_FIELDS, Field

KIND = "AuthorizationPolicy"
DRY_RUN = "istio.io/dry-run"
# What Go's strconv.ParseBool takes, with which Istio reads annotations.
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))

_SPEC_FIELDS = frozenset(("action", "rules", "selector", "targetRef", "targetRefs", "provider"))
_RULE_FIELDS = frozenset(("from", "to", "when"))
_CONDITION_FIELDS = frozenset(("key", "values", "notValues"))

_EVERY_CONNECTION: tuple[Rule, ...] = ((),)
_EMPTY = Match()


class Translated(msgspec.Struct, frozen=True):
    """What an AuthorizationPolicy means.

    policy: None if nodes have no part in it.
    selector: of the workloads that list it; None: none do, it holds for its namespace, or for all.
    """

    policy: Policy | None
    selector: Selector | None
    notes: tuple[Note, ...]


def translate_authorization_policy(key: str, resource: objects.PolicyResource, root_namespace: str) -> Translated:
    """What `resource`, whose key is "namespace/name", means to nodes."""
    notes = Notes(KIND, key)
    spec = resource.spec if resource.spec is not None else {}
    if not isinstance(spec, dict):
        notes.add("spec", f"is {quoted(spec)}, not an object", "every connection is denied")
        spec = {"action": Action.DENY, "rules": [{}]}
    if _is_for_waypoints(spec, notes):
        return Translated(None, None, notes.all())
    selector = read_selector(spec.get("selector"), notes)
    action, rules = _action_and_rules(spec, key.partition("/")[0], selector, notes)
    if action is None:
        return Translated(None, None, notes.all())
    namespace, _, name = key.partition("/")
    if selector is not None:
        scope = PolicyScope.WORKLOAD_SELECTOR
    else:
        scope = PolicyScope.GLOBAL if namespace == root_namespace else PolicyScope.NAMESPACE
    policy = Policy(
        name=_name(name, notes),
        namespace=namespace,
        scope=scope,
        action=action,
        rules=rules,
        dry_run=_dry_run(resource.metadata.annotations, notes),
    )
    return Translated(policy, selector, notes.all())


def _name(name: str, notes: Notes) -> str:
    """`name`, unless it could be one of those that PeerAuthentications get: Kubernetes has no names with underscores."""
    if "_" not in name:
        return name
    notes.add("metadata.name", f"is {quoted(name)}, which Kubernetes does not allow", "the policy has a longer name")
    return f"authorization_policy_{name}"


def _dry_run(annotations: Any, notes: Notes) -> bool:
    value = annotations.get(DRY_RUN, "")
    if value in _TRUE:
        return True
    if value and value not in _FALSE:
        notes.add(f"metadata.annotations[{DRY_RUN}]", f"is {quoted(value)}, neither true nor false", "the policy is enforced")
    return False


def _is_for_waypoints(spec: dict[str, Any], notes: Notes) -> bool:
    """Whether `spec` names what it is for, which is enforced by waypoints."""
    targets = [("spec.targetRef", spec.get("targetRef"))]
    listed = spec.get("targetRefs")
    if isinstance(listed, list):
        targets += [(f"spec.targetRefs[{index}]", target) for index, target in enumerate(listed)]
    elif listed is not None:
        targets.append(("spec.targetRefs", listed))
    targets = [(field, target) for field, target in targets if target is not None]
    unreadable = [field for field, target in targets if not _is_target(target)]
    if targets and not unreadable and spec.get("selector") is not None:
        unreadable = [targets[0][0]]
    for field in unreadable:
        notes.add(field, "is not the one thing that the policy is for", "the policy is for workloads")
    if not targets or unreadable:
        return False
    notes.add(targets[0][0], "is enforced by waypoints", "nodes do not enforce it")
    return True


def _is_target(target: Any) -> bool:
    return isinstance(target, dict) and all(isinstance(target.get(name), str) and target[name] for name in ("kind", "name"))


def _action_and_rules(
    spec: dict[str, Any], namespace: str, selector: Selector | None, notes: Notes
) -> tuple[Action | None, tuple[Rule, ...]]:
    """None for the action: the policy decides nothing."""
    written = spec.get("action")
    if written == "AUDIT":
        notes.add("spec.action", "is AUDIT, which decides nothing", "nodes do not audit")
        return None, ()
    if written is None or written == "ALLOW":
        rules = _rules(spec.get("rules"), namespace, Action.ALLOW, notes)
        sure = selector is None or selector.sure
        if _unsupported(spec, _SPEC_FIELDS - {"provider"}, "spec", "the policy allows nothing", notes) or not sure:
            rules = ()
        return Action.ALLOW, rules
    if written == "CUSTOM":
        notes.add("spec.action", "is CUSTOM: a node has nobody to ask", "what would be asked about is denied")
        known = _SPEC_FIELDS
    elif written == "DENY":
        known = _SPEC_FIELDS - {"provider"}
    else:
        notes.add("spec.action", f"is {quoted(written)}, which is not known", "every connection is denied")
        return Action.DENY, _EVERY_CONNECTION
    _unsupported(spec, known, "spec", "the policy denies without it", notes)
    return Action.DENY, _rules(spec.get("rules"), namespace, Action.DENY, notes)


def _unsupported(value: dict[Any, Any], known: Iterable[str], path: str, consequence: str, notes: Notes) -> bool:
    """Notes the fields of `value` that are not `known`; whether there are any."""
    unknown = [name for name in value if name not in known]
    for name in unknown:
        notes.add(member(path, name), "is not supported", consequence)
    return bool(unknown)


def _rules(value: Any, namespace: str, action: Action, notes: Notes) -> tuple[Rule, ...]:
    if value is None or value == []:
        if action is Action.DENY:
            notes.add("spec.rules", "is empty", "the policy denies nothing")
        return ()
    if not isinstance(value, list):
        rules, consequence = (
            ((), "nothing is allowed") if action is Action.ALLOW else (_EVERY_CONNECTION, "every connection is denied")
        )
        notes.add("spec.rules", f"is {quoted(value)}, not a list", consequence)
        return rules
    read = (_RuleReader(f"spec.rules[{index}]", namespace, action, notes).read(rule) for index, rule in enumerate(value))
    return tuple(rule for rule in read if rule is not None)


class _RuleReader:
    """Reads one rule: an ALLOW rule so that it allows at most, a DENY rule so that it denies at least what is written."""

    def __init__(self, path: str, namespace: str, action: Action, notes: Notes) -> None:
        self._path, self._namespace, self._notes = path, namespace, notes
        self._allow = action is Action.ALLOW
        self._in_doubt = False

    def read(self, value: Any) -> Rule | None:
        """None: an ALLOW rule that allows nothing."""
        rule = self._object(value, self._path, _RULE_FIELDS)
        clauses = [
            *self._alternatives(rule, "to", "operation", OPERATION_FIELDS),
            *self._alternatives(rule, "from", "source", SOURCE_FIELDS),
        ]
        for index, condition in enumerate(self._list(rule, "when", self._path)):
            clauses.append((self._condition(condition, f"{self._path}.when[{index}]"),))
        if self._allow:
            return None if self._in_doubt else tuple(clauses)
        # Nothing is left of such a match that could be asked for: so it holds, and with it its clause.
        return tuple(clause for clause in clauses if _EMPTY not in clause)

    def _alternatives(self, rule: dict[str, Any], name: str, part: str, fields: dict[str, Field]) -> tuple[Clause, ...]:
        """The clause of `from` or `to`, if there is one."""
        path = f"{self._path}.{name}"
        if rule.get(name) == []:
            self._doubt(path, "is an empty list")
        matches = []
        for index, entry in enumerate(self._list(rule, name, self._path)):
            wrapped = self._object(entry, f"{path}[{index}]", (part,))
            inner = f"{path}[{index}].{part}"
            values = self._object(wrapped.get(part), inner, fields)
            matches.append(
                self._match([(f"{inner}.{each}", fields[each], values.get(each)) for each in values if each in fields], inner)
            )
        return (tuple(matches),) if matches else ()

    def _condition(self, value: Any, path: str) -> Match:
        """One of `when`."""
        condition = self._object(value, path, _CONDITION_FIELDS)
        key = condition.get("key")
        pair = CONDITIONS.get(key) if isinstance(key, str) else None
        if pair is None:
            self._doubt(f"{path}.key", f"is {quoted(key)}, for which a connection can't be asked")
            return _EMPTY
        return self._match([(f"{path}.{name}", field, condition.get(name)) for name, field in pair.items()], path)

    def _match(self, written: list[tuple[str, Field, Any]], path: str) -> Match:
        """The match of some fields.  An empty one never holds in an ALLOW rule, and always in a DENY rule (`read`)."""
        values: dict[str, tuple[Any, ...]] = {}
        never = False
        for where, field, value in written:
            good, bad = self._values(value, where, field)
            if bad and self._allow:
                # What a bad value would exclude is unknown; one that would admit is left out.
                never = never or field.negative or not good
            elif bad and not field.negative:
                good = ()
            values[field.name] = good
        match = _EMPTY if never else Match(**values)
        if match == _EMPTY and not self._in_doubt:
            self._notes.add(path, "asks for nothing", "it allows nothing" if self._allow else "it holds for every connection")
        return match

    def _values(self, value: Any, path: str, field: Field) -> tuple[tuple[Any, ...], bool]:
        """(what could be read, whether there was more)."""
        if value is None:
            return (), False
        if not isinstance(value, list):
            self._doubt(path, f"is {quoted(value)}, not a list")
            return (), True
        good, bad = [], False
        for index, text in enumerate(value):
            parsed = field.parse(text, self._namespace) if isinstance(text, str) else None
            if parsed is None:
                bad = True
                self._notes.add(f"{path}[{index}]", f"is {quoted(text)}, which can't be read", self._read_as(field))
            else:
                good.append(parsed)
        return tuple(good), bad

    def _read_as(self, field: Field) -> str:
        """What becomes of a value that can't be read."""
        if self._allow:
            return "nothing is allowed beside it" if field.negative else "nothing is allowed by it"
        return "it excludes nothing" if field.negative else "any value is denied"

    # ── shapes ──

    def _doubt(self, path: str, message: str) -> None:
        """`path` can't be enforced as it is written."""
        self._in_doubt = True
        self._notes.add(path, message, "the rule allows nothing" if self._allow else "the rule denies without it")

    def _object(self, value: Any, path: str, known: Iterable[str]) -> dict[str, Any]:
        """`value`, with its unknown fields noted; {} if it is no object."""
        if not isinstance(value, dict):
            self._doubt(path, f"is {quoted(value)}, not an object")
            return {}
        for name, content in value.items():
            if name in known:
                continue
            if name not in LAYER_7_FIELDS and name not in UNSUPPORTED_FIELDS:
                self._doubt(member(path, name), "is not known")
            elif content is not None and content != []:  # an empty list says nothing, as Istio has it
                self._doubt(
                    f"{path}.{name}",
                    "is of HTTP, which a node does not see" if name in LAYER_7_FIELDS else "is not supported",
                )
        return value

    def _list(self, value: dict[str, Any], name: str, path: str) -> list[Any]:
        found = value.get(name)
        if found is None:
            return []
        if not isinstance(found, list):
            self._doubt(f"{path}.{name}", f"is {quoted(found)}, not a list")
            return []
        return found
