"""The entries of a mesh file, read as they come, and what they owe to each other: unique keys, and that what is named is there.

A file may have 100,000 of them.  So an entry is handed on and let go; what stays is its key, and the place of the first that
names each other one.
Invariant: of several errors the same one is told, wherever they are: that of the file's syntax, then of its own keys, then of
each list, then of references.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from nodeproxy.agent.sources import mesh_schema
from nodeproxy.agent.sources.yaml_nodes import Node, Place
from nodeproxy.agent.sources.yaml_stream import Stream, Tree
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import PodSpec
from nodeproxy.model.policy import Policy
from nodeproxy.model.workload import Service, Workload

Resource: TypeAlias = Workload | Service | Policy


class _Kind(NamedTuple):
    called: str
    read: Callable[[Node], Any]
    key: Callable[[Any], str]


_KINDS = {
    "workloads": _Kind("a workload", mesh_schema.workload, lambda workload: workload.uid),
    "services": _Kind("a service", mesh_schema.service, lambda service: service.key),
    "policies": _Kind("a policy", mesh_schema.policy, lambda policy: policy.key),
    "pods": _Kind("a pod", mesh_schema.pod, lambda pod: pod.uid),
}
RESOURCES = ("workloads", "services", "policies")
_SINGULAR = {"workloads": "workload", "services": "service", "policies": "policy"}


class _Mention(NamedTuple):
    """Who was the first to refer to a name."""

    number: int
    place: Place
    owner: str


class Entries:
    """Reads one file.

    keys: of each kind, in the order of the file; key → line.
    pods: those of this node.
    """

    def __init__(
        self, file: str, take: Callable[[str, str, Resource], None], known: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        """take: gets of each resource the name of its list, its key and itself; what it has got is void if `read` raises.
        known: keys of entries that are in the file as well, but not in what will be read."""
        self._file, self._take = file, take
        self.keys: dict[str, dict[str, int]] = {name: dict.fromkeys((known or {}).get(name, ()), 0) for name in _KINDS}
        self.pods: list[PodSpec] = []
        self._netns: dict[str, int] = {}
        self._wrong: dict[str, ConfigError] = {}  # the first entry of a list that can't be read
        self._twice: dict[str, ConfigError] = {}  # the first that was there before
        self._mentions: dict[tuple[str, str], _Mention] = {}  # by list and key

    def read(self, content: bytes) -> bool:
        """Read it; whether each entry stands for itself, without aliases.  Raises ConfigError."""
        stream = Stream(self._file, content)
        root = Node(self._file, stream.read(self._add), "the file")
        fields = root.fields(_KINDS)
        for name in _KINDS:
            fields.items(name, of="")
            for errors in (self._wrong, self._twice):
                if name in errors:
                    raise errors[name]
        if "netns" in self._twice:
            raise self._twice["netns"]
        self._check_mentions()
        return not stream.anchors

    def _add(self, name: str, tree: Tree) -> None:
        kind = _KINDS.get(name)
        if kind is None or name in self._wrong:
            return
        node = Node(self._file, tree, kind.called)
        try:
            entry = kind.read(node)
        except ConfigError as exc:
            self._wrong[name] = exc
            return
        key = kind.key(entry)
        self._check_new(name, name, key, self.keys[name], node)
        if name == "pods":
            self._check_new("netns", "network namespace", entry.netns, self._netns, node)
            self._mention("workloads", key, node, key)
            self.pods.append(entry)
            return
        if name == "workloads":
            for service in entry.services:
                self._mention("services", service, node, key)
            for policy in entry.policies:
                self._mention("policies", policy, node, key)
        self._take(name, key, entry)

    def _check_new(self, errors: str, what: str, key: str, seen: dict[str, int], node: Node) -> None:
        if key not in seen:
            seen[key] = node.place.line
        elif errors not in self._twice:
            reason = f"{what}: {key!r} is there twice, first in line {seen[key]}; remove or rename one"
            self._twice[errors] = node.error(reason)

    def _mention(self, name: str, key: str, node: Node, owner: str) -> None:
        if (name, key) not in self._mentions:
            self._mentions[name, key] = _Mention(len(self._mentions), node.place, owner)

    def _check_mentions(self) -> None:
        unknown = [(name, key) for name, key in self._mentions if key not in self.keys[name]]
        if not unknown:
            return
        # What workloads refer to before what pods do, which is workloads.
        name, key = min(unknown, key=lambda name_key: (name_key[0] == "workloads", self._mentions[name_key].number))
        mention, kind = self._mentions[name, key], _SINGULAR[name]
        close = difflib.get_close_matches(key, self.keys[name], n=1)
        advice = f"did you mean {close[0]}?" if close else f"add the {kind} or remove the name"
        owner_kind = "pod" if name == "workloads" else "workload"
        raise mention.place.error(f"{owner_kind} {mention.owner!r} names the {kind} {key!r}, which is not in the file; {advice}")
