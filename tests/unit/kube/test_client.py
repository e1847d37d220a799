from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from nodeproxy.errors import ClusterError, ConfigError, OversizedAnswerError
from nodeproxy.kube import client as client_module
from nodeproxy.kube.client import KubeClient
from tests.unit.kube.playing_server import PATH, PlayingServer, body, failure, says, stream

Test = Callable[[PlayingServer, KubeClient], Awaitable[None]]


def play(folder: Path, test: Test) -> PlayingServer:
    server = PlayingServer(folder)

    async def main() -> None:
        async with server.serving():
            client = await KubeClient.connect(server.kubeconfig)
            try:
                await test(server, client)
            finally:
                await client.close()

    asyncio.run(main())
    return server


async def read(client: KubeClient, path: str, timeout_s: float | None = None) -> tuple[list[bytes], ClusterError | None]:
    """The lines of a stream, and the error that ended it."""
    found: list[bytes] = []
    try:
        async with client.stream(path, {"watch": "1"}, timeout_s=timeout_s) as lines:
            async for line in lines:
                found.append(line)
    except ClusterError as exc:
        return found, exc
    return found, None


def test_a_request_carries_query_body_and_token(tmp_path: Path) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read(), content_type=request.content_type)

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others["/x"] = echo
        answer = await client.request(
            "PATCH", "/x", query={"a": "b c"}, body=b'{"d":1}', content_type="application/merge-patch+json"
        )
        assert answer == b'{"d":1}'

    server = play(tmp_path, test)
    assert server.asked == [("PATCH", "/x", {"a": "b c"})]
    assert server.headers[0]["Authorization"] == "Bearer first"
    assert server.headers[0]["Content-Type"] == "application/merge-patch+json"


def test_an_error_has_status_message_advice_and_retry_after(tmp_path: Path) -> None:
    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others |= {"/slow": says(429, "later", **{"Retry-After": "7"}), "/denied": says(403, "pods is forbidden")}
        server.others["/html"] = body_with_status(502, b"<html>" * 20_000)
        with pytest.raises(ClusterError, match="later") as caught:
            await client.request("GET", "/slow")
        assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)
        with pytest.raises(ClusterError, match="pods is forbidden; apply daemonset/base") as caught:
            await client.request("GET", "/denied")
        assert (caught.value.status, caught.value.retry_after_s) == (403, None)
        with pytest.raises(ClusterError, match="502 Bad Gateway"):
            await client.request("GET", "/html")
        with pytest.raises(ClusterError) as caught:
            async with client.stream("/denied"):
                pass
        assert caught.value.status == 403

    play(tmp_path, test)


def body_with_status(status: int, content: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def script(request: web.Request) -> web.StreamResponse:
        return web.Response(body=content, status=status)

    return script


def test_a_redirect_is_an_error_and_takes_no_token_elsewhere(tmp_path: Path) -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others["/x"] = elsewhere
        with pytest.raises(ClusterError) as caught:
            await client.request("GET", "/x")
        assert caught.value.status == 302

    assert [path for _, path, _ in play(tmp_path, test).asked] == ["/x"]


def test_a_server_that_is_away_or_silent_is_status_0(tmp_path: Path) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others |= {"/silent": silent, "/cut": cut}
        with pytest.raises(ClusterError, match="did not answer in time") as caught:
            await client.request("GET", "/silent", timeout_s=0.05)
        assert caught.value.status == 0
        with pytest.raises(ClusterError, match="broke off") as caught:
            await client.request("GET", "/cut")
        assert caught.value.status == 0
        server.watches.append(stream(b"a\n"))
        found, error = await read(client, PATH, timeout_s=0.05)
        assert found == [b"a"]
        assert error is not None
        assert "in time" in str(error)

    play(tmp_path, test)


def test_nothing_unbounded_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 1000)
    monkeypatch.setattr(client_module, "MAX_LINE_BYTES", 10)

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others |= {"/long": body(b"x" * 1001), "/exact": body(b"x" * 1000), "/line": stream(b"short\n", b"y" * 11)}
        assert len(await client.request("GET", "/exact")) == 1000
        with pytest.raises(OversizedAnswerError):
            await client.request("GET", "/long")
        found, error = await read(client, "/line")
        assert found == [b"short"]
        assert isinstance(error, OversizedAnswerError)

    play(tmp_path, test)


