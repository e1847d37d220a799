"""AuthorizationPolicy and PeerAuthentication → the policies that nodes enforce, and which of them a workload lists.

Invariant: what is served is what a fresh table of the same resources would say, in whatever order they came; a change costs
what it changes.  Nothing that a resource says raises: it is read as narrow as it may be meant, with a note.
Knows nothing of workloads but a namespace and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from nodeproxy.model.policy import Policy
from nodeproxy.translate.notes import Note


class HasRootNamespace(Protocol):
    """The mesh's settings, as far as policies need them."""

    @property
    def root_namespace(self) -> str:
        """The namespace whose policies hold for the whole mesh."""


class PolicyMetadata(Protocol):
    """The metadata of a policy resource, as far as they are read."""

    @property
    def annotations(self) -> Mapping[str, str]:
        """`istio.io/dry-run` stands here."""

    @property
    def creation_timestamp(self) -> str | None:
        """RFC 3339 in UTC, which sorts as time does."""


class PolicyResource(Protocol):
    """An AuthorizationPolicy or PeerAuthentication; `spec` is as it was written, whatever that is."""

    @property
    def metadata(self) -> PolicyMetadata:
        """Of the resource."""

    @property
    def spec(self) -> Any:
        """A dict, if the resource is well-formed."""


class PolicyChange(msgspec.Struct, frozen=True):
    """What a change of a resource came to.

    policies: new or different.  removed: keys.
    namespaces: those whose workloads may list other policies now (`PolicyTable.holding`); with "" among them, any workload.
    """

    policies: tuple[Policy, ...] = ()
    removed: tuple[str, ...] = ()
    namespaces: frozenset[str] = frozenset()


class PolicyTable:
    """All policy resources, and what they mean."""

    KINDS = ("AuthorizationPolicy", "PeerAuthentication")

    def __init__(self, settings: HasRootNamespace) -> None:
        self._root = settings.root_namespace

    def apply(self, kind: str, key: str, resource: PolicyResource | None) -> PolicyChange:
        """Takes a resource of `KINDS`, by "namespace/name"; None: it is gone."""
        raise NotImplementedError

    def holding(self, namespace: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The keys for `Workload.policies` of a workload of `namespace` with `labels`."""
        raise NotImplementedError

    def notes(self) -> list[Note]:
        """What of the resources is not enforced as written, in order."""
        raise NotImplementedError
