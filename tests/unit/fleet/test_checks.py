"""Nodes' checks in one."""

from __future__ import annotations

from typing import Any

from nodeproxy.fleet.checks import merge
from tests.unit.fleet.builders import reply, silent


def row(name: str, found: str = "there", *, ok: bool = True) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "remedy": "" if ok else "do"}


def test_nodes_by_what_was_found() -> None:
    replies = [
        reply("a", requirements=[row("kernel", "6.1"), row("bcc")]),
        reply("b", requirements=[row("kernel", "6.12"), row("bcc"), row("new")]),
        reply("c", requirements=[row("kernel", "6.1"), row("bcc", "missing", ok=False)]),
        silent("d"),
    ]
    kernel, bcc, new = merge(replies)
    assert (kernel["ok"], kernel["differs"]) == (True, True)
    assert [(group["found"], group["nodes"]) for group in kernel["found"]] == [("6.1", ["a", "c"]), ("6.12", ["b"])]
    assert (bcc["ok"], bcc["differs"], bcc["found"][1]["remedy"]) == (False, True, "do")
    assert (new["ok"], new["differs"]) == (True, True)  # an older version has no such row


def test_what_is_the_same_everywhere_does_not_differ() -> None:
    (same,) = merge([reply(node, requirements=[row("bcc")]) for node in "ab"])
    assert (same["differs"], same["found"][0]["nodes"]) == (False, ["a", "b"])
