"""The CNI plug-in under AddressSanitizer: its parsers with changed input, and the whole program with the worst of it."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

from tests.cni_plugin import SOURCES, built, call, config, environment

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ROUNDS = 100_000


def seed(directory: Path) -> dict[str, object]:
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.1.2.3/24"}, {"address": "fd00::1/64"}],
        "dns": {"x": [1.5e-7, True, None, '\u2028\\"', {}, []]},
    }
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b\\", "ifname": "eth1"}]
    return config(directory, "1.1.0", prevResult=result, **{"cni.dev/valid-attachments": valid})


def test_no_input_is_read_beyond_its_end(tmp_path: Path) -> None:
    sources = (Path(__file__).with_suffix("").with_name("cni_plugin.c"), SOURCES / "json.c", SOURCES / "request.c")
    program = built("nodeproxy-cni-fuzz", sources, SANITIZERS)
    number = random.randrange(1 << 32)
    given = json.dumps(seed(tmp_path)).encode()
    done = subprocess.run([program, str(number), str(ROUNDS)], input=given, capture_output=True, timeout=100)
    assert done.returncode == 0, f"seed {number}: {done.stderr.decode()}"
    assert int(done.stdout) > ROUNDS // 10  # else it would be a test of little


def test_the_whole_program_under_the_sanitizers(tmp_path: Path) -> None:
    program = built("nodeproxy-cni-asan", tuple(sorted(SOURCES.glob("*.c"))), SANITIZERS)
    chosen = random.Random(number := random.randrange(1 << 32))
    (tmp_path / "namespaces").write_text("shop\n" * 10_000)
    given = json.dumps(seed(tmp_path)).encode()
    for round_ in range(60):
        text = bytearray(given)
        for _ in range(chosen.randrange(4)):
            text[chosen.randrange(len(text))] = chosen.randrange(256)
        command = chosen.choice(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"])
        ifname, args = chosen.choice(["eth0", "", "x" * 40_000]), chosen.choice(["K8S_POD_NAMESPACE=a", ";" * 9000, "=" * 9000])
        done = call(bytes(text), environment(command, CNI_IFNAME=ifname, CNI_ARGS=args), program)
        assert done.stderr == b"", (number, round_)
        assert done.status in (0, 1)
