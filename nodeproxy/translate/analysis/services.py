"""Services and ServiceEntries that can't be reached, or not as they say."""

from __future__ import annotations

from collections.abc import Iterable

from nodeproxy.translate import names, objects
from nodeproxy.translate.analysis.scene import Level, Scene, Subject
from nodeproxy.translate.manifests import Manifest


def check_services(scene: Scene) -> None:
    """All of it."""
    for manifest, service in scene.of(objects.Service):
        if service.spec.type != "ExternalName":
            _selector(scene, manifest, service)
        _ports(scene, manifest, service)
    for manifest, entry in scene.of(objects.ServiceEntry):
        _entry(scene, manifest, entry)
    _hosts(scene)
    _addresses(scene)


def _selector(scene: Scene, manifest: Manifest, service: objects.Service) -> None:
    metadata, spec = service.metadata, service.spec
    if not spec.selector:
        slices = (item.metadata for _, item in scene.of(objects.EndpointSlice))
        if not any(
            (item.namespace, item.labels.get(names.SERVICE_NAME)) == (metadata.namespace, metadata.name) for item in slices
        ):
            scene.tell(
                Level.WARNING,
                "no-endpoints",
                manifest,
                "spec.selector",
                "is missing, and no EndpointSlice names the service",
                f"give it a selector, or an EndpointSlice with the label {names.SERVICE_NAME}={metadata.name}",
            )
        return
    selected = [item for item in scene.selected(metadata.namespace, spec.selector) if item.namespace == metadata.namespace]
    if not selected:
        scene.tell(Level.WARNING, "selector-matches-nothing", manifest, "spec.selector", *nothing(scene, metadata.namespace))
        return
    for index, port in enumerate(spec.ports):
        if isinstance(port.target_port, str):
            _named_target(scene, manifest, f"spec.ports[{index}].targetPort", port.target_port, selected)


def nothing(scene: Scene, namespace: str) -> tuple[str, str]:
    """What to tell of a selector that selects nothing."""
    anything = any(item.namespace == namespace for item in scene.subjects)
    advice = "compare it with the labels of the Pods" if anything else f"no Pod of {namespace} is in these manifests; add them"
    return "selects no Pod, nothing that Pods are made after, and no WorkloadEntry", advice


def _named_target(scene: Scene, manifest: Manifest, field: str, name: str, selected: Iterable[Subject]) -> None:
    without = [item for item in selected if name not in item.named]
    if without:
        message = f"is {name!r}, a name that no port of {without[0].called} has"
        scene.tell(
            Level.ERROR, "target-port-unknown", manifest, field, message, "name the container's port so, or write its number"
        )


def _ports(scene: Scene, manifest: Manifest, service: objects.Service) -> None:
    numbers: dict[tuple[str, int], int] = {}
    known: dict[str, int] = {}
    for index, port in enumerate(service.spec.ports):
        first = numbers.setdefault((port.protocol, port.port), index)
        if first != index:
            message = f"is {port.port} ({port.protocol}), as that of spec.ports[{first}]"
            scene.tell(Level.ERROR, "duplicate-port", manifest, f"spec.ports[{index}].port", message, "remove one of them")
        first = known.setdefault(port.name, index)
        if first != index:
            message = (
                f"is {port.name!r}, as that of spec.ports[{first}]" if port.name else "is missing, and there are several ports"
            )
            scene.tell(
                Level.ERROR, "duplicate-port", manifest, f"spec.ports[{index}].name", message, "give each port its own name"
            )


def _entry(scene: Scene, manifest: Manifest, entry: objects.ServiceEntry) -> None:
    spec = entry.spec
    names_of_ports = {port.name for port in spec.ports}
    for index, endpoint in enumerate(spec.endpoints):
        for name in endpoint.ports:
            if name not in names_of_ports:
                message = f"has {name!r}, which no port of the entry is called"
                field = f"spec.endpoints[{index}].ports"
                scene.tell(Level.ERROR, "endpoint-port-unknown", manifest, field, message, "use the names of spec.ports")
    if spec.workload_selector is not None:
        namespace = entry.metadata.namespace
        if not [item for item in scene.selected(namespace, spec.workload_selector.labels) if item.namespace == namespace]:
            field = "spec.workloadSelector"
            scene.tell(Level.WARNING, "selector-matches-nothing", manifest, field, *nothing(scene, namespace))
    elif spec.resolution == "STATIC" and not spec.endpoints:
        advice = "give it endpoints or a workloadSelector, or another resolution"
        scene.tell(Level.ERROR, "no-endpoints", manifest, "spec.resolution", "is STATIC, and there are no endpoints", advice)
    if spec.resolution in ("DNS", "DNS_ROUND_ROBIN") and not spec.endpoints:
        for index, host in enumerate(spec.hosts):
            if host.startswith("*"):
                message = f"is {host!r}, which DNS can't resolve"
                field = f"spec.hosts[{index}]"
                scene.tell(Level.ERROR, "no-endpoints", manifest, field, message, "name the host, or give endpoints")


def _hosts(scene: Scene) -> None:
    """Of several services of one host in a namespace one counts."""
    counting = {service.key: service.name for service in scene.compilation.everything.services}
    for manifest, entry in scene.of(objects.ServiceEntry):
        for index, host in enumerate(entry.spec.hosts):
            name = counting.get(f"{entry.metadata.namespace}/{host}", entry.metadata.name)
            if name != entry.metadata.name:
                message = f"is {host!r}, which is also that of {name}: a Service, or an older ServiceEntry"
                advice = "remove it from one of them"
                scene.tell(Level.ERROR, "host-taken", manifest, f"spec.hosts[{index}]", message, advice)


def _addresses(scene: Scene) -> None:
    """An address that two have is reached at one of them."""
    seen: dict[str, str] = {}
    services: tuple[type[objects.Service] | type[objects.ServiceEntry], ...] = (objects.Service, objects.ServiceEntry)
    for type_ in services:
        for manifest, resource in scene.of(type_):
            spec = resource.spec
            if isinstance(spec, objects.ServiceSpec):
                field, addresses = "spec.clusterIP", spec.cluster_ips or (spec.cluster_ip,)
            else:
                field, addresses = "spec.addresses", spec.addresses
            called = f"{manifest.kind} {manifest.key}"
            for address in addresses:
                if address not in ("", "None") and seen.setdefault(address, called) != called:
                    message = f"has {address}, as {seen[address]} has"
                    scene.tell(Level.ERROR, "duplicate-address", manifest, field, message, "give each its own address")
    for manifest, pod in scene.of(objects.Pod):
        called = f"{manifest.kind} {manifest.key}"
        if pod.spec.host_network or pod.status.phase in ("Succeeded", "Failed"):
            continue
        for address in dict.fromkeys((pod.status.pod_ip, *(item.ip for item in pod.status.pod_ips))):
            if address and seen.setdefault(address, called) != called:
                message = f"has {address}, as {seen[address]} has"
                scene.tell(
                    Level.ERROR, "duplicate-address", manifest, "status", message, "no two pods of a network share an address"
                )
