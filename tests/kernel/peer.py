"""A program in a pod, told what to do by lines of JSON on its stdin; each gets one line of JSON back.

Standard library only: it plays the unmodified application.  What it serves, and what it gets from whoever answers its
connects, is one line of JSON that says who answered.
"""

import json
import os
import socket
import struct
import sys
import threading
import time

SO_BINDTODEVICE = 25
IPPROTO_MPTCP = 262


def _family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _made(order):
    family = _family(order["address"])
    if order.get("udp"):
        return socket.socket(family, socket.SOCK_DGRAM)
    made = socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP if order.get("mptcp") else 0)
    made.settimeout(order.get("timeout", 2.0))
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


def datagram(order):
    with _made({**order, "udp": True}) as made:
        made.settimeout(order.get("timeout", 2.0))
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
        accepted.sendall(json.dumps({"role": name, "seen_peer": peer[:2], "seen_sockname": accepted.getsockname()[:2]}).encode())
        accepted.close()


def _echo(listener):
    while True:
        data, peer = listener.recvfrom(100)
        listener.sendto(b"app:" + data, peer)


ORDERS = {function.__name__: function for function in (connect, connect_again, many, hammer, fastopen, datagram, serve)}


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
