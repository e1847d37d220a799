"""Connections whose decision hangs on names that the agent was asked for: parked until they are answered, for a bounded time.

Invariant: a connection that is parked has a deadline, and ends by a decision or by a refusal; nothing of it is read meanwhile.
How many are parked is bounded, and when there are too many, it is the pod with the most whose oldest one goes.
It must not know the state, nor what is decided.
"""

from __future__ import annotations

from collections.abc import Callable

from nodeproxy.model.messages import NAMES_A_MESSAGE
from nodeproxy.model.reason import Reason, Refusal
from nodeproxy.proxy.poller import Poller, Timer
from nodeproxy.proxy.session import Session

# A control plane answers in milliseconds, and a reconnect takes a second or two.  Clients' own timeouts begin at 5 s.
WAIT_S = 3.0
# A parked connection takes some 3 KB and a descriptor.  What one pod may have, and all.
MAX_PARKED_OF_POD = 1024
MAX_PARKED = 4096
# For so long a pod that asks too much is not asked for again: the agent has said no, and has others to serve.
REST_S = 0.1
# An address, a service's waypoint, that one's own service: beyond it the answers do not fit what was asked.
MAX_ROUNDS = 4
_MAX_RESTING = 1024

Again = Callable[["Parked"], None]


class Parked:
    """One connection that waits.  again: decide anew; rounds: how often it has waited."""

    __slots__ = ("_timer", "_waiting", "again", "due", "names", "owner", "rounds", "session")

    def __init__(self, waiting: Waiting, session: Session, owner: str, again: Again, due: float) -> None:
        self._waiting = waiting
        self._timer: Timer | None = None
        self.session = session
        self.owner = owner
        self.again = again
        self.due = due
        self.rounds = 0
        self.names: tuple[str, ...] = ()

    def cancel(self) -> None:
        """The connection has ended."""
        self._waiting.remove(self)
        self.stop()

    def stop(self) -> None:
        """It has no deadline any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, poller: Poller) -> None:
        """Be refused when it is due."""
        if self._timer is None:
            self._timer = poller.later(self.due - poller.clock(), self.time_out)

    def time_out(self) -> None:
        """Nobody has answered."""
        names = ", ".join(self.names)
        detail = f"the source of state has not said within {WAIT_S:g} s who has {names}; see the agent's log and `status`"
        self.session.refuse(Refusal(Reason.STATE_UNAVAILABLE, detail))


class _Wanted:
    """Who waits for one name: connections, and on whose account it was asked for."""

    __slots__ = ("owners", "parked")

    def __init__(self) -> None:
        self.parked: dict[Parked, None] = {}
        self.owners: set[str] = set()


class Waiting:
    """The parked connections of a worker.  ask: tells the agent what an owner's connections wait for."""

    def __init__(self, poller: Poller, ask: Callable[[str, tuple[str, ...]], None]) -> None:
        self._poller = poller
        self._ask = ask
        self._wanted: dict[str, _Wanted] = {}
        self._owners: dict[str, dict[Parked, None]] = {}  # in the order that they came
        self._count = 0
        self._resting: dict[str, tuple[float, Refusal]] = {}  # until when, and why, by owner

    def __len__(self) -> int:
        return self._count

    def park(self, session: Session, owner: str, names: tuple[str, ...], again: Again) -> None:
        """Have a connection wait that hangs on these names."""
        resting = self._resting.get(owner)
        if resting is not None:
            if self._poller.clock() < resting[0]:
                session.refuse(resting[1])
                return
            del self._resting[owner]
        self._park(Parked(self, session, owner, again, self._poller.clock() + WAIT_S), names)

    def park_again(self, parked: Parked, names: tuple[str, ...]) -> None:
        """Decided anew, it hangs on other names: for what is left of its time."""
        parked.rounds += 1
        if parked.rounds >= MAX_ROUNDS:
            detail = f"after {MAX_ROUNDS} answers the state still does not say who has {', '.join(names)}; its source is at fault"
            parked.session.refuse(Refusal(Reason.STATE_UNAVAILABLE, detail))
        else:
            self._park(parked, names)

    def _park(self, parked: Parked, names: tuple[str, ...]) -> None:
        if not self._make_room(parked.owner):
            detail = f"{MAX_PARKED_OF_POD} connections wait for the source of state already: the limit of a pod in one worker"
            parked.session.refuse(Refusal(Reason.STATE_UNAVAILABLE, detail))
            return
        parked.names = names
        parked.session.pending = parked
        self._owners.setdefault(parked.owner, {})[parked] = None
        self._count += 1
        asked = []
        for name in names:
            wanted = self._wanted.get(name)
            if wanted is None:
                wanted = self._wanted[name] = _Wanted()
            wanted.parked[parked] = None
            if parked.owner not in wanted.owners:
                wanted.owners.add(parked.owner)
                asked.append(name)
        parked.watch(self._poller)
        for start in range(0, len(asked), NAMES_A_MESSAGE):
            self._ask(parked.owner, tuple(asked[start : start + NAMES_A_MESSAGE]))

    def _make_room(self, owner: str) -> bool:
        if len(self._owners.get(owner, ())) >= MAX_PARKED_OF_POD:
            return False
        if self._count < MAX_PARKED:
            return True
        most = max(self._owners.values(), key=len)
        oldest = next(iter(most))
        detail = (
            f"{MAX_PARKED} connections wait for the source of state in one worker; this pod has the most, and this was its oldest"
        )
        oldest.session.refuse(Refusal(Reason.STATE_UNAVAILABLE, detail))
        return True

    def remove(self, parked: Parked) -> None:
        """It waits no more."""
        mine = self._owners.get(parked.owner)
        if mine is None or parked not in mine:
            return
        del mine[parked]
        self._count -= 1
        if not mine:
            del self._owners[parked.owner]
        for name in parked.names:
            wanted = self._wanted[name]
            del wanted.parked[parked]
            if not wanted.parked:
                del self._wanted[name]

    # ── what the agent says ──

    def answered(self, names: tuple[str, ...]) -> None:
        """The state knows by now who has them: decide anew."""
        waiting: dict[Parked, None] = {}
        for name in names:
            wanted = self._wanted.get(name)
            if wanted is not None:
                waiting.update(wanted.parked)
        for parked in waiting:
            self.remove(parked)
            session = parked.session
            if not session.ended:
                session.pending = None
                self._decide(parked)

    def refused(self, names: tuple[str, ...], owner: str, detail: str) -> None:
        """They will not be answered soon.  owner: for whom, "" for all."""
        refusal = Refusal(Reason.STATE_UNAVAILABLE, detail)
        if owner:
            if len(self._resting) >= _MAX_RESTING:
                self._resting.clear()
            self._resting[owner] = (self._poller.clock() + REST_S, refusal)
        for name in names:
            wanted = self._wanted.get(name)
            if wanted is None:
                continue
            wanted.owners.discard(owner)
            for parked in list(wanted.parked):
                if owner in ("", parked.owner):
                    parked.session.refuse(refusal)

    def _decide(self, parked: Parked) -> None:
        try:
            parked.again(parked)
        except Exception as error:
            parked.session.failed(error)
        if parked.session.pending is not parked:
            parked.stop()
