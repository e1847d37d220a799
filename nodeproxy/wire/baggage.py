"""W3C baggage as Istio's proxies use it: who is at the other end of a tunnel.

Invariant: what is parsed came from a peer whose identity is proved but whose words are not: it labels metrics and log, it never
decides.
"""

from __future__ import annotations

import re

from nodeproxy.model.workload import Locality, Workload

# ztunnel's own are under 500 bytes; the W3C limit for a baggage is 8,192 bytes.
MAX_BAGGAGE_BYTES = 8192
MAX_BAGGAGE_ENTRIES = 64  # W3C: at least 64 list members are to be carried on
MAX_BAGGAGE_VALUE_BYTES = 512  # names of Kubernetes objects have at most 253

# W3C baggage, section 3.3.1.3: baggage-octet, without the percent sign, which begins an escape.
_PLAIN = frozenset(range(0x21, 0x7F)) - frozenset(b'",;\\%')
_OCTETS = tuple(chr(octet) if octet in _PLAIN else f"%{octet:02X}" for octet in range(256))
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SPIFFE = re.compile(r"spiffe://(?P<trust_domain>[^/]+)/ns/(?P<namespace>[^/]+)/sa/(?P<service_account>[^/]+)")
_TYPES = frozenset({"deployment", "cronjob", "pod", "job"})
_WORKLOAD_KEYS = {f"k8s.{kind}.name": kind for kind in _TYPES}


_FIELDS = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "service.name": "canonical_name",
    "service.version": "canonical_revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}


def encode_baggage(workload: Workload) -> str:
    """The header's value for `workload`; what is empty is left out."""
    kind = workload.workload_type if workload.workload_type in _TYPES else "pod"
    entries = (
        ("k8s.cluster.name", workload.cluster),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{kind}.name", workload.workload_name or workload.name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return ",".join(f"{key}={_quote(value)}" for key, value in entries if value)


def parse_baggage(header: str, identity: str = "") -> Workload:
    """The peer as it describes itself.

    Namespace, trust domain and service account are those of its proved `identity`, whatever it says.  Unknown keys, properties
    and broken entries are passed over; of equal keys the first counts.  The workload's `uid` is empty.
    """
    found = _entries(header.encode("utf-8", "surrogateescape"))
    proved = _SPIFFE.fullmatch(identity)
    name = found.get("workload_name", "")
    return Workload(
        uid="",
        name=name,
        namespace=proved["namespace"] if proved else found.get("namespace", ""),
        trust_domain=proved["trust_domain"] if proved else "",
        service_account=proved["service_account"] if proved else "",
        cluster=found.get("cluster", ""),
        canonical_name=found.get("canonical_name", ""),
        canonical_revision=found.get("canonical_revision", ""),
        workload_type=found.get("workload_type", "pod"),
        workload_name=name,
        locality=Locality(found.get("region", ""), found.get("zone", "")),
    )


def _entries(raw: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    if len(raw) > MAX_BAGGAGE_BYTES:
        return found
    for entry in raw.split(b",", MAX_BAGGAGE_ENTRIES)[:MAX_BAGGAGE_ENTRIES]:
        key, _, rest = entry.partition(b"=")
        name = key.strip(b" \t").decode("ascii", "replace")
        field = "workload_name" if name in _WORKLOAD_KEYS else _FIELDS.get(name)
        value = _unquote(rest.partition(b";")[0].strip(b" \t"))
        if field is None or not value or field in found:
            continue
        found[field] = value
        if field == "workload_name":
            found["workload_type"] = _WORKLOAD_KEYS[name]
    return found


def _quote(value: str) -> str:
    return "".join([_OCTETS[octet] for octet in value.encode("utf-8", "surrogateescape")])


def _unquote(value: bytes) -> str:
    """The value, "" if it is too long or no text: it is to stand in a log line and in a metric's label."""
    if len(value) > MAX_BAGGAGE_VALUE_BYTES:
        return ""
    text = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), value).decode("utf-8", "replace")
    return "" if _CONTROL.search(text) else text
