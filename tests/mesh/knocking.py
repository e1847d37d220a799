"""What tests that need speed run in processes of their own; each ends when its standard input does.

`knocking.py connect ADDRESS PORT [ADDRESS PORT]...` connects again and again, as fast as it can.  To standard output goes, at the
end, a line for each attempt: which target (its place), begin and end by CLOCK_MONOTONIC in nanoseconds, and who greeted it (""
nobody: it was refused or reset; "?": silence).

`knocking.py greet NAME PORT...` listens on these ports, both families, and says NAME to who connects.

`knocking.py watch STORE` answers each line of its input, an epoch, with the time at which the state has another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import selectors
import socket
import sys
import time

TIMEOUT_S = 2.0
_PR_SET_TIMERSLACK = 29  # <linux/prctl.h>
# Of a look at the state, so that a change is seen within some 30 us without burning a core.
_PAUSE_S = 0.00001


def connect(*arguments: str) -> None:
    targets = [(address, int(port)) for address, port in zip(arguments[::2], arguments[1::2], strict=True)]
    attempts: list[tuple[int, int, int, str]] = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        for place, target in enumerate(targets):
            begun = time.monotonic_ns()
            who = greeting(target)
            attempts.append((place, begun, time.monotonic_ns(), who))
    sys.stdout.writelines(f"{place} {begun} {ended} {who}\n" for place, begun, ended, who in attempts)


def greeting(target: tuple[str, int]) -> str:
    with socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET) as sock:
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(target)
            return sock.recv(64).decode()
        except TimeoutError:
            return "?"
        except OSError:
            return ""


def greet(name: str, *ports: str) -> None:
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, "end")
    for port in ports:
        listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, "listener")
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data == "end":
                return
            if key.data == "listener":
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = key.fileobj.accept()  # type: ignore[union-attr]  # it is a socket
                        sock.setblocking(False)
                        selector.register(sock, selectors.EVENT_READ, "client")
                        with contextlib.suppress(OSError):
                            sock.send(name.encode())
                continue
            with contextlib.suppress(OSError):
                if key.fileobj.recv(4096):  # type: ignore[union-attr]
                    continue
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]


def watch(store: str) -> None:
    from nodeproxy.state.reader import StateReader

    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    reader = StateReader(store)
    for line in sys.stdin:
        while reader.view().epoch == int(line):
            reader.release()
            time.sleep(_PAUSE_S)
        print(time.monotonic_ns(), flush=True)
        reader.release()
    reader.close()


if __name__ == "__main__":
    {"connect": connect, "greet": greet, "watch": watch}[sys.argv[1]](*sys.argv[2:])
