"""The CNI plug-in and the agent's socket, with an admitter that a test directs."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodeproxy.agent.pods import cni_server
from nodeproxy.agent.pods.cni_server import CniServer
from nodeproxy.errors import ConfigError, EnrolmentError
from nodeproxy.model.cni import MAX_LINE_BYTES, Attachment, CniAdd, CniAnswer, CniCall, CniRefusal
from nodeproxy.observe.cni_metrics import CniStatistics, cni_families
from tests.cni_admitter import FakeAdmitter
from tests.cni_plugin import config, environment, plugin

POD = CniAdd("c0ffee", "/proc/self/ns/net", "eth0", "shop", "front", "4711", ("10.1.2.3",))
HERE = Attachment("c0ffee", "eth0")


class Agent:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.admitter = FakeAdmitter()
        self.server = CniServer(self.admitter, directory)

    async def call(self, command: str, namespace: str = "shop", **more: Any) -> tuple[int, Any]:
        """By the plug-in itself."""
        process = await asyncio.create_subprocess_exec(
            plugin(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(command, namespace),
        )
        said, _ = await process.communicate(msgspec.json.encode(config(self.directory, "1.1.0", **more)))
        return process.returncode or 0, msgspec.json.decode(said) if said else None

    async def ask(self, line: bytes) -> CniAnswer:
        reader, writer = await asyncio.open_unix_connection(self.directory / "cni.sock", limit=1 << 20)
        writer.write(line)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return msgspec.json.decode(answer, type=CniAnswer)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Agent]:
    agent = Agent(directory)
    await agent.server.start()
    try:
        yield agent
    finally:
        await agent.server.stop()


def with_agent(directory: Path, work: Callable[[Agent], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running(directory) as agent:
            await work(agent)

    asyncio.run(main())


def line(call: CniCall) -> bytes:
    return msgspec.json.encode(call) + b"\n"


def test_a_pods_life(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        result = config(tmp_path, "1.1.0")["prevResult"]
        assert await agent.call("STATUS") == (0, None)
        assert await agent.call("ADD") == (0, result)
        assert agent.admitter.admitted == {HERE: POD}
        assert await agent.call("CHECK") == (0, None)
        assert await agent.call("GC", **{"cni.dev/valid-attachments": [{"containerID": "c0ffee", "ifname": "eth0"}]}) == (0, None)
        assert agent.admitter.admitted == {HERE: POD}
        assert await agent.call("DEL") == (0, None)
        assert await agent.call("DEL") == (0, None)
        assert agent.admitter.admitted == {}
        status, said = await agent.call("CHECK")
        assert (status, said["code"], said["details"]) == (1, 100, "reason: not_as_added")
        assert await agent.call("ADD", "other") == (0, result)
        assert await agent.call("GC", **{"cni.dev/valid-attachments": []}) == (0, None)
        assert agent.admitter.admitted == {}
        assert agent.server.calls == {
            ("STATUS", "done"): 1,
            ("ADD", "in_mesh"): 1,
            ("CHECK", "done"): 1,
            ("GC", "done"): 2,
            ("DEL", "done"): 2,
            ("CHECK", "not_as_added"): 1,
            ("ADD", "outside"): 1,
        }

    with_agent(tmp_path, work)


def test_each_refusal_is_named_in_log_metric_and_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(agent: Agent) -> None:
        for error, refusal in (
            (EnrolmentError("no room"), CniRefusal.NOT_ENROLLED),
            (ZeroDivisionError("a defect"), CniRefusal.INTERNAL),
        ):
            caplog.clear()
            agent.admitter.error = error
            status, said = await agent.call("ADD")
            assert (status, said["code"]) == (1, 11)
            assert refusal in caplog.text
            assert agent.server.calls["ADD", refusal] == 1
            assert refusal is CniRefusal.INTERNAL or said["details"] == f"reason: {refusal.value}"
        agent.admitter.waits_for = "no controller has answered"
        (tmp_path / "namespaces").write_text("shop\n")
        status, said = await agent.call("ADD")
        assert (status, said["code"], said["details"]) == (1, 11, "no controller has answered")
        assert await agent.call("ADD", "other") == (0, config(tmp_path, "1.1.0")["prevResult"])
        assert agent.server.calls["ADD", CniRefusal.NOT_READY] == 2
        (tmp_path / "namespaces").unlink()
        assert (await agent.call("STATUS"))[1]["code"] == 50

    with_agent(tmp_path, work)


@pytest.mark.parametrize(
    "sent",
    [
        b"\n",
        b"{}\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * (MAX_LINE_BYTES + 2) + b"\n",
        b'{"command":"FORMAT"}\n',
        b'{"command":"ADD"}\n',
        line(CniCall("ADD", msgspec.structs.replace(POD, addresses=("ten",)))),
        line(CniCall("ADD", msgspec.structs.replace(POD, addresses=("10.0.0.1",) * 65))),
        b'{"command":"ADD","pod":{"container_id":"\xff"}}\n',
    ],
    ids=lambda sent: repr(sent[:20]),
)
def test_who_is_not_our_plug_in(tmp_path: Path, sent: bytes) -> None:
    async def work(agent: Agent) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "cni.sock")
        writer.write(sent)
        writer.write_eof()
        answer = msgspec.json.decode(await reader.read(), type=CniAnswer)
        writer.close()
        await writer.wait_closed()
        assert answer.code
        assert answer.details == "reason: malformed"
        assert agent.admitter.admitted == {}

    with_agent(tmp_path, work)


def test_who_only_looks_whether_it_is_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(agent: Agent) -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "cni.sock")
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert agent.server.calls == {}

    with_agent(tmp_path, work)
    assert caplog.text == ""


def test_who_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "_LINE_TIMEOUT_S", 0.02)
    with_agent(tmp_path, lambda agent: _expect(agent, b'{"comm', CniRefusal.MALFORMED))


async def _expect(agent: Agent, sent: bytes, refusal: CniRefusal) -> None:
    assert (await agent.ask(sent)).details == f"reason: {refusal.value}"


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever got hold of a descriptor: the mode of the socket keeps others from opening it."""
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)

    async def work(agent: Agent) -> None:
        assert (tmp_path / "cni.sock").stat().st_mode & 0o777 == 0o600
        await _expect(agent, line(CniCall("ADD", POD)), CniRefusal.NOT_ROOT)
        assert agent.admitter.admitted == {}

    with_agent(tmp_path, work)


