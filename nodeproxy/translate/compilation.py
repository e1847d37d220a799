"""Manifests → the mesh that they mean, and what of them was not understood.

Invariant: each of what is told has the place of what it is about.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nodeproxy.model.delta import Everything
from nodeproxy.translate import objects
from nodeproxy.translate.foreign import foreign, note_unknown_fields
from nodeproxy.translate.manifests import Manifest
from nodeproxy.translate.notes import Note, Notes
from nodeproxy.translate.pods import addresses_of, has_ended
from nodeproxy.translate.settings import MeshSettings
from nodeproxy.translate.translator import Translator


class Finding(msgspec.Struct, frozen=True, order=True):
    """A note, and where it is about."""

    file: str
    line: int
    note: Note

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.note}"


class Compilation(msgspec.Struct, frozen=True):
    """What manifests mean.

    findings: what was not understood, in the order of files and lines.
    manifests: those that count, by kind and key.  others: those of kinds that are not read.
    """

    everything: Everything
    findings: tuple[Finding, ...]
    manifests: dict[tuple[str, str], Manifest]
    others: tuple[Manifest, ...]


def compile_manifests(manifests: Iterable[Manifest], settings: MeshSettings) -> Compilation:
    """The mesh that these manifests mean together; of one that is there twice, the later."""
    translator = Translator(settings)
    known: dict[tuple[str, str], Manifest] = {}
    others: list[Manifest] = []
    findings: list[Finding] = []

    def tell(manifest: Manifest, notes: Iterable[Note]) -> None:
        findings.extend(Finding(manifest.place.file, manifest.place.line(note.field), note) for note in notes)

    for manifest in manifests:
        notes = Notes(manifest.kind, manifest.key)
        if manifest.known is None:
            others.append(manifest)
            told = foreign(manifest.group, manifest.kind)
            if told is not None:
                notes.add("kind", *told)
            tell(manifest, notes.all())
            continue
        former = known.get((manifest.kind, manifest.key))
        if former is not None:
            where = f"{former.place.file}:{former.place.line()}"
            notes.add("metadata.name", f"is that of the one in {where}", "this one counts")
            tell(manifest, notes.all())
        known[manifest.kind, manifest.key] = manifest
    for (kind, key), manifest in known.items():
        notes = Notes(kind, key)
        note_unknown_fields(kind, manifest.raw, notes)
        _note_missing(manifest.resource, notes)
        tell(manifest, notes.all())
        translator.apply(kind, key, manifest.resource)
    for note in translator.notes():
        tell(known[note.kind, note.key], (note,))
    delta = translator.take()
    return Compilation(Everything(delta.workloads, delta.services, delta.policies), tuple(sorted(findings)), known, tuple(others))


def _note_missing(resource: objects.Resource | None, notes: Notes) -> None:
    """What a cluster would have filled in."""
    if isinstance(resource, objects.Pod):
        if not has_ended(resource) and not addresses_of(resource):
            notes.add("status.podIPs", "has no address that can be read", "no workload is made of it: nobody can reach it yet")
        elif not any(condition.type == "Ready" for condition in resource.status.conditions):
            notes.add("status.conditions", "does not say whether it is Ready", "it is unhealthy, and services do not use it")
    elif isinstance(resource, objects.Service):
        spec = resource.spec
        if spec.type != "ExternalName" and not spec.cluster_ip and not spec.cluster_ips:
            notes.add("spec.clusterIP", "is missing: a cluster assigns one", "the service is reached at its endpoints alone")
