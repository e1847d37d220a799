"""What `nodeproxy run` is told, and by whom: command line over environment over configuration file over default.

Invariants: each setting has one name (`run_dir` is `--run-dir`, `NODEPROXY_RUN_DIR` and the file's key `run-dir`), a wrong or
unknown one is an error that names the source which gave it, and nothing is half applied.  It must not know what settings are used
for, nor how a command line is parsed.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from nodeproxy.errors import ConfigError

ENVIRONMENT_PREFIX = "NODEPROXY_"
RUN_ROOT = Path("/run/nodeproxy")
# A cluster's DNS label has 63 characters; what is left is room for the names that are made of it (pins, cgroups, sockets).
INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
# More than this many interpreters on one node say that something is mistaken; it is also what the kernel's maps have room for.
MAX_WORKERS = 16
MAX_GRACE_S = 86_400
# A configuration file has some 15 lines; the limit is for a mistake such as naming the mesh file.
MAX_FILE_BYTES = 1 << 20
# Before it is killed, a pod's container has grace_s; the agent needs the last of them to end its workers and to write its state.
DRAIN_RESERVE_S = 5

# Read by this program's other parts, not settings of `run`: the client's token, and the file that settings stand in.
_OTHER_VARIABLES = frozenset({"NODEPROXY_ADMIN_TOKEN", "NODEPROXY_CONFIG"})
# Kubernetes sets such variables in every pod of a namespace with a Service whose name begins with "nodeproxy".
_SERVICE_LINK = re.compile(r"NODEPROXY_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


# What charts of Istio name the metadata that a node's proxy tells of itself.
_METADATA_PREFIX = "ISTIO_META_"
# More replicas of a control plane than this have a name that stands for them all.
MAX_UPSTREAMS = 16
MAX_SECRET_TTL_S = 90 * 86_400
_DURATION_UNITS_S = {"h": 3600, "m": 60, "s": 1}


class Source(StrEnum):
    """Who says what the mesh is."""

    FILE = "file"
    XDS = "xds"


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class SameNode(StrEnum):
    """How two pods of this node reach one another."""

    DIRECT = "direct"
    HBONE = "hbone"


class Address(NamedTuple):
    """Where to listen or connect: a host without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written: "127.0.0.1:15000" or "[::1]:15000"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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
    instance: str = "default"
    # Tells agents on one machine apart; pins, run directory and cgroup carry it.  Most machines have one.
    cgroup_root: Path | None = None
    # The cgroup (v2) below which pods are steered; None: the root, where it is mounted.  A test or demo takes a subtree.
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
    run_dir: Path = RUN_ROOT / "default"
    # State, admin socket and token.  RUN_ROOT/INSTANCE: /run is gone after a boot, as the pins are.
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
    if config_path is None and environ.get("NODEPROXY_CONFIG"):
        config_path = Path(environ["NODEPROXY_CONFIG"])
    given = {} if config_path is None else _from_file(config_path)
    given |= _from_environment(environ)
    given |= {name: _Given(value, f"--{_dashed(name)} {value}") for name, value in flags.items() if value is not None}
    settings: dict[str, Any] = {name: _READERS[name](value) for name, value in given.items()}
    _settle_source(settings, given)
    settings["metadata"] = tuple(
        sorted(
            (name.removeprefix(_METADATA_PREFIX), value) for name, value in environ.items() if name.startswith(_METADATA_PREFIX)
        )
    )
    for name in (field.name for field in fields(RunConfig) if field.default is MISSING):
        if name not in settings:
            raise _missing(name)
    settings.setdefault("workers", min(2, max(len(os.sched_getaffinity(0)), 1)))
    settings.setdefault("run_dir", RUN_ROOT / settings.get("instance", "default"))
    return RunConfig(**settings)


def _settle_source(settings: dict[str, Any], given: Mapping[str, _Given]) -> None:
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
        raise _missing(needed)
    if "ca" in given and "ca_address" in given:
        raise given["ca_address"].wrong(f"there is a CA directory, too ({given['ca'].source}); give one of them")
    if "ca" not in given and "ca_address" not in given:
        if not is_xds:
            raise _missing("ca")
        settings["ca_address"] = settings["xds_address"]


