"""One outbound connection on its way up: what it was, should it have to be decided on anew, and how much patience is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodeproxy.proxy.plans import Plan
    from nodeproxy.proxy.session import Session

# Where a connection was made to; None: nobody knows.
Original = tuple[str, int] | None


class Attempt:
    """client_ip, original: who connected, and to what.  plan: by which it is tried now.

    passed_over: endpoints that were not reached.  until: when it waits no longer for its peer's node, 0 before it does.
    unserved: a tunnel has ended under it already; a second one may not.
    """

    __slots__ = ("client_ip", "original", "passed_over", "plan", "session", "unserved", "until")

    def __init__(self, session: Session, client_ip: str, original: Original, plan: Plan) -> None:
        self.session = session
        self.client_ip = client_ip
        self.original = original
        self.plan = plan
        self.passed_over: tuple[str, ...] = ()
        self.until = 0.0
        self.unserved = False
