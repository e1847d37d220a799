"""What a worker imports is paid for in each of them: import-linter reads the source, this test looks at a real interpreter."""

from __future__ import annotations

import subprocess
import sys

TOO_DEAR = {"aiohttp", "asyncio", "bcc", "cryptography", "prometheus_client", "pyroute2", "uvloop", "yaml"}
IMPORT_ALL = """
import importlib, pkgutil, sys
import nodeproxy.proxy
for module in pkgutil.walk_packages(nodeproxy.proxy.__path__, "nodeproxy.proxy."):
    importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_workers_import_nothing_dear() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert not TOO_DEAR & set(done.stdout.split())
