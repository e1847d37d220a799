from __future__ import annotations

from nodeproxy.kernel import abi
from nodeproxy.kernel.direct import DirectFlow


def test_a_flow_reads_what_the_programs_write() -> None:
    ends = (abi.pack_ip("10.0.0.1"), abi.pack_ip("fd00::2"), 40000, 80)
    carried = (7, 11, 12, 1000, 2000, 30, 40, abi.pack_ip("10.96.0.1"), 8080, 1, 0, 1)
    flow = DirectFlow._make(abi.DIRECT_ENDED.unpack(abi.DIRECT_ENDED.pack(*ends, *carried)))
    assert (flow.source, flow.destination, flow.original) == (("10.0.0.1", 40000), ("fd00::2", 80), ("10.96.0.1", 8080))
    assert (flow.socket_cookie, flow.source_cookie, flow.destination_cookie) == (7, 11, 12)
    assert (flow.started_ns, flow.ended_ns, flow.sent_bytes, flow.received_bytes) == (1000, 2000, 30, 40)
    assert (flow.established, flow.ended, flow.refused) == (1, 0, 1)
