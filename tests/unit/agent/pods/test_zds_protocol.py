"""ZDS's packets, against bytes written here by Istio's numbers."""

from __future__ import annotations

import pytest

from nodeproxy.agent.pods.zds_protocol import Add, Delete, Keep, SnapshotSent, answer, hello, parse
from nodeproxy.errors import EnrolmentError
from tests.istio_cni import ACK, HELLO, SNAPSHOT_SENT, add, delete, error_of, keep, text

UID = "3e6f0c7a-0000-4000-8000-000000000001"


def test_what_istio_cni_says_is_understood() -> None:
    assert parse(add(UID, "web-0", "shop", "default")) == Add(UID, "web-0", "shop", "default")
    assert parse(keep(UID)) == Keep(UID)
    assert parse(delete(UID)) == Delete(UID)
    assert parse(SNAPSHOT_SENT) == SnapshotSent()


def test_a_static_pod_is_named_by_a_digest() -> None:
    assert parse(keep("d8b7a4e2f0c94f5b9f2f1a2b3c4d5e6f")) == Keep("d8b7a4e2f0c94f5b9f2f1a2b3c4d5e6f")


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert parse(add(UID, "web-0", "shop", "default") + text(15, b"later")) == Add(UID, "web-0", "shop", "default")


def test_what_is_said_to_istio_cni() -> None:
    assert hello() == HELLO
    assert answer() == ACK
    assert error_of(answer("it has gone")) == "it has gone"


def test_an_answer_fits_into_what_istio_cni_reads() -> None:
    long = answer("ä" * 5000)
    assert len(long) < 1024
    assert set(error_of(long)) == {"ä"}


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"", "none of add"),
        (b"\xff\xff", "no WorkloadRequest"),
        (text(4, b""), "none of add"),
        (add(UID, "web-0", "shop", "default")[:-4], "no WorkloadRequest"),
        (add("", "web-0", "shop", "default"), "no pod's"),
        (add("../../etc", "web-0", "shop", "default"), "no pod's"),
        (add("a" * 129, "web-0", "shop", "default"), "no pod's"),
        (add(UID, "Web", "shop", "default"), "workload_info.name"),
        (add(UID, "web-0", "", "default"), "workload_info.namespace"),
        (add(UID, "web-0", "shop", "a/b"), "workload_info.service_account"),
        (add(UID, "web-0", "shop", "a\n"), "workload_info.service_account"),
        (text(1, text(1, UID)), "workload_info.name"),
        (keep(""), "no pod's"),
        (delete("a b"), "no pod's"),
    ],
)
def test_what_is_no_request_is_an_error_with_a_reason(packet: bytes, why: str) -> None:
    with pytest.raises(EnrolmentError, match=why):
        parse(packet)
