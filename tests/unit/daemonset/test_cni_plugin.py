"""daemonset/cni: what the plug-in makes of a runtime's call, with an agent and without one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeproxy.cni.chain import PROGRAM
from nodeproxy.model.cni import MAX_ADDRESSES, MAX_LINE_BYTES, CniCall
from tests.cni_plugin import VERSIONS, FakeAgent, call, config, environment, plugin_with_limits

YES = {"code": 0, "message": "it is in the mesh"}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_add_hands_the_result_on(tmp_path: Path, version: str) -> None:
    given = config(tmp_path, version)
    with FakeAgent(tmp_path, lambda asked: YES) as agent:
        done = call(given, environment("ADD"))
    assert done == (0, given["prevResult"], b"")
    assert agent.calls == [
        {
            "command": "ADD",
            "pod": {
                "container_id": "c0ffee",
                "netns": "/proc/self/ns/net",
                "ifname": "eth0",
                "namespace": "shop",
                "name": "front",
                "pod_uid": "4711",
                "addresses": ["10.1.2.3"],
            },
            "valid": [],
        }
    ]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"cniVersion": "0.4.0", "ips": []}, {"cniVersion": "1.0.0", "ips": []}),  # of a plug-in that speaks another version
        ({"ips": [], "dns": {}}, {"cniVersion": "1.0.0", "ips": [], "dns": {}}),
        ({}, {"cniVersion": "1.0.0"}),
        ({"x": {"cniVersion": "9"}, "ips": None}, {"x": {"cniVersion": "9"}, "ips": None, "cniVersion": "1.0.0"}),
    ],
)
def test_a_result_has_the_version_of_the_configuration(tmp_path: Path, result: dict[str, Any], said: dict[str, Any]) -> None:
    with FakeAgent(tmp_path, lambda asked: YES):
        assert call(config(tmp_path, prevResult=result), environment("ADD")) == (0, said, b"")


def test_an_agents_no_is_the_error_that_the_kubelet_shows(tmp_path: Path) -> None:
    no = {"code": 11, "message": 'pod shop/front waits: "no room"\n', "details": "reason: not_enrolled", "decided": True}
    with FakeAgent(tmp_path, lambda asked: no):
        done = call(config(tmp_path, "0.4.0"), environment("ADD"))
    assert done.status == 1
    assert done.said == {"cniVersion": "0.4.0", "code": 11, "msg": no["message"], "details": no["details"]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/run/\u00e4\u20ac\U0001f600".encode(), "/run/\u00e4\u20ac\U0001f600"),
        (b"/run/\xe4", "/run/\ufffd"),
        (b"/run/\xc0\xaf", "/run/\ufffd\ufffd"),  # overlong
        (b"/run/\xed\xa0\x80", "/run/\ufffd\ufffd\ufffd"),  # a surrogate
        (b"/run/\xf4\x90\x80\x80", "/run/\ufffd\ufffd\ufffd\ufffd"),  # beyond Unicode
    ],
)
def test_what_it_says_is_utf_8(tmp_path: Path, given: bytes, said: str) -> None:
    done = call(config(tmp_path), {**environment("ADD"), "CNI_NETNS": given})
    assert done.said["msg"].startswith(f"nodeproxy-cni: CNI_NETNS {said}: ")


def test_what_the_agent_is_asked_fits_its_model(tmp_path: Path) -> None:
    import msgspec

    lines: list[dict[str, Any]] = []
    valid = [{"containerID": f"c{number}", "ifname": "eth0"} for number in range(1000)]
    with FakeAgent(tmp_path, lambda asked: lines.append(asked) or YES):  # type: ignore[func-returns-value]
        for command in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
            given = config(tmp_path, "1.1.0", **{"cni.dev/valid-attachments": valid})
            assert call(given, environment(command)).status == 0
    calls = [msgspec.convert(line, CniCall) for line in lines]
    assert [each.command for each in calls] == ["ADD", "DEL", "CHECK", "GC", "STATUS"]
    assert len(calls[3].valid) == 1000
    assert calls[4].pod is None


def test_names_and_addresses_arrive_as_they_were(tmp_path: Path) -> None:
    odd = 'a"b\\c\x01é'
    result = {"ips": [{"address": f"fd00::{number:x}/64"} for number in range(MAX_ADDRESSES)]}
    with FakeAgent(tmp_path, lambda asked: YES) as agent:
        args = f";;K8S_POD_NAMESPACE;K8S_POD_NAME={odd};K8S_POD_NAMESPACE=a=b;XK8S_POD_UID=9"
        assert call(config(tmp_path, prevResult=result), environment("ADD", CNI_ARGS=args)).status == 0
    pod = agent.calls[0]["pod"]
    assert (pod["namespace"], pod["name"], pod["pod_uid"]) == ("a=b", odd, "")
    assert pod["addresses"] == [f"fd00::{number:x}" for number in range(MAX_ADDRESSES)]


# ── nobody decides ──


def away(tmp_path: Path, kind: str) -> Any:
    """The ways in which nobody decides."""
    answers: dict[str, Any] = {
        "ends": lambda asked: "end",
        "babbles": lambda asked: b"[[[",
        "undecided": lambda asked: {"code": 11, "message": "not yet", "decided": False},
    }
    if kind == "no socket":
        return open(os.devnull)
    return FakeAgent(tmp_path, answers[kind])


WAYS = ("no socket", "ends", "babbles", "undecided")


@pytest.mark.parametrize("kind", WAYS)
def test_a_pod_of_the_mesh_waits_and_is_told_why(tmp_path: Path, kind: str) -> None:
    (tmp_path / "namespaces").write_text("bank\nshop\nshopping\n")
    with away(tmp_path, kind):
        done = call(config(tmp_path), environment("ADD"))
    assert (done.status, done.said["code"]) == (1, 11)
    who = "does not know yet who is in the mesh" if kind == "undecided" else "is away"
    assert f"agent on this node {who}, and pods of namespace shop belong into the mesh" in done.said["msg"]
    assert done.said["details"]


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("namespace", ["sho", "shopp", "shopping-2", "other", "kube-system"])
def test_a_pod_outside_starts(tmp_path: Path, kind: str, namespace: str) -> None:
    (tmp_path / "namespaces").write_text("bank\nshop\nshopping\nkube-system\n")
    with away(tmp_path, kind):
        done = call(config(tmp_path), environment("ADD", namespace))
    assert done == (0, config(tmp_path)["prevResult"], b"")


def test_who_hangs_up_is_asked_again(tmp_path: Path) -> None:
    """As an agent that is taken over from does, until the next one answers."""
    answers = [None, None, None, YES]
    with FakeAgent(tmp_path, lambda asked: answers.pop(0)) as agent:
        assert call(config(tmp_path), environment("ADD")).status == 0
    assert len(agent.calls) == 4


@pytest.mark.parametrize("content", ["shop", "x" * 16383 + "\nshop\n", "\n\nshop\n", "x" * 16380 + "\nshop\n"])
def test_a_name_is_found_wherever_it_stands(tmp_path: Path, content: str) -> None:
    (tmp_path / "namespaces").write_text(content)
    assert call(config(tmp_path), environment("ADD")).status == 1
    assert call(config(tmp_path), environment("ADD", "hop")).status == 0


def test_without_the_list_only_the_exempt_start(tmp_path: Path) -> None:
    done = call(config(tmp_path), environment("ADD"))
    assert (done.status, done.said["code"]) == (1, 11)
    assert "whether pods of namespace shop belong into the mesh is not known" in done.said["msg"]
    assert call(config(tmp_path), environment("ADD", "kube-system")).status == 0
    (tmp_path / "namespaces").mkdir()  # nor can it be read
    assert call(config(tmp_path), environment("ADD")).status == 1
    (tmp_path / "namespaces").rmdir()
    os.mkfifo(tmp_path / "namespaces")  # nor does it keep anybody waiting
    assert call(config(tmp_path), environment("ADD", CNI_ARGS=None)).status == 0  # no kubelet's pod


def test_what_is_there_is_removed_whoever_is_away(tmp_path: Path) -> None:
    for env in (environment("DEL"), environment("DEL", CNI_NETNS=None), environment("DEL", CNI_CONTAINERID=None)):
        assert call(config(tmp_path), env) == (0, None, b"")
    for stdin in (b"", b"{", b'{"cniVersion":"7"}', b" " * 2_000_000):
        assert call(stdin, environment("DEL")) == (0, None, b"")
    with FakeAgent(tmp_path, lambda asked: {"code": 11, "message": "no"}):
        assert call(config(tmp_path), environment("DEL")) == (0, None, b"")


def test_check_and_gc_without_an_agent(tmp_path: Path) -> None:
    given = config(tmp_path, "1.1.0", **{"cni.dev/valid-attachments": []})
    (tmp_path / "namespaces").write_text("shop\n")
    assert call(given, environment("CHECK")).said["code"] == 11
    assert call(given, environment("CHECK", "other")) == (0, None, b"")
    assert call(given, environment("GC")) == (0, None, b"")  # the agent sees for itself who has gone


def test_status_says_so_when_all_wait(tmp_path: Path) -> None:
    given = config(tmp_path, "1.1.0")
    assert call(given, environment("STATUS")).said["code"] == 51  # who is there has no connections either
    with away(tmp_path, "undecided"):
        assert call(given, environment("STATUS")).said["code"] == 50
    (tmp_path / "namespaces").write_text("shop\n")
    assert call(given, environment("STATUS")) == (0, None, b"")  # pods outside the mesh start


# ── an agent that hangs ──


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Path]:
    """The plug-in with shorter limits than in life; at its socket somebody listens who says nothing."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "cni.sock"))
        silent.listen(8)
        yield plugin_with_limits(tmp_path, TIME_LIMIT_MS=100, OUTPUT_LIMIT_MS=400)


