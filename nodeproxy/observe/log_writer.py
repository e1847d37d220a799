"""Where access-log lines go: the standard output, which all workers and the agent share.

Invariant: writing never blocks the data path.  Whole lines are written together at the end of a pass, at most PIPE_BUF bytes at
a time, so that lines of several processes do not mix; what a slow reader does not take is kept up to a limit and then dropped,
and counted.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from functools import partial

# POSIX: a write of at most PIPE_BUF bytes to a pipe is atomic.
_ATOMIC_BYTES = select.PIPE_BUF
MAX_KEPT_BYTES = 1 << 20


class LogWriter:
    """Buffered lines on a descriptor of our own.  `dropped`: lines that nobody took."""

    def __init__(self, fd: int) -> None:
        self.dropped = 0
        self._lines: list[bytes] = []
        self._kept_bytes = 0
        self._write, self._close = _writer(fd)

    def write(self, line: bytes) -> None:
        """Keep `line` (with its newline) for the next `flush`."""
        if self._kept_bytes + len(line) > MAX_KEPT_BYTES:
            self.flush()  # one pass may have more to say than is kept: only what the reader does not take is dropped
            if self._kept_bytes + len(line) > MAX_KEPT_BYTES:
                self.dropped += 1
                return
        self._lines.append(line)
        self._kept_bytes += len(line)

    @property
    def pending(self) -> bool:
        """Whether lines wait."""
        return bool(self._lines)

    def close(self) -> None:
        """Write what can be written, and no more."""
        self.flush()
        self._close()

    def flush(self) -> None:
        """Write what the reader takes."""
        lines = self._lines
        while lines:
            count, size = 0, 0
            for line in lines:
                if count and size + len(line) > _ATOMIC_BYTES:
                    break
                count, size = count + 1, size + len(line)
            whole = b"".join(lines[:count])
            try:
                written = self._write(whole)
            except BlockingIOError:
                return
            except OSError:
                # Nobody will ever read it again (a closed pipe): the data path must not end for that.
                self.dropped += len(lines)
                lines.clear()
                self._kept_bytes = 0
                return
            del lines[:count]
            self._kept_bytes -= size
            if written < size:  # a socket or a full disk may take a part: the rest goes first, when there is room
                rest = whole[written:]
                lines.insert(0, rest)
                self._kept_bytes += len(rest)
                return


def _writer(fd: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """How to write to `fd` without waiting, and how to end that.

    O_NONBLOCK belongs to the open file description, which others share.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):  # systemd's journal
        sock = socket.socket(fileno=os.dup(fd))
        return partial(_send, sock), sock.close
    if stat.S_ISREG(mode):
        # Never waits.  And the place to write at is the description's: by one of our own we would write over the agent's lines.
        own = os.dup(fd)
    else:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return partial(os.write, own), partial(os.close, own)


def _send(sock: socket.socket, data: bytes) -> int:
    return sock.send(data, socket.MSG_DONTWAIT)
