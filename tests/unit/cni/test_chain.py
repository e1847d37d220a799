from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeproxy.cni.chain import PROGRAM, Chain, PluginSettings
from nodeproxy.errors import ConfigError

ENTRY = PluginSettings(Path("/run/nodeproxy/cni.sock"), Path("/var/lib/nodeproxy/cni/namespaces"), ("kube-system",)).entry()
LIST = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "disableCheck": True,
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
    "x": "é\u2028",
}
SINGLE = {"cniVersion": "1.0.0", "name": "weave", "type": "weave-net", "hairpinMode": True, "mtu": 12345678901234567890}


def chain(value: object, single: bool = False) -> Chain:
    return Chain(json.dumps(value).encode(), single)


def test_it_comes_last_and_nothing_else_changes() -> None:
    made = json.loads(chain(LIST).with_entry(ENTRY))
    assert made == {**LIST, "plugins": [*LIST["plugins"], ENTRY]}
    assert list(made) == list(LIST)
    again = Chain(json.dumps(made).encode(), False)
    assert again.ours == ENTRY
    assert json.loads(again.with_entry({**ENTRY, "socket": "/x"}))["plugins"][2:] == [{**ENTRY, "socket": "/x"}]
    assert json.loads(again.without_entry()) == LIST
    assert again.says_as(chain(LIST))
    assert not again.says_as(chain({**LIST, "x": "y"}))


def test_a_single_one_becomes_a_list() -> None:
    made = json.loads(chain(SINGLE, single=True).with_entry(ENTRY))
    assert made == {"cniVersion": "1.0.0", "name": "weave", "plugins": [SINGLE, ENTRY]}
    again = Chain(json.dumps(made).encode(), False)
    assert again.says_as(chain(SINGLE, single=True))
    assert not again.says_as(chain({**SINGLE, "mtu": 1}, single=True))


@pytest.mark.parametrize("version", [None, "0.1.0", "0.2.0"])
def test_what_has_no_chains(version: str | None) -> None:
    value = {"name": "old", "type": "bridge"} | ({"cniVersion": version} if version else {})
    with pytest.raises(ConfigError, match="has no chains: give it a cniVersion"):
        chain(value, single=True).with_entry(ENTRY)


@pytest.mark.parametrize(
    ("content", "single"),
    [
        (b"", False),
        (b"{", False),
        (b"[]", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
        (b"{}", False),
        (b'{"plugins": []}', False),
        (b'{"plugins": {}}', False),
        (b'{"plugins": [7]}', False),
        (b'{"plugins": [{"type": ""}]}', False),
        (b'{"type": "bridge"}', False),
        (b'{"plugins": [{"type": "bridge"}]}', True),
    ],
)
def test_what_no_runtime_takes(content: bytes, single: bool) -> None:
    with pytest.raises(ConfigError):
        Chain(content, single)


def test_the_program_is_its_type() -> None:
    assert ENTRY["type"] == PROGRAM
