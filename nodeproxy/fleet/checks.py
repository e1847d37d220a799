"""The rows of `check` of all nodes in one: where they differ, and what fails.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nodeproxy.fleet.agents import Reply


def merge(replies: Iterable[Reply]) -> list[dict[str, Any]]:
    """A row for each requirement, in the order in which nodes tell of them, with the nodes by what was found there.

    differs: not the same on all nodes that have the row, or not known to all of them.
    """
    answers = [reply for reply in replies if reply.answer is not None]
    rows: dict[str, list[dict[str, Any]]] = {}
    for reply in answers:
        for row in (reply.answer or {}).get("requirements", ()):
            groups = rows.setdefault(str(row.get("name", "")), [])
            form = {"ok": bool(row.get("ok")), "found": str(row.get("found", "")), "remedy": str(row.get("remedy", ""))}
            group = next((each for each in groups if form.items() <= each.items()), None)
            if group is None:
                groups.append({**form, "nodes": [reply.node]})
            else:
                group["nodes"].append(reply.node)
    return [
        {
            "name": name,
            "ok": all(group["ok"] for group in groups),
            "differs": len(groups) > 1 or sum(len(group["nodes"]) for group in groups) < len(answers),
            "found": groups,
        }
        for name, groups in rows.items()
    ]
