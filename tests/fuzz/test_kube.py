"""What comes from the API server, or from what pretends to be it, is read or refused; it ends no watch and takes nothing away."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeproxy.errors import ClusterError
from nodeproxy.kube import answers
from nodeproxy.kube.reflector import Reflector
from nodeproxy.translate.objects import KINDS, Pod

LINE = json.dumps(
    {
        "type": "MODIFIED",
        "object": {
            "metadata": {"name": "p", "namespace": "s", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
        },
    }
).encode()
PAGE = json.dumps({"metadata": {"resourceVersion": "9", "continue": ""}, "items": [json.loads(LINE)["object"]] * 3}).encode()


class Told:
    """A reflector that is given answers by hand."""

    def __init__(self, kind: type[Any] = Pod) -> None:
        self.table: dict[str, Any] = {}
        self.content = b""
        self.reflector: Reflector[Any] = Reflector(
            self,  # type: ignore[arg-type] - it asks for pages alone
            ["/api/v1/pods"],
            kind,
            on_change=self.changed,
            on_synced=lambda: None,
            lists=asyncio.Semaphore(1),
        )

    def changed(self, key: str, resource: Any) -> None:
        if resource is None:
            del self.table[key]
        else:
            self.table[key] = resource

    async def request(self, method: str, path: str, **_: Any) -> bytes:
        return self.content

    def event(self, line: bytes) -> None:
        try:
            self.reflector._event(line)
        except ClusterError:
            pass

    def list(self, content: bytes) -> bool:
        self.content = content
        try:
            return asyncio.run(self.reflector._list())
        except ClusterError:
            return False


def spoilt(content: bytes, dice: random.Random) -> bytes:
    """A few bytes are others, gone, or there twice."""
    spoilt = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(spoilt))
        match dice.randrange(4):
            case 0:
                spoilt[at] = dice.choice(b'{}[]",:0x\xff\\n-eE.')
            case 1:
                del spoilt[at : at + dice.randint(1, 30)]
            case 2:
                spoilt[at:at] = spoilt[at : at + dice.randint(1, 30)]
            case _:
                del spoilt[at:]
        if not spoilt:
            return b"?"
    return bytes(spoilt)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for read in (answers.event, answers.page, answers.metadata):
        try:
            read(content, "/x")
        except answers.GarbageError:
            pass


@pytest.mark.parametrize("seed", range(4))
def test_spoilt_events_and_lists_take_nothing_away(seed: int) -> None:
    dice = random.Random(seed)
    told = Told()
    told.event(LINE)
    good = told.table["s/p"]
    for _ in range(2000):
        line = spoilt(LINE, dice)
        told.event(line)
        if b"DELETED" not in line:
            assert "s/p" in told.table
    told.event(LINE.replace(b'"7"', b'"8"'))
    assert told.table["s/p"].status == good.status
    for _ in range(300):
        before = dict(told.table)
        if not told.list(spoilt(PAGE, dice)):
            # What was read of the page before it broke may be new; nothing of it is gone.
            assert before.keys() <= told.table.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_every_kind_with_anything_in_them_end_no_watch(kind: str) -> None:
    dice = random.Random(kind)
    told = Told(KINDS[kind].type)

    def anything(depth: int = 0) -> Any:
        leaves = [None, True, -1, 1e300, "", "x" * 100, 10**30]
        if depth > 3 or dice.random() < 0.4:
            return dice.choice(leaves)
        if dice.random() < 0.5:
            return [anything(depth + 1) for _ in range(dice.randrange(4))]
        names = ["spec", "status", "ports", "labels", "selector", "rules", "addresses", "endpoints", "hosts", "conditions"]
        return {dice.choice(names): anything(depth + 1) for _ in range(dice.randrange(4))}

    for number in range(500):
        body = {"metadata": {"name": "p", "resourceVersion": str(number)}, "spec": anything(), "status": anything()}
        told.event(json.dumps({"type": "ADDED", "object": body}).encode())
    assert told.reflector._version == "499"
