from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeproxy.errors import ConfigError, KernelError
from nodeproxy.kernel import pins


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pins.Pins:
    """An instance on an ordinary file system, which locks and renames alike."""
    monkeypatch.setattr(pins, "ROOT", tmp_path)
    return pins.Pins("default")


def test_a_second_holder_is_refused_until_the_first_ends(made: pins.Pins) -> None:
    first = made.lock()
    with pytest.raises(KernelError, match="--instance"):
        made.lock()
    os.close(first)
    os.close(made.lock())


def test_only_whole_generations_are_listed(made: pins.Pins) -> None:
    os.close(made.lock())
    whole = made.generation("0123456789ab-ba9876543210")
    whole.mkdir()
    made.loading.mkdir()
    assert made.generations() == [whole]


def test_pods_are_known_by_their_links(made: pins.Pins) -> None:
    os.close(made.lock())
    made.pod_link(42).touch()
    (made.links / "connect4").touch()
    assert made.pod_cookies() == [42]


def test_a_tree_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    pins.remove_tree(tmp_path / "a")
    pins.remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["default", "0", "a-b-1", "x" * 40])
def test_names_that_will_do(name: str) -> None:
    assert pins.Pins(name).instance == name


@pytest.mark.parametrize("name", ["", "A", "a.b", "a/b", "../x", "-a", "x" * 41, "a\n"])
def test_names_that_will_not(name: str) -> None:
    with pytest.raises(ConfigError):
        pins.Pins(name)
