"""Whatever comes as a packet of ZDS is a request whose names are names, or a named error."""

from __future__ import annotations

import random
import re

import pytest

from nodeproxy.agent.pods.zds_protocol import Add, parse
from nodeproxy.errors import EnrolmentError
from tests.istio_cni import SNAPSHOT_SENT, add, delete, keep

_NAME = re.compile(r"[a-z0-9.-]{1,253}")
_SEEDS = (add("uid-1", "web-0", "shop", "default"), keep("uid-1"), delete("uid-1"), SNAPSHOT_SENT, b"")


@pytest.mark.parametrize("seed", range(20))
def test_garbage(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(500):
        packet = bytearray(chance.choice(_SEEDS))
        for _ in range(chance.randrange(6)):
            at = chance.randrange(len(packet) + 1)
            match chance.randrange(3):
                case 0:
                    packet[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 1:
                    del packet[at : at + chance.randrange(1, 9)]
                case _ if packet:
                    packet[at % len(packet)] = chance.randrange(256)
        try:
            request = parse(bytes(packet))
        except EnrolmentError:
            continue
        if isinstance(request, Add):
            assert all(_NAME.fullmatch(name) for name in request[1:])
