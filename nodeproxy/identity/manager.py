"""Keeps a certificate ready for each identity of this node's pods: the asyncio shell around `schedule.Schedule`.

It asks the CA, hands on what comes and watches the roots.  Invariant: keys are held here and handed to callbacks and, where the
CA may be away when the agent comes back, to `kept`, nowhere else; a CA that fails, hangs or lies costs new certificates and
nothing else.  It must not know workers, sockets or which CA it is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from nodeproxy.errors import IdentityError
from nodeproxy.identity.certificate import CertificateAuthority, IssuedCertificate
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.identity.schedule import CertificateStatistics, Priority, Schedule

log = logging.getLogger(__name__)

# A stat of four files; new roots matter at the scale of minutes (`rotation` needs no order).
ROOTS_POLL_S = 2.0
# A request that hangs must give its place back to the others; HBONE's connect timeout is as long.
REQUEST_TIMEOUT_S = 10.0


class CertificateManager:
    """Certificates made ahead of need, renewed at half-life, dropped with the last pod."""

    def __init__(
        self,
        authority: CertificateAuthority,
        *,
        on_certificate: Callable[[IssuedCertificate], None],
        on_dropped: Callable[[str], None],
        on_roots: Callable[[bytes], None],
        kept: KeptCertificates | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._authority = authority
        self._on_certificate = on_certificate
        self._on_dropped = on_dropped
        self._on_roots = on_roots
        self._kept = kept
        self._clock = clock
        self._jitter = jitter
        self._schedule = Schedule()
        self._changed = asyncio.Event()
        self._waiters: dict[str, list[asyncio.Future[IssuedCertificate]]] = {}
        self._roots = b""
        self._roots_failure = ""

    def want(self, identity: str, pod: str, priority: Priority = Priority.WARM_UP) -> None:
        """A pod (by uid) runs as this identity; saying it twice is saying it once."""
        self._schedule.want(identity, pod, priority, self._clock())
        self._changed.set()
        kept = self._kept.take(identity, self._clock()) if self._kept is not None else None
        if kept is not None:
            self._look_at_roots()  # which are handed on with it
            self._succeeded(identity, kept)

    def unwant(self, identity: str, pod: str) -> None:
        """The pod has left; with the last one the certificate goes."""
        if not self._schedule.unwant(identity, pod):
            return
        for waiter in self._waiters.pop(identity, ()):
            if not waiter.done():
                waiter.set_exception(IdentityError(f"no pod of this node runs as {identity} any more"))
        if self._kept is not None:
            self._kept.drop(identity)
        self._on_dropped(identity)

    def all_wanted(self) -> None:
        """All that pods of this node need was wanted: what was kept for others is forgotten."""
        if self._kept is not None:
            self._kept.drop_rest()

    def certificate(self, identity: str) -> IssuedCertificate | None:
        """What there is now: None if it was not made yet, is expired, or nobody wants it."""
        return self._schedule.certificate(identity, self._clock())

    def certificates(self) -> list[IssuedCertificate]:
        """All that there are, for a worker that has just begun."""
        return self._schedule.certificates()

    async def wait_certificate(self, identity: str) -> IssuedCertificate:
        """The certificate, as soon as it is there, before whatever nobody waits for; the caller sets the time limit."""
        present = self.certificate(identity)
        if present is not None:
            return present
        if not self._schedule.hasten(identity, Priority.REAL_TIME, self._clock()):
            raise IdentityError(f"no pod of this node runs as {identity}")
        waiter: asyncio.Future[IssuedCertificate] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(identity, []).append(waiter)
        self._changed.set()
        return await waiter

    def roots(self) -> bytes:
        """The trusted roots last seen (PEM); b"" before the first look."""
        return self._roots

    def statistics(self) -> tuple[CertificateStatistics, ...]:
        """How each identity stands."""
        return self._schedule.statistics(self._clock())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                self._look_at_roots()
                if self._authority.rotated():
                    self._schedule.renew_all(self._clock(), self._jitter)
                for identity in self._schedule.start(self._clock()):
                    tasks.create_task(self._request(identity), name=f"certificate {identity}")
                due_s = self._schedule.next_due(self._clock())
                try:
                    async with asyncio.timeout(ROOTS_POLL_S if due_s is None else min(due_s, ROOTS_POLL_S)):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def _request(self, identity: str) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                certificate = await self._authority.issue(identity)
            self._check(identity, certificate)
        except TimeoutError:
            self._failed(identity, f"the CA did not answer within {REQUEST_TIMEOUT_S:.0f} s")
        except IdentityError as exc:
            self._failed(identity, str(exc))
        except Exception as exc:
            log.exception("asking for a certificate of %s failed unexpectedly", identity)
            self._failed(identity, f"unexpected {type(exc).__name__}: {exc}")
        else:
            if self._succeeded(identity, certificate) and self._kept is not None:
                self._kept.keep(certificate)
        finally:
            self._changed.set()

    def _check(self, identity: str, certificate: IssuedCertificate) -> None:
        if certificate.identity != identity:
            raise IdentityError(f"the CA answered with a certificate of {certificate.identity}")
        if certificate.not_after <= self._clock():
            raise IdentityError("the CA answered with a certificate that is expired: compare the clocks")

    def _succeeded(self, identity: str, certificate: IssuedCertificate) -> bool:
        """Hand it on; False if nobody wants it any more."""
        if not self._schedule.succeeded(identity, certificate, self._clock()):
            return False
        self._on_certificate(certificate)
        for waiter in self._waiters.pop(identity, ()):
            if not waiter.done():
                waiter.set_result(certificate)
        return True

    def _failed(self, identity: str, why: str) -> None:
        log.warning("no certificate for %s: %s", identity, why)
        self._schedule.failed(identity, why, self._clock(), self._jitter())

    def _look_at_roots(self) -> None:
        try:
            roots = self._authority.roots()
        except IdentityError as exc:
            if str(exc) != self._roots_failure:  # once for each failure, not at each look
                self._roots_failure = str(exc)
                log.warning("the trusted roots stay as they were: %s", exc)
            return
        self._roots_failure = ""
        if roots != self._roots:
            self._roots = roots
            if self._kept is not None:
                self._kept.keep_roots(roots)
            self._on_roots(roots)