def test_a_stream_says_when_it_was_cut(tmp_path: Path) -> None:
    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.watches += [stream(b"a\nb", b"\nc", then="end"), stream(b"a\n", then="cut"), stream(b"a\nb\n", then="end")]
        for reason in ("within a line", "broke off", ""):
            found, error = await read(client, PATH)
            assert found[:1] == [b"a"]
            assert reason in str(error) if reason else error is None

    play(tmp_path, test)


def test_an_error_of_the_reader_is_not_taken_for_the_servers(tmp_path: Path) -> None:
    async def fail(client: KubeClient) -> None:
        async with client.stream(PATH, {"watch": "1"}) as lines:
            async for _ in lines:
                raise OSError("mine")

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.watches.append(stream(b"a\n"))
        with pytest.raises(OSError, match="mine"):
            await fail(client)

    play(tmp_path, test)


def test_a_token_that_changed_is_used_when_the_old_one_is_refused(tmp_path: Path) -> None:
    async def guarded(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"in") if request.headers["Authorization"] == "Bearer second" else failure(401, "who?")

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others["/x"] = guarded
        with pytest.raises(ClusterError, match="renew"):
            await client.request("GET", "/x")
        server.token_file.write_text("second\n")
        assert await client.request("POST", "/x", body=b"{}") == b"in"

    assert [method for method, _, _ in play(tmp_path, test).asked] == ["GET", "POST", "POST"]


def test_files_are_read_again_each_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PERIOD_S", 0.0)

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others["/x"] = body(b"")
        await client.request("GET", "/x")
        server.token_file.write_text("second")
        await client.request("GET", "/x")
        server.token_file.unlink()  # as between two writes: what was there stays in use
        await client.request("GET", "/x")

    server = play(tmp_path, test)
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer first", "Bearer second", "Bearer second"]


def test_another_server_in_the_kubeconfig_ends_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PERIOD_S", 0.0)
    (tmp_path / "other").mkdir()
    other = PlayingServer(tmp_path / "other")
    other.others["/x"] = body(b"other")

    async def test(server: PlayingServer, client: KubeClient) -> None:
        async with other.serving():
            go_on = asyncio.Event()

            async def two_lines(request: web.Request) -> web.StreamResponse:
                response = web.StreamResponse()
                await response.prepare(request)
                await response.write(b"one\n")
                await go_on.wait()
                await response.write(b"two\n")
                return response

            server.others["/lines"] = two_lines
            async with client.stream("/lines") as lines:
                assert await anext(lines) == b"one"
                server.kubeconfig.write_bytes(other.kubeconfig.read_bytes())
                assert await client.request("GET", "/x") == b"other"
                go_on.set()
                assert await anext(lines) == b"two"

    play(tmp_path, test)


def test_a_netrc_file_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others["/x"] = body(b"in")
        assert await client.request("GET", "/x") == b"in"

    assert play(tmp_path, test).headers[0]["Authorization"] == "Bearer first"


@pytest.mark.parametrize("bypass", ["", "127.0.0.1"])
def test_a_proxy_of_the_environment_is_used_unless_it_is_to_be_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bypass: str
) -> None:
    async def test(server: PlayingServer, client: KubeClient) -> None:
        server.others["/x"] = body(b"through the proxy")
        monkeypatch.setenv("http_proxy", client_address(server))
        monkeypatch.setenv("no_proxy", bypass)
        server.write_kubeconfig("http://127.0.0.1:1" if bypass else "http://api.invalid")  # a name is the proxy's to look up
        other = await KubeClient.connect(server.kubeconfig)
        try:
            if bypass:
                with pytest.raises(ClusterError, match="not reached"):
                    await other.request("GET", "/x", timeout_s=2)
            else:
                assert await other.request("GET", "/x") == b"through the proxy"
        finally:
            await other.close()

    play(tmp_path, test)


def client_address(server: PlayingServer) -> str:
    return str(yaml.safe_load(server.kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


@pytest.mark.parametrize("content", [None, "", "a: [", "a: 1", "current-context: x\ncontexts: []\nclusters: []", "- 1"])
def test_a_kubeconfig_that_can_not_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"kubeconfig {path} can't be used"):
        asyncio.run(KubeClient.connect(path))


def test_outside_of_a_pod_a_kubeconfig_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="give --kubeconfig FILE"):
        asyncio.run(KubeClient.connect(None))
