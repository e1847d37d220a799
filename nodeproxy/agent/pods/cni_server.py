"""The Unix socket that the CNI plug-in speaks to: one call a connection, one line each way.

Invariant: every call gets an answer in time, whatever the admitter does, and each refusal has one name, in the log, in the metric
and in the error that the kubelet shows.  Who can't be told yes or no is told that nothing is decided, and the plug-in goes by the
list of the mesh's namespaces.  While another agent takes over nobody is answered: the plug-in asks again whoever hangs up, and so
comes to that one.  It must not know how a pod is put into the mesh.
"""

from __future__ import annotations

import asyncio
import bisect
import ipaddress
import logging
import os
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from nodeproxy.errors import ConfigError, EnrolmentError
from nodeproxy.model.cni import (
    MAX_ADDRESSES,
    MAX_LINE_BYTES,
    NOT_IN_MESH,
    SOCKET_FILE,
    TRY_AGAIN_LATER,
    UNAVAILABLE,
    Admitter,
    Attachment,
    CniAdd,
    CniAnswer,
    CniCall,
    CniRefusal,
)
from nodeproxy.observe.cni_metrics import BOUNDS_S

log = logging.getLogger(__name__)

# The plug-in waits for 15 s; a runtime may have killed it long before, and asks again.
CALL_TIMEOUT_S: Final = 12.0
# What has begun when another agent takes over; what waits for the controller longer than this has changed nothing yet.
_PAUSE_S: Final = 2.0
# It writes its line at once: who does not is no plug-in of ours.
_LINE_TIMEOUT_S: Final = 5.0
# A node has some 250 pods, and a runtime that starts them all at once repeats what failed.
MAX_CALLS: Final = 1024
# Before accept; net.core.somaxconn's default.
_BACKLOG: Final = 4096
# An answer fits into what the plug-in reads, 16 KiB, also with every character escaped.
_MAX_TEXT: Final = 1000

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(CniCall)


class _Refused(Exception):
    """A call that is answered by no; not for others."""

    def __init__(self, refusal: CniRefusal, text: str, *, code: int = TRY_AGAIN_LATER, decided: bool = False) -> None:
        super().__init__(text)
        self.refusal = refusal
        self.answer = CniAnswer(code, text[:_MAX_TEXT], f"reason: {refusal.value}", decided)


