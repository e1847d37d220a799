"""Why the controller refuses a caller: one name, the same in metric label and log, and the gRPC status that goes with it.

Invariant: the list is closed, so that what callers send never becomes a label.  It must not know how a refusal is found out.
"""

from __future__ import annotations

from enum import StrEnum

from nodeproxy.errors import CallerError


class Refused(StrEnum):
    """The names.  Adding one: give it a status below."""

    # who calls
    NO_TOKEN = "no_token"  # no bearer token, or more than one
    TOKEN_MALFORMED = "token_malformed"  # no JWT, or longer than any
    TOKEN_EXPIRED = "token_expired"
    TOKEN_AUDIENCE = "token_audience"  # made for somebody else than this CA
    TOKEN_REJECTED = "token_rejected"  # the API server does not know it: forged, or its pod or account is gone
    NOT_A_POD = "not_a_pod"  # a person's token, or one that is bound to no pod
    REVIEW_UNAVAILABLE = "review_unavailable"  # the API server does not answer, or does not let us ask
    BUSY = "busy"  # as many callers wait as may
    # what is asked for
    BAD_REQUEST = "bad_request"
    BAD_CSR = "bad_csr"
    BAD_IDENTITY = "bad_identity"
    FOREIGN_TRUST_DOMAIN = "foreign_trust_domain"
    NOT_TRUSTED = "not_trusted"  # asks for another's identity without being a node's proxy
    NODE_UNKNOWN = "node_unknown"  # the caller's pod is gone, or not on the node that its token says
    NOT_ON_NODE = "not_on_node"  # no pod of the caller's node has this identity
    NOT_SYNCED = "not_synced"  # the controller has not seen the pods yet
    RATE = "rate"  # the node asks too often
    NO_KEY = "no_key"  # the CA's key is not there, or has ended


_STATUS = {
    Refused.NO_TOKEN: "UNAUTHENTICATED",
    Refused.TOKEN_MALFORMED: "UNAUTHENTICATED",
    Refused.TOKEN_EXPIRED: "UNAUTHENTICATED",
    Refused.TOKEN_AUDIENCE: "UNAUTHENTICATED",
    Refused.TOKEN_REJECTED: "UNAUTHENTICATED",
    Refused.NOT_A_POD: "UNAUTHENTICATED",
    Refused.REVIEW_UNAVAILABLE: "UNAVAILABLE",
    Refused.BUSY: "UNAVAILABLE",
    Refused.BAD_REQUEST: "INVALID_ARGUMENT",
    Refused.BAD_CSR: "INVALID_ARGUMENT",
    Refused.BAD_IDENTITY: "INVALID_ARGUMENT",
    Refused.FOREIGN_TRUST_DOMAIN: "PERMISSION_DENIED",
    Refused.NOT_TRUSTED: "PERMISSION_DENIED",
    Refused.NODE_UNKNOWN: "PERMISSION_DENIED",
    Refused.NOT_ON_NODE: "PERMISSION_DENIED",
    Refused.NOT_SYNCED: "UNAVAILABLE",
    Refused.RATE: "RESOURCE_EXHAUSTED",
    Refused.NO_KEY: "UNAVAILABLE",
}


def refuse(reason: Refused, message: str) -> CallerError:
    """The error that is answered with; `message` is for the caller."""
    return CallerError(reason, message, _STATUS[reason])


def passes(error: CallerError) -> bool:
    """Whether the same request may get another answer in a moment: nothing was judged."""
    return error.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
