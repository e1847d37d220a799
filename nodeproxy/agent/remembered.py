"""What an agent keeps for the one after it, beside the state itself: which pods were wanted, by whom, and when the source last
spoke."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nodeproxy.errors import StateError
from nodeproxy.model.delta import PodSpec
from nodeproxy.state.layout import PARTIAL
from nodeproxy.state.reader import StateReader
from nodeproxy.state.store import Meta, StateWriter

_PODS = "pods"  # keys of the store's meta table
_COMMANDS = "commands"
_RECEIVED = "received"
SOURCE = "source"  # whose the state is

Commands = dict[str, PodSpec | None]


class Remembered:
    """Kept in the state's store, written at once."""

    def __init__(self, store: StateWriter) -> None:
        self._store = store

    @property
    def pods(self) -> tuple[PodSpec, ...] | None:
        """The source's pods; None: no source has ever answered."""
        kept = self._store.get_meta(_PODS)
        return None if kept is None else msgspec.msgpack.decode(kept, type=tuple[PodSpec, ...])

    @property
    def commands(self) -> Commands:
        """What administrators said: uid → pod, or None for "stay out"."""
        return _commands(self._store.get_meta(_COMMANDS))

    @property
    def received(self) -> float:
        """When the source last spoke, seconds since the epoch; 0.0: never."""
        kept = self._store.get_meta(_RECEIVED)
        return 0.0 if kept is None else msgspec.msgpack.decode(kept, type=float)

    @staticmethod
    def source(name: str, pods: tuple[PodSpec, ...] | None, received: float) -> Meta:
        """The source spoke: what is to be kept of that, with the state that it sent.

        pods: None if there is more to come; then the state is not yet this source's alone.
        """
        kept = {_RECEIVED: msgspec.msgpack.encode(received)}
        return kept if pods is None else {**kept, SOURCE: name.encode(), _PODS: msgspec.msgpack.encode(pods), PARTIAL: None}

    def keep_commands(self, commands: Commands) -> None:
        """An administrator spoke."""
        self._store.put_meta({_COMMANDS: msgspec.msgpack.encode(commands)})


def remembered_netns(store: Path) -> set[str]:
    """Paths of the network namespaces that the agent of this store had pods in, as far as it can still be read."""
    try:
        reader = StateReader(store)
    except StateError:
        return set()
    try:
        kept = reader.get_meta(_PODS)
        pods = () if kept is None else msgspec.msgpack.decode(kept, type=tuple[PodSpec, ...])
        return {pod.netns for pod in (*pods, *_commands(reader.get_meta(_COMMANDS)).values()) if pod is not None}
    finally:
        reader.close()


def _commands(kept: bytes | None) -> Commands:
    return {} if kept is None else msgspec.msgpack.decode(kept, type=Commands)
