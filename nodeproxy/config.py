"""What `nodeproxy run` is told; how, says `settings`.

Invariant: what was given fits together, or nothing of it is used.  It must not know what settings are used for.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from nodeproxy.errors import ConfigError
from nodeproxy.settings import Address as Address
from nodeproxy.settings import (
    Given,
    Reader,
    Settings,
    read_address_or_off,
    read_duration_s,
    read_log_format,
    read_name,
    read_number,
    read_path,
    read_path_or_off,
)
from nodeproxy.settings import LogFormat as LogFormat
from nodeproxy.settings import address as address

RUN_ROOT = Path("/run/nodeproxy")
# What must outlive a boot, which /run does not.
NODE_DIR = Path("/var/lib/nodeproxy")
CNI_CONF_DIR = Path("/etc/cni/net.d")  # on most nodes
# A cluster's DNS label has 63 characters; what is left is room for the names that are made of it (pins, cgroups, sockets).
INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
# More than this many interpreters on one node say that something is mistaken; it is also what the kernel's maps have room for.
MAX_WORKERS = 16
MAX_GRACE_S = 86_400
# Before it is killed, a pod's container has grace_s; the agent needs the last of them to end its workers and to write its state.
DRAIN_RESERVE_S = 5


# What charts of Istio name the metadata that a node's proxy tells of itself.
_METADATA_PREFIX = "ISTIO_META_"
# More replicas of a control plane than this have a name that stands for them all.
MAX_UPSTREAMS = 16
MAX_SECRET_TTL_S = 90 * 86_400
# Of kubelet_cgroup.
AUTO = "auto"
OFF = "off"


class Source(StrEnum):
    """Who says what the mesh is."""

    FILE = "file"
    XDS = "xds"


class EnrolmentMode(StrEnum):
    """Who says which pods of this node are in the mesh.  By command it can be said beside each of them."""

    FILE = "file"  # the mesh file
    COMMAND = "command"  # nobody else
    LABELS = "labels"  # nodeproxy's controller, by the labels in the cluster
    ZDS = "zds"  # istio-cni


class StandingConnections(StrEnum):
    """What becomes of connections that a pod had before it was enrolled."""

    KEEP = "keep"
    DESTROY = "destroy"


class SameNode(StrEnum):
    """How two pods of this node reach one another."""

    DIRECT = "direct"
    HBONE = "hbone"


class Upstream(NamedTuple):
    """Where a control plane is: with TLS or, on this machine alone, without."""

    address: Address
    tls: bool

    def __str__(self) -> str:
        """As it is written: "https://istiod.istio-system.svc:15012"."""
        return f"{'https' if self.tls else 'http'}://{self.address}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one agent.  Make it with `load`."""

    node: str
    # The name of this node: a workload whose `node` it is counts as local.  No default: a wrong guess would steer foreign pods.
    source: Source = Source.FILE
    # Who says what the mesh is: a mesh file, or a control plane.  By default what is given of `mesh` and `xds_address`.
    mesh: Path | None = None
    # The mesh file, for source file; there it has no default.
    ca: Path | None = None
    # The directory of the CA (`nodeproxy ca init`).  This or ca_address, no default: certificates that others do not trust serve
    # nobody.
    xds_address: tuple[Upstream, ...] = ()
    # The control plane's servers, for source xds; there it has no default.
    xds_on_demand: bool = False
    # Ask the control plane for addresses as connections first need them, so that a node's memory does not grow with the cluster.
    # Off, as ztunnel's: the first connection to an address waits for the answer.
    enrolment: EnrolmentMode = EnrolmentMode.FILE
    # Who puts this node's pods into the mesh: the mesh file (`file`), labels in the cluster (`labels`: needs our controller),
    # istio-cni (`zds`), or `nodeproxy enrol` alone (`command`).  `file` with a mesh file, else `command`.
    zds_socket: Path = Path("/var/run/ztunnel/ztunnel.sock")
    # Where istio-cni tells of pods, for enrolment zds.  Where Istio's charts mount it.
    standing_connections: StandingConnections = StandingConnections.KEEP
    # Connections that a pod had before it was enrolled: `keep` them, outside the mesh and shown in `status`, or `destroy` them.
    # `keep`: what a label does to a running pod must not break what it is at.
    ca_address: tuple[Upstream, ...] = ()
    # The CA's servers.  Without ca, those of the control plane: istiod and nodeproxy's controller are both.
    xds_root_ca: Path = Path("/var/run/secrets/istio/root-cert.pem")
    # The root certificates that the control plane's servers are checked by.  Where Istio's charts mount it.
    ca_root_ca: Path = Path("/var/run/secrets/istio/root-cert.pem")
    # The same for the CA's servers.
    auth_token: Path | None = Path("/var/run/secrets/tokens/istio-token")
    # The token that tells control plane and CA who asks, or None ("off").  Where Istio's charts mount it.
    cluster_id: str = "Kubernetes"
    # The cluster's name, as the control plane knows it.  istiod's default.
    cluster_domain: str = "cluster.local"
    # The domain of the cluster's names.  Kubernetes' default.
    network: str = ""
    # The network that this node is in; empty for the default one, as everywhere in Istio.
    trust_domain: str = "cluster.local"
    # The trust domain of this node's workloads, told to the control plane.  Istio's default.
    secret_ttl_s: int = 86_400
    # How long a certificate is asked for, 60 s to 90 days.  A day, as Istio's default.
    pod_name: str = ""
    # The pod that this agent runs in, told to the control plane.  Empty: the node's name.
    pod_namespace: str = "istio-system"
    # Its namespace; istiod compares it with the token's.  Where Istio's charts install ztunnel.
    pod_ip: str = "127.0.0.1"
    # Its address, told to the control plane, which only shows it.
    metadata: tuple[tuple[str, str], ...] = ()
    # More to tell the control plane of this node: variables ISTIO_META_…, without that prefix.
    kube_api: Address | None = None
    # The API server that Events on pods are written to, or None ("off").  By default as Kubernetes tells each pod.
    kube_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    # The directory with the token and the roots (token, ca.crt) for that.  Where Kubernetes mounts them.
    instance: str = "default"
    # Tells agents on one machine apart; pins, run directory and cgroup carry it.  Most machines have one.
    cgroup_root: Path | None = None
    # The cgroup (v2) below which pods are steered; None: the root, where it is mounted.  A test or demo takes a subtree.
    kubelet_cgroup: str = AUTO
    # Whose probes of enrolled pods pass policy: the cgroup (v2, from its top) of the kubelet, `auto` to look for it, or `off`.
    admin: Address | None = Address("127.0.0.1", 15000)
    # Admin over TCP, or None ("off").  Loopback as ztunnel's: what changes the node must not be reachable from outside of it.
    metrics: Address | None = Address("0.0.0.0", 15020)
    # Prometheus, or None ("off").  All addresses and this port, as ztunnel's: scrapers come from other nodes.
    ready: Address | None = Address("0.0.0.0", 15021)
    # Readiness (/healthz/ready), or None ("off").  As ztunnel's: the kubelet asks at the node's address.
    workers: int = 2
    # Processes of the data path, 1 to 16.  2, or 1 on a single core: one interpreter uses one core, each costs some 20 MB.
    same_node: SameNode = SameNode.DIRECT
    # Two pods of this node: `direct`, without the proxy where policy can be asked beforehand (then it costs nothing), or
    # `hbone`, in mutual TLS as between nodes, for sites that want encryption inside the node as well.
    takeover: bool = False
    # Where an agent of this instance runs already: take over from it without refusing a connection.  Off: refuse to start, for
    # who starts two may not mean to.
    wait_after_handover: bool = False
    # When another agent has taken over and all connections have ended: wait for SIGTERM, and serve again should nobody do.
    # Off: end.  On in a DaemonSet, whose kubelet would start again what ends.
    run_dir: Path = RUN_ROOT / "default"
    # State, admin socket and token.  RUN_ROOT/INSTANCE: /run is gone after a boot, as the pins are.
    node_dir: Path = NODE_DIR
    # What must be known before an agent runs: the list of the mesh's namespaces, for the CNI plug-in.  Not in /run, which is
    # gone after a boot, when the first pods start.
    cni_conf_dir: Path | None = None
    # Where the container runtime reads its network: the CNI plug-in is put into its chain and kept there.  None ("off"), for
    # it changes the node; /etc/cni/net.d on most.
    cni_bin_dir: Path = Path("/opt/cni/bin")
    # Where the runtime finds plug-ins.  containerd's and CRI-O's default.
    cni_plugin: Path = Path(sys.prefix, "libexec", "nodeproxy-cni")
    # The plug-in's program, to be copied there.  Beside our own programs, as in the image.
    cni_exempt_namespaces: tuple[str, ...] = ("kube-system", "nodeproxy-system")
    # Namespaces whose pods start while the agent is away, in the mesh or not: what a cluster needs to come up, agent and
    # controller among them.
    log_format: LogFormat = LogFormat.TEXT
    # Text for people, JSON for collectors.  Text, as ztunnel's default.
    grace_s: int = 30
    # Seconds from SIGTERM to SIGKILL, 1 to 86,400.  30, as Kubernetes' default.

    @property
    def drain_s(self) -> int:
        """How long connections may go on after SIGTERM."""
        return max(self.grace_s - DRAIN_RESERVE_S, 1)


