"""What the checks of `nodeproxy analyze` look at: manifests, what policies and services select, and what is told.

An *error* can't work whatever else there is in the cluster.  A *warning* can't work with what is in these manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from nodeproxy.model.workload import Protocol
from nodeproxy.translate import names, objects
from nodeproxy.translate.compilation import Compilation
from nodeproxy.translate.manifests import Manifest
from nodeproxy.translate.pods import Template, shape_of
from nodeproxy.translate.selection import selects
from nodeproxy.translate.settings import MeshSettings

_R = TypeVar("_R", bound=objects.Resource)
Labels = Mapping[str, str]


class Level(StrEnum):
    """How sure it is."""

    ERROR = "error"
    WARNING = "warning"


class Diagnosis(msgspec.Struct, frozen=True, order=True):
    """One thing that can't do what it says.  code: what kind of thing, for programs.  advice: what to do."""

    file: str
    line: int
    level: Level
    code: str
    kind: str
    key: str
    field: str
    message: str
    advice: str


class Subject(msgspec.Struct, frozen=True, eq=False):
    """What policies and services select: a Pod, what Pods are made after, or a WorkloadEntry.

    in_mesh: None where its namespace's labels are not known.
    ports: numbers that its containers say they have.  named: those with names.
    """

    manifest: Manifest
    namespace: str
    labels: dict[str, str]
    account: str = "default"
    in_mesh: bool | None = None
    host_network: bool = False
    ports: frozenset[int] = frozenset()
    named: dict[str, int] = {}

    @property
    def called(self) -> str:
        """Kind and key."""
        return f"{self.manifest.kind} {self.manifest.key}"


class Scene:
    """All of it."""

    def __init__(self, compilation: Compilation, settings: MeshSettings) -> None:
        self.compilation = compilation
        self.settings = settings
        self.told: list[Diagnosis] = []
        self.namespace_labels = {item.metadata.name: item.metadata.labels for _, item in self.of(objects.Namespace)}
        self.subjects = [*self._pods(), *self._templates(), *self._machines()]
        self.services = [item for _, item in self.of(objects.Service) if item.spec.type != "ExternalName"]
        self.namespaces = {manifest.key.partition("/")[0] for kind, manifest in self._all() if kind != "Node"}
        self.accounts = {(item.metadata.namespace, item.metadata.name) for _, item in self.of(objects.ServiceAccount)}
        self.accounts |= {(item.namespace, item.account) for item in self.subjects}

    def tell(self, level: Level, code: str, manifest: Manifest, field: str, message: str, advice: str) -> None:
        """Something can't do what it says."""
        place = manifest.place
        found = Diagnosis(place.file, place.line(field), level, code, manifest.kind, manifest.key, field, message, advice)
        self.told.append(found)

    def of(self, type_: type[_R]) -> Iterator[tuple[Manifest, _R]]:
        """The manifests of a kind, with their resources."""
        for (kind, _), manifest in self.compilation.manifests.items():
            if kind == type_.__name__ and isinstance(manifest.resource, type_):
                yield manifest, manifest.resource

    def find(self, type_: type[_R], key: str) -> _R | None:
        """The resource of a kind and key."""
        manifest = self.compilation.manifests.get((type_.__name__, key))
        return manifest.resource if manifest is not None and isinstance(manifest.resource, type_) else None

    def selected(self, namespace: str, selector: Labels) -> list[Subject]:
        """Whom a selector finds; in the root namespace it is asked of every one."""
        everywhere = namespace == self.settings.root_namespace
        return [item for item in self.subjects if (everywhere or item.namespace == namespace) and selects(selector, item.labels)]

    def services_of(self, subject: Subject) -> list[objects.Service]:
        """The services that have it as an endpoint."""
        return [
            item
            for item in self.services
            if item.metadata.namespace == subject.namespace and selects(item.spec.selector, subject.labels)
        ]

    def labels_of(self, namespace: str) -> dict[str, str]:
        """A namespace's labels, as far as they are known."""
        return self.namespace_labels.get(namespace, {})

    # ── subjects ──────────────────────────────────────────────────────────────────────────────────

    def _all(self) -> Iterator[tuple[str, Manifest]]:
        for (kind, _), manifest in self.compilation.manifests.items():
            yield kind, manifest

    def _pods(self) -> Iterator[Subject]:
        for manifest, pod in self.of(objects.Pod):
            if pod.status.phase not in ("Succeeded", "Failed"):
                yield self._subject(manifest, pod.metadata.namespace, pod)

    def _templates(self) -> Iterator[Subject]:
        """Deployments and their like: what a Pod of them will be."""
        for manifest in self.compilation.others:
            if manifest.group not in ("apps", "batch"):
                continue
            spec: Any = manifest.raw.get("spec")
            if isinstance(spec, dict) and isinstance(spec.get("jobTemplate"), dict):
                spec = spec["jobTemplate"].get("spec")
            template = spec.get("template") if isinstance(spec, dict) else None
            try:
                pod = msgspec.convert(template, objects.Pod)
            except msgspec.ValidationError:
                continue  # an API server refuses it, and says why better than could be said here
            yield self._subject(manifest, manifest.key.partition("/")[0], pod)

    def _subject(self, manifest: Manifest, namespace: str, pod: objects.Pod) -> Subject:
        template = Template(namespace, shape_of(pod))
        protocol, _ = template.protocol(self.labels_of(namespace))
        known = namespace in self.namespace_labels or names.DATAPLANE_MODE in template.labels
        return Subject(
            manifest=manifest,
            namespace=namespace,
            labels=template.labels,
            account=template.shape.service_account or "default",
            in_mesh=protocol is Protocol.HBONE if known or protocol is Protocol.HBONE else None,
            host_network=pod.spec.host_network,
            ports=frozenset(port.container_port for item in pod.spec.containers for port in item.ports),
            named=template.ports,
        )

    def _machines(self) -> Iterator[Subject]:
        for manifest, entry in self.of(objects.WorkloadEntry):
            labels = {**entry.spec.labels, **entry.metadata.labels}
            yield Subject(
                manifest=manifest,
                namespace=entry.metadata.namespace,
                labels=labels,
                account=entry.spec.service_account or "default",
                ports=frozenset(entry.spec.ports.values()),
                named=entry.spec.ports,
            )
