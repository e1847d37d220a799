"""What sources hand to the agent, whichever they are: changes that know how they are written to the store.

Invariant: the agent need not know which source it has; a source need not know who is told of a change.
"""

from __future__ import annotations

from typing import Protocol

from nodeproxy.model.delta import PodSpec
from nodeproxy.state.store import Meta, StateWriter


class Change(Protocol):
    """News of the source, yet to be written to the store."""

    @property
    def pods(self) -> tuple[PodSpec, ...] | None:
        """The pods of this node to enrol, if the source has said all that there is to say for now; None: there is more to come,
        or nothing new about pods."""

    async def write(self, state: StateWriter, meta: Meta) -> None:
        """Write it, with `meta` in the same transaction; nobody else writes to `state` meanwhile.  Raises StateError."""
