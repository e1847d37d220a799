"""How patient tests are: under emulation (tests/kernels) all takes twenty times as long.

TEST_PACE multiplies the time that a test waits for what must happen, never the time in which nothing may.
"""

from __future__ import annotations

import os

PACE = float(os.environ.get("TEST_PACE", "1"))
