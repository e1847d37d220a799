"""AuthorizationPolicy and PeerAuthentication → the policies that nodes enforce, and which of them a workload lists.

Invariant: what is served is what a fresh table of the same resources would say, in whatever order they came; a change costs
what it changes.  Nothing that a resource says raises: it is read as narrow as it may be meant, with a note.
Knows nothing of workloads but a namespace and labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from nodeproxy.model.policy import Policy
from nodeproxy.translate import authorization_policy, objects, peer_authentication
from nodeproxy.translate.authorization_policy import Translated, translate_authorization_policy
from nodeproxy.translate.notes import Note
from nodeproxy.translate.peer_authentication import (
    PeerAuthentication,
    convert,
    listed,
    notes_beside,
    read_peer_authentication,
    static_strict,
    strict_below,
)
from nodeproxy.translate.selectors import SelectorIndex
from nodeproxy.translate.settings import MeshSettings

# Stands for every namespace in `PolicyChange.namespaces`.
EVERY_NAMESPACE = ""


class PolicyChange(msgspec.Struct, frozen=True):
    """What a change of a resource came to.

    policies: new or different.  removed: keys.
    namespaces: those whose workloads may list other policies now (`PolicyTable.holding`); with `EVERY_NAMESPACE` among them, any.
    """

    policies: tuple[Policy, ...] = ()
    removed: tuple[str, ...] = ()
    namespaces: frozenset[str] = frozenset()


class _Authentications:
    """The PeerAuthentications of a namespace."""

    __slots__ = ("general", "index", "oldest", "selecting")

    def __init__(self) -> None:
        self.general: dict[str, PeerAuthentication] = {}
        self.oldest: PeerAuthentication | None = None  # of the general ones: the one in force
        self.selecting: dict[str, PeerAuthentication] = {}
        self.index = SelectorIndex()

    def set(self, key: str, new: PeerAuthentication | None) -> None:
        """Puts `new` in the place of what `key` was; None: it is gone."""
        self.general.pop(key, None)
        self.selecting.pop(key, None)
        if new is not None:
            (self.general if new.selector is None else self.selecting)[key] = new
        self.index.set(key, new.selector if new else None)
        self.oldest = _oldest(self.general.values())


def _oldest(several: Iterable[PeerAuthentication]) -> PeerAuthentication | None:
    return min(several, key=lambda each: each.age, default=None)


_NONE = _Authentications()


class PolicyTable:
    """All policy resources, and what they mean."""

    KINDS = (authorization_policy.KIND, peer_authentication.KIND)

    def __init__(self, settings: MeshSettings) -> None:
        self._root = settings.root_namespace
        self._translated: dict[str, Translated] = {}
        self._selectors: dict[str, SelectorIndex] = {}  # by namespace: of AuthorizationPolicies, by the key of the policy
        self._authentications: dict[str, _Authentications] = {}  # by namespace
        self._converted: dict[str, Policy] = {}  # what came of PeerAuthentications, by the key of the policy

    def apply(self, kind: str, key: str, resource: objects.PolicyResource | None) -> PolicyChange:
        """Takes a resource of `KINDS`, by "namespace/name"; None: it is gone."""
        if kind == authorization_policy.KIND:
            new = None if resource is None else translate_authorization_policy(key, resource, self._root)
            return self._set_authorization(key, new)
        authentication = None if resource is None else read_peer_authentication(key, resource, self._root)
        return self._set_authentication(key, authentication)

    def holding(self, namespace: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The keys for `Workload.policies` of a workload of `namespace` with `labels`."""
        keys = []
        for where in {namespace, self._root}:
            if where in self._selectors:
                keys += self._selectors[where].matching(labels)
        keys.sort()
        authentications = self._in(namespace)
        selected = None
        if authentications.selecting and namespace != self._root:
            selected = _oldest(authentications.selecting[key] for key in authentications.index.matching(labels))
        return (*keys, *listed(selected, self._is_strict(namespace), self._root))

    def notes(self) -> list[Note]:
        """What of the resources is not enforced as written, in order of kind, key and field."""
        notes = [note for each in self._translated.values() for note in each.notes]
        for namespace, authentications in self._authentications.items():
            for each in (*authentications.general.values(), *authentications.selecting.values()):
                notes += each.notes
                notes += notes_beside(each, authentications.oldest, self._is_strict(namespace))
        return sorted(notes)

    # ── AuthorizationPolicy ──

    def _set_authorization(self, key: str, new: Translated | None) -> PolicyChange:
        old = self._translated.pop(key, None)
        if new is not None:
            self._translated[key] = new
        old_policy, new_policy = (each.policy if each else None for each in (old, new))
        old_selector, new_selector = (each.selector if each else None for each in (old, new))
        policy = new_policy or old_policy
        namespaces: frozenset[str] = frozenset()
        if policy is None:
            return PolicyChange()
        if old_selector != new_selector:
            index = self._selectors.setdefault(policy.namespace, SelectorIndex())
            index.set(policy.key, new_selector)
            if not index:
                del self._selectors[policy.namespace]
            namespaces = self._reach(policy.namespace)
        if new_policy is None:
            return PolicyChange(removed=(policy.key,), namespaces=namespaces)
        return PolicyChange(policies=(new_policy,) if new_policy != old_policy else (), namespaces=namespaces)

    def _reach(self, namespace: str) -> frozenset[str]:
        """The namespaces in which a policy of `namespace` holds."""
        return frozenset((EVERY_NAMESPACE if namespace == self._root else namespace,))

    # ── PeerAuthentication ──

    def _set_authentication(self, key: str, new: PeerAuthentication | None) -> PolicyChange:
        namespace = key.partition("/")[0]
        authentications = self._authentications.setdefault(namespace, _Authentications())
        old = authentications.general.get(key) or authentications.selecting.get(key)
        was_strict = self._is_strict(namespace)
        authentications.set(key, new)
        if not authentications.general and not authentications.selecting:
            del self._authentications[namespace]
        namespaces: frozenset[str] = frozenset()
        touched = [each for each in (old, new) if each is not None]
        if was_strict != self._is_strict(namespace):
            namespaces = self._reach(namespace)
            below = self._authentications if namespace == self._root else (namespace,)
            touched += [each for where in below for each in self._in(where).selecting.values()]
        elif namespace != self._root and old != new and any(each.selector is not None for each in touched):
            namespaces = frozenset((namespace,))
        return self._convert_again(touched, namespaces)

    def _convert_again(self, authentications: Iterable[PeerAuthentication], namespaces: frozenset[str]) -> PolicyChange:
        """Makes the policies of `authentications`, those that are gone too, as they are to be now."""
        static = static_strict(self._root)
        wanted: dict[str, Policy | None] = {static.key: static if self._authentications else None}
        for each in authentications:
            current = self._in(each.namespace).selecting.get(each.key) if each.namespace != self._root else None
            wanted[each.policy_key] = None if current is None else convert(current, self._is_strict(each.namespace))
        policies, removed = [], []
        for key, policy in wanted.items():
            old = self._converted.get(key)
            if policy is None:
                if old is not None:
                    del self._converted[key]
                    removed.append(key)
            elif policy != old:
                self._converted[key] = policy
                policies.append(policy)
        return PolicyChange(tuple(policies), tuple(removed), namespaces)

    def _in(self, namespace: str) -> _Authentications:
        return self._authentications.get(namespace, _NONE)

    def _is_strict(self, namespace: str) -> bool:
        """Whether STRICT is in force in `namespace`, for workloads that no PeerAuthentication selects."""
        mesh = strict_below(self._in(self._root).oldest, above=False)
        return mesh if namespace == self._root else strict_below(self._in(namespace).oldest, mesh)