def test_an_agent_that_hangs_is_as_one_that_is_away(tmp_path: Path, hasty: Path) -> None:
    given = config(tmp_path, "1.1.0")
    assert call(given, environment("ADD", "kube-system"), hasty) == (0, given["prevResult"], b"")
    assert call(given, environment("STATUS"), hasty).said["code"] == 51
    (tmp_path / "namespaces").write_text("shop\n")
    assert call(given, environment("ADD", "other"), hasty) == (0, given["prevResult"], b"")
    done = call(given, environment("ADD"), hasty)
    assert (done.status, done.said["code"]) == (1, 11)
    assert done.said["msg"].startswith(
        "nodeproxy's agent on this node does not answer in time, and pods of namespace shop belong"
    )
    assert done.said["details"] == f"{tmp_path}/cni.sock: Connection timed out"
    assert call(given, environment("STATUS"), hasty) == call(given, environment("DEL"), hasty) == (0, None, b"")


def test_a_runtime_that_does_not_end_its_call_is_told(hasty: Path) -> None:
    with subprocess.Popen([hasty], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment("ADD")) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["details"] == "Connection timed out"
    assert process.returncode == 1


def test_a_runtime_that_does_not_read_is_not_waited_for(tmp_path: Path, hasty: Path) -> None:
    """A result of more than its pipe takes, which is 64 KiB."""
    given = config(tmp_path, prevResult={"ips": [], "x": "y" * 500_000})
    reader, writer = os.pipe()
    try:
        asked = json.dumps(given).encode()
        done = subprocess.run([hasty], input=asked, stdout=writer, env=environment("ADD", "kube-system"), timeout=10)
        assert done.returncode == 1
    finally:
        os.close(reader)
        os.close(writer)


