"""What an agent holds: what must be the same before and after pods have come and gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from nodeproxy.agent.run_dir import store_of
from nodeproxy.kernel.bpf import Map
from nodeproxy.kernel.pins import Pins
from nodeproxy.state.layout import INDEXES, PLAIN_TABLES
from tests.mesh.cluster import Agent
from tests.mesh.test_enrolment import all_pids, pss_mb

# <linux/bpf.h>, enum bpf_map_type: an array is always as large as it is.
_HASHES = {1: "hash", 9: "lru_hash", 18: "sockhash"}


def held(agent: Agent) -> dict[str, int]:
    """Of all its processes, its pins, its store and its certificates; what each number counts → the number."""
    found = {f"descriptors of {_role(pid)}": 0 for pid in all_pids(agent)}
    for pid in all_pids(agent):
        found[f"descriptors of {_role(pid)}"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    found["processes"] = len(all_pids(agent))
    pins = Pins(agent.instance)
    found["links"] = len(list(pins.links.iterdir()))
    for name, count in _maps(pins):
        found[f"entries of map {name}"] = count
    for name, count in _tables(store_of(agent.run_dir)):
        found[f"rows of table {name}"] = count
    status = agent.get("/status")
    found |= {"pods": len(status["pods"]), "certificates": len(status["certificates"])}
    found["kept certificates"] = len(list((agent.run_dir / "certificates").glob("*")))
    return found


def memory_mb(agent: Agent) -> float:
    """Of all its processes, shared pages split among them."""
    return pss_mb(all_pids(agent))


def _role(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _maps(pins: Pins) -> Iterator[tuple[str, int]]:
    for generation in pins.generations():
        for path in (generation / "maps").iterdir():
            opened = Map.open(path)
            try:
                if opened.type in _HASHES:
                    yield path.name, len(list(opened.all_keys()))
            finally:
                opened.close()


def _tables(store: Path) -> Iterator[tuple[str, int]]:
    names = [*PLAIN_TABLES, *INDEXES]
    with lmdb.open(str(store), readonly=True, create=False, max_dbs=len(names)) as env:
        for name in names:
            table: Any = env.open_db(name.encode(), create=False, dupsort=name in INDEXES)
            with env.begin() as txn:
                yield name, txn.stat(table)["entries"]
