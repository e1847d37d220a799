"""The manager over the real local CA, and over one that misbehaves on command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.errors import IdentityError
from nodeproxy.identity import manager as manager_module
from nodeproxy.identity.certificate import IssuedCertificate
from nodeproxy.identity.kept import KeptCertificates
from nodeproxy.identity.local_ca import LocalAuthority, LocalCA
from nodeproxy.identity.manager import CertificateManager
from nodeproxy.identity.rotation import rotate
from nodeproxy.identity.schedule import MAX_REQUESTS, Priority

A, B = "spiffe://cluster.local/ns/a/sa/a", "spiffe://cluster.local/ns/b/sa/b"


class Seen:
    """What the manager called back with."""

    def __init__(self) -> None:
        self.certificates: list[IssuedCertificate] = []
        self.dropped: list[str] = []
        self.roots: list[bytes] = []

    def manager(self, authority: Any, **options: Any) -> CertificateManager:
        return CertificateManager(
            authority,
            on_certificate=self.certificates.append,
            on_dropped=self.dropped.append,
            on_roots=self.roots.append,
            **options,
        )


class Scripted:
    """A CA that answers when the test says so."""

    def __init__(self, ca: LocalCA) -> None:
        self.ca = ca
        self.asked: list[str] = []
        self.under_way = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.answer: Callable[[str], IssuedCertificate] = ca.issue
        self.bundle = ca.roots_pem
        self.rotation = False

    async def issue(self, identity: str) -> IssuedCertificate:
        self.asked.append(identity)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        return self.answer(identity)

    def roots(self) -> bytes:
        return self.bundle

    def rotated(self) -> bool:
        told, self.rotation = self.rotation, False
        return told


@asynccontextmanager
async def running(manager: CertificateManager) -> Any:
    task = asyncio.create_task(manager.run())
    try:
        yield
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until it holds; the clock is not looked at."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 5.0))  # type: ignore[arg-type]


def test_a_certificate_ahead_of_need(ca: LocalCA, tmp_path: Path) -> None:
    async def body() -> None:
        seen = Seen()
        manager = seen.manager(LocalAuthority(tmp_path / "ca"))
        manager.want(A, "pod")
        assert manager.certificate(A) is None
        async with running(manager):
            certificate = await manager.wait_certificate(A)
            assert seen.certificates == [certificate] == manager.certificates()
            assert manager.certificate(A) is certificate
            assert await manager.wait_certificate(A) is certificate
            assert seen.roots == [ca.roots_pem]
            assert manager.roots() == ca.roots_pem
            manager.unwant(A, "pod")
            assert seen.dropped == [A]
            assert manager.certificate(A) is None
            with pytest.raises(IdentityError, match="no pod"):
                await manager.wait_certificate(A)

    run(body)


def test_a_hundred_identities_eight_at_a_time(ca: LocalCA) -> None:
    async def body() -> None:
        seen, authority = Seen(), Scripted(ca)
        manager = seen.manager(authority)
        for number in range(100):
            manager.want(f"spiffe://cluster.local/ns/a/sa/a{number}", f"pod-{number}")
        async with running(manager):
            await until(lambda: authority.under_way == MAX_REQUESTS)
            urgent = "spiffe://cluster.local/ns/a/sa/a99"
            waiting = asyncio.create_task(manager.wait_certificate(urgent))
            await asyncio.sleep(0)
            authority.gate.set()
            await waiting
            assert authority.asked.index(urgent) == MAX_REQUESTS
            await until(lambda: len(seen.certificates) == 100)
            assert authority.most == MAX_REQUESTS

    run(body)


def test_renewal_keeps_the_old_one_until_the_new_one_is_there(ca: LocalCA) -> None:
    async def body() -> None:
        seen, authority = Seen(), Scripted(ca)
        now = [ca.issue(A).not_before + 120.0]
        manager = seen.manager(authority, clock=lambda: now[0])
        authority.gate.set()
        manager.want(A, "pod")
        async with running(manager):
            first = await manager.wait_certificate(A)
            authority.gate.clear()
            now[0] += 43_201.0
            manager.want(A, "pod")  # wakes the loop as its timer would
            await until(lambda: authority.under_way == 1)
            assert manager.certificate(A) is first
            assert manager.statistics()[0].renewing
            authority.gate.set()
            await until(lambda: len(seen.certificates) == 2)
            assert manager.certificate(A) is seen.certificates[1]

    run(body)


def refuse(_identity: str) -> IssuedCertificate:
    raise IdentityError("the CA says no")


def crash(_identity: str) -> IssuedCertificate:
    raise ZeroDivisionError("defect")


@pytest.mark.parametrize(
    ("answer", "words"), [(refuse, "says no"), (crash, "unexpected ZeroDivisionError"), (None, "certificate of")]
)
def test_a_ca_that_fails_or_lies_costs_nothing_else(answer: Any, words: str, ca: LocalCA) -> None:
    async def body() -> None:
        seen, authority = Seen(), Scripted(ca)
        authority.answer = answer or (lambda identity: ca.issue(B))
        authority.gate.set()
        now = [ca.issue(A).not_before + 120.0]
        manager = seen.manager(authority, jitter=lambda: 1.0, clock=lambda: now[0])
        manager.want(A, "pod")
        async with running(manager):
            await until(lambda: manager.statistics()[0].failures == 1)
            row = manager.statistics()[0]
            assert words in row.why
            assert row.failing_since > 0
            assert seen.certificates == []
            authority.answer = ca.issue
            now[0] += 0.41  # half a second of back-off, cut by a fifth
            assert (await manager.wait_certificate(A)).identity == A
            assert manager.statistics()[0].failures == 0

    run(body)


def test_an_expired_answer_is_refused(ca: LocalCA) -> None:
    async def body() -> None:
        seen, authority = Seen(), Scripted(ca)
        authority.gate.set()
        manager = seen.manager(authority, clock=lambda: 4e9)
        manager.want(A, "pod")
        async with running(manager):
            await until(lambda: manager.statistics()[0].failures == 1)
            assert "expired" in manager.statistics()[0].why

    run(body)


def test_a_ca_that_hangs_gives_its_place_back(ca: LocalCA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "REQUEST_TIMEOUT_S", 0.01)

    async def body() -> None:
        manager = Seen().manager(Scripted(ca))
        manager.want(A, "pod")
        async with running(manager):
            while not manager.statistics()[0].failures:
                await asyncio.sleep(0.001)
            assert "did not answer" in manager.statistics()[0].why

    run(body)


def test_who_waits_is_told_when_the_last_pod_leaves(ca: LocalCA) -> None:
    async def body() -> None:
        seen, authority = Seen(), Scripted(ca)
        manager = seen.manager(authority)
        manager.want(A, "pod")
        async with running(manager):
            waiting = asyncio.create_task(manager.wait_certificate(A))
            await until(lambda: authority.under_way == 1)
            manager.unwant(A, "pod")
            with pytest.raises(IdentityError, match="any more"):
                await waiting
            authority.gate.set()
            await until(lambda: authority.under_way == 0)
            await asyncio.sleep(0)
            assert seen.certificates == []
            assert seen.dropped == [A]

    run(body)


def test_new_roots_are_noticed_and_broken_ones_are_not_taken(ca: LocalCA, tmp_path: Path, caplog: Any) -> None:
    async def body() -> None:
        seen = Seen()
        manager = seen.manager(LocalAuthority(tmp_path / "ca"))
        async with running(manager):
            await until(lambda: len(seen.roots) == 1)
            rotate(tmp_path / "ca")
            manager.want(A, "pod", Priority.BACKGROUND)
            await until(lambda: len(seen.roots) == 2)
            assert seen.roots[1].count(b"BEGIN") == 2
            key = tmp_path / "ca" / "ca-key.pem"
            key.chmod(0o644)
            manager.want(B, "pod")
            await until(lambda: "stay as they were" in caplog.text)
            assert manager.roots() == seen.roots[1]
            assert len(seen.roots) == 2

    run(body)


def test_what_is_kept_serves_until_the_ca_is_back(tmp_path: Path) -> None:
    ca = LocalCA.create(tmp_path / "ca")
    seen, scripted = Seen(), Scripted(ca)
    kept = KeptCertificates(tmp_path / "kept", time.time())
    kept.keep(ca.issue(A))
    kept.keep(ca.issue(B))
    again = KeptCertificates(tmp_path / "kept", time.time())

    async def body() -> None:
        manager = seen.manager(scripted, kept=again)
        manager.want(A, "pod")
        assert [each.identity for each in seen.certificates] == [A]
        assert seen.roots == [ca.roots_pem]  # first, for a certificate is told with them
        manager.all_wanted()
        async with running(manager):
            await until(lambda: manager.certificate(A) is not None)
            assert scripted.asked == []
            manager.want(B, "pod")
            await until(lambda: scripted.asked == [B])
            scripted.gate.set()
            await until(lambda: len(seen.certificates) == 2)
        manager.unwant(A, "pod")

    run(body)
    last = KeptCertificates(tmp_path / "kept", time.time())
    assert last.roots() == ca.roots_pem
    assert last.take(A, time.time()) is None
    assert last.take(B, time.time()) == seen.certificates[1]


def test_all_are_asked_for_again_when_what_vouches_for_the_ca_changes(tmp_path: Path) -> None:
    seen, scripted = Seen(), Scripted(LocalCA.create(tmp_path / "ca"))
    scripted.gate.set()

    async def body() -> None:
        manager = seen.manager(scripted, jitter=lambda: 0.0)
        manager.want(A, "pod")
        async with running(manager):
            await until(lambda: len(seen.certificates) == 1)
            scripted.rotation = True
            manager.want(B, "pod")
            await until(lambda: sorted(scripted.asked) == [A, A, B])

    run(body)
