"""What the programs cost a connection, by the kernel's own statistics; printed, and bounded loosely."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import pytest

from nodeproxy.kernel import bpf
from nodeproxy.lab.topology import Lab
from tests.kernel.conftest import Node
from tests.kernel.direct_pods import make_pods

pytestmark = pytest.mark.kernel

_BPF_ENABLE_STATS = 32
_CONNECTIONS = 2000


class Runs(NamedTuple):
    time_ns: int
    count: int


def runs(node: Node) -> dict[str, Runs]:
    """struct bpf_prog_info: run_time_ns, run_cnt."""
    programs = node.steering._generation.programs
    return {name: Runs(*struct.unpack_from("=QQ", bpf._info(program, name), 192)) for name, program in programs.items()}


def test_a_direct_connection_costs_the_programs_little(lab: Lab, node: Node) -> None:
    pods = make_pods(lab, node)
    statistics = bpf._syscall(bpf.syscall_number(), _BPF_ENABLE_STATS, bytes(4), 4)
    assert statistics >= 0
    try:
        for name, allow in (("direct", True), ("steered", False)):
            pods.table.close()
            if allow:
                pods.allow()
            before = runs(node)
            for address in pods.server_pod.addresses:
                pods.client("storm", address=address, port=80, count=_CONNECTIONS // 2)
            pods.soon(_CONNECTIONS if allow else 0)
            after = runs(node)
            total = 0.0
            for program, now in after.items():
                time_ns, count = now.time_ns - before[program].time_ns, now.count - before[program].count
                if count:
                    total += time_ns / _CONNECTIONS
                    print(f"{name}: {program}: {time_ns / count:.0f} ns × {count / _CONNECTIONS:.1f}")
            print(f"{name}: {total:.0f} ns a connection")
            if allow:
                assert total < 20_000
    finally:
        os.close(statistics)
