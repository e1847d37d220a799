"""The loop survives whatever its callbacks do, and tells events to nobody else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from nodeproxy.proxy.poller import HUP, IN, OUT, Poller


class Watcher:
    def __init__(
        self, on_event: Callable[[int], None] = lambda events: None, on_fault: Callable[[], None] = lambda: None
    ) -> None:
        self.events: list[int] = []
        self.faults: list[Exception] = []
        self._on_event, self._on_fault = on_event, on_fault

    def on_event(self, events: int) -> None:
        self.events.append(events)
        self._on_event(events)

    def on_fault(self, error: Exception) -> None:
        self.faults.append(error)
        self._on_fault()


class Failure(Exception):
    pass


def fail(*_: object) -> None:
    raise Failure


def poller(errors: list[Exception] | None = None, clock: Callable[[], float] | None = None) -> Poller:
    log = (errors if errors is not None else []).append
    return Poller(log, clock) if clock else Poller(log)


def test_an_event_is_told_to_its_watcher() -> None:
    loop, (one, other) = poller(), socket.socketpair()
    with one, other:
        watcher = Watcher()
        loop.add(one.fileno(), watcher, IN)
        loop.run_once(0)
        assert watcher.events == []
        other.send(b"x")
        loop.run_once(0)
        assert watcher.events == [IN]
        loop.change(one.fileno(), OUT)
        loop.run_once(0)
        assert watcher.events == [IN, OUT]
        loop.remove(one.fileno())
        loop.run_once(0)
        assert len(watcher.events) == 2


def test_an_event_of_a_closed_descriptor_is_not_told_to_who_gets_its_number() -> None:
    """Two are ready in one pass; the first closes the second and opens a new one, which gets the second's number."""
    loop = poller()
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    stranger = Watcher()
    opened: list[int] = []

    def replace(_: int) -> None:
        if opened:
            return
        number = second.fileno()
        loop.remove(number)
        second.close()
        made = os.dup(second_peer.fileno())  # has nothing to read
        assert made == number
        opened.append(made)
        loop.add(made, stranger, IN)

    watcher = Watcher(replace)
    # epoll tells in the order in which they became ready.
    loop.add(first.fileno(), watcher, IN)
    loop.add(second.fileno(), Watcher(), IN)
    first_peer.send(b"x")
    second_peer.send(b"x")
    loop.run_once(0)
    assert opened
    assert stranger.events == []
    loop.run_once(0)
    assert [events & IN for events in stranger.events] in ([], [IN])  # its own: the peer has closed
    for sock in (first, first_peer, second_peer):
        sock.close()
    os.close(opened[0])


def test_what_is_closed_next_need_not_be_removed_from_epoll() -> None:
    """The kernel forgets it: its number may be watched again, and its events come to nobody."""
    loop, (one, other) = poller(), socket.socketpair()
    gone, heir = Watcher(), Watcher()
    loop.add(one.fileno(), gone, IN)
    other.send(b"x")
    number = one.fileno()
    loop.closing(number)
    one.close()
    again, again_peer = socket.socketpair()
    with other, again, again_peer:
        if again.fileno() != number:
            os.dup2(again.fileno(), number)
        loop.add(number, heir, IN)
        loop.run_once(0)
        assert (gone.events, heir.events) == ([], [])
        again_peer.send(b"y")
        loop.run_once(0)
        assert (gone.events, heir.events) == ([], [IN])
        loop.remove(number)
        if again.fileno() != number:
            os.close(number)


def test_a_callback_that_raises_ends_its_own_connection_only() -> None:
    errors: list[Exception] = []
    loop, (one, other), (two, another) = poller(errors), socket.socketpair(), socket.socketpair()
    with one, other, two, another:
        bad, good = Watcher(fail), Watcher()
        loop.add(one.fileno(), bad, OUT)
        loop.add(two.fileno(), good, OUT)
        loop.run_once(0)
        assert [type(error) for error in bad.faults] == [Failure]
        assert good.events == [OUT]
        assert good.faults == []
        assert len(errors) == 1


def test_who_cannot_even_end_is_not_heard_again() -> None:
    errors: list[Exception] = []
    loop, (one, other) = poller(errors), socket.socketpair()
    with one, other:
        bad = Watcher(fail, fail)
        loop.add(one.fileno(), bad, OUT)
        loop.run_once(0)
        loop.run_once(0)
        assert bad.events == [OUT]
        assert len(errors) == 2


def test_timers_fire_in_order_and_not_when_cancelled() -> None:
    now = [0.0]
    loop, fired = poller(clock=lambda: now[0]), []
    loop.later(2, lambda: fired.append("second"))
    loop.later(1, lambda: fired.append("first"))
    loop.later(1, lambda: fired.append("never")).cancel()
    loop.run_once(0)
    assert fired == []
    now[0] = 2.0
    loop.run_once(0)
    assert fired == ["first", "second"]


def test_what_is_deferred_runs_at_the_end_of_the_pass_and_a_defect_in_it_is_its_own() -> None:
    errors: list[Exception] = []
    loop, order = poller(errors), []

    def again() -> None:
        order.append("first")
        loop.defer(lambda: order.append("deferred by it"))

    loop.defer(again)
    loop.defer(fail)
    loop.defer(lambda: order.append("third"))
    loop.run_once(0)
    assert order == ["first", "third", "deferred by it"]
    assert len(errors) == 1


def test_it_stops_after_the_pass() -> None:
    loop, (one, other) = poller(), socket.socketpair()
    with one, other:
        loop.add(one.fileno(), Watcher(lambda events: loop.stop()), OUT)
        loop.run()


def test_a_hang_up_comes_unasked() -> None:
    loop, (one, other) = poller(), socket.socketpair()
    with one:
        watcher = Watcher()
        loop.add(one.fileno(), watcher, 0)
        other.close()
        loop.run_once(0)
        assert watcher.events
        assert watcher.events[0] & HUP
