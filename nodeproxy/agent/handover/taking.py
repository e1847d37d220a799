"""The successor's side of a handover: it asks the agent that holds the run directory, prepares, takes, and hears the rest.

Invariant: nothing that both share is changed before `take` has brought the locks, be it from the holder or because that is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from nodeproxy.agent.handover.link import Link
from nodeproxy.agent.outbox import close_all
from nodeproxy.agent.run_dir import HANDOVER_SOCKET, RunDir
from nodeproxy.errors import HandoverError
from nodeproxy.model.channel import Channel
from nodeproxy.model.handover import (
    END_S,
    PROTOCOL,
    TAKE_S,
    Asking,
    Done,
    FromHolder,
    Leaving,
    Offer,
    Refused,
    Said,
    Take,
    Yielded,
)
from nodeproxy.model.messages import PodReleased

log = logging.getLogger(__name__)

# An agent that has just begun is asked again: it loads programs for some seconds before it listens.
_BEGIN_S = 60.0
_POLL_S = 0.1
# Copying a state of 100,000 workloads takes it a fraction of that.
_OFFER_S = 30.0


class Taken(NamedTuple):
    """What the holder has passed on.  locks: of run directory and pins, -1: not passed on."""

    run_dir_lock: int
    pins_lock: int
    said: tuple[Said, ...]
    leaving: tuple[tuple[Leaving, int], ...]


class Predecessor:
    """The agent before, from `ask` until it has ended."""

    def __init__(self, sock: socket.socket, offers: list[Offer]) -> None:
        self.offer = offers[-1]
        self.identities = frozenset(identity for offer in offers for identity in offer.identities)
        self._sock = sock
        self._link: Link[FromHolder] | None = None

    @classmethod
    def ask(cls, run_dir: RunDir, version: str) -> Predecessor | None:
        """Ask until there is an offer; None: nobody holds the run directory any more, and this process does.

        Raises HandoverError if the holder does not hand over.  Blocks.
        """
        deadline = time.monotonic() + _BEGIN_S
        while not run_dir.hold():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.settimeout(_OFFER_S)
                sock.connect(str(run_dir.path / HANDOVER_SOCKET))
                offers = _offers(sock, version)
            except OSError as error:
                sock.close()
                if time.monotonic() > deadline:
                    raise HandoverError(
                        f"process {run_dir.holder} runs with {run_dir.path} and does not hand over ({error.strerror}); stop it, "
                        f"then this one can start"
                    ) from error
                time.sleep(_POLL_S)
                continue
            except BaseException:
                sock.close()
                raise
            if offers:
                return cls(sock, offers)
            sock.close()  # it has ended meanwhile
        return None

    def start(self) -> None:
        """Within the loop that all else runs in."""
        self._link = Link(self._sock, FromHolder)

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """From before `take` until after `done`: raises HandoverError when that takes too long.

        The agent before serves again then, so this process must do nothing more.  If it hangs, the watchdog's thread says where,
        and ends it.  A failure leaves that armed: whatever the process does still, it ends.
        """
        faulthandler.dump_traceback_later(END_S, exit=True)
        try:
            async with asyncio.timeout(TAKE_S) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise HandoverError(
                f"this agent has not taken over from process {self.offer.pid} within {TAKE_S:.0f} s, so that one serves on; "
                "is the node overloaded?"
            ) from error
        faulthandler.cancel_dump_traceback_later()

    async def take(self) -> Taken | None:
        """Have it all; None: the holder has ended meanwhile, and passed nothing on."""
        self.link.post(Take())
        said: list[Said] = []
        leaving: list[tuple[Leaving, int]] = []
        try:
            while (received := await self.link.receive()) is not None:
                message, fds = received
                match message:
                    case Said():
                        said.append(message)
                    case Leaving():
                        leaving.append((message, fds[0]))
                    case Refused():
                        raise HandoverError(f"process {self.offer.pid} does not hand over after all: {message.why}")
                    case Yielded():
                        return Taken(fds[0], fds[1] if len(fds) > 1 else -1, tuple(said), tuple(leaving))
        except BaseException:
            close_all(netns_fd for _, netns_fd in leaving)
            raise
        close_all(netns_fd for _, netns_fd in leaving)
        return None

    def done(self) -> None:
        """This agent serves: the one before may end its own."""
        self.link.post(Done())

    def tell(self, message: msgspec.Struct) -> bool:
        """Tell it of a pod that leaves; False: it has ended."""
        return self._link is not None and self._link.post(message)

    async def hear(self, on_released: Callable[[int], None]) -> None:
        """Until it has ended: `on_released(cookie)`, it needs nothing in that namespace any more."""
        while (received := await self.link.receive()) is not None:
            if isinstance(received[0], PodReleased):
                on_released(received[0].cookie)

    def close(self) -> None:
        """Give up, or be done with it."""
        if self._link is not None:
            self._link.close()
        else:
            self._sock.close()

    @property
    def link(self) -> Link[FromHolder]:
        """The connection; `start` comes first."""
        if self._link is None:
            raise LookupError("the loop does not run yet")
        return self._link


def _offers(sock: socket.socket, version: str) -> list[Offer]:
    """The holder's offer in its parts; []: it has ended."""
    channel: Channel[FromHolder] = Channel(sock, FromHolder)
    channel.send(Asking(PROTOCOL, version, os.getpid(), own_netns()))
    offers: list[Offer] = []
    while (received := channel.receive()) is not None:
        message = received[0]
        if isinstance(message, Refused):
            raise HandoverError(f"the agent that runs does not hand over: {message.why}; stop it, then this one can start")
        if isinstance(message, Offer):
            offers.append(message)
            if message.last:
                return offers
    return []


def own_netns() -> int:
    """The inode of the network namespace that this process runs in."""
    return os.stat("/proc/self/ns/net").st_ino