def load(flags: Mapping[str, str | None], environ: Mapping[str, str], config_path: Path | None = None) -> RunConfig:
    """Put the settings together.  flags: by field name, None is not given.  Raises ConfigError."""
    given = _SETTINGS.gather(flags, environ, config_path)
    settings = _SETTINGS.read(given)
    _settle_source(settings, given)
    settings["metadata"] = tuple(
        sorted(
            (name.removeprefix(_METADATA_PREFIX), value) for name, value in environ.items() if name.startswith(_METADATA_PREFIX)
        )
    )
    for name in (field.name for field in fields(RunConfig) if field.default is MISSING):
        if name not in settings:
            raise _SETTINGS.missing(name)
    if "kube_api" not in settings:
        settings["kube_api"] = _kubernetes(environ)
    settings.setdefault("workers", min(2, max(len(os.sched_getaffinity(0)), 1)))
    settings.setdefault("run_dir", RUN_ROOT / settings.get("instance", "default"))
    if settings.get("cni_conf_dir") is not None and settings["enrolment"] is not EnrolmentMode.LABELS:
        raise given["cni_conf_dir"].wrong("the CNI plug-in puts pods into the mesh by their labels: it needs enrolment labels")
    return RunConfig(**settings)


def _settle_source(settings: dict[str, Any], given: Mapping[str, Given]) -> None:
    """Where state and certificates come from, so that what was given fits together.  Raises ConfigError."""
    if "source" not in settings:
        if "mesh" in given and "xds_address" in given:
            raise ConfigError("mesh and xds_address are both set: say which is the source, --source file or --source xds")
        settings["source"] = Source.XDS if "xds_address" in given else Source.FILE
    is_xds = settings["source"] is Source.XDS
    needed, other = ("xds_address", "mesh") if is_xds else ("mesh", "xds_address")
    if other in given:
        raise given[other].wrong(f"means nothing with source {settings['source']}; leave it out, or change the source")
    if needed not in given:
        raise _SETTINGS.missing(needed)
    _settle_enrolment(settings, given, is_xds=is_xds)
    if settings.get("xds_on_demand") and not is_xds:
        raise given["xds_on_demand"].wrong("a mesh file is read as a whole; leave it out, or change the source")
    if "ca" in given and "ca_address" in given:
        raise given["ca_address"].wrong(f"there is a CA directory, too ({given['ca'].source}); give one of them")
    if "ca" not in given and "ca_address" not in given:
        if not is_xds:
            raise _SETTINGS.missing("ca")
        settings["ca_address"] = settings["xds_address"]


