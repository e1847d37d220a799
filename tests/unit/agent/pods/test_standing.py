"""Connections from before a pod was enrolled: what is told of them is true, also where the kernel does not do as it is asked.

A kernel that refuses is the test's: no real one does at will.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest

from nodeproxy.agent.pod_namespace import EnrolledPod
from nodeproxy.agent.pods import standing as module
from nodeproxy.agent.pods.standing import Standing
from nodeproxy.errors import KernelError
from nodeproxy.linux.sock_diag import LiveSocket, TcpSocket
from nodeproxy.model.delta import PodSpec

pytestmark = pytest.mark.unit

UID = "K//Pod/ns/a"


class Kernel:
    """Has three connections of a pod.  lasting: cookies of those that it does not end."""

    def __init__(self) -> None:
        self.there = {1, 2, 3}
        self.lasting: set[int] = set()
        self.counts = True

    def live(self, netns_fd: int) -> list[LiveSocket]:
        if not self.counts:
            raise KernelError("asking about connections: no", 1)
        return [LiveSocket(TcpSocket(("10.0.0.1", 4000 + each), ("10.0.0.2", 80), each), 5) for each in sorted(self.there)]

    def destroy(self, netns_fd: int, connection: TcpSocket) -> bool:
        if connection.cookie in self.lasting:
            raise KernelError("ending a connection: no", 1)
        self.there.discard(connection.cookie)
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(module, "live", kernel.live)
    monkeypatch.setattr(module, "destroy", kernel.destroy)
    return kernel


@pytest.fixture
def pod() -> Iterator[EnrolledPod]:
    pod = EnrolledPod(PodSpec(UID, "/dev/null", 1), os.open("/dev/null", os.O_RDONLY), 1, 7, (), 0.0)
    yield pod
    os.close(pod.netns_fd)


def looked_at(standing: Standing, pod: EnrolledPod) -> list[tuple[str, int, bool]]:
    """What is told of a pod that is steered now."""
    told: list[tuple[str, int, bool]] = []
    standing.listen(lambda *what: told.append(what))
    standing.entered(pod)
    asyncio.run(standing._look(pod))
    return told


@pytest.mark.parametrize(("lasting", "told"), [((), (3, True)), ((1,), (1, False)), ((1, 2, 3), (3, False))])
def test_none_is_said_to_have_ended_that_goes_on(
    kernel: Kernel, pod: EnrolledPod, lasting: tuple[int, ...], told: tuple[int, bool]
) -> None:
    kernel.lasting.update(lasting)
    standing = Standing(9, ends_them=True)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert looked_at(standing, pod) == [(UID, *told)]
    assert kernel.there == set(lasting)  # one that can't be ended is no other's
    assert standing.count(UID) == len(lasting)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("ends_them", [False, True])
def test_nothing_is_said_of_connections_that_could_not_be_counted(kernel: Kernel, pod: EnrolledPod, ends_them: bool) -> None:
    kernel.counts = False
    assert looked_at(Standing(9, ends_them=ends_them), pod) == []


def test_those_that_can_not_be_counted_again_are_as_many_as_before(kernel: Kernel, pod: EnrolledPod) -> None:
    standing = Standing(9, ends_them=False)
    assert looked_at(standing, pod) == [(UID, 3, False)]
    kernel.there, kernel.counts = {3, 4}, False
    asyncio.run(standing._count_again(UID))
    assert standing.count(UID) == 3
    kernel.counts = True
    asyncio.run(standing._count_again(UID))
    assert standing.count(UID) == 1


def test_a_pod_that_leaves_while_another_one_is_counted_ends_nothing(
    kernel: Kernel, pod: EnrolledPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        standing = Standing(9, ends_them=False)
        other = dataclasses.replace(pod, spec=PodSpec("K//Pod/ns/b", "/dev/null", 1))
        standing.entered(pod)
        await standing._look(pod)
        standing.entered(other)
        await standing._look(other)
        standing._new = asyncio.Queue()
        monkeypatch.setattr(module, "_COUNT_S", 0.0)
        counted = asyncio.Event()
        loop = asyncio.get_running_loop()

        def left_meanwhile(netns_fd: int) -> list[LiveSocket]:
            asyncio.run_coroutine_threadsafe(_call(standing.left, other.spec.uid), loop).result()
            loop.call_soon_threadsafe(counted.set)
            return kernel.live(netns_fd)

        monkeypatch.setattr(module, "live", left_meanwhile)
        serving = asyncio.create_task(standing.run())
        await counted.wait()
        counted.clear()
        waiting = asyncio.create_task(counted.wait())  # for the next round
        await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert not serving.done()
        assert waiting.done()
        serving.cancel()
        await asyncio.wait([serving])
        assert (standing.count(UID), standing.count(other.spec.uid)) == (3, 0)

    asyncio.run(scenario())


async def _call(call: Callable[[str], None], uid: str) -> None:
    call(uid)
