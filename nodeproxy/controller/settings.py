"""What `nodeproxy controller run` is told; how, says `nodeproxy.settings`.

Invariant: what was given fits together, or nothing of it is used.  It must not know what settings are used for.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nodeproxy.controller.ca import DEFAULT_SECRET
from nodeproxy.controller.ca_settings import CaSettings
from nodeproxy.controller.callers import DEFAULT_AUDIENCE
from nodeproxy.errors import ConfigError
from nodeproxy.settings import (
    Address,
    Given,
    LogFormat,
    Reader,
    Settings,
    address,
    read_address_or_off,
    read_duration_s,
    read_log_format,
    read_name,
    read_path,
)

# Where Kubernetes mounts what a pod's service account is.
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# A root that does not sign for longer than this is mistaken for a setting in other units.
MAX_ROOT_OVERLAP_S = 90 * 86_400
DEFAULT_NAMESPACE = "nodeproxy-system"
MAX_NAMES = 64


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """The settings of one controller.  Make it with `load`."""

    kubeconfig: Path | None = None
    # The API server and who we are to it.  None: as Kubernetes tells each pod.
    namespace: str = DEFAULT_NAMESPACE
    # Where the CA's Secret and the leader's Lease are.  In a pod, that of the pod.
    listen: Address = Address("0.0.0.0", 15012)
    # xDS and the CA, in TLS.  As istiod's, so that a stock ztunnel needs another name only.
    metrics: Address | None = Address("0.0.0.0", 15014)
    # Prometheus, or None ("off").  As istiod's.
    ready: Address | None = Address("0.0.0.0", 15021)
    # Readiness (/healthz/ready), or None ("off").  As the agent's.
    trust_domain: str = "cluster.local"
    # Of all identities.  Istio's default.
    cluster_id: str = "Kubernetes"
    # The first part of every workload's uid.  istiod's default.
    network: str = ""
    # That the pods' and services' addresses belong to; empty for the default one, as everywhere in Istio.
    cluster_domain: str = "cluster.local"
    # The domain of the cluster's names.  Kubernetes' default.
    root_namespace: str = "istio-system"
    # Whose policies hold for the whole mesh.  Istio's default.
    ca_secret: str = ""
    # A Secret that somebody else keeps, such as cert-manager, with an intermediate CA.  Empty: the controller makes its own.
    token_audience: str = DEFAULT_AUDIENCE
    # Whom the callers' tokens must be made for.  As Istio's.
    node_accounts: frozenset[str] = CaSettings().trusted_node_accounts
    # NAMESPACE/ACCOUNT of node proxies, which may ask for the identities of their node's pods.
    serving_names: tuple[str, ...] = ()
    # More names for the controller's own certificate, DNS or addresses, such as istiod.istio-system.svc.
    root_overlap_s: float = CaSettings().root_overlap_s
    # How long the next root is published before it signs.  As long as certificates live: by then each node has the root.
    pod_name: str = ""
    # Tells replicas apart in the Lease.  Empty: the host's name, which is the pod's.
    log_format: LogFormat = LogFormat.TEXT
    # Text for people, JSON for collectors.


def load(flags: Mapping[str, str | None], environ: Mapping[str, str], config_path: Path | None = None) -> ControllerConfig:
    """Put the settings together.  flags: by field name, None is not given.  Raises ConfigError."""
    settings = _SETTINGS.read(_SETTINGS.gather(flags, environ, config_path))
    if "namespace" not in settings and _OWN_NAMESPACE.exists():
        settings["namespace"] = _OWN_NAMESPACE.read_text().strip()
    settings.setdefault("pod_name", socket.gethostname())
    if settings.get("ca_secret") == DEFAULT_SECRET:
        raise ConfigError(
            f"--ca-secret {DEFAULT_SECRET} is the controller's own, which needs no setting; name one that somebody else keeps"
        )
    return ControllerConfig(**settings)


def _listen(given: Given) -> Address:
    try:
        return address(given.text)
    except ConfigError as exc:
        raise given.wrong(str(exc)) from exc


def _names(given: Given) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.strip() for text in given.text.split(",")))
    if len(names) > MAX_NAMES:
        raise given.wrong(f"{len(names)} names; at most {MAX_NAMES}")
    for name in names:
        if _is_address(name):
            continue
        # RFC 1123, section 2.1; a certificate's name may begin with a wildcard (RFC 6125, section 6.4.3).
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", name):
            raise given.wrong(f"{name!r} is neither a DNS name nor an address; write them with commas between them")
    return names


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _accounts(given: Given) -> frozenset[str]:
    accounts = frozenset(text.strip() for text in given.text.split(","))
    for account in accounts:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,252}", account):
            raise given.wrong(f"{account!r} is not NAMESPACE/ACCOUNT; write them with commas between them")
    return accounts


_READERS: dict[str, Reader] = {
    "kubeconfig": read_path,
    "namespace": read_name,
    "listen": _listen,
    "metrics": read_address_or_off,
    "ready": read_address_or_off,
    "trust_domain": read_name,
    "cluster_id": read_name,
    "network": read_name,
    "cluster_domain": read_name,
    "root_namespace": read_name,
    "ca_secret": read_name,
    "token_audience": read_name,
    "node_accounts": _accounts,
    "serving_names": _names,
    "root_overlap_s": read_duration_s(1, MAX_ROOT_OVERLAP_S),
    "pod_name": read_name,
    "log_format": read_log_format,
}
# What charts of Istio set for istiod, where it means the same.
_OTHER_VARIABLES: dict[str, tuple[str, ...]] = {
    "kubeconfig": ("KUBECONFIG",),
    "namespace": ("POD_NAMESPACE",),
    "cluster_id": ("CLUSTER_ID",),
    "trust_domain": ("TRUST_DOMAIN",),
    "pod_name": ("POD_NAME",),
    "log_format": ("LOG_FORMAT",),
}
_SETTINGS = Settings(_READERS, _OTHER_VARIABLES)
