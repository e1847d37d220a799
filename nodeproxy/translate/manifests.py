"""Manifests in files: YAML documents read to resources, with the place of whatever will have to be told about them.

Invariant: what an API server would refuse is refused, with FILE:LINE and what to do: a policy whose `rules` are misspelt must not
become one without rules.  Knows the form of resources, and nothing of what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from nodeproxy.errors import ConfigError
from nodeproxy.translate import objects
from nodeproxy.translate.notes import quoted
from nodeproxy.translate.objects import KINDS, Kind, Resource

MAX_FILE_BYTES = 64 << 20  # a mistake such as naming a disk image
_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_REPEATED = 100_000  # parts of a document that aliases stand for; an API server takes 1.5 MiB
_MAX_PORT = 65535
_NAMESPACED_GROUPS = frozenset({"apps", "batch"})
_PATH = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\[([^\]]*)\]")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,253}")  # of any kind; Kubernetes takes fewer


class Place:
    """Where a resource is written."""

    __slots__ = ("_node", "file")

    def __init__(self, file: str, node: Any) -> None:
        self.file, self._node = file, node

    def line(self, field: str = "") -> int:
        """The line of a field of it, "spec.rules[0].to"; of what it would be in, if it is not there."""
        node = self._node
        for match in _STEP.finditer(field):
            found = _step(node, match[1] or match[3], match[2])
            if found is None:
                break
            node = found
        return int(node.start_mark.line) + 1

    def error(self, field: str, reason: str) -> ConfigError:
        """What to raise for a field of it."""
        return ConfigError(f"{self.file}:{self.line(field)}: {reason}")


class Manifest(msgspec.Struct, frozen=True, eq=False):
    """One resource of a file.

    group, kind: as it says.  known: None if nothing here reads such resources; then `resource` is None too.
    key: "namespace/name", or "name" for what has no namespace, or may have none.
    raw: the whole of it, as lists and maps.
    """

    place: Place
    group: str
    kind: str
    key: str
    known: Kind | None
    resource: Resource | None
    raw: dict[str, Any]


def files_of(names: Iterable[str]) -> Iterator[Path]:
    """The files that these names mean: a directory is all manifests in and below it.  "-" stays.  Raises ConfigError."""
    for name in names:
        path = Path(name)
        if name != "-" and path.is_dir():
            found = sorted(item for item in path.rglob("*") if item.suffix in _SUFFIXES and item.is_file())
            if not found:
                raise ConfigError(f"{name}: no {', '.join(_SUFFIXES)} file is in this directory; name another one")
            yield from found
        else:
            yield path


def read_file(path: Path) -> bytes:
    """A file's content.  Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}; does it exist, and may this user read it?") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; is it a manifest?")
    return content


def read_manifests(file: str, content: bytes, namespace: str = "default") -> list[Manifest]:
    """The resources of one file, those in lists too.  namespace: of those that name none.  Raises ConfigError."""
    found: list[Manifest] = []
    try:
        for node in yaml.compose_all(content, Loader=_Loader):
            found += _documents(file, node, namespace)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(exc, "problem", None) or str(exc).splitlines()[0]
        advice = "give what `helm template` makes of it" if b"{{" in content else "mend it"
        raise ConfigError(f"{file}{line}: no YAML: {problem}; {advice}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{file}: nested too deeply; no resource of Kubernetes is") from exc
    return found


