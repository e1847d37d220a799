"""What an agent pays for the libraries behind `nodeproxy.linux`."""

from __future__ import annotations

import subprocess
import sys


def test_netlink_brings_no_database() -> None:
    program = "import sys, nodeproxy.linux.netlink, nodeproxy.linux.routes; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
