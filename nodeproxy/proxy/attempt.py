"""One outbound connection on its way up: what it was, should it have to be decided on anew, and how much patience is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeproxy.proxy.session import Session


class Attempt:
    """peer, original: who connected, and to what.  until: when it waits no longer for its peer's node, 0 before it does.

    unserved: a tunnel has ended under it already; a second one may not.
    """

    __slots__ = ("original", "peer", "session", "unserved", "until")

    def __init__(self, session: Session, peer: tuple[str, int], original: tuple[str, int] | None) -> None:
        self.session = session
        self.peer = peer
        self.original = original
        self.until = 0.0
        self.unserved = False
