"""SPIFFE IDs of Istio's form, `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`, parsed strictly.

It exists so that no other module takes an identity apart by hand.  Invariant: what `parse` returns prints as exactly what it was
given, so comparing identities as text and comparing them part by part are the same thing.  It must not know certificates.
"""

from __future__ import annotations

import re

import msgspec

from nodeproxy.errors import IdentityError

# SPIFFE-ID, section 2.3: "SPIFFE implementations MUST support SPIFFE URIs up to 2048 bytes in length".
MAX_SPIFFE_BYTES = 2048
# SPIFFE-ID, section 2.1: a trust domain's name is made of lower-case letters, digits, ".", "-" and "_", at most 255 bytes.
MAX_TRUST_DOMAIN_BYTES = 255
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
# SPIFFE-ID, section 2.2: a path's segments are made of letters, digits, ".", "-" and "_", and are neither "." nor "..".
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]+")
_SCHEME = "spiffe://"
_SHOWN_CHARACTERS = 120


class Spiffe(msgspec.Struct, frozen=True):
    """One workload identity, in parts."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, text: str) -> Spiffe:
        """The parts of `text`; IdentityError says which of them is wrong."""
        if len(text) > MAX_SPIFFE_BYTES:
            raise IdentityError(f"an identity of {len(text)} characters is longer than the {MAX_SPIFFE_BYTES} that SPIFFE allows")
        if not text.startswith(_SCHEME):
            raise _unlike(text, f"does not begin with {_SCHEME}")
        match text[len(_SCHEME) :].split("/"):
            case [trust_domain, "ns", namespace, "sa", service_account]:
                pass
            case _:
                raise _unlike(text, "has another path than /ns/<namespace>/sa/<service-account>")
        check_trust_domain(trust_domain)
        for name, segment in (("namespace", namespace), ("service account", service_account)):
            if not _SEGMENT.fullmatch(segment):
                raise _unlike(text, f"has an illegal {name}")
        return cls(trust_domain, namespace, service_account)


def check_trust_domain(name: str) -> None:
    """IdentityError if `name` can't be a trust domain."""
    if not _TRUST_DOMAIN.fullmatch(name):
        raise IdentityError(
            f"{name[:_SHOWN_CHARACTERS]!r} is no trust domain: "
            f"1 to {MAX_TRUST_DOMAIN_BYTES} of lower-case letters, digits, '.', '-' and '_'"
        )


def _unlike(text: str, why: str) -> IdentityError:
    return IdentityError(
        f"{text[:_SHOWN_CHARACTERS]!r} {why}: expected spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>"
    )
