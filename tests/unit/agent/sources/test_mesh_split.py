"""Where entries begin and end.  That the pieces mean what the file means is for tests/fuzz/test_mesh_scan.py."""

from __future__ import annotations

import pytest

from nodeproxy.agent.sources.mesh_split import split

BLOCK = """\
# the mesh
---
workloads:  # all

  # the first
  - uid: a
    text: |
      - no entry

  # of b
  -
    uid: b
services: []
pods:
- uid: a
"""
JSON = """{
 "pods": [{"uid": "a"}],
 "workloads": [
  {"uid": "a, b"},
  {"uid": "]"} ],
 "services": []
}
"""


def test_entries_of_a_block() -> None:
    pieces = split(BLOCK.encode())
    assert pieces is not None
    assert list(pieces.texts()) == [
        ("workloads", b"  - uid: a\n    text: |\n      - no entry\n\n  # of b\n"),
        ("workloads", b"  -\n    uid: b\n"),
    ]
    assert pieces.only(range(2)) == BLOCK.encode()
    assert pieces.only({1}) == BLOCK.replace("  - uid: a\n    text: |\n      - no entry\n\n  # of b\n", "").encode()
    none = pieces.only(())
    assert none == b"# the mesh\n---\nworkloads: []  # all\n\n  # the first\nservices: []\npods:\n- uid: a\n"


def test_entries_of_json() -> None:
    pieces = split(JSON.encode())
    assert pieces is not None
    assert list(pieces.texts()) == [("workloads", b'{"uid": "a, b"}'), ("workloads", b'{"uid": "]"}')]
    assert pieces.only(range(2)) == (b'{"pods": [{"uid": "a"}],"workloads": [\n  {"uid": "a, b"},{"uid": "]"}],"services": []}')
    assert pieces.only(()) == b'{"pods": [{"uid": "a"}],"workloads": [\n  ],"services": []}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "workloads:\n",
        "workloads: 5\n",
        "workloads: [{uid: a}]\n",
        "workloads: []\n- uid: a\n",
        "workloads:#\n- uid: a\n",
        "workloads:\n- uid: a\nworkloads:\n- uid: b\n",
        "workloads:\n- uid: a\n  text: 'x\ny'\n",
        "workloads:\n- uid: a\n- b\n...\n",
        "workloads:\n  - uid: a\n - uid: b\n",
        "workloads:\n- uid: a\n-\tuid: b\n",
        "workloads:\n- uid: a\r\n",
        "workloads:\n- uid: a\u2028- b\n",
        "workloads:\n- uid: a\u0085- b\n",
        "'workloads':\n- uid: a\n",
        "? workloads\n: - uid: a\n",
        " workloads:\n - uid: a\n",
        "\ufeffworkloads:\n- uid: a\n",
        "%TAG ! x\n---\nworkloads:\n- uid: a\n",
        "--- # x\nworkloads:\n- uid: a\n",
        "workloads: &x\n- uid: a\n",
        "{",
        "{}",
        '{"workloads": [{"uid": "a"}',
        '{"workloads": [{"uid": "a"},]}',
        '{"workloads": [{"uid": "é"}]}',
        '{"workloads": [{"uid": "a"}], "workloads": []}',
        '{"workloads": [{uid: a}]}',
        '{"workloads": []} # the end',
        '{\t"workloads": []}',
        '{"workloads": ' + "[" * 100_000,
        '{"pods": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_not_plain_is_not_split(content: str) -> None:
    assert split(content.encode()) is None


def test_a_value_that_only_looks_like_a_list_in_a_text_is_in_its_piece() -> None:
    pieces = split(b"workloads:\n- a: 'x\n    - y'\n- b\n")
    assert pieces is not None
    assert [text for _, text in pieces.texts()] == [b"- a: 'x\n    - y'\n", b"- b\n"]
