"""What an agent pays for the libraries behind `nodeproxy.linux`."""

from __future__ import annotations

import subprocess
import sys


def test_a_pods_routes_bring_no_library() -> None:
    program = "import sys, nodeproxy.linux.addresses, nodeproxy.linux.routes; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
