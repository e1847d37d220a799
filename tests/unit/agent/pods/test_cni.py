"""The agent's CNI part: it keeps list and plug-in in their places, whatever becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.agent.pods import cni, cni_keeper
from nodeproxy.cni.files import NAMESPACES_FILE
from tests.cni_admitter import Answering
from tests.mesh.cluster import wait_until

CHAIN = b'{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'


class Node:
    def __init__(self, root: Path) -> None:
        self.conf, self.bin, self.list = root / "net.d", root / "bin", root / "node" / NAMESPACES_FILE
        self.file = self.conf / "10-pods.conflist"
        (root / "program").write_bytes(b"a program")
        self.agent = Answering(root, root / "node")
        self.agent.keep_installed(self.conf, self.bin, root / "program", ("kube-system",))

    def plugins(self, name: str = "10-pods.conflist") -> list[str]:
        return [each["type"] for each in json.loads((self.conf / name).read_bytes())["plugins"]]

    def is_in(self, name: str = "10-pods.conflist") -> bool:
        return self.plugins(name)[-1:] == ["nodeproxy-cni"]

    def status(self) -> dict[str, Any]:
        return self.agent.part.status()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(cni_keeper, "_TRY_AGAIN_S", 0.02)
    monkeypatch.setattr(cni, "_RETRY_S", 0.05)
    made = Node(tmp_path)
    made.conf.mkdir()
    made.file.write_bytes(CHAIN)
    return made


def test_a_change_is_seen_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.agent:
        wait_until(lambda: node.status()["file"], "the plug-in is in the chain")
        monkeypatch.setattr(cni_keeper, "_LOOK_AGAIN_S", 1000.0)
        for number in range(3):
            node.file.write_bytes(CHAIN.replace(b"bridge", f"bridge-{number}".encode()))
            wait_until(node.is_in, "it is put back", 1)


def test_it_stays_whoever_rewrites_the_chain(node: Node) -> None:
    with node.agent:
        wait_until(node.is_in, "the plug-in is in the chain")
        assert node.list.read_text() == "shop\n"
        node.file.write_bytes(CHAIN.replace(b"bridge", b"ptp"))
        wait_until(node.is_in, "it is put back", 1)
        assert node.plugins() == ["ptp", "nodeproxy-cni"]
        (node.conf / "05-first.conflist").write_bytes(CHAIN)
        wait_until(lambda: node.is_in("05-first.conflist"), "it moved to the file that is the first now", 1)
        wait_until(lambda: not node.is_in(), "and out of the other", 1)
        (node.bin / "nodeproxy-cni").unlink()
        wait_until((node.bin / "nodeproxy-cni").exists, "its program is put back", 1)
        wait_until(lambda: node.status()["file"], "status says where")
        assert node.status() == {"kept": True, "file": str(node.conf / "05-first.conflist"), "error": ""}
    assert node.is_in("05-first.conflist")  # for the time without an agent


def test_it_waits_for_a_chain(node: Node) -> None:
    node.file.unlink()
    node.conf.rmdir()
    with node.agent:
        wait_until(lambda: "No such file" in node.status()["error"], "it says so")
        node.conf.mkdir()
        node.file.write_bytes(CHAIN)
        wait_until(node.is_in, "the plug-in is in the chain", 5)


def test_nothing_is_installed_before_it_is_known_whom_to_hold_back(node: Node) -> None:
    node.agent._namespaces = None
    node.agent.admitter.waits_for = "the controller has not answered"
    with node.agent:
        wait_until(lambda: "the controller has not answered" in node.status()["error"], "it says so")
        node.agent.admitter.waits_for = ""
        wait_until(lambda: "is not written yet" in node.status()["error"], "it says so", 5)
        assert not node.is_in()
        assert not node.list.exists()
        node.agent.say(frozenset())
        wait_until(node.is_in, "the plug-in is in the chain", 5)
        assert node.list.read_text() == ""
        wait_until(lambda: node.agent.part.statistics().installed, "the metric says so")
        node.agent.say(frozenset({"bank", "shop"}))
        wait_until(lambda: node.list.read_text() == "bank\nshop\n", "the list is written")


def test_a_list_that_can_not_be_written_is_tried_again(node: Node) -> None:
    node.list.parent.parent.write_text("")  # where its directory should be
    with node.agent:
        wait_until(lambda: "can't be written" in node.status()["error"], "it says so")
        node.list.parent.parent.unlink()
        wait_until(node.list.exists, "the list is written", 5)
        wait_until(node.is_in, "the plug-in is in the chain", 5)