# ── calls that are wrong ──


@pytest.mark.parametrize(
    ("code", "command", "version", "change"),
    [
        (4, "ADD", "1.0.0", {"CNI_COMMAND": None}),
        (4, "ADD", "1.0.0", {"CNI_COMMAND": "add"}),
        (4, "ADD", "1.0.0", {"CNI_CONTAINERID": None}),
        (4, "ADD", "1.0.0", {"CNI_CONTAINERID": "../x"}),
        (4, "ADD", "1.0.0", {"CNI_CONTAINERID": "-x"}),
        (4, "ADD", "1.0.0", {"CNI_IFNAME": ""}),
        (4, "ADD", "1.0.0", {"CNI_IFNAME": "sixteen-letters!"}),
        (4, "ADD", "1.0.0", {"CNI_IFNAME": "a:b"}),
        (4, "ADD", "1.0.0", {"CNI_IFNAME": ".."}),
        (4, "ADD", "1.0.0", {"CNI_NETNS": None}),
        (4, "ADD", "1.0.0", {"CNI_NETNS": "/proc/self/ns/mnt"}),
        (4, "ADD", "1.0.0", {"CNI_NETNS": "/etc/passwd"}),
        (4, "ADD", "1.0.0", {"CNI_NETNS": "/nowhere"}),
        (4, "ADD", "1.0.0", {"CNI_NETNS": "/" + "x" * 100_000}),
        (4, "CHECK", "1.0.0", {"CNI_NETNS": "/dev/null"}),
        (1, "ADD", "0.2.0", {}),
        (1, "ADD", "1.1.1", {}),
        (1, "CHECK", "0.3.1", {}),
        (1, "GC", "1.0.0", {}),
        (1, "STATUS", "1.0.0", {}),
    ],
)
def test_what_is_wrong_has_the_specifications_code(
    tmp_path: Path, code: int, command: str, version: str, change: dict[str, str | None]
) -> None:
    done = call(config(tmp_path, version), environment(command, **change))
    assert (done.status, done.said["code"], done.stderr) == (1, code, b"")
    assert done.said["cniVersion"] == (version if version in VERSIONS and "CNI_COMMAND" not in change else "1.1.0")
    assert done.said["msg"]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (7, {"socket": None}),
        (7, {"socket": "run/cni.sock"}),
        (7, {"namespacesFile": 7}),
        (7, {"prevResult": None}),
        (7, {"prevResult": []}),
        (6, {"prevResult": {"ips": [{}]}}),
        (6, {"prevResult": {"ips": [{"address": 7}]}}),
        (6, {"prevResult": {"ips": [{"address": "10.0.0.1/8"}] * (MAX_ADDRESSES + 1)}}),
        (7, {"prevResult": {"ips": [{"address": "1" * MAX_LINE_BYTES}]}}),
    ],
)
def test_a_configuration_that_is_wrong(tmp_path: Path, code: int, change: dict[str, Any]) -> None:
    done = call(config(tmp_path, **change), environment("ADD"))
    assert (done.status, done.said["code"]) == (1, code)


