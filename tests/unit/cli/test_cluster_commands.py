"""The commands about a cluster: what they show of what was found.  That it is found is shown by tests/cluster/test_laptop.py."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodeproxy.cli import cluster, cluster_check, cluster_connections, cluster_status, cluster_why
from nodeproxy.cli.commands import nodeproxy
from nodeproxy.errors import ClusterError
from nodeproxy.fleet.names import choose_pod, parse
from tests.unit.cli.conftest import Result
from tests.unit.cli.documented import cluster_examples
from tests.unit.fleet.builders import found as found_pod
from tests.unit.kube.playing_server import PlayingServer

Run = Callable[..., Result]
Finds = Callable[[Any], None]
COMMANDS = {"status": (), "why": ("web", "orders"), "connections": (), "check": ()}


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Finds:
    """Sets what the commands find, without a cluster."""

    def set_found(found: Any) -> None:
        for module in (cluster_status, cluster_check, cluster_why):
            monkeypatch.setattr(module, "reach", lambda ctx, work: found)

    return set_found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_one_agent_and_a_cluster_are_not_named_at_once(run: Run, command: str) -> None:
    if command != "check":
        result = run(command, *COMMANDS[command], "-n", "shop", "--instance", "blue")
        assert (result.status, result.out) == (2, "")
        assert "--instance names one agent, and the others a cluster's" in result.err
    result = run(command, *COMMANDS[command], "--timeout", "5")
    assert (result.status, "give --kubeconfig, --context or -n" in result.err) == (2, True)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_kubeconfig_that_is_not_there_is_told(run: Run, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(command, *COMMANDS[command], "--kubeconfig", tmp_path / "none")
    assert result.status == (2 if command in ("why", "connections") else 1)
    assert f"kubeconfig {tmp_path}/none can't be used: No such file" in result.err
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/first:{tmp_path}/second")
    assert f"kubeconfig {tmp_path}/first:{tmp_path}/second" in run(command, *COMMANDS[command], "--context", "x").err
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"kubeconfig {tmp_path}/.kube/config" in run(command, *COMMANDS[command], "-n", "shop").err


def test_a_namespace_that_can_be_none_is_told_before_anything_is_asked(run: Run) -> None:
    result = run("status", "-n", "../x")
    assert (result.status, result.err.startswith("nodeproxy: error: '../x' is no name")) == (1, True)


def test_one_agents_commands_import_nothing_of_it(tmp_path: Path) -> None:
    program = (
        "import sys; from nodeproxy.__main__ import main; main(['status', '--run-dir', sys.argv[1]]); "
        "sys.exit(repr({name for name in sys.modules if name.startswith(('kubernetes', 'nodeproxy.fleet', 'aiohttp'))}))"
    )
    environ = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PATH": ""}
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environ, cwd=".")
    assert ended.stderr.strip().splitlines()[-1] == "set()"
    assert "no agent answers" in ended.stderr
    assert "a cluster's are reached by --kubeconfig, --context or -n" in ended.stderr


def test_status_in_words(run: Run, finds: Finds) -> None:
    found = cluster_examples()["status"]
    finds(found)
    result = run("status", "-n", "shop")
    assert result.status == 0
    assert "✗ 1 of 2 nodes ready, nodeproxy 0.1.0." in result.out
    assert "no agent runs on it" in result.out
    assert "1 of 2 pods in the mesh." in result.out
    assert "node-a has shop/gone, which the API server does not know." in result.out
    assert json.loads(run("status", "-n", "shop", "-o", "json").out) == found
    found["nodes"][0] |= {"error": "no answer within 10 s", "status": None, "ready": False, "missing": []}
    found["nodes"][1] |= {"version": "0.0.9", "missing": ["workers"], "agent": "x/y", "pending": ["state"], "status": {}}
    result = run("status", "-n", "shop")
    assert result.status == 1
    assert "0 of 2 nodes ready, nodeproxy 0.0.9 (1 node), 0.1.0 (1 node)." in result.out
    assert "no answer within 10 s" in result.out
    assert "waits for state; an agent of this version does not tell: workers" in result.out


def test_check_in_words(run: Run, finds: Finds) -> None:
    found = cluster_examples()["check"]
    finds(found)
    result = run("check", "--context", "x")
    assert result.status == 1
    assert result.out.splitlines()[:4] == [
        "✓ BCC  there  (node-a)",
        "✗      missing  (node-b)",
        "       → apt-get install python3-bpfcc",
        "✗ node-c did not say: port 15000 of pod nodeproxy-system/nodeproxy-x7k2p: no answer within 10 s",
    ]
    assert "1 of 2 are missing somewhere on 2 nodes that answered; 1 row the same and good everywhere" in result.out
    assert "IPv6  there  (all nodes)" in run("check", "--context", "x", "--all").out
    assert json.loads(run("check", "--context", "x", "-o", "json").out) == found
    finds({"ok": True, "nodes": [f"n{number}" for number in range(9)], "requirements": [], "errors": []})
    assert run("check", "--context", "x").status == 0
    assert cluster_check._nodes([f"n{number}" for number in range(9)]) == "n0, n1, n2, n3, n4 and 4 more"


def test_why_in_words(run: Run, finds: Finds) -> None:
    found = cluster_examples()["why"]
    finds(found)
    result = run("why", "web", "orders", "-n", "shop")
    assert result.status == 1
    assert result.out.splitlines()[:2] == ["shop/frontend-6d5f9-2xkqz (node-a) → 10.96.0.7:80", f"  {found['notes'][0]}"]
    assert "node-a, where it comes from:\n  1. who is 10.96.0.7?" in result.out
    assert "node-b, where it arrives:" in result.out
    assert result.out.endswith(f"✗ It would not pass: {found['outcome']}\n")
    assert json.loads(run("why", "web", "orders", "-n", "shop", "-o", "json").out) == found
    found["parts"][1] |= {"answer": None, "error": "no answer within 10 s"}
    found |= {"passes": None, "outcome": "not known"}
    result = run("why", "web", "orders", "-n", "shop")
    assert result.status == 1
    assert "it did not say: no answer within 10 s" in result.out
    assert "Nobody can say: not known" in result.out


def test_connections_with_their_nodes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster_examples()["connections"]

    async def ask(*_: Any) -> Any:
        return found

    monkeypatch.setattr(cluster_connections, "_ask", ask)
    monkeypatch.setattr(cluster_connections, "reach", lambda ctx, work: _finished(work(_Fleet(), "shop")))
    result = run("connections", "-n", "shop")
    assert result.status == 1
    assert "node-a  shop/frontend 10.10.0.2:37330" in result.out
    assert "node-b did not say: no answer" in result.out
    assert json.loads(run("connections", "-n", "shop", "-o", "json").out) == found


def test_what_an_older_agent_lacks_of_a_row_is_a_gap(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(*_: Any) -> Any:
        return {
            "connections": [{"node": "node-a", "source": {"workload": {"name": "web"}}, "service": {"name": "x"}}],
            "errors": [],
        }

    monkeypatch.setattr(cluster_connections, "_ask", ask)
    monkeypatch.setattr(cluster_connections, "reach", lambda ctx, work: _finished(work(_Fleet(), "shop")))
    result = run("connections", "-n", "shop")
    assert result.status == 0
    assert result.out.splitlines()[-1].split() == ["node-a", "/web", "→", "-", "-", "-", "-", "-", "-", "-"]


ROOT = Path(__file__).parents[3]
_DOCUMENTS = (ROOT / "README.md").read_text() + (ROOT / "docs" / "kubernetes.md").read_text()
_LINES = re.findall(r"^(?:\./dev run|nodeproxy) ((?:status|why|connections|check) .*)$", _DOCUMENTS, re.MULTILINE)


def test_documents_show_commands_of_a_cluster() -> None:
    assert {line.split()[0] for line in _LINES} == set(COMMANDS)


@pytest.mark.parametrize(
    "line",
    [
        *_LINES,
        *(
            line.removeprefix("nodeproxy ")
            for name in COMMANDS
            for line in nodeproxy.commands[name].examples
            if "sudo" not in line
        ),
    ],
)
def test_what_documents_and_help_show_parses(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    nodeproxy.commands[name].make_context(name, arguments)


@pytest.mark.parametrize(
    ("words", "offered"), [("sta", "status"), ("status --kube", "--kubeconfig"), ("why --cont", "--context")]
)
def test_a_shell_completes(words: str, offered: str) -> None:
    environ = {"_NODEPROXY_COMPLETE": "bash_complete", "COMP_WORDS": f"nodeproxy {words}", "COMP_CWORD": f"{len(words.split())}"}
    program = "import sys; from nodeproxy.__main__ import main; sys.exit(main([]))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | environ)
    assert f"plain,{offered}" in ended.stdout.splitlines(), ended


class _Fleet:
    agents = ("node-a", "node-b")


def _finished(coroutine: Any) -> Any:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def test_progress_is_for_terminals_and_for_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(cluster.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cluster.sys.stderr, "isatty", lambda: True, raising=False)
    with cluster.Progress() as progress:
        progress(1, 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cluster.sys.stderr, "isatty", lambda: True, raising=False)
    with cluster.Progress() as progress:
        now[0] = 4.0
        progress(2, 3)
    assert capsys.readouterr().err.startswith("\r2 of 3 nodes have answered\r")


def test_an_api_server_that_hangs_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    """It accepts, and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        server = PlayingServer(tmp_path)
        server.write_kubeconfig(f"http://127.0.0.1:{silent.getsockname()[1]}")
        params = {"kubeconfig": str(server.kubeconfig), "context": None, "system_namespace": None, "timeout": 0.05}
        with pytest.raises(ClusterError, match=r"the API server did not list the agents' pods within 0.05 s; is it well\?"):
            cluster.reach(cast(Any, SimpleNamespace(params=params)), lambda fleet, default: asyncio.sleep(0))


def test_what_others_are_called_does_not_steer_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of what owns a pod is whatever its author wrote."""

    def reach(*_: Any) -> Any:
        owner = found_pod("client-1", workload="deployment/client\x1b[2J")
        return choose_pod([owner], parse("clien"), "shop")

    monkeypatch.setattr(cluster_why, "reach", reach)
    result = run("why", "clien", "api", "-n", "shop")
    assert (result.status, result.out) == (2, "")
    assert "did you mean client\ufffd[2J, client-1?" in result.err
