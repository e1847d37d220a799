"""A state that holds only what was asked for: asking the source when a connection first needs a name, and letting go of it.

Workers ask (`wanted`) while a connection waits; the first asks for all.  What the source says is in the store when `arrived` is
called, which writes down what that answers, and tells.  What is used (`used`) is asked for again now and then, as istiod tells an
on-demand client neither of who takes an address that nobody had, nor of a service's new endpoints; what is not used is let go,
and goes from the store with all that came with it.
Invariants: whoever asks is answered, or ends by its own deadline; that a name has nobody is forgotten in the store before the
source is told that nobody asks for it any more, so that nothing passes as "nobody" of which no news would come.  What was known
stays known while the source is away, and is neither asked again nor let go then.
It must not know how the source is reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from nodeproxy.agent.asked import Asked, AskedNames
from nodeproxy.agent.asking import Asking
from nodeproxy.errors import StateError
from nodeproxy.model.delta import Delta
from nodeproxy.model.messages import NAMES_A_MESSAGE, NamesAnswered, NamesUsed, NamesWanted
from nodeproxy.model.workload import Service, Workload
from nodeproxy.observe.on_demand_metrics import OnDemandStatistics
from nodeproxy.state.resources import service_names, workload_names
from nodeproxy.state.view import View
from nodeproxy.xds.names import MAX_NAME_BYTES

# How long a question of the agent's own waits, which is what a worker's connection waits; and how long the source may be away
# before who asks is refused at once, as a wait would most likely be in vain.
WAIT_S = 3.0
SWEEP_S = 10.0
# What is in use is asked for again after so long: for no longer may a pod be taken for nobody, or a service lack an endpoint.
RECHECK_S = 60.0
# What is known and was not used for so long is let go.
IDLE_S = 600.0
# A question that the source has not answered for so long while it was there is withdrawn.
UNANSWERED_S = 30.0
# Names that are let go in one transaction; more of them would have readers forget all that they keep.
_BATCH = 256
# Names that one sweep asks for again, which bounds what the source has to do for it.
_MAX_RECHECKS = 1000
# On whose account: what an agent before this one asked for, and what commands do.
RESTORED, COMMANDS = "before", "command"
_AGENT = -1  # the place of workers' slots for the agent's own questions

log = logging.getLogger(__name__)


class Subscriber(Protocol):
    """The source, as far as it takes names.  It keeps what is subscribed over its own reconnects."""

    def subscribe(self, names: Iterable[str]) -> None:
        """Ask for these."""

    def unsubscribe(self, names: Iterable[str]) -> None:
        """Ask for these no more."""

    def ask_again(self, names: Iterable[str]) -> None:
        """Have these, which are subscribed, answered once more."""


class OnDemand:
    """`run` serves until cancelled.

    view: the state as it is now, until control goes back to the loop.  write: puts a delta into the store and tells whoever goes
    by the state.  tell: reaches the worker of a slot.  in_use: addresses that connections use unseen by workers.
    """

    def __init__(
        self,
        view: Callable[[], View],
        write: Callable[[Delta], Awaitable[None]],
        tell: Callable[[int, NamesAnswered], object],
        in_use: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._write, self._tell, self._in_use, self._clock = view, write, tell, in_use, clock
        self._names = AskedNames()
        self._asking = Asking(clock)
        self._queued: dict[str, set[int]] = {}  # names that wait for their turn, and who is to be told
        self._pump_at: asyncio.TimerHandle | None = None
        self._crowded = asyncio.Event()
        self._swept = clock()
        self._questions: dict[str, list[asyncio.Future[str]]] = {}  # the agent's own
        self._enrolled: set[str] = set()
        self._subscriber: Subscriber | None = None
        self._changed = clock()  # when the source came or went
        self._connected = False
        self._answers = Counter(present=0, absent=0)
        self._refused = Counter(pace=0, source_away=0, room=0, unanswered=0, too_long=0)
        self._let_go = Counter(idle=0, room=0, unanswered=0)
        self._asked_for = self._asked_again = 0

    # ── the source ──

    async def start(self, subscriber: Subscriber) -> None:
        """Ask for what the agent before this one did.  What it knew beside that, nobody would keep up to date: it goes."""
        self._subscriber = subscriber
        view = self._view()
        now = self._clock()
        for name in view.asked():
            asked = self._names.get(name) or self._names.add(name, RESTORED, now)
            asked.answered = now
            asked.absent, asked.whole = view.is_absent(name), _service_of(view, name) is not None
        services = [service.key for service in view.services() if not self._covers_service(service)]
        workloads = [workload.uid for workload in view.workloads() if not self._covers(view, workload)]
        if services or workloads:
            await self._write(Delta(removed_services=tuple(services), removed_workloads=tuple(workloads)))
        subscriber.subscribe([asked.name for asked in self._names])

    def connected(self, connected: bool) -> None:
        """The source answers, or is away."""
        if self._connected != connected:
            self._changed = self._clock()
        self._connected = connected

    async def arrived(self, keys: Iterable[str], gone: Iterable[str]) -> None:
        """The source has spoken, and what it said is in the store.

        keys: of workloads and services that it sent.  gone: names that it says nobody has (any more).
        """
        view, now = self._view(), self._clock()
        present: dict[str, bool] = {}  # name → whether it is a service
        absent: list[str] = []
        for key in keys:
            service, workload = view.service(key), view.workload(key)
            names = service_names(service) if service is not None else workload_names(workload) if workload is not None else []
            present |= {name: service is not None for name in names if name in self._names or name in self._queued}
            if workload is not None and workload.host_network:
                # It shares its node's address with others, and answers to none: there is nobody of the mesh at it.
                shared = (f"{workload.network}/{address}" for address in workload.addresses)
                absent += [name for name in shared if name in self._names and not _is_somebody(view, name)]
        # Who could not be removed from the store, or came by another name, is there.
        absent += [name for name in gone if name in self._names and not _is_somebody(view, name)]
        if present or absent:
            await self._write(Delta(present=tuple(name for name in present if name in self._names), absent=tuple(absent)))
            self._answered(present, absent, now)

    def _answered(self, present: dict[str, bool], absent: list[str], now: float) -> None:
        told: dict[int, list[str]] = {}
        for name in (*present, *absent):
            waiting = self._queued.pop(name, set())
            asked = self._names.get(name)
            if asked is not None:
                asked.answered, asked.absent, asked.whole = now, name not in present, present.get(name, False)
                self._answers["absent" if asked.absent else "present"] += 1
                waiting |= asked.waiting
                asked.waiting.clear()
                if asked.absent and name not in self._enrolled:
                    self._names.unpin(asked)
            for slot in waiting:
                told.setdefault(slot, []).append(name)
        for slot, names in told.items():
            self._answer(slot, names)

    # ── this node's pods ──

    def keep(self, uid: str) -> None:
        """A pod of this node is enrolled: its own workload is asked for and stays."""
        self._enrolled.add(uid)
        was_asked = uid in self._names
        self._names.pin(uid, self._clock())
        if not was_asked and self._subscriber is not None:
            self._subscriber.subscribe([uid])

    def leave(self, uid: str) -> None:
        """It is not enrolled any more.  Connections of it may go on: it is known until the source says that it has gone."""
        self._enrolled.discard(uid)

    # ── workers ──

    def heard(self, slot: int, message: NamesWanted | NamesUsed) -> None:
        """What a worker says."""
        if isinstance(message, NamesWanted):
            self.wanted(slot, message.pod, message.names)
        else:
            self.used(message.names)

    def wanted(self, slot: int, owner: str, names: Iterable[str]) -> None:
        """Connections on the account of `owner` wait for these names."""
        view = self._view()
        known, waiting, late = [], [], []
        for name in names:
            if _is_somebody(view, name) or view.is_absent(name):
                known.append(name)  # by now
            elif not self.is_away and (asked := self._names.get(name)) is not None and not asked.answered:
                asked.waiting.add(slot)
            else:
                waiting.append(name)
        if known:
            self._answer(slot, known)
        if waiting and self.is_away:
            self._refuse(
                slot, waiting, owner, "source_away", f"{self._away()}, and who has {waiting[0]} was not asked before that"
            )
            return
        for name in waiting:
            if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
                self._refuse(slot, [name], owner, "too_long", f"{name[:80]}… is too long for a name")
            elif self._asking.put(owner, name):
                self._queued.setdefault(name, set()).add(slot)
            else:
                late.append(name)
        if late:
            self._refuse(slot, late, owner, "pace", "the pod asks for unknown addresses faster than it may")
        self._pump()

    def used(self, names: Iterable[str]) -> None:
        """Decisions have hung on these."""
        view, now = self._view(), self._clock()
        for name in names:
            asked = self._names.get(name)
            if asked is None:  # asked for by another of its names
                service, workload = _service_of(view, name), _workload_of(view, name)
                key = service.key if service is not None else workload.uid if workload is not None else ""
                asked = self._names.get(key)
            if asked is not None:
                self._names.use(asked, now)

    # ── commands ──

    def is_answered(self, name: str) -> bool:
        """Whether the state knows who has this name, or that nobody has."""
        view = self._view()
        return _is_somebody(view, name) or view.is_absent(name)

    async def ask(self, names: Iterable[str]) -> str:
        """Wait until the state knows who has these names, for a bounded time; "" or why it does not."""
        loop = asyncio.get_running_loop()
        futures = []
        for name in dict.fromkeys(names):
            future: asyncio.Future[str] = loop.create_future()
            self._questions.setdefault(name, []).append(future)
            futures.append((name, future))
        self.wanted(_AGENT, COMMANDS, [name for name, _ in futures])
        try:
            async with asyncio.timeout(WAIT_S):
                said = await asyncio.gather(*(future for _, future in futures))
        except TimeoutError:
            return f"the source of state did not answer within {WAIT_S:g} s"
        finally:
            for name, future in futures:
                if name in self._questions:
                    self._questions[name].remove(future)
                    if not self._questions[name]:
                        del self._questions[name]
        return next(filter(None, said), "")

    # ── serving ──

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._swept + SWEEP_S - self._clock())):
                    await self._crowded.wait()
            self._crowded.clear()
            try:
                while names := self._names.to_make_room():
                    await self._release(names, "room")
                if self._clock() >= self._swept + SWEEP_S:
                    await self.sweep()
            except StateError as exc:
                log.error("names can't be let go, and are asked for until they can: %s", exc)
                await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Ask again for what is in use, let go of what is not."""
        now = self._swept = self._clock()
        self._asking.forget_idle()
        if not self._connected:
            return  # what was known stays known
        self._use_unseen(now)
        again: list[str] = []
        over: dict[str, list[str]] = {"idle": [], "unanswered": []}
        for asked in self._names:
            if asked.pinned or not self._is_over(asked, now):
                if self._is_stale(asked, now):
                    again.append(asked.name)
            else:
                over["idle" if asked.answered else "unanswered"].append(asked.name)
        for why, names in over.items():
            for start in range(0, len(names), _BATCH):
                await self._release(names[start : start + _BATCH], why)
        self._ask_again(again[:_MAX_RECHECKS], now)

    def _is_over(self, asked: Asked, now: float) -> bool:
        """Whether nobody needs the name any more, or the source does not answer for it."""
        if not asked.answered:
            return now - max(asked.asked, self._changed) > UNANSWERED_S
        unused = asked.absent and now - asked.answered > RECHECK_S and asked.used <= asked.answered
        return unused or now - asked.used > IDLE_S

    @staticmethod
    def _is_stale(asked: Asked, now: float) -> bool:
        """Whether its answer is old and in use, and of a kind of which the source may not tell news by itself."""
        in_use = asked.pinned or asked.used > asked.answered
        return in_use and (asked.absent or asked.whole) and now - max(asked.answered, asked.asked) > RECHECK_S

    def _use_unseen(self, now: float) -> None:
        addresses = set(self._in_use())
        if addresses:
            for asked in self._names:
                if asked.name.rpartition("/")[2] in addresses:
                    self._names.use(asked, now)

    def _pump(self) -> None:
        """Ask for what may be asked for now; and later for what may not."""
        if self._pump_at is not None:
            self._pump_at.cancel()
            self._pump_at = None
        now = self._clock()
        new, again = [], []
        for owner, name in self._asking.take():
            slots = self._queued.pop(name, None)
            if slots is None:
                continue  # answered, or asked for on another's account, while it waited
            asked = self._names.get(name)
            if asked is None:
                asked = self._names.add(name, owner, now)
                new.append(name)
            else:
                again.append(name)  # whoever had it has gone
            asked.asked, asked.answered = now, 0.0
            asked.waiting |= slots
        if new and self._subscriber is not None:
            self._asked_for += len(new)
            self._subscriber.subscribe(new)
        self._ask_again(again, now)
        if self._names.to_make_room():
            self._crowded.set()
        delay_s = self._asking.delay_s()
        if delay_s is not None:
            self._pump_at = asyncio.get_running_loop().call_later(delay_s, self._pump)

    def _ask_again(self, names: list[str], now: float) -> None:
        if not names or self._subscriber is None:
            return
        for name in names:
            asked = self._names.get(name)
            if asked is not None:
                asked.asked = now
        self._asked_again += len(names)
        self._subscriber.ask_again(names)

    # ── letting go ──

    async def _release(self, names: list[str], why: str) -> None:
        """Forget these names, and what of the state has come by them alone."""
        view = self._view()
        released = [asked for name in names if (asked := self._names.remove(name)) is not None]
        self._let_go[why] += len(released)
        services: dict[str, Service] = {}
        workloads: dict[str, Workload] = {}
        kept = set()  # resources that another name brings: of these the source goes on telling by their own names
        for asked in released:
            service, workload = _service_of(view, asked.name), _workload_of(view, asked.name)
            if service is not None and not self._covers_service(service):
                services[service.key] = service
            elif service is not None:
                kept.add(service.key)
            if workload is not None:
                workloads[workload.uid] = workload
        for key in services:
            workloads |= {workload.uid: workload for workload, _ in view.endpoints(key)}
        kept.update(uid for uid, workload in workloads.items() if self._covers(view, workload))
        gone = [uid for uid in workloads if uid not in kept]
        forgotten = [asked.name for asked in released]
        delta = Delta(removed_services=tuple(services), removed_workloads=tuple(gone), forgotten=tuple(forgotten))
        try:
            await self._write(delta)
        except StateError:
            # Still in the store, so that it must still be told of.
            for asked in released:
                self._names.restore(asked)
            raise
        if self._subscriber is not None:
            # What was asked for anew meanwhile stays subscribed, and all that comes with it.
            over = forgotten if any(name in self._names for name in forgotten) else [*forgotten, *services, *gone]
            kept.update(name for name in over if name in self._names)
            self._subscriber.unsubscribe([name for name in dict.fromkeys(over) if name not in kept])
        for asked in released:
            for slot in asked.waiting:
                self._refuse(slot, [asked.name], "", why, f"the source of state does not say who has {asked.name}")

    def _covers_service(self, service: Service) -> bool:
        """Whether a service is asked for."""
        return any(name in self._names for name in service_names(service))

    def _covers(self, view: View, workload: Workload) -> bool:
        """Whether a workload is asked for, or comes with a service that is."""
        if any(name in self._names for name in workload_names(workload)):
            return True
        for key in workload.services:
            if key in self._names:
                return True
            service = view.service(key)
            if service is not None and self._covers_service(service):
                return True
        return False

    # ── telling ──

    @property
    def is_away(self) -> bool:
        """The source has been away for longer than a connection waits."""
        return not self._connected and self._clock() - self._changed > WAIT_S

    def _away(self) -> str:
        return f"the source of state has been away for {self._clock() - self._changed:.0f} s"

    def _answer(self, slot: int, names: list[str]) -> None:
        if slot == _AGENT:
            self._resolve(names, "")
            return
        for start in range(0, len(names), NAMES_A_MESSAGE):
            self._tell(slot, NamesAnswered(tuple(names[start : start + NAMES_A_MESSAGE])))

    def _refuse(self, slot: int, names: list[str], owner: str, why: str, detail: str) -> None:
        self._refused[why] += len(names)
        if slot == _AGENT:
            self._resolve(names, detail)
            return
        for start in range(0, len(names), NAMES_A_MESSAGE):
            self._tell(slot, NamesAnswered(tuple(names[start : start + NAMES_A_MESSAGE]), refusal=detail, pod=owner))

    def _resolve(self, names: list[str], said: str) -> None:
        for name in names:
            for future in self._questions.get(name, ()):
                if not future.done():
                    future.set_result(said)

    def statistics(self) -> OnDemandStatistics:
        """For the metrics."""
        names = {"present": 0, "absent": 0, "pending": len(self._queued)}
        for asked in self._names:
            names["pending" if not asked.answered else "absent" if asked.absent else "present"] += 1
        return OnDemandStatistics(
            names=names,
            asked=self._asked_for,
            asked_again=self._asked_again,
            answers=self._answers,
            refused=self._refused,
            let_go=self._let_go,
        )


def _service_of(view: View, name: str) -> Service | None:
    """The service that a name stands for."""
    network, _, ip = name.rpartition("/")
    return view.service(name) or view.service_at(network, ip)


def _workload_of(view: View, name: str) -> Workload | None:
    """The workload that a name stands for."""
    network, _, ip = name.rpartition("/")
    return view.workload(name) or view.workload_at(network, ip)


def _is_somebody(view: View, name: str) -> bool:
    return _service_of(view, name) is not None or _workload_of(view, name) is not None
