"""How much of an edited file is parsed.  That it comes to the same is for tests/fuzz/test_mesh_scan.py."""

from __future__ import annotations

import pytest

from nodeproxy.agent.sources import mesh_scan
from nodeproxy.agent.sources.mesh_scan import Scan, scan
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Delta, PodSpec

MESH = """\
workloads:
- {uid: a, namespace: ns, workloadIps: [10.0.0.1], services: {ns/s: {}}}
- {uid: b, namespace: ns, workloadIps: [10.0.0.2]}
- {uid: c, namespace: ns, workloadIps: [10.0.0.3]}
services:
- {name: s, namespace: ns, hostname: s, ports: {}}
- {name: t, namespace: ns, hostname: t, ports: {}}
pods:
- {uid: a, netns: /run/netns/a}
"""


def read(text: str, before: Scan | None = None) -> Scan:
    return scan("f", text.encode(), before.index if before else None, lambda entries: None)


def parsed(scanned: Scan) -> list[str]:
    return [key for keyed in scanned.parsed.values() for key, _ in keyed]


def test_without_an_index_all_is_parsed() -> None:
    counts: list[int] = []
    found = scan("f", MESH.encode(), None, counts.append)
    assert parsed(found) == ["a", "b", "c", "ns/s", "ns/t"]
    assert counts == [1, 2, 3, 4, 5]
    assert found.kept is not None
    assert {name: list(keys) for name, keys in found.kept.items()} == {
        "workloads": ["a", "b", "c"],
        "services": ["ns/s", "ns/t"],
        "policies": [],
    }
    assert found.pods == (PodSpec("a", "/run/netns/a"),)


@pytest.mark.parametrize(
    ("old", "new", "keys", "removed"),
    [
        ("a, n", "a, n", [], ()),
        ("10.0.0.2", "10.0.0.9", ["b"], ()),
        ("uid: b", "uid: x", ["x"], ("b",)),
        ("- {uid: c, namespace: ns, workloadIps: [10.0.0.3]}\n", "", [], ("c",)),
        ("hostname: t, ports: {}", "hostname: t, ports: {80: 81}", ["ns/t"], ()),
        ("services:\n-", "services:\n- {name: u, namespace: ns, hostname: u, ports: {}}\n-", ["ns/u"], ()),
        ("workloads:\n", "# more\nworkloads: # here\n", [], ()),
        ("/run/netns/a", "/run/netns/b", [], ()),
        ("\npods:", "\npolicies:\n- {name: p, namespace: ns, scope: Global, action: Deny, rules: []}\npods:", ["ns/p"], ()),
    ],
)
def test_with_one_what_changed_is(old: str, new: str, keys: list[str], removed: tuple[str, ...]) -> None:
    found = read(MESH.replace(old, new, 1), read(MESH))
    assert (parsed(found), found.removed, found.kept) == (keys, removed, None)
    assert found.index == read(MESH.replace(old, new, 1)).index


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- {name: t, namespace: ns, hostname: t, ports: {}}\n", ""),  # who refers to it may be among what is not parsed
        ("hostname: t", "hostname: u"),
        ("10.0.0.3]", "&x 10.0.0.3]"),
        ("workloads:\n-", "workloads:\n-\n  &x\n  "),
        ("10.0.0.3]}", "10.0.0.3]}\r"),
    ],
)
def test_what_raises_a_doubt_has_all_parsed(old: str, new: str) -> None:
    found = read(MESH.replace(old, new, 1), read(MESH))
    assert len(parsed(found)) >= 4
    assert found.kept is not None


def test_an_alias_makes_no_index() -> None:
    assert read(MESH.replace("10.0.0.3]", "&x 10.0.0.3]")).index is None


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("10.0.0.3", "10.0.0.300", "f:4:41: an address must be an IP address"),
        ("- {uid: c", "- {uid: b, namespace: ns, workloadIps: [10.0.0.2]}\n- {uid: c", "f:4:3: workloads: 'b' is there twice"),
        ("uid: c", "uid: b", "f:4:3: workloads: 'b' is there twice, first in line 3"),
        ("- {name: s, namespace: ns, hostname: s, ports: {}}\n", "", "f:2:3: workload 'a' names the service 'ns/s'"),
        ("- {uid: a, netns", "- {uid: d, netns", "f:9:3: pod 'd' names the workload 'd', which is not in the file"),
    ],
)
def test_an_error_is_told_as_of_the_whole_file(old: str, new: str, error: str) -> None:
    before = read(MESH)
    with pytest.raises(ConfigError) as caught:
        read(MESH.replace(old, new, 1), before)
    assert str(caught.value).startswith(error)


def test_deltas_come_in_pieces_and_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_scan, "_DELTA", 2)
    found = read(MESH)
    found.removed = ("old",)
    deltas = list(found.take_deltas())
    assert deltas[0] == Delta(removed_workloads=("old",))
    assert [[workload.uid for workload in delta.workloads] for delta in deltas[1:3]] == [["b", "a"], ["c"]]
    assert [[service.key for service in delta.services] for delta in deltas[3:]] == [["ns/t", "ns/s"]]
    assert parsed(found) == []
