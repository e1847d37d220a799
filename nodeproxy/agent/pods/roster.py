"""The pods of this node as nodeproxy's controller tells them: which there are, and which of them belong into the mesh and why.

Kept in the state's store, each in the transaction that writes its version, so that an agent which is restarted while the
controller is away knows whom to keep in.
Invariant: what stands here is what the store has; nobody is told of a pod before it is written.
It must not know where pods run, nor how they are put into the mesh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from nodeproxy.model.node_pod import MeshNamespace, NodePod
from nodeproxy.state.store import Meta, StateWriter

# Prefixes of keys of the store's meta table; what follows is a resource's name.
POD_PREFIX = "node/pod/"
NAMESPACE_PREFIX = "node/namespace/"
_RECEIVED = "node/received"

Listener = Callable[[frozenset[str]], None]


def pod_meta(name: str, pod: NodePod | None) -> tuple[str, bytes | None]:
    """How a pod is written, or forgotten."""
    return POD_PREFIX + name, None if pod is None else msgspec.msgpack.encode(pod)


def namespace_meta(name: str, namespace: MeshNamespace | None) -> tuple[str, bytes | None]:
    """How a namespace is written, or forgotten."""
    return NAMESPACE_PREFIX + name, None if namespace is None else msgspec.msgpack.encode(namespace)


class Roster:
    """`received`: whether a controller has ever told all pods of the node; before that, nobody is outside the mesh for sure."""

    SETTLED: Meta = {_RECEIVED: b"1"}  # to be written when all were told

    def __init__(self, store: StateWriter) -> None:
        self.received = store.get_meta(_RECEIVED) is not None
        decode = msgspec.msgpack.decode
        self._pods = {name: decode(raw, type=NodePod) for name, raw in store.metas(POD_PREFIX)}
        self._namespaces = {name: decode(raw, type=MeshNamespace) for name, raw in store.metas(NAMESPACE_PREFIX)}
        self._listeners: list[Listener] = []
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    # ── what it says ──

    def pod(self, namespace: str, name: str) -> NodePod | None:
        """The pod, if the controller has told of it and it has not ended."""
        return self._pods.get(f"{namespace}/{name}")

    def get(self, key: str) -> NodePod | None:
        """The pod "namespace/name"."""
        return self._pods.get(key)

    def pods(self) -> list[NodePod]:
        """All of this node, in the mesh or not, by name."""
        return [self._pods[key] for key in sorted(self._pods)]

    def namespaces(self) -> frozenset[str]:
        """The namespaces in which pods may be in the mesh."""
        return frozenset(self._namespaces)

    def listen(self, listener: Listener) -> None:
        """Have `listener` called after each change, with the keys of the pods that changed; none: something else did."""
        self._listeners.append(listener)

    async def wait(self, namespace: str, name: str, pod_uid: str, timeout_s: float) -> NodePod | None:
        """The pod of that uid, as soon as the controller has told of it; None if it does not in time."""
        key = f"{namespace}/{name}"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (pod := self._pods.get(key)) is None or pod.pod_uid != pod_uid:
            told: asyncio.Future[None] = loop.create_future()
            waiting = self._waiting.setdefault(key, set())
            waiting.add(told)
            try:
                async with asyncio.timeout_at(deadline):
                    await told
            except TimeoutError:
                return None
            finally:
                waiting.discard(told)
                if not waiting and self._waiting.get(key) is waiting:
                    del self._waiting[key]
        return pod

    # ── what it is told ──

    def pods_written(self, pods: Iterable[NodePod], removed: Iterable[str]) -> None:
        """These are in the store now, and those of these names are not any more."""
        changed = set()
        for name in removed:
            if self._pods.pop(name, None) is not None:
                changed.add(name)
        for pod in pods:
            if self._pods.get(pod.key) != pod:
                self._pods[pod.key] = pod
                changed.add(pod.key)
        for key in changed:
            for told in self._waiting.pop(key, ()):
                if not told.done():
                    told.set_result(None)
        if changed:
            self._tell(frozenset(changed))

    def namespaces_written(self, namespaces: Iterable[MeshNamespace], removed: Iterable[str]) -> None:
        """The same of namespaces."""
        before = self.namespaces()
        for name in removed:
            self._namespaces.pop(name, None)
        self._namespaces.update({namespace.name: namespace for namespace in namespaces})
        if self.namespaces() != before:
            self._tell(frozenset())

    def settled(self) -> None:
        """All were told, and `SETTLED` is in the store."""
        if not self.received:
            self.received = True
            self._tell(frozenset())

    def _tell(self, changed: frozenset[str]) -> None:
        for listener in self._listeners:
            listener(changed)
