"""The process that workers are forked from: it has imported what a worker needs, once, and its memory is shared by all of them.

It is started by the agent with nothing but a channel, never touches traffic, and ends (and with it every worker) when the agent
does.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys

import msgspec

from nodeproxy.linux.process import die_with_parent
from nodeproxy.model.channel import Channel
from nodeproxy.model.messages import Exited, Fork, Forked
from nodeproxy.proxy.worker import Worker

# A garbage collection walks all tracked objects; connections make and drop few cycles.  Measured: 1.04 times the new connections.
_GC_THRESHOLDS = (50_000, 20, 20)


def main(channel_fd: int) -> None:
    """Serve the agent's `Fork`s on `channel_fd` until it closes the channel."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the agent alone decides how to end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _raise_descriptor_limit()
    sock = socket.socket(fileno=channel_fd)
    channel: Channel[Fork] = Channel(sock, Fork)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    gc.collect()
    gc.freeze()
    _serve(channel, wake_read)


def _serve(channel: Channel[Fork], wake_read: int) -> None:
    import select  # noqa: PLC0415 - the zygote's alone

    poll = select.poll()
    poll.register(channel.sock.fileno(), select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _reap(channel)
                continue
            received = channel.receive()
            if received is None:
                return
            message, fds = received
            _fork(channel, message, fds)


def _fork(channel: Channel[Fork], message: Fork, fds: list[int]) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        # Those that run must not end for it.  Process id 0: the one that was to be made.
        logging.getLogger(__name__).error("a worker can't be forked: %s; raise the limit of processes", error.strerror)
        for fd in fds:
            os.close(fd)
        channel.send(Exited(0, 1))
        return
    if pid:
        for fd in fds:
            os.close(fd)
        channel.send(Forked(message.settings.slot, pid))
        return
    status = 1
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        channel.sock.close()
        gc.set_threshold(*_GC_THRESHOLDS)
        worker_fd, originals_fd = fds
        settings = msgspec.structs.replace(message.settings, original_destination_fd=originals_fd)
        Worker(settings, socket.socket(fileno=worker_fd), sys.stdout.fileno()).run()
        status = 0
    except BaseException:
        logging.getLogger(__name__).exception("a worker ended by a defect")
    finally:
        os._exit(status)


def _reap(channel: Channel[Fork]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        channel.send(Exited(pid, os.waitstatus_to_exitcode(status)))


def _raise_descriptor_limit() -> None:
    """A connection takes two descriptors: use all that the node's administrator allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s")
    main(int(sys.argv[1]))
