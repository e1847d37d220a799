from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.config import Address, Upstream
from nodeproxy.errors import IdentityError
from nodeproxy.identity.control_plane import MAX_TOKEN_BYTES, ControlPlane

TLS, PLAIN = Upstream(Address("istiod", 15012), tls=True), Upstream(Address("127.0.0.1", 15010), tls=False)


def control(tmp_path: Path, *, token: bool = True) -> ControlPlane:
    return ControlPlane(
        (TLS, PLAIN), root=tmp_path / "root", token=tmp_path / "token" if token else None, cluster_id="c", start=0
    )


def test_servers_take_turns(tmp_path: Path) -> None:
    made = control(tmp_path)
    assert (len(made), str(made)) == (2, "https://istiod:15012,http://127.0.0.1:15010")
    seen = []
    for _ in range(3):
        seen.append(made.current())
        made.turn()
    assert seen == [TLS, PLAIN, TLS]


def test_root_and_token_are_read_each_time(tmp_path: Path) -> None:
    made = control(tmp_path)
    for text in ("one", "two"):
        (tmp_path / "root").write_text(f"-----BEGIN CERTIFICATE-----{text}")
        (tmp_path / "token").write_text(f"{text}\n")
        assert made.roots().decode() == f"-----BEGIN CERTIFICATE-----{text}"
        assert made.metadata() == (("clusterid", "c"), ("authorization", f"Bearer {text}"))


def test_without_tls_no_root_and_without_a_token_none(tmp_path: Path) -> None:
    made = control(tmp_path, token=False)
    made.turn()
    assert made.roots() == b""
    assert made.metadata() == (("clusterid", "c"),)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"two words", b"\xff", b"x" * (MAX_TOKEN_BYTES + 1)])
def test_what_is_no_token(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(IdentityError, match="token"):
        control(tmp_path).metadata()


def test_an_empty_file_of_roots_is_none(tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(IdentityError, match="holds no certificate"):
        control(tmp_path).roots()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=f"{tmp_path / 'root'}: No such file or directory; is it mounted"):
        control(tmp_path).roots()
    with pytest.raises(IdentityError, match=f"{tmp_path / 'token'}"):
        control(tmp_path).metadata()
