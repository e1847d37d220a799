from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from nodeproxy.errors import IdentityError
from nodeproxy.identity import ca_client
from nodeproxy.identity.ca_client import CaClient
from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.identity.rotation import rotate
from tests.unit.agent.sources.xds_agent import control
from tests.xds_server import ControlPlaneServer, Root, write_root

WHO = "spiffe://cluster.local/ns/a/sa/b"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlPlaneServer]:
    made = ControlPlaneServer(ca=LocalCA.create(tmp_path / "ca"))
    yield made
    made.stop()


def run(client: CaClient, scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await scenario()
        finally:
            await client.close()

    asyncio.run(whole())


def test_a_certificate_and_the_roots_that_came_with_it(server: ControlPlaneServer) -> None:
    client = CaClient(control(server.start()), ttl_s=3600)

    async def scenario() -> None:
        assert client.roots() == b""
        issued = await client.issue(WHO)
        assert issued.identity == WHO
        assert server.ca is not None
        assert client.roots() == server.ca.roots_pem
        ((identity, metadata),) = server.certificate_requests
        assert (identity, metadata["clusterid"]) == (WHO, "c1")

    run(client, scenario)


def test_new_roots_are_those_of_the_last_certificate(tmp_path: Path, server: ControlPlaneServer) -> None:
    client = CaClient(control(server.start()), ttl_s=3600, roots=b"kept")

    async def scenario() -> None:
        assert client.roots() == b"kept"
        await client.issue(WHO)
        before = client.roots()
        rotate(tmp_path / "ca")
        server.ca = LocalCA.open(tmp_path / "ca")
        await client.issue(WHO)
        assert client.roots() == server.ca.roots_pem != before

    run(client, scenario)


def test_what_was_kept_is_asked_for_again_once(server: ControlPlaneServer) -> None:
    client = CaClient(control(server.start()), ttl_s=3600, roots=b"kept")
    assert client.rotated()
    assert not client.rotated()
    assert not CaClient(control(f"http://{server.address}"), ttl_s=3600).rotated()


def test_token_and_root_are_read_for_each_request(tmp_path: Path, server: ControlPlaneServer) -> None:
    old, new = Root(), Root()
    file, token = write_root(tmp_path / "root.pem", old), tmp_path / "token"
    token.write_text("first")
    server.token = "first"
    client = CaClient(control(server.start(root=old), root=file, token=token), ttl_s=3600)

    async def scenario() -> None:
        await client.issue(WHO)
        server.token = "second"
        with pytest.raises(IdentityError, match="refused: unauthenticated: authentication failure"):
            await client.issue(WHO)
        token.write_text("second")
        await client.issue(WHO)
        assert not client.rotated()
        write_root(file, new)
        assert client.rotated()
        assert not client.rotated()  # told once
        with pytest.raises(IdentityError, match="no CA can be reached.*CERTIFICATE_VERIFY_FAILED"):
            await client.issue(WHO)
        address = server.address
        server.stop()
        server.start(address, root=new)
        await client.issue(WHO)

    run(client, scenario)


def test_the_next_server_is_asked(server: ControlPlaneServer) -> None:
    gone = ControlPlaneServer()
    gone_url = gone.start()
    gone.stop()
    client = CaClient(control(gone_url, server.start()), ttl_s=3600)

    async def scenario() -> None:
        await client.issue(WHO)
        await client.issue(WHO)
        server.stop()
        with pytest.raises(IdentityError, match=f"no CA can be reached: .*{gone_url}"):
            await client.issue(WHO)

    run(client, scenario)


def test_a_server_that_hangs_costs_one_request(server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_client, "REQUEST_TIMEOUT_S", 0.1)
    client = CaClient(control(server.start()), ttl_s=3600)

    async def scenario() -> None:
        real, release = server.sign, asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang(request: object) -> list[str]:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)
            return real(request)  # type: ignore[arg-type]

        monkeypatch.setattr(server, "sign", hang)
        with pytest.raises(IdentityError, match="deadline_exceeded"):
            await client.issue(WHO)
        release.set()

    run(client, scenario)


def test_a_lie_is_not_used(server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = CaClient(control(server.start()), ttl_s=3600)
    monkeypatch.setattr(server, "sign", lambda request: ["", ""])

    async def scenario() -> None:
        with pytest.raises(IdentityError, match="no PEM certificate"):
            await client.issue(WHO)
        assert client.roots() == b""

    run(client, scenario)


def test_other_answers_are_final(server: ControlPlaneServer) -> None:
    server.ca = None
    client = CaClient(control(server.start()), ttl_s=3600)

    async def scenario() -> None:
        with pytest.raises(IdentityError, match=f"refused: {grpc.StatusCode.UNIMPLEMENTED.name.lower()}: no CA here"):
            await client.issue(WHO)

    run(client, scenario)
