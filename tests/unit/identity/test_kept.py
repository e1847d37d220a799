from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nodeproxy.errors import StateError
from nodeproxy.identity.certificate import IssuedCertificate
from nodeproxy.identity.kept import KeptCertificates


def issued(identity: str, not_after: float = 100.0) -> IssuedCertificate:
    return IssuedCertificate(identity=identity, chain_pem=b"c", key_pem=b"k", not_before=0.0, not_after=not_after, serial="1")


def test_outlives_who_kept_it_and_is_roots_alone(tmp_path: Path) -> None:
    before = KeptCertificates(tmp_path / "c", 0.0)
    before.keep(issued("a"))
    before.keep(issued("b"))
    before.keep(issued("b", 200.0))
    before.keep_roots(b"roots")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    after = KeptCertificates(tmp_path / "c", 50.0)
    assert after.roots() == b"roots"
    assert after.take("b", 50.0) == issued("b", 200.0)
    assert after.take("b", 50.0) is None
    assert after.take("a", 100.0) is None  # it is over meanwhile
    assert after.take("c", 50.0) is None


def test_what_is_over_or_damaged_is_removed(tmp_path: Path) -> None:
    before = KeptCertificates(tmp_path, 0.0)
    before.keep(issued("over", 10.0))
    before.keep(issued("damaged"))
    before.keep(issued("good"))
    assert before.roots() == b""
    damaged = next(path for path in tmp_path.iterdir() if b"damaged" in path.read_bytes())
    damaged.write_bytes(b"\xc1")
    after = KeptCertificates(tmp_path, 50.0)
    assert after.take("good", 50.0) is not None
    assert len(list(tmp_path.iterdir())) == 1


def test_who_is_not_wanted_is_forgotten(tmp_path: Path) -> None:
    before = KeptCertificates(tmp_path, 0.0)
    for identity in ("a", "b", "c"):
        before.keep(issued(identity))
    after = KeptCertificates(tmp_path, 0.0)
    after.take("a", 0.0)
    after.drop("b")
    after.drop("never there")
    after.drop_rest()
    assert KeptCertificates(tmp_path, 0.0).take("a", 0.0) is not None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="choose another run directory"):
        KeptCertificates(tmp_path / "file" / "c", 0.0)


def test_what_is_passed_on_is_another_ones(tmp_path: Path) -> None:
    before = KeptCertificates(tmp_path, 0.0)
    before.keep(issued("a"))
    before.pass_on()
    before.keep(issued("b"))
    before.drop("a")
    before.keep_roots(b"old roots")
    after = KeptCertificates(tmp_path, 0.0)
    assert (after.roots(), after.take("a", 0.0), after.take("b", 0.0)) == (b"", issued("a"), None)
    before.pass_on(False)
    before.drop("a")
    assert KeptCertificates(tmp_path, 0.0).take("a", 0.0) is None
