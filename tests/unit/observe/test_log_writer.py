"""Lines go out whole, in order and without waiting, to whatever standard output is."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from nodeproxy.observe.log_writer import MAX_KEPT_BYTES, LogWriter

LINE = b"x" * 99 + b"\n"


def flushed(writer: LogWriter, *lines: bytes) -> None:
    for line in lines:
        writer.write(line)
    writer.flush()


def test_a_pipe_takes_lines_and_its_readers_end_stays_as_it_is() -> None:
    read, write = os.pipe()
    writer = LogWriter(write)
    flushed(writer, b"one\n", b"two\n")
    assert os.read(read, 100) == b"one\ntwo\n"
    assert not writer.pending
    assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK, "others share this description"
    writer.close()
    os.close(read)
    os.close(write)


def test_a_reader_that_sleeps_does_not_stop_us_and_loses_no_half_line() -> None:
    read, write = os.pipe()
    writer = LogWriter(write)
    count = 15_000
    for number in range(count):
        writer.write(b"%098d\n" % number)
    assert writer.dropped > 0
    got = bytearray()
    while writer.pending:
        got += os.read(read, 1 << 20)
        writer.flush()
    os.set_blocking(read, False)
    try:
        while True:
            got += os.read(read, 1 << 20)
    except BlockingIOError:
        pass
    numbers = [int(line) for line in bytes(got).splitlines()]
    assert len(numbers) == count - writer.dropped
    assert numbers == list(range(len(numbers))), "the newest are dropped"
    assert len(numbers) * len(LINE) >= MAX_KEPT_BYTES - len(LINE)
    writer.close()
    os.close(read)
    os.close(write)


def test_a_pass_that_says_much_drops_nothing_if_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno())
        flushed(writer, *[LINE] * 30_000)
        assert writer.dropped == 0
        writer.close()
    assert (tmp_path / "log").stat().st_size == 30_000 * len(LINE)


def test_what_others_write_to_the_same_file_is_not_overwritten(tmp_path: Path) -> None:
    """`nodeproxy run > log`: the agent writes by the shared description, whose place must move with our lines."""
    with (tmp_path / "log").open("wb", buffering=0) as file:
        writer = LogWriter(file.fileno())
        file.write(b"agent\n")
        flushed(writer, b"worker\n")
        file.write(b"agent again\n")
        flushed(writer, b"worker again\n")
        writer.close()
    assert (tmp_path / "log").read_bytes() == b"agent\nworker\nagent again\nworker again\n"


def test_a_socket_that_is_full_does_not_stop_us() -> None:
    """systemd's journal is a stream socket, and may take a part of a line."""
    ours, journal = socket.socketpair()
    with ours, journal:
        writer = LogWriter(ours.fileno())
        for number in range(9_000):
            writer.write(b"%098d\n" % number)
        writer.flush()
        assert ours.getblocking()
        got = bytearray()
        journal.setblocking(False)
        while True:
            writer.flush()
            try:
                got += journal.recv(1 << 20)
            except BlockingIOError:
                break
        numbers = [int(line) for line in bytes(got).splitlines()]
        assert numbers == list(range(9_000 - writer.dropped))
        writer.close()


def test_a_pipe_that_nobody_will_read_is_no_reason_to_end() -> None:
    read, write = os.pipe()
    writer = LogWriter(write)
    os.close(read)
    flushed(writer, LINE, LINE)
    assert writer.dropped == 2
    assert not writer.pending
    writer.close()
    os.close(write)