def _settle_enrolment(settings: dict[str, Any], given: Mapping[str, Given], *, is_xds: bool) -> None:
    mode = settings.setdefault("enrolment", EnrolmentMode.COMMAND if is_xds else EnrolmentMode.FILE)
    if mode is EnrolmentMode.FILE and is_xds:
        raise given["enrolment"].wrong("a control plane is no mesh file: with source xds it is labels, zds or command")
    if mode is EnrolmentMode.LABELS and not is_xds:
        raise given["enrolment"].wrong("labels are told by nodeproxy's controller: it needs source xds")


def _kubernetes(environ: Mapping[str, str]) -> Address | None:
    """The API server that Kubernetes tells a pod of, None outside of one.  Raises ConfigError."""
    host, port = (environ.get(f"KUBERNETES_SERVICE_{part}", "") for part in ("HOST", "PORT"))
    if not host or not port:
        return None
    try:
        return address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except ConfigError as exc:
        raise ConfigError(f"KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT: {exc}; or give --kube-api") from exc


def instance_name(text: str) -> str:
    """Check the name of an instance.  Raises ConfigError."""
    if not INSTANCE.fullmatch(text):
        raise ConfigError(f"an instance's name has 1 to 40 of a-z, 0-9 and '-', and not '-' first: {text!r} is none")
    return text


def _node(given: Given) -> str:
    # RFC 1123, section 2.1: a name's labels have letters, digits and '-'; Kubernetes joins them with '.', 253 in all.
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", given.text):
        raise given.wrong("a node's name has letters, digits, '-' and '.'")
    return given.text


def _instance(given: Given) -> str:
    try:
        return instance_name(given.text)
    except ConfigError as exc:
        raise given.wrong(str(exc)) from exc


def _address_text(given: Given) -> str:
    try:
        return str(ipaddress.ip_address(given.text))
    except ValueError:
        raise given.wrong("is no IP address") from None


def _source(given: Given) -> Source:
    try:
        return Source(given.text.lower())
    except ValueError:
        raise given.wrong("must be file or xds") from None


def _upstreams(given: Given) -> tuple[Upstream, ...]:
    found = tuple(_upstream(given, text.strip()) for text in given.text.split(","))
    if len(found) > MAX_UPSTREAMS:
        raise given.wrong(f"{len(found)} addresses; at most {MAX_UPSTREAMS}")
    return found