def _missing(name: str) -> ConfigError:
    variables = " or ".join(_variables(name))
    return ConfigError(f"{name} is not set: give --{_dashed(name)}, {variables}, or {_dashed(name)!r} in the --config file")


def address(text: str) -> Address:
    """ADDR:PORT or [V6]:PORT, the address an IP or a host's name.  Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise ConfigError(f"{text!r} is not ADDR:PORT with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ConfigError(f"{text!r}: only IPv6 addresses stand in brackets")
    elif ":" in host:
        raise ConfigError(f"{text!r}: write an IPv6 address in brackets, [::1]:{port}")
    elif re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", host):
        return Address(host, int(port))
    try:
        return Address(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        advice = f"for all addresses write 0.0.0.0:{port} or [::]:{port}" if not host else "write it like 127.0.0.1:15000"
        raise ConfigError(f"{text!r} has no valid address; {advice}") from None


def instance_name(text: str) -> str:
    """Check the name of an instance.  Raises ConfigError."""
    if not INSTANCE.fullmatch(text):
        raise ConfigError(f"an instance's name has 1 to 40 of a-z, 0-9 and '-', and not '-' first: {text!r} is none")
    return text


class _Given(NamedTuple):
    """What a source says of a setting.  source: for errors; base: what a relative path is relative to."""

    text: str
    source: str
    base: Path = Path()

    def wrong(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.source}: {reason}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    """What the environment says; a variable that is empty counts as not set, as charts render absent values."""
    known = {variable: name for name in _READERS for variable in _variables(name)}
    for variable in environ:
        if variable.startswith(ENVIRONMENT_PREFIX) and not (
            variable in known or variable in _OTHER_VARIABLES or _SERVICE_LINK.fullmatch(variable)
        ):
            close = _closest(variable.removeprefix(ENVIRONMENT_PREFIX).lower())
            advice = f"did you mean {ENVIRONMENT_PREFIX}{close.upper()}?" if close else "unset it"
            raise ConfigError(f"{variable}: there is no such setting; {advice}")
    found: dict[str, _Given] = {}
    for variable, name in known.items():
        if environ.get(variable):
            found.setdefault(name, _Given(environ[variable], f"{variable}={environ[variable]}"))
    return found


def _from_file(path: Path) -> dict[str, _Given]:
    import yaml  # here: 20 ms that most commands need not pay

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; is it a configuration file?")
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(exc, 'problem', None) or exc}; mend the syntax") from exc
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:{root.start_mark.line + 1}: must be a map of settings, such as `node: node-1`")
    found: dict[str, _Given] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        name = str(key.value).replace("-", "_") if isinstance(key, yaml.ScalarNode) else ""
        if name not in _READERS:
            close = _closest(name)
            advice = f"did you mean {_dashed(close)}?" if close else "remove it"
            raise ConfigError(f"{where}: there is no setting {str(key.value)!r}; {advice}")
        if name in found:
            raise ConfigError(f"{where}: {key.value} is there twice; remove one")
        if not isinstance(value, yaml.ScalarNode):
            raise ConfigError(f"{where}: {key.value} must be a single value")
        if value.tag != "tag:yaml.org,2002:null":
            found[name] = _Given(value.value, f"{where}: {key.value}: {value.value}", path.absolute().parent)
    return found


def _closest(name: str) -> str:
    """The setting that was probably meant, or ""."""
    return next(iter(difflib.get_close_matches(name, _READERS, n=1)), "")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _variables(name: str) -> tuple[str, ...]:
    """The environment variables of a setting, ours first."""
    return (ENVIRONMENT_PREFIX + name.upper(), *_ISTIO_VARIABLES.get(name, ()))


def _node(given: _Given) -> str:
    # RFC 1123, section 2.1: a name's labels have letters, digits and '-'; Kubernetes joins them with '.', 253 in all.
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", given.text):
        raise given.wrong("a node's name has letters, digits, '-' and '.'")
    return given.text


def _path(given: _Given) -> Path:
    return Path(os.path.normpath((given.base / given.text).absolute()))


def _instance(given: _Given) -> str:
    try:
        return instance_name(given.text)
    except ConfigError as exc:
        raise given.wrong(str(exc)) from exc


def _address_or_off(given: _Given) -> Address | None:
    # YAML takes a bare `off` for a boolean, but its text is kept.
    if given.text.lower() == "off":
        return None
    try:
        return address(given.text)
    except ConfigError as exc:
        raise given.wrong(f"{exc}, nor 'off'") from exc


def _address_text(given: _Given) -> str:
    try:
        return str(ipaddress.ip_address(given.text))
    except ValueError:
        raise given.wrong("is no IP address") from None


def _source(given: _Given) -> Source:
    try:
        return Source(given.text.lower())
    except ValueError:
        raise given.wrong("must be file or xds") from None


def _upstreams(given: _Given) -> tuple[Upstream, ...]:
    found = tuple(_upstream(given, text.strip()) for text in given.text.split(","))
    if len(found) > MAX_UPSTREAMS:
        raise given.wrong(f"{len(found)} addresses; at most {MAX_UPSTREAMS}")
    return found


def _upstream(given: _Given, text: str) -> Upstream:
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


def _path_or_off(given: _Given) -> Path | None:
    return None if given.text.lower() == "off" else _path(given)


def _duration_s(given: _Given) -> int:
    """Seconds, or Go's way to write a duration: "24h", "1h30m"."""
    text = given.text
    if text.isascii() and text.isdigit():
        seconds = int(text[:12])
    elif re.fullmatch(r"(\d{1,9}[hms])+", text, re.ASCII):
        seconds = sum(int(count) * _DURATION_UNITS_S[unit] for count, unit in re.findall(r"(\d+)([hms])", text))
    else:
        raise given.wrong("must be a duration, such as 24h, 90m or 3600")
    if not 60 <= seconds <= MAX_SECRET_TTL_S:
        raise given.wrong("must be from 1 minute to 90 days")
    return seconds


