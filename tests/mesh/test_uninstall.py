"""`nodeproxy uninstall --node` after agents were killed."""

from __future__ import annotations

import json
import subprocess
import sys


def test_uninstall_leaves_nothing_on_the_node() -> None:
    argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "tests.mesh.uninstalled_node"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout.splitlines()[-1])
    status, error = seen["refused"]
    assert status == 1
    assert "is in use by another nodeproxy" in error
    before = seen["before"]
    assert before["pins"] == seen["instances"]
    assert before["cgroups"]
    assert before["run"]
    assert before["node"]
    assert before["chain"] == ["ptp", "nodeproxy-cni"]
    assert before["plug-ins"] == ["nodeproxy-cni"]
    assert set(before["rules"]) == set(before["sysctls"]) == {"client", "server", "forgotten"}
    assert seen["done"] == [0, json.dumps({"instances": seen["instances"]}, indent=2) + "\n", ""]
    gone = {"pins": None, "cgroups": [], "run": False, "node": False, "rules": [], "sysctls": []}
    assert seen["after"] == {**gone, "chain": ["ptp"], "plug-ins": []}
    assert seen["again"] == [0, json.dumps({"instances": []}, indent=2) + "\n"]
