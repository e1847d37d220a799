"""PeerAuthentication → which workloads take plaintext, as DENY policies of connections without an identity.

Two forms reach a node: one policy that denies whatever has no identity, listed by every workload that is STRICT on all ports; and
for a workload whose ports differ, one made of its own PeerAuthentication, with what holds above it merged in, because any DENY
that matches denies, and an exception could not be said beside it.
Invariant: what is listed denies plaintext on every port on which STRICT is in force by Istio's rules of inheritance.  Istio's own
control plane serves the same, but for some mixtures of modes where a port that is STRICT would be left open.
Knows nothing of other policies, nor of workloads.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec

from nodeproxy.model.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch
from nodeproxy.translate import objects
from nodeproxy.translate.notes import Note, Notes, member, quoted
from nodeproxy.translate.selectors import Selector, read_selector
from nodeproxy.translate.values import parse_port

KIND = "PeerAuthentication"
# Kubernetes allows no underscores in names, so that no AuthorizationPolicy has such a one.
STATIC_STRICT = "istio_converted_static_strict"
_CONVERTED = "converted_peer_authentication_"

_ALL_STRICT = "STRICT holds for all ports"

_NO_IDENTITY: Clause = (Match(not_principals=(StringMatch(presence=True),)),)


class Mode(StrEnum):
    """Of mutual TLS.  A node takes plaintext by DISABLE as by PERMISSIVE; UNSET is what holds one level above."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class PeerAuthentication(msgspec.Struct, frozen=True):
    """One, as it was read.

    created: when, as text that sorts.  ports: their own modes.
    selector: None, also for one that is empty, if it holds for its namespace, or for the mesh.
    """

    namespace: str
    name: str
    created: str
    selector: Selector | None
    mode: Mode
    ports: tuple[tuple[int, Mode], ...]
    notes: tuple[Note, ...]

    @property
    def key(self) -> str:
        """Of the resource."""
        return f"{self.namespace}/{self.name}"

    @property
    def age(self) -> tuple[str, str]:
        """The least of several is the oldest, which is the one in force."""
        return self.created, self.name

    @property
    def policy_key(self) -> str:
        """Of the policy that is made of it, if one is (`convert`)."""
        return f"{self.namespace}/{_CONVERTED}{self.name}"


def static_strict(root_namespace: str) -> Policy:
    """The policy of workloads that take no plaintext at all."""
    return Policy(
        name=STATIC_STRICT,
        namespace=root_namespace,
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=((_NO_IDENTITY,),),
    )


def strict_below(authentication: PeerAuthentication | None, above: bool) -> bool:
    """Whether STRICT is in force under `authentication`, ports aside; above: whether it is one level higher."""
    if authentication is None or authentication.mode is Mode.UNSET:
        return above
    return authentication.mode is Mode.STRICT


def convert(authentication: PeerAuthentication, above: bool) -> Policy | None:
    """The policy of a workload whose ports differ from the rest of it; None if none do.  above: STRICT holds in its namespace."""
    strict = strict_below(authentication, above)
    ports = [port for port, mode in authentication.ports if mode is not Mode.UNSET and (mode is Mode.STRICT) != strict]
    if not ports:
        return None
    if strict:
        open_ports: list[Clause] = [(Match(not_destination_ports=(port,)),) for port in ports]
        rules: tuple[Rule, ...] = ((_NO_IDENTITY, *open_ports),)
    else:
        rules = tuple(((msgspec.structs.replace(_NO_IDENTITY[0], destination_ports=(port,)),),) for port in ports)
    return Policy(
        name=_CONVERTED + authentication.name,
        namespace=authentication.namespace,
        scope=PolicyScope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=rules,
    )


def listed(authentication: PeerAuthentication | None, above: bool, root_namespace: str) -> tuple[str, ...]:
    """The keys that a workload lists; authentication: the oldest one that selects it.  above: STRICT holds in its namespace."""
    strict = strict_below(authentication, above)
    if authentication is not None:
        modes = {mode for _, mode in authentication.ports}
        if not modes.isdisjoint(_lifting(authentication)) if strict else Mode.STRICT in modes:
            return (authentication.policy_key,)
    return (f"{root_namespace}/{STATIC_STRICT}",) if strict else ()


def _lifting(authentication: PeerAuthentication) -> tuple[Mode, ...]:
    """The modes of a port that have the workload list a policy of its own where STRICT is in force.

    Istio's control plane takes DISABLE as a reason only where the workload itself is STRICT, and leaves plaintext refused where
    the namespace or the mesh is.  That is narrower than what is written, and so it is the same here.
    """
    return (Mode.PERMISSIVE,) if authentication.mode is Mode.UNSET else (Mode.PERMISSIVE, Mode.DISABLE)


