"""Why a connection was refused or ended: one name, the same in metric label, access log, `why` and error text.

The value of a `Reason` is that name.  `response_flags` maps it to what Istio's dashboards know (protocols.md of Istio's metrics:
`-, DENY, CONNECT, TLS_FAILURE, H2_HANDSHAKE_FAILURE, NETWORK_POLICY, IDENTITY_ERROR`).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """The closed list of names.  Adding one: give it a flag below and a row in docs/reasons.md."""

    # policy
    POLICY_DENY = "policy_deny"  # a DENY policy matched
    POLICY_NO_ALLOW = "policy_no_allow"  # ALLOW policies are there and none matched
    # the decision before a connection is made
    ILLEGAL_PORT = "illegal_port"  # one of the proxy's own ports
    NO_ORIGINAL_DESTINATION = "no_original_destination"  # came to the outbound listener without being steered
    UNKNOWN_WORKLOAD = "unknown_workload"  # the destination is not a workload of this node
    UNKNOWN_SERVICE = "unknown_service"  # a hostname that no service has
    NO_ENDPOINT = "no_endpoint"  # the service has no (healthy) endpoint
    NO_WAYPOINT = "no_waypoint"  # the waypoint that must be passed is unknown or has no endpoint
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"  # e.g. a workload that speaks a tunnel we do not
    STATE_UNAVAILABLE = "state_unavailable"  # no state was ever received
    # upstream
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_UNREACHABLE = "connect_unreachable"
    HBONE_TIMEOUT = "hbone_timeout"  # port 15008 does not answer: probably a NetworkPolicy
    HBONE_REFUSED = "hbone_refused"  # the peer answered CONNECT with anything but 200
    HBONE_DENIED = "hbone_denied"  # the peer answered 401: its policy denied
    # TLS and identity
    NO_CERTIFICATE = "no_certificate"  # we have none for this identity (yet)
    PEER_NO_CERTIFICATE = "peer_no_certificate"
    PEER_CERTIFICATE_EXPIRED = "peer_certificate_expired"
    PEER_CERTIFICATE_UNTRUSTED = "peer_certificate_untrusted"
    PEER_CERTIFICATE_PURPOSE = "peer_certificate_purpose"  # e.g. a server's certificate shown by a client
    PEER_TRUST_DOMAIN = "peer_trust_domain"
    PEER_IDENTITY = "peer_identity"  # not the identity that was expected, or not a single SPIFFE URI
    TLS_FAILURE = "tls_failure"
    TLS_TIMEOUT = "tls_timeout"
    NO_ALPN = "no_alpn"
    # HTTP/2
    H2_PROTOCOL = "h2_protocol"
    H2_FLOW_CONTROL = "h2_flow_control"
    H2_HEADERS_TOO_LARGE = "h2_headers_too_large"
    H2_CONTINUATION_FLOOD = "h2_continuation_flood"
    H2_RAPID_RESET = "h2_rapid_reset"
    H2_CONTROL_FLOOD = "h2_control_flood"  # PING, SETTINGS, WINDOW_UPDATE, PRIORITY or empty frames without end
    H2_TIMEOUT = "h2_timeout"  # a PING was not answered, or a preface did not come
    NOT_CONNECT = "not_connect"
    BAD_AUTHORITY = "bad_authority"
    AUTHORITY_MISMATCH = "authority_mismatch"  # the authority's address is not the socket's destination
    # resources
    TOO_MANY_CONNECTIONS = "too_many_connections"
    NO_DESCRIPTORS = "no_descriptors"
    FLOW_TABLE_FULL = "flow_table_full"
    MEMORY_FULL = "memory_full"  # more unread bytes than a worker may hold
    # the course of a connection
    RESET_BY_SOURCE = "reset_by_source"
    RESET_BY_DESTINATION = "reset_by_destination"
    POD_LEFT = "pod_left"
    SAME_NODE_HBONE = "same_node_hbone"  # a direct connection, and `same_node` was set to hbone since
    DRAINED = "drained"
    INTERNAL = "internal"  # a defect of nodeproxy's: logged with a traceback


_DENY = "DENY"
_FLAGS = {
    Reason.POLICY_DENY: _DENY,
    Reason.POLICY_NO_ALLOW: _DENY,
    Reason.HBONE_DENIED: _DENY,
    Reason.HBONE_TIMEOUT: "NETWORK_POLICY",
    Reason.NO_CERTIFICATE: "IDENTITY_ERROR",
    Reason.PEER_IDENTITY: "IDENTITY_ERROR",
    Reason.PEER_TRUST_DOMAIN: "IDENTITY_ERROR",
    Reason.PEER_NO_CERTIFICATE: "TLS_FAILURE",
    Reason.PEER_CERTIFICATE_EXPIRED: "TLS_FAILURE",
    Reason.PEER_CERTIFICATE_UNTRUSTED: "TLS_FAILURE",
    Reason.PEER_CERTIFICATE_PURPOSE: "TLS_FAILURE",
    Reason.TLS_FAILURE: "TLS_FAILURE",
    Reason.TLS_TIMEOUT: "TLS_FAILURE",
    Reason.NO_ALPN: "H2_HANDSHAKE_FAILURE",
    Reason.RESET_BY_SOURCE: "-",
    Reason.RESET_BY_DESTINATION: "-",
    Reason.DRAINED: "-",
    Reason.SAME_NODE_HBONE: "-",
}


def response_flags(reason: Reason | None) -> str:
    """The value of the label `response_flags` for a connection that ended with `reason` (None: as it should)."""
    if reason is None:
        return "-"
    if reason in _FLAGS:
        return _FLAGS[reason]
    return "H2_HANDSHAKE_FAILURE" if reason.startswith("h2_") else "CONNECT"


class Refusal(msgspec.Struct, frozen=True):
    """A connection that must not be, as a value.

    detail: one sentence for a person, with the resource that decided and what can be done.
    resource: "ns/name" of the policy, service or workload that decided, empty if none did.
    """

    reason: Reason
    detail: str
    resource: str = ""
