"""Which certificate to ask for next, and when: the manager's decisions without its clock, tasks or CA.

Times come in as seconds since the epoch and nothing here waits.  Invariants: at most `MAX_REQUESTS` identities are under way, an
identity never twice at once; a certificate that is still valid is given up for a newer one only, or when its last pod leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from nodeproxy.identity.certificate import IssuedCertificate

# What ztunnel allows itself towards istiod (protocols of Istio ambient): a node that starts with 100 pods must not flood the CA.
MAX_REQUESTS = 8
# Doubling from half a second to two and a half minutes, the cap that ztunnel uses.
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 150.0
# Each wait is cut by up to a fifth at random, so that the nodes which an outage put in step fall out of it again.
JITTER = 0.2
# Certificates that are cut short by their root's end live half as long each time: without a floor the last second would take
# requests without end.
MIN_RENEWAL_S = 1.0
# After a change of what vouches for the CA, a thousand nodes with ten identities each ask within this time: it can sign as many.
SPREAD_S = 10.0
# An error's text is kept for people; a CA's answer may be of any length.
MAX_WHY_CHARACTERS = 500


class Priority(IntEnum):
    """Who is waiting for it: lower goes first."""

    REAL_TIME = 0  # a connection waits
    WARM_UP = 1  # a pod has come and will connect
    BACKGROUND = 2  # a renewal; the one there is still serves


class CertificateStatistics(msgspec.Struct, frozen=True):
    """How one identity stands.

    valid_until, failing_since: seconds since the epoch, 0.0 without.  alarm: the operator should look, now.
    """

    identity: str
    pods: int
    valid_until: float
    renewing: bool
    failing_since: float
    failures: int
    why: str
    alarm: bool


@dataclass(slots=True)
class _Entry:
    priority: Priority
    due: float
    pods: set[str] = field(default_factory=set)
    certificate: IssuedCertificate | None = None
    renewal: float = 0.0  # when the certificate is to be renewed
    failing_since: float = 0.0
    failures: int = 0
    why: str = ""


class Schedule:
    """The identities that pods of this node want."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._under_way: set[str] = set()  # may hold an identity that is wanted no more: its request still takes a place

    def want(self, identity: str, pod: str, priority: Priority, now: float) -> None:
        """The pod needs this identity's certificate; a more urgent wish for one that is not made yet goes before the others."""
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry(priority, now)
        entry.pods.add(pod)
        self.hasten(identity, priority, now)

    def hasten(self, identity: str, priority: Priority, now: float) -> bool:
        """Raise the priority (it never falls while a certificate is awaited); False if nobody wants the identity."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        if self.certificate(identity, now) is None:
            entry.priority = min(priority, entry.priority)
        return True

    def unwant(self, identity: str, pod: str) -> bool:
        """The pod has left; True if it was the identity's last, which is forgotten then."""
        entry = self._entries.get(identity)
        if entry is None:
            return False
        entry.pods.discard(pod)
        if entry.pods:
            return False
        del self._entries[identity]
        return True

    def start(self, now: float) -> list[str]:
        """The identities to ask the CA for now, most urgent first; they count as under way."""
        free = MAX_REQUESTS - len(self._under_way)
        if free <= 0:
            return []
        due = [
            (entry.priority, entry.due, identity)
            for identity, entry in self._entries.items()
            if entry.due <= now and identity not in self._under_way
        ]
        chosen = [identity for _, _, identity in sorted(due)[:free]]
        self._under_way.update(chosen)
        return chosen

    def next_due(self, now: float) -> float | None:
        """Seconds until `start` has something, None if that takes an event first (an end of a request, a wish)."""
        if len(self._under_way) >= MAX_REQUESTS:
            return None
        times = [entry.due for identity, entry in self._entries.items() if identity not in self._under_way]
        return max(min(times) - now, 0.0) if times else None

    def succeeded(self, identity: str, certificate: IssuedCertificate, now: float) -> bool:
        """The CA gave a certificate; False if nobody wants it any more."""
        self._under_way.discard(identity)
        entry = self._entries.get(identity)
        if entry is None:
            return False
        entry.certificate = certificate
        entry.priority = Priority.BACKGROUND
        # Half-life: what is left then, as long again, is the time that a CA may be away without anybody noticing.  It counts from
        # now and not from `not_before`, which lies in the past: half of a short life would be over before it began.
        entry.due = entry.renewal = now + max((certificate.not_after - now) / 2, MIN_RENEWAL_S)
        entry.failing_since, entry.failures, entry.why = 0.0, 0, ""
        return True

    def failed(self, identity: str, why: str, now: float, jitter: float) -> None:
        """The CA gave none.  jitter: 0.0 to 1.0, by chance.  What is valid stays in use."""
        self._under_way.discard(identity)
        entry = self._entries.get(identity)
        if entry is None:
            return
        entry.failing_since = entry.failing_since or now
        entry.why = why[:MAX_WHY_CHARACTERS]
        # The exponent is bounded by the cap, and a CA may be away for days: 2.0 ** 1100 would overflow.
        wait_s = min(FIRST_BACKOFF_S * 2.0 ** min(entry.failures, 16), MAX_BACKOFF_S)
        entry.failures += 1
        entry.due = now + wait_s * (1.0 - JITTER * jitter)

    def renew_all(self, now: float, jitter: Callable[[], float]) -> None:
        """Ask again for everything, over `SPREAD_S`, for all nodes do so at once.  jitter: 0.0 to 1.0, by chance."""
        for identity, entry in self._entries.items():
            if entry.certificate is not None and identity not in self._under_way:
                entry.due = min(entry.due, now + SPREAD_S * jitter())

    def certificate(self, identity: str, now: float) -> IssuedCertificate | None:
        """What the identity has, unless it is expired."""
        entry = self._entries.get(identity)
        if entry is None or entry.certificate is None or entry.certificate.not_after <= now:
            return None
        return entry.certificate

    def certificates(self) -> list[IssuedCertificate]:
        """All there are."""
        return [entry.certificate for entry in self._entries.values() if entry.certificate is not None]

    def statistics(self, now: float) -> tuple[CertificateStatistics, ...]:
        """A row for each identity."""
        return tuple(self._row(identity, entry, now) for identity, entry in self._entries.items())

    def _row(self, identity: str, entry: _Entry, now: float) -> CertificateStatistics:
        until = entry.certificate.not_after if entry.certificate is not None else 0.0
        # A renewal begins at half-life; when half of what was left then has gone by in failures, somebody must look.
        alarm = entry.failures > 0 and now >= (entry.renewal + until) / 2
        return CertificateStatistics(
            identity, len(entry.pods), until, identity in self._under_way, entry.failing_since, entry.failures, entry.why, alarm
        )
