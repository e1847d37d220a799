"""A policy resource, as far as it is read: so that the readers need not know how resources are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class PolicyMetadata(Protocol):
    """The metadata that are read."""

    @property
    def annotations(self) -> Mapping[str, str]:
        """`istio.io/dry-run` stands here."""

    @property
    def creation_timestamp(self) -> str | None:
        """RFC 3339 in UTC, which sorts as time does."""


class PolicyResource(Protocol):
    """An AuthorizationPolicy or PeerAuthentication."""

    @property
    def metadata(self) -> PolicyMetadata:
        """Of the resource."""

    @property
    def spec(self) -> Any:
        """A dict, if the resource is well-formed; else whatever was written."""
