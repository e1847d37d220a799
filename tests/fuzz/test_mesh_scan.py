"""However a large mesh file is edited: reading what changed gives what reading it whole gives."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import yaml

from nodeproxy.agent.sources.mesh_entries import RESOURCES
from nodeproxy.agent.sources.mesh_index import Keys
from nodeproxy.agent.sources.mesh_scan import Scan, scan
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import PodSpec
from tests.fuzz.test_mesh_file import mutated

pytestmark = pytest.mark.fuzz

SEEDS = range(400)
Resources = dict[str, dict[str, Any]]
CONTENT = {
    "workloads": [
        {
            "uid": f"w{number}",
            "namespace": "ns",
            "workloadIps": [f"10.0.0.{number}"],
            "services": {f"ns/s{number % 3}": {"80": 8080}},
        }
        for number in range(6)
    ],
    "services": [
        {"name": f"s{number}", "namespace": "ns", "hostname": f"s{number}", "vips": [f"/10.1.0.{number}"], "ports": {}}
        for number in range(3)
    ],
    "policies": [
        {"name": "p", "namespace": "ns", "scope": "Global", "action": "Allow", "rules": [[[{"principals": [{"exact": "a"}]}]]]}
    ],
    "pods": [{"uid": "w1", "netns": "/run/netns/w1"}],
}
BLOCK = yaml.safe_dump(CONTENT, sort_keys=False)
COMMENTED = "# a mesh\n---\n" + BLOCK.replace("services:\n-", "services:  # all\n# of them\n\n-").replace(
    "- uid: w3", "# three\n- uid: w3"
)
FILES = {
    "json": json.dumps(CONTENT),
    "indented json": json.dumps(CONTENT, indent=2),
    "block": BLOCK,
    "indented block": "\n".join("  " + line if line[-1:] != ":" or line[0] == " " else line for line in BLOCK.splitlines())
    + "\n",
    "commented": COMMENTED,
    "flow entries": "".join(
        f"{name}:\n" + "".join(f"- {json.dumps(entry)}\n" for entry in entries) for name, entries in CONTENT.items()
    ),
    "literal": BLOCK.replace("namespace: ns", "namespace: >-\n    ns").replace("hostname: s1", 'hostname: "s\\\n    1"'),
}


def read(content: str, index: dict[str, Keys] | None) -> Scan | str:
    try:
        return scan("f", content.encode(), index, lambda entries: None)
    except ConfigError as exc:
        return str(exc)


def applied(scanned: Scan, before: Resources) -> Resources:
    """What the store has then."""
    after = {name: dict(before[name]) for name in RESOURCES}
    for delta in scanned.take_deltas():
        for uid in delta.removed_workloads:
            del after["workloads"][uid]
        for workload in delta.workloads:
            after["workloads"][workload.uid] = workload
        for resource in (*delta.services, *delta.policies):
            after["policies" if resource in delta.policies else "services"][resource.key] = resource
    if scanned.kept is not None:
        after = {name: {key: after[name][key] for key in scanned.kept[name]} for name in RESOURCES}
    return after


NOTHING: Resources = {name: {} for name in RESOURCES}


def edited(text: str, rng: random.Random) -> str:
    """An edit as people make it: of a word, or of a line, or of some bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        return mutated(text, rng)
    lines = text.splitlines(keepends=True)
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    if kind == 1:
        lines.insert(to, lines[at])
    elif kind == 2:
        del lines[at : at + rng.randint(1, 8)]
    else:
        return text.replace(
            rng.choice(("w1", "s1", "ns", "10.0.0.2", "80", "\n", '"a"')),
            rng.choice(("w7", "s2", "x", "10.0.0.9", "81", '"b"')),
            1,
        )
    return "".join(lines)


@pytest.mark.parametrize("layout", FILES)
def test_what_changed_tells_what_the_whole_tells(layout: str) -> None:
    first = read(FILES[layout], None)
    assert isinstance(first, Scan)
    assert first.index is not None
    state = applied(first, NOTHING)
    outcomes = set()
    for seed in SEEDS:
        content = edited(FILES[layout], random.Random(seed))
        found, expected = read(content, first.index), read(content, None)
        if isinstance(expected, str):
            assert found == expected, f"seed {seed}"
            outcomes.add("refused")
            continue
        assert isinstance(found, Scan), f"seed {seed}: {found}"
        outcomes.add("whole" if found.kept is not None else "changed")
        assert found.pods == expected.pods
        assert found.index == expected.index
        assert applied(found, state) == applied(expected, NOTHING), f"seed {seed}"
    assert outcomes >= {"refused", "changed"}


def test_the_layouts_mean_the_same() -> None:
    found = [read(text, None) for text in FILES.values()]
    assert all(isinstance(scanned, Scan) and scanned.pods == (PodSpec("w1", "/run/netns/w1"),) for scanned in found)
    states = [applied(scanned, NOTHING) for scanned in found if isinstance(scanned, Scan)]
    assert all(state == states[0] for state in states)
