"""What can't be provoked in a real kernel (tests/mesh/test_enrolment.py has the rest): a pod that can't be taken out."""

from __future__ import annotations

import asyncio
import os
from typing import cast

import pytest

from nodeproxy.agent import enrolment as enrolment_module
from nodeproxy.agent.enrolment import EnrolledPod, Enrolment
from nodeproxy.errors import KernelError
from nodeproxy.kernel.steering import PodSteering, Steering
from nodeproxy.model.delta import PodSpec

HERE = "/proc/self/ns/net"


class Kernel:
    """Steers whatever it is given, and lets nobody go who is `stuck`."""

    def __init__(self) -> None:
        self.steered: set[int] = set()
        self.stuck: set[int] = set()
        self.enrolled: list[int] = []

    def enrolled_cookies(self) -> frozenset[int]:
        return frozenset(self.steered)

    def enrol(self, pod: PodSteering) -> None:
        self.steered.add(pod.netns_cookie)
        self.enrolled.append(pod.netns_cookie)

    def leave(self, cookie: int) -> None:
        if cookie in self.stuck:
            raise KernelError("can't detach")
        self.steered.discard(cookie)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    def prepare_all(specs: list[PodSpec]) -> list[EnrolledPod]:
        opened = [os.open(HERE, os.O_RDONLY) for _ in specs]
        return [EnrolledPod(each, fd, each.inode, each.inode, (), 0.0) for each, fd in zip(specs, opened, strict=True)]

    monkeypatch.setattr(enrolment_module, "prepare_all", prepare_all)
    monkeypatch.setattr(enrolment_module, "is_there", lambda pod: True)
    monkeypatch.setattr(enrolment_module, "tidy", lambda pod: os.close(pod.netns_fd))
    monkeypatch.setattr(enrolment_module, "_WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(enrolment_module, "_RETRY_S", 0.0)
    return Kernel()


def test_who_can_not_be_taken_out_is_tried_again_and_then_is_where_it_belongs(kernel: Kernel) -> None:
    async def scenario() -> None:
        ended: list[bool] = []
        enrolment = Enrolment(
            cast(Steering, kernel),
            0,
            lambda slot, message, fds: False,
            lambda uid: None,
            lambda uid, address: False,
            lambda cookie: None,
            lambda cookie, abort: ended.append(abort),
        )
        first, second = PodSpec("a", HERE, 1), PodSpec("a", "/elsewhere", 2)
        await enrolment.change({"a": first})
        assert kernel.steered == {1}
        kernel.stuck.add(1)
        await enrolment.change({"a": second}, ["a"])
        assert (enrolment.failed["a"].spec, enrolment.failed["a"].error) == (second, "can't detach")
        assert enrolment.pods["a"].spec == first
        watching = asyncio.create_task(enrolment.watch())
        kernel.stuck.clear()
        async with asyncio.timeout(10):
            while enrolment.failed:
                await asyncio.sleep(0.001)
            assert (enrolment.pods["a"].spec, kernel.steered) == (second, {2})
            kernel.stuck.add(2)
            await enrolment.change({"a": None})
            await enrolment.change({"b": PodSpec("b", HERE, 3)})
            assert kernel.steered == {2, 3}
            kernel.stuck.clear()
            while kernel.steered != {3}:
                await asyncio.sleep(0.001)
            assert (list(enrolment.pods), enrolment.failed) == (["b"], {})
            kernel.stuck.add(3)
            await enrolment.change({"b": None})
            await enrolment.change({"b": PodSpec("b", HERE, 3)})  # it is to be in after all
            assert (list(enrolment.pods), enrolment.failed) == (["b"], {})
            assert kernel.enrolled == [1, 2, 3, 3], "what was taken out in part is put in again"
        assert ended[:2] == [True, True]
        assert not any(ended[2:])
        watching.cancel()
        kernel.stuck.clear()
        await enrolment.change({"b": None}, ["b"])

    asyncio.run(scenario())
