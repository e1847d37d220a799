from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nodeproxy.errors import KernelError
from nodeproxy.kernel.original_destination import OriginalDestination


def test_a_map_that_is_none_is_an_error_and_no_answer() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(KernelError, match="original destination"):
            OriginalDestination(reading).get(0)
    finally:
        os.close(reading)
        os.close(writing)


def test_it_imports_little() -> None:
    code = "import nodeproxy.kernel.original_destination, sys; print(sorted({'bcc', 'pyroute2', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": os.getcwd()}
    )
    assert done.stdout.strip() == "[]"
