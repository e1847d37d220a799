"""Which resources of an xDS source are rejected now, and how many were in all: for `status`, metric and log.

Invariant: bounded, whatever the server sends; a resource that has come in a form that can be used, or was removed, is not there.
"""

from __future__ import annotations

import logging
from collections import Counter

from nodeproxy.xds.delta_client import Rejected

# So many are told one by one; of more, only the number.
MAX_LISTED = 100
_MAX_KEPT = 10_000
# Each server that goes wrong goes wrong in bulk: after so many lines for one message the rest is one line.
_MAX_LOGGED = 10

log = logging.getLogger(__name__)


class RejectedResources:
    """All types of one source."""

    def __init__(self) -> None:
        self.totals: Counter[tuple[str, str]] = Counter()  # by type and reason, since the start
        self._now: dict[tuple[str, str], Rejected] = {}

    def add(self, type_url: str, rejected: Rejected, logged: int) -> None:
        """One more; logged: how many of its message were told before it."""
        self.totals[type_url, rejected.reason] += 1
        before = self._now.get((type_url, rejected.name))
        if before is None and len(self._now) >= _MAX_KEPT:
            return
        self._now[type_url, rejected.name] = rejected
        if before is not None and before.reason == rejected.reason:
            return  # a server may send it again and again, and each stream begins with it
        if logged < _MAX_LOGGED:
            log.warning(
                "%s %r of the control plane is rejected (%s): %s", _short(type_url), rejected.name, rejected.reason, rejected.why
            )
        elif logged == _MAX_LOGGED:
            log.warning("and more %s of that message; the metric counts them", _short(type_url))

    def clear(self, type_url: str, name: str) -> None:
        """It can be used now, or is gone."""
        if self._now:
            self._now.pop((type_url, name), None)

    def now(self) -> Counter[str]:
        """How many there are now, by type."""
        return Counter(type_url for type_url, _ in self._now)

    def listed(self) -> list[dict[str, str]]:
        """The first of those that there are now."""
        return [
            {"type": _short(type_url), "name": each.name, "reason": each.reason, "why": each.why}
            for (type_url, _), each in list(self._now.items())[:MAX_LISTED]
        ]


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]
