from __future__ import annotations

import random
import re

from nodeproxy.wire.trace import new_traceparent

# W3C trace context, section 3.2.2
_VALID = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-00")


def test_each_is_valid_and_its_own() -> None:
    bits = random.Random(7).getrandbits
    made = {new_traceparent(bits) for _ in range(1000)}
    assert len(made) == 1000
    assert all(_VALID.fullmatch(each) for each in made)


def test_zero_is_invalid_and_not_made() -> None:
    assert new_traceparent(lambda bits: 0) == f"00-{'0' * 31}1-{'0' * 15}1-00"


def test_the_largest_fits() -> None:
    assert new_traceparent(lambda bits: (1 << bits) - 1) == f"00-{'f' * 32}-{'f' * 16}-00"
