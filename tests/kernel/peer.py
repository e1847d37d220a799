"""A program in a pod, told what to do by lines of JSON on its stdin; each gets one line of JSON back.

Standard library only: it plays the unmodified application.  What it serves, and what it gets from whoever answers its
connects, is one line of JSON that says who answered.
"""

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import sys
import termios
import threading
import time

SO_BINDTODEVICE = 25
IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
TIMEOUT_S = 2.0 * float(os.environ.get("TEST_PACE", "1"))  # as tests/pace.py: an emulated kernel is slow
HELD = {}


def _family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _made(order):
    family = _family(order["address"])
    if order.get("udp"):
        return socket.socket(family, socket.SOCK_DGRAM)
    made = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP if order.get("mptcp") else 0)
    made.settimeout(order.get("timeout", TIMEOUT_S))
    if "mark" in order:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, order["mark"])
    if "device" in order:
        made.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, order["device"].encode())
    if "source" in order:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(tuple(order["source"]))
    return made


def _talk(made, order):
    """The answer of the other end, with what this end sees of the connection."""
    made.connect((order["address"], order["port"]))
    seen = {"peername": made.getpeername()[:2], "sockname": made.getsockname()[:2]}
    if order.get("say"):
        made.sendall(order["say"].encode())
    text = b""
    while chunk := made.recv(65536):
        text += chunk
    return {**json.loads(text or b'{"role": "silence"}'), **seen}


def connect(order):
    with _made(order) as made:
        return _talk(made, order)


def connect_again(order):
    """One socket: connect to `address`, disconnect (AF_UNSPEC), connect to `then`."""
    made = _made(order)
    first = _talk(made, order)
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    libc.connect(made.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)
    second = _talk(made, {**order, **order["then"]})
    made.close()
    return {"first": first, "second": second}


def many(order):
    """`count` connects to as many ports; how many were answered with exactly that destination."""
    right = 0
    for number in range(order["count"]):
        port = order["port"] + number
        answer = connect({**order, "port": port})
        right += answer.get("original") == [order["expected"], port] and list(answer["peername"]) == [order["address"], port]
    return {"right": right}


def hammer(order):
    """Connect without pause for `seconds`; who answered how often."""
    tally = {}
    end = time.monotonic() + order["seconds"]
    while time.monotonic() < end:
        try:
            role = connect(order)["role"]
        except OSError as error:
            role = type(error).__name__
        tally[role] = tally.get(role, 0) + 1
    return tally


def fastopen(order):
    with _made(order) as made:
        made.settimeout(None)
        made.sendto(b"x", socket.MSG_FASTOPEN, (order["address"], order["port"]))
        text = b""
        while chunk := made.recv(65536):
            text += chunk
        return {**json.loads(text), "peername": made.getpeername()[:2]}


def _exactly(made, count):
    while count:
        chunk = made.recv(min(count, 1 << 20))
        if not chunk:
            raise ConnectionError("the other end has closed early")
        count -= len(chunk)


def _abort(made):
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


def exchange(order):
    """Send `send` bytes and get `receive` back; `end` says how it ends, `server` what the other end does then."""
    made = _made(order)
    made.connect((order["address"], order["port"]))
    head = json.dumps({"send": order["receive"], "read": order["send"], "end": order["server"]}).ljust(100).encode()
    made.sendall(head + b"." * (order["send"] - len(head)))
    if order["end"] == "half-close":
        made.shutdown(socket.SHUT_WR)
    if order["end"] == "leave unread":
        select.select([made], [], [])
    else:
        _exactly(made, order["receive"])
    if order["end"] in ("half-close", "wait"):
        try:
            assert made.recv(1) == b""
        except ConnectionResetError:
            pass
    if order["end"] == "abort":
        _abort(made)
    made.close()
    return {}


def serve_exchanges(order):
    listener = socket.create_server((order["address"], order["port"]), family=_family(order["address"]), dualstack_ipv6=True)
    threading.Thread(target=_exchanges, args=(listener,), daemon=True).start()
    return {}


