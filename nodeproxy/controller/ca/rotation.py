"""Changes the controller's root, without a connection failing: what to do next, and doing it.

    steady     → spreading   the next root is made and published beside the present one, which goes on signing
    spreading  → draining    the next root signs; what it signs is sent with a certificate of its key by the root before
    draining   → steady      the root before is trusted no more: what it signed has ended

A change begins when the root is old, or when the Secret is annotated (`ASKED`).  Invariants: at each moment whatever is alive
leads to a root that is published; a step is made once, however many believe to be the leader, since it is written on top of the
version that it was decided on.  It must not know Secrets, nor who is the leader.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from cryptography import x509

from nodeproxy.controller.ca.keys import CaKeys, Phase
from nodeproxy.controller.ca.settings import CaSettings
from nodeproxy.errors import IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.rotation import successor

log = logging.getLogger(__name__)

# With this annotation on the Secret a change of root begins now; it is taken away when it has.
ASKED = "nodeproxy.io/rotate-root"
# No replica signs with keys that it has not seen confirmed for so long (`store`): then what was replaced signs no more.
FOLLOW_S = 600.0


class Store(Protocol):
    """Where the keys are kept: `store.CaStore`."""

    def confirmed(self) -> CaKeys | None:
        """The keys as they were read last, None if what was read is of no use."""
        ...

    def asked(self) -> bool:
        """Whether a change of root is asked for."""
        ...

    async def replace(self, keys: CaKeys) -> bool:
        """Write other keys, and that none is asked for any more; False if somebody else wrote meanwhile.  ClusterError."""
        ...


def next_step(keys: CaKeys, settings: CaSettings, now_s: float, asked: bool) -> CaKeys | None:
    """The keys after the next step of a change of root; None if none is due.  IdentityError: this root can have no successor."""
    match keys.phase:
        case Phase.STEADY if keys.own_root and (asked or _is_old(keys.certificate, settings.root_age, now_s)):
            following = successor(settings.trust_domain, keys.certificate, keys.key, now_s)
            return msgspec.structs.replace(keys, roots=(following.root, *keys.roots), following=following, since=now_s)
        case Phase.SPREADING if keys.following is not None and now_s >= keys.since + settings.root_overlap_s:
            root, key, cross = keys.following
            return CaKeys(certificate=root, key=key, chain=(cross,), roots=keys.roots, since=now_s)
        case Phase.DRAINING if now_s >= keys.since + settings.max_lifetime_s + pki.CLOCK_SKEW_S + FOLLOW_S:
            # Roots that somebody else put there stay: only the one before is known to be of no more use.
            kept = (root for root in keys.roots if root == keys.certificate or not pki.issued_by(keys.chain[0], root))
            return CaKeys(certificate=keys.certificate, key=keys.key, roots=tuple(kept))
    return None


class Rotation:
    """Makes the steps that are due.  clock: seconds since the epoch."""

    def __init__(self, store: Store, settings: CaSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._failure = ""

    async def rotate_if_due(self) -> bool:
        """Make one step, if one is due; whether one was made.  For the leader only.  ClusterError: the API server fails."""
        keys = self._store.confirmed()
        if keys is None:
            return False
        try:
            following = next_step(keys, self._settings, self._clock(), self._store.asked())
        except IdentityError as exc:
            if str(exc) != self._failure:
                self._failure = str(exc)
                log.error("the root can't be changed: %s; put another one into the Secret by hand", exc)
            return False
        if following is None or not await self._store.replace(following):
            return False
        self._failure = ""
        log.info("root: %s, %d roots are trusted, %s signs", following.phase, len(following.roots), following.certificate.subject)
        return True


def _is_old(root: x509.Certificate, age: float, now_s: float) -> bool:
    begin, end = root.not_valid_before_utc, root.not_valid_after_utc
    return datetime.fromtimestamp(now_s, UTC) >= begin + (end - begin) * age
