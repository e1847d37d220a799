from __future__ import annotations

from pathlib import Path

from nodeproxy.kernel.headers import _version, kernel_headers


def test_there_are_some_here() -> None:
    found = kernel_headers()
    assert found.origin
    for flag in found.compiler_flags:
        assert Path(flag.removeprefix("-I")).is_dir()


def test_the_newest_is_the_one_with_the_highest_number() -> None:
    names = ["linux-headers-6.1.0-9-amd64", "linux-headers-6.1.0-56-amd64", "linux-headers-5.10.0-99-amd64"]
    assert max(names, key=lambda name: _version(Path(name))) == "linux-headers-6.1.0-56-amd64"