def _exchanges(listener):
    while True:
        threading.Thread(target=_exchange, args=(listener.accept()[0],), daemon=True).start()


def _exchange(accepted):
    with accepted, contextlib.suppress(ConnectionError):  # who ended it is the client's affair
        said = accepted.recv(100, socket.MSG_WAITALL)
        if len(said) < 100:
            return
        head = json.loads(said)
        _exactly(accepted, head["read"] - 100)
        accepted.sendall(b"." * head["send"])
        if head["end"] == "wait":
            accepted.recv(1)
        if head["end"] == "abort":
            while struct.unpack("i", fcntl.ioctl(accepted, termios.TIOCOUTQ, bytes(4)))[0]:
                time.sleep(0.001)
            _abort(accepted)


def storm(order):
    """`count` connects, each closed at once however it ended."""
    tally = {}
    for _ in range(order["count"]):
        made = socket.socket(_family(order["address"]), socket.SOCK_STREAM)
        try:
            if order.get("nonblocking"):
                made.setblocking(False)
            made.connect((order["address"], order["port"]))
            if order.get("abort"):
                _abort(made)
            ended = "connected"
        except OSError as error:
            ended = type(error).__name__
        made.close()
        tally[ended] = tally.get(ended, 0) + 1
    return tally


def hold(order):
    """A connection that stays, under a name."""
    made = _made(order)
    HELD[order["name"]] = made
    if order.get("deferred"):  # connect() returns, and the SYN leaves with the first byte
        made.settimeout(None)
        made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        made.connect((order["address"], order["port"]))
        return {}
    made.connect((order["address"], order["port"]))
    return {"sockname": made.getsockname()[:2], "peername": made.getpeername()[:2]}


def say(order):
    """Say something on a held connection, and take `receive` bytes."""
    HELD[order["name"]].sendall(order["say"].encode())
    _exactly(HELD[order["name"]], order["receive"])
    return {}


def go_on(order):
    """Say something on a held connection, and tell what comes back until it ends."""
    with HELD.pop(order["name"]) as made:
        made.sendall(order.get("say", "").encode())
        text = made.recv(65536)
        seen = {"peername": made.getpeername()[:2]} if text else {}
        while chunk := made.recv(65536):
            text += chunk
        return {**json.loads(text or b'{"role": "silence"}'), **seen}


def datagram(order):
    with _made({**order, "udp": True}) as made:
        made.settimeout(order.get("timeout", TIMEOUT_S))
        made.connect((order["address"], order["port"]))
        made.send(b"?")
        return {"answer": made.recv(100).decode(), "peername": made.getpeername()[:2]}


def serve(order):
    """Be the application on a port."""
    kind = socket.SOCK_DGRAM if order.get("udp") else socket.SOCK_STREAM
    listener = socket.socket(_family(order["address"]), kind, IPPROTO_MPTCP if order.get("mptcp") else 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((order["address"], order["port"]))
    if order.get("udp"):
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        return {}
    listener.listen(1024)
    threading.Thread(target=_serve, args=(listener, order.get("name", "app")), daemon=True).start()
    return {}


def _serve(listener, name):
    while True:
        accepted, peer = listener.accept()
        seen = {"role": name, "seen_peer": peer[:2], "seen_sockname": accepted.getsockname()[:2]}
        with accepted, contextlib.suppress(ConnectionError):
            accepted.sendall(json.dumps(seen).encode())


def _echo(listener):
    while True:
        data, peer = listener.recvfrom(100)
        listener.sendto(b"app:" + data, peer)


TALKING = (connect, connect_again, many, hammer, fastopen, datagram, exchange, storm, hold, say, go_on)
ORDERS = {function.__name__: function for function in (*TALKING, serve, serve_exchanges)}


def main():
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = ORDERS[order.pop("do")](order)
        except OSError as error:
            answer = {"role": "error", "errno": error.errno, "error": type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
