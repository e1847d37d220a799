"""The locks name every package with a version and hashes, nothing of the machine that wrote them, and are what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("runtime", "dev", "kernels")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_pin_with_hashes(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
    requirements = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    assert requirements
    for line in requirements:
        assert re.fullmatch(r"[a-z0-9._-]+==\S+( ;[^-]*)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line


def test_the_tests_run_on_the_versions_that_users_get() -> None:
    assert pins("runtime").items() <= pins("dev").items()


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {normal(re.split(r"[<>=~!;\[ ]", line)[0]) for line in project["dependencies"]}
    assert names <= set(pins("runtime"))
    # The package of this name on PyPI is another one; ours is Debian's python3-bpfcc.
    assert "bcc" not in pins("dev")


@pytest.mark.parametrize(("name", "locked"), sorted(pins("runtime").items()))
def test_the_pin_wins_over_what_the_system_has(name: str, locked: str) -> None:
    assert version(name) == locked
