"""What of an xDS source is kept in the store beside the state: versions by name, and whose they are.

Invariant: a version is written and forgotten in the transaction that writes its resource, so that what the server is told on
reconnect, also by a restarted agent, is what there is.  Versions are another server's if the state has since come from another
source: then only names are told, for the server to say what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from nodeproxy.agent.pods import provisional
from nodeproxy.agent.pods.roster import NAMESPACE_PREFIX, POD_PREFIX
from nodeproxy.agent.remembered import SOURCE
from nodeproxy.agent.sources import mesh_index
from nodeproxy.model.delta import Delta
from nodeproxy.state.store import Meta, StateWriter
from nodeproxy.xds.names import ADDRESS, AUTHORIZATION, MESH_NAMESPACE, NODE_POD

# A version is a hash or a counter; one that is longer is kept as "not known".
_MAX_VERSION_BYTES = 256
_PREFIXES = {ADDRESS: "xds/a/", AUTHORIZATION: "xds/p/", NODE_POD: "xds/n/", MESH_NAMESPACE: "xds/m/"}
_KINDS = {ADDRESS: ("workloads", "services"), AUTHORIZATION: ("policies",)}
_KEPT_AS_META = {NODE_POD: POD_PREFIX, MESH_NAMESPACE: NAMESPACE_PREFIX}
# A transaction of so many takes 5 ms.
_FORGOTTEN_AT_ONCE = 1000


def known(state: StateWriter, type_url: str) -> Iterator[tuple[str, str]]:
    """Names and versions of all of a type that there is, whichever source wrote it; nobody writes meanwhile."""
    versions = state.metas(_PREFIXES[type_url])
    end: tuple[str, bytes] = ("", b"")
    name, version = next(versions, end)
    for key in _keys(state, type_url):
        while name and name < key:
            name, version = next(versions, end)
        yield key, version.decode() if name == key else ""


def _keys(state: StateWriter, type_url: str) -> Iterator[str]:
    if type_url in _KEPT_AS_META:
        return (key for key, _ in state.metas(_KEPT_AS_META[type_url]))
    own = {uid for uid, _ in state.metas(provisional.PREFIX)}  # the server knows nothing of these
    return (key for key in merge(*(state.keys(kind) for kind in _KINDS[type_url])) if key not in own)


def version_meta(type_url: str, name: str, version: str | None) -> tuple[str, bytes | None]:
    """An entry for the transaction in which the resource is written or, None, removed."""
    raw = None if version is None else version.encode()
    return _PREFIXES[type_url] + name, raw if raw and len(raw) <= _MAX_VERSION_BYTES else None


def taking_over(state: StateWriter, source: str) -> Iterator[Meta]:
    """What is to be written, one after the other, before `source` writes its first change: versions of others are forgotten.

    Nobody writes while this is read.
    """
    if state.get_meta(SOURCE) != source.encode():
        for prefix in _PREFIXES.values():
            versions = state.metas(prefix)
            while names := [name for name, _ in islice(versions, _FORGOTTEN_AT_ONCE)]:
                yield dict.fromkeys([prefix + name for name in names])
    # Last, so that an agent which dies on the way begins again.
    yield {SOURCE: source.encode(), mesh_index.META: None}  # what is known of a mesh file's pieces is void


class DemandChange:
    """As `Change`: what asking on demand answers and lets go of.  The versions of what goes are forgotten with it."""

    pods = None

    def __init__(self, delta: Delta) -> None:
        self._delta = delta

    async def write(self, state: StateWriter, meta: Meta) -> None:
        """As `Change`."""
        gone = (*self._delta.removed_workloads, *self._delta.removed_services)
        state.apply(self._delta, {**meta, **dict(version_meta(ADDRESS, name, None) for name in gone)})
