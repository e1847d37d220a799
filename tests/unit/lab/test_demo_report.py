from __future__ import annotations

import json

import pytest

from nodeproxy.lab.demo_report import Failed, Report, expect


def tell(report: Report, *, holds: bool) -> int:
    failure = ""
    try:
        with report.step("It works"):
            report.command("pod", "curl x", "page\n")
            report.show("the page came")
            expect(holds, "but not twice")
    except Failed as exc:
        failure = str(exc)
    return report.end(failure)


def test_for_people(capsys: pytest.CaptureFixture[str]):
    assert tell(Report(as_json=False, colour=False), holds=True) == 0
    out = capsys.readouterr().out
    assert out.startswith("\n1. It works\n  pod $ curl x\n  │ page\n  ✓ the page came\n\nAll of it held.  1 steps in ")


def test_a_failure(capsys: pytest.CaptureFixture[str]):
    assert tell(Report(as_json=False, colour=False), holds=False) == 1
    assert capsys.readouterr().out.endswith("  ✗ but not twice\n\nIt did not hold: but not twice\n")


def test_colour_is_asked_for(capsys: pytest.CaptureFixture[str]):
    tell(Report(as_json=False, colour=True), holds=True)
    assert "\x1b[32m✓\x1b[0m the page came" in capsys.readouterr().out


@pytest.mark.parametrize("holds", [True, False])
def test_for_programs_it_is_one_document(capsys: pytest.CaptureFixture[str], holds: bool):
    tell(Report(as_json=True, colour=False), holds=holds)
    document = json.loads(capsys.readouterr().out)
    [step] = document["steps"]
    assert (document["ok"], step["ok"]) == (holds, holds)
    assert document["failure"] == step["failure"] == ("" if holds else "but not twice")
    assert step["commands"] == [{"where": "pod", "command": "curl x", "output": "page\n"}]
    assert step["evidence"] == ["the page came"]
