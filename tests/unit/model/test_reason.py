"""Each reason has a flag that Istio's dashboards know, and a row in the document that operators read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodeproxy.model.reason import Reason, response_flags

_DOCUMENT = Path(__file__).parents[3] / "docs" / "reasons.md"
_PACKAGE = Path(__file__).parents[3] / "nodeproxy"
_FLAGS = {"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED"}


@pytest.mark.parametrize("reason", Reason)
def test_is_documented_with_its_flag(reason: Reason) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", _DOCUMENT.read_text(), re.MULTILINE))
    assert rows[reason.value] == response_flags(reason)
    assert response_flags(reason) in _FLAGS


def test_no_row_without_a_reason() -> None:
    names = re.findall(r"^\| `(\w+)`", _DOCUMENT.read_text(), re.MULTILINE)
    assert names == [reason.value for reason in Reason]


def test_every_reason_is_given_somewhere() -> None:
    """A table that it is a key of is no place where it is given."""
    code = "".join(path.read_text() for path in _PACKAGE.rglob("*.py"))
    assert {reason.name for reason in Reason} == set(re.findall(r"\bReason\.([A-Z0-9_]+)\b(?!:)", code))
