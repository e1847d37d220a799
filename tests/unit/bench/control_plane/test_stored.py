from __future__ import annotations

from tests.bench.control_plane.stored import merged


def test_what_one_does_not_say_is_the_patterns() -> None:
    pattern = {
        "metadata": {"name": "a", "uid": "1"},
        "spec": {"containers": [{"image": "a:1", "policy": "Always"}], "dns": "First"},
    }
    over = {"metadata": {"name": "b"}, "spec": {"containers": [{"image": "b:1"}]}}
    assert merged(pattern, over) == {
        "metadata": {"name": "b", "uid": "1"},
        "spec": {"containers": [{"image": "b:1", "policy": "Always"}], "dns": "First"},
    }


def test_lists_of_other_lengths_are_exchanged() -> None:
    assert merged({"ips": ["1", "2"]}, {"ips": ["3"]}) == {"ips": ["3"]}