# ── from YAML to resources ────────────────────────────────────────────────────────────────────────


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: a time is text, and so is 80:8080."""


_IMPLICIT: Any = yaml.CSafeLoader.yaml_implicit_resolvers
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))]
    for first, resolvers in _IMPLICIT.items()
}
for _tag, _pattern, _first in (
    ("int", r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o?[0-7]+)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _documents(file: str, node: Any, namespace: str) -> Iterator[Manifest]:
    place = Place(file, node)
    _check_keys(file, node)
    value = _construct(file, node)
    if value is None:
        return
    yield from _resources(place, value, namespace, "", "")


def _resources(place: Place, value: Any, namespace: str, version: str, kind: str) -> Iterator[Manifest]:
    """One resource, or those of a list; version, kind: what items of a typed list are, for they need not say."""
    if not isinstance(value, dict):
        raise place.error("", "a resource must be a map with apiVersion, kind and metadata; is this a manifest?")
    version, kind = value.get("apiVersion", version), value.get("kind", kind)
    for name, text in (("apiVersion", version), ("kind", kind)):
        if not isinstance(text, str) or not text:
            raise place.error(name, f"a resource needs {name}, a text; add it")
    if kind.endswith("List") and "items" in value:
        items = value["items"] if value["items"] is not None else []
        if not isinstance(items, list):
            raise place.error("items", "items must be a list")
        of = kind.removesuffix("List")
        for index, item in enumerate(items):
            inner = Place(place.file, _step(_step(place._node, "items", None), None, str(index)))
            yield from _resources(inner, item, namespace, version if of else "", of)
        return
    yield _resource(place, value, namespace, version, kind)


def _resource(place: Place, value: dict[str, Any], namespace: str, version: str, kind: str) -> Manifest:
    group = version.rpartition("/")[0]
    known = KINDS.get(kind)
    if known is not None and known.group != group:
        known = None
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        raise place.error("metadata", f"{kind}: metadata must be a map with a name; add it")
    name = metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise place.error("metadata.name", f"{kind}: metadata.name must be a name, not {quoted(name)}; give it one")
    home = metadata.get("namespace") or namespace
    if not isinstance(home, str) or not _NAME.fullmatch(home):
        raise place.error("metadata.namespace", f"{kind} {name}: metadata.namespace must be a name, not {quoted(home)}")
    if not (known.namespaced if known is not None else metadata.get("namespace") or group in _NAMESPACED_GROUPS):
        home = ""
    key = f"{home}/{name}" if home else name
    resource = None if known is None else _convert(place, known, value, {"name": name, "namespace": home}, f"{kind} {key}")
    return Manifest(place, group, kind, key, known, resource, value)


def _convert(place: Place, kind: Kind, value: dict[str, Any], identity: dict[str, str], called: str) -> Resource:
    raw = isinstance(value.get("spec"), dict) and kind.name in ("AuthorizationPolicy", "PeerAuthentication")
    # As for Kubernetes, null is the same as nothing.  In a policy it stays, for its reader tells what it takes it for.
    cleaned = {key: item if raw and key == "spec" else _without_nulls(item) for key, item in value.items() if item is not None}
    cleaned["metadata"] = {**cleaned["metadata"], **identity}
    try:
        resource = msgspec.convert(cleaned, kind.type)
    except msgspec.ValidationError as exc:
        match = _PATH.fullmatch(str(exc))
        reason, field = (match[1], match[2].lstrip(".")) if match else (str(exc), "")
        raise place.error(field, f"{called}: {field}: {reason[:1].lower()}{reason[1:]}; an API server refuses that") from exc
    for field, port in _ports(resource):
        if not 1 <= port <= _MAX_PORT:
            raise place.error(field, f"{called}: {field}: {quoted(port)} is no port; write one from 1 to {_MAX_PORT}")
    if isinstance(resource, objects.ServiceEntry):
        for index, host in enumerate(resource.spec.hosts):
            if not host or "/" in host:
                raise place.error(f"spec.hosts[{index}]", f"{called}: spec.hosts[{index}]: {quoted(host)} is no host name")
    return resource


def _ports(resource: Resource) -> Iterator[tuple[str, int]]:
    if isinstance(resource, objects.Service):
        for index, port in enumerate(resource.spec.ports):
            yield f"spec.ports[{index}].port", port.port
            if isinstance(port.target_port, int) and port.target_port:
                yield f"spec.ports[{index}].targetPort", port.target_port
    elif isinstance(resource, objects.ServiceEntry):
        for index, entry in enumerate(resource.spec.ports):
            yield f"spec.ports[{index}].number", entry.number
            if entry.target_port:
                yield f"spec.ports[{index}].targetPort", entry.target_port
        for index, endpoint in enumerate(resource.spec.endpoints):
            yield from ((f"spec.endpoints[{index}].ports", port) for port in endpoint.ports.values())
    elif isinstance(resource, objects.WorkloadEntry):
        yield from (("spec.ports", port) for port in resource.spec.ports.values())
    elif isinstance(resource, objects.EndpointSlice):
        for index, item in enumerate(resource.ports or ()):
            if item.port is not None:
                yield f"ports[{index}].port", item.port
    elif isinstance(resource, objects.Pod):
        for index, container in enumerate((*resource.spec.containers, *resource.spec.init_containers)):
            yield from ((f"spec.containers[{index}].ports", port.container_port) for port in container.ports)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


# ── YAML's nodes ──────────────────────────────────────────────────────────────────────────────────


def _construct(file: str, node: Any) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except ValueError as exc:  # a number that is none, such as 09
        raise ConfigError(f"{file}:{node.start_mark.line + 1}: in this document: {exc}; put it in quotes") from exc
    finally:
        loader.dispose()


def _check_keys(file: str, root: Any) -> None:
    """Refuse a key that a map has twice: of two `rules` one would silently not hold; and aliases that stand for far more than is
    written, as a reader of the resource would never come to an end with them."""
    seen: set[int] = set()
    stack = [root]
    repeated = 0
    while stack:
        node = stack.pop()
        if id(node) in seen:
            repeated += 1
            if repeated > _MAX_REPEATED:
                where = f"{file}:{node.start_mark.line + 1}"
                raise ConfigError(f"{where}: aliases repeat this too often; write it out, or less of it")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys and key.tag != "tag:yaml.org,2002:merge":
                        raise ConfigError(f"{file}:{key.start_mark.line + 1}: the key {key.value!r} is there twice; remove one")
                    keys.add(key.value)
                stack.append(value)
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value


def _step(node: Any, name: str | None, index: str | None) -> Any:
    """The node of a key or item; None if it is not there."""
    if name is not None and isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.value == name), None)
    if index is not None and isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
        return node.value[int(index)]
    return None