def notes_beside(authentication: PeerAuthentication, oldest: PeerAuthentication | None, above: bool) -> Iterator[Note]:
    """What is not in force of `authentication` because of others.  oldest: of those that hold for all its namespace."""
    if authentication.selector is None and oldest is not None and oldest is not authentication:
        yield Note(KIND, authentication.key, "spec", f"is younger than {oldest.key}", "it is not enforced")
    modes = {mode for _, mode in authentication.ports}
    if above and authentication.mode is Mode.UNSET and Mode.DISABLE in modes and Mode.PERMISSIVE not in modes:
        message = "has DISABLE under a STRICT of the namespace or the mesh"
        yield Note(KIND, authentication.key, "spec.portLevelMtls", message, "STRICT holds; PERMISSIVE would lift it")


# ── reading ──


def read_peer_authentication(key: str, resource: objects.PolicyResource, root_namespace: str) -> PeerAuthentication:
    """What `resource` says.  What is not sure of it makes it STRICT, as far as it goes."""
    notes = Notes(KIND, key)
    namespace, _, name = key.partition("/")
    selector, mode, ports = _read_spec(resource.spec, notes)
    if selector is not None and not selector.labels and (selector.sure or namespace == root_namespace):
        selector = None
    if selector is None:
        if any(each is Mode.STRICT for each in ports.values()):
            mode = Mode.STRICT
        for port in ports:
            notes.add(f"spec.portLevelMtls.{port}", "needs a selector", _without(ports[port]))
        ports = {}
    elif namespace == root_namespace:
        notes.add(
            "spec.selector", "is in the root namespace, where only what holds for the mesh is in force", "it is not enforced"
        )
    return PeerAuthentication(
        namespace=namespace,
        name=name,
        created=resource.metadata.creation_timestamp or "",
        selector=selector,
        mode=mode,
        ports=tuple(sorted(ports.items())),
        notes=notes.all(),
    )


def _without(mode: Mode) -> str:
    return _ALL_STRICT if mode is Mode.STRICT else "it is left out"


def _read_spec(spec: Any, notes: Notes) -> tuple[Selector | None, Mode, dict[int, Mode]]:
    """(selector, mode, modes of ports).  A port whose own mode can't be read is STRICT; with anything else, all of them are."""
    if spec is None:
        spec = {}
    if not isinstance(spec, dict):
        notes.add("spec", f"is {quoted(spec)}, not an object", _ALL_STRICT)
        return None, Mode.STRICT, {}
    selector = read_selector(spec.get("selector"), notes)
    sure = selector is None or selector.sure
    for name in spec:
        if name not in ("selector", "mtls", "portLevelMtls"):
            notes.add(member("spec", name), "is not known", _ALL_STRICT)
            sure = False
    mode = _read_mode(spec.get("mtls"), "spec.mtls", notes)
    ports = _read_ports(spec.get("portLevelMtls"), notes)
    if not sure or mode is None or ports is None:
        return selector, Mode.STRICT, {}
    return selector, mode, ports


def _read_ports(value: Any, notes: Notes) -> dict[int, Mode] | None:
    """The modes by port; None: there are ports that can't be read."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        notes.add("spec.portLevelMtls", f"is {quoted(value)}, not an object", _ALL_STRICT)
        return None
    ports: dict[int, Mode] = {}
    sure = True
    for name, written in value.items():
        # JSON has names only, YAML numbers too.
        port = parse_port(quoted(name) if isinstance(name, int) else name) if isinstance(name, int | str) else None
        field = member("spec.portLevelMtls", name)
        if not port:
            notes.add(field, "is no port", _ALL_STRICT)
            sure = False
            continue
        mode = _read_mode(written, field, notes) or Mode.STRICT
        if ports.setdefault(port, mode) is not mode:  # "80" and 80, or "080"
            notes.add(field, "is given twice", "STRICT holds for it")
            ports[port] = Mode.STRICT
    return ports if sure else None


def _read_mode(value: Any, field: str, notes: Notes) -> Mode | None:
    """`mtls` of a workload or a port; None: it can't be read."""
    if value is None:
        return Mode.UNSET
    if not isinstance(value, dict):
        notes.add(field, f"is {quoted(value)}, not an object", "STRICT holds")
        return None
    unknown = [name for name in value if name != "mode"]
    for name in unknown:
        notes.add(member(field, name), "is not known", "STRICT holds")
    written = value.get("mode")
    if unknown:
        return None
    if written is None:
        return Mode.UNSET
    if not isinstance(written, str) or written not in Mode.__members__:
        notes.add(f"{field}.mode", f"is {quoted(written)}, which is not known", "STRICT holds")
        return None
    return Mode(written)
