from __future__ import annotations

import json
import socket
from pathlib import Path

import click
import pytest

from nodeproxy import config
from nodeproxy.cli.client import SOCKET_NAME, Client
from nodeproxy.errors import NodeproxyError
from tests.unit.cli.conftest import FakeAdmin


def test_reads_over_the_socket_and_over_tcp(admin: FakeAdmin, run_dir: Path, tcp: str):
    admin.answers["GET /why?source=a%2Fb&destination=c%3A80"] = (200, {"steps": []})
    query = {"source": "a/b", "destination": "c:80"}
    assert Client.of_run_dir(run_dir).get("/why", query) == {"steps": []}
    assert Client.of_address(config.address(tcp)).get("/why", query) == {"steps": []}


def test_the_socket_needs_no_token(admin: FakeAdmin, run_dir: Path):
    admin.answers["POST /pods"] = (200, {"uid": "u", "enrolled_ms": 1.5})
    assert Client.of_run_dir(run_dir).post("/pods", {"uid": "u", "netns": "/n"})["enrolled_ms"] == 1.5
    [(_, headers, body)] = admin.requests
    assert "Authorization" not in headers
    assert json.loads(body) == {"uid": "u", "netns": "/n"}


def test_over_tcp_the_token_comes_from_the_run_directory(
    admin: FakeAdmin, tcp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("NODEPROXY_ADMIN_TOKEN", raising=False)
    (tmp_path / "admin.token").write_text("secret\n")
    admin.answers |= {"GET /version": (200, {"run_dir": str(tmp_path)}), "DELETE /pods/a": (200, {"uid": "a"})}
    client = Client.of_address(config.address(tcp))
    assert client.delete("/pods/a") == {"uid": "a"}
    assert admin.requests[-1][1]["Authorization"] == "Bearer secret"
    (tmp_path / "admin.token").unlink()
    with pytest.raises(NodeproxyError, match=r"can't read the admin token in .*admin\.token: .*be root"):
        client.delete("/pods/a")
    monkeypatch.setenv("NODEPROXY_ADMIN_TOKEN", "given")
    client.delete("/pods/a")
    assert admin.requests[-1][1]["Authorization"] == "Bearer given"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, click.UsageError), (403, NodeproxyError), (409, NodeproxyError), (503, NodeproxyError)]
)
def test_a_refusal_is_told_in_the_agents_words(admin: FakeAdmin, run_dir: Path, status: int, kind: type[Exception]):
    admin.answers["GET /status"] = (status, {"error": "the agent's words"})
    with pytest.raises(kind) as caught:
        Client.of_run_dir(run_dir).get("/status")
    assert "the agent's words" in str(getattr(caught.value, "message", caught.value))


@pytest.mark.parametrize("content", [b"<html>", b"[1]", b"\xff"])
def test_a_stranger_on_the_address_is_named_as_one(admin: FakeAdmin, tcp: str, content: bytes):
    admin.answers["GET /status"] = (200, content)
    with pytest.raises(NodeproxyError, match=f"^{tcp} is no nodeproxy"):
        Client.of_address(config.address(tcp)).get("/status")


def test_nobody_there_names_what_was_tried_and_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(config, "RUN_ROOT", tmp_path)
    client = Client.of_run_dir(tmp_path / "default")
    with pytest.raises(NodeproxyError, match=rf"^no agent answers: {tmp_path}/default/{SOCKET_NAME} .*Start one"):
        client.get("/status")
    (tmp_path / "blue").mkdir()
    (tmp_path / "blue" / SOCKET_NAME).touch()
    with pytest.raises(NodeproxyError, match=r"Did you mean --instance blue\?$"):
        client.get("/status")
    with pytest.raises(
        NodeproxyError, match=r"^no agent answers at 127\.0\.0\.1:1: Connection refused.*Did you mean --instance blue"
    ):
        Client.of_address(config.Address("127.0.0.1", 1)).get("/status")


def test_a_socket_that_an_ended_agent_left(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(NodeproxyError, match="is there, but nobody listens: its agent has ended"):
        Client.of_run_dir(tmp_path).get("/status")


def test_an_agent_that_hangs_up(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / SOCKET_NAME))
        server.listen(0)
        client = Client.of_run_dir(tmp_path)
        server.shutdown(socket.SHUT_RD)
        with pytest.raises(NodeproxyError):
            client.get("/status")
