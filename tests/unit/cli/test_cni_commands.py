"""`nodeproxy cni`: the plug-in in a chain by hand, on directories of the test's own."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeproxy.model.cni import SOCKET_FILE
from tests.unit.cli.conftest import FakeAdmin, Result
from tests.unit.cli.documented import differences, examples

Run = Callable[..., Result]
CHAIN = b'{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'


class Node:
    def __init__(self, root: Path, run: Run) -> None:
        self.root, self._run = root, run
        self.file = root / "net.d" / "10-pods.conflist"
        self.file.parent.mkdir()
        self.file.write_bytes(CHAIN)
        self.namespaces = root / "node" / "cni" / "namespaces"
        self.namespaces.parent.mkdir(parents=True)
        self.namespaces.write_text("shop\n")
        (root / "program").write_bytes(b"a program")

    def run(self, command: str, *more: str) -> Result:
        arguments = ["--conf-dir", self.file.parent, "--bin-dir", self.root / "bin", "--run-dir", self.root]
        if command == "install":
            arguments += ["--plugin", self.root / "program", "--node-dir", self.root / "node"]
        return self._run("cni", command, *map(str, arguments), *more)


@pytest.fixture
def node(tmp_path: Path, run: Run) -> Node:
    return Node(tmp_path, run)


@pytest.fixture
def answered(node: Node) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(node.root / SOCKET_FILE))
        listener.listen()
        yield


@pytest.mark.usefixtures("answered")
def test_in_seen_and_out(node: Node) -> None:
    result = node.run("status")
    assert (result.status, result.out.splitlines()[1:]) == (
        1,
        ["plug-in  not in it; its program is missing", "agent    answers it"],
    )
    assert node.run("install").out == f"The plug-in stands in {node.file}.\n"
    assert node.run("install").out == f"The plug-in stands in {node.file}, as before.\n"
    entry = json.loads(node.file.read_bytes())["plugins"][1]
    assert entry == {
        "type": "nodeproxy-cni",
        "socket": str(node.root / SOCKET_FILE),
        "namespacesFile": str(node.namespaces),
        "exemptNamespaces": ["kube-system", "nodeproxy-system"],
    }
    result = node.run("status")
    assert (result.status, result.out.splitlines()[0]) == (0, f"chain    {node.file}: bridge → nodeproxy-cni")
    assert node.run("uninstall").out == "The chain is as it was without the plug-in.\n"
    assert node.file.read_bytes() == CHAIN
    assert node.run("uninstall").out == "There was no plug-in of ours.\n"


@pytest.mark.usefixtures("answered")
def test_as_json(node: Node) -> None:
    for command in ("install", "status", "uninstall"):
        result = node.run(command, "-o", "json")
        assert result.status == 0
        assert differences(json.loads(result.out), examples()[f"cni {command}"]) == []


def test_it_is_not_installed_before_it_is_answered(node: Node) -> None:
    result = node.run("install")
    assert (result.status, node.file.read_bytes()) == (1, CHAIN)
    assert "nobody answers at" in result.err
    assert "start an agent with --enrolment labels first" in result.err


@pytest.mark.usefixtures("answered")
def test_it_is_not_installed_before_there_is_a_list(node: Node) -> None:
    node.namespaces.unlink()
    result = node.run("install")
    assert (result.status, node.file.read_bytes()) == (1, CHAIN)
    assert "the agent writes it when its controller has answered" in result.err


@pytest.mark.usefixtures("answered", "run_dir")
def test_an_agent_that_keeps_it_there_is_to_be_stopped_first(node: Node, admin: FakeAdmin) -> None:
    node.run("install")
    admin.answers["GET /status"] = (200, {"cni": {"kept": True, "file": str(node.file), "error": ""}})
    result = node.run("uninstall")
    assert result.status == 1
    assert "keeps the plug-in in the chain: stop it, or run it without --cni-conf-dir" in result.err
    for part in (None, {"kept": False, "file": "", "error": ""}):
        admin.answers["GET /status"] = (200, {"cni": part})
        assert node.run("uninstall").status == 0
    assert node.file.read_bytes() == CHAIN


def test_a_node_without_a_chain(node: Node) -> None:
    """Nobody waits for an agent where no runtime calls the plug-in."""
    node.file.unlink()
    result = node.run("status")
    assert result.status == 1
    assert result.out.splitlines() == [
        f"chain    none in {node.file.parent}",
        "plug-in  not in it; its program is missing",
        "agent    does not answer it",
    ]
