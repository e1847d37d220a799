from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeproxy.errors import KernelError, NodeproxyError
from nodeproxy.kernel import bpf


def test_a_pin_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NodeproxyError, match="opening the pin"):
        bpf.obj_get(tmp_path / "absent")


def test_asking_about_what_is_no_link(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(NodeproxyError, match="asking about a link") as caught:
            bpf.link_info(descriptor)
    finally:
        os.close(descriptor)
    assert not isinstance(caught.value, KernelError) or caught.value.errno


def test_every_cpu_is_counted() -> None:
    assert bpf._possible_cpus() >= (os.cpu_count() or 1)
