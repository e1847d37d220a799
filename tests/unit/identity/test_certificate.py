from __future__ import annotations

import asyncio
from pathlib import Path

from nodeproxy.identity.certificate import CertificateAuthority
from nodeproxy.identity.local_ca import LocalAuthority, LocalCA


def test_the_key_is_never_printed(ca: LocalCA) -> None:
    issued = ca.issue("spiffe://cluster.local/ns/a/sa/b")
    for text in (repr(issued), str(issued), f"{issued}", repr([issued])):
        assert "PRIVATE" not in text
        assert issued.serial in text


def test_the_local_authority_is_a_certificate_authority(ca: LocalCA, tmp_path: Path) -> None:
    authority: CertificateAuthority = LocalAuthority(tmp_path / "ca")
    issued = asyncio.run(authority.issue("spiffe://cluster.local/ns/a/sa/b"))
    assert issued.chain_pem.startswith(b"-----BEGIN CERTIFICATE")
    assert authority.roots() == ca.roots_pem
