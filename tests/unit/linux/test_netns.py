from __future__ import annotations

from pathlib import Path

import pytest

from nodeproxy.errors import EnrolmentError
from nodeproxy.linux import netns


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="has the pod gone"):
        netns.open_netns(str(tmp_path / "absent"))


def test_a_file_that_is_no_namespace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnrolmentError, match="is not a network namespace"):
        netns.open_netns(str(tmp_path / "file"))


def test_a_namespace_of_another_kind() -> None:
    with pytest.raises(EnrolmentError, match="is not a network namespace"):
        netns.open_netns("/proc/self/ns/uts")


def test_the_nodes_own_network_is_refused() -> None:
    import os

    own = netns.open_netns("/proc/self/ns/net")
    try:
        with pytest.raises(EnrolmentError, match="hostNetwork"):
            netns.refuse_node_netns(own, "/proc/self/ns/net")
    finally:
        os.close(own)
