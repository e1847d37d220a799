"""bpf/nodeproxy.h and kernel/abi.py say the same: the header is compiled and asked."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from nodeproxy.kernel import abi, programs
from nodeproxy.model.workload import HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT

# struct of the header → (Python's view, names of its fields in that order)
STRUCTS = {
    "np_config": (abi.CONFIG, ["own_cgroup_id", "slots", "unused"]),
    "np_pod": (abi.POD, ["address4", "families", "address6"]),
    "np_address": (abi.ADDRESS, ["ip"]),
    "np_owner": (abi.OWNER, ["netns_cookie", "turn[0]", "turn[1]", "turn[2]", "unused"]),
    "np_client_socket": (abi.CLIENT_SOCKET, ["ip", "port", "kind"]),
    "np_destination": (abi.DESTINATION, ["ip", "port", "kind", "source"]),
    "np_client": (abi.CLIENT, ["netns_cookie", "ip", "port", "unused"]),
    "np_flow": (abi.FLOW, ["source_ip", "destination_ip", "source_port", "destination_port"]),
    "np_listener": (abi.LISTENER, ["ip", "role", "slot"]),
    "np_in_use": (abi.IN_USE, ["handover", "flows", "probes"]),
    "np_flow_use": (abi.FLOW_USE, ["source"]),
    "np_kubelet": (abi.KUBELET, ["cgroup_id", "netns_cookie"]),
    "np_probe": (abi.PROBE, ["destination", "socket"]),
    "np_probe_port": (abi.PROBE_PORT, ["netns_cookie", "port", "unused"]),
    "np_pair": (abi.PAIR, ["source", "destination", "port", "unused"]),
    "np_verdict": (abi.VERDICT, ["epoch", "direct", "exceptions"]),
    "np_address_port": (abi.ADDRESS_PORT, ["ip", "port"]),
    "np_direct_service": (abi.SERVICE, ["epoch", "count", "turn", "endpoints"]),
    "np_direct_state": (abi.DIRECT_STATE, ["epoch", "valid_until_ns"]),
    "np_direct_flow": (
        abi.DIRECT_FLOW,
        ["socket", "source", "destination", "started_ns", "ended_ns", "sent", "received", "original_ip", "original_port"]
        + ["accepted", "ended", "refused"],
    ),
    "np_direct_ended": (
        abi.DIRECT_ENDED,
        ["flow.source_ip", "flow.destination_ip", "flow.source_port", "flow.destination_port"]
        + ["carried.socket", "carried.source", "carried.destination", "carried.started_ns", "carried.ended_ns", "carried.sent"]
        + ["carried.received", "carried.original_ip", "carried.original_port", "carried.accepted", "carried.ended"]
        + ["carried.refused"],
    ),
}
NUMBERS = {
    "NP_PORT_OUTBOUND": OUTBOUND_PORT,
    "NP_PORT_PLAINTEXT": PLAINTEXT_PORT,
    "NP_PORT_HBONE": HBONE_PORT,
    "NP_MARK_LAST_LEG": abi.MARK_LAST_LEG,
    "NP_MAX_SLOTS": abi.MAX_SLOTS,
    "NP_MAX_PODS": abi.MAX_PODS,
    "NP_FAMILY_V4": abi.FAMILY_V4,
    "NP_FAMILY_V6": abi.FAMILY_V6,
    "NP_MAX_ENDPOINTS": abi.MAX_ENDPOINTS,
    "NP_ROLES": len(abi.Role),
    "NP_DROPS": len(abi.Drop),
    **{f"NP_ROLE_{role.name}": role.value for role in abi.Role},
    **{f"NP_DROP_{drop.name}": drop.value for drop in abi.Drop},
    "NP_DIRECT_COUNTS": len(abi.DirectCount),
    **{f"NP_DIRECT_{count.name}": count.value for count in abi.DirectCount},
    "NP_PROBE_COUNTS": len(abi.ProbeCount),
    **{f"NP_PROBE_{count.name}": count.value for count in abi.ProbeCount},
    **{f"NP_KIND_{kind.name}": kind.value for kind in abi.Kind},
}


def offsets(layout: struct.Struct) -> list[int]:
    """Where each field of a layout begins; `x` is what Python passes over."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", layout.format):
        repeats, size = (1, int(count)) if code == "s" else (int(count or 1), struct.calcsize(f"={code}"))
        for _ in range(repeats):
            if code != "x":
                found.append(at)
            at += size
    return found


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler makes of the header."""
    directory = tmp_path_factory.mktemp("abi")
    asked = [f'P("{name}", {name});' for name in NUMBERS]
    for name, (_, fields) in STRUCTS.items():
        asked.append(f'P("{name}", sizeof(struct {name}));')
        asked += [f'P("{name}.{field}", offsetof(struct {name}, {field}));' for field in fields]
    source = directory / "ask.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n#include <nodeproxy.h>\n"
        '#define P(name, value) printf("%s %ld\\n", name, (long)(value))\n'
        f"int main(void) {{ {' '.join(asked)} return 0; }}\n"
    )
    subprocess.run(["cc", "-I", programs.source_directory(), source, "-o", directory / "ask"], check=True)
    lines = subprocess.run([directory / "ask"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.split(" ") for line in lines)}


@pytest.mark.parametrize("name", NUMBERS)
def test_number(said: dict[str, int], name: str) -> None:
    assert said[name] == NUMBERS[name]


@pytest.mark.parametrize("name", STRUCTS)
def test_layout(said: dict[str, int], name: str) -> None:
    layout, fields = STRUCTS[name]
    assert said[name] == layout.size
    assert [said[f"{name}.{field}"] for field in fields] == offsets(layout)


def test_every_struct_and_number_is_compared() -> None:
    header = (programs.source_directory() / "nodeproxy.h").read_text()
    assert set(re.findall(r"^struct (np_\w+) \{", header, re.MULTILINE)) == set(STRUCTS)
    assert set(re.findall(r"^\t(NP_(?:DROP|ROLE|DIRECT|PROBE|KIND)_?\w*) =", header, re.MULTILINE)) <= set(NUMBERS)


def test_every_map_has_a_name_and_a_row() -> None:
    directory = programs.source_directory()
    maps = (directory / "maps.h").read_text()
    declared = re.findall(r"^NP_MAP\([^;]*?(\w+), [\w *]+, \w+\);", maps, re.MULTILINE)
    declared += re.findall(r"^NP_(?:SK_STORAGE|RING)\((\w+),", maps, re.MULTILINE)
    assert sorted(declared) == sorted(abi.MAPS)
    rows = re.findall(r"^\| `(\w+)` \|", (directory / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(abi.MAPS)


@pytest.mark.parametrize("address", ["10.0.0.1", "0.0.0.0", "fd00::1", "::1", "::"])
def test_addresses(address: str) -> None:
    packed = abi.pack_ip(address)
    assert len(packed) == 16
    assert abi.unpack_ip(packed) == address


def test_a_mapped_address_is_ipv4() -> None:
    assert abi.pack_ip("::ffff:10.0.0.1") == abi.pack_ip("10.0.0.1")


def test_each_source_is_short_and_says_its_licence() -> None:
    sources = [path for path in Path(programs.source_directory()).iterdir() if path.suffix in (".c", ".h")]
    for path in sources:
        text = path.read_text()
        assert len(text.splitlines()) < 300
        assert "SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)" in text.splitlines()[0]
