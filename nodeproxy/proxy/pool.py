"""Client tunnels, kept and shared: one handshake for all who wait, at most 100 streams each, released after 5 idle minutes.

Key: source pod (its address and identity), peer address and the identities that the peer may show.  So no connection ever
travels in a tunnel that was made for another identity, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from nodeproxy.model.reason import Refusal

# Envoy and ztunnel clients open no more than 100 streams on one connection, whatever the server allows.
MAX_STREAMS_A_TUNNEL = 100
# ztunnel releases a pooled connection after 5 minutes without use.
IDLE_S = 300.0


class PoolKey(NamedTuple):
    """What two connections must have in common to share a tunnel."""

    pod_uid: str
    source_identity: str
    peer: tuple[str, int]
    identities: frozenset[str]


class PooledTunnel(Protocol):
    """What the pool must know of a tunnel."""

    idle_since: float

    @property
    def free_streams(self) -> int:
        """How many streams may still be opened on it, 0 while its handshake runs."""

    @property
    def active_streams(self) -> int:
        """Streams that are open."""

    def shut(self) -> None:
        """End it in good order."""

    def leave_pool(self) -> None:
        """It is handed out no more: end it in good order when its last stream has ended."""


Waiter = Callable[["PooledTunnel | None", "Refusal | None"], None]
MakeTunnel = Callable[[PoolKey], None]


class Wait:
    """Somebody's place in the queue for a tunnel; `cancel` it when he has gone."""

    __slots__ = ("_key", "_pool", "waiter")

    def __init__(self, pool: Pool, key: PoolKey, waiter: Waiter) -> None:
        self._pool = pool
        self._key = key
        self.waiter = waiter

    @property
    def waits(self) -> bool:
        """`waiter` was not called yet."""
        return self._pool.has(self._key, self)

    def cancel(self) -> None:
        """`waiter` is not called any more; nothing if it was."""
        self._pool.forget(self._key, self)


class Pool:
    """`make(key)` must lead to `ready` or `failed`, later or at once.  A waiter does not raise: others stand behind it."""

    def __init__(self, make: MakeTunnel, clock: Callable[[], float]) -> None:
        self._make = make
        self._clock = clock
        self._tunnels: dict[PoolKey, list[PooledTunnel]] = {}
        self._waiters: dict[PoolKey, dict[Wait, None]] = {}
        self._making: dict[PoolKey, int] = {}

    def acquire(self, key: PoolKey, waiter: Waiter) -> Wait:
        """Call `waiter` with a tunnel that has a stream free, or with why there is none; now or, unless cancelled, later."""
        wait = Wait(self, key, waiter)
        self._acquire(key, wait)
        return wait

    def has(self, key: PoolKey, wait: Wait) -> bool:
        """Whether somebody stands in the queue."""
        return wait in self._waiters.get(key, ())

    def forget(self, key: PoolKey, wait: Wait) -> None:
        """See `Wait.cancel`."""
        waiters = self._waiters.get(key)
        if waiters is not None:
            waiters.pop(wait, None)
            if not waiters:
                del self._waiters[key]

    def free(self, key: PoolKey) -> PooledTunnel | None:
        """A tunnel that has a stream free, if there is one now."""
        for tunnel in self._tunnels.get(key, ()):
            if tunnel.free_streams > 0:
                return tunnel
        return None

    def _acquire(self, key: PoolKey, wait: Wait) -> None:
        tunnel = self.free(key)
        if tunnel is not None:
            wait.waiter(tunnel, None)
            return
        waiters = self._waiters.setdefault(key, {})
        waiters[wait] = None
        if len(waiters) > self._making.get(key, 0) * MAX_STREAMS_A_TUNNEL:
            self._making[key] = self._making.get(key, 0) + 1
            self._make(key)

    def established(self, key: PoolKey, tunnel: PooledTunnel) -> None:
        """A tunnel that `make` began will be ready soon: the first who waits need not, for any peer takes one stream.

        RFC 9113, section 3.4: "clients are permitted to send additional frames to the server immediately after sending the client
        connection preface, without waiting to receive the server connection preface".
        """
        waiters = self._waiters.get(key)
        if waiters:
            first = next(iter(waiters))
            self.forget(key, first)
            first.waiter(tunnel, None)

    def ready(self, key: PoolKey, tunnel: PooledTunnel) -> None:
        """A tunnel that `make` began knows what its peer takes: serve who waits, as many as it has streams."""
        self._made(key)
        self._tunnels.setdefault(key, []).append(tunnel)
        for wait in self._waiters.pop(key, {}):
            if tunnel.free_streams > 0:
                wait.waiter(tunnel, None)
            else:
                self._acquire(key, wait)

    def failed(self, key: PoolKey, refusal: Refusal) -> None:
        """A tunnel that `make` began will not be: so many of who waits hear why."""
        others = self._made(key)
        waits = list(self._waiters.pop(key, {}))
        kept = others * MAX_STREAMS_A_TUNNEL
        if waits[:kept]:
            self._waiters[key] = dict.fromkeys(waits[:kept])
        for wait in waits[kept:]:
            wait.waiter(None, refusal)

    def drop(self, key: PoolKey, tunnel: PooledTunnel) -> None:
        """The tunnel is lost, or takes no new streams."""
        tunnels = self._tunnels.get(key)
        if tunnels and tunnel in tunnels:
            tunnels.remove(tunnel)
            if not tunnels:
                del self._tunnels[key]

    def release_idle(self) -> None:
        """Shut what nobody has used for `IDLE_S`; called now and then."""
        before = self._clock() - IDLE_S
        for key, tunnels in list(self._tunnels.items()):
            for tunnel in [each for each in tunnels if each.active_streams == 0 and each.idle_since < before]:
                self.drop(key, tunnel)
                tunnel.shut()

    def shut_idle(self, pod_uid: str | None = None) -> None:
        """Hand no tunnel (of one pod, or any) out any more: those without streams end now, others with their last stream."""
        for key, tunnels in list(self._tunnels.items()):
            if pod_uid in (None, key.pod_uid):
                del self._tunnels[key]
                for tunnel in tunnels:
                    tunnel.leave_pool()

    def _made(self, key: PoolKey) -> int:
        others = self._making.pop(key, 1) - 1
        if others:
            self._making[key] = others
        return others