def _upstream(given: Given, text: str) -> Upstream:
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme not in ("https", "http"):
        raise given.wrong(f"{text!r}: must be https://HOST:PORT, or http://127.0.0.1:PORT on this machine")
    try:
        where = address(rest.removesuffix("/"))
    except ConfigError as exc:
        raise given.wrong(str(exc)) from exc
    if scheme == "http" and not _is_loopback(where.host):
        raise given.wrong(f"{text!r}: without TLS only on this machine; write https://{where}")
    return Upstream(where, tls=scheme != "http")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _yes_or_no(given: Given) -> bool:
    # YAML's words for it, and those of Istio's charts.
    try:
        return {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}[given.text.lower()]
    except KeyError:
        raise given.wrong("must be true or false") from None


def _enrolment(given: Given) -> EnrolmentMode:
    try:
        return EnrolmentMode(given.text.lower())
    except ValueError:
        raise given.wrong("must be file, command, labels or zds") from None


def _standing_connections(given: Given) -> StandingConnections:
    try:
        return StandingConnections(given.text.lower())
    except ValueError:
        raise given.wrong("must be keep or destroy") from None


def _namespaces(given: Given) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.text.split(",") if name.strip())
    for name in names:
        # RFC 1123, section 2.1, as Kubernetes has it for namespaces.
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise given.wrong(f"{name!r} is no namespace's name")
    return names


def _same_node(given: Given) -> SameNode:
    try:
        return SameNode(given.text.lower())
    except ValueError:
        raise given.wrong("must be direct or hbone") from None


def _kubelet_cgroup(given: Given) -> str:
    text = given.text.strip()
    if text.lower() in (AUTO, OFF):
        return text.lower()
    if not text.startswith("/") or ".." in text.split("/") or text.strip("/") == "":
        raise given.wrong("must be auto, off, or a cgroup's path from the top of the hierarchy (/system.slice/kubelet.service)")
    return text


_READERS: dict[str, Reader] = {
    "node": _node,
    "source": _source,
    "mesh": read_path,
    "ca": read_path,
    "xds_address": _upstreams,
    "xds_on_demand": _yes_or_no,
    "enrolment": _enrolment,
    "zds_socket": read_path,
    "standing_connections": _standing_connections,
    "ca_address": _upstreams,
    "xds_root_ca": read_path,
    "ca_root_ca": read_path,
    "auth_token": read_path_or_off,
    "cluster_id": read_name,
    "cluster_domain": read_name,
    "network": read_name,
    "trust_domain": read_name,
    "secret_ttl_s": read_duration_s(60, MAX_SECRET_TTL_S),
    "pod_name": read_name,
    "pod_namespace": read_name,
    "pod_ip": _address_text,
    "kube_api": read_address_or_off,
    "kube_account": read_path,
    "instance": _instance,
    "cgroup_root": read_path,
    "kubelet_cgroup": _kubelet_cgroup,
    "admin": read_address_or_off,
    "metrics": read_address_or_off,
    "ready": read_address_or_off,
    "workers": read_number(1, MAX_WORKERS),
    "same_node": _same_node,
    "takeover": _yes_or_no,
    "wait_after_handover": _yes_or_no,
    "run_dir": read_path,
    "node_dir": read_path,
    "cni_conf_dir": read_path_or_off,
    "cni_bin_dir": read_path,
    "cni_plugin": read_path,
    "cni_exempt_namespaces": _namespaces,
    "log_format": read_log_format,
    "grace_s": read_number(1, MAX_GRACE_S),
}
# What charts of Istio set for ztunnel; ours win over them.
_ISTIO_VARIABLES: dict[str, tuple[str, ...]] = {
    "node": ("NODE_NAME",),
    "mesh": ("LOCAL_XDS_PATH",),
    "xds_address": ("XDS_ADDRESS",),
    "xds_on_demand": ("XDS_ON_DEMAND",),
    "zds_socket": ("INPOD_UDS",),
    "ca_address": ("CA_ADDRESS",),
    "xds_root_ca": ("XDS_ROOT_CA",),
    "ca_root_ca": ("CA_ROOT_CA",),
    "auth_token": ("AUTH_TOKEN",),
    "cluster_id": ("CLUSTER_ID",),
    "cluster_domain": ("CLUSTER_DOMAIN",),
    "network": ("NETWORK",),
    "trust_domain": ("TRUST_DOMAIN",),
    "secret_ttl_s": ("SECRET_TTL",),
    "pod_name": ("POD_NAME",),
    "pod_namespace": ("POD_NAMESPACE",),
    "pod_ip": ("INSTANCE_IP",),
    "log_format": ("LOG_FORMAT",),
    "grace_s": ("TERMINATION_GRACE_PERIOD_SECONDS",),
}
_SETTINGS = Settings(_READERS, _ISTIO_VARIABLES)