class CniServer:
    """Serves from `start` to `stop`; `calls`, `add_counts` and `add_sum_s` are for `CniStatistics`."""

    def __init__(self, admitter: Admitter, run_dir: Path) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.add_counts = [0] * (len(BOUNDS_S) + 1)
        self.add_sum_s = 0.0
        self._admitter = admitter
        self._path = run_dir / SOCKET_FILE
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._open = 0
        self._paused = False
        self._calls: set[asyncio.Task[str]] = set()

    async def start(self) -> None:
        """Listen.  A socket that stands there is replaced at once, so that no call finds none.  Raises ConfigError."""
        made = self._path.with_name(f"{SOCKET_FILE}.{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.unlink(missing_ok=True)
            listener.bind(str(made))
            made.chmod(0o600)
            listener.listen(_BACKLOG)
            self._inode = made.stat().st_ino
            made.rename(self._path)
        except OSError as error:
            listener.close()
            raise ConfigError(f"{self._path}: the CNI plug-in's socket can't be made: {error.strerror}") from error
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=MAX_LINE_BYTES, backlog=_BACKLOG)

    async def pause(self) -> None:
        """Let what has begun come to its end, and hang up on all else."""
        self._paused = True
        if self._calls:
            await asyncio.wait(self._calls, timeout=_PAUSE_S)
        await self._cancel_calls()

    def resume(self) -> None:
        """Answer again."""
        self._paused = False

    async def stop(self) -> None:
        """Take no more calls.  A socket that another agent has put there since stays."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if self._path.exists() and self._path.stat().st_ino == self._inode:
            self._path.unlink()
        await self._cancel_calls()

    async def _cancel_calls(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    # ── a connection ──

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        began = time.monotonic()
        call = CniCall("STATUS")
        try:
            try:
                line = await _line_of(reader)
                if not line or self._paused:
                    return  # somebody looked whether it is answered, or asks again
                _require_own_user(writer.get_extra_info("socket"))
                call = _understand(line)
                if self._open > MAX_CALLS or len(self._calls) > MAX_CALLS:
                    raise _Refused(CniRefusal.TOO_MANY, f"more than {MAX_CALLS} calls of the CNI plug-in at once")
                outcome, answer = await self._in_time(call)
            except _Refused as refused:
                log.warning("cni: %s %s: %s (%s)", call.command, _name(call), refused, refused.refusal.value)
                outcome, answer = refused.refusal.value, refused.answer
            self.calls[call.command, outcome] += 1
            if call.command == "ADD":
                self._took(time.monotonic() - began)
            writer.write(_encoder.encode(answer) + b"\n")
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                await writer.drain()
        except asyncio.CancelledError:
            log.info("cni: %s %s: hung up: this agent serves no more", call.command, _name(call))
        except (ConnectionError, TimeoutError) as error:
            log.warning("cni: %s %s: the plug-in did not take the answer: %s", call.command, _name(call), error or "in time")
        finally:
            self._open -= 1
            writer.close()

    async def _in_time(self, call: CniCall) -> tuple[str, CniAnswer]:
        """Outcome and answer.  What takes too long goes on: a repeat finds it done, and nothing is left half-way."""
        task = asyncio.get_running_loop().create_task(self._decide(call), name=f"cni {call.command}")
        self._calls.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait((task,), timeout=CALL_TIMEOUT_S)
        if not done:
            raise _Refused(CniRefusal.TIMEOUT, f"the agent has not put the pod into the mesh within {CALL_TIMEOUT_S:.0f} s")
        try:
            outcome = task.result()
        except _Refused:
            raise
        except Exception as error:
            log.exception("cni: %s %s: a defect of nodeproxy's", call.command, _name(call))
            raise _Refused(CniRefusal.INTERNAL, f"a defect of nodeproxy's, see the agent's log: {error!r}") from error
        return outcome, CniAnswer()

    def _ended(self, task: asyncio.Task[str]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # it is told where it is waited for; who no longer waits, asks again

    async def _decide(self, call: CniCall) -> str:
        pod, pending = call.pod, self._admitter.pending()
        if call.command == "GC":
            await self._admitter.keep(call.valid)
        elif call.command == "STATUS":
            if pending:
                raise _Refused(CniRefusal.NOT_READY, pending, code=UNAVAILABLE)
        elif pod is None:
            raise _Refused(CniRefusal.MALFORMED, f"{call.command} without a pod")
        elif call.command == "DEL":
            await self._admitter.gone(Attachment(pod.container_id, pod.ifname))
        elif pending:
            raise _Refused(CniRefusal.NOT_READY, pending)
        elif call.command == "CHECK":
            await self._check(pod)
        else:
            return await self._admit(pod)
        return "done"

    async def _admit(self, pod: CniAdd) -> str:
        began = time.monotonic()
        try:
            admission = await self._admitter.admit(pod)
        except EnrolmentError as error:
            text = f"nodeproxy: pod {pod.namespace}/{pod.name} can't be put into the mesh now and waits: {error}"
            raise _Refused(CniRefusal.NOT_ENROLLED, text, decided=True) from error
        level = logging.INFO if admission.in_mesh else logging.DEBUG
        took_ms = (time.monotonic() - began) * 1000
        log.log(level, "cni: pod %s/%s in %.0f ms: %s", pod.namespace, pod.name, took_ms, admission.why)
        return "in_mesh" if admission.in_mesh else "outside"

    async def _check(self, pod: CniAdd) -> None:
        try:
            await self._admitter.check(pod)
        except EnrolmentError as error:
            raise _Refused(CniRefusal.NOT_AS_ADDED, f"nodeproxy: {error}", code=NOT_IN_MESH, decided=True) from error

    def _took(self, seconds: float) -> None:
        self.add_counts[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.add_sum_s += seconds


def _require_own_user(sock: socket.socket) -> None:
    """Root, as the agent is.  The socket's mode says the same; a descriptor that was handed on would pass by that."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != os.geteuid():
        raise _Refused(CniRefusal.NOT_ROOT, f"only root may ask, and this is user {uid}", decided=True)


async def _line_of(reader: asyncio.StreamReader) -> bytes:
    """Raises _Refused if there is none."""
    try:
        async with asyncio.timeout(_LINE_TIMEOUT_S):
            return await reader.readline()
    except (ValueError, TimeoutError, ConnectionError) as error:  # a ValueError: it is too long
        raise _Refused(CniRefusal.MALFORMED, f"no call of nodeproxy's CNI plug-in: {error or 'no line in time'}") from error


def _understand(line: bytes) -> CniCall:
    """Raises _Refused for what is no call."""
    try:
        call = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _Refused(CniRefusal.MALFORMED, f"no call of nodeproxy's CNI plug-in: {error}") from error
    if call.pod is None:
        return call
    return msgspec.structs.replace(call, pod=msgspec.structs.replace(call.pod, addresses=_canonical(call.pod.addresses)))


def _canonical(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if len(addresses) > MAX_ADDRESSES:
        raise _Refused(CniRefusal.MALFORMED, f"a result with {len(addresses)} addresses")
    try:
        parsed = [ipaddress.ip_address(each) for each in addresses]
    except ValueError as error:
        raise _Refused(CniRefusal.MALFORMED, f"a result with an address that is none: {error}") from error
    return tuple(str(getattr(each, "ipv4_mapped", None) or each) for each in parsed)


def _name(call: CniCall) -> str:
    """For the log."""
    if call.pod is None:
        return f"of {len(call.valid)} attachments" if call.command == "GC" else ""
    return f"of {call.pod.namespace}/{call.pod.name}" if call.pod.name else f"of container {call.pod.container_id}"
