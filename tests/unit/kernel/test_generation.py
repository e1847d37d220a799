from __future__ import annotations

import pytest

from nodeproxy.errors import KernelError, NodeproxyError, PrivilegeError
from nodeproxy.kernel.generation import _MAX_ERROR_CHARS, _loader_error, wanted_name
from nodeproxy.kernel.pins import _GENERATION


def test_the_name_is_one_that_pins_knows() -> None:
    assert _GENERATION.fullmatch(wanted_name())


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (2, "no kernel headers for 6.1: apt-get install linux-headers-amd64", PrivilegeError),
        (1, "bpf: Failed to load program: Operation not permitted", PrivilegeError),
        (1, "R1 invalid mem access", KernelError),
        (-9, "", KernelError),
    ],
)
def test_what_the_loader_says_is_kept(status: int, said: str, kind: type[NodeproxyError]) -> None:
    error = _loader_error(status, said)
    assert type(error) is kind
    assert said in str(error)


def test_of_a_long_log_the_end_is_kept() -> None:
    error = _loader_error(1, "x" * 1_000_000 + "here is the reason")
    assert str(error).endswith("here is the reason")
    assert len(str(error)) < _MAX_ERROR_CHARS + 200
