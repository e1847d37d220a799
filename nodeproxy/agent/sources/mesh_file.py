"""A mesh file: the whole mesh in one YAML file, the source that needs no control plane.

Invariant: a file is taken whole or refused whole, with FILE:LINE:COLUMN, the reason, and what to do.  What it refers to within
itself must be there: a policy or service whose name is mistyped would silently not hold.  Knows nothing of when to read it
(`mesh_watch`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from nodeproxy.agent.sources import mesh_schema
from nodeproxy.agent.sources.yaml_nodes import MAX_FILE_BYTES, Fields, Node, read_yaml
from nodeproxy.errors import ConfigError
from nodeproxy.model.delta import Everything, PodSpec

_T = TypeVar("_T")
_Entry = tuple[Node, _T]


class Mesh(msgspec.Struct, frozen=True):
    """All that a mesh file says: the state, and the pods of this node to enrol."""

    everything: Everything
    pods: tuple[PodSpec, ...] = ()


def load_mesh(path: Path | str) -> Mesh:
    """Read a mesh file.  Raises ConfigError, "FILE:LINE:COLUMN: reason; what to do"."""
    return parse_mesh(path, read_mesh(path))


def read_mesh(path: Path | str) -> bytes:
    """The file's content.  Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}; does it exist, and may this user read it?") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; is it a mesh file?")
    return content


def parse_mesh(path: Path | str, content: bytes) -> Mesh:
    """Read a mesh file's content; path: for errors.  Raises ConfigError."""
    fields = read_yaml(path, content).fields(("workloads", "services", "policies", "pods"))
    workloads = _entries(fields, "workloads", "a workload", mesh_schema.workload, lambda workload: workload.uid)
    services = _entries(fields, "services", "a service", mesh_schema.service, lambda service: service.key)
    policies = _entries(fields, "policies", "a policy", mesh_schema.policy, lambda policy: policy.key)
    pods = _entries(fields, "pods", "a pod", mesh_schema.pod, lambda pod: pod.uid)
    _check_unique(pods, "network namespace", lambda pod: pod.netns)
    uids = {workload.uid for _, workload in workloads}
    service_keys = {service.key for _, service in services}
    policy_keys = {policy.key for _, policy in policies}
    for node, workload in workloads:
        _check_known(node, "workload", workload.uid, "service", workload.services, service_keys)
        _check_known(node, "workload", workload.uid, "policy", workload.policies, policy_keys)
    for node, pod in pods:
        _check_known(node, "pod", pod.uid, "workload", (pod.uid,), uids)
    return Mesh(
        Everything(
            workloads=tuple(workload for _, workload in workloads),
            services=tuple(service for _, service in services),
            policies=tuple(policy for _, policy in policies),
        ),
        tuple(pod for _, pod in pods),
    )


def _entries(fields: Fields, name: str, what: str, read: Callable[[Node], _T], key: Callable[[_T], str]) -> list[_Entry[_T]]:
    entries = [(node, read(node)) for node in fields.items(name, of=what)]
    _check_unique(entries, name, key)
    return entries


def _check_unique(entries: Iterable[_Entry[_T]], what: str, key: Callable[[_T], str]) -> None:
    seen: dict[str, int] = {}
    for node, value in entries:
        if key(value) in seen:
            raise node.error(f"{what}: {key(value)!r} is there twice, first in line {seen[key(value)]}; remove or rename one")
        seen[key(value)] = node.line


def _check_known(node: Node, owner_kind: str, owner: str, kind: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"add the {kind} or remove the name"
            raise node.error(f"{owner_kind} {owner!r} names the {kind} {name!r}, which is not in the file; {advice}")