def _name(given: _Given) -> str:
    # RFC 1123, section 2.1, and the underscore of trust domains; what is told to a control plane is no place for surprises.
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", given.text):
        raise given.wrong("a name has letters, digits, '-', '_' and '.'")
    return given.text


def _log_format(given: _Given) -> LogFormat:
    # "plain" is Istio's word for text.
    text = {"plain": "text"}.get(given.text.lower(), given.text.lower())
    try:
        return LogFormat(text)
    except ValueError:
        raise given.wrong("must be text or json") from None


def _same_node(given: _Given) -> SameNode:
    try:
        return SameNode(given.text.lower())
    except ValueError:
        raise given.wrong("must be direct or hbone") from None


def _number(low: int, high: int) -> Callable[[_Given], int]:
    def read(given: _Given) -> int:
        if not given.text.isascii() or not given.text.isdigit() or not low <= int(given.text) <= high:
            raise given.wrong(f"must be a number from {low} to {high}")
        return int(given.text)

    return read


_READERS: dict[str, Callable[[_Given], Any]] = {
    "node": _node,
    "source": _source,
    "mesh": _path,
    "ca": _path,
    "xds_address": _upstreams,
    "ca_address": _upstreams,
    "xds_root_ca": _path,
    "ca_root_ca": _path,
    "auth_token": _path_or_off,
    "cluster_id": _name,
    "cluster_domain": _name,
    "network": _name,
    "trust_domain": _name,
    "secret_ttl_s": _duration_s,
    "pod_name": _name,
    "pod_namespace": _name,
    "pod_ip": _address_text,
    "instance": _instance,
    "cgroup_root": _path,
    "admin": _address_or_off,
    "metrics": _address_or_off,
    "ready": _address_or_off,
    "workers": _number(1, MAX_WORKERS),
    "same_node": _same_node,
    "run_dir": _path,
    "log_format": _log_format,
    "grace_s": _number(1, MAX_GRACE_S),
}
# What charts of Istio set for ztunnel; ours win over them.
_ISTIO_VARIABLES: dict[str, tuple[str, ...]] = {
    "node": ("NODE_NAME",),
    "mesh": ("LOCAL_XDS_PATH",),
    "xds_address": ("XDS_ADDRESS",),
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
