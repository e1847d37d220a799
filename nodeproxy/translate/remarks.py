"""What of a resource that is no policy has no meaning here: the notes of Services, ServiceEntries, Gateways and the like.

Invariant: only what somebody wrote on purpose is noted; what Kubernetes fills in by itself, and what concerns no connection
between pods, is not.  Knows one resource at a time: what resources owe to each other is `nodeproxy analyze`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodeproxy.policy.address import canonical_ip
from nodeproxy.translate import names, objects
from nodeproxy.translate.notes import Note, Notes, quoted
from nodeproxy.translate.services import is_host

_PASSED = "connections to it pass through as to any address"


def remarks(kind: str, key: str, resource: objects.Resource) -> tuple[Note, ...]:
    """The notes of a resource, if it has any."""
    remark = _REMARKS.get(kind)
    if remark is None:
        return ()
    notes = Notes(kind, key)
    remark(resource, notes)
    return notes.all()


def _service(service: objects.Service, notes: Notes) -> None:
    spec = service.spec
    if spec.type == "ExternalName":
        notes.add("spec.type", "is ExternalName, a name in DNS alone", "connections go to what the name resolves to")
        return
    for index, port in enumerate(spec.ports):
        if port.protocol in ("UDP", "SCTP"):
            notes.add(f"spec.ports[{index}].protocol", f"is {port.protocol}", "the mesh carries TCP; the port is left out")


def _service_entry(entry: objects.ServiceEntry, notes: Notes) -> None:
    spec = entry.spec
    for index, host in enumerate(spec.hosts):
        if not is_host(host):
            notes.add(f"spec.hosts[{index}]", f"is {quoted(host)}, no host name", "it is left out")
    for index, text in enumerate(spec.addresses):
        address, slash, bits = text.partition("/")
        if not _is_address(address):
            notes.add(f"spec.addresses[{index}]", f"is {quoted(text)}, no address", "it is left out")
        elif slash and bits != ("128" if ":" in address else "32"):
            notes.add(f"spec.addresses[{index}]", f"is {quoted(text)}, a range", f"it is left out: {_PASSED}")
    for index, port in enumerate(spec.ports):
        if port.protocol.upper() in ("UDP", "SCTP"):
            notes.add(f"spec.ports[{index}].protocol", f"is {port.protocol}", "the mesh carries TCP; the port is left out")
    if spec.export_to and spec.export_to != ("*",):
        notes.add("spec.exportTo", "is not enforced in ambient meshes", "every namespace sees the hosts")
    for index, name in enumerate(spec.subject_alt_names):
        if not name.startswith("spiffe://"):
            notes.add(
                f"spec.subjectAltNames[{index}]",
                f"is {quoted(name)}, no SPIFFE ID",
                "it is left out: no peer in the mesh shows it",
            )


def _gateway(gateway: objects.Gateway, notes: Notes) -> None:
    if names.NETWORK in gateway.metadata.labels:
        notes.add(f"metadata.labels[{names.NETWORK}]", "makes it the gateway of a network", "other networks are not reached")
    if not gateway.status.addresses:
        notes.add(
            "status.addresses",
            "is empty: it has not been set up yet",
            f"it is a waypoint only if there is a Service with the label {names.GATEWAY_NAME}={gateway.metadata.name}",
        )
    binding = gateway.metadata.annotations.get(names.INBOUND_BINDING)
    if binding is not None and binding.partition("/")[0] not in ("NONE", "PROXY"):
        where = f"metadata.annotations[{names.INBOUND_BINDING}]"
        notes.add(where, f"is {quoted(binding)}, neither NONE nor PROXY", "its pods get no tunnelled traffic in another form")


def _slice(found: objects.EndpointSlice, notes: Notes) -> None:
    if found.address_type == "FQDN":
        notes.add("addressType", "is FQDN", "its endpoints are left out")
    elif names.SERVICE_NAME not in found.metadata.labels:
        where = f"metadata.labels[{names.SERVICE_NAME}]"
        notes.add(where, "is missing", "its endpoints are nobody's, and left out")


def _is_address(text: str) -> bool:
    try:
        canonical_ip(text)
    except ValueError:
        return False
    return True


_REMARKS: dict[str, Callable[[Any, Notes], None]] = {
    "Service": _service,
    "ServiceEntry": _service_entry,
    "Gateway": _gateway,
    "EndpointSlice": _slice,
}