@pytest.mark.parametrize(
    "stdin",
    [b"", b"{", b"[]", b'{"a":1}x', b'{"a":01}', b'{"a":"\x01"}', b'{"a":"\\x"}', b"[" * 100_000, b" " * (1 << 21), b"\xff\x00"],
    ids=lambda stdin: repr(stdin[:10]),
)
def test_input_that_is_no_configuration(stdin: bytes) -> None:
    done = call(stdin, environment("ADD"))
    assert (done.status, done.said["code"]) == (1, 6)


@pytest.mark.parametrize("given", [None, 7, [{}], [{"containerID": "a"}], [{"containerID": 1, "ifname": "b"}]])
def test_gc_that_does_not_say_who_is_there(tmp_path: Path, given: Any) -> None:
    """An empty list is what says that nobody is; Go writes null for it."""
    with FakeAgent(tmp_path, lambda asked: YES) as agent:
        done = call(config(tmp_path, "1.1.0", **{"cni.dev/valid-attachments": given}), environment("GC"))
        assert call(config(tmp_path, "1.1.0"), environment("GC")).said["code"] == 7
    if given is None:
        assert (done.status, agent.calls[0]["valid"]) == (0, [])
    else:
        assert (done.status, agent.calls) == (1, [])


@pytest.mark.parametrize("stdin", [b"", b"{}", b'{"cniVersion":"0.4.0"}', b'{"cniVersion":"1.2.0"}', b"nonsense"])
def test_version(stdin: bytes) -> None:
    done = call(stdin, {"CNI_COMMAND": "VERSION"})
    assert done.said == {"cniVersion": "0.4.0" if b"0.4.0" in stdin else "1.1.0", "supportedVersions": list(VERSIONS)}


def test_a_pod_outside_does_not_wait(tmp_path: Path) -> None:
    """20 ms is what it may cost; the plug-in takes 1 to 2 of them, to be started as well."""
    (tmp_path / "namespaces").write_text("".join(f"namespace-{number}\n" for number in range(10_000)))
    given, env = json.dumps(config(tmp_path)).encode(), environment("ADD")
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert call(given, env).status == 0
        took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.02


def test_its_name_is_the_one_in_the_chain() -> None:
    dockerfile = (Path(__file__).parents[3] / "daemonset" / "Dockerfile").read_text()
    assert f"libexec/{PROGRAM}" in dockerfile