def test_what_takes_too_long_goes_on_and_a_repeat_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "CALL_TIMEOUT_S", 0.02)

    async def work(agent: Agent) -> None:
        agent.admitter.hold = asyncio.Event()
        answer = await agent.ask(line(CniCall("ADD", POD)))
        assert (answer.code, answer.decided, answer.details) == (11, False, "reason: timeout")
        agent.admitter.hold.set()
        assert (await agent.ask(line(CniCall("ADD", POD)))).code == 0
        assert agent.admitter.admitted == {HERE: POD}

    with_agent(tmp_path, work)


def test_more_calls_than_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "MAX_CALLS", 3)

    async def work(agent: Agent) -> None:
        agent.admitter.hold = asyncio.Event()
        calls = [asyncio.create_task(agent.ask(line(CniCall("ADD", POD)))) for _ in range(8)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(waiting) > 3:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert {task.result().details for task in done} == {"reason: too_many"}
        agent.admitter.hold.set()
        assert {(await task).code for task in waiting} == {0}

    with_agent(tmp_path, work)


def test_250_at_once(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        pods = [msgspec.structs.replace(POD, container_id=f"c{number}") for number in range(250)]
        answers = await asyncio.gather(*(agent.ask(line(CniCall("ADD", pod))) for pod in pods))
        assert {answer.code for answer in answers} == {0}
        assert len(agent.admitter.admitted) == 250
        assert sum(agent.server.add_counts) == 250

    with_agent(tmp_path, work)


async def begun(agent: Agent) -> asyncio.Task[CniAnswer | None]:
    """A call that waits for the admitter; None: it was hung up on."""
    agent.admitter.hold = asyncio.Event()
    waiting = asyncio.create_task(asked(agent))
    while not agent.server._calls:
        await asyncio.sleep(0)
    return waiting


async def asked(agent: Agent) -> CniAnswer | None:
    reader, writer = await asyncio.open_unix_connection(agent.directory / "cni.sock")
    writer.write(line(CniCall("ADD", POD)))
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return msgspec.json.decode(said, type=CniAnswer) if said else None


def test_an_agent_that_ends_hangs_up(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        waiting = await begun(agent)
        await agent.server.stop()
        assert await waiting is None
        assert not (tmp_path / "cni.sock").exists()

    with_agent(tmp_path, work)


def test_while_another_takes_over_what_has_begun_ends_and_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(first: Agent) -> None:
        waiting = await begun(first)
        pausing = asyncio.create_task(first.server.pause())
        await asyncio.sleep(0)
        assert await asked(first) is None
        assert first.admitter.hold is not None
        first.admitter.hold.set()
        await pausing
        answer = await waiting
        assert answer is not None
        assert answer.code == 0
        call = asyncio.create_task(first.call("ADD"))  # of the plug-in, which asks again
        while first.server._open == 0:
            await asyncio.sleep(0)
        async with running(tmp_path) as second:
            assert (await call)[0] == 0
            assert second.admitter.admitted == {HERE: POD}
        await first.server.stop()

    with_agent(tmp_path, work)


def test_a_handover_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "_PAUSE_S", 0.02)

    async def work(agent: Agent) -> None:
        waiting = await begun(agent)
        await agent.server.pause()
        assert await waiting is None
        agent.admitter.hold = None
        agent.server.resume()
        answer = await asked(agent)
        assert answer is not None
        assert answer.code == 0

    with_agent(tmp_path, work)


def test_the_next_agent_takes_the_socket_over_and_keeps_it(tmp_path: Path) -> None:
    async def work(first: Agent) -> None:
        async with running(tmp_path) as second:
            await first.server.stop()
            assert (await second.ask(line(CniCall("ADD", POD)))).code == 0
            assert second.admitter.admitted == {HERE: POD}

    with_agent(tmp_path, work)
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_can_not_be_made(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="can't be made"):
            await CniServer(FakeAdmitter(), tmp_path / "missing").start()

    asyncio.run(main())


def test_a_caller_that_leaves_does_no_harm(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        agent.admitter.hold = asyncio.Event()
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(str(tmp_path / "cni.sock"))
        gone.sendall(line(CniCall("ADD", POD)))
        while not agent.server._calls:
            await asyncio.sleep(0)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        agent.admitter.hold.set()
        assert (await agent.ask(line(CniCall("ADD", POD)))).code == 0

    with_agent(tmp_path, work)


def test_addresses_are_canonical(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        written = ("FD00:0:0::1", "::ffff:10.0.0.1")
        await agent.ask(line(CniCall("ADD", msgspec.structs.replace(POD, addresses=written))))
        assert agent.admitter.admitted[HERE].addresses == ("fd00::1", "10.0.0.1")

    with_agent(tmp_path, work)


def test_its_metrics() -> None:
    counts = [0] * 12
    counts[0], counts[3], counts[-1] = 2, 1, 1
    calls = {("ADD", "in_mesh"): 4}
    families = list(cni_families(CniStatistics(calls=calls, add_counts=counts, add_sum_s=20.5, installed=None)))
    samples = {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}
    assert samples["nodeproxy_cni_calls_total", ("ADD", "in_mesh")] == 4
    assert samples["nodeproxy_cni_add_seconds_bucket", ("0.005",)] == 2
    assert samples["nodeproxy_cni_add_seconds_bucket", ("0.05",)] == 3
    assert samples["nodeproxy_cni_add_seconds_bucket", ("+Inf",)] == 4
    assert samples["nodeproxy_cni_add_seconds_sum", ()] == 20.5
    assert [family.name for family in families] == ["nodeproxy_cni_calls", "nodeproxy_cni_add_seconds"]
