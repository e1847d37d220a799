from __future__ import annotations

import os
import subprocess

from tests.bench.processes import cpu_s, parse_pss_bytes, parse_stat_cpu_s, pss_bytes, tree


def test_cpu_time_behind_a_name_that_holds_anything() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    assert parse_stat_cpu_s(f"7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 {3 * ticks} {2 * ticks} 0 0 20 0") == 5.0


def test_memory() -> None:
    assert parse_pss_bytes("5500-7ff [rollup]\nRss: 9 kB\nPss:      12 kB\nPss_Dirty: 3 kB\n") == 12 * 1024


def test_a_tree_has_the_children_and_theirs() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert tree(child.pid) == [child.pid, grandchild]
        assert pss_bytes([child.pid, grandchild]) > 0
        assert cpu_s([child.pid, grandchild]) < 1
        os.kill(grandchild, 15)
    finally:
        child.kill()
        child.communicate()
    assert tree(child.pid) == [child.pid]
