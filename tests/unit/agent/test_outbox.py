"""What waits for a process that does not read: sent in order, and no descriptor of it is left open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nodeproxy.agent.outbox import MAX_WAITING, Outbox
from nodeproxy.model.channel import Channel
from nodeproxy.model.messages import PodReleased
from tests.in_loop import in_loop


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Outbox, Channel[PodReleased]]]:
    ours, theirs = Channel.pair()
    ours.setblocking(False)
    theirs.setblocking(False)
    channel: Channel[Any] = Channel(ours, PodReleased)
    outbox = Outbox(channel)
    with ours, theirs:
        yield outbox, Channel(theirs, PodReleased)
        outbox.close()


@contextlib.contextmanager
def room_for(more: int) -> Iterator[None]:
    """So many descriptors can be opened still."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    with contextlib.ExitStack() as filled:
        while (fd := os.open("/dev/null", os.O_RDONLY)) <= highest:  # those that are free below
            filled.callback(os.close, fd)
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + more, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill(outbox: Outbox) -> int:
    """Until one waits; how many there are."""
    sent = 0
    while not len(outbox):
        outbox.send(PodReleased(sent))
        sent += 1
    return sent


@in_loop
async def test_what_waits_comes_in_order_with_its_descriptors() -> None:
    async with pair() as (outbox, theirs):
        sent = fill(outbox)
        read, write = os.pipe()
        before = descriptors()
        assert outbox.send(PodReleased(sent), (write,))
        os.close(write)
        cookies = []
        while len(cookies) <= sent:
            try:
                received = theirs.receive()
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            cookies.append(received[0].cookie)
        assert cookies == list(range(sent + 1))
        os.write(received[1][0], b"x")
        assert os.read(read, 1) == b"x"
        os.close(received[1][0])
        assert not len(outbox)
        assert descriptors() == before - 1
        os.close(read)


@in_loop
async def test_what_is_never_sent_is_closed() -> None:
    async with pair() as (outbox, _):
        fill(outbox)
        before = descriptors()
        assert outbox.send(PodReleased(1), (0, 1))
        assert descriptors() == before + 2
        outbox.close()
        assert descriptors() == before


@in_loop
async def test_where_descriptors_can_not_be_copied_none_is_left_open() -> None:
    async with pair() as (outbox, _):
        fill(outbox)
        before = descriptors()
        with room_for(1), pytest.raises(OSError, match="Too many open files"):
            outbox.send(PodReleased(1), (0, 1))
        assert descriptors() == before


@in_loop
async def test_who_does_not_read_has_so_many_and_no_more() -> None:
    async with pair() as (outbox, _):
        fill(outbox)
        while not outbox.full:
            outbox.send(PodReleased(1))
        assert len(outbox) == MAX_WAITING


@in_loop
async def test_who_is_gone_is_told_of() -> None:
    async with pair() as (outbox, theirs):
        fill(outbox)
        theirs.sock.close()
        while len(outbox):
            await asyncio.sleep(0)
        assert not outbox.send(PodReleased(1))


def test_a_message_that_is_not_understood_leaves_no_descriptor_open() -> None:
    ours, theirs = Channel.pair()
    with ours, theirs:
        before = descriptors()
        socket.send_fds(theirs, [b"\xc1"], [0, 1])
        with pytest.raises(ValueError, match="malformed"):
            Channel(ours, PodReleased).receive()
        assert descriptors() == before
