"""Which policies can match a connection at all, by what their rules name.

A rule that names principals, namespaces or ports can only match a subject that has one of each.  `index_keys` says under which
keys a policy is to be found, `values_of` under which a subject looks for policies.
Invariant: a policy that matches a subject has a key that the subject has too.  The reverse need not be so: whether it does match,
`authorize` says.  So whatever would make an index large or an entry long may be left out of it: negations, presence, a field too
many.
Knows nothing of where keys are kept (`nodeproxy.state`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b

from nodeproxy.model.policy import Clause, Match, Policy, Rule, StringMatch
from nodeproxy.policy.address import parse_cidr
from nodeproxy.policy.match import Facts

# A part of a key is (shape, value): the shape says of which field and how, ("p^9", "cluster.l") that a principal begins so.
Part = tuple[str, str]
# A key is a shape, its parts' shapes together, and their values.
Key = tuple[str, tuple[str, ...]]

# Alternatives of several fields or clauses multiply: "20 principals, each on 20 ports" would be 400 keys.  What goes beyond it is
# left out, the most telling field last.
MAX_RULE_KEYS = 64
# Fields that a key speaks of at most, so that a shape has a bounded length.
_MAX_PARTS = 6
# Of a longer prefix or suffix only this much is looked up, so that there are not as many shapes as lengths.
_MAX_AFFIX = 48
_EMPTY = Match()
_SHAPES_KEPT = 1024


def index_keys(policy: Policy) -> set[Key]:
    """The keys of a policy; without any it never matches.  Raises ConfigError for a CIDR that is none."""
    return {_key(parts) for rule in policy.rules for parts in _rule_parts(rule)}


@lru_cache(maxsize=_SHAPES_KEPT)
def values_of(shape: str) -> Callable[[Facts], tuple[str, ...] | None]:
    """What gives the values of `shape` for a subject, or None if it has none: then no policy of that shape matches it."""
    extractors = tuple(_extractor(part) for part in shape.split(",")) if shape else ()

    def values(facts: Facts) -> tuple[str, ...] | None:
        found = []
        for extract in extractors:
            value = extract(facts)
            if value is None:
                return None
            found.append(value)
        return tuple(found)

    return values


def digest(scope: bytes, group: bytes, shape: str, values: tuple[str, ...]) -> bytes:
    """A key in short: the text of one may be longer than a store's keys.  Two that fall together cost time, no more."""
    return blake2b(b"\0".join((scope, group, shape.encode(), *map(str.encode, values))), digest_size=12).digest()


# ── a policy's side ──


def _key(parts: tuple[Part, ...]) -> Key:
    ordered = sorted(parts[:_MAX_PARTS])
    return ",".join(shape for shape, _ in ordered), tuple(value for _, value in ordered)


def _rule_parts(rule: Rule) -> list[tuple[Part, ...]]:
    """The keys of a rule, as parts: clauses AND, so that they multiply; the most telling one first."""
    clauses = [_clause_parts(clause) for clause in rule if clause]
    return _product(sorted(clauses, key=_rank))


def _clause_parts(clause: Clause) -> list[tuple[Part, ...]]:
    """Matches OR, so that they add up.  One that nothing is known of makes the clause tell nothing."""
    return list(dict.fromkeys(parts for match in clause if match != _EMPTY for parts in _product(_fields(match))))


def _rank(alternatives: list[tuple[Part, ...]]) -> int:
    """How little a clause tells: the place of the first field of the least telling alternative, and nothing is least of all."""
    return max((_ORDER.index(parts[0][0][0]) if parts else len(_ORDER) for parts in alternatives), default=0)


def _fields(match: Match) -> list[list[tuple[Part, ...]]]:
    """The alternatives of each field, the most telling field first."""
    strings = (("p", match.principals), ("n", match.namespaces))
    found = {kind: _strings(kind, values) for kind, values in strings if values and not any(v.presence for v in values)}
    if match.service_accounts:
        found["a"] = [("a", f"{each.namespace}/{each.service_account}") for each in match.service_accounts]
    for kind, blocks in (("s", match.source_ips), ("d", match.destination_ips)):
        if blocks:
            found[kind] = [_block(kind, block) for block in blocks]
    if match.destination_ports:
        found["t"] = [("t", str(port)) for port in match.destination_ports]
    return [[(part,) for part in found[kind]] for kind in _ORDER if kind in found]


_ORDER = "pasndt"


def _strings(kind: str, values: Iterable[StringMatch]) -> list[Part]:
    parts = []
    for value in values:
        if value.exact is not None:
            parts.append((f"{kind}=", value.exact))
        if value.prefix is not None:
            text = value.prefix[:_MAX_AFFIX]
            parts.append((f"{kind}^{len(text)}", text))
        if value.suffix is not None:
            text = value.suffix[-_MAX_AFFIX:]
            parts.append((f"{kind}${len(text)}", text))
    return parts


def _block(kind: str, block: str) -> Part:
    network, mask = parse_cidr(block)
    bits = (mask & -mask).bit_length() - 1  # of the host's part
    return f"{kind}{bits}", f"{network >> bits:x}"


def _product(factors: list[list[tuple[Part, ...]]]) -> list[tuple[Part, ...]]:
    """Every way to take one of each, as far as they are not too many; nothing at all if a factor has none: it never holds."""
    if not all(factors):
        return []
    found: list[tuple[Part, ...]] = [()]
    for factor in factors:
        if found == [()] or len(found) * len(factor) <= MAX_RULE_KEYS:
            found = [parts + more for parts in found for more in factor]
    return found


# ── a subject's side ──


def _extractor(part: str) -> Callable[[Facts], str | None]:
    kind, how = part[0], part[1:]
    if kind == "t":
        return lambda facts: str(facts.port)
    if kind == "a":
        return lambda facts: f"{facts.namespace}/{facts.service_account}" if facts.service_account else None
    if kind in "sd":
        bits = int(how)
        if kind == "s":
            return lambda facts: f"{facts.source >> bits:x}" if facts.source >= 0 else None
        return lambda facts: f"{facts.destination >> bits:x}" if facts.destination >= 0 else None
    return _text(kind, how)


def _text(kind: str, how: str) -> Callable[[Facts], str | None]:
    # As `match` has it: no principal is matched by nothing, not even by an empty prefix; a namespace may be the empty one.
    def whole(facts: Facts) -> str | None:
        return facts.namespace if kind == "n" else facts.principal or None

    if how == "=":
        return whole
    length = int(how[1:])

    def affix(facts: Facts) -> str | None:
        text = whole(facts)
        if text is None or len(text) < length:
            return None
        return text[:length] if how[0] == "^" else text[len(text) - length :]

    return affix
