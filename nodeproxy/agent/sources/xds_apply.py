"""From responses to changes of the state, in pieces that do not stop the agent.

Invariants: what can be used of a response is applied, the rest is told; policies of one response take effect together, up to
`MAX_POLICIES_BYTES` of them, so that none is missing while another has gone; of addresses, what comes is written before what
goes, so that one which changes its owner is never nobody's.  A policy that can't be understood keeps its last good form or,
without one, has a stand-in (`nodeproxy.xds.decode.stand_in`).  Where the store has no room, nothing more of a response is
written: to go on with what is smaller could remove a policy whose successor did not fit.  A policy that has gone, or is to hold
no more for all but for those that list it, stays as it was until `let_go`: workloads that are to list it, or its successor, are
told of on their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from nodeproxy.agent.pods.provisional import Provisional
from nodeproxy.agent.sources.change import Change
from nodeproxy.agent.sources.xds_kept import known, version_meta
from nodeproxy.agent.sources.xds_rejected import RejectedResources
from nodeproxy.errors import ResourceError, UnstorableError
from nodeproxy.model.delta import Delta, PodSpec
from nodeproxy.model.policy import Policy, PolicyScope
from nodeproxy.model.workload import Service, Workload
from nodeproxy.proto import discovery_pb2
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.state.view import View
from nodeproxy.xds.decode import decode_address, decode_policy, stand_in
from nodeproxy.xds.delta_client import MAX_NAMED, Rejected
from nodeproxy.xds.message import Response
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MAX_NAME_BYTES, MAX_NAMESPACE_BYTES

# So many resources are decoded and written at once, 10 ms of work; of large ones (policies, say) fewer.
MAX_BATCH = 200
MAX_BATCH_BYTES = 64 << 10
# Policies of a larger message, some 1000 of ten rules each, are written in pieces after all: it would stop the agent for longer
# than 0.3 s, and to hold it decoded takes ten times as much memory.
MAX_POLICIES_BYTES = 512 << 10
# Istio's default; the namespaces of global policies that are known count as well.
_ROOT_NAMESPACE = "istio-system"

_T = TypeVar("_T")


class Sink(Protocol):
    """Where changes go: the agent."""

    async def apply(self, change: Change) -> None:
        """Raises StateError, nothing then being applied."""

    def view(self) -> View:
        """The state as it is now."""

    async def keep(self, meta: Meta) -> None:
        """Write this beside the state, though the source has not spoken.  Raises StateError."""

    async def reading(self, work: Callable[[StateWriter], _T]) -> _T:
        """Do this in a thread, while nobody writes."""


class XdsChange:
    """A part of a response, as `Change`."""

    def __init__(
        self, delta: Delta, meta: Meta, pods: tuple[PodSpec, ...] | None = None, provisional: Provisional | None = None
    ) -> None:
        self.pods = pods
        self._delta = delta
        self._meta = meta
        self._provisional = provisional

    async def write(self, state: StateWriter, meta: Meta) -> None:
        """As `Change`."""
        if self._provisional is None:
            state.apply(self._delta, {**meta, **self._meta})
            return
        delta, more = self._provisional.correct(self._delta)
        state.apply(delta, {**meta, **self._meta, **more})
        self._provisional.written(more)


class Outcome(msgspec.Struct):
    """What has become of a response.  rejected: the first few; count: how many in all.

    arrived: names of what was applied; removed: what is not there (any more).  Both only if they were wanted.
    """

    rejected: list[Rejected] = []
    count: int = 0
    arrived: list[str] = []
    removed: tuple[str, ...] = ()


class _Batch:
    """What is written at once, by name; the last one of a name counts."""

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.resources: dict[str, Workload | Service | Policy] = {}
        self.versions: dict[str, str | None] = {}
        self.removed: list[str] = []
        self.bytes = 0

    def is_full(self) -> bool:
        return len(self.versions) >= MAX_BATCH or self.bytes >= MAX_BATCH_BYTES

    def put(self, name: str, resource: Workload | Service | Policy, version: str | None, size: int) -> None:
        self.resources[name] = resource
        self.versions[name] = version
        self.bytes += size

    def remove(self, name: str) -> None:
        self.removed.append(name)
        self.versions[name] = None

    def move(self, name: str, to: _Batch) -> None:
        """What came under this name goes with another batch."""
        to.put(name, self.resources.pop(name), self.versions.pop(name), 0)

    def change(self, provisional: Provisional | None) -> XdsChange:
        resources = self.resources.values()
        removed = tuple(self.removed)
        is_address = self.type_url == ADDRESS
        delta = Delta(
            workloads=tuple(each for each in resources if isinstance(each, Workload)),
            services=tuple(each for each in resources if isinstance(each, Service)),
            policies=tuple(each for each in resources if isinstance(each, Policy)),
            # Whether an address was a workload or a service, its name does not say.
            removed_workloads=removed if is_address else (),
            removed_services=removed if is_address else (),
            removed_policies=() if is_address else removed,
        )
        versions = dict(version_meta(self.type_url, *entry) for entry in self.versions.items())
        return XdsChange(delta, versions, provisional=provisional if is_address else None)

    def split(self) -> Iterable[_Batch]:
        """Each resource for itself."""
        for name in self.versions:
            single = _Batch(self.type_url)
            if name in self.resources:
                single.put(name, self.resources[name], self.versions[name], 0)
            else:
                single.remove(name)
            yield single


class Applier:
    """Applies one response after the other.  provisional: workloads of this node's pods that nobody has told of."""

    def __init__(self, sink: Sink, rejected: RejectedResources, provisional: Provisional | None = None) -> None:
        self._sink = sink
        self._provisional = provisional
        self._rejected = rejected
        self._roots: frozenset[str] = frozenset()  # namespaces of global policies
        # What policies are to become (with its version), None: nothing, when workloads are told of that list them or do not.
        self._held: dict[str, tuple[Policy, str] | None] = {}

    @property
    def holds(self) -> bool:
        """Whether there are policies to let go."""
        return bool(self._held)

    def forget_held(self) -> None:
        """A new stream begins: the server tells again what has gone or changed."""
        self._held.clear()

    async def let_go(self) -> None:
        """Remove the policies that have gone, and those that hold for all no more from all.  Raises StateError."""
        held, self._held = self._held, {}
        batch = _Batch(AUTHORIZATION)
        for name, later in held.items():
            if later is None:
                batch.remove(name)
            else:
                batch.put(name, *later, 0)
            if batch.is_full():  # without it, less is denied, and by those that stay no more is allowed than before
                await self._write(batch, Outcome())
                batch = _Batch(AUTHORIZATION)
        await self._write(batch, Outcome())

    async def apply(self, response: Response, *, tell_names: bool = False, is_all: bool = False) -> Outcome:
        """Apply what can be used.  Raises StateError if nothing can be written.

        tell_names: fill `arrived` and `removed`.  is_all: what is not in it is gone, as the server was not told what was there.
        """
        outcome = Outcome()
        self._roots = frozenset()
        # Policies of one response belong together, as soon as there is anybody whom they hold for.
        at_once = (
            response.type_url == AUTHORIZATION
            and response.bytes <= MAX_POLICIES_BYTES
            and self._sink.view().counts()["workloads"] > 0
        )
        batch = _Batch(response.type_url)
        # On demand a connection waits for a service, and must not find it without the endpoints that came with it.
        services = _Batch(response.type_url)
        given: set[str] = set()
        turn_bytes = 0
        for index, resource in enumerate(response.resources(), 1):
            name = self._take(resource, batch, outcome)
            if response.removed or is_all:
                given.add(name)
            if tell_names and name in batch.resources:
                outcome.arrived.append(name)
                if isinstance(batch.resources[name], Service):
                    batch.move(name, services)
            turn_bytes += 0 if isinstance(resource, ResourceError) else len(resource.resource.value)
            if index % MAX_BATCH == 0 or turn_bytes >= MAX_BATCH_BYTES:
                turn_bytes = 0
                await asyncio.sleep(0)
            if batch.is_full() and not at_once:
                await self._write(batch, outcome)
                batch = _Batch(response.type_url)
        if services.versions:
            await self._write(batch, outcome)
            batch = services
        removed: Iterable[str] = response.removed
        if is_all and "" not in given:  # which could be the name of anything
            removed = await self._sink.reading(partial(_not_given, response.type_url, given))
        for name in removed:
            self._rejected.clear(response.type_url, name)
            # What is both given and removed stays, as with ztunnel.
            if name in given or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
                continue
            if response.type_url == AUTHORIZATION:
                self._held[name] = None
                continue
            batch.remove(name)
            if batch.is_full() and not at_once:
                await self._write(batch, outcome)
                batch = _Batch(response.type_url)
        await self._write(batch, outcome)
        if tell_names:
            outcome.removed = response.removed
        return outcome

    def _take(self, resource: discovery_pb2.Resource | ResourceError, batch: _Batch, outcome: Outcome) -> str:
        """Into the batch with it, or to the rejected; its name."""
        if isinstance(resource, ResourceError):
            self._reject(batch.type_url, resource.name, resource, outcome)
            if batch.type_url == AUTHORIZATION:
                self._stand_in(resource.name, None, resource, batch)
            return resource.name
        name, raw = resource.name, resource.resource.value
        try:
            found = _decode(batch.type_url, resource)
        except ResourceError as exc:
            self._reject(batch.type_url, name[:MAX_NAME_BYTES], exc, outcome)
            if batch.type_url == AUTHORIZATION:
                self._stand_in(name, raw, exc, batch)
        else:
            self._rejected.clear(batch.type_url, name)
            if isinstance(found, Policy) and self._is_let_go_by_some(found):
                self._held[name] = found, resource.version
                return name
            if isinstance(found, Policy):
                self._held.pop(name, None)
            batch.put(name, found, resource.version, len(raw))
        return name

    def _is_let_go_by_some(self, policy: Policy) -> bool:
        """Whether it held for all of its namespace, or all there are, and is to hold for those alone that list it."""
        if policy.scope is not PolicyScope.WORKLOAD_SELECTOR:
            return False
        before = self._sink.view().policy(policy.key)
        return before is not None and before.scope is not PolicyScope.WORKLOAD_SELECTOR

    def _stand_in(self, name: str, raw: bytes | None, error: ResourceError, batch: _Batch) -> None:
        namespace, slash, rest = name.partition("/")
        too_long = len(name.encode()) > MAX_NAME_BYTES or len(namespace.encode()) > MAX_NAMESPACE_BYTES
        if not slash or not rest or "/" in rest or too_long:
            return  # it is no policy's name, so nobody can have meant a policy by it
        held = self._held.get(name, self._sink.view().policy(name))
        if held is None or (isinstance(held, Policy) and held.stands_in):
            self._held.pop(name, None)
            # Without a version: what the server has is not known here, and is to be sent again.
            batch.put(name, stand_in(name, raw, error, is_root=self._is_root(namespace)), None, len(raw or b""))

    def _is_root(self, namespace: str) -> bool:
        self._roots = self._roots or frozenset((_ROOT_NAMESPACE,)) | self._sink.view().global_namespaces()
        return namespace in self._roots

    async def _write(self, batch: _Batch, outcome: Outcome) -> None:
        if not batch.versions:
            return
        try:
            await self._sink.apply(batch.change(self._provisional))
        except UnstorableError:
            if batch.type_url == AUTHORIZATION:  # which all take effect together, or not at all
                raise
            await self._write_singly(batch, outcome)
        await asyncio.sleep(0)

    async def _write_singly(self, batch: _Batch, outcome: Outcome) -> None:
        """One of them can't be stored, and must not keep the others out."""
        for single in batch.split():
            try:
                await self._sink.apply(single.change(self._provisional))
            except UnstorableError as exc:
                self._reject(batch.type_url, next(iter(single.versions)), ResourceError("state", str(exc)), outcome)

    def _reject(self, type_url: str, name: str, error: ResourceError, outcome: Outcome) -> None:
        rejected = Rejected(name, error.reason, str(error))
        self._rejected.add(type_url, rejected, outcome.count)
        outcome.count += 1
        if len(outcome.rejected) < MAX_NAMED:
            outcome.rejected.append(rejected)


def _not_given(type_url: str, given: set[str], state: StateWriter) -> list[str]:
    return [name for name, _ in known(state, type_url) if name not in given]


def _decode(type_url: str, resource: discovery_pb2.Resource) -> Workload | Service | Policy:
    if resource.resource.type_url != type_url:
        raise ResourceError("wrong_type", f"it is a {resource.resource.type_url[:200]!r} in a response of {type_url!r}")
    found = decode_address(resource.resource.value) if type_url == ADDRESS else decode_policy(resource.resource.value)
    own = found.uid if isinstance(found, Workload) else found.key
    if own != resource.name:
        raise ResourceError("name_mismatch", f"it calls itself {own[:200]!r}")
    return found
