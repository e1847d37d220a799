"""Whatever a mesh file holds: its YAML is what PyYAML composes, and only ConfigError with a place comes out."""

from __future__ import annotations

import random
import re

import pytest
import yaml

from nodeproxy.agent.sources.mesh_file import parse_mesh
from nodeproxy.agent.sources.yaml_stream import Stream
from nodeproxy.errors import ConfigError
from tests.unit.agent.sources.test_mesh_schema import FULL_POLICY, FULL_SERVICE, FULL_WORKLOAD
from tests.unit.agent.sources.test_yaml_stream import BROKEN, NASTY, composed_or_error, streamed

pytestmark = pytest.mark.fuzz

SEEDS = range(500)
MESH = "".join(
    f"{name}:\n- " + text.strip().replace("\n", "\n  ") + "\n"
    for name, text in (("workloads", FULL_WORKLOAD), ("services", FULL_SERVICE), ("policies", FULL_POLICY))
)
_BITS = [
    "- ",
    "\n",
    "  ",
    ": ",
    "'",
    '"',
    "[",
    "]",
    "{",
    "}",
    "&x ",
    "*x",
    "!y ",
    "|",
    "#",
    ", ",
    "? ",
    "~",
    "\t",
    "é",
    "%",
    "---\n",
    "...",
]


def mutated(text: str, rng: random.Random) -> str:
    """The text with a few pieces cut out, doubled, moved or put in."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(text)), rng.choice((1, 1, 2, 8, 30))
        piece = rng.choice([*_BITS, text[at : at + length], ""])
        to = rng.randint(0, len(text))
        text = text[:to] + piece + text[to + rng.choice((0, 0, len(piece))) :]
    return text


def test_yaml_is_what_pyyaml_composes() -> None:
    for seed in SEEDS:
        rng = random.Random(seed)
        content = mutated(rng.choice([text for text in NASTY + BROKEN if "*a" not in text]), rng).encode()
        expected = composed_or_error(content)
        try:
            found = streamed(Stream("f", content).read())
        except ConfigError as exc:
            found = str(exc.__cause__) if isinstance(exc.__cause__, yaml.YAMLError) else None
        assert found == expected, f"seed {seed}: {content!r}"


def test_a_mutated_mesh_file_is_read_or_refused_with_a_place() -> None:
    outcomes = set()
    for seed in SEEDS:
        content = mutated(MESH, random.Random(seed)).encode()
        try:
            parse_mesh("f", content)
            outcomes.add("read")
        except ConfigError as exc:
            outcomes.add("refused" if re.match(r"f:\d+:\d+: .", str(exc)) else f"seed {seed}: {exc}")
    assert outcomes == {"read", "refused"}
