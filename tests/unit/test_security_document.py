"""Each test that SECURITY.md names as evidence is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize(("path", "name"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", SECURITY))))
def test_evidence_is_there(path: str, name: str) -> None:
    assert f"def {name}" in (ROOT / path).read_text()
