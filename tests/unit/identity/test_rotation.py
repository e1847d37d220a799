from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from nodeproxy.errors import ConfigError
from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import CROSS_FILE, KEY_FILE, ROOTS_FILE, LocalCA, write_file
from nodeproxy.identity.rotation import retire, rotate

IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"


def test_both_roots_are_trusted_and_the_new_one_signs(ca: LocalCA, tmp_path: Path) -> None:
    name = rotate(tmp_path / "ca")
    after = LocalCA.open(tmp_path / "ca")
    assert set(after.roots) > set(ca.roots)
    assert after.signing_root not in ca.roots
    assert after.signing_root.subject.rfc4514_string() == name
    assert after.issue(IDENTITY).chain_pem.count(b"BEGIN CERTIFICATE") == 2
    assert stat.S_IMODE((tmp_path / "ca" / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_crash_between_two_files_leaves_a_ca_that_works(written: int, ca: LocalCA, tmp_path: Path) -> None:
    """The files as they are after the first, second and third of `rotate`'s writes."""
    directory = tmp_path / "ca"
    before = {name: (directory / name).read_bytes() for name in (ROOTS_FILE, KEY_FILE)}
    rotate(directory)
    order = (ROOTS_FILE, CROSS_FILE, KEY_FILE)
    for name in order[written:]:
        if name in before:
            write_file(directory / name, before[name], 0o600)
        else:
            (directory / name).unlink()
    found = LocalCA.open(directory)
    assert (found.signing_root in ca.roots) is (written < 3)
    assert found.issue(IDENTITY).chain_pem.count(b"BEGIN CERTIFICATE") == (2 if written == 3 else 1)


def test_retire(ca: LocalCA, tmp_path: Path) -> None:
    assert retire(tmp_path / "ca") == 0
    rotate(tmp_path / "ca")
    rotate(tmp_path / "ca")
    assert len(LocalCA.open(tmp_path / "ca").roots) == 3
    assert retire(tmp_path / "ca") == 2
    last = LocalCA.open(tmp_path / "ca")
    assert last.roots == (last.signing_root,)
    assert last.issue(IDENTITY).chain_pem.count(b"BEGIN CERTIFICATE") == 1


def test_a_root_that_may_vouch_for_nobody(ca: LocalCA, tmp_path: Path) -> None:
    root = ca.signing_root
    bounded = (
        x509.CertificateBuilder(
            root.subject, root.subject, root.public_key(), 7, root.not_valid_before_utc, root.not_valid_after_utc
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca.key, hashes.SHA256())
    )
    write_file(tmp_path / "ca" / ROOTS_FILE, pki.certificate_pem(bounded), 0o644)
    with pytest.raises(ConfigError, match="path length 0"):
        rotate(tmp_path / "ca")


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CA directory"):
        rotate(tmp_path / "away")
