"""The holder's side of a handover: it is asked on a socket in the run directory, by one agent at a time.

Invariant: from `pause` on, until the successor is gone without having said Done, nothing that both share is changed here: pins,
maps, locks, pods, certificates that are kept.  The lock is passed on, never let go of before: nobody else gets in between.
It must not know what the agent does when it has handed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Protocol

from nodeproxy.agent.handover.link import Link
from nodeproxy.agent.run_dir import HANDOVER_SOCKET, RunDir
from nodeproxy.errors import HandoverError, NodeproxyError
from nodeproxy.model.handover import (
    DONE_S,
    IDENTITIES_AN_OFFER,
    PROTOCOL,
    Asking,
    Done,
    FromSuccessor,
    Leaving,
    Offer,
    Refused,
    Said,
    Take,
    Yielded,
)
from nodeproxy.model.messages import PodReleased, PodRemoved

log = logging.getLogger(__name__)

# Whoever connects says so at once; there is one place, and SIGTERM waits for whoever has it.
_ASKS_WITHIN_S = 5.0
# A process that is killed is dead when the kernel has let go of what it had.
_DIES_WITHIN_S = 5.0


class Giver(Protocol):
    """What is handed over."""

    own_cgroup_id: int
    version: str

    async def copy_state(self, directory: Path) -> list[str]:
        """Copy the state to it; the identities of this node's pods.  Raises StateError."""

    async def pause(self) -> None:
        """Change nothing any more that both share."""

    async def resume(self) -> None:
        """The successor is gone: go on, with everything as this agent has it."""

    def said(self) -> list[Said]:
        """What was said by command."""

    def leaving(self) -> list[tuple[Leaving, int]]:
        """Pods that have left and are not done with, each with its namespace."""

    def locks(self) -> tuple[int, ...]:
        """The descriptors that hold run directory and pins."""

    def let_go(self) -> None:
        """Let go of the locks."""

    def removed(self, message: PodRemoved) -> None:
        """A pod leaves, says the successor."""


class Giving:
    """`given`: there is a successor, who serves; `successor`: who asks, or has taken over."""

    def __init__(self, giver: Giver, run_dir: RunDir) -> None:
        self.given = asyncio.Event()
        self.settled = asyncio.Event()  # nobody is taking over at this moment
        self.settled.set()
        self.successor: Asking | None = None
        self.link: Link[FromSuccessor] | None = None
        self._giver = giver
        self._run_dir = run_dir
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """Be asked from now on.  What an agent before listens at gets no more."""
        self._stop_listening()
        path = self._run_dir.path / HANDOVER_SOCKET
        beside = path.with_suffix(".new")
        beside.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            listener.bind(str(beside))
            listener.listen(4)
            beside.rename(path)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def released(self, cookie: int) -> None:
        """No connection of a pod that has left needs its namespace any more."""
        if self.link is not None:
            self.link.post(PodReleased(cookie))

    async def close(self) -> None:
        """Be asked no more; a successor sees that this agent has ended."""
        self._stop_listening()
        if self.link is not None:
            self.link.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        link: Link[FromSuccessor] = Link(sock, FromSuccessor)
        if self.link is not None:
            link.post(Refused("another agent is taking over at this moment"))
            link.close()
            return
        self.link = link
        self.settled.clear()
        task = asyncio.get_running_loop().create_task(self._serve(link, _process_of(sock)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: Link[FromSuccessor], process: int) -> None:
        try:
            if await self._offer(link):
                await self._give(link, process)
        except (NodeproxyError, OSError) as error:
            log.error("nothing is handed over: %s", error)
            link.post(Refused(str(error)))
        except Exception as error:
            log.exception("a defect: nothing is handed over")
            link.post(Refused(repr(error)))
        finally:
            link.close()
            if process >= 0:
                os.close(process)
            if not self.given.is_set():
                self.link = self.successor = None
            self.settled.set()

    async def _offer(self, link: Link[FromSuccessor]) -> bool:
        """Whether somebody takes over: it may prepare for as long as it likes."""
        try:
            async with asyncio.timeout(_ASKS_WITHIN_S):
                received = await link.receive()
        except TimeoutError:
            return False
        if received is None or not isinstance(received[0], Asking):
            return False
        asking = self.successor = received[0]
        if asking.protocol != PROTOCOL:
            link.post(Refused(f"it speaks handover {asking.protocol}, this agent ({self._giver.version}) {PROTOCOL}"))
            return False
        log.info("process %d, version %s, prepares to take over", asking.pid, asking.version)
        store = self._run_dir.next_store()
        identities = await self._giver.copy_state(store)
        for start in range(0, max(len(identities), 1), IDENTITIES_AN_OFFER):
            page = tuple(identities[start : start + IDENTITIES_AN_OFFER])
            last = start + IDENTITIES_AN_OFFER >= len(identities)
            link.post(Offer(store.name, self._giver.own_cgroup_id, self._giver.version, os.getpid(), page, last))
        received = await link.receive()
        if received is None or not isinstance(received[0], Take):
            log.warning("process %d does not take over; this agent goes on", asking.pid)
            return False
        return True

    async def _give(self, link: Link[FromSuccessor], process: int) -> None:
        try:
            await self._giver.pause()
            for message, netns_fd in self._giver.leaving():
                link.post(message, (netns_fd,))
            for said in self._giver.said():
                link.post(said)
            link.post(Yielded(), self._giver.locks())
            removed = await _done(link, process)
        except Exception:
            await self._giver.resume()
            raise
        if removed is None:
            log.error("the agent that was taking over is gone; this one serves on")
            await self._giver.resume()
            return
        self._giver.let_go()
        self._stop_listening()
        self.given.set()
        self.settled.set()
        for each in removed:
            self._giver.removed(each)
        while (received := await link.receive()) is not None:
            if isinstance(received[0], PodRemoved):
                self._giver.removed(received[0])


async def _done(link: Link[FromSuccessor], process: int) -> list[PodRemoved] | None:
    """The pods that it has taken out by the time that it serves, which is within DONE_S; None: it is gone.

    One that hangs is ended before this agent changes anything again.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + DONE_S
    removed: list[PodRemoved] = []
    try:
        while (received := await link.receive_within(deadline - now())) is not None:
            match received[0]:
                case Done():
                    return removed
                case PodRemoved() as message:
                    removed.append(message)
        return None
    except TimeoutError:
        if process >= 0 and not link.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await link.receive_within(_DIES_WITHIN_S)
        raise HandoverError(f"the agent that was taking over did not serve within {DONE_S:.0f} s; this one serves on") from None


def _process_of(sock: socket.socket) -> int:
    """A descriptor of the process at its other end; -1: it is in a namespace of processes that is not seen from here."""
    number = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII")))[0]
    try:
        return os.pidfd_open(number) if number else -1
    except OSError:
        return -1  # it has ended
