"""Is a field section well-formed (RFC 9113, sections 8.2, 8.3 and 8.5)?

Invariant: a verdict depends on the fields alone, so it is made once for a block that is decoded once.  What CONNECT means is
not known here.
"""

from __future__ import annotations

import re

from nodeproxy.wire.stream import Headers

# Section 8.2.1: "A field name MUST NOT contain characters in the ranges 0x00-0x20, 0x41-0x5a, or 0x7f-0xff (all ranges
# inclusive)." "With the exception of pseudo-header fields [...] field names MUST NOT include a colon".
_NAME = re.compile(rb":?[!-9;-@\[-~]+")
# What HBONE's peers send, known to be well-formed: a set is faster than the expression.
_KNOWN_NAMES = frozenset(
    {b":method", b":authority", b":status", b"baggage", b"forwarded", b"traceparent", b"tracestate", b"x-forwarded-network"}
)
_LF, _CR = 0x0A, 0x0D
_PSEUDO_FAULT = "a pseudo-header field comes twice or late"
_STATUS = re.compile(rb"[1-5][0-9][0-9]")

# Section 8.2.2: "An endpoint MUST NOT generate an HTTP/2 message containing connection-specific header fields."
_CONNECTION_SPECIFIC = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})


class FieldBlock:
    """A decoded field section with what is wrong with it as a request, as a response and as trailers ("": nothing).

    status: the response's status, 0 if it is none.
    """

    __slots__ = ("headers", "request_fault", "response_fault", "status", "trailer_fault")

    def __init__(self, headers: Headers, begin: FieldBlock | None = None) -> None:
        """begin: a block with regular fields and without a fault, which these headers begin with: it is not inspected again."""
        self.headers = headers
        if begin is not None:
            fault = _inspect_regular(headers[len(begin.headers) :])
            self.request_fault: str = fault or begin.request_fault
            self.response_fault: str = fault or begin.response_fault
            self.trailer_fault: str = fault or begin.trailer_fault
            self.status: int = 0 if fault else begin.status
            return
        pseudo: dict[bytes, bytes] = {}
        fault = _inspect(headers, pseudo)
        self.request_fault = fault or _request_fault(pseudo)
        self.response_fault = fault or _response_fault(pseudo)
        # Section 8.1: "Trailers MUST NOT include pseudo-header fields".
        self.trailer_fault = fault or ("trailers have pseudo-header fields" if pseudo else "")
        self.status = 0 if self.response_fault else int(pseudo[b":status"])


def _inspect(headers: Headers, pseudo: dict[bytes, bytes]) -> str:
    for index, (name, value) in enumerate(headers):
        if name[:1] != b":":
            return _inspect_regular(headers[index:])
        # Section 8.3: "The same pseudo-header field name MUST NOT appear more than once in a field block."
        if name in pseudo:
            return _PSEUDO_FAULT
        if fault := _inspect_field(name, value):
            return fault
        pseudo[name] = value
    return ""


def _inspect_regular(headers: Headers) -> str:
    for name, value in headers:
        # Section 8.3: "All pseudo-header fields MUST appear in a field block before all regular field lines."
        if name[:1] == b":":
            return _PSEUDO_FAULT
        if fault := _inspect_field(name, value):
            return fault
        if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
            return "a field is specific to HTTP/1 connections"
    return ""


def _inspect_field(name: bytes, value: bytes) -> str:
    if name not in _KNOWN_NAMES and not _NAME.fullmatch(name):
        return "a field name has a forbidden character"
    # Section 8.2.1: "A field value MUST NOT contain the zero value (ASCII NUL, 0x00), line feed (ASCII LF, 0x0a), or
    # carriage return (ASCII CR, 0x0d) at any position."  "A field value MUST NOT start or end with an ASCII whitespace
    # character (ASCII SP or HTAB, 0x20 or 0x09)."
    # Octets are asked for as numbers: for bytes, CPython first makes an error of not being a number and drops it.
    if _LF in value or _CR in value or 0 in value or value != value.strip(b" \t"):
        return "a field value has a forbidden character"
    return ""


def _request_fault(pseudo: dict[bytes, bytes]) -> str:
    # Section 8.3: "Endpoints MUST treat a request or response that contains undefined or invalid pseudo-header fields as
    # malformed". `:protocol` (RFC 8441) is one of them: SETTINGS_ENABLE_CONNECT_PROTOCOL was not offered.
    if not pseudo.keys() <= _REQUEST_PSEUDO:
        return "a request has a pseudo-header field that is not a request's"
    if pseudo.get(b":method") == b"CONNECT":
        # Section 8.5: "The ":scheme" and ":path" pseudo-header fields MUST be omitted."
        if b":scheme" in pseudo or b":path" in pseudo:
            return "a CONNECT request has :scheme or :path"
        return "" if pseudo.get(b":authority") else "a CONNECT request has no :authority"
    # Section 8.3.1: "All HTTP/2 requests MUST include exactly one valid value for the ":method", ":scheme", and ":path"
    # pseudo-header fields, unless they are CONNECT requests".
    if not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        return "a request lacks :method, :scheme or :path"
    return ""


def _response_fault(pseudo: dict[bytes, bytes]) -> str:
    # Section 8.3.2: "This pseudo-header field MUST be included in all responses, including interim responses".
    if pseudo.keys() != {b":status"} or not _STATUS.fullmatch(pseudo[b":status"]):
        return "a response has not :status alone"
    # Section 8.6: "HTTP/2 removes support for the 101 (Switching Protocols) informational status code".
    return "a response has status 101" if pseudo[b":status"] == b"101" else ""
