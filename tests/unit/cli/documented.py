"""The examples of docs/json.md, by command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[3] / "docs" / "json.md"


def examples() -> dict[str, Any]:
    """Command → its example."""
    found = re.findall(r"^## ([a-z ]+)$[^`]*(?:`[^`\n]+`[^`]*)*```json\n(.*?)```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return {command: json.loads(text) for command, text in found}


def cluster_examples() -> dict[str, Any]:
    """Command → its example of what is found in a cluster."""
    found = re.findall(r"^### ([a-z]+) of a cluster$.*?```json\n(.*?)```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return {command: json.loads(text) for command, text in found}


def differences(found: Any, example: Any, where: str = "", optional: bool = False) -> list[str]:
    """Where `found` has other keys or other types of values than `example`; lists are compared by their first items.

    optional: keys of the example may be missing.
    """
    if isinstance(example, dict) and isinstance(found, dict):
        odd = set(found) - set(example) if optional else set(found) ^ set(example)
        told = [f"{where}.{key}" for key in sorted(odd)]
        for key in set(found) & set(example):
            told += differences(found[key], example[key], f"{where}.{key}", optional)
        return told
    if isinstance(example, list) and isinstance(found, list):
        return differences(found[0], example[0], f"{where}[0]", optional) if found and example else []
    same = type(found) is type(example) or {type(found), type(example)} == {int, float}
    return [] if same else [f"{where}: {type(found).__name__}, not {type(example).__name__}"]
