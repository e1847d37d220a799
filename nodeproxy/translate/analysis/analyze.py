"""All checks of manifests that can't do what they say."""

from __future__ import annotations

from nodeproxy.translate.analysis.policies import check_policies
from nodeproxy.translate.analysis.scene import Diagnosis, Level, Scene
from nodeproxy.translate.analysis.services import check_services
from nodeproxy.translate.analysis.waypoints import check_waypoints
from nodeproxy.translate.compilation import Compilation
from nodeproxy.translate.settings import MeshSettings

_POLICIES = frozenset({"AuthorizationPolicy", "PeerAuthentication"})
# A cluster fills these in, and a manifest need not have them.
_FILLED_IN = frozenset({"spec.clusterIP", "status.addresses", "status.podIPs", "status.conditions", "kind", "spec.type"})


def analyze(compilation: Compilation, settings: MeshSettings) -> list[Diagnosis]:
    """What of the manifests can't do what it says, in the order of files and lines."""
    scene = Scene(compilation, settings)
    _not_understood(scene)
    check_services(scene)
    check_waypoints(scene)
    check_policies(scene)
    return sorted(set(scene.told))


def _not_understood(scene: Scene) -> None:
    """What translation noted, but what waypoints enforce (`policies` looks whether there is one) and what only TCP concerns."""
    for finding in scene.compilation.findings:
        note = finding.note
        of_waypoints = note.message == "is enforced by waypoints"
        if note.field in _FILLED_IN or note.field.endswith(".protocol") or of_waypoints:
            continue
        level = Level.ERROR if note.kind in _POLICIES and note.field != "metadata.name" else Level.WARNING
        where = (finding.file, finding.line, level, "not-understood", note.kind, note.key)
        scene.told.append(Diagnosis(*where, note.field, note.message, note.consequence))
