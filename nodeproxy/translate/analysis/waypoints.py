"""Labels that ask for a mesh or a waypoint and do not get it."""

from __future__ import annotations

from collections.abc import Iterator

from nodeproxy.translate import names, objects
from nodeproxy.translate.analysis.scene import Labels, Level, Scene
from nodeproxy.translate.manifests import Manifest
from nodeproxy.translate.waypoints import admits, allowed_namespaces, named, traffic, tunnel

_MODES = ("ambient", "none")


def check_waypoints(scene: Scene) -> None:
    """All of it."""
    for manifest, namespace, labels, purpose in _labelled(scene):
        _mode(scene, manifest, labels)
        key = named(labels, namespace)
        if key:
            _waypoint(scene, manifest, namespace, key, purpose)
    for subject in scene.subjects:
        if subject.host_network and subject.labels.get(names.DATAPLANE_MODE) == names.AMBIENT:
            message = "asks for the mesh, and the pod is in the node's network"
            advice = "remove hostNetwork or the label"
            scene.tell(Level.ERROR, "host-network", subject.manifest, field_of(names.DATAPLANE_MODE), message, advice)


def field_of(label: str) -> str:
    """The path of a label."""
    return f"metadata.labels[{label}]"


def waypoint_of(scene: Scene, namespace: str, labels: Labels) -> str:
    """The key of the waypoint that a service with these labels asks for, itself or by its namespace; "" if none."""
    key = named(labels, namespace)
    return (named(scene.labels_of(namespace), namespace) if key is None else key) or ""


def _labelled(scene: Scene) -> Iterator[tuple[Manifest, str, Labels, str]]:
    """All that may have a label, its namespace, its labels, and what traffic a waypoint would carry for it ("": any)."""
    for manifest, home in scene.of(objects.Namespace):
        yield manifest, home.metadata.name, home.metadata.labels, ""
    for manifest, service in scene.of(objects.Service):
        yield manifest, service.metadata.namespace, service.metadata.labels, "service"
    for manifest, entry in scene.of(objects.ServiceEntry):
        yield manifest, entry.metadata.namespace, entry.metadata.labels, "service"
    for subject in scene.subjects:
        yield subject.manifest, subject.namespace, subject.labels, "workload"


def _mode(scene: Scene, manifest: Manifest, labels: Labels) -> None:
    mode = labels.get(names.DATAPLANE_MODE)
    if mode is not None and mode not in _MODES:
        message = f"is {mode!r}, neither {' nor '.join(_MODES)}"
        scene.tell(
            Level.ERROR, "mode-unknown", manifest, field_of(names.DATAPLANE_MODE), message, "write ambient to be in the mesh"
        )


def _waypoint(scene: Scene, manifest: Manifest, namespace: str, key: str, purpose: str) -> None:
    field = field_of(names.USE_WAYPOINT)
    gateway = scene.find(objects.Gateway, key)
    if gateway is None:
        message = f"names the Gateway {key}, which is not in these manifests"
        scene.tell(
            Level.WARNING, "waypoint-missing", manifest, field, message, "add it; without it, connections go there directly"
        )
        return
    gateway_class = scene.find(objects.GatewayClass, gateway.spec.gateway_class_name)
    carried = traffic(gateway, gateway_class)
    if purpose and carried not in (purpose, "all"):
        message = f"names the Gateway {key}, which is for {carried} traffic: this is a {purpose}"
        advice = f"give the Gateway the label {names.WAYPOINT_FOR}={purpose} or =all"
        scene.tell(Level.ERROR, "waypoint-purpose", manifest, field, message, advice)
    allowed = allowed_namespaces(gateway, tunnel(gateway, gateway_class))
    if not admits(allowed, gateway.metadata.namespace, namespace, scene.labels_of(namespace)):
        message = f"names the Gateway {key}, which does not admit the namespace {namespace}"
        advice = "see allowedRoutes of its listener"
        scene.tell(Level.ERROR, "waypoint-closed", manifest, field, message, advice)
