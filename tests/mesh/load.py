"""New connections at a steady pace, from a process of its own, for as long as its standard input is open; none may fail.

`load.py RATE ADDRESS PORT [ADDRESS PORT]...` opens RATE connections a second, to the targets in turn.  Each is asked for an
answer: it sends a byte, reads a greeting (`knocking.py greet` says it) and closes.  At the end it prints JSON: how many there
were, when each that failed had begun (CLOCK_MONOTONIC), to which target, and why, and how long the slowest one took.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time

TIMEOUT_S = 15.0
_STEP_S = 0.002


class Load:
    """`run` until standard input ends."""

    def __init__(self, rate: float, targets: list[tuple[str, int]]) -> None:
        self.rate, self.targets = rate, targets
        self.selector = selectors.DefaultSelector()
        self.open: dict[socket.socket, tuple[float, int]] = {}
        self.tried = 0
        self.failures: list[tuple[float, int, str]] = []
        self.slowest_s = 0.0

    def run(self) -> dict[str, object]:
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        begun = time.monotonic()
        ending = False
        while not ending or self.open:
            now = time.monotonic()
            while not ending and self.tried < (now - begun) * self.rate:
                self._connect(now)
            for key, events in self.selector.select(_STEP_S):
                if key.fileobj is sys.stdin:
                    ending = True
                    self.selector.unregister(sys.stdin)
                else:
                    self._on_event(key.fileobj, events)  # type: ignore[arg-type]  # it is a socket
            for sock, (since, _) in list(self.open.items()):
                if now - since < TIMEOUT_S:
                    break
                self._end(sock, "silence")
        took_s = time.monotonic() - begun
        return {"tried": self.tried, "rate": self.tried / took_s, "failures": self.failures, "slowest_s": self.slowest_s}

    def _connect(self, now: float) -> None:
        place = self.tried % len(self.targets)
        target = self.targets[place]
        self.tried += 1
        sock = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        sock.setblocking(False)
        self.open[sock] = (now, place)
        error = sock.connect_ex(target)
        if error not in (0, errno.EINPROGRESS):
            self._end(sock, errno.errorcode[error])
            return
        self.selector.register(sock, selectors.EVENT_WRITE)

    def _on_event(self, sock: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                sock.send(b"?")
                self.selector.modify(sock, selectors.EVENT_READ)
            else:
                self._end(sock, "" if sock.recv(64) else "closed")
        except OSError as error:
            self._end(sock, errno.errorcode[error.errno or 0])

    def _end(self, sock: socket.socket, why: str) -> None:
        since, place = self.open.pop(sock)
        try:
            self.selector.unregister(sock)
        except KeyError:
            pass
        sock.close()
        self.slowest_s = max(self.slowest_s, time.monotonic() - since)
        if why:
            self.failures.append((since, place, why))


if __name__ == "__main__":
    numbers = sys.argv[2:]
    pairs = [(address, int(port)) for address, port in zip(numbers[::2], numbers[1::2], strict=True)]
    print(json.dumps(Load(float(sys.argv[1]), pairs).run()), flush=True)
