"""Handshakes are shared, waiters are served in turn or told why not, and nobody is forgotten."""

from __future__ import annotations

from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.pool import IDLE_S, MAX_STREAMS_A_TUNNEL, Pool, PooledTunnel, PoolKey

KEY = PoolKey("pod", "spiffe://cluster.local/ns/a/sa/a", ("10.0.0.1", 15008), frozenset({"spiffe://cluster.local/ns/b/sa/b"}))
NO = Refusal(Reason.HBONE_TIMEOUT, "no")


class FakeTunnel:
    """Streams are a number here: opening them is the tunnel's, handing out is the pool's."""

    def __init__(self, free: int = MAX_STREAMS_A_TUNNEL) -> None:
        self.idle_since = 0.0
        self.free_streams = free
        self.active_streams = 0
        self.ended: list[str] = []

    def shut(self) -> None:
        self.ended.append("shut")

    def leave_pool(self) -> None:
        self.ended.append("left")

    def take(self) -> None:
        self.free_streams -= 1
        self.active_streams += 1


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.made = 0
        self.served: list[tuple[int, PooledTunnel | None, Refusal | None]] = []
        self.pool = Pool(self._make, lambda: self.now)

    def _make(self, key: PoolKey) -> None:
        self.made += 1

    def ask(self, number: int = 0, key: PoolKey = KEY) -> object:
        def waiter(tunnel: PooledTunnel | None, refusal: Refusal | None) -> None:
            self.served.append((number, tunnel, refusal))
            if isinstance(tunnel, FakeTunnel):
                tunnel.take()

        return self.pool.acquire(key, waiter)

    @property
    def numbers(self) -> list[int]:
        return [number for number, _, _ in self.served]


def test_all_who_wait_share_one_handshake_in_their_order() -> None:
    bench, tunnel = Bench(), FakeTunnel()
    for number in range(10):
        bench.ask(number)
    assert bench.made == 1
    assert bench.served == []
    bench.pool.ready(KEY, tunnel)
    assert bench.numbers == list(range(10))
    bench.ask(10)  # at once
    assert bench.numbers[-1] == 10
    assert bench.made == 1


def test_more_waiters_than_streams_begin_another_tunnel() -> None:
    bench = Bench()
    for number in range(MAX_STREAMS_A_TUNNEL + 1):
        bench.ask(number)
    assert bench.made == 2
    bench.pool.ready(KEY, FakeTunnel(free=3))
    assert bench.numbers == [0, 1, 2]
    bench.pool.ready(KEY, FakeTunnel())
    assert bench.numbers == list(range(MAX_STREAMS_A_TUNNEL + 1))


def test_a_tunnel_that_takes_fewer_streams_leaves_others_to_a_next_one() -> None:
    bench = Bench()
    for number in range(5):
        bench.ask(number)
    bench.pool.ready(KEY, FakeTunnel(free=2))
    assert bench.numbers == [0, 1]
    assert bench.made == 2
    bench.pool.ready(KEY, FakeTunnel(free=2))
    assert bench.made == 3
    bench.pool.failed(KEY, NO)
    assert bench.served[-1] == (4, None, NO)


def test_a_failed_handshake_is_told_to_those_whom_nothing_else_can_serve() -> None:
    bench = Bench()
    for number in range(MAX_STREAMS_A_TUNNEL + 5):
        bench.ask(number)
    bench.pool.failed(KEY, NO)
    assert len(bench.served) == 5
    bench.pool.failed(KEY, NO)
    assert len(bench.served) == MAX_STREAMS_A_TUNNEL + 5
    bench.ask()
    assert bench.made == 3, "the next one tries again"


def test_who_has_gone_is_not_called_and_begins_nothing() -> None:
    bench = Bench()
    waits = [bench.ask(number) for number in range(MAX_STREAMS_A_TUNNEL)]
    for wait in waits[:-1]:
        wait.cancel()  # type: ignore[attr-defined]
        wait.cancel()  # type: ignore[attr-defined]
    bench.ask(1000)
    assert bench.made == 1, "those who left count no more"
    bench.pool.ready(KEY, FakeTunnel())
    assert bench.numbers == [MAX_STREAMS_A_TUNNEL - 1, 1000]
    waits[-1].cancel()  # type: ignore[attr-defined]


def test_identities_do_not_share() -> None:
    bench = Bench()
    bench.pool.ready(KEY, FakeTunnel())
    bench.ask(1, PoolKey(KEY.pod_uid, "spiffe://cluster.local/ns/a/sa/other", KEY.peer, KEY.identities))
    bench.ask(2, PoolKey(KEY.pod_uid, KEY.source_identity, KEY.peer, frozenset({"spiffe://cluster.local/ns/b/sa/other"})))
    bench.ask(3, PoolKey("other pod", KEY.source_identity, KEY.peer, KEY.identities))
    assert bench.served == []
    assert bench.made == 3


def test_idle_ones_are_shut_and_busy_ones_stay() -> None:
    bench, idle, busy = Bench(), FakeTunnel(), FakeTunnel()
    bench.pool.ready(KEY, idle)
    bench.pool.ready(KEY, busy)
    busy.active_streams = 1
    bench.now = IDLE_S + 1
    bench.pool.release_idle()
    assert idle.ended == ["shut"]
    assert busy.ended == []
    bench.ask()
    assert bench.served[0][1] is busy


def test_of_a_pod_that_leaves_none_is_handed_out_and_all_end() -> None:
    """Also those in use: they must end with their last stream, for nobody else would ever end them."""
    bench, ours, theirs = Bench(), FakeTunnel(), FakeTunnel()
    ours.active_streams = 1
    other = PoolKey("other pod", KEY.source_identity, KEY.peer, KEY.identities)
    bench.pool.ready(KEY, ours)
    bench.pool.ready(other, theirs)
    bench.pool.shut_idle(KEY.pod_uid)
    assert ours.ended == ["left"]
    assert theirs.ended == []
    bench.ask()
    assert bench.served == []
    assert bench.made == 1


def test_a_lost_tunnel_is_not_handed_out() -> None:
    bench, tunnel = Bench(), FakeTunnel()
    bench.pool.ready(KEY, tunnel)
    bench.pool.drop(KEY, tunnel)
    bench.pool.drop(KEY, tunnel)
    bench.ask()
    assert bench.served == []
