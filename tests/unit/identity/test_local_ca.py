from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import pytest

from nodeproxy.errors import ConfigError, IdentityError
from nodeproxy.identity import pki
from nodeproxy.identity.local_ca import KEY_FILE, META_FILE, ROOTS_FILE, LocalAuthority, LocalCA, write_file
from nodeproxy.identity.rotation import rotate

IDENTITY = "spiffe://cluster.local/ns/shop/sa/cart"


def test_create_and_open(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "ca"
    made = LocalCA.create(directory, "example.org")
    opened = LocalCA.open(directory)
    assert opened.trust_domain == made.trust_domain == "example.org"
    assert opened.roots_pem == made.roots_pem
    assert sorted(path.name for path in directory.iterdir()) == sorted([ROOTS_FILE, KEY_FILE, META_FILE])
    assert stat.S_IMODE((directory / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_mode_of_the_key_does_not_hang_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LocalCA.create(tmp_path / "ca")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ca" / KEY_FILE).stat().st_mode) == 0o600


def test_an_existing_ca_is_never_overwritten(ca: LocalCA, tmp_path: Path) -> None:
    content = {path: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    with pytest.raises(ConfigError, match="not empty"):
        LocalCA.create(tmp_path / "ca")
    assert {path: path.read_bytes() for path in (tmp_path / "ca").iterdir()} == content


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("")
    with pytest.raises(ConfigError, match="can't make a CA"):
        LocalCA.create(tmp_path / "ca")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
def test_a_key_that_others_may_read_is_not_used(mode: int, ca: LocalCA, tmp_path: Path) -> None:
    (tmp_path / "ca" / KEY_FILE).chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        LocalCA.open(tmp_path / "ca")


@pytest.mark.parametrize("name", [ROOTS_FILE, KEY_FILE, META_FILE])
def test_a_missing_file(name: str, ca: LocalCA, tmp_path: Path) -> None:
    (tmp_path / "ca" / name).unlink()
    with pytest.raises(ConfigError, match=name):
        LocalCA.open(tmp_path / "ca")


@pytest.mark.parametrize("name", [ROOTS_FILE, KEY_FILE, META_FILE])
def test_a_damaged_file(name: str, ca: LocalCA, tmp_path: Path) -> None:
    (tmp_path / "ca" / name).write_bytes(b"\xff\xfe damaged")
    with pytest.raises(IdentityError, match=name):
        LocalCA.open(tmp_path / "ca")


def test_a_file_of_another_kind(ca: LocalCA, tmp_path: Path) -> None:
    with (tmp_path / "ca" / ROOTS_FILE).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="longer than"):
        LocalCA.open(tmp_path / "ca")


def test_a_key_of_no_root(ca: LocalCA, tmp_path: Path) -> None:
    write_file(tmp_path / "ca" / KEY_FILE, pki.key_pem(pki.new_key()), 0o600)
    with pytest.raises(IdentityError, match="none of the roots"):
        LocalCA.open(tmp_path / "ca")


def test_a_given_root(tmp_path: Path) -> None:
    key = pki.new_key()
    root = pki.make_root(key, "cluster.local", time.time())
    (tmp_path / "root.pem").write_bytes(pki.certificate_pem(root))
    (tmp_path / "key.pem").write_bytes(pki.key_pem(key))
    made = LocalCA.create(tmp_path / "ca", "cluster.local", tmp_path / "root.pem", tmp_path / "key.pem")
    assert made.roots == (root,)
    assert made.issue(IDENTITY).identity == IDENTITY


def test_a_given_root_that_will_not_do_leaves_nothing_behind(tmp_path: Path) -> None:
    root = pki.make_root(pki.new_key(), "cluster.local", time.time())
    (tmp_path / "root.pem").write_bytes(pki.certificate_pem(root))
    (tmp_path / "two.pem").write_bytes(pki.certificate_pem(root) * 2)
    (tmp_path / "key.pem").write_bytes(pki.key_pem(pki.new_key()))
    for arguments, words in (
        ((tmp_path / "root.pem", tmp_path / "key.pem"), "does not belong"),
        ((tmp_path / "two.pem", tmp_path / "key.pem"), "2 certificates"),
        ((tmp_path / "root.pem", None), "together"),
        ((None, tmp_path / "key.pem"), "together"),
        ((tmp_path / "away.pem", tmp_path / "key.pem"), r"can't read .*away\.pem"),
    ):
        with pytest.raises(ConfigError, match=words):
            LocalCA.create(tmp_path / "ca", "cluster.local", *arguments)
    with pytest.raises(ConfigError, match="trust domain"):
        LocalCA.create(tmp_path / "ca", "Not A Domain")
    assert not (tmp_path / "ca").exists()


def test_issue(ca: LocalCA) -> None:
    first, second = ca.issue(IDENTITY), ca.issue(IDENTITY, 60.0)
    assert first.serial != second.serial
    assert first.key_pem != second.key_pem
    assert first.not_after - second.not_after == pytest.approx(86_400 - 60, abs=1)
    assert first.chain_pem.count(b"BEGIN CERTIFICATE") == 1


@pytest.mark.parametrize("identity", ["spiffe://other/ns/a/sa/b", "cart", "spiffe://cluster.local/x"])
def test_identities_that_are_not_ours_to_give(identity: str, ca: LocalCA) -> None:
    with pytest.raises(IdentityError):
        ca.issue(identity)


def test_nothing_but_the_cas_own_files_is_written(ca: LocalCA, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.rglob("*"))
    ca.issue(IDENTITY)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_the_authority_follows_its_files(ca: LocalCA, tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path / "ca")
    assert asyncio.run(authority.issue(IDENTITY)).chain_pem.count(b"BEGIN") == 1
    rotate(tmp_path / "ca")
    assert authority.roots().count(b"BEGIN") == 2
    assert asyncio.run(authority.issue(IDENTITY)).chain_pem.count(b"BEGIN") == 2


def test_the_authority_says_what_is_wrong_and_comes_back(ca: LocalCA, tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path / "ca")
    good = (tmp_path / "ca" / KEY_FILE).read_bytes()
    (tmp_path / "ca" / KEY_FILE).chmod(0o644)
    for _ in range(2):
        with pytest.raises(IdentityError, match="chmod 600"):
            authority.roots()
    write_file(tmp_path / "ca" / KEY_FILE, good, 0o600)
    assert authority.roots() == ca.roots_pem


def test_write_file_leaves_no_trace_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "inside").write_text("")
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "name", b"x", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
