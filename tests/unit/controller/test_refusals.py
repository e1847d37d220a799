from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from nodeproxy.controller.ca.keys import OPTIONAL, Phase
from nodeproxy.controller.ca.rotation import ASKED
from nodeproxy.controller.refusals import Refused, passes, refuse

DOCUMENT = (Path(__file__).parents[3] / "docs" / "ca.md").read_text()


@pytest.mark.parametrize("reason", Refused)
def test_each_has_a_status_and_a_row(reason: Refused) -> None:
    error = refuse(reason, "why")
    assert hasattr(grpc.StatusCode, error.code)
    assert re.search(rf"^\|[^|]*`{reason}`[^|]*\|", DOCUMENT, re.MULTILINE)


def test_what_passes_is_never_a_judgement() -> None:
    assert {reason for reason in Refused if passes(refuse(reason, ""))} == {
        Refused.REVIEW_UNAVAILABLE,
        Refused.BUSY,
        Refused.NOT_SYNCED,
        Refused.RATE,
        Refused.NO_KEY,
    }


@pytest.mark.parametrize("word", [*OPTIONAL, *Phase, f"{ASKED}=now"])
def test_the_document_names_what_an_operator_meets(word: str) -> None:
    assert word in DOCUMENT
